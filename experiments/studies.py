"""What the studies made of sweeps share: how they start, their curves, tables and figures.

    python experiments/NAME/run.py                  # goes on where it was stopped
    python experiments/NAME/run.py --tables         # only rewrites table and figure from the CSVs
    python experiments/NAME/run.py --data=NAME      # another copy of the data set, as --config.data.name
    python experiments/NAME/run.py --full           # the paper's size, into full/; for an accelerator

A study's `run.py` has `make_config(full)`, `train(config, out, board)`, `table(rows)`, `figure(rows)` and
`claim(rows)`. Beside results.csv lies curves.csv, the rows of each run's metrics.jsonl.
"""

import argparse
import csv
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.cli.sweep import Lines
from cnnjax.data.files import read_json
from cnnjax.errors import UserError
from cnnjax.runs import compile_cache
from cnnjax.runs.folder import Run
from cnnjax.runs.results import Row, read_results, spread
from cnnjax.runs.sweep import Board, sweep
from experiments import pages, results

ROOT = Path(__file__).parents[1]
matplotlib.rcParams["svg.hashsalt"] = "cnnjax"  # the same figure is the same file
RATE = "optimizer.learning_rate"
CURVES = "curves.csv"
CURVE_COLUMNS = ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy")
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255")
Curve = list[dict[str, float]]
Train = Callable[[config_lib.ConfigDict, Path, Board], None]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A line of the summary: what is claimed, the paper's number, ours, and whether it holds here."""

    claim: str
    paper: str
    ours: str
    verdict: str


def main(
    here: Path,
    make_config: Callable[[bool], config_lib.ConfigDict],
    train: Train,
    table: Callable[[list[Row]], str],
    figure: Callable[[list[Row]], Figure],
    rows_of: Callable[[], list[Row]],
) -> None:
    """Trains what is missing, then writes curves.csv, the README's table and figure.svg."""
    parser = argparse.ArgumentParser(prog=f"python experiments/{here.name}/run.py")
    parser.add_argument("--tables", action="store_true", help="only rewrite the table and the figure")
    parser.add_argument("--full", action="store_true", help="the paper's size, into full/")
    parser.add_argument("--data", help="another copy of the data set, as --config.data.name")
    given = parser.parse_args()
    os.chdir(ROOT)
    compile_cache.enable()
    out = here / "full" if given.full else here
    if not given.tables:
        config = make_config(given.full)
        config.data.name = given.data or config.data.name
        try:
            start(lambda: train(config, out, Lines()))
        finally:
            write_curves(out)  # of the runs that ended, where it is stopped too
    if not given.full and (rows := rows_of()):
        pages.write((here / "README.md",), here.name, table(rows))
        figure(rows).savefig(here / "figure.svg", metadata={"Date": None})


def start(work: Callable[[], None]) -> None:
    """Does the work of a study; a user's mistake ends it with one line."""
    try:
        work()
    except UserError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from None


def cifar10() -> config_lib.ConfigDict:
    """What the studies on CIFAR-10 start from: 45,000 images, 5,000 held out, no augmentation."""
    config = config_lib.default()
    config.data.name = "cifar10"
    config.data.num_validation = 5000
    config.eval_batch_size = 1000
    config.log_every_steps = 352  # an epoch of 128: the rows of metrics.jsonl are means over epochs
    return config


def tuned(
    config: config_lib.ConfigDict,
    field: str,
    values: Sequence[Any],
    rates: Sequence[float],
    seeds: int,
    out: Path,
    board: Board,
) -> None:
    """Each value of a field with each learning rate and the first seed; then all seeds at its best rate."""
    sweep(config, {field: values, RATE: rates}, out, board=board)
    for value in values:
        members = [row for row in read_results(out) if row[field] == str(value)]
        if (rate := best_rate(members)) is not None:
            sweep(config, {field: [value], RATE: [rate]}, out, seeds=seeds, board=board)


def best_rate(rows: Sequence[Row]) -> float | None:
    """The learning rate of the run of the first seed that is best on validation; None where none ended."""
    first = min((int(row["seed"]) for row in rows), default=0)
    scored = [row for row in rows if int(row["seed"]) == first and row["validation_accuracy"]]
    return float(max(scored, key=lambda row: float(row["validation_accuracy"]))[RATE]) if scored else None


def at_best_rate(rows: Sequence[Row]) -> list[Row]:
    """The runs, of all seeds, at the rate of `best_rate`."""
    rate = best_rate(rows)
    return [row for row in rows if float(row[RATE]) == rate]


def mean(rows: Sequence[Row], column: str) -> float:
    """The mean of a column over runs that have it."""
    return statistics.mean(float(row[column]) for row in rows if row[column])


def write_curves(out: Path) -> None:
    """Adds the metrics of the run folders that are here to curves.csv."""
    curves = read_curves(out)
    for row in read_results(out):
        path = out / "runs" / row["run"]
        if (path / "metrics.jsonl").exists():
            merged: dict[float, dict[str, float]] = {}
            for values in Run.open(path).metrics():
                merged.setdefault(round(values["epoch"], 3), {}).update(values)
            curves[row["run"]] = [{**values, "epoch": epoch} for epoch, values in sorted(merged.items())]
    if not curves:
        return
    with open(out / CURVES, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", *CURVE_COLUMNS))
        for run, curve in sorted(curves.items()):
            for point in curve:
                cells = (point.get(column) for column in CURVE_COLUMNS)
                writer.writerow((run, *("" if cell is None else f"{cell:.6g}" for cell in cells)))


def read_curves(out: Path) -> dict[str, Curve]:
    """By run the rows of curves.csv, without empty cells."""
    curves: dict[str, Curve] = {}
    for row in results.read(out / CURVES):
        point = {column: float(row[column]) for column in CURVE_COLUMNS if row[column]}
        curves.setdefault(row["run"], []).append(point)
    return curves


def add_scores(out: Path, name: str, measure: Callable[[Path], Mapping[str, float]]) -> None:
    """Measures the run folders that NAME.csv has no row of yet, and adds their rows to it."""
    found = _read_scores(out, name)
    for row in read_results(out):
        if row["run"] not in found and row["outcome"] == "finished":
            found[row["run"]] = {k: f"{v:.6g}" for k, v in measure(out / "runs" / row["run"]).items()}
            with open(out / f"{name}.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, ["run", *found[row["run"]]], lineterminator="\n")
                writer.writeheader()
                writer.writerows({"run": run, **scores} for run, scores in sorted(found.items()))


def with_scores(rows: Sequence[Row], out: Path, name: str) -> list[Row]:
    """The rows that NAME.csv has a row of, with its columns."""
    found = _read_scores(out, name)
    return [{**row, **found[row["run"]]} for row in rows if row["run"] in found]


def _read_scores(out: Path, name: str) -> dict[str, Row]:
    return {row["run"]: row for row in results.read(out / f"{name}.csv")}


def draw_curves(axes: Axes, groups: Mapping[str, Sequence[Row]], curves: Mapping[str, Curve], column: str):
    """A line a group, the mean of its runs, and a band from the lowest to the highest."""
    for (label, rows), colour in zip(groups.items(), COLOURS, strict=False):
        found = [{p["epoch"]: p[column] for p in curves.get(row["run"], ()) if column in p} for row in rows]
        found = [points for points in found if points]
        epochs = sorted(set.intersection(*map(set, found))) if found else []
        values = [[points[epoch] for points in found] for epoch in epochs]
        axes.plot(epochs, [statistics.mean(v) for v in values], color=colour, label=label)
        axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2)
    axes.set_xlabel("epochs")
    axes.grid(alpha=0.3)


def by_field(rows: Sequence[Row], field: str, values: Mapping[str, Any]) -> dict[str, list[Row]]:
    """By label the runs whose field has the label's value; labels without runs are left out."""
    found = {label: [row for row in rows if row[field] == str(value)] for label, value in values.items()}
    return {label: members for label, members in found.items() if members}


def score_table(
    here: Path,
    what: str,
    groups: Mapping[str, Sequence[Row]],
    columns: Sequence[str],
    more: Mapping[str, Callable[[str, Sequence[Row]], str]] | None = None,
) -> str:
    """A row a group, as Markdown, with the footer.

    Args:
      what: the head of the first column, that of the labels.
      columns: keys of `COLUMNS`, or of `more`, in their order.
      more: columns of the study's own, from a label and its runs.
    """
    cells_of = {**COLUMNS, **(more or {})}
    cells = [
        (label, *(cells_of[column](label, members) for column in columns), len(members))
        for label, members in groups.items()
    ]
    rows = sorted((row for members in groups.values() for row in members), key=lambda row: row["started"])
    return markdown((what, *columns, "seeds"), cells) + footer(here, rows)


def percent(column: str) -> Callable[[str, Sequence[Row]], str]:
    """Mean and spread of a share, in per cent."""
    return lambda label, rows: spread([row[column] for row in rows])


COLUMNS = {
    "parameters": lambda label, rows: f"{int(rows[0]['params']):,}",
    "learning rate": lambda label, rows: rows[0][RATE],
    "validation %": percent("validation_accuracy"),
    "test %": percent("test_accuracy"),
    "seconds a run": lambda label, rows: spread([row["seconds"] for row in rows], 1, 0),
}


def curve_figure(here: Path, groups: Mapping[str, Sequence[Row]], column: str, words: str) -> Figure:
    """A column of curves.csv by epoch, a line and a band a group."""
    drawn = Figure(figsize=(6, 3.6), layout="constrained")
    axes = drawn.add_subplot(ylabel=words)
    draw_curves(axes, groups, read_curves(here), column)
    axes.legend()
    return drawn


def markdown(head: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def footer(here: Path, rows: Sequence[Row]) -> str:
    """What the runs have in common: data, machine, versions and the command."""
    config = config_lib.from_dict(read_json(here / "sweep.json"))
    name = config.data.name
    data = name if ":" not in name else f"JPEG copies of the images ({name.partition(':')[0]})"
    last, versions = rows[-1], json.loads(rows[-1]["versions"])
    epochs = ", ".join(f"{value:g}" for value in sorted({float(row["epochs"]) for row in rows}))
    minutes = sum(float(row["seconds"] or 0) for row in rows) / 60
    return (
        f"\n\nMean ± standard deviation over seeds. {len(rows)} runs of {epochs} epochs, "
        f"{minutes:.0f} minutes in all; data: {data}; {last['machine']}, CPU kernels: {last['cpu_kernels']}, "
        f"{config.dtype}, jax {versions['jax']}, flax {versions['flax']}. Written by `python "
        f"experiments/{here.name}/run.py` from `results.csv`."
    )
