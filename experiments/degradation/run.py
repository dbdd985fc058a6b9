"""Plain and residual nets of 20, 32 and 56 layers on CIFAR-10: do deeper ones train worse?

See `experiments/studies.py` for the flags. Here the images are prepared at 16x16 pixels (`cnnjax data prepare
--short_side=16`) and the stages half as wide; `--full` is the paper's section 4.2.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row, read_results, spread
from cnnjax.runs.sweep import Board, sweep
from experiments import pages, studies  # noqa: F401

KINDS = ("plain", "resnet")
DEPTHS = (20, 32, 56)
SEEDS = 3


def spec(kind: str, depth: int, full: bool = False) -> str:
    return f"{kind}{depth}_cifar" + ("" if full else "(widths=(8, 16, 32))")


def make_config(full: bool) -> config_lib.ConfigDict:
    """SGD with momentum at 0.1, divided by 10 at 50 and 75 %."""
    config = studies.cifar10()
    config.total_epochs = 164.0 if full else 4.0
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize" if full else "mirror|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "step(boundaries=(0.5, 0.75), factor=0.1)"
    config.optimizer.weight_decay = 0.0001
    config.optimizer.warmup_epochs = 0.5
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """Every net with every seed."""
    nets = [spec(kind, depth, full=out != HERE) for kind, depth in itertools.product(KINDS, DEPTHS)]
    sweep(config, {"model": nets}, out, seeds=SEEDS, board=board)


def read_rows() -> list[Row]:
    return read_results(HERE)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By kind and depth the runs."""
    nets = itertools.product(KINDS, DEPTHS)
    return studies.by_field(rows, "model", {f"{kind} {depth}": spec(kind, depth) for kind, depth in nets})


def table(rows: list[Row]) -> str:
    columns = ("parameters", "training loss", "validation %", "test %", "seconds a run")
    return studies.score_table(HERE, "net", groups(rows), columns, {"training loss": last_loss})


def last_loss(net: str, rows: Sequence[Row]) -> str:
    """The training loss of the last epoch."""
    curves = studies.read_curves(HERE)
    found = [[p["loss"] for p in curves.get(row["run"], []) if "loss" in p] for row in rows]
    return spread([str(losses[-1]) for losses in found if losses], 1, 3)


def figure(rows: list[Row]) -> Figure:
    """Training and validation error by epoch, plain beside residual."""
    drawn = Figure(figsize=(9, 6), layout="constrained")
    curves = {
        run: [
            {**point, **{f"{c} error": 1 - point[c] for c in point if c.endswith("accuracy")}}
            for point in curve
        ]
        for run, curve in studies.read_curves(HERE).items()
    }
    words = {"accuracy": "training error of the epoch", "validation_accuracy": "validation error"}
    grid = drawn.subplots(len(words), len(KINDS), sharey=True)
    for (column, label), line in zip(words.items(), grid, strict=True):
        for kind, axes in zip(KINDS, line, strict=True):
            members = {net: runs for net, runs in groups(rows).items() if net.startswith(kind)}
            studies.draw_curves(axes, members, curves, f"{column} error")
            axes.set_ylabel(label)
            axes.legend()
    return drawn


def claim(rows: list[Row]) -> studies.Claim:
    accuracy = {net: 100 * studies.mean(m, "test_accuracy") for net, m in groups(rows).items()}
    fall = {kind: accuracy[f"{kind} {DEPTHS[0]}"] - accuracy[f"{kind} {DEPTHS[-1]}"] for kind in KINDS}
    holds = fall["plain"] > 1 and fall["resnet"] < fall["plain"] / 2
    return studies.Claim(
        "deeper plain nets train worse; residual nets do not",
        "CIFAR-10: plain nets worse from 20 to 56 layers, ResNets 91.25 to 93.03 %",
        "; ".join(f"{net}: {value:.1f} %" for net, value in accuracy.items()),
        "holds" if holds else "does not hold here",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
