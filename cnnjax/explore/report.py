"""The page of one run: curves, confusion matrix, classes, worst mistakes, config and record."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from cnnjax.config import to_json
from cnnjax.data.files import atomic_write
from cnnjax.errors import UserError
from cnnjax.explore import plots
from cnnjax.explore.markup import Markup, element, image, join, page, svg, table
from cnnjax.runs.folder import Run, readable
from cnnjax.runs.inputs import load_split
from cnnjax.training.metrics import worst_mistakes

LINES = {"": "train", "validation_": "validation", "validation_ema_": "validation, EMA"}
CURVES = {  # title: the columns of the metrics, and what the lines are called
    "Loss, nats": {f"{split}loss": label for split, label in LINES.items()},
    "Accuracy": {f"{split}accuracy": label for split, label in LINES.items()},
    "Learning rate": {"learning_rate": ""},
    "Gradient norm": {"gradient_norm": ""},
}
CURVE_SIZE = (4.2, 2.8)  # inches
NUM_MISTAKES = 24
MOST_CLASSES = 30  # of a confusion matrix that can be read as a table
SCORES = ("precision", "recall", "f1")
COLUMNS = ("label", "prediction", "confidence", "loss")  # of predictions.npz
BREAK = Markup("<br>")


def write(path: str | Path) -> Path:
    """Writes `report.html` of a run and returns its path."""
    run = Run.open(path)
    with readable(run.path):
        text = _page(run)
    atomic_write(run.path / "report.html", text)
    return run.path / "report.html"


def _page(run: Run) -> str:
    config = run.config()
    record, test = run.read_json("record.json"), run.read_json("test.json")
    parts = [_summary(record, test), _curves(run.metrics())]
    if test:
        names = run.class_names()
        parts += [_classes(test, names), _confusion(np.asarray(test["confusion_matrix"]), names)]
        parts += [_mistakes(run, names)]
    for title, text in (("Config", to_json(config)), ("Record", json.dumps(record, indent=2))):
        parts.append(element("details", element("summary", title), element("pre", text)))
    return page(f"{config.model} on {config.data.name}", *parts)


def _summary(record: Mapping[str, Any], test: Mapping[str, Any]) -> Markup:
    facts = [f"{record.get('model', {}).get('num_params', 0):,} parameters"]
    facts += [f"step {test['step']}"] if test else ["not finished"]
    facts += [record[key][:20] for key in ("started", "commit") if record.get(key)]
    line = element("p", " · ".join(facts))
    if not test:
        return line
    score = element("span", f"{100 * test['accuracy']:.2f} %", class_="big")
    words = f" of {test['count']} test images"
    if "ema_accuracy" in test:
        words += f"; with averaged parameters {100 * test['ema_accuracy']:.2f} %"
    return join(element("p", score, words), line)


def _curves(rows: Sequence[Mapping[str, float]]) -> Markup:
    figures = []
    for title, columns in CURVES.items():
        series: dict[str, tuple[list[float], list[float]]] = {}
        for column, label in columns.items():
            if known := [row for row in rows if column in row]:
                series[label] = [row["epoch"] for row in known], [row[column] for row in known]
        figures.append(svg(plots.curves(series, "epoch", title=title, size=CURVE_SIZE)))
    return join(element("h2", "Training"), element("div", *figures, class_="figures"))


def _classes(test: Mapping[str, Any], names: Sequence[str]) -> Markup:
    *scores, support = (test["per_class"][key] for key in (*SCORES, "support"))
    rows = list(zip(names, *scores, support, strict=True))
    rows += [
        (kind, *(test[kind][key] for key in SCORES), test["count"]) for kind in ("macro", "micro", "weighted")
    ]
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
    worst = worst_mistakes(rows, NUM_MISTAKES)
    captions = []
    for label, prediction, confidence in zip(*(rows[k][worst] for k in COLUMNS[:3]), strict=True):
        captions.append(join(f"{names[prediction]} ({100 * confidence:.0f} %)", BREAK, f"is {names[label]}"))
    return join(element("h2", "Worst mistakes"), gallery(run, worst, captions))


def gallery(run: Run, indices: np.ndarray, captions: Iterable[Markup]) -> Markup:
    """Test images of a run with their captions, or why they cannot be shown."""
    try:
        source = load_split(run.config(), "test")
        pictures = [image(source[int(i)]["image"]) for i in indices]
    except UserError as error:
        return element("p", f"No pictures: {error}")
    shown = zip(pictures, captions, strict=True)
    figures = (element("figure", picture, element("figcaption", caption)) for picture, caption in shown)
    return element("div", *figures, class_="mistakes")


def predictions(run: Run) -> dict[str, np.ndarray] | None:
    """The row of each test image, see `training.metrics`; None if the run has none."""
    file = run.path / "predictions.npz"
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in COLUMNS}
