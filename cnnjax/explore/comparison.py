"""The page that compares several runs, and the page of a sweep.

Runs that differ in nothing but `seed` are one group, under what tells its config from the others; if the
images of their data set changed, each of its states is one, and copies of a run are no seeds. `compare`:
scores, config differences, curves with seeds as bands, images side by side. `sweep`: its points as a table,
the best on validation first, and the curves of the best.
"""

import collections
import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from cnnjax import config as config_lib
from cnnjax.data.files import atomic_write, expanded
from cnnjax.errors import UserError, counted, listed
from cnnjax.explore.markup import BREAK, Markup, element, join, page, table
from cnnjax.explore.report import (
    ALL_RIGHT,
    NUM_IMAGES,
    duration,
    ended,
    figures,
    gallery,
    page_file,
    percent,
    predictions,
    test_scores,
)
from cnnjax.runs.folder import Run
from cnnjax.runs.results import Row, points_of, read_results, spread, validation_means

COMPARED = {
    "Validation accuracy": "validation_accuracy",
    "Validation loss, nats": "validation_loss",
    "Training accuracy": "accuracy",
    "Training loss, nats": "loss",
}
UNCOMPARED = {"seed", *(name for name, field in config_lib.FIELDS.items() if field.resumable)}
PLAIN = ("model", "data.name", "optimizer.name")  # fields whose values speak for themselves
MOST_FIELDS = 3  # in a name, if fewer would do
MOST_LINES = 8  # points of a sweep whose curves are drawn
COLOURS = [to_hex(matplotlib.colormaps[name](i)) for name in ("tab10", "Dark2") for i in range(8)]


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs of one config with several seeds; `fields` are its own, and "images" and "copy" by number."""

    name: str
    runs: list[Run]
    fields: Mapping[str, object]


def compare(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Writes the comparison of run folders, each given once, and returns its path."""
    file, folders = page_file(out), [expanded(path).resolve() for path in paths]
    if twice := [path for i, path in enumerate(paths) if folders[i] in folders[:i]]:
        raise UserError(f"{twice[0]}: this run folder is given twice; give each once")
    groups = make_groups([Run.open(path) for path in paths])
    parts = [_scores(groups), _differences(groups), _curves(groups), _side_by_side(groups)]
    kind = "group" if _apart(groups) else "config"
    title = f"{counted(len(groups), kind)}, {counted(sum(len(group.runs) for group in groups), 'run')}"
    atomic_write(file, page(title, *parts))
    return file


def sweep(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a sweep, by default `report.html` in its folder, and returns its path."""
    folder = expanded(folder)
    file, rows = page_file(out or folder / "report.html"), read_results(folder)
    if not rows:
        raise UserError(f"{folder} holds no finished run yet; `cnnjax sweep --out={folder}` resumes it")
    columns = list(rows[0])
    fields = columns[1 : columns.index("seed")]
    points = points_of(rows, fields)
    words = _names([dict(zip(fields, point, strict=True)) for point in points])
    names = dict(zip(points, words, strict=True))
    groups = []
    for point, members in points.items():
        paths = [folder / "runs" / row["run"] for row in members]
        if runs := [Run.open(path) for path in paths if (path / "config.json").is_file()]:
            groups.append(Group(names[point], runs, {}))
    note = f"The {MOST_LINES} best of {len(groups)}. " if len(groups) > MOST_LINES else ""
    missing = element("p", "No curves: the run folders are not in this folder.")
    curves = _curves(groups[:MOST_LINES], note) if groups else missing
    parts = [_points(rows, fields, names), curves, _origin(folder, rows)]
    title = f"{counted(len(points), 'config')}, {counted(len(rows), 'run')}: {', '.join(fields) or 'seeds'}"
    atomic_write(file, page(title, *parts))
    return file


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """The runs by config without its seed, by images, and apart from their copies, in the order given."""
    alike: dict[str, list[Run]] = {}
    configs: dict[str, dict[str, object]] = {}
    for run, number, copy in zip(runs, _numbers(runs), _copies(runs), strict=True):
        fields = {**config_lib.flatten(run.config()), "images": number, "copy": copy}
        alike.setdefault(same := _key(fields), []).append(run)
        configs.setdefault(same, fields)
    names = _names(list(configs.values()))
    return [Group(name, alike[same], configs[same]) for name, same in zip(names, alike, strict=True)]


def _key(fields: Mapping[str, object], start: str = "") -> str:
    same = {f: value for f, value in fields.items() if f.startswith(start) and f not in UNCOMPARED}
    return json.dumps(same, sort_keys=True)


def _numbers(runs: Sequence[Run]) -> list[int]:
    """By run 1, or more if runs before it recorded other images of the same data."""
    states: dict[str, list[dict[str, str]]] = {}  # by data, fingerprints that no run contradicts
    numbers = []
    for run in runs:
        config = run.config()
        seed = config.seed if config.data.num_validation else ""  # tells what is held out of train
        images = {
            split if split == "test" else f"{split} {seed}": x for split, x in run.images().items() if x
        }
        known = states.setdefault(_key(config_lib.flatten(config), "data."), [])
        fits = (i for i, state in enumerate(known) if all(state.get(s, x) == x for s, x in images.items()))
        if (place := next(fits, len(known))) == len(known):
            known.append({})
        known[place] |= images
        numbers.append(place + 1)
    return numbers


def _copies(runs: Sequence[Run]) -> list[int]:
    """By run 1, or more if it is a copy of runs before it, which is no other seed."""
    seen = collections.Counter[tuple[object, ...]]()
    numbers = []
    for run in runs:
        config = run.config()
        id_ = run.read_json("record.json").get("id", str(run.path))
        key = id_, config.seed, _key(config_lib.flatten(config))
        seen[key] += 1
        numbers.append(seen[key])
    return numbers


def _names(configs: Sequence[Mapping[str, object]]) -> list[str]:
    """What tells each config, by field, from the others: 'resnet20_cifar, learning_rate 0.01'."""

    def kinds(*fields: str) -> int:
        return len({tuple(str(config[field]) for field in fields) for config in configs})

    differing = [field for field in configs[0] if field not in UNCOMPARED and kinds(field) > 1]
    chosen = differing if len(differing) <= MOST_FIELDS else []
    while kinds(*chosen) < len(configs):
        chosen = [*chosen, max(differing, key=lambda field: kinds(*chosen, field))]
    chosen = chosen or [field for field in configs[0] if field == "model"]
    return [", ".join(_word(field, config[field]) for field in chosen) or "one config" for config in configs]


def _word(field: str, value: object) -> str:
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return shown if field in PLAIN and shown else f"{field.removeprefix('optimizer.')} {shown or repr('')}"


def _colours(groups: Sequence[Group]) -> dict[str, str]:
    return {group.name: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}


def _swatch(colour: str) -> Markup:
    return element("span", "", class_="swatch", style=f"background: {colour}")


def _legend(colours: Mapping[str, str]) -> Markup:
    items = (element("li", _swatch(colour), f" {name}") for name, colour in colours.items())
    return element("ul", *items, class_="legend")


def _apart(groups: Sequence[Group]) -> str:
    """Sentences if images of a data set changed between the runs, or a run is there twice, or ''."""
    names = dict.fromkeys(str(group.fields["data.name"]) for group in groups if group.fields["images"] != 1)
    words = f" The images of {', '.join(names)} changed: images 1, images 2 are kept apart." if names else ""
    copies = [run.path.name for group in groups if group.fields["copy"] != 1 for run in group.runs]
    return words + (f" Copies of other folders here, no seeds: {listed(copies)}." if copies else "")


def _scores(groups: Sequence[Group]) -> Markup:
    head = ["", "test accuracy %", "macro F1", "test loss", "minutes", "seeds", "parameters"]
    rows, folders = [], []
    for group in groups:
        tested = {run: test for run in group.runs if (test := test_scores(run)).get("count")}
        tests, record = [*tested.values()], group.runs[0].read_json("record.json")
        done = [run for run in group.runs if ended(run.read_json("record.json"), run.metrics())]
        lacking = "no test split" if len(done) == len(group.runs) else "not finished"
        finished = [*tested] or done
        minutes = [metrics[-1].get("seconds", 0) / 60 for run in finished if (metrics := run.metrics())]
        accuracy, f1 = [100 * test["accuracy"] for test in tests], [test["macro"]["f1"] for test in tests]
        means = [_mean(accuracy, 2), _mean(f1, 4), _mean([test["loss"] for test in tests], 4)]
        scores = [mean or lacking for mean in means]
        seeds = ", ".join(str(run.config().seed) for run in group.runs)
        if unfinished := len(finished) and len(group.runs) - len(finished):
            seeds += f", {unfinished} of {len(group.runs)} not finished"
        params = f"{record.get('model', {}).get('num_params', 0):,}"
        rows.append([group.name, *scores, _mean(minutes, 1) or lacking, seeds, params])
        folders.append(element("li", f"{group.name}: {', '.join(str(run.path) for run in group.runs)}"))
    data = ", ".join(dict.fromkeys(str(group.fields["data.name"]) for group in groups))
    note = element("p", f"Mean ± standard deviation over seeds, on {data}.{_apart(groups)}")
    return join(element("h2", "Scores"), table(head, rows), note, element("ul", *folders))


def _mean(values: Sequence[float], digits: int) -> str:
    return spread([str(value) for value in values], 1, digits)


def _differences(groups: Sequence[Group]) -> Markup:
    """The fields of the config that are not the same everywhere."""
    fields = [field for field in groups[0].fields if field not in UNCOMPARED]
    rows = [[field, *(group.fields.get(field) for group in groups)] for field in fields]
    rows = [row for row in rows if len(set(map(str, row[1:]))) > 1]
    if not rows:
        return join(element("h2", "Config"), element("p", "The configs are equal except for their seeds."))
    head = ["field", *(group.name for group in groups)]
    return join(element("h2", "Differences between the configs"), table(head, rows))


def _points(rows: Sequence[Row], fields: Sequence[str], names: Mapping[tuple[str, ...], str]) -> Markup:
    """The points of a sweep, the best on validation first, with bars."""
    means, cells = validation_means(rows, fields), []
    low, high = min(means.values(), default=0.0), max(means.values(), default=1.0)
    start = max(0.0, low - 0.25 * (high - low or low))  # so that the lowest has a bar too
    for point, members in points_of(rows, fields).items():
        validation, test = ([row[f"{split}_accuracy"] for row in members] for split in ("validation", "test"))
        share = (means[point] - start) / (high - start or 1.0) if point in means else 0.0
        bar = {"class_": "bar", "style": f"--share: {100 * share:.1f}%"}
        failed = sum(row["outcome"] != "finished" for row in members)
        runs = f"{len(members)}, {failed} not finite" if failed else len(members)
        validated = element("div", spread(validation) or "none", **bar)
        seconds = spread([row["seconds"] for row in members], 1, 1)
        cells.append([names[point], validated, spread(test), seconds, runs])
    head = ["config", "validation accuracy %", "test accuracy %", "seconds", "runs"]
    words = "Mean ± standard deviation over seeds"
    order = f", sorted by validation accuracy. Bars run from {100 * start:.1f} to {100 * high:.1f} %."
    title = "Best first" if means else "Configs"
    return join(element("h2", title), table(head, cells), element("p", words, order if means else "."))


def _origin(folder: Path, rows: Sequence[Row]) -> Markup:
    """How long the runs took and what repeats them."""
    seconds = sum(float(row["seconds"] or 0) for row in rows)
    machines = dict.fromkeys(row["machine"] for row in rows)
    commands = dict.fromkeys(shlex.join(map(str, json.loads(row["command"]) or ())) for row in rows)
    facts = element("p", f"{duration(seconds)} of training on {'; '.join(machines)}, in {folder}")
    return join(
        element("h2", "Origin"), facts, *(element("pre", command, class_="command") for command in commands)
    )


def curve(group: Group, column: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(epochs [E], values [runs, E]) at the epochs that all runs have reached; None without any."""
    known = [[row for row in run.metrics() if {column, "epoch"} <= row.keys()] for run in group.runs]
    rows = [{row["epoch"]: row[column] for row in each} for each in known]
    epochs = sorted(set.intersection(*map(set, rows)))
    values = np.asarray([[row[epoch] for epoch in epochs] for row in rows])
    return (np.asarray(epochs), values) if epochs else None


def _curves(groups: Sequence[Group], words: str = "") -> Markup:
    colours, series = _colours(groups), {}
    for title, column in COMPARED.items():
        if lines := {group.name: line for group in groups if (line := curve(group, column))}:
            series[title] = lines
    note = element("p", f"{words}Lines: mean over seeds. Bands: from the lowest seed to the highest.")
    return figures(series, note, _legend(colours), colours=colours)


def _side_by_side(groups: Sequence[Group]) -> Markup:
    """Test images that some of the groups' first runs get right and some not, or a single one gets wrong."""
    title = element("h2", "The same images")
    tables = {group: rows for group in groups if (rows := predictions(group.runs[0]))}
    if not tables:
        return join(title, element("p", "No pictures: no run has predictions."))
    labels = [rows["label"] for rows in tables.values()]
    places = [rows["index"] for rows in tables.values()]  # that of a skipped image is missing
    classes = {tuple(group.runs[0].class_names()) for group in tables}
    images = {group.runs[0].images().get("test") for group in tables} - {None}  # of older runs
    alike = len(classes) == 1 and len(images) < 2
    if not alike or not all(np.array_equal(x, each[0]) for each in (labels, places) for x in each):
        return join(title, element("p", "No pictures: the runs have no test images in common."))
    wrong = np.sum([rows["prediction"] != rows["label"] for rows in tables.values()], 0)
    loss = np.mean([rows["loss"] for rows in tables.values()], 0)
    alone = len(tables) == 1
    chosen = np.flatnonzero((wrong > 0) & ((wrong < len(tables)) | alone))
    chosen = chosen[np.argsort(-loss[chosen], kind="stable")][:NUM_IMAGES]
    run = next(iter(tables)).runs[0]
    names, colours = {group: group.runs[0].class_names() for group in tables}, _colours(groups)

    def caption(i: int) -> Markup:
        lines = [join("true ", element("b", element("bdi", run.class_names()[labels[0][i]])))]
        for group, rows in tables.items():
            prediction, share = rows["prediction"][i], percent(rows["confidence"][i])
            mark = "✓" if prediction == labels[0][i] else "✗"
            seen = (f" {mark} ", element("bdi", names[group][prediction]), f" {share}")
            lines.append(join(BREAK, _swatch(colours[group.name]), *seen))
        return join(*lines)

    words = "Test images on which they disagree, highest loss first; the first run of each."
    if alone:
        words = f"Mistakes of {next(iter(tables)).name}, highest loss first"
        words += "; the others have no predictions." if len(groups) > 1 else "."
    legend = _legend({group.name: colours[group.name] for group in tables})
    shown = gallery(run, chosen, map(caption, map(int, chosen)))
    if not len(chosen):
        shown = ALL_RIGHT if alone else element("p", "None: each test image is right, or wrong, in all.")
    return join(title, element("p", words), legend, shown)
