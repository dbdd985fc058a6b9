"""The results.csv of a study: read whole, added to as runs end."""

import csv
from collections.abc import Mapping
from pathlib import Path

Row = dict[str, str]


def read(file: Path) -> list[Row]:
    """The rows so far; none where there is no such file yet."""
    if not file.exists():
        return []
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def append(file: Path, *rows: Mapping[str, object]) -> None:
    """Adds rows of the same columns, with the head where the file is new."""
    new = not file.exists()
    with open(file, "a", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
