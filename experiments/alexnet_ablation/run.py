"""Overlapping pooling and response normalization in AlexNet's small sister on CIFAR-10.

See `experiments/studies.py` for the flags. The four nets differ in nothing else; each is judged at the
learning rate that is best for it on validation with the first seed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row, read_results
from cnnjax.runs.sweep import Board
from experiments import pages, studies  # noqa: F401

NETS = {
    "neither": "pool_window=2, response_norm='none'",
    "overlapping pooling": "response_norm='none'",
    "LRN": "pool_window=2",
    "both": "",
}
RATES = (0.01, 0.03, 0.1)
SEEDS = 3
WIDTHS = "widths=(16, 16, 32), stds=(0.1, 0.05, 0.05, 0.03)"


def spec(net: str, full: bool = False) -> str:
    fields = [field for field in ("" if full else WIDTHS, NETS[net]) if field]
    return f"alexnet_cifar({', '.join(fields)})" if fields else "alexnet_cifar"


def make_config(full: bool) -> config_lib.ConfigDict:
    """SGD with momentum; as in the paper no augmentation but the mirror, dropout none."""
    config = studies.cifar10()
    config.total_epochs = 120.0 if full else 6.0
    config.augment.train = "mirror|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 0.5
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """All rates with the first seed, then all seeds at the best rate of each net."""
    nets = [spec(net, full=out != HERE) for net in NETS]
    studies.tuned(config, "model", nets, RATES, SEEDS, out, board)


def read_rows() -> list[Row]:
    return read_results(HERE)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By net its runs at its best learning rate."""
    found = studies.by_field(rows, "model", {net: spec(net) for net in NETS})
    return {net: studies.at_best_rate(members) for net, members in found.items()}


def table(rows: list[Row]) -> str:
    columns = ("learning rate", "validation %", "test %", "test error %")
    return studies.score_table(HERE, "net", groups(rows), columns, {"test error %": error})


def error(net: str, rows: Sequence[Row]) -> str:
    return f"{100 - 100 * studies.mean(rows, 'test_accuracy'):.1f}"


def figure(rows: list[Row]) -> Figure:
    return studies.curve_figure(HERE, groups(rows), "validation_accuracy", "validation accuracy")


def claim(rows: list[Row]) -> studies.Claim:
    found = {net: error(net, members) for net, members in groups(rows).items()}
    best = min(found, key=lambda net: float(found[net]))
    return studies.Claim(
        "overlapping pooling and LRN lower the error of a four-layer net on CIFAR-10",
        "LRN: 13 % to 11 %; overlapping: 0.4 points on ImageNet",
        "; ".join(f"{net} {value} %" for net, value in found.items()),
        "holds" if best == "both" else f"in part: lowest with {best}",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
