"""One page that compares runs: curves with seeds as bands, scores, config differences, images side by side.

Runs whose configs differ in nothing but `seed` are one group: a line is their mean, its band reaches from the
lowest to the highest. Like the page of a run it is one file without scripts or links to anything outside.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnnjax import config as config_lib
from cnnjax.errors import UserError
from cnnjax.explore import report
from cnnjax.runs.folder import Run, readable, write_atomically
from cnnjax.runs.inputs import load_split

COMPARED = {
    "Validation accuracy": "validation_accuracy",
    "Validation loss, nats": "validation_loss",
    "Training accuracy": "accuracy",
    "Training loss, nats": "loss",
}
NUM_IMAGES = 24
UNCOMPARED = {"seed", *(name for name, field in config_lib.FIELDS.items() if field.resumable)}


class Group:
    """Runs of one config and several seeds; `name` is a letter, `title` what tells it from the others."""

    def __init__(self, name: str, runs: Sequence[Run]):
        self.name, self.runs = name, list(runs)
        self.fields = config_lib.flatten(runs[0].config())
        self.tests = [test for test in (run.read_json("test.json") for run in runs) if test]

    def curve(self, column: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(epochs [E], values [runs, E]) at the epochs that all runs have reached; None without any."""
        rows = [{row["epoch"]: row[column] for row in run.metrics() if column in row} for run in self.runs]
        epochs = sorted(set.intersection(*map(set, rows))) if rows else []
        if not epochs:
            return None
        return np.asarray(epochs), np.asarray([[row[epoch] for epoch in epochs] for row in rows])


def write(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Writes the comparison of run folders and returns its path.

    Raises:
      UserError: where a folder is not a run's, or `out` is no place for a page.
    """
    file = Path(out)
    if file.suffix != ".html" or not file.parent.is_dir():
        raise UserError(f"--out={out}: allowed is a file that ends in .html, in a folder that is there")
    groups = make_groups([Run.open(path) for path in dict.fromkeys(map(str, paths))])
    with readable(Path(", ".join(map(str, paths)))):
        parts = [_scores(groups), _differences(groups), _curves(groups), _side_by_side(groups)]
    title = f"{len(groups)} configs, {sum(len(group.runs) for group in groups)} runs"
    write_atomically(file, report.page(title, "".join(parts)))
    return file


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """The runs by config without its seed, in the order given; the groups are named A, B, ..."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        fields = config_lib.flatten(run.config())
        same = {field: value for field, value in fields.items() if field not in UNCOMPARED}
        found.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    names = (chr(ord("A") + i) if i < 26 else f"Z{i - 25}" for i in range(len(found)))
    return [Group(name, members) for name, members in zip(names, found.values(), strict=True)]


def _scores(groups: Sequence[Group]) -> str:
    head = ["", "test accuracy %", "macro F1", "test loss", "minutes", "seeds", "parameters", "model", "data"]
    rows = []
    for group in groups:
        record = group.runs[0].read_json("record.json")
        minutes = [metrics[-1]["seconds"] / 60 for run in group.runs if (metrics := run.metrics())]
        rows.append(
            [
                group.name,
                _mean([100 * test["accuracy"] for test in group.tests], 2),
                _mean([test["macro"]["f1"] for test in group.tests], 4),
                _mean([test["loss"] for test in group.tests], 4),
                _mean(minutes, 1),
                ", ".join(str(run.config().seed) for run in group.runs),
                f"{record.get('model', {}).get('num_params', 0):,}",
                html.escape(group.fields["model"]),
                html.escape(group.fields["data.name"]),
            ]
        )
    note = "<p>Mean ± standard deviation over seeds. Each letter is one config.</p>"
    folders = "".join(
        f"<li>{group.name}: {html.escape(', '.join(str(run.path) for run in group.runs))}</li>"
        for group in groups
    )
    return f"<h2>Scores</h2>{report.table(head, rows)}{note}<ul>{folders}</ul>"


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return "not finished"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _differences(groups: Sequence[Group]) -> str:
    """The fields of the config that are not the same everywhere."""
    fields = [
        field
        for field in groups[0].fields
        if field not in UNCOMPARED and len({str(group.fields.get(field)) for group in groups}) > 1
    ]
    if not fields:
        return "<h2>Config</h2><p>The configs are equal but for their seeds.</p>"
    rows = [
        [html.escape(field), *(html.escape(str(group.fields.get(field))) for group in groups)]
        for field in fields
    ]
    return "<h2>What differs in the configs</h2>" + report.table(
        ["field", *(group.name for group in groups)], rows
    )


def _curves(groups: Sequence[Group]) -> str:
    figures = []
    for title, column in COMPARED.items():
        found = {group.name: group.curve(column) for group in groups}
        if any(found.values()):
            figures.append(_bands(title, {name: curve for name, curve in found.items() if curve}))
    note = "<p>Lines: mean over seeds. Bands: from the lowest seed to the highest.</p>"
    return f'<h2>Training</h2>{note}<div class="figures">{"".join(figures)}</div>'


def _bands(title: str, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    figure, axes = report.axes(title)
    for name, (epochs, values) in found.items():
        (line,) = axes.plot(epochs, values.mean(0), label=name, marker="." if len(epochs) < 40 else "")
        if len(values) > 1:
            axes.fill_between(epochs, values.min(0), values.max(0), alpha=0.25, color=line.get_color())
    return report.svg(figure, axes)


def _side_by_side(groups: Sequence[Group]) -> str:
    """Test images that the groups' first runs do not all get right, those with the most errors first."""
    title = "<h2>The same images</h2>"
    with_predictions = [group for group in groups if (group.runs[0].path / "predictions.npz").exists()]
    tables = [report.predictions(group.runs[0]) for group in with_predictions]
    if not tables or any(not np.array_equal(table["label"], tables[0]["label"]) for table in tables):
        return f"{title}<p>No pictures: the runs have no test images in common.</p>"
    label = tables[0]["label"]
    wrong = np.sum([table["prediction"] != label for table in tables], 0)
    loss = np.mean([table["loss"] for table in tables], 0)
    split = (wrong > 0) & (wrong < len(tables)) if len(tables) > 1 else wrong > 0
    chosen = np.flatnonzero(split)
    chosen = chosen[np.argsort(-loss[chosen], kind="stable")][:NUM_IMAGES]
    run = with_predictions[0].runs[0]
    names = run.class_names()
    try:
        source = load_split(run.config(), "test")
        images = [source[int(i)]["image"] for i in chosen]
    except UserError as error:
        return f"{title}<p>No pictures: {html.escape(str(error))}</p>"
    figures = []
    for i, image in zip(chosen, images, strict=True):
        lines = [f"is <b>{html.escape(names[label[i]])}</b>"]
        for group, table in zip(with_predictions, tables, strict=True):
            mark = "✓" if table["prediction"][i] == label[i] else "✗"
            said = html.escape(names[table["prediction"][i]])
            lines.append(f"{group.name} {mark} {said} ({100 * table['confidence'][i]:.0f} %)")
        figures.append(
            f'<figure><img alt="" src="{report.png(image)}">'
            f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
        )
    note = "<p>Test images on which they disagree, highest loss first; the first run of each.</p>"
    return f'{title}{note}<div class="mistakes">{"".join(figures)}</div>'
