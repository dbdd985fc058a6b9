"""The page of one run: curves, confusion matrix, classes, worst mistakes, config and record.

It is one file without scripts or links to anything outside, readable in light and dark.
"""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.image
import numpy as np

from cnnjax.config import to_json
from cnnjax.errors import UserError
from cnnjax.runs.folder import Run, readable, write_atomically
from cnnjax.runs.inputs import load_split
from cnnjax.training.metrics import worst_mistakes

CURVES = {
    "Loss, nats": {
        "loss": "train",
        "validation_loss": "validation",
        "validation_ema_loss": "validation, EMA",
    },
    "Accuracy": {
        "accuracy": "train",
        "validation_accuracy": "validation",
        "validation_ema_accuracy": "validation, EMA",
    },
    "Learning rate": {"learning_rate": ""},
    "Gradient norm": {"gradient_norm": ""},
}
NUM_MISTAKES = 24
MOST_CLASSES = 30  # of a confusion matrix that still can be read as a table

STYLE = """
:root { color-scheme: light dark; --line: #8884; --cell: 37 99 235; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
body { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .2rem .55rem; text-align: right; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.figures svg { width: 100%; height: auto; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .8rem; }
figure { margin: 0; font-size: .8rem; } img { width: 100%; image-rendering: pixelated; border-radius: 4px; }
pre { overflow-x: auto; font-size: .8rem; } .big { font-size: 2.2rem; font-weight: 600; }
"""


def write(path: str | Path) -> Path:
    """Writes `report.html` of a run and returns its path.

    Raises:
      UserError: where the folder is not a run's.
    """
    run = Run.open(path)
    config = run.config()
    with readable(run.path):
        text = _page(run, config)
    file = run.path / "report.html"
    write_atomically(file, text)
    return file


def _page(run: Run, config: Any) -> str:
    record, test = run.read_json("record.json"), run.read_json("test.json")
    parts = [_curves(run.metrics())]
    if test:
        names = run.class_names()
        parts += [_classes(test, names), _confusion(np.asarray(test["confusion_matrix"]), names)]
        parts += [_mistakes(run, config, names)]
    parts += [_details("Config", to_json(config)), _details("Record", json.dumps(record, indent=2))]
    title = f"{config.model} on {config.data.name}"
    return page(title, _summary(record, test) + "".join(parts))


def page(title: str, body: str) -> str:
    """A whole page in one text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def _summary(record: dict[str, Any], test: dict[str, Any]) -> str:
    facts = [f"{record.get('model', {}).get('num_params', 0):,} parameters"]
    facts += [f"step {test['step']}"] if test else ["not finished"]
    facts += [record[key][:20] for key in ("started", "commit") if record.get(key)]
    score = ""
    if test:
        score = f'<p><span class="big">{100 * test["accuracy"]:.2f} %</span> of {test["count"]} test images'
        if "ema_accuracy" in test:
            score += f"; with averaged parameters {100 * test['ema_accuracy']:.2f} %"
        score += "</p>"
    return f"{score}<p>{html.escape(' · '.join(facts))}</p>"


def _curves(rows: list[dict[str, Any]]) -> str:
    figures = [_curve(title, series, rows) for title, series in CURVES.items()]
    return f'<h2>Training</h2><div class="figures">{"".join(figures)}</div>'


def _curve(title: str, series: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """An SVG of some columns of the metrics against the epoch."""
    figure, plot = axes(title)
    for name, label in series.items():
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        if points:
            plot.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 40 else "")
    return svg(figure, plot)


def axes(title: str) -> tuple[Any, Any]:
    """A figure against the epoch, and its axes."""
    figure = matplotlib.figure.Figure(figsize=(4.2, 2.8), layout="constrained")
    plot = figure.add_subplot()
    plot.set(title=title, xlabel="epoch")
    return figure, plot


def svg(figure: Any, axes: Any) -> str:
    """The figure as SVG, in greys that suit light and dark."""
    axes.grid(alpha=0.25)
    for item in (axes.title, axes.xaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
        item.set_color("#888")
    axes.tick_params(colors="#888")
    axes.spines[:].set_color("#888")
    if len(axes.lines) > 1:
        axes.legend(framealpha=0, labelcolor="#888")
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _classes(test: dict[str, Any], names: list[str]) -> str:
    scores = test["per_class"]
    rows = [
        [
            html.escape(name),
            *(f"{scores[k][i]:.4f}" for k in ("precision", "recall", "f1")),
            scores["support"][i],
        ]
        for i, name in enumerate(names)
    ]
    rows += [
        [kind, *(f"{test[kind][k]:.4f}" for k in ("precision", "recall", "f1")), test["count"]]
        for kind in ("macro", "micro", "weighted")
    ]
    return "<h2>Classes</h2>" + table(["class", "precision", "recall", "F1", "images"], rows)


def table(head: list[str], rows: list[list[Any]]) -> str:
    body = "".join(
        f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _confusion(matrix: np.ndarray, names: list[str]) -> str:
    """Rows are labels, columns predictions; the shade is the share of the row."""
    title = "<h2>Confusion matrix</h2><p>Rows: label. Columns: prediction.</p>"
    if len(matrix) > MOST_CLASSES:
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        return f'{title}<img alt="confusion matrix" src="{png(share, "Blues")}" style="max-width: 40rem">'
    rows = []
    for name, counts in zip(names, matrix, strict=True):
        shares = counts / max(counts.sum(), 1)
        cells = "".join(
            f'<td style="background: rgb(var(--cell) / {0.7 * share:.2f})">{count}</td>'
            for count, share in zip(counts, shares, strict=True)
        )
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    return f'{title}<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _mistakes(run: Run, config: Any, names: list[str]) -> str:
    """The wrongly classified test images with the highest loss, most confident errors first."""
    if not (run.path / "predictions.npz").exists():
        return ""
    rows = predictions(run)
    label, prediction, confidence = rows["label"], rows["prediction"], rows["confidence"]
    worst = worst_mistakes(rows, NUM_MISTAKES)
    try:
        source = load_split(config, "test")
        images = [source[int(i)]["image"] for i in worst]
    except UserError as error:
        return f"<h2>Worst mistakes</h2><p>No pictures: {html.escape(str(error))}</p>"
    figures = [
        f'<figure><img alt="" src="{png(image)}"><figcaption>{html.escape(names[prediction[i]])} '
        f"({100 * confidence[i]:.0f} %)<br>is {html.escape(names[label[i]])}</figcaption></figure>"
        for i, image in zip(worst, images, strict=True)
    ]
    return f'<h2>Worst mistakes</h2><div class="mistakes">{"".join(figures)}</div>'


def predictions(run: Run) -> dict[str, np.ndarray]:
    """The row of each test image, from predictions.npz; see `training.metrics`."""
    with np.load(run.path / "predictions.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("label", "prediction", "confidence", "loss")}


def png(image: np.ndarray, cmap: str = "gray") -> str:
    """[H, W], [H, W, 1] or [H, W, 3] as a data address of a PNG."""
    picture, data = np.squeeze(image), io.BytesIO()
    limits = {"vmin": 0, "vmax": 255 if picture.dtype == np.uint8 else 1}
    matplotlib.image.imsave(data, picture, format="png", cmap=cmap, **limits)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"
