"""How long a folder or zip of a million images takes to open, and how much memory.

python experiments/data_speed/listing.py --count=1300000  # a zip and a folder; --forms=zip: one
python experiments/data_speed/listing.py --tables         # only rewrites the table from the CSV

The images are empty files with names like ImageNet's, in 1,000 class folders that are removed again.
Each form is opened in a process of its own. The table shows the last row of each form and machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax.data import datasets
from cnnjax.data.machine import peak_resident
from cnnjax.runs.record import processor
from experiments import pages, results

RESULTS = HERE / "listing.csv"
CLASSES = 1000
MOST_SECONDS, MOST_BYTES, TARGET_COUNT = 10.0, 3e8, 1_300_000  # of the largest set


def names(count: int) -> Iterator[str]:
    """`train/n00000007/n00000007_42.JPEG`, class by class."""
    each = -(-count // CLASSES)
    for number in range(count):
        group = f"n{number // each:08d}"
        yield f"train/{group}/{group}_{number % each}.JPEG"


def make(form: str, count: int, root: Path) -> Path:
    """A zip or a folder of so many empty files."""
    path = root / ("images.zip" if form == "zip" else "images")
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names(count):
                archive.writestr(name, b"")
        return path
    for name in names(count):
        file = path / name
        try:
            file.touch()
        except FileNotFoundError:
            file.parent.mkdir(parents=True)
            file.touch()
    return path


def opened(path: str) -> dict[str, float]:
    """Opens the train split, in this process."""
    before, start = peak_resident(), time.perf_counter()
    source = datasets.load(f"folder:{path}", "train", size=256)
    seconds = time.perf_counter() - start
    return {"images": len(source), "seconds": round(seconds, 2), "bytes": peak_resident() - before}


def measure(form: str, count: int) -> dict[str, object]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        path = make(form, count, Path(folder))
        command = [sys.executable, str(Path(__file__)), f"--open={path}"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-500:])
    return {"form": form, **json.loads(done.stdout), "machine": processor()}


def table(measured: list[dict[str, str]]) -> str:
    """The last row of each form and machine as Markdown."""
    if not measured:
        return "Not measured yet."
    lines = ["| form | images | seconds | memory | processor | target |", "|---|---|---|---|---|---|"]
    for row in {(row["form"], row["machine"]): row for row in measured}.values():
        count, seconds, size = int(row["images"]), float(row["seconds"]), float(row["bytes"])
        part = count / TARGET_COUNT  # of the target: the time and memory of an image are the same
        met = "met" if seconds < MOST_SECONDS * part and size < MOST_BYTES * part else "missed"
        target = f"< {MOST_SECONDS * part:.1f} s and {MOST_BYTES * part / 1e6:.0f} MB: {met}"
        figures = f"{count:,} | {seconds:.2f} | {size / 1e6:.0f} MB"
        lines.append(f"| {row['form']} | {figures} | {row['machine']} | {target} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=TARGET_COUNT, help="images")
    parser.add_argument("--forms", default="zip,folder", help="zip, folder or both")
    parser.add_argument("--tables", action="store_true", help="only rewrite the table")
    parser.add_argument("--open", help="open this one and print what it took")
    given = parser.parse_args(arguments)
    if given.open:
        print(json.dumps(opened(given.open)))
        return
    if not given.tables:
        for form in given.forms.split(","):
            results.append(RESULTS, measure(form, given.count))
    pages.write((HERE / "README.md",), "listing", table(results.read(RESULTS)))


if __name__ == "__main__":
    main(sys.argv[1:])
