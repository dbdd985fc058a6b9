"""speeds.csv: training images a second of each net of the studies, by machine.

Runs of studies share a machine with other work, so their own times say little: the tables' times are
steps x batch / images a second, measured while nothing else ran.

    python experiments/speeds.py   # measures the nets of all studies that it lacks; nothing else should run
"""

import contextlib
import datetime
import functools
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ml_collections import ConfigDict

from cnnjax.data.files import cache_folder, make_cache_folder
from cnnjax.data.machine import num_cores
from cnnjax.profiling.benchmark import bench_train
from cnnjax.runs.record import processor
from experiments import results

FILE = Path(__file__).parent / "speeds.csv"
KEY = ("model", "batch", "dtype", "side", "machine")


def rows() -> list[results.Row]:
    """Those of the project, then those noted where its folder cannot be written."""
    return [*results.read(FILE), *results.read(cache_folder("speeds") / FILE.name)]


@functools.cache
def this_machine() -> str:
    """'AMD EPYC (family 25, model 17), AVX-512 with bfloat16, 2 cores'."""
    return f"{processor()}, {num_cores()} cores"


def net(config: ConfigDict) -> tuple[str, str, str, str]:
    """What images a second depend on: model, batch size, dtype and the side of the images in pixels."""
    cut = re.search(r"crop\((\d+)", config.augment.eval)
    side = cut[1] if cut else "28" if "fashion" in config.data.name else "32"
    return config.model, str(config.batch_size), config.dtype, side


@functools.cache
def rate(net: tuple[str, ...]) -> float:
    """Images a second on this machine, measured where no row has it."""
    key = dict(zip(KEY, (*net, this_machine()), strict=True))
    found = [row for row in rows() if all(row[name] == value for name, value in key.items())]
    if found:
        return float(found[-1]["images_per_second"])
    model, batch_size, dtype, side = net
    of = {"batch_size": int(batch_size), "dtype": dtype, "image_size": int(side)}
    figures = bench_train(model, **of, rounds=3, seconds=2.0)
    measured = round(float(str(figures["images_per_second"])), 1)  # as it will be read
    note(key, measured)
    return measured


def note(key: dict[str, str], images_per_second: float) -> None:
    """Adds a row; to a file in the cache if the checkout cannot be written, and to none if neither can."""
    today = datetime.date.today().isoformat()
    row = {**key, "images_per_second": images_per_second, "date": today}
    try:
        results.append(FILE, row)
    except OSError:
        with contextlib.suppress(OSError):
            results.append(make_cache_folder("speeds") / FILE.name, row)


def main() -> None:
    """Measures the nets of all studies that this machine has no row of."""
    from experiments import run_all, studies  # which import this module

    plans = [(study, study.planned()) for study in studies.every(run_all.STUDIES)]
    for each in dict.fromkeys(study.net(run) for study, planned in plans for run in planned):
        print(*each, f"{rate(each):.0f} images/s", flush=True)


def published(net: tuple[str, ...], *, on: str = "") -> float:
    """Images a second on the first processor that a net was measured on, or on one; nan if it never was."""
    found = [row for row in results.read(FILE) if tuple(row[name] for name in KEY[:-1]) == net]
    found = [row for row in found if row["machine"].startswith(on)]
    return float(found[0]["images_per_second"]) if found else float("nan")


def epochs(net: tuple[str, ...], seconds: float, images: int, unknown: float) -> float:
    """That fit into a time on the first machine in speeds.csv; `unknown` of a net that is not there."""
    speed = published(net)
    return unknown if math.isnan(speed) else round(seconds * speed / images, 1)


if __name__ == "__main__":
    main()
