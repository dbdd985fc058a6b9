"""The input pipeline beside simplejpeg alone, and what it costs a training step, on this machine.

python experiments/data_speed/run.py --data=folder:PATH  # measures; JPEG files, by default made-up ones
python experiments/data_speed/run.py --tables            # only rewrites the table from the CSV

A row is `cnnjax bench data --data=... --json` in a process of its own; leave the machine alone meanwhile. The
table shows the last row of each kind of machine.
"""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax.runs.record import processor
from experiments import pages, results

RESULTS = HERE / "results.csv"
BESIDE = {  # what is decoded in turn with simplejpeg alone, and the least ratio to it
    "jpeg": ("JPEG decoded to 256x256, relative to simplejpeg alone", 0.85),
    "records": ("JPEG records of 256x256, relative to simplejpeg alone", 0.9),
}


def measure(arguments: list[str]) -> dict[str, object]:
    """One row."""
    command = [sys.executable, "-m", "cnnjax", "bench", "data", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-500:])
    found = json.loads(done.stdout.splitlines()[-1])
    versions = {name: importlib.metadata.version(name) for name in ("jax", "grain", "simplejpeg")}
    return {**found, **versions, "machine": processor()}


def read_rows() -> list[dict[str, str]]:
    """The measured rows."""
    return results.read(RESULTS)


def table(measured: list[dict[str, str]]) -> str:
    """The last row of each machine as Markdown, with the targets."""
    if not measured:
        return "Not measured yet."
    words = ("images", "device", "jax", "grain", "simplejpeg", "machine")
    measures: dict[str, list[str]] = {}
    for machine, row in {row["machine"]: row for row in measured}.items():
        numbers = {k: value if k in words else float(value) for k, value in row.items() if value}
        numbers["memory_images"] = int(row["memory_images"])
        for what, value, target, met in rows(numbers):
            line = f"| {what} | {machine} | {value} | {target} | {'met' if met else 'missed'} |"
            measures.setdefault(what, []).append(line)
    last = measured[-1]
    return "\n".join(
        [
            "| measure | processor | value | target | |",
            "|---|---|---|---|---|",
            *(line for lines in measures.values() for line in lines),
            "",
            f"Medians, of five unless stated; JPEG files: {last['images']}. {last['cores']} cores, "
            f"jax {last['jax']}, grain {last['grain']}, simplejpeg {last['simplejpeg']}. Written by "
            "`python experiments/data_speed/run.py` from `experiments/data_speed/results.csv`.",
        ]
    )


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """(what, measured, the target that this project set itself, whether it is met) of a measurement."""
    raw, share, growth = (found[k] for k in ("raw_images_per_second", "augment_share", "memory_growth_bytes"))
    growth /= 2**20
    for name, (what, least) in BESIDE.items():
        if f"{name}_ratio" not in found:  # measured before there was such a figure
            continue
        yield (
            what,
            f"{found[f'{name}_images_per_second']:,.0f} / {found[f'{name}_alone_images_per_second']:,.0f} "
            f"images/s: {found[f'{name}_ratio']:.1%} ({found[f'{name}_ratio_min']:.1%} to "
            f"{found[f'{name}_ratio_max']:.1%}, {found[f'{name}_rounds']:.0f} rounds)",
            f">= {least:.0%}",
            found[f"{name}_ratio"] >= least,
        )
    yield (
        "raw 256x256 records onto the device",
        f"{raw:,.0f} images/s ({found['raw_images_per_second_min']:,.0f} to "
        f"{found['raw_images_per_second_max']:,.0f})",
        ">= 6,000 images/s",
        raw >= 6000,
    )
    yield (
        "227 crop, mirror, normalization, share of an AlexNet step",
        f"{found['augment_milliseconds']:.2f} / {found['step_milliseconds']:,.1f} ms: {share:.2%}",
        "< 5%",
        share < 0.05,
    )
    yield (
        f"growth of memory over {found['memory_images']:,} images",
        f"{growth:.1f} MiB",
        "flat: < 16 MiB",
        growth < 16,
    )


def main(arguments: list[str]) -> None:
    if "--tables" not in arguments:
        results.append(RESULTS, measure(arguments))
    pages.write((HERE / "README.md",), "data_speed", table(read_rows()))


if __name__ == "__main__":
    main(sys.argv[1:])
