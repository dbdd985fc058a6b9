"""The page of one run, and the page that compares several.

`write`: curves, confusion matrix, classes, worst mistakes, config and record. `compare`: scores, config
differences, curves with seeds as bands, images side by side; runs that differ in nothing but `seed` are one
group.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from cnnjax import config as config_lib
from cnnjax.data.files import atomic_write
from cnnjax.data.sources.npz import read_npz
from cnnjax.errors import UserError
from cnnjax.explore import plots
from cnnjax.explore.markup import Markup, element, image, join, page, svg, table
from cnnjax.runs.facts import of_run
from cnnjax.runs.folder import Run
from cnnjax.runs.results import spread
from cnnjax.training.metrics import averages, worst_mistakes

LINES = {"": "train", "validation_": "validation", "validation_ema_": "validation, EMA"}
CURVES = {  # title: the columns of the metrics, and what the lines are called
    "Loss, nats": {f"{split}loss": label for split, label in LINES.items()},
    "Accuracy": {f"{split}accuracy": label for split, label in LINES.items()},
    "Learning rate": {"learning_rate": ""},
    "Gradient norm": {"gradient_norm": ""},
}
COMPARED = {
    "Validation accuracy": "validation_accuracy",
    "Validation loss, nats": "validation_loss",
    "Training accuracy": "accuracy",
    "Training loss, nats": "loss",
}
UNCOMPARED = {"seed", *(name for name, field in config_lib.FIELDS.items() if field.resumable)}
NUM_IMAGES = 24
MOST_CLASSES = 30  # of a confusion matrix that can be read as a table
SCORES = ("precision", "recall", "f1")
PER_CLASS = (*SCORES, "support")
CLASSES = ("label", "prediction")
COLUMNS = {**dict.fromkeys(CLASSES, "iu"), "confidence": "f", "loss": "f"}  # of predictions.npz: kinds
BREAK = Markup("<br>")


def write(path: str | Path) -> Path:
    """Writes `report.html` of a run and returns its path."""
    run = Run.open(path)
    atomic_write(run.path / "report.html", _page(run))
    return run.path / "report.html"


def _page(run: Run) -> str:
    config = run.config()
    record, test = run.read_json("record.json"), test_scores(run)
    metrics = run.metrics()
    parts = [_summary(record, test, metrics), _curves(metrics)]
    if test:
        names = run.class_names()
        confusion = _confusion(np.asarray(test["confusion_matrix"]), names)
        parts += [_classes(test, names), confusion, _mistakes(run, names)]
    for title, text in (("Config", config_lib.to_json(config)), ("Record", json.dumps(record, indent=2))):
        parts.append(element("details", element("summary", title), element("pre", text)))
    return page(f"{config.model} on {config.data.name}", *parts)


def _summary(
    record: Mapping[str, Any], test: Mapping[str, Any], metrics: Sequence[Mapping[str, float]]
) -> Markup:
    facts = [f"{record.get('model', {}).get('num_params', 0):,} parameters"]
    ended = bool(metrics) and metrics[-1]["step"] == record.get("total_steps")
    without = "finished, without a test split" if ended else "not finished"
    facts += [f"step {test['step']}"] if test else [without]
    facts += [record[key][:20] for key in ("started", "commit") if record.get(key)]
    line = element("p", " · ".join(facts))
    if not test:
        return line
    score = element("span", f"{100 * test['accuracy']:.2f} %", class_="big")
    ema = test.get("ema_accuracy")
    averaged = "" if ema is None else f"; with averaged parameters {100 * ema:.2f} %"
    return join(element("p", score, f" of {test['count']} test images{averaged}"), line)


def _curves(rows: Sequence[Mapping[str, float]]) -> Markup:
    series: dict[str, dict[str, plots.Line]] = {title: {} for title in CURVES}
    for title, columns in CURVES.items():
        for column, label in columns.items():
            if known := [row for row in rows if {column, "epoch"} <= row.keys()]:
                series[title][label] = [row["epoch"] for row in known], [row[column] for row in known]
    return _figures(series)


def _figures(series: Mapping[str, Mapping[str, plots.Line]], *notes: Markup) -> Markup:
    """A figure for each title, with lines by name."""
    size = (4.2, 2.8)  # inches
    figures = [svg(plots.curves(lines, "epoch", title=title, size=size)) for title, lines in series.items()]
    return join(element("h2", "Training"), *notes, element("div", *figures, class_="figures"))


def _classes(test: Mapping[str, Any], names: Sequence[str]) -> Markup:
    rows = list(zip(names, *(test["per_class"][key] for key in PER_CLASS), strict=True))
    means = averages(test).items()
    rows += [(kind, *(mean[key] for key in SCORES), test["count"]) for kind, mean in means]
    rows = [(name, *(f"{score:.4f}" for score in cells), count) for name, *cells, count in rows]
    return join(element("h2", "Classes"), table(["class", "precision", "recall", "F1", "images"], rows))


def _confusion(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    shares = plots.row_shares(matrix)
    if len(matrix) > MOST_CLASSES:
        pixels = matplotlib.colormaps["Blues"](shares, bytes=True)[..., :3]
        shown = element("div", image(pixels, "confusion matrix"), style="max-width: 40rem")
    else:
        rows = ([name, *counts] for name, counts in zip(names, matrix, strict=True))
        shown = table(["", *names], rows, shares)
    return join(element("h2", "Confusion matrix"), element("p", "Rows: label. Columns: prediction."), shown)


def _mistakes(run: Run, names: Sequence[str]) -> Markup:
    """The misclassified test images with the highest loss."""
    rows = predictions(run)
    if rows is None:
        return Markup()
    worst = worst_mistakes(rows, NUM_IMAGES)
    captions = []
    for label, prediction, confidence in zip(
        *(rows[k][worst] for k in (*CLASSES, "confidence")), strict=True
    ):
        captions.append(join(f"{names[prediction]} ({100 * confidence:.0f} %)", BREAK, f"is {names[label]}"))
    return join(element("h2", "Worst mistakes"), gallery(run, worst, captions))


def gallery(run: Run, indices: np.ndarray, captions: Iterable[Markup]) -> Markup:
    """Test images of a run with their captions, or why they cannot be shown."""
    try:
        facts = of_run(run)
        source = facts.load(run.config(), "test")
        run.check_images("test", source.fingerprint, "and write the page again")
        pictures = [image(source[int(i)]["image"]) for i in indices]
    except (UserError, IndexError) as error:  # the latter if the data set has fewer images now
        return element("p", f"No pictures: {error}")
    shown = zip(pictures, captions, strict=True)
    figures = (element("figure", picture, element("figcaption", caption)) for picture, caption in shown)
    return element("div", *figures, class_="mistakes")


def test_scores(run: Run) -> dict[str, Any]:
    """What test.json holds, if it fits the classes of the run; {} before the end."""
    if test := run.read_json("test.json"):
        matrix, classes = test["confusion_matrix"], len(run.class_names())
        if {len(matrix), *map(len, (*matrix, *(test["per_class"][name] for name in PER_CLASS)))} != {classes}:
            raise UserError(f"{run.path / 'test.json'} is damaged: its classes are not the run's {classes}")
    return test


def predictions(run: Run) -> dict[str, np.ndarray] | None:
    """The row of each test image, see `training.metrics`; None if the run has none."""
    file, test = run.path / "predictions.npz", test_scores(run)
    if not test or not os.path.lexists(file):
        return None
    rows, classes = read_npz(file, within=run.path), len(run.class_names())
    shape = dict.fromkeys(COLUMNS, (test["count"],))
    fits = shape == {name: rows[name].shape for name in COLUMNS if name in rows}
    fits = fits and all(rows[name].dtype.kind in kind for name, kind in COLUMNS.items())
    if not fits or any((rows[name] < 0).any() or (rows[name] >= classes).any() for name in CLASSES):
        raise UserError(f"{file} is damaged: it does not fit test.json; without it the report has no images")
    return {name: rows[name] for name in COLUMNS}


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs of one config with several seeds, under a letter; `fields` is that config by field."""

    name: str
    runs: list[Run]
    fields: dict[str, Any]


def compare(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Writes the comparison of run folders and returns its path."""
    file = Path(out)
    if file.suffix != ".html" or not file.parent.is_dir():
        raise UserError(f"out={out} must be a file that ends in .html, in an existing folder")
    groups = make_groups([Run.open(path) for path in dict.fromkeys(map(str, paths))])
    parts = [_scores(groups), _differences(groups), _group_curves(groups), _side_by_side(groups)]
    title = f"{len(groups)} configs, {sum(len(group.runs) for group in groups)} runs"
    atomic_write(file, page(title, *parts))
    return file


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """The runs by config without its seed, in the order given; the groups are named A, B, ..."""
    groups: dict[str, Group] = {}
    for run in runs:
        fields = config_lib.flatten(run.config())
        same = {field: value for field, value in fields.items() if field not in UNCOMPARED}
        name = chr(ord("A") + len(groups)) if len(groups) < 26 else f"Z{len(groups) - 25}"
        groups.setdefault(json.dumps(same, sort_keys=True), Group(name, [], fields)).runs.append(run)
    return list(groups.values())


def _scores(groups: Sequence[Group]) -> Markup:
    head = ["", "test accuracy %", "macro F1", "test loss", "minutes", "seeds", "parameters", "model", "data"]
    rows, folders = [], []
    for group in groups:
        tests = [test for run in group.runs if (test := test_scores(run))]
        record = group.runs[0].read_json("record.json")
        minutes = [metrics[-1].get("seconds", 0) / 60 for run in group.runs if (metrics := run.metrics())]
        accuracy, f1 = [100 * test["accuracy"] for test in tests], [test["macro"]["f1"] for test in tests]
        scores = [_mean(accuracy, 2), _mean(f1, 4), _mean([test["loss"] for test in tests], 4)]
        seeds = ", ".join(str(run.config().seed) for run in group.runs)
        params = f"{record.get('model', {}).get('num_params', 0):,}"
        names = group.fields["model"], group.fields["data.name"]
        rows.append([group.name, *scores, _mean(minutes, 1), seeds, params, *names])
        folders.append(element("li", f"{group.name}: {', '.join(str(run.path) for run in group.runs)}"))
    note = element("p", "Mean ± standard deviation over seeds. Each letter is one config.")
    return join(element("h2", "Scores"), table(head, rows), note, element("ul", *folders))


def _mean(values: Sequence[float], digits: int) -> str:
    return spread([str(value) for value in values], 1, digits) or "not finished"


def _differences(groups: Sequence[Group]) -> Markup:
    """The fields of the config that are not the same everywhere."""
    fields = [field for field in groups[0].fields if field not in UNCOMPARED]
    rows = [[field, *(group.fields.get(field) for group in groups)] for field in fields]
    rows = [row for row in rows if len(set(map(str, row[1:]))) > 1]
    if not rows:
        return join(element("h2", "Config"), element("p", "The configs are equal except for their seeds."))
    head = ["field", *(group.name for group in groups)]
    return join(element("h2", "Differences between the configs"), table(head, rows))


def curve(group: Group, column: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(epochs [E], values [runs, E]) at the epochs that all runs have reached; None without any."""
    known = [[row for row in run.metrics() if {column, "epoch"} <= row.keys()] for run in group.runs]
    rows = [{row["epoch"]: row[column] for row in each} for each in known]
    epochs = sorted(set.intersection(*map(set, rows)))
    values = np.asarray([[row[epoch] for epoch in epochs] for row in rows])
    return (np.asarray(epochs), values) if epochs else None


def _group_curves(groups: Sequence[Group]) -> Markup:
    series = {}
    for title, column in COMPARED.items():
        if lines := {group.name: line for group in groups if (line := curve(group, column))}:
            series[title] = lines
    note = element("p", "Lines: mean over seeds. Bands: from the lowest seed to the highest.")
    return _figures(series, note)


def _side_by_side(groups: Sequence[Group]) -> Markup:
    """Test images that the groups' first runs do not all get right, highest loss first."""
    title = element("h2", "The same images")
    tables = {group: rows for group in groups if (rows := predictions(group.runs[0]))}
    labels = [rows["label"] for rows in tables.values()]
    classes = {tuple(group.runs[0].class_names()) for group in tables}
    images = {group.runs[0].images().get("test") for group in tables} - {None}  # of older runs
    alike = len(classes) == 1 and len(images) < 2
    if not alike or not all(np.array_equal(label, labels[0]) for label in labels):
        return join(title, element("p", "No pictures: the runs have no test images in common."))
    wrong = np.sum([rows["prediction"] != rows["label"] for rows in tables.values()], 0)
    loss = np.mean([rows["loss"] for rows in tables.values()], 0)
    chosen = np.flatnonzero((wrong > 0) & (wrong < len(tables)) if len(tables) > 1 else wrong > 0)
    chosen = chosen[np.argsort(-loss[chosen], kind="stable")][:NUM_IMAGES]
    run = next(iter(tables)).runs[0]
    names = {group: group.runs[0].class_names() for group in tables}

    def caption(i: int) -> Markup:
        lines = [join("is ", element("b", run.class_names()[labels[0][i]]))]
        for group, rows in tables.items():
            prediction, share = rows["prediction"][i], 100 * rows["confidence"][i]
            mark = "✓" if prediction == labels[0][i] else "✗"
            lines += [BREAK, join(f"{group.name} {mark} {names[group][prediction]} ({share:.0f} %)")]
        return join(*lines)

    note = element("p", "Test images on which they disagree, highest loss first; the first run of each.")
    return join(title, note, gallery(run, chosen, map(caption, map(int, chosen))))
