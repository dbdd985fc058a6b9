"""Epochs to 25 % training error with ReLU and with tanh, in a four-layer net on CIFAR-10.

See `experiments/studies.py` for the flags. Here the images are prepared at 16x16 pixels (`cnnjax data prepare
--short_side=16`). The training error of an epoch is the mean over its steps, as they
ran; the learning rate of each activation is the best on validation with the first seed.
"""

import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row, read_results, spread
from cnnjax.runs.sweep import Board
from experiments import pages, studies  # noqa: F401

ACTIVATIONS = ("relu", "tanh")
RATES = (0.01, 0.03)
SEEDS = 3
GOAL = 0.25
STDS = "response_norm='none', stds=(0.1, 0.05, 0.05, 0.03)"


def spec(activation: str) -> str:
    return f"alexnet_cifar(activation='{activation}', {STDS})"


def make_config(full: bool) -> config_lib.ConfigDict:
    """SGD with momentum at a constant rate, no regularization of any kind, as in the paper's figure 1."""
    config = studies.cifar10()
    config.total_epochs = 40.0 if full else 24.0
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_epochs = 0.0
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """All rates with the first seed, then all seeds at the best rate of each activation."""
    studies.tuned(config, "model", [spec(name) for name in ACTIVATIONS], RATES, SEEDS, out, board)


def read_rows() -> list[Row]:
    return read_results(HERE)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By activation its runs at its best learning rate."""
    found = studies.by_field(rows, "model", {name: spec(name) for name in ACTIVATIONS})
    return {name: studies.at_best_rate(members) for name, members in found.items()}


def epochs_to_goal(curve: studies.Curve) -> float | None:
    """Epochs until the training error fell to 25 %, between the two that it lies between; None if never."""
    before = (0.0, 0.9)
    for point in (point for point in curve if "accuracy" in point):
        now = (point["epoch"], 1 - point["accuracy"])
        if now[1] <= GOAL:
            return before[0] + (now[0] - before[0]) * (before[1] - GOAL) / (before[1] - now[1])
        before = now
    return None


def times(rows: list[Row]) -> dict[str, list[float | None]]:
    """By activation the epochs to the goal of each seed."""
    curves = studies.read_curves(HERE)
    return {
        name: [epochs_to_goal(curves[row["run"]]) for row in members]
        for name, members in groups(rows).items()
    }


def words(rows: list[Row], name: str) -> str:
    """'5.1 ± 0.2', or 'more than 12' where a seed did not get there."""
    found = times(rows)[name]
    if None in found:
        return f"more than {float(rows[0]['epochs']):g}"
    return spread([str(value) for value in found], 1, 1)


def ratio(rows: list[Row]) -> str:
    """How many times sooner ReLU is there, seed by seed; a lower bound where tanh was not there at all."""
    relu, tanh = times(rows).values()
    if None in relu:
        return "unknown"
    if None in tanh:
        return f"more than {float(rows[0]['epochs']) / statistics.mean(relu):.1f}"
    return spread([str(b / a) for a, b in zip(relu, tanh, strict=True)], 1, 1)


def table(rows: list[Row]) -> str:
    goal = "epochs to 25 % training error"
    columns = ("learning rate", goal, "validation %", "test %")
    scores = studies.score_table(
        HERE, "activation", groups(rows), columns, {goal: lambda name, _: words(rows, name)}
    )
    return f"ReLU is there {ratio(rows)} times sooner; in the paper 6 times.\n\n{scores}"


def figure(rows: list[Row]) -> Figure:
    """Training error by epoch, as the paper's figure 1."""
    drawn = Figure(figsize=(6, 3.6), layout="constrained")
    axes = drawn.add_subplot(ylabel="training accuracy of the epoch")
    studies.draw_curves(axes, groups(rows), studies.read_curves(HERE), "accuracy")
    axes.axhline(1 - GOAL, color="black", linestyle=":", label="25 % training error")
    axes.legend()
    return drawn


def claim(rows: list[Row]) -> studies.Claim:
    relu, tanh = times(rows).values()
    faster = None not in relu and (None in tanh or statistics.mean(tanh) > 1.5 * statistics.mean(relu))
    return studies.Claim(
        "ReLU reaches 25 % training error on CIFAR-10 about 6 times sooner than tanh",
        "6 times",
        f"ReLU {words(rows, 'relu')} epochs, tanh {words(rows, 'tanh')}: {ratio(rows)} times",
        "ReLU is sooner" if faster else "does not hold here",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
