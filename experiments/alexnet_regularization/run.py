"""Dropout, mirror, crop and colour noise, each on and off, in a four-layer net on part of CIFAR-10.

See `experiments/studies.py` for the flags. Krizhevsky, Sutskever, Hinton 2012, section 4: without
augmentation and dropout the net overfits. A full factorial at 15,000 images: the effect of one factor is the
mean over all settings of the others. Then all and none at 5,000, 15,000 and 45,000 images for as many steps,
to see where they begin to help.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs import evaluate
from cnnjax.runs.results import Row, spread
from experiments import curves, results, studies, tables

NET = "alexnet_cifar(stds=(0.1, 0.05, 0.05, 0.03), dropout_rate={rate})"
STEPS = {"mirror": "mirror", "crop": "random_crop(32, padding=4)", "colour noise": "pca_color(0.1)"}
FACTORS = ("dropout", *STEPS)
LENGTH, SEEDS, IMAGES = 40.0, 3, 15_000
SIZES = {5_000: 360.0, 15_000: 120.0, 45_000: 40.0}  # images: epochs of as many steps
HELD = 50_000


def setting(factors: Sequence[str], images: int) -> dict[str, config_lib.Value]:
    """The fields that turn factors on."""
    steps = [*(STEPS[step] for step in STEPS if step in factors), "normalize"]
    net = NET.format(rate=0.5 if "dropout" in factors else 0.0)
    return {"model": net, "augment.train": "|".join(steps), "data.num_validation": HELD - images}


SETTINGS = {
    ", ".join(factors) or "none": factors
    for n in range(len(FACTORS) + 1)
    for factors in itertools.combinations(FACTORS, n)
}


def make_config() -> config_lib.ConfigDict:
    """SGD with momentum at a rate that falls to 0; the images that are not trained on are held out."""
    config = studies.cifar10()
    config.eval_every_epochs = 10.0
    config.log_every_steps = 118
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.03
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 1.0
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """The factorial, then none and all by number of images."""
    whole = {label: setting(factors, IMAGES) for label, factors in SETTINGS.items()}
    runs = studies.seeds(whole, LENGTH, SEEDS)
    for images, epochs in SIZES.items():
        some = {f"{n}, {images:,} images": setting(f, images) for n, f in (("none", ()), ("all", FACTORS))}
        runs += studies.seeds(some, epochs, 1)
    return runs


def paper_epochs(run: studies.Planned) -> float:
    """The paper's 90, and for other numbers of images as many steps as the study's own lengths are apart."""
    return run.epochs * 90.0 / LENGTH


def measure(path: Path) -> Mapping[str, float]:
    """The accuracy on the images that a run was trained on, as evaluation sees them."""
    return {"train_accuracy": evaluate.evaluate(path, split="train")[0]["accuracy"]}


def measured(rows: Sequence[Row]) -> list[Row]:
    """Those with both accuracies; a run that diverged has none."""
    return results.finished(rows, "train_accuracy")


def gap(row: Row) -> float:
    """Between the accuracy on the training images and on the test split."""
    return float(row["train_accuracy"]) - float(row["test_accuracy"])


def test(row: Row) -> float:
    return float(row["test_accuracy"])


def effect(
    groups: Mapping[str, Sequence[Row]], factor: str, value: Callable[[Row], float]
) -> tables.Difference:
    """What turning a factor on changes over all other settings, a value a seed."""
    settings = {label: rows for label, rows in groups.items() if label in SETTINGS}
    changes = []
    for seed in map(str, range(SEEDS)):
        sides: dict[bool, list[float]] = {True: [], False: []}
        for label, rows in settings.items():
            sides[factor in SETTINGS[label]] += [value(row) for row in measured(rows) if row["seed"] == seed]
        if all(len(side) == len(SETTINGS) // 2 for side in sides.values()):
            changes.append(sum(sides[True]) / len(sides[True]) - sum(sides[False]) / len(sides[False]))
    return tables.difference(changes, [0.0, 0.0])


def table(study: studies.Study, out: Path) -> str:
    groups = study.groups(out)
    effects = [
        (factor, *(effect(groups, factor, value).points() for value in (test, gap))) for factor in FACTORS
    ]
    more = {
        "train %": tables.percent("train_accuracy"),
        "gap, points": lambda rows, out: spread([str(gap(row)) for row in measured(rows)]),
    }
    head = ("turned on", "test accuracy, ± standard error", "gap, ± standard error")
    columns = ("epochs", "train %", "test %", "gap, points")
    return f"{tables.markdown(head, effects)}\n\n{tables.score_table(out, 'on', groups, columns, more)}"


def figure(study: studies.Study, out: Path) -> Figure:
    """Accuracy on the test split against the training images, a dot a run; and by number of images."""
    groups = study.groups(out)
    by_size = {
        name: [
            (n, 100 * tables.mean(groups[label], "test_accuracy"))
            for n in SIZES
            if (label := f"{name}, {n:,} images") in groups
        ]
        for name in ("none", "all")
    }
    panels = 1 + any(by_size.values())
    drawn = Figure(figsize=(4.5 * panels, 4), layout="constrained")
    left, *right = drawn.subplots(1, panels, sharey=True, squeeze=False)[0]
    for count, colour in zip(range(len(FACTORS) + 1), curves.COLOURS, strict=False):
        members = [rows for k, rows in groups.items() if k in SETTINGS and len(SETTINGS[k]) == count]
        rows = [row for each in members for row in measured(each)]
        xs = [100 * float(row["train_accuracy"]) for row in rows]
        left.plot(xs, [100 * test(row) for row in rows], "o", color=colour, alpha=0.7, label=f"{count} on")
    left.set(xlabel="accuracy on the training images %", ylabel="accuracy on the test split %")
    for axes in right:
        for (name, points), colour in zip(by_size.items(), curves.COLOURS, strict=False):
            axes.plot([n for n, _ in points], [score for _, score in points], "o-", color=colour, label=name)
        axes.set(xlabel="training images", xscale="log")
    for axes in (left, *right):
        axes.grid(alpha=0.3)
        axes.legend()
    return drawn


def claim(study: studies.Study, out: Path) -> studies.Claim:
    groups = study.groups(out)
    gains = {factor: effect(groups, factor, test) for factor in FACTORS}
    gaps = {factor: effect(groups, factor, gap) for factor in FACTORS}
    size = tables.size(*(rows for label, rows in groups.items() if label in SETTINGS), pixels=study.side)
    return studies.Claim(
        "dropout, mirror, crop and colour noise narrow the gap between training and test accuracy",
        "without them AlexNet overfits; colour noise: over 1 point of top-1",
        "; ".join(f"{f}: test {gains[f].points()}, gap {gaps[f].points()}" for f in FACTORS),
        "; ".join(f"{f}: {tables.verdict(narrower(gaps[f]), size)}" for f in FACTORS),
    )


def narrower(gap: tables.Difference) -> tables.Difference:
    """By how much a gap shrinks, one of all factors' gaps."""
    return dataclasses.replace(gap, value=-gap.value, among=len(FACTORS))


STUDY = studies.Study(
    HERE, make_config, plan, table, figure, claim, paper_epochs, measure=measure, caption=studies.DOTS
)

if __name__ == "__main__":
    studies.main(STUDY)
