"""Several configs times several seeds, run one after the other into one table.

DIR holds `results.csv`, one row a finished run, `sweep.json`, the config without the fields that are set, and
the run folders in `runs/`. What is in the table is not run again, a run that was killed goes on, and all
choices are made on validation: the test split of a run is read once, at its end.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.files import expanded
from cnnjax.data.sources.source import Listed
from cnnjax.errors import UserError, check_count, check_local, parse_call
from cnnjax.runs import experiment, train
from cnnjax.runs.facts import of_run
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import load_split
from cnnjax.runs.log import NonFiniteLoss, Progress
from cnnjax.runs.results import Results, Row, read_results, row_of
from cnnjax.runs.seeds import train_together

RANGES = ("uniform", "log_uniform")
Point = Mapping[str, config_lib.Value]
Values = Mapping[str, Sequence[config_lib.Value] | str]  # of each field those to try, or a range to draw from


class Board(Progress):
    """What a sweep shows, nothing here: the progress of each run, and the rows so far."""

    def begin(self, name: str, number: int, count: int) -> None:
        """Run `number` of `count` begins, or goes on."""

    def rows(self, rows: Sequence[Row], fields: Sequence[str]) -> None:
        """A row has come; these are all."""

    def header(self, lines: Sequence[str]) -> None:
        """Nothing: what its runs are, the sweep's own lines say."""


def sweep(
    config: ConfigDict,
    values: Values,
    out: str | Path,
    *,
    seeds: int = 1,
    random: int = 0,
    task: tuple[int, int] = (0, 1),
    together: bool = False,
    board: Board | None = None,
    stop_seconds: float | None = None,
) -> list[Row]:
    """Trains every point with every seed, as far as `out` does not hold the result; returns all its rows.

    Args:
      values: by field ("optimizer.learning_rate") the values to try, or for `random` a range,
        "uniform(0, 0.5)" or "log_uniform(1e-4, 0.1)". The points are the product of all values.
      out: the folder of the sweep; created if missing. The same call resumes after any end; with more
        values or seeds it adds to the table.
      seeds: how many, from `config.seed` upwards.
      random: 0, or how many points are drawn instead of the product; the first of more are the same.
      task: (i, n) runs each n-th run from the i-th, counted from 0: several processes may share a folder.
      together: all seeds of a point in one compiled step, see `seeds`; for small nets on an accelerator.

    Returns the rows of results.csv as text by column: run, the fields, seed, outcome ("finished", or "not
    finite" if a training or evaluation loss was not), scores, seconds, machine, versions, command. A mistake
    in any of the points, or other images than those of the rows, is a UserError before the first is trained.
    """
    board = board or Board()
    fields = sorted(values)
    config_lib.check_complete(config)
    chosen = points(values, random)
    check_count("seeds", seeds, 1)
    if not 0 <= task[0] < task[1]:
        raise UserError(f"task={task[0]}/{task[1]} must be i/n with 0 <= i < n")
    runs = _runs(config, chosen, seeds)
    check_local("out", out)
    results = Results(out := expanded(out), fields)
    results.claim(config)
    mine = list(runs)[task[0] :: task[1]]
    done = {row["run"] for row in read_results(out)}
    missing = [name for name in mine if name not in done]
    _check_points([runs[name][0] for name in missing if runs[name][0].seed == config.seed], board)
    _check_images(out, config, {runs[name][0].data.name for name in missing})
    board.rows(read_results(out), fields)
    batches: dict[str, list[str]] = {}  # trained at once: a run, or all missing seeds of a point
    for name in missing:
        batches.setdefault(json.dumps(runs[name][1], sort_keys=True) if together else name, []).append(name)
    number = len(mine) - len(missing)
    for names in batches.values():
        number += len(names)
        board.begin(", ".join(names), number, len(mine))
        paths = [out / "runs" / name for name in names]
        outcomes = _train([runs[name][0] for name in names], paths, board, stop_seconds)
        for name, path, outcome in zip(names, paths, outcomes, strict=True):
            results.append(row_of(Run.open(path), runs[name][1], outcome))
        board.rows(read_results(out), fields)
    return read_results(out)


def _check_points(configs: Sequence[ConfigDict], board: Board) -> None:
    """Shows a mistake in the last point before the first is trained, and notes what will not be ranked."""
    sources = (experiment.build(each).train_source for each in configs)
    advice = {train.hold_out_advice(each) for each in sources if "validation" not in each.splits}
    for each in sorted(advice):
        board.note(f"points without a validation split are not ranked{each}")


def _check_images(out: Path, config: ConfigDict, names: Collection[str]) -> None:
    """A UserError if a run in the table was of other images of these data sets than there are now."""
    listed: Listed = {}
    now: dict[str, str] = {}  # fingerprints: most runs share their images
    runs = [Run(out / "runs" / row["run"]) for row in read_results(out)] if names else []
    for run in (run for run in runs if (run.path / "config.json").is_file()):
        before = config_lib.assign(run.config(), {"data.dir": config.data.dir})
        recorded = run.images() if before.data.name in names else {}
        for split in (split for split, fingerprint in recorded.items() if fingerprint):
            key = json.dumps([split, before.seed, before.data.to_dict()])
            if key not in now:
                known = () if split == "train" else of_run(run).images
                now[key] = load_split(before, split, *known, listed=listed).fingerprint
            run.check_images(split, now[key], "or choose another --out")


def _runs(config: ConfigDict, points: Sequence[Point], seeds: int) -> dict[str, tuple[ConfigDict, Point]]:
    """The config and the point of each run, by the name of its folder."""
    runs = {}
    for seed, point in itertools.product(range(config.seed, config.seed + seeds), points):
        run_config = config_lib.assign(config, {**point, "seed": seed})
        config_lib.validate(run_config)
        runs[_name(run_config, point)] = run_config, point
    return runs


def _train(
    configs: Sequence[ConfigDict], paths: Sequence[Path], board: Board, stop_seconds: float | None
) -> list[str]:
    """By run "finished", or "not finite"."""
    if len(configs) > 1:
        results = train_together(configs, paths, board, stop_seconds=stop_seconds)
        return ["not finite" if isinstance(each, NonFiniteLoss) else "finished" for each in results]
    try:
        train.train(configs[0], paths[0], board, stop_seconds=stop_seconds)
    except NonFiniteLoss:
        return ["not finite"]
    return ["finished"]


def points(values: Values, random: int = 0) -> list[Point]:
    """The points of a sweep, each once though several draws may be it; UserError for what cannot be swept."""
    check_count("random", random, 0)
    for field, given in values.items():
        if field == "seed":
            raise UserError("seed cannot be set; the number of seeds is --seeds=N")
        if config_lib.field(field).resumable:
            reason = "it says how a run is carried out, not what is trained"
            raise UserError(f"config.{field} cannot be swept: {reason}; set it with --config.{field}=VALUE")
        if isinstance(given, str) and not random:
            raise UserError(f"{field}={given} is a range; draw points from it with --random=N")
        if not given:
            raise UserError(f"{field} has no values; give them as in {field}=A,B,C")
    drawn = map(_typed, _draw(values, random) if random else _product(values))
    return list({json.dumps(point, sort_keys=True): point for point in drawn}.values())


def _product(values: Values) -> list[Point]:
    product = itertools.product(*(values[field] for field in sorted(values)))
    return [dict(zip(sorted(values), point, strict=True)) for point in product]


def _draw(values: Values, count: int) -> list[Point]:
    """Points drawn at random, each from its own number, so that more of them leave the first alone."""
    draws = [np.random.default_rng([0, i]) for i in range(count)]
    return [{field: _draw_value(draw, field, values[field]) for field in sorted(values)} for draw in draws]


def _draw_value(
    draw: np.random.Generator, field: str, given: Sequence[config_lib.Value] | str
) -> config_lib.Value:
    kind = type(config_lib.field(field).default)
    if not isinstance(given, str):
        return given[int(draw.integers(len(given)))]
    name, ends, named = parse_call(given, field)
    is_range = name in RANGES and len(ends) == 2 and not named and kind in (int, float)
    if not is_range or any(type(end) not in (int, float) for end in ends) or not ends[0] < ends[1]:
        raise UserError(f"{field}={given} must be uniform(low, high) or log_uniform(low, high), of numbers")
    if name == "uniform":
        value = draw.uniform(*ends)
    elif ends[0] > 0:
        value = np.exp(draw.uniform(*np.log(ends)))
    else:
        raise UserError(f"{field}={given}: log_uniform needs a low end greater than 0")
    return round(value) if kind is int else float(f"{value:.4g}")


def _typed(point: Point) -> Point:
    """The point with 1 as 1.0 in fields of that type: one run has one name."""
    kinds = {name: type(config_lib.field(name).default) for name in point}
    whole = {name for name, value in point.items() if type(value) is int and kinds[name] is float}
    return {name: float(value) if name in whole else value for name, value in point.items()}


def _name(config: ConfigDict, point: Point) -> str:
    """The run's folder: readable, and one for each point and seed."""
    text = json.dumps([point, config.seed], sort_keys=True)
    words = "_".join(f"{field.rpartition('.')[2]}_{value}" for field, value in point.items())
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", words)[:60].strip("_.") or "base"
    return f"{readable}_seed{config.seed}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
