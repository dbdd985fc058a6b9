"""Several configs times several seeds, run one after the other into one table.

DIR holds `results.csv`, one row a finished run, `sweep.json`, the config without the fields that are set, and
the run folders in `runs/`. What is in the table is not run again, a run that was killed goes on, and all
choices are made on validation: the test split of a run is read once, at its end.
"""

import csv
import fcntl
import hashlib
import io
import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.errors import UserError, parse_call
from cnnjax.runs import experiment, train
from cnnjax.runs.folder import Run, write_atomically
from cnnjax.runs.log import NonFiniteLoss
from cnnjax.runs.progress import Progress
from cnnjax.runs.seeds import train_together

RESULTS = "results.csv"
RANGES = ("uniform", "log_uniform")
SCORES = (
    *("validation_accuracy", "validation_loss", "validation_ema_accuracy"),
    *("test_accuracy", "test_loss", "test_macro_f1", "test_ema_accuracy"),
)
FACTS = ("epochs", "params", "seconds", "compile_seconds", "cpu_kernels", "machine", "commit", "started")
Row = dict[str, str]


class Board(Progress):
    """What a sweep shows, nothing here: the progress of each run, and the rows so far."""

    def begin(self, name: str, number: int, count: int) -> None:
        """Run `number` of `count` begins, or goes on."""

    def rows(self, rows: Sequence[Row], fields: Sequence[str]) -> None:
        """A row has come; these are all."""


def sweep(
    config: ConfigDict,
    values: Mapping[str, Sequence[Any] | str],
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
      config: what all runs share, see `config.default()`.
      values: by field ("optimizer.learning_rate") the values to try, or for `random` a range,
        "uniform(0, 0.5)" or "log_uniform(1e-4, 0.1)". The points are the product of all values.
      out: the folder of the sweep; made where it is missing. The same call goes on after any end; with more
        values or seeds it adds to what is there.
      seeds: how many, from `config.seed` upwards.
      random: 0, or how many points are drawn instead of the product; the first of them stay the same when
        more are asked for.
      task: (i, n) runs each n-th run from the i-th, counted from 0: several processes may share a folder.
      together: all seeds of a point in one compiled step, see `together`; for small nets on an accelerator.
      board: what the user sees; nothing by default.
      stop_seconds: as in `loop.train`.

    Returns: the rows of results.csv as text by column: run, the fields, seed, outcome ("finished", or "not
      finite" where the loss was not), scores, seconds, machine, versions, command.

    Raises:
      UserError: for a mistake in any of the points, before the first is trained.
    """
    board = board or Board()
    fields = sorted(values)
    _check(config, values, seeds, random, task)
    points = [_typed(point) for point in (_draw(values, random) if random else _product(values))]
    seed = config.seed
    runs = [(config_lib.assign(config, {**p, "seed": seed + i}), p) for i in range(seeds) for p in points]
    runs = {_name(run_config, point): (run_config, point) for run_config, point in runs}
    for run_config, _ in runs.values():
        config_lib.validate(run_config)
    out = Path(out)
    results = Results(out, fields)
    results.claim(config)
    mine = list(runs)[task[0] :: task[1]]
    done = {row["run"] for row in results.read()}
    missing = [name for name in mine if name not in done]
    for name in missing:
        if runs[name][0].seed == config.seed:
            experiment.build(runs[name][0])  # a mistake in the last point shows before the first is trained
    board.rows(results.read(), fields)
    number = len(mine) - len(missing)
    for names in _batches(missing, runs, together):
        number += len(names)
        board.begin(", ".join(names), number, len(mine))
        paths = [out / "runs" / name for name in names]
        outcomes = _train([runs[name][0] for name in names], paths, board, stop_seconds)
        for name, path, outcome in zip(names, paths, outcomes, strict=True):
            results.append(_row(Run.open(path), runs[name][1], outcome))
        board.rows(results.read(), fields)
    return results.read()


def _batches(
    missing: Sequence[str], runs: Mapping[str, tuple[ConfigDict, dict[str, Any]]], together: bool
) -> list[list[str]]:
    """What is trained at once: a run, or all seeds of a point that are missing."""
    if not together:
        return [[name] for name in missing]
    found: dict[str, list[str]] = {}
    for name in missing:
        found.setdefault(json.dumps(runs[name][1], sort_keys=True), []).append(name)
    return list(found.values())


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


def _check(
    config: ConfigDict, values: Mapping[str, Any], seeds: int, random: int, task: tuple[int, int]
) -> None:
    config_lib.validate(config)
    for field, given in values.items():
        if field == "seed":
            raise UserError("seed cannot be set; the number of seeds is --seeds=N")
        if config_lib.field(field).resumable:
            raise UserError(f"config.{field} cannot be swept: it does not change the result")
        if isinstance(given, str) and not random:
            raise UserError(f"{field}={given} is a range; draw points from it with --random=N")
        if not given:
            raise UserError(f"{field} has no values; give them as in {field}=A,B,C")
    for name, number, least in (("seeds", seeds, 1), ("random", random, 0)):
        if number < least:
            raise UserError(f"{name}={number} must be at least {least}")
    if not 0 <= task[0] < task[1]:
        raise UserError(f"task={task[0]}/{task[1]} must be i/n with 0 <= i < n")


def _product(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    fields = sorted(values)
    return [dict(zip(fields, point, strict=True)) for point in itertools.product(*map(values.get, fields))]


def _draw(values: Mapping[str, Sequence[Any] | str], count: int) -> list[dict[str, Any]]:
    """Points drawn at random, each from its own number, so that more of them leave the first alone."""
    points = []
    for i in range(count):
        draw = np.random.default_rng([0, i])
        points.append(
            {f: _draw_value(draw, f, values[f], type(config_lib.field(f).default)) for f in sorted(values)}
        )
    return points


def _draw_value(draw: np.random.Generator, field: str, given: Sequence[Any] | str, kind: type) -> Any:
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


def _typed(point: Mapping[str, Any]) -> dict[str, Any]:
    """The point with 1 as 1.0 in fields of that type: one run has one name."""
    whole = {name for name, value in point.items() if type(value) is int}
    floats = {name for name in whole if isinstance(config_lib.field(name).default, float)}
    return {name: float(value) if name in floats else value for name, value in point.items()}


def _name(config: ConfigDict, point: Mapping[str, Any]) -> str:
    """The run's folder: readable, and one for each point and seed."""
    text = json.dumps([point, config.seed], sort_keys=True)
    words = "_".join(f"{field.rpartition('.')[2]}_{value}" for field, value in point.items())
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", words)[:60].strip("_.") or "base"
    return f"{readable}_seed{config.seed}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _row(run: Run, point: Mapping[str, Any], outcome: str) -> dict[str, Any]:
    """What a run folder says of itself, as a row."""
    config, record, test = run.config(), run.read_json("record.json"), run.read_json("test.json")
    metrics = run.metrics()
    last = metrics[-1] if outcome == "finished" else {}
    scores = {
        **{name: last.get(name) for name in SCORES[:3]},
        **{name: test.get(name.removeprefix("test_")) for name in SCORES[3:]},
        "test_macro_f1": test.get("macro", {}).get("f1"),
    }
    machine = record["machine"]
    return {
        "run": run.path.name,
        **point,
        "seed": config.seed,
        "outcome": outcome,
        **{name: "" if value is None else f"{value:.5f}" for name, value in scores.items()},
        "epochs": config.total_epochs,
        "params": record.get("model", {}).get("num_params", ""),
        "seconds": f"{metrics[-1]['seconds']:.1f}" if metrics else "",
        "compile_seconds": record.get("compile_seconds", ""),
        "cpu_kernels": record["cpu_kernels"],
        "machine": f"{machine['processor']}, {machine['cores']} cores, {', '.join(record['devices'])}",
        "commit": record["commit"],
        "started": record["started"],
        "versions": json.dumps({"python": record["python"], **record["versions"]}),
        "command": json.dumps(record["command"]),
    }


def read_rows(out: str | Path) -> list[Row]:
    """The rows of a sweep's results.csv; none where there is no such file."""
    file = Path(out) / RESULTS
    if not file.exists():
        return []
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


class Results:
    """The table of a sweep, written whole each time, so that no end of a process can cut a row."""

    def __init__(self, out: Path, fields: Sequence[str]):
        self.out, self.file = out, out / RESULTS
        self.columns = ["run", *fields, "seed", "outcome", *SCORES, *FACTS, "versions", "command"]
        self.fields = list(fields)

    def claim(self, config: ConfigDict) -> None:
        """Makes the folder, or checks that what it holds is this sweep.

        Raises:
          UserError: where it holds another, or cannot be written.
        """
        if self.file.exists() and self._head() != self.columns:
            there = [name for name in self._head() if name in config_lib.FIELDS and name != "seed"]
            raise UserError(
                f"{self.file} is of a sweep that sets {', '.join(there) or 'other columns'}; "
                "set the same fields, or choose another --out"
            )
        try:
            (self.out / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out={self.out} cannot be written: {error.strerror}") from None
        saved = self.out / "sweep.json"
        with self._locked():
            if not saved.exists():
                write_atomically(saved, config_lib.to_json(config))
        try:
            before = config_lib.from_json(saved.read_text())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{saved} cannot be read: {error}") from None
        kept = {f"config.{field}" for field in (*self.fields, "seed")}
        changed = [d for d in config_lib.differing(before, config) if d.partition(":")[0] not in kept]
        if changed:
            raise UserError(
                f"{self.out} holds a sweep of another config ({'; '.join(changed)}); choose another --out"
            )

    def _head(self) -> list[str]:
        with open(self.file, newline="") as file:
            return next(csv.reader(file), [])

    def read(self) -> list[Row]:
        """The rows so far, in the order in which they came."""
        return read_rows(self.out)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row, unless the run has one already."""
        with self._locked():
            rows = self.read()
            if any(old["run"] == row["run"] for old in rows):
                return
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*rows, row])
            write_atomically(self.file, text.getvalue())

    def _locked(self) -> Any:
        """The folder, held by this process alone until the file that is returned is closed."""
        file = open(self.out / "runs" / ".lock", "w")  # noqa: SIM115, closed by the caller's `with`
        fcntl.flock(file, fcntl.LOCK_EX)
        return file


def best(rows: Sequence[Row], fields: Sequence[str]) -> dict[str, str] | None:
    """The fields of the point with the highest mean accuracy on validation; None where no run has one."""
    points = [(mean, point) for point, mean in validation_means(rows, fields).items()]
    return dict(zip(fields, max(points)[1], strict=True)) if points else None


def validation_means(rows: Sequence[Row], fields: Sequence[str]) -> dict[tuple[str, ...], float]:
    """Mean validation accuracy by point, of those whose runs all ended well."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[field] for field in fields), []).append(row)
    return {
        point: statistics.mean(float(row["validation_accuracy"]) for row in members)
        for point, members in found.items()
        if all(row["validation_accuracy"] for row in members)
    }


def spread(values: Sequence[str], scale: float = 100, digits: int = 2) -> str:
    """'92.02 ± 0.03' of numbers as text, the sample's standard deviation; '' of none."""
    numbers = [scale * float(value) for value in values if value]
    if not numbers:
        return ""
    deviation = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{deviation}"
