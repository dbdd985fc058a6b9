"""`cnnjax sweep`: several configs and seeds in one table."""

import contextlib
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated as Flag

from ml_collections import ConfigDict
from rich.live import Live

from cnnjax import config as config_lib
from cnnjax.cli.flags import StopSeconds, command, given
from cnnjax.cli.tables import Console, print_tables, say
from cnnjax.errors import UserError, counted

Points = dict[str, Sequence[config_lib.Value] | str]  # of each field its values, or a range
# Of a list: up to a comma that is not inside brackets or quotes.
VALUE = r"""(?:"[^"]*"|'[^']*'|\((?:[^()]|\([^()]*\))*\)|[^,])+"""


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
    """Trains the remaining points of a sweep and prints its table."""
    out, points = given("out", out, "name the folder of the table and the runs"), parse_sets(set)
    part = _parse_task(task)
    if not random and not any(isinstance(values, str) for values in points.values()):  # else it is refused
        say(_heading(points, math.prod(len({*values}) for values in points.values()), seeds, part, out))
    console = Console()
    with console.status("importing JAX") if console.is_terminal else contextlib.nullcontext():
        from cnnjax.cli import boards
        from cnnjax.explore import comparison
        from cnnjax.runs import compile_cache
        from cnnjax.runs import sweep as sweep_lib
        from cnnjax.runs.results import RESULTS, validation_means

        compile_cache.enable()
    if random:  # several draws may be one point
        say(_heading(points, len(sweep_lib.points(points, random)), seeds, part, out))
    live = Live(console=console) if console.is_terminal else None
    board = boards.LiveBoard(live) if live else boards.Lines()
    run = functools.partial(sweep_lib.sweep, config, points, out, seeds=seeds, random=random, board=board)
    with live or contextlib.nullcontext():
        rows = run(task=part, together=together, stop_seconds=stop_seconds)
        if live:
            live.update("")
    print_tables(boards.as_table(rows, sorted(points)))
    if rows:
        ranked = "sorted by validation accuracy; " if validation_means(rows, sorted(points)) else ""
        say(f"{ranked}table {Path(out) / RESULTS}, page {comparison.sweep(out)}")


def _heading(points: Points, number: int, seeds: int, task: tuple[int, int], out: str) -> str:
    """The fields, runs and folder: "sweep of batch_size: 2 points x 3 seeds = 6 runs in runs/sizes"."""
    runs = number * seeds
    mine = f", {len(range(runs)[task[0] :: task[1]])} of them in this process" if task[1] > 1 else ""
    counts = f"{counted(number, 'point')} x {counted(seeds, 'seed')} = {counted(runs, 'run')}"
    return f"sweep of {', '.join(sorted(points)) or 'seeds'}: {counts} in {out}{mine}"


def parse_sets(sets: Sequence[str]) -> Points:
    """{"a.b": values or range} of texts such as 'a.b=1,2,3', with values of the field's type."""
    points: Points = {}
    for text in sets:
        field, _, listed = text.partition("=")
        field, listed = field.strip().removeprefix("config."), listed.strip()
        number = type(config_lib.field(field).default) in (int, float)
        if field in points:
            raise UserError(f"--set {field} is given twice; list all its values in one")
        if number and "(" in listed:  # a range
            points[field] = listed
        else:
            values = re.findall(VALUE, listed)
            points[field] = [config_lib.parse_value(field, value.strip()) for value in values]
    return points


def _parse_task(text: str) -> tuple[int, int]:
    if not (task := re.fullmatch("([0-9]+)/([0-9]+)", text)):
        raise UserError(f"--task={text} must be i/n with 0 <= i < n, as in 0/4")
    return int(task[1]), int(task[2])
