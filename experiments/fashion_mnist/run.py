"""Fashion-MNIST on two cores: SimpleCNN in about a minute, and residual nets within an hour.

See `experiments/studies.py` for the flags. The recipes are those of `configs/fashion_mnist_simple_cnn.py` and
`configs/fashion_mnist_hour.py`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs import config_files
from cnnjax.runs.results import Row, spread
from experiments import curves, results, speeds, studies, tables

CONFIGS = studies.ROOT / "configs"
SEEDS, SECONDS, PAPER = 3, 3600, 300.0
NETS = {
    "ResNet-20": "resnet20_cifar",
    "ResNet-32": "resnet32_cifar",
    "WRN-16-2": "wrn_16_4(depth=16, widen_factor=2)",
}
COLUMNS = ("parameters", "epochs", "training error %", "validation %", "test %", "minutes per run")


def make_config() -> config_lib.ConfigDict:
    config = config_files.from_file(str(CONFIGS / "fashion_mnist_simple_cnn.py"))
    config.log_every_steps = 430
    return config


def make_hour_config() -> config_lib.ConfigDict:
    config = config_files.from_file(str(CONFIGS / "fashion_mnist_hour.py"))
    config.log_every_steps = 430
    return config


def epochs(model: str) -> float:
    """That fit into an hour on the first machine in speeds.csv; the paper's of a net that is not there."""
    net = speeds.net(config_lib.assign(make_hour_config(), {"model": model}))
    return speeds.epochs(net, SECONDS, 55_000, PAPER)


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    return studies.seeds({"SimpleCNN": {"model": "simple_cnn"}}, make_config().total_epochs, SEEDS)


def plan_hour(rows: Sequence[Row]) -> list[studies.Planned]:
    """Every net once; while hours last, the best on validation with two more seeds."""
    first = [studies.Planned(net, {"model": model}, epochs(model)) for net, model in NETS.items()]
    if best := chosen(rows):
        run = next(run for run in first if run.values["model"] == best["model"])
        first += studies.later(studies.seeds({run.label: run.values}, run.epochs, SEEDS - 1, first=1))
    return first


def chosen(rows: Sequence[Row]) -> Row | None:
    """The run of the first seed that is best on validation, once all nets have one."""
    ended = [row for row in rows if row["seed"] == "0"]
    scores = {row["model"]: row for row in ended}
    if len(scores) < len(NETS):
        return None
    return max(scores.values(), key=lambda row: float(row["validation_accuracy"] or 0))


def table(study: studies.Study, out: Path) -> str:
    return tables.score_table(out, "net", study.groups(out), COLUMNS)


def figure(study: studies.Study, out: Path) -> Figure:
    return curves.figure(
        study.groups(out), out, {"accuracy": "training error", "validation_accuracy": "validation error"}
    )


def claim(study: studies.Study, out: Path) -> studies.Claim:
    rows = study.rows(out)
    return studies.Claim(
        "SimpleCNN on Fashion-MNIST, in about a minute",
        "nets of two convolutions: 87.6 to 93.4 % (the data set's table)",
        f"{spread([row['test_accuracy'] for row in rows])} % in {tables.minutes(rows, out)} minutes",
        goal(rows, 0.93),
    )


def claim_hour(study: studies.Study, out: Path) -> studies.Claim:
    rows = study.rows(out)
    best = chosen(rows)
    of = [row for row in rows if best and row["model"] == best["model"]] or rows
    return studies.Claim(
        "a larger net on Fashion-MNIST, within an hour",
        "ResNet-20 with random erasing, 300 epochs: 95.98 % (arXiv:1708.04896)",
        f"{spread([row['test_accuracy'] for row in of])} % in {tables.minutes(of, out)} minutes",
        goal(of, 0.955),
    )


def goal(rows: Sequence[Row], least: float) -> str:
    """'at least 93 % (28x28, 12 epochs, 3 seeds)', or below."""
    if not results.finished(rows):
        return f"not decided at this size ({tables.size(rows, pixels=28)})"
    reached = tables.mean(rows, "test_accuracy") >= least
    return f"{'at least' if reached else 'below'} {100 * least:g} % ({tables.size(rows, pixels=28)})"


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs=20.0, images=60_000)
HOUR = studies.Study(
    HERE / "hour", make_hour_config, plan_hour, table, figure, claim_hour, paper_epochs=PAPER, images=60_000
)

if __name__ == "__main__":
    studies.main(STUDY, HOUR)
