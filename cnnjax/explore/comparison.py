"""One page that compares runs: curves with seeds as bands, scores, config differences, images side by side.

Runs whose configs differ in nothing but `seed` are one group.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax import config as config_lib
from cnnjax.data.files import atomic_write
from cnnjax.errors import UserError
from cnnjax.explore import plots
from cnnjax.explore.markup import Markup, element, join, page, svg, table
from cnnjax.explore.report import BREAK, CURVE_SIZE, gallery, predictions
from cnnjax.runs.folder import Run, readable
from cnnjax.runs.results import spread

COMPARED = {
    "Validation accuracy": "validation_accuracy",
    "Validation loss, nats": "validation_loss",
    "Training accuracy": "accuracy",
    "Training loss, nats": "loss",
}
NUM_IMAGES = 24
UNCOMPARED = {"seed", *(name for name, field in config_lib.FIELDS.items() if field.resumable)}


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs of one config with several seeds, under a letter; `fields` is that config by field."""

    name: str
    runs: list[Run]
    fields: dict[str, Any]


def write(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Writes the comparison of run folders and returns its path."""
    file = Path(out)
    if file.suffix != ".html" or not file.parent.is_dir():
        raise UserError(f"out={out} must be a file that ends in .html, in an existing folder")
    groups = make_groups([Run.open(path) for path in dict.fromkeys(map(str, paths))])
    with readable(Path(", ".join(map(str, paths)))):
        parts = [_scores(groups), _differences(groups), _curves(groups), _side_by_side(groups)]
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
        tests = [test for run in group.runs if (test := run.read_json("test.json"))]
        record = group.runs[0].read_json("record.json")
        minutes = [metrics[-1]["seconds"] / 60 for run in group.runs if (metrics := run.metrics())]
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
    rows = [{row["epoch"]: row[column] for row in run.metrics() if column in row} for run in group.runs]
    epochs = sorted(set.intersection(*map(set, rows)))
    if not epochs:
        return None
    return np.asarray(epochs), np.asarray([[row[epoch] for epoch in epochs] for row in rows])


def _curves(groups: Sequence[Group]) -> Markup:
    figures = []
    for title, column in COMPARED.items():
        series = {group.name: line for group in groups if (line := curve(group, column))}
        if series:
            figures.append(svg(plots.curves(series, "epoch", title=title, size=CURVE_SIZE)))
    note = element("p", "Lines: mean over seeds. Bands: from the lowest seed to the highest.")
    return join(element("h2", "Training"), note, element("div", *figures, class_="figures"))


def _side_by_side(groups: Sequence[Group]) -> Markup:
    """Test images that the groups' first runs do not all get right, highest loss first."""
    title = element("h2", "The same images")
    tables = {group: rows for group in groups if (rows := predictions(group.runs[0]))}
    labels = [rows["label"] for rows in tables.values()]
    if not labels or not all(np.array_equal(label, labels[0]) for label in labels):
        return join(title, element("p", "No pictures: the runs have no test images in common."))
    wrong = np.sum([rows["prediction"] != rows["label"] for rows in tables.values()], 0)
    loss = np.mean([rows["loss"] for rows in tables.values()], 0)
    chosen = np.flatnonzero((wrong > 0) & (wrong < len(tables)) if len(tables) > 1 else wrong > 0)
    chosen = chosen[np.argsort(-loss[chosen], kind="stable")][:NUM_IMAGES]
    run = next(iter(tables)).runs[0]
    names = run.class_names()

    def caption(i: int) -> Markup:
        lines = [join("is ", element("b", names[labels[0][i]]))]
        for group, rows in tables.items():
            prediction, share = rows["prediction"][i], 100 * rows["confidence"][i]
            mark = "✓" if prediction == labels[0][i] else "✗"
            lines += [BREAK, join(f"{group.name} {mark} {names[prediction]} ({share:.0f} %)")]
        return join(*lines)

    note = element("p", "Test images on which they disagree, highest loss first; the first run of each.")
    return join(title, note, gallery(run, chosen, map(caption, map(int, chosen))))
