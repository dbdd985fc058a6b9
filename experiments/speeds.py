"""speeds.csv: training images a second of each net of the studies, by machine.

Runs of studies share a machine with other work, so their own times say little: the tables' times are
steps x batch / images a second, measured while nothing else ran.

    python experiments/speeds.py   # measures the nets of all studies that it lacks; nothing else should run
"""

import datetime
import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cnnjax.profiling.benchmark import bench_train
from cnnjax.runs.record import processor
from experiments import results

FILE = Path(__file__).parent / "speeds.csv"


@functools.cache
def this_machine() -> str:
    """'AMD EPYC (family 25, model 17), AVX-512 with bfloat16, 2 cores'."""
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores"


def rate(model: str, batch_size: int, dtype: str, *, measure: bool = False, on: str | None = None) -> float:
    """Images a second on a machine, this one if none is named; nan if unknown and not to be measured."""
    key = {"model": model, "batch": str(batch_size), "dtype": dtype, "machine": on or this_machine()}
    rows = [row for row in results.read(FILE) if all(row[name] == value for name, value in key.items())]
    if rows:
        return float(rows[-1]["images_per_second"])
    if not measure or on:
        return float("nan")
    figures = bench_train(model, batch_size=batch_size, dtype=dtype, rounds=3, seconds=2.0)
    note(key, float(str(figures["images_per_second"])))
    return float(str(figures["images_per_second"]))


def note(key: dict[str, str], images_per_second: float) -> None:
    """Adds a row."""
    today = datetime.date.today().isoformat()
    results.append(FILE, {**key, "images_per_second": f"{images_per_second:.1f}", "date": today})


def main() -> None:
    """Measures the nets of all studies that this machine has no row of."""
    from experiments import run_all, studies  # which import this module

    plans = [(study, study.planned()) for study in studies.every(run_all.STUDIES)]
    for net in dict.fromkeys(study.net(run) for study, planned in plans for run in planned):
        print(*net, f"{rate(*net, measure=True):.0f} images/s", flush=True)


def published(model: str, batch_size: int, dtype: str) -> float:
    """Images a second on the first machine that a net was measured on; nan if it never was."""
    key = {"model": model, "batch": str(batch_size), "dtype": dtype}
    rows = [row for row in results.read(FILE) if all(row[name] == value for name, value in key.items())]
    return float(rows[0]["images_per_second"]) if rows else float("nan")


if __name__ == "__main__":
    main()
