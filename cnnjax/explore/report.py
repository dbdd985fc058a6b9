"""The page of one run: curves, confusion matrix, classes, worst mistakes, config and record."""

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from cnnjax import config as config_lib
from cnnjax.data.files import atomic_write, expanded
from cnnjax.data.sources.npz import read_npz
from cnnjax.data.sources.source import ArraySource, Listed
from cnnjax.errors import UserError, counted
from cnnjax.explore import plots
from cnnjax.explore.markup import BREAK, Markup, element, image, join, page, svg, table
from cnnjax.runs.facts import of_run
from cnnjax.runs.folder import Run
from cnnjax.training.metrics import MOST_IN_MATRIX, averages, interval, worst_mistakes

LINES = {"": "train", "validation_": "validation", "validation_ema_": "validation, averaged"}
CURVES = {  # title: the columns of the metrics, and what the lines are called
    "Loss, nats": {f"{split}loss": label for split, label in LINES.items()},
    "Accuracy": {f"{split}accuracy": label for split, label in LINES.items()},
    "Learning rate": {"learning_rate": ""},
    "Gradient norm": {"gradient_norm": ""},
}
NUM_IMAGES = 24
ALL_RIGHT = element("p", "None: every test image is right.")
MOST_CLASSES = 30  # of a confusion matrix that can be read as a table
SCORES = ("precision", "recall", "f1")
PER_CLASS = (*SCORES, "support")
CLASSES = ("label", "prediction")
# The kinds of those of predictions.npz.
COLUMNS = {**dict.fromkeys((*CLASSES, "index"), "iu"), "confidence": "f", "loss": "f"}


def write(path: str | Path, listed: Listed | None = None, out: str | Path | None = None) -> Path:
    """Writes the page of a run, by default its `report.html`; returns its path. `listed`: `datasets.load`."""
    run = Run.open(path)
    file = page_file(out or run.path / "report.html")
    atomic_write(file, _page(run, listed))
    return file


def page_file(out: str | Path) -> Path:
    """The path of a page that can be written there, or a UserError."""
    file = expanded(out)
    if file.suffix != ".html" or not file.parent.is_dir():
        raise UserError(f"out={out} must be a file that ends in .html, in an existing folder")
    return file


def _page(run: Run, listed: Listed | None) -> str:
    config = run.config()
    record, test = run.read_json("record.json"), test_scores(run)
    metrics = run.metrics()
    parts = [_summary(record, test, metrics), _curves(metrics)]
    if test:
        names = run.class_names()
        parts += [_classes(test, names), _confusion(test, names), _mistakes(run, names, listed)]
    for title, text in (("Config", config_lib.to_json(config)), ("Record", json.dumps(record, indent=2))):
        parts.append(element("details", element("summary", title), element("pre", text)))
    return page(f"{config.model} on {config.data.name}", *parts)


def _summary(
    record: Mapping[str, Any], test: Mapping[str, Any], metrics: Sequence[Mapping[str, float]]
) -> Markup:
    steps = counted(metrics[-1]["step"], "step") if metrics else "no step yet"
    facts = [f"{steps} in {duration(metrics[-1].get('seconds', 0))}" if metrics else steps]
    facts += [f"{record.get('model', {}).get('num_params', 0):,} parameters", *record.get("devices", ())[:1]]
    facts += [record.get("started", "").replace("T", " "), record.get("commit", "")[:10]]
    lines = [element("p", " · ".join(filter(None, facts)))]
    if command := record.get("command"):
        lines.append(element("pre", shlex.join(command), class_="command"))
    if not test.get("count"):
        state = "finished, without a test split" if ended(record, metrics) else "not finished"
        return join(element("p", element("span", state, class_="big")), *lines)
    low, high = interval(round(np.clip(test["accuracy"], 0, 1) * test["count"]), test["count"])
    score = element("span", f"test accuracy {100 * test['accuracy']:.1f} %", class_="big")
    words = f" (95 % interval {100 * low:.1f} to {100 * high:.1f}), {counted(test['count'], 'image')}"
    words += f", {test['skipped']} skipped" if test.get("skipped") else ""
    if (averaged := test.get("ema_accuracy")) is not None:
        words += (
            f"; with averaged parameters {100 * averaged:.1f} %. Classes and mistakes are of the raw ones."
        )
    return join(element("p", score, words), *lines)


def ended(record: Mapping[str, Any], metrics: Sequence[Mapping[str, float]]) -> bool:
    """Whether a run has made its last step."""
    return bool(metrics) and metrics[-1]["step"] == record.get("total_steps")


def duration(seconds: float) -> str:
    """'45 s', '1.9 minutes' or '2.3 hours'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def percent(share: float) -> str:
    """A probability, '87 %' or '0.3 %', in one piece."""
    if share < 0.001:
        return "< 0.1\u00a0%"
    return f"{100 * share:.{0 if share >= 0.01 else 1}f}\u00a0%"


def _curves(rows: Sequence[Mapping[str, float]]) -> Markup:
    series: dict[str, dict[str, plots.Line]] = {title: {} for title in CURVES}
    for title, columns in CURVES.items():
        for column, label in columns.items():
            if known := [row for row in rows if {column, "epoch"} <= row.keys()]:
                series[title][label] = [row["epoch"] for row in known], [row[column] for row in known]
    return figures(series)


def figures(
    series: Mapping[str, Mapping[str, plots.Line]], *notes: Markup, colours: Mapping[str, str] | None = None
) -> Markup:
    """A figure for each title that has lines, by name."""
    size = (4.2, 2.8)  # inches
    drawn = [
        svg(plots.curves(lines, "epoch", title=title, size=size, colours=colours))
        for title, lines in series.items()
        if lines
    ]
    shown = (
        [*notes, element("div", *drawn, class_="figures")]
        if drawn
        else [element("p", "No curves: no row of metrics yet.")]
    )
    return join(element("h2", "Training"), *shown)


def _classes(test: Mapping[str, Any], names: Sequence[str]) -> Markup:
    rows = list(zip(names, *(test["per_class"][key] for key in PER_CLASS), strict=True))
    means = averages(test).items()
    rows += [(kind, *(mean[key] for key in SCORES), test["count"]) for kind, mean in means]
    rows = [(name, *(f"{score:.4f}" for score in cells), count) for name, *cells, count in rows]
    return join(element("h2", "Classes"), table(["class", "precision", "recall", "F1", "images"], rows))


def _confusion(test: Mapping[str, Any], names: Sequence[str]) -> Markup:
    title = element("h2", "Confusion matrix")
    if "confusion_matrix" not in test:
        return join(title, element("p", f"Not kept for more than {MOST_IN_MATRIX:,} classes."))
    shares = plots.row_shares(matrix := np.asarray(test["confusion_matrix"]))
    if len(matrix) > MOST_CLASSES:
        pixels = matplotlib.colormaps["Blues"](shares, bytes=True)[..., :3]
        shown = element("div", image(pixels, "confusion matrix"), style="max-width: 40rem")
    else:
        rows = ([name, *counts] for name, counts in zip(names, matrix, strict=True))
        shown = table(["", *names], rows, shares)
    return join(title, element("p", "Rows: label. Columns: prediction."), shown)


def _mistakes(run: Run, names: Sequence[str], listed: Listed | None) -> Markup:
    """The misclassified test images with the highest loss."""
    rows = predictions(run)
    if rows is None:
        return Markup()
    title, worst = element("h2", "Worst mistakes"), worst_mistakes(rows, NUM_IMAGES)
    if not len(worst):
        return join(title, ALL_RIGHT)
    columns = (rows[name][worst] for name in (*CLASSES, "confidence", "loss"))
    captions = []
    for label, prediction, confidence, loss in zip(*columns, strict=True):
        predicted, true = (element("b", element("bdi", names[i])) for i in (prediction, label))
        shares = percent(confidence), percent(math.exp(-max(loss, 0)))
        captions.append(join("predicted ", predicted, f" {shares[0]}", BREAK, "true ", true, f" {shares[1]}"))
    return join(title, gallery(run, worst, captions, listed))


def gallery(run: Run, chosen: np.ndarray, captions: Iterable[Markup], listed: Listed | None = None) -> Markup:
    """Test images of a run, by row of its predictions, with captions, or why they cannot be shown."""
    try:
        facts = dataclasses.replace(of_run(run), listed={} if listed is None else listed)
        source = facts.load(run.config(), "test")
        run.check_images("test", source.fingerprint, "and write the page again")
        if not isinstance(source, ArraySource) and (rows := predictions(run)):
            chosen = rows["index"][chosen]  # in memory there is one image per row
        pictures = [image(source[int(i)]["image"]) for i in chosen]
    except (UserError, IndexError) as error:  # the latter if the data set has fewer images now
        return element("p", f"No pictures: {error}")
    shown = zip(pictures, captions, strict=True)
    figures = (element("figure", picture, element("figcaption", caption)) for picture, caption in shown)
    return element("div", *figures, class_="mistakes")


def test_scores(run: Run) -> dict[str, Any]:
    """What test.json holds, if it fits the classes of the run; {} before the end."""
    if test := run.read_json("test.json"):
        classes, columns = len(run.class_names()), [test["per_class"][name] for name in PER_CLASS]
        if "confusion_matrix" in test:
            columns += [test["confusion_matrix"], *test["confusion_matrix"]]
        if {*map(len, columns)} != {classes}:
            raise UserError(f"{run.path / 'test.json'} is damaged: its classes are not the run's {classes}")
    return test


def predictions(run: Run) -> dict[str, np.ndarray] | None:
    """The row of each test image, see `training.metrics`; None if the run has none."""
    file, test = run.path / "predictions.npz", test_scores(run)
    if not test or not os.path.lexists(file):
        return None
    rows = {"index": np.arange(test["count"])} | read_npz(file, within=run.path)  # older runs lack the index
    classes = len(run.class_names())
    shape = dict.fromkeys(COLUMNS, (test["count"],))
    fits = shape == {name: rows[name].shape for name in COLUMNS if name in rows}
    fits = fits and all(rows[name].dtype.kind in kind for name, kind in COLUMNS.items())
    limits = dict.fromkeys(CLASSES, classes) | {"index": math.inf}
    if not fits or any(((rows[name] < 0) | (rows[name] >= most)).any() for name, most in limits.items()):
        raise UserError(f"{file} is damaged: it does not fit test.json; without it the report has no images")
    return {name: rows[name] for name in COLUMNS}
