"""The CSV files of a study: read whole, and written whole, so that no end of a process cuts one."""

import contextlib
import csv
import fcntl
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cnnjax.data.files import atomic_write, open_to_append
from cnnjax.errors import UserError, one_line

Row = dict[str, str]


def read(file: Path) -> list[Row]:
    """The rows so far, none if there is no such file; a UserError names one that is cut or damaged."""
    if not file.exists():
        return []
    try:
        text = file.read_bytes().decode()
        if not text.endswith("\n"):
            raise ValueError("its last line is cut")
        columns, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [dict(zip(columns, cells, strict=True)) for cells in lines]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file} is damaged: {one_line(error)}; restore it, or remove it") from None


def finished(rows: Sequence[Row], score: str = "test_accuracy") -> list[Row]:
    """Those of runs that have a score; the others diverged, or it was not measured."""
    return [row for row in rows if row.get(score)]


def seeds(rows: Sequence[Row]) -> str:
    """How many runs a mean is of: '3', or '2, 1 not finite'."""
    scored = len(finished(rows))
    return f"{scored}, {len(rows) - scored} not finite" if scored < len(rows) else str(scored)


def write(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]], before: str = "") -> None:
    """Replaces a file by rows under their head, or by the text before them and the rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not before:
        writer.writeheader()
    writer.writerows(rows)
    atomic_write(file, before + text.getvalue())


def append(file: Path, *rows: Mapping[str, object]) -> None:
    """Adds rows of the same columns, with the head where the file is new."""
    read(file)  # what is damaged stays as it is
    write(file, list(rows[0]), rows, file.read_bytes().decode() if file.exists() else "")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """The folder of a sweep, for this process alone: tasks of a cluster may share it."""
    with open_to_append(out / "runs" / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
