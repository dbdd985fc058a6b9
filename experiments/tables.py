"""The tables of studies, and when a difference decides a claim."""

import dataclasses
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from cnnjax import config as config_lib
from cnnjax.data.files import read_json
from cnnjax.errors import counted
from cnnjax.runs.results import Row, read_results, spread
from experiments import curves, results, speeds

COPIES = "runs/cifar10_jpeg"  # where `cnnjax data prepare` puts JPEG copies of CIFAR-10
CEILING = Path(__file__).parent / "ceiling" / "results.csv"
Column = Callable[[Sequence[Row], Path], str]


def markdown(head: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def mean(rows: Sequence[Row], column: str) -> float:
    """The mean of a column over runs that have it; nan if none has."""
    return statistics.mean([float(row[column]) for row in rows if row.get(column)] or [math.nan])


def percent(column: str) -> Column:
    """Mean and spread of a share, in per cent."""
    return lambda rows, out: spread([row.get(column, "") for row in rows])


def training_error(rows: Sequence[Row], out: Path) -> str:
    """Of the last epoch, over its steps as they ran, in per cent: whether the schedule was long enough."""
    return spread([str(1 - value) for value in curves.last(out, rows, "accuracy")])


def minutes(rows: Sequence[Row], out: Path) -> str:
    """Of a run: steps x batch / images a second of the net while nothing else ran on that machine."""
    found = [quiet_seconds(row, out) for row in rows]
    value = statistics.mean([each / 60 for each in found if not math.isnan(each)] or [math.nan])
    return "not measured" if math.isnan(value) else f"{value:.{1 if value < 10 else 0}f}"


def quiet_seconds(row: Row, out: Path) -> float:
    """What a run would take on a quiet machine; nan if the net's rate there is not in speeds.csv."""
    fields = itertools.takewhile(lambda name: name != "seed", list(row)[1:])  # after the run's name
    values = {name: config_lib.parse_value(name, row[name]) for name in fields}
    config = config_lib.assign(config_lib.from_dict(read_json(out / "sweep.json")), values)
    rate = speeds.published(speeds.net(config), on=processor(row))
    images = 60_000 if "fashion" in config.data.name else 50_000
    return float(row["epochs"]) * (images - config.data.num_validation) / rate


def processor(row: Row) -> str:
    """Of a run, without its cores and devices: 'AMD EPYC (family 25, model 17), AVX-512 with bfloat16'."""
    return re.sub(r", \d+ cores?\b.*", "", row["machine"])


COLUMNS: dict[str, Column] = {
    "parameters": lambda rows, out: f"{int(rows[0]['params']):,}",
    "epochs": lambda rows, out: ", ".join(dict.fromkeys(f"{float(row['epochs']):g}" for row in rows)),
    "learning rate": lambda rows, out: rows[0]["optimizer.learning_rate"],
    "training error %": training_error,
    "validation %": percent("validation_accuracy"),
    "test %": percent("test_accuracy"),
    "minutes per run": minutes,
}


def score_table(
    out: Path,
    what: str,
    groups: Mapping[str, Sequence[Row]],
    columns: Sequence[str] = tuple(name for name in COLUMNS if name != "learning rate"),
    more: Mapping[str, Column] | None = None,
) -> str:
    """A row a group, as Markdown, with the ceiling of the data and the footer.

    Args:
      what: the head of the first column, that of the labels.
      columns: keys of `COLUMNS`, or of `more`, in their order.
      more: columns of the study's own, from a label's runs and the folder.
    """
    cells_of = {**COLUMNS, **(more or {})}
    cells = [
        (label, *(cells_of[column](members, out) for column in columns), results.seeds(members))
        for label, members in groups.items()
    ]
    return f"{markdown((what, *columns, 'seeds'), cells)}\n\n{footer(out, columns)}"


def ceiling() -> str:
    """What the copies' own quality allows: the same ResNet-20 by PyTorch with the public recipe."""
    rows = results.read(CEILING)
    if not rows:
        return "The ceiling of these copies is not measured yet."
    found = "; ".join(f"{row['net']} {100 * float(row['test_accuracy']):.1f} %" for row in rows)
    return f"Ceiling of these copies (`experiments/ceiling`): {found}."


NOTES = {
    "training error %": "Training error: over the steps of the last epoch. ",
    "minutes per run": "Minutes: steps x batch / images per second of an idle machine (`speeds.csv`). ",
}


def footer(out: Path, columns: Sequence[str]) -> str:
    """What the runs have in common: data, machine, versions and the command."""
    rows = sorted(read_results(out), key=lambda row: row["started"])
    config = config_lib.from_dict(read_json(out / "sweep.json"))
    name = data_name(out)
    data = f"{name}. {ceiling()}" if config.data.name == f"records:{COPIES}" else f"{name}."
    machines = "; ".join(dict.fromkeys(map(processor, rows)))
    folder = out.name if (Path(__file__).parent / out.name).is_dir() else out.parent.name
    versions = ", ".join(f"{library} {each(rows, 'versions', library)}" for library in ("jax", "flax"))
    notes = "".join(words for column, words in NOTES.items() if column in columns)
    return (
        f"Mean ± standard deviation over seeds; {counted(len(rows), 'run')}. {notes}Data: {data} {machines}; "
        f"CPU kernels: {each(rows, 'cpu_kernels')}, {config.dtype}, {versions}. Written by "
        f"`python experiments/{folder}/run.py` from `results.csv` and `curves.csv`."
    )


def data_name(out: Path) -> str:
    """Of the data set that the runs in a folder had, in words."""
    name = str(config_lib.from_dict(read_json(out / "sweep.json")).data.name)
    return "JPEG copies of CIFAR-10 (quality 75)" if name == f"records:{COPIES}" else name


def each(rows: Sequence[Row], column: str, key: str = "") -> str:
    """The values of a column, or of a key of the object in it, each once."""
    values = [json.loads(row[column])[key] if key else row[column] for row in rows]
    return " and ".join(dict.fromkeys(map(str, values)))


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two means, with its standard error and Welch's degrees of freedom.

    Decided where zero is outside the 95 % interval of Student's t, and the difference larger than twice its
    error; `among` is how many comparisons share the 5 % (Bonferroni).
    """

    value: float
    error: float
    freedom: float = math.inf
    among: int = 1

    @property
    def decided(self) -> bool:
        width = max(2.0, float(stats.t.ppf(1 - 0.025 / self.among, self.freedom)))
        return abs(self.value) > width * self.error

    def points(self) -> str:
        """'+0.42 ± 0.11 points'; 'unknown' without runs."""
        if math.isnan(self.value):
            return "unknown"
        error = "" if math.isinf(self.error) else f" ± {100 * self.error:.2f}"
        return f"{100 * self.value:+.2f}{error} points"


def difference(a: Sequence[float], b: Sequence[float], among: int = 1) -> Difference:
    """The mean of `a` less that of `b`; of a single run no error is known, so nothing is decided."""
    if min(len(a), len(b)) < 2:
        value = statistics.mean(a) - statistics.mean(b) if a and b else math.nan
        return Difference(value, math.inf)
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (a, b)]
    square = sum(part for part, _ in parts)
    freedom = square**2 / sum(part**2 / count for part, count in parts) if square else math.inf
    return Difference(statistics.mean(a) - statistics.mean(b), math.sqrt(square), freedom, among)


def scores(rows: Sequence[Row], column: str = "test_accuracy") -> list[float]:
    """A column's values, of the runs that have one."""
    return [float(row[column]) for row in rows if row.get(column)]


def size(*groups: Sequence[Row], pixels: int) -> str:
    """'32x32, 20 epochs, 3 seeds': what a verdict is said of, on square images; 'no run' before the first."""
    rows = [row for group in groups for row in group]
    if not rows:
        return "no run"
    epochs = sorted({float(row["epochs"]) for row in rows})
    between = f"{epochs[0]:g}" if len(epochs) == 1 else f"{epochs[0]:g} to {epochs[-1]:g}"
    count = min(len(results.finished(members)) for members in groups)
    return f"{pixels}x{pixels}, {between} epochs, {counted(count, 'seed')}"


def verdict(found: Difference, words: str, above: str = "holds", below: str = "the reverse") -> str:
    """'holds (SIZE)' if the difference is above 0, 'the reverse (SIZE)' if below, else not decided."""
    if math.isnan(found.value):
        return "runs are missing"
    if not found.decided:
        return f"not decided at this size ({words})"
    return f"{above if found.value > 0 else below} ({words})"
