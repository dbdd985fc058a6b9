"""The results.csv of a study: read whole, added to as runs end."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = dict[str, str]


def read(file: Path) -> list[Row]:
    """The rows so far; none where there is no such file yet."""
    if not file.exists():
        return []
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def finished(rows: Sequence[Row]) -> list[Row]:
    """Those of runs that have scores; the others diverged."""
    return [row for row in rows if row.get("test_accuracy")]


def seeds(rows: Sequence[Row]) -> str:
    """How many runs a mean is of: '3', or '2, 1 not finite'."""
    scored = len(finished(rows))
    return f"{scored}, {len(rows) - scored} not finite" if scored < len(rows) else str(scored)


def append(file: Path, *rows: Mapping[str, object]) -> None:
    """Adds rows of the same columns, with the head where the file is new."""
    new = not file.exists()
    with open(file, "a", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
