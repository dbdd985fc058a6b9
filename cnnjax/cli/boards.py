"""What a sweep shows: its table, and on a terminal the state of the current run."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from cnnjax.cli.progress import describe
from cnnjax.cli.tables import say
from cnnjax.runs.results import Row, points_of, spread, validation_means
from cnnjax.runs.sweep import Board


def as_table(rows: Sequence[Row], fields: Sequence[str]) -> Table:
    """A row for each point; the best on validation comes first, in bold."""
    table = Table(*fields, "runs", "validation %", "test %", "seconds", title="mean ± std over seeds")
    means = validation_means(rows, fields)
    for place, (point, members) in enumerate(points_of(rows, fields).items()):
        failed = sum(row["outcome"] != "finished" for row in members)
        runs = f"{len(members)}, {failed} not finite" if failed else str(len(members))
        scores = [spread([row[f"{split}_accuracy"] for row in members]) for split in ("validation", "test")]
        seconds = spread([row["seconds"] for row in members], 1, 1)
        style = "bold" if place == 0 and point in means else None
        table.add_row(*point, runs, *scores, seconds, style=style)
    return table


class Notes(Board):
    """What the user should know of the runs, each line once though several runs note it."""

    def __init__(self) -> None:
        self.name, self.noted = "", set[str]()

    def begin(self, name: str, number: int, count: int) -> None:
        self.name = name

    def note(self, text: str) -> None:
        if text not in self.noted:
            self.noted.add(text)
            say(f"{self.name}: {text}" if self.name else text)


class Lines(Notes):
    """A line for each run as it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.printed: int | None = None

    def rows(self, rows: Sequence[Row], fields: Sequence[str]) -> None:
        for row in rows[self.printed :] if self.printed is not None else ():
            accuracies = {split: spread([row[f"{split}_accuracy"]]) for split in ("validation", "test")}
            scores = ", ".join(
                f"{split} {f'{each} %' if each else 'none'}" for split, each in accuracies.items()
            )
            outcome = scores if row["outcome"] == "finished" else row["outcome"]
            say(f"{row['run']}: {outcome}, {row['seconds']} s")
        self.printed = len(rows)


class LiveBoard(Notes):
    """The table, and under it the state of the current run."""

    def __init__(self, live: Live):
        super().__init__()
        self.live, self.table, self.words = live, Table(), ""
        self.spinner = Spinner("dots")

    def begin(self, name: str, number: int, count: int) -> None:
        super().begin(name, number, count)
        self.words = f"{number} of {count}: {name}"
        self._show()

    def stage(self, text: str) -> None:
        self._show(text)

    def start(self, step: int, total_steps: int) -> None:
        self._show("compiling")

    def rows(self, rows: Sequence[Row], fields: Sequence[str]) -> None:
        self.table = as_table(rows, fields)
        self._show()

    def row(self, row: dict[str, Any]) -> None:
        self._show(describe(row))

    def _show(self, text: str = "") -> None:
        self.spinner.update(text=f"{self.words}  {text}")
        self.live.update(Group(self.table, self.spinner))
