"""Dropout, mirror, crop and colour noise, each on and off, in a small AlexNet on few images of CIFAR-10.

See `experiments/studies.py` for the flags. A full factorial: the effect of one of them is the mean over all
settings of the others.
"""

import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from cnnjax.runs import evaluate

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row, read_results, spread
from cnnjax.runs.sweep import Board, sweep
from experiments import pages, studies  # noqa: F401

MODEL, AUGMENT = "model", "augment.train"
NET = "alexnet_cifar(widths=(16, 16, 32), stds=(0.1, 0.05, 0.05, 0.03), dropout_rate={rate})"
FULL_NET = "alexnet_cifar(dropout_rate={rate})"
DROPOUT = {"off": 0.0, "on": 0.5}
STEPS = {"mirror": "mirror", "crop": "random_crop(32, padding=4)", "colour noise": "pca_color(0.1)"}
FACTORS = ("dropout", *STEPS)
SEEDS = 3


def augmentation(steps: tuple[str, ...]) -> str:
    return "|".join([*(STEPS[step] for step in STEPS if step in steps), "normalize"])


AUGMENTATIONS = {
    augmentation(steps): steps for n in range(len(STEPS) + 1) for steps in itertools.combinations(STEPS, n)
}


def spec(rate: float, full: bool = False) -> str:
    return (FULL_NET if full else NET).format(rate=rate)


def make_config(full: bool) -> config_lib.ConfigDict:
    """5,000 images, so that there is much to overfit; `full` has 45,000."""
    config = studies.cifar10()
    config.data.num_validation = 5000 if full else 45000
    config.total_epochs = 120.0 if full else 20.0
    config.eval_every_epochs = config.total_epochs
    config.log_every_steps = 352 if full else 40
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.03
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 1.0
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """Every setting with every seed, then the accuracy of each run on what it was trained on."""
    nets = [spec(rate, full=out != HERE) for rate in DROPOUT.values()]
    sweep(config, {MODEL: nets, AUGMENT: list(AUGMENTATIONS)}, out, seeds=SEEDS, board=board)
    studies.add_scores(
        out, "train", lambda run: {"train_accuracy": evaluate.evaluate(run, split="train")[0]["accuracy"]}
    )


def read_rows() -> list[Row]:
    """The rows of results.csv, each with `train_accuracy`."""
    return studies.with_scores(read_results(HERE), HERE, "train")


def on(row: Row) -> set[str]:
    """The factors that are on in a run."""
    dropout = {"dropout"} if row[MODEL] == spec(DROPOUT["on"]) else set()
    return dropout | set(AUGMENTATIONS[row[AUGMENT]])


def gap(row: Row) -> float:
    """Points between the accuracy on the training images and on the test split."""
    return 100 * (float(row["train_accuracy"]) - float(row["test_accuracy"]))


def effect(rows: list[Row], factor: str, value: Callable[[Row], float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds of what turning a factor on changes, over all other settings."""
    changes = []
    for seed in sorted({row["seed"] for row in rows}):
        means = [
            statistics.mean(
                value(row) for row in rows if row["seed"] == seed and (factor in on(row)) == state
            )
            for state in (True, False)
        ]
        changes.append(means[0] - means[1])
    return statistics.mean(changes), statistics.stdev(changes)


def table(rows: list[Row]) -> str:
    settings: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(factor for factor in FACTORS if factor in on(row)), []).append(row)
    cells = [
        (
            ", ".join(factors) or "none",
            spread([row["train_accuracy"] for row in members]),
            spread([row["test_accuracy"] for row in members]),
            spread([str(gap(row)) for row in members], 1),
            len(members),
        )
        for factors, members in sorted(
            settings.items(), key=lambda item: -studies.mean(item[1], "test_accuracy")
        )
    ]
    head = ("on", "train %", "test %", "gap, points", "seeds")
    effects = [
        (factor, *(f"{m:+.2f} ± {s:.2f}" for m, s in (effect(rows, factor, test), effect(rows, factor, gap))))
        for factor in FACTORS
    ]
    return (
        studies.markdown(("turned on", "test, points", "gap, points"), effects)
        + "\n\n"
        + studies.markdown(head, cells)
        + studies.footer(HERE, rows)
    )


def test(row: Row) -> float:
    return 100 * float(row["test_accuracy"])


def figure(rows: list[Row]) -> Figure:
    """Accuracy on the test split against the training images, a dot a run."""
    drawn = Figure(figsize=(6, 4), layout="constrained")
    axes = drawn.add_subplot(
        xlabel="accuracy on the training images %", ylabel="accuracy on the test split %"
    )
    for count, colour in zip(range(len(FACTORS) + 1), studies.COLOURS, strict=False):
        members = [row for row in rows if len(on(row)) == count]
        xs = [100 * float(row["train_accuracy"]) for row in members]
        axes.plot(xs, list(map(test, members)), "o", color=colour, alpha=0.7, label=f"{count} on")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn


def claim(rows: list[Row]) -> studies.Claim:
    gaps = {factor: effect(rows, factor, gap)[0] for factor in FACTORS}
    gains = {factor: effect(rows, factor, test)[0] for factor in FACTORS}
    helped = [factor for factor in FACTORS if gaps[factor] < 0 and gains[factor] > 0]
    return studies.Claim(
        "dropout, mirror, crop and colour noise reduce overfitting",
        "without them AlexNet overfits; colour noise: over 1 point of top-1",
        "; ".join(f"{f}: gap {gaps[f]:+.1f}, test {gains[f]:+.1f} points" for f in FACTORS),
        "holds" if len(helped) == len(FACTORS) else f"holds for {', '.join(helped) or 'none'}",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
