"""The command `cnnjax sweep`: what it is given, and what it shows."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from cnnjax import config as config_lib
from cnnjax.cli.flags import parse_flags, read_config
from cnnjax.cli.progress import describe
from cnnjax.cli.tables import print_table
from cnnjax.errors import UserError
from cnnjax.runs import compile_cache
from cnnjax.runs.results import RESULTS, Row, spread, validation_means
from cnnjax.runs.sweep import RANGES, Board, sweep


def as_table(rows: Sequence[Row], fields: Sequence[str]) -> Table:
    """A row a point, the best on validation first and marked."""
    table = Table(*fields, "runs", "validation %", "test %", "seconds", title="mean ± std over seeds")
    means = validation_means(rows, fields)
    points = list(dict.fromkeys(tuple(row[field] for field in fields) for row in rows))
    for place, point in enumerate(sorted(points, key=lambda point: -means.get(point, -1))):
        members = [row for row in rows if tuple(row[field] for field in fields) == point]
        failed = sum(row["outcome"] != "finished" for row in members)
        table.add_row(
            *point,
            f"{len(members)}, {failed} not finite" if failed else str(len(members)),
            spread([row["validation_accuracy"] for row in members]),
            spread([row["test_accuracy"] for row in members]),
            spread([row["seconds"] for row in members], 1, 1),
            style="bold" if place == 0 and point in means else None,
        )
    return table


class Lines(Board):
    """A line for each run that has ended."""

    def __init__(self) -> None:
        self.told: int | None = None

    def rows(self, rows: Sequence[Row], fields: Sequence[str]) -> None:
        for row in rows[self.told :] if self.told is not None else ():
            validation, test = (spread([row[f"{split}_accuracy"]]) for split in ("validation", "test"))
            scores = f"validation {validation} %, test {test} %"
            said = scores if row["outcome"] == "finished" else row["outcome"]
            print(f"{row['run']}: {said}, {row['seconds']} s", flush=True)
        self.told = len(rows)


class LiveBoard(Board):
    """The table, and under it where the run under way is."""

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


def command(args: list[str]) -> None:
    """Trains the points of a sweep that are not done yet, and prints the table."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_multi_string("set", [], "FIELD=A,B,C or =log_uniform(A, B)", flag_values=values)
        flags.DEFINE_integer("seeds", 1, "how many", 1, flag_values=values)
        flags.DEFINE_integer("random", 0, "points drawn; 0 runs the grid", 0, flag_values=values)
        flags.DEFINE_string("task", "0/1", "i/n: each n-th run from the i-th", flag_values=values)
        flags.DEFINE_bool("together", False, "all seeds of a point in one step", flag_values=values)
        flags.DEFINE_string("out", None, "folder of the table and the runs", flag_values=values)
        flags.DEFINE_float("stop_seconds", 60.0, "from a signal to the end", 1.0, flag_values=values)

    config, args = read_config(args)
    given, _ = parse_flags("sweep", args, define)
    if not given.out:
        raise UserError("--out is missing; name the folder of the table and the runs")
    compile_cache.enable()
    values = parse_sets(given["set"].value)
    options = {"seeds": given.seeds, "random": given.random, "task": _parse_task(given.task)}
    options["together"] = given.together
    options["stop_seconds"] = given.stop_seconds
    console = Console()
    if console.is_terminal:
        with Live(console=console) as live:
            rows = sweep(config, values, given.out, board=LiveBoard(live), **options)
            live.update("")
    else:
        rows = sweep(config, values, given.out, board=Lines(), **options)
    print_table(as_table(rows, sorted(values)))
    print(f"chosen by validation alone; all rows are in {Path(given.out) / RESULTS}")


def parse_sets(sets: Sequence[str]) -> dict[str, Sequence[Any] | str]:
    """{"a.b": values or range} of texts such as 'a.b=1,2,3', with values of the field's type.

    Raises:
      UserError: for an unknown field, one that is given twice, or a value of a wrong type.
    """
    found: dict[str, Sequence[Any] | str] = {}
    for text in sets:
        field, _, listed = text.partition("=")
        field = field.strip().removeprefix("config.")
        config_lib.field(field)
        if field in found:
            raise UserError(f"--set {field} is given twice; list all its values in one")
        if listed.strip().startswith(tuple(f"{name}(" for name in RANGES)):
            found[field] = listed.strip()
            continue
        found[field] = [config_lib.parse_value(field, value) for value in _split(listed)]
    return found


def _split(text: str) -> list[str]:
    """The text cut at its commas, except at those inside brackets or quotes."""
    if not text.strip():
        return []
    parts = re.findall(r"""(?:"[^"]*"|'[^']*'|\((?:[^()]|\([^()]*\))*\)|[^,])+""", text)
    return [part.strip() for part in parts]


def _parse_task(text: str) -> tuple[int, int]:
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal()):
        raise UserError(f"--task={text} must be i/n with 0 <= i < n, as in 0/4")
    return int(first), int(count)
