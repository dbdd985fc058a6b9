"""A study: one question, the runs that answer it, and what is drawn from their rows.

    python experiments/NAME/run.py                # trains what is missing; goes on where it was stopped
    python experiments/NAME/run.py --tables       # only rewrites table and figure from the CSVs
    python experiments/NAME/run.py --data=NAME    # another copy of the data set, as --config.data.name
    python experiments/NAME/run.py --size=paper   # the paper's epochs
    python experiments/NAME/run.py --size=hour    # cut down to an hour here; minute: two steps a run

Its `run.py` makes a `Study` and calls `main`. The committed size trains into the study's own folder, the
others into runs/studies/. Beside results.csv lies curves.csv, the rows of each run's metrics.jsonl, and
scores.csv, what the study itself measures of each run.
"""

import argparse
import dataclasses
import functools
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.cli import terminal
from cnnjax.cli.boards import Lines
from cnnjax.data.files import atomic_write, read_json, replacing
from cnnjax.errors import UserError, one_line
from cnnjax.runs import compile_cache
from cnnjax.runs.results import Row, read_results
from cnnjax.runs.signals import Interrupted, end_at_once
from cnnjax.runs.sweep import Board, Values, sweep
from experiments import curves, pages, sample, speeds
from experiments.tables import COPIES

ROOT = Path(__file__).parents[1]
matplotlib.rcParams["svg.hashsalt"] = "cnnjax"  # the same figure is the same file
RATE, EPOCHS = "optimizer.learning_rate", "total_epochs"

BANDS = "Lines are means over seeds; a shaded band reaches from the lowest seed to the highest."
DOTS = "A dot is a run, a line a mean over seeds."
SIZES = ("ours", "paper", "hour", "minute")


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of a study."""

    label: str  # its row in the table
    values: Mapping[str, config_lib.Value]  # fields of the config, the same ones for all runs of a study
    epochs: float
    seed: int = 0
    later: bool = False  # only after what all studies need at the least

    def fields(self) -> dict[str, config_lib.Value]:
        """All that is set."""
        return {**self.values, EPOCHS: float(self.epochs)}

    def is_row(self, row: Row) -> bool:
        """Whether a row of results.csv is this run's."""
        return int(row["seed"]) == self.seed and all(row[k] == str(v) for k, v in self.fields().items())


@dataclasses.dataclass(frozen=True)
class Claim:
    """A line of the summary: the claim, the paper's number, ours, and whether it holds at which size."""

    claim: str
    paper: str
    ours: str
    verdict: str


@dataclasses.dataclass(frozen=True)
class Study:
    """See above; `out` is a folder with its rows, the study's own or that of another size."""

    here: Path
    config: Callable[[], config_lib.ConfigDict]
    plan: Callable[[Sequence[Row]], list[Planned]]  # the runs wanted, in order, as far as rows tell
    table: Callable[["Study", Path], str]
    figure: Callable[["Study", Path], Figure]
    claim: Callable[["Study", Path], Claim]
    paper_epochs: float | Callable[[Planned], float]  # of the paper's schedule, whose shape all sizes share
    size: str = "ours"  # one of `SIZES`
    images: int = 50_000  # of the train split, with those held out
    caption: str = BANDS  # of the figure
    measure: Callable[[Path], Mapping[str, float]] | None = None  # of a run folder, as its run ends

    @property
    def name(self) -> str:
        """'degradation', or 'pooling_types/cifar10' of a study on a second data set."""
        return str(self.here.relative_to(ROOT / "experiments"))

    @property
    def home(self) -> Path:
        """The folder of its run.py and README.md."""
        return ROOT / "experiments" / self.name.partition("/")[0]

    @property
    def side(self) -> int:
        """Of its images, in pixels."""
        return int(speeds.net(self.config())[-1])

    def rows(self, out: Path | None = None) -> list[Row]:
        """The rows so far, with those of scores.csv where the study measures something."""
        rows = read_results(out or self.here)
        return curves.with_scores(rows, out or self.here) if self.measure else rows

    def planned(self, out: Path | None = None, size: str = "ours") -> list[Planned]:
        """The runs of a size; of equal ones the first."""
        found, first = list[Planned](), dict[str, int]()
        for run in self.plan(read_results(out or self.here)):
            if size == "paper":
                paper = self.paper_epochs
                run = dataclasses.replace(run, epochs=paper(run) if callable(paper) else paper)
            if size == "minute":  # of few images, and all the same ones
                values = {k: v for k, v in run.values.items() if not k.startswith("data.")}
                later = run.later or run.seed > first.setdefault(run.label, run.seed)
                run = dataclasses.replace(run, values=values, later=later)
            if not any((run.fields(), run.seed) == (other.fields(), other.seed) for other in found):
                found.append(run)
        return found

    def runs(self, out: Path | None = None) -> list[Planned]:
        """The planned runs as long as they are at this size, which their labels say."""
        factor, found = self.factor(), list[Planned]()
        for run in self.planned(out, self.size):
            if self.size != "ours":
                run = dataclasses.replace(run, epochs=float(f"{run.epochs * factor:.3g}"))
                label = re.sub(r", [\d,]+ (epochs|steps)$", f", {run.epochs:g} epochs", run.label)
                run = dataclasses.replace(run, label=label)
            found.append(run)
        return found

    def waiting(self, out: Path | None = None) -> list[Planned]:
        """The runs that lack a row, or that are still to be measured."""
        due = curves.unmeasured(out or self.here) if self.measure else []
        rows = [row for row in read_results(out or self.here) if row["run"] not in due]
        return [run for run in self.runs(out) if not any(map(run.is_row, rows))]

    def groups(self, out: Path | None = None) -> dict[str, list[Row]]:
        """By label the rows of its runs, in the order of the plan; labels without runs are left out."""
        found, rows = dict[str, list[Row]](), self.rows(out)
        for run in self.runs(out):
            found.setdefault(run.label, []).extend(filter(run.is_row, rows))
        return {label: members for label, members in found.items() if members}

    def text(self, out: Path) -> str:
        """The table, the figure and the verdict."""
        found = self.claim(self, out)
        figure = (out / "figure.svg").relative_to(self.home if out == self.here else out)
        verdict = f"**Verdict.** {found.verdict[0].upper()}{found.verdict[1:]}. Measured: {found.ours}."
        return f"{self.table(self, out)}\n\n![{found.claim}]({figure})\n\n{self.caption}\n\n{verdict}"

    def train_next(self, out: Path, data: str, *, later: bool = True) -> bool:
        """Trains the first run that is missing; False if none is."""
        if self.measure:
            curves.add_scores(out, self.measure)  # of a run that was killed before it was measured
        config = self.config()
        config.data.name = data
        config.optimizer.warmup_epochs *= self.factor()
        if self.size == "minute":
            config.data.num_validation, config.batch_size, config.eval_batch_size = 64, 32, 64
        for run in self.waiting(out):
            if run.later and not later:
                continue
            config.seed = run.seed
            if not (out / "sweep.json").exists():  # other files may be there: the study's own
                atomic_write(out / "sweep.json", config_lib.to_json(config))
            one: Values = {field: [value] for field, value in run.fields().items()}
            try:
                sweep(config, one, out, board=Board() if self.size == "minute" else Lines())
                if self.measure:
                    curves.add_scores(out, self.measure)
            finally:
                curves.write(out)
            return True
        return False

    def net(self, run: Planned) -> tuple[str, str, str, str]:
        """What the images a second of a run depend on."""
        return speeds.net(config_lib.assign(self.config(), dict(run.fields())))

    def seconds(self, run: Planned) -> float:
        """How long a run takes on this machine, by its net's rate, which is measured if it is unknown."""
        held_out = run.values.get("data.num_validation", self.config().data.num_validation)
        images = self.images - int(held_out)
        return run.epochs * images / speeds.rate(self.net(run))

    def factor(self) -> float:
        """What epochs are multiplied by so that all runs end within the size."""
        if self.size == "hour":
            return min(1.0, 3600 / sum(map(self.seconds, self.planned())))
        return 0.2 / max(run.epochs for run in self.planned()) if self.size == "minute" else 1.0


def _is_of(run: Planned, row: Row) -> bool:
    """Whether a row is a planned run's but for its length and images, which are others at another size."""
    values = {field: value for field, value in run.values.items() if field in row}
    return int(row["seed"]) == run.seed and all(row[field] == str(value) for field, value in values.items())


def seeds(
    runs: Mapping[str, Mapping[str, config_lib.Value]], epochs: float, count: int, first: int = 0
) -> list[Planned]:
    """Every label with every seed, the first seed of all labels first."""
    numbers = range(first, first + count)
    return [Planned(label, values, epochs, seed) for seed in numbers for label, values in runs.items()]


def later(runs: Sequence[Planned]) -> list[Planned]:
    """The same, for when all that is needed at the least has run."""
    return [dataclasses.replace(run, later=True) for run in runs]


def tuned(
    rows: Sequence[Row],
    runs: Mapping[str, Mapping[str, config_lib.Value]],
    rates: Sequence[float],
    short: float,
    epochs: Mapping[str, float],
    count: int,
) -> list[Planned]:
    """Each label at each learning rate for `short` epochs with seed 0; then other seeds at its best rate.

    `epochs` has those of each label. The best is best on validation. The short runs are labelled
    "LABEL, rate RATE", in no table.
    """
    tries, found = list[Planned](), list[Planned]()
    for label, values in runs.items():
        of = [Planned(f"{label}, rate {rate:g}", {**values, RATE: rate}, short) for rate in rates]
        scores = {run.values[RATE]: row for run in of for row in rows if _is_of(run, row)}
        tries += of
        if len(scores) == len(rates):
            best = max(scores, key=lambda rate: float(scores[rate]["validation_accuracy"] or 0))
            found += [Planned(label, {**values, RATE: best}, epochs[label], 1 + i) for i in range(count)]
    return tries + sorted(found, key=lambda run: run.seed)


def cifar10() -> config_lib.ConfigDict:
    """What the studies on CIFAR-10 start from: 45,000 images of 32x32, 5,000 held out, no augmentation."""
    config = config_lib.default()
    config.data.name = "cifar10"
    config.data.num_validation = 5000
    config.eval_batch_size = 1000
    config.log_every_steps = 352  # an epoch of 128: the rows of metrics.jsonl are means over epochs
    return config


def data_of(study: Study, out: Path, given: str | None) -> str:
    """The data set: as given, that of the rows so far, the copies if they are there, or the study's own."""
    own = str(study.config().data.name)
    if (out / "sweep.json").exists():
        name = str(config_lib.from_dict(read_json(out / "sweep.json")).data.name)
        if given not in (None, name):
            there = f"--data={given}: {out} holds runs on {name}"
            raise UserError(f"{there}; leave --data out, or choose another --size and --out")
        return name
    if given:
        return given
    return f"records:{COPIES}" if own == "cifar10" and (ROOT / COPIES).is_dir() else own


def main(*own: Study) -> None:
    """Trains what is missing of a folder's studies, then writes curves.csv, tables and figures."""
    parser = argparse.ArgumentParser(prog=f"python experiments/{own[0].name}/run.py")
    parser.add_argument("--tables", action="store_true", help="only rewrite the table and the figure")
    parser.add_argument("--size", choices=SIZES, default="ours", help="how long the runs are")
    parser.add_argument("--data", help="another copy of the data set, as --config.data.name")
    parser.add_argument("--out", type=Path, help="folder of the runs of another size than ours")
    parser.add_argument("--next", metavar="STUDY", help="train one run of it, the next")
    parser.add_argument("--later", action="store_true", help="also what runs only while hours last")
    given = parser.parse_args()
    terminal.guard()  # whatever it can show
    end_at_once()  # between runs, which catch signals themselves
    os.chdir(ROOT)
    compile_cache.enable()
    for study in own:
        if given.next in (None, study.name):
            start(functools.partial(run, study, given))


def run(study: Study, given: argparse.Namespace) -> None:
    """`main` of one study, with its flags."""
    study = dataclasses.replace(study, size=given.size)
    elsewhere = given.out or ROOT / "runs" / "studies" / given.size
    out = study.here if given.size == "ours" else elsewhere / study.name
    if out == study.here:
        pages.filled(study.home / "README.md", study.name, "")  # a mistake, before hours of training
    small = given.size == "minute" and not given.data
    data = "" if small else data_of(study, out, given.data)
    if not given.tables:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if out == study.here:
                raise
            raise UserError(
                f"--out={elsewhere} cannot be written: {error.strerror}; choose another"
            ) from None
        data = data or sample.written(elsewhere, study.side)
        while study.train_next(out, data, later=given.later) and not given.next:
            pass
    draw(study, out)


def draw(study: Study, out: Path) -> None:
    """The table and the figure: in the study's README for its own rows, else beside the rows."""
    if not study.rows(out):
        return
    if out == study.here:
        pages.write((study.home / "README.md",), study.name, study.text(out))
    else:
        parts = [f"# Here\n\n{study.text(out)}"]
        published = dataclasses.replace(study, size="ours")
        parts += [f"# As published\n\n{published.text(study.here)}"] if study.rows() else []
        atomic_write(out / "table.md", text := "\n\n".join(parts) + "\n")
        print(text)
    with replacing(out / "figure.svg") as part:
        study.figure(study, out).savefig(part, metadata={"Date": None})


def start(work: Callable[[], None]) -> None:
    """Does the work of a study; a mistake, a file or a signal ends it with one line and an exit code."""
    try:
        work()
        return
    except UserError as error:
        code, line = 2, str(error)
    except OSError as error:
        reason = error.strerror or one_line(error)
        code, line = 1, f"{error.filename or 'a file'} cannot be written or read: {reason}"
    except Interrupted as error:
        code, line = 128 + error.signum, str(error)
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    print(f"{sys.argv[0]}: {line}", file=sys.stderr)
    raise SystemExit(code)


def every(names: Sequence[str]) -> Iterator[Study]:
    """The studies in the folders of these names."""
    for name in names:
        found = runpy.run_path(str(ROOT / "experiments" / name / "run.py"))
        yield from (value for value in found.values() if isinstance(value, Study))
