"""The table of a sweep, results.csv: a row a finished run, and what is computed from the rows."""

import csv
import fcntl
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.files import atomic_write
from cnnjax.errors import UserError
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
    metrics, machine = run.metrics(), record["machine"]
    last = metrics[-1] if outcome == "finished" else {}
    scores = {
        **{name: last.get(name) for name in SCORES[:3]},
        **{name: test.get(name.removeprefix("test_")) for name in SCORES[3:]},
        "test_macro_f1": test.get("macro", {}).get("f1"),
    }
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
        **{name: record[name] for name in ("cpu_kernels", "commit", "started")},
        "machine": f"{machine['processor']}, {machine['cores']} cores, {', '.join(record['devices'])}",
        "versions": json.dumps({"python": record["python"], **record["versions"]}),
        "command": json.dumps(record["command"]),
    }


def read_results(out: str | Path) -> list[Row]:
    """The rows of a sweep's results.csv; none if there is no such file."""
    if not (file := Path(out) / RESULTS).exists():
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
        """Makes the folder; a UserError if it holds another sweep than this, or cannot be written."""
        if self.file.exists() and self._head() != self.columns:
            there = [name for name in self._head() if name in config_lib.FIELDS and name != "seed"]
            problem = f"{self.file} is of a sweep that sets {', '.join(there) or 'other columns'}"
            raise UserError(f"{problem}; set the same fields, or choose another --out")
        try:
            (self.out / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out={self.out} cannot be written: {error.strerror}") from None
        saved = self.out / "sweep.json"
        with self._locked():
            if not saved.exists():
                atomic_write(saved, config_lib.to_json(config))
        try:
            before = config_lib.from_json(saved.read_text())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{saved} cannot be read: {error}") from None
        kept = {f"config.{field}" for field in (*self.fields, "seed")}
        changed = [d for d in config_lib.differing(before, config) if d.partition(":")[0] not in kept]
        if changed:
            problem = f"{self.out} holds a sweep of another config ({'; '.join(changed)})"
            raise UserError(f"{problem}; choose another --out")

    def _head(self) -> list[str]:
        with open(self.file, newline="") as file:
            return next(csv.reader(file), [])

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

    def _locked(self) -> TextIO:
        """The folder, held by this process alone until the file that is returned is closed."""
        file = open(self.out / "runs" / ".lock", "w")  # noqa: SIM115, closed by the caller's `with`
        fcntl.flock(file, fcntl.LOCK_EX)
        return file


def best(rows: Sequence[Row], fields: Sequence[str]) -> dict[str, str] | None:
    """The fields of the point with the highest mean accuracy on validation; None if no run has one."""
    points = [(mean, point) for point, mean in validation_means(rows, fields).items()]
    return dict(zip(fields, max(points)[1], strict=True)) if points else None


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
    deviation = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{deviation}"
