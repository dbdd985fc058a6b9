"""What a study keeps of a run beside its row: curves.csv, its metrics, and scores.csv, measured after."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnjax.runs.folder import Run
from cnnjax.runs.results import Row, read_results
from experiments import results

CURVES, SCORES = "curves.csv", "scores.csv"
COLUMNS = ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy")
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255")
Curve = list[dict[str, float]]


def write(out: Path) -> None:
    """Adds the metrics of the run folders that are here to curves.csv."""
    new = dict[str, Curve]()
    for row in read_results(out):
        path = out / "runs" / row["run"]
        if (path / "metrics.jsonl").exists():
            merged: dict[float, dict[str, float]] = {}
            for values in Run.open(path).metrics():
                merged.setdefault(round(values["epoch"], 3), {}).update(values)
            new[row["run"]] = [{**values, "epoch": epoch} for epoch, values in sorted(merged.items())]
    if not new:
        return
    with results.locked(out):
        curves = read(out) | new
        points = [(run, point) for run in sorted(curves) for point in curves[run]]
        rows = [
            {"run": run, **{k: f"{point[k]:.5g}" for k in COLUMNS if point.get(k) is not None}}
            for run, point in points
        ]
        results.write(out / CURVES, ["run", *COLUMNS], rows)


def read(out: Path) -> dict[str, Curve]:
    """By run the rows of curves.csv, without empty cells."""
    curves: dict[str, Curve] = {}
    for row in results.read(out / CURVES):
        point = {column: float(row[column]) for column in COLUMNS if row[column]}
        curves.setdefault(row["run"], []).append(point)
    return curves


def last(out: Path, rows: Sequence[Row], column: str) -> list[float]:
    """The last value of a column of curves.csv, of each finished run that has one."""
    curves, rows = read(out), results.finished(rows)
    found = [[point[column] for point in curves.get(row["run"], ()) if column in point] for row in rows]
    return [values[-1] for values in found if values]


def unmeasured(out: Path) -> list[str]:
    """The finished runs whose folder is here and that scores.csv has no row of, as after a kill."""
    found = _scores(out)
    ended = [row["run"] for row in read_results(out) if row["outcome"] == "finished"]
    return [run for run in ended if run not in found and (out / "runs" / run).is_dir()]


def add_scores(out: Path, measure: Callable[[Path], Mapping[str, float]]) -> None:
    """Measures the run folders that scores.csv has no row of yet, and adds their rows to it."""
    for run in unmeasured(out):
        scores = {name: f"{value:.6g}" for name, value in measure(out / "runs" / run).items()}
        with results.locked(out):
            found = _scores(out) | {run: {"run": run, **scores}}
            results.write(out / SCORES, ["run", *scores], [found[run] for run in sorted(found)])


def with_scores(rows: Sequence[Row], out: Path) -> list[Row]:
    """The rows with the columns of scores.csv; a run that diverged has none of these."""
    found = _scores(out)
    return [row | found.get(row["run"], {}) for row in rows]


def _scores(out: Path) -> dict[str, Row]:
    return {row["run"]: row for row in results.read(out / SCORES)}


def draw(
    axes: Axes, groups: Mapping[str, Sequence[Row]], out: Path, column: str, *, error: bool = False
) -> None:
    """A line a group, the mean of its runs, and a band from the lowest to the highest, by epoch.

    With `error` it is 1 less the column, in per cent.
    """
    curves = read(out)
    for (label, rows), colour in zip(groups.items(), COLOURS * 3, strict=False):
        found = [{p["epoch"]: p[column] for p in curves.get(row["run"], ()) if column in p} for row in rows]
        found = [points for points in found if points]
        epochs = sorted(set.intersection(*map(set, found))) if found else []
        values = [[points[epoch] for points in found] for epoch in epochs]
        values = [[100 - 100 * v for v in each] for each in values] if error else values
        axes.plot(
            epochs, [statistics.mean(v) for v in values], color=colour, label=f"{label}, n = {len(found)}"
        )
        axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2)
    axes.set_xlabel("epochs")
    axes.grid(alpha=0.3)


def figure(groups: Mapping[str, Sequence[Row]], out: Path, columns: Mapping[str, str]) -> Figure:
    """Errors by epoch, a panel for each column of curves.csv ({column: words}), a line and a band a group."""
    drawn = Figure(figsize=(6 if len(columns) == 1 else 10, 3.8), layout="constrained")
    panels = drawn.subplots(1, len(columns), squeeze=False)[0]
    for axes, (column, words) in zip(panels, columns.items(), strict=True):
        draw(axes, groups, out, column, error=True)
        axes.set(ylabel=f"{words} %", ylim=(0, None))
    if groups:
        panels[-1].legend(fontsize=8)
    return drawn
