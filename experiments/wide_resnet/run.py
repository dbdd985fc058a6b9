"""Thin and deep against wide and shallow residual nets: accuracy by parameters and by training time.

See `experiments/studies.py` for the flags. Here the images are prepared at 16x16 pixels (`cnnjax data prepare
--short_side=16`); `--full` has the paper's nets and epochs.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row, read_results
from cnnjax.runs.sweep import Board, sweep
from experiments import pages, studies  # noqa: F401

SIZES = ((10, 1), (16, 1), (28, 1), (10, 2))  # depth, widening factor
FULL_SIZES = ((40, 1), (40, 2), (40, 4), (16, 4), (16, 8), (28, 10))
SEEDS = 3


def spec(depth: int, widen_factor: int) -> str:
    return f"wrn_16_4(depth={depth}, widen_factor={widen_factor})"


NETS = {f"{depth} layers, {k} times as wide": spec(depth, k) for depth, k in SIZES}


def make_config(full: bool) -> config_lib.ConfigDict:
    """The paper's recipe, Nesterov momentum at 0.1, over fewer epochs and with a cosine."""
    config = studies.cifar10()
    config.total_epochs = 200.0 if full else 2.0
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize" if full else "mirror|normalize"
    config.optimizer.name = "nesterov(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 0.5
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """Every net with every seed."""
    nets = [spec(*size) for size in (SIZES if out == HERE else FULL_SIZES)]
    sweep(config, {"model": nets}, out, seeds=SEEDS, board=board)


def read_rows() -> list[Row]:
    return read_results(HERE)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By net its runs."""
    return studies.by_field(rows, "model", NETS)


def table(rows: list[Row]) -> str:
    columns = ("parameters", "validation %", "test %", "seconds a run")
    return studies.score_table(HERE, "net", groups(rows), columns)


def figure(rows: list[Row]) -> Figure:
    """Test accuracy by parameters and by seconds of training, a dot a run."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, column in zip(drawn.subplots(1, 2, sharey=True), ("params", "seconds"), strict=True):
        for (net, members), colour in zip(groups(rows).items(), studies.COLOURS, strict=False):
            xs, ys = ([float(row[name]) for row in members] for name in (column, "test_accuracy"))
            axes.plot(xs, [100 * y for y in ys], "o", color=colour, alpha=0.7, label=net)
        axes.set(xscale="log", xlabel={"params": "parameters"}.get(column, "seconds of training"))
        axes.grid(alpha=0.3)
    drawn.axes[0].set_ylabel("test accuracy %")
    drawn.axes[1].legend(fontsize=7)
    return drawn


def claim(rows: list[Row]) -> studies.Claim:
    found = groups(rows)
    deep, wide = (f"{depth} layers, {k} times as wide" for depth, k in ((28, 1), (10, 2)))
    accuracy = {net: 100 * studies.mean(found[net], "test_accuracy") for net in (deep, wide)}
    seconds = {net: studies.mean(found[net], "seconds") for net in (deep, wide)}
    holds = accuracy[wide] > accuracy[deep] and seconds[wide] <= seconds[deep]
    return studies.Claim(
        "width is the cheaper way to capacity than depth",
        "CIFAR-10: WRN-16-8 95.73 %, pre-activation ResNet-1001 95.08 %, at a fraction of the time",
        "; ".join(f"{net}: {accuracy[net]:.1f} % in {seconds[net]:.0f} s" for net in (deep, wide)),
        "holds" if holds else "does not hold here",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
