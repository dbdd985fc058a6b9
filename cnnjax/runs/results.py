"""The table of a sweep, results.csv: a row a finished run, and what is computed from the rows."""

import csv
import fcntl
import io
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.files import atomic_write, expanded, open_to_append, read_file, read_json
from cnnjax.errors import UserError, one_line
from cnnjax.runs.config_files import naming
from cnnjax.runs.folder import Run

RESULTS = "results.csv"
SCORES = (
    *("validation_accuracy", "validation_loss", "validation_ema_accuracy"),
    *("test_accuracy", "test_loss", "test_macro_f1", "test_ema_accuracy"),
)
FACTS = ("epochs", "params", "seconds", "compile_seconds", "cpu_kernels", "machine", "commit", "started")
Row = dict[str, str]


def row_of(run: Run, point: Mapping[str, object], outcome: str) -> Mapping[str, object]:
    """What a run folder says of itself, as a row."""
    config, record, test = run.config(), run.read_json("record.json"), run.read_json("test.json")
    metrics, machine = run.metrics(), record.get("machine", {})
    cores = machine.get("cores")
    ended = metrics and metrics[-1]["step"] >= record.get("total_steps", 0)
    if outcome == "finished" and not ended:
        file, advice = run.path / "metrics.jsonl", f"restore it, or remove {run.path} to train the run again"
        raise UserError(f"{file} lacks the last row of a finished run; {advice}")
    last = metrics[-1] if outcome == "finished" else {}
    scores = {
        **{name: last.get(name) for name in SCORES[:3]},
        **{name: test.get(name.removeprefix("test_")) for name in SCORES[3:]},
        "test_macro_f1": test.get("macro", {}).get("f1"),
    }
    # A network that diverged in its last step finds one class everywhere: none of its scores counts.
    broken = {name.partition("_")[0] for name, value in scores.items() if not math.isfinite(value or 0)}
    scores = {name: None if name.partition("_")[0] in broken else value for name, value in scores.items()}
    row = {
        "run": run.path.name,
        "seed": config.seed,
        "outcome": "not finite" if broken else outcome,
        **{name: "" if value is None else f"{value:.5f}" for name, value in scores.items()},
        "epochs": config.total_epochs,
        "params": record.get("model", {}).get("num_params", ""),
        "seconds": f"{metrics[-1].get('seconds', 0):.1f}" if metrics else "",
        "compile_seconds": record.get("compile_seconds", ""),
        **{name: record.get(name, "") for name in ("cpu_kernels", "commit", "started")},
        "machine": f"{machine.get('processor')}, {cores} core{'s' * (cores != 1)}, "
        f"{', '.join(record.get('devices', ()))}",
        "versions": json.dumps({"python": record.get("python"), **record.get("versions", {})}),
        "command": json.dumps(record.get("command")),
    }
    return row | dict(point)  # a field that is also a fact is the field here


def read_results(out: str | Path) -> list[Row]:
    """The rows of a sweep's results.csv; none if there is no such file."""
    return _table(expanded(out) / RESULTS)[1]


def _table(file: Path) -> tuple[list[str], list[Row]]:
    """The columns and the rows of a table, both empty if there is none; a UserError names a damaged line."""
    if not os.path.lexists(file):
        return [], []
    data, rows = read_file(file, within=file.parent), list[Row]()
    try:
        lines = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        columns = next(lines)
        for cells in lines:
            row = dict(zip(columns, cells, strict=True))
            if not all(math.isfinite(float(row[name])) for name in (*SCORES, "seconds") if row.get(name)):
                raise ValueError("a score is not finite")
            rows.append(row)
    except (ValueError, StopIteration, csv.Error) as error:
        reason = f"{one_line(error)}; restore it, or remove it to train the sweep again"
        raise UserError(f"{file} is damaged after row {len(rows)}: {reason}") from None
    return columns, rows


class Results:
    """The table of a sweep, written whole each time, so that no end of a process can cut a row."""

    def __init__(self, out: Path, fields: Sequence[str]):
        self.out, self.file = out, out / RESULTS
        self.columns = ["run", *fields, "seed", "outcome", *SCORES]
        self.columns += [*(name for name in FACTS if name not in fields), "versions", "command"]
        self.fields = list(fields)

    def claim(self, config: ConfigDict) -> None:
        """Makes the folder; a UserError if it holds another sweep than this, or cannot be written."""
        columns = _table(self.file)[0]
        if columns and columns != self.columns:
            there = columns[1 : columns.index("seed")] if "seed" in columns else []
            problem = f"{self.file} belongs to a sweep that sets {', '.join(there) or 'other columns'}"
            raise UserError(f"{problem}; set the same fields, or choose another --out")
        saved = self.out / "sweep.json"
        try:
            names = {each.name for each in self.out.iterdir()} if self.out.is_dir() else set[str]()
            others = any(name[0] != "." and name != "runs" for name in names)  # a kill may leave `runs` alone
            if others and not names & {saved.name, RESULTS}:
                given = f"--out={self.out} is neither empty nor the folder of a sweep"
                raise UserError(f"{given}; choose another")
            (self.out / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out={self.out} cannot be written: {error.strerror}") from None
        with self._locked():
            if not saved.exists():
                atomic_write(saved, config_lib.to_json(config))
        values = read_json(saved, within=self.out)
        with naming(saved):
            before = config_lib.from_dict(values)
        kept = {f"config.{field}" for field in (*self.fields, "seed")}
        changed = [d for d in config_lib.differing(before, config) if d.partition(":")[0] not in kept]
        if changed:
            problem = f"{self.out} contains a sweep of another config ({'; '.join(changed)})"
            raise UserError(f"{problem}; choose another --out")

    def append(self, row: Mapping[str, object]) -> None:
        """Adds a row, unless the run has one already."""
        with self._locked():
            rows = read_results(self.out)
            if any(old["run"] == row["run"] for old in rows):
                return
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*rows, row])
            atomic_write(self.file, text.getvalue())

    def _locked(self) -> IO[str]:
        """The folder, held by this process alone until the file that is returned is closed."""
        file = open_to_append(self.out / "runs" / ".lock")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file


def points_of(rows: Sequence[Row], fields: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """The rows by point, the best on validation first."""
    means, points = validation_means(rows, fields), dict[tuple[str, ...], list[Row]]()
    for row in rows:
        points.setdefault(tuple(row[field] for field in fields), []).append(row)
    return dict(sorted(points.items(), key=lambda item: -means.get(item[0], -1)))


def validation_means(rows: Sequence[Row], fields: Sequence[str]) -> dict[tuple[str, ...], float]:
    """Mean validation accuracy by point, of those whose runs all ended well."""
    accuracies: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        accuracies.setdefault(tuple(row[field] for field in fields), []).append(row["validation_accuracy"])
    return {point: statistics.mean(map(float, each)) for point, each in accuracies.items() if all(each)}


def spread(values: Sequence[str], scale: float = 100, digits: int = 2) -> str:
    """'92.02 ± 0.03' of numbers as text, the sample's standard deviation; '' of none."""
    numbers = [scale * float(value) for value in values if value]
    if not numbers:
        return ""
    finite = all(map(math.isfinite, numbers))  # `stdev` takes no others
    apart = statistics.stdev(numbers) if finite and len(numbers) > 1 else math.nan
    deviation = f" ± {apart:.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{deviation}"
