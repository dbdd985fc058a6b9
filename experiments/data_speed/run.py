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
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax.profiling import input_pipeline
from cnnjax.runs import folder
from experiments import pages, results

RESULTS = HERE / "results.csv"


def measure(arguments: list[str]) -> dict[str, object]:
    """One row."""
    command = [sys.executable, "-m", "cnnjax", "bench", "data", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-500:])
    found = json.loads(done.stdout.splitlines()[-1])
    versions = {name: importlib.metadata.version(name) for name in ("jax", "grain", "simplejpeg")}
    return {**found, **versions, "machine": folder.processor()}


def read_rows() -> list[dict[str, str]]:
    """The measured rows."""
    return results.read(RESULTS)


def table(rows: list[dict[str, str]]) -> str:
    """The last row of each machine as Markdown, with the targets."""
    if not rows:
        return "Not measured yet."
    words = ("images", "device", "jax", "grain", "simplejpeg", "machine")
    measures: dict[str, list[str]] = {}
    for machine, row in {row["machine"]: row for row in rows}.items():
        numbers = {name: value if name in words else float(value) for name, value in row.items()}
        numbers["memory_images"] = int(row["memory_images"])
        for what, value, target, met in input_pipeline.rows(numbers):
            line = f"| {what} | {machine} | {value} | {target} | {'met' if met else 'missed'} |"
            measures.setdefault(what, []).append(line)
    last = rows[-1]
    return "\n".join(
        [
            "| measure | processor | value | target | |",
            "|---|---|---|---|---|",
            *(line for lines in measures.values() for line in lines),
            "",
            f"Medians, of five unless said; JPEG files: {last['images']}. {last['cores']} cores, "
            f"jax {last['jax']}, grain {last['grain']}, simplejpeg {last['simplejpeg']}. Written by "
            "`python experiments/data_speed/run.py` from `experiments/data_speed/results.csv`.",
        ]
    )


def main(arguments: list[str]) -> None:
    if "--tables" not in arguments:
        results.append(RESULTS, measure(arguments))
    pages.write((HERE / "README.md",), "data_speed", table(read_rows()))


if __name__ == "__main__":
    main(sys.argv[1:])
