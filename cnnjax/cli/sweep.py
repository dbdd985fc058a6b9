"""`cnnjax sweep`: several configs and seeds in one table."""

import contextlib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated as Flag
from typing import Any

from ml_collections import ConfigDict
from rich.console import Group
from rich.live import Live
from rich.table import Table

from cnnjax import config as config_lib
from cnnjax.cli.flags import StopSeconds, command, given
from cnnjax.cli.progress import describe
from cnnjax.cli.tables import Console, print_tables, say
from cnnjax.errors import UserError
from cnnjax.runs import compile_cache
from cnnjax.runs import sweep as sweep_lib
from cnnjax.runs.results import RESULTS, Row, points_of, spread, validation_means
from cnnjax.runs.sweep import RANGES, Board

# Of a list: up to a comma that is not inside brackets or quotes.
VALUE = r"""(?:"[^"]*"|'[^']*'|\((?:[^()]|\([^()]*\))*\)|[^,])+"""


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


class Lines(Board):
    """A line for each run as it ends."""

    def __init__(self) -> None:
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


class LiveBoard(Board):
    """The table, and under it the state of the current run."""

    def __init__(self, live: Live):
        self.live, self.table, self.words = live, Table(), ""

    def begin(self, name: str, number: int, count: int) -> None:
        self.words = f"{number} of {count}: {name}"
        self._show("compiling ...")

    def rows(self, rows: Sequence[Row], fields: Sequence[str]) -> None:
        self.table = as_table(rows, fields)
        self._show()

    def row(self, row: dict[str, Any]) -> None:
        self._show(describe(row))

    def _show(self, text: str = "") -> None:
        self.live.update(Group(self.table, f"{self.words}  {text}"))


@command("sweep")
def sweep(
    *,
    config: ConfigDict,
    set: Flag[list, "FIELD=A,B,C or FIELD=log_uniform(A, B); may be repeated"] = [],  # noqa: B006
    seeds: Flag[int, "seeds per point", 1] = 1,
    random: Flag[int, "number of random points; 0 runs the grid", 0] = 0,
    task: Flag[str, "i/n: every n-th run, starting from the i-th"] = "0/1",
    together: Flag[bool, "train all seeds of a point in one step"] = False,
    out: Flag[str | None, "folder of the table and the runs"] = None,
    stop_seconds: StopSeconds = 60.0,
) -> None:
    """Trains the points of a sweep that are not done yet, and prints the table."""
    out = given("out", out, "name the folder of the table and the runs")
    from cnnjax.explore import comparison

    compile_cache.enable()
    points, console = parse_sets(set), Console()
    live = Live(console=console) if console.is_terminal else None
    board = LiveBoard(live) if live else Lines()
    run = functools.partial(sweep_lib.sweep, config, points, out, seeds=seeds, random=random, board=board)
    with live or contextlib.nullcontext():
        rows = run(task=_parse_task(task), together=together, stop_seconds=stop_seconds)
        if live:
            live.update("")
    print_tables(as_table(rows, sorted(points)))
    if rows:
        say(f"chosen by validation alone; rows {Path(out) / RESULTS}, page {comparison.sweep(out)}")


def parse_sets(sets: Sequence[str]) -> dict[str, Sequence[Any] | str]:
    """{"a.b": values or range} of texts such as 'a.b=1,2,3', with values of the field's type."""
    points: dict[str, Sequence[Any] | str] = {}
    for text in sets:
        field, _, listed = text.partition("=")
        field, listed = field.strip().removeprefix("config."), listed.strip()
        config_lib.field(field)
        if field in points:
            raise UserError(f"--set {field} is given twice; list all its values in one")
        if listed.startswith(tuple(f"{name}(" for name in RANGES)):
            points[field] = listed
        else:
            values = re.findall(VALUE, listed)
            points[field] = [config_lib.parse_value(field, value.strip()) for value in values]
    return points


def _parse_task(text: str) -> tuple[int, int]:
    if not (task := re.fullmatch("([0-9]+)/([0-9]+)", text)):
        raise UserError(f"--task={text} must be i/n with 0 <= i < n, as in 0/4")
    return int(task[1]), int(task[2])
