"""GoogLeNet's auxiliary heads: none, the later one, both, on CIFAR-10.

See `experiments/studies.py` for the flags. Here the images are prepared at 16x16 pixels (`cnnjax data prepare
--short_side=16`) and the net is an eighth as wide as GoogLeNet.
"""

import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row, read_results
from cnnjax.runs.sweep import Board, sweep
from experiments import pages, studies  # noqa: F401

HEADS = {"none": "False", "the later one": "('4d',)", "both": "True"}
SEEDS = 3


def spec(heads: str, full: bool = False) -> str:
    width = "" if full else "width=0.125, "
    return f"googlenet_cifar({width}aux_logits={HEADS[heads]})"


def make_config(full: bool) -> config_lib.ConfigDict:
    """Nesterov momentum at one rate for all; each head weighs 0.3."""
    config = studies.cifar10()
    config.total_epochs = 100.0 if full else 1.5
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize" if full else "mirror|normalize"
    config.optimizer.name = "nesterov(momentum=0.9)"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 0.5 if full else 0.25
    config.eval_every_epochs = 1.0 if full else 0.5
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """Every choice of heads with every seed."""
    sweep(config, {"model": [spec(h, full=out != HERE) for h in HEADS]}, out, seeds=SEEDS, board=board)


def read_rows() -> list[Row]:
    return read_results(HERE)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By heads the runs."""
    return studies.by_field(rows, "model", {heads: spec(heads) for heads in HEADS})


def table(rows: list[Row]) -> str:
    columns = ("parameters", "validation %", "test %", "seconds a run")
    return studies.score_table(HERE, "auxiliary heads", groups(rows), columns)


def figure(rows: list[Row]) -> Figure:
    return studies.curve_figure(HERE, groups(rows), "validation_accuracy", "validation accuracy")


def claim(rows: list[Row]) -> studies.Claim:
    accuracy = {heads: 100 * studies.mean(m, "test_accuracy") for heads, m in groups(rows).items()}
    late = accuracy["the later one"] - accuracy["none"]
    both = accuracy["both"] - accuracy["the later one"]
    apart = max(
        statistics.stdev(100 * float(row["test_accuracy"]) for row in members)
        for members in groups(rows).values()
    )
    within = ", within the spread of seeds" if max(abs(late), abs(both)) < apart else ""
    return studies.Claim(
        "auxiliary heads help a little and late; the earlier one not at all",
        "ImageNet: 0.4 % top-1 for the later head in Inception v3, nothing for the earlier",
        "; ".join(f"{heads}: {value:.1f} %" for heads, value in accuracy.items()),
        f"later head {late:+.1f} points, the earlier beside it {both:+.1f}{within}",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
