"""Four ways to see 5x5 pixels in an Inception cell, on CIFAR-10.

See `experiments/studies.py` for the flags. The nets differ in nothing but the branch with the largest kernel.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.profiling.summary import summarize
from cnnjax.runs.results import Row, read_results
from cnnjax.runs.sweep import Board, sweep
from experiments import pages, studies  # noqa: F401

CELLS = {
    "5x5": "inception_cifar_5x5",
    "two 3x3, ReLU between": "inception_cifar_3x3",
    "two 3x3, linear between": "inception_cifar_3x3_linear",
    "1x5, then 5x1": "inception_cifar_1xn",
}
SEEDS = 3
SIZE = "(widths=(8, 16, 32), stage_size=1)"


def spec(cell: str, full: bool = False) -> str:
    return CELLS[cell] if full else CELLS[cell] + SIZE


def make_config(full: bool) -> config_lib.ConfigDict:
    """SGD with Nesterov momentum at one rate for all; the mirror."""
    config = studies.cifar10()
    config.total_epochs = 60.0 if full else 5.0
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize" if full else "mirror|normalize"
    config.optimizer.name = "nesterov(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 0.5
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """Every cell with every seed."""
    sweep(config, {"model": [spec(cell, full=out != HERE) for cell in CELLS]}, out, seeds=SEEDS, board=board)


def read_rows() -> list[Row]:
    return read_results(HERE)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By cell its runs."""
    return studies.by_field(rows, "model", {cell: spec(cell) for cell in CELLS})


def table(rows: list[Row]) -> str:
    columns = ("parameters", "MMACs", "validation %", "test %", "seconds a run")
    return studies.score_table(HERE, "cell", groups(rows), columns, {"MMACs": macs})


def macs(cell: str, rows: Sequence[Row]) -> str:
    return f"{summarize(spec(cell), (16, 16, 3)).macs / 1e6:.1f}"


def figure(rows: list[Row]) -> Figure:
    return studies.curve_figure(HERE, groups(rows), "validation_accuracy", "validation accuracy")


def claim(rows: list[Row]) -> studies.Claim:
    found = {cell: 100 * studies.mean(m, "test_accuracy") for cell, m in groups(rows).items()}
    gain = found["two 3x3, ReLU between"] - found["two 3x3, linear between"]
    return studies.Claim(
        "5x5 = two 3x3 with 18 against 25 weights; ReLU between them beats linear",
        "ImageNet top-1: 77.2 % with ReLU, 76.2 % linear",
        "; ".join(f"{cell} {value:.1f} %" for cell, value in found.items()),
        f"ReLU {'ahead' if gain > 0 else 'behind'} by {abs(gain):.1f} points",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
