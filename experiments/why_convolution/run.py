"""Accuracy against parameters of fully connected and convolutional nets on Fashion-MNIST, and shifted images.

See `experiments/studies.py` for the flags. scores.csv holds the accuracy of each run on the test images moved
by 1 to 4 pixels, each image to a side drawn once for all runs. The best dense net and the CNN that beat it go
on to CIFAR-10.
"""

import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np
from matplotlib.figure import Figure

import cnnjax
from cnnjax import config as config_lib
from cnnjax.runs.folder import Run
from cnnjax.runs.results import Row
from experiments import curves, studies, tables

NETS = {
    "no hidden layer": {"model": "lenet_300_100(widths=())"},
    "dense 16": {"model": "lenet_300_100(widths=(16,))"},
    "dense 128": {"model": "lenet_300_100(widths=(128,))"},
    "dense 300, 100": {"model": "lenet_300_100"},
    "CNN 4, 8": {"model": "simple_cnn(widths=(4, 8))"},
    "CNN 8, 16": {"model": "simple_cnn(widths=(8, 16))"},
    "CNN 16, 32": {"model": "simple_cnn"},
}
ON_CIFAR = ("dense 300, 100", "CNN 8, 16", "CNN 16, 32")
SHIFTS = (1, 2, 3, 4)
LENGTH, SEEDS, SEEDS_ON_CIFAR = 10.0, 5, 3


def make_config() -> config_lib.ConfigDict:
    """AdamW, the default learning rate, no augmentation, 55,000 images."""
    config = config_lib.default()
    config.data.name = "fashion_mnist"
    config.data.num_validation = 5000
    config.optimizer.warmup_epochs = 0.1
    config.eval_batch_size = 1000
    config.log_every_steps = 430
    return config


def make_cifar_config() -> config_lib.ConfigDict:
    """The same recipe."""
    config = studies.cifar10()
    config.optimizer.warmup_epochs = 0.1
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """Every net with every seed."""
    return studies.seeds(NETS, LENGTH, SEEDS)


def plan_on_cifar(rows: Sequence[Row]) -> list[studies.Planned]:
    return studies.seeds({label: NETS[label] for label in ON_CIFAR}, LENGTH, SEEDS_ON_CIFAR)


def measure(path: Path) -> Mapping[str, float]:
    """The accuracy on moved test images."""
    config = Run.open(path).config()
    source = cnnjax.load_dataset(config.data.name, "test")
    images, labels = np.stack([source[i]["image"] for i in range(len(source))]), source.labels
    model = cnnjax.load_run(path)
    return {
        f"shift_{shift}": float(
            np.mean(
                [p.probabilities.argmax() for p in model.predict(shifted(images, shift), batch_size=1000)]
                == labels
            )
        )
        for shift in SHIFTS
    }


def shifted(images: np.ndarray, pixels: int) -> np.ndarray:
    """uint8 [N, H, W, C], each moved up, down, left or right, black where nothing was."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    sides = np.random.default_rng(0).integers(4, size=len(images))
    places = np.array([(0, 1), (2, 1), (1, 0), (1, 2)])[sides] * pixels
    return np.stack(
        [image[y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)]
    )


def table(study: studies.Study, out: Path) -> str:
    moved = {f"moved {shift} px %": tables.percent(f"shift_{shift}") for shift in SHIFTS}
    columns = ("parameters", "epochs", "validation %", "test %", *moved)
    return tables.score_table(out, "net", study.groups(out), columns, moved)


def figure(study: studies.Study, out: Path) -> Figure:
    """Accuracy against parameters, and against the shift."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    groups = study.groups(out)
    for kind, colour in (("CNN", curves.COLOURS[0]), ("", curves.COLOURS[1])):
        members = {n: m for n, m in groups.items() if n.startswith("CNN") == bool(kind)}
        for i, (net, rows) in enumerate(members.items(), 1):
            values = [100 * value for value in tables.scores(rows)]
            if not values:  # all diverged
                continue
            left.plot([int(rows[0]["params"])] * len(values), values, "o", color=colour, alpha=0.6)
            left.annotate(net, (int(rows[0]["params"]), max(values)), fontsize=7)
            curve = [100 * tables.mean(rows, c) for c in ("test_accuracy", *(f"shift_{s}" for s in SHIFTS))]
            right.plot((0, *SHIFTS), curve, color=colour, alpha=0.3 + 0.7 * i / len(members), label=net)
    left.set(xscale="log", xlabel="parameters", ylabel="test accuracy %")
    right.set(xlabel="pixels that the test images are moved by", ylabel="accuracy %")
    if right.lines:
        right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return drawn


def claim(study: studies.Study, out: Path) -> studies.Claim:
    """The smallest CNN that is decided to be better than the best dense net."""
    groups = study.groups(out)
    test = {net: values for net, rows in groups.items() if (values := tables.scores(rows))}
    params = {net: int(rows[0]["params"]) for net, rows in groups.items()}
    means = {net: statistics.mean(values) for net, values in test.items()}
    dense = max((net for net in test if not net.startswith("CNN")), key=means.__getitem__, default="")
    cnns = [net for net in test if net.startswith("CNN")]
    ahead = {net: tables.difference(test[net], test.get(dense, ()), among=len(cnns)) for net in cnns}
    better = [net for net, found in ahead.items() if found.decided and found.value > 0]
    size = tables.size(*groups.values(), pixels=study.side)
    ours = "no dense net has a score yet"
    if dense:
        ours = f"best dense net: {params[dense]:,} weights, {100 * means[dense]:.1f} %"
    if not better:
        verdict = f"not decided at this size ({size})"
    else:
        small = min(better, key=params.__getitem__)
        ours = f"{small}: {params[small]:,} weights, {100 * means[small]:.1f} %; {ours}"
        verdict = f"holds: {params[dense] / params[small]:.0f} times fewer ({size})"
    what = "a CNN needs far fewer weights than a fully connected net for the same accuracy"
    return studies.Claim(what, "none given", ours, verdict)


STUDY = studies.Study(
    HERE,
    make_config,
    plan,
    table,
    figure,
    claim,
    paper_epochs=20.0,
    images=60_000,
    measure=measure,
    caption=studies.DOTS,
)
CIFAR = dataclasses.replace(
    STUDY, here=HERE / "cifar10", config=make_cifar_config, plan=plan_on_cifar, images=50_000
)

if __name__ == "__main__":
    studies.main(STUDY, CIFAR)
