"""AlexNet's split into two towers against one tower, and what each tower's first kernels look for.

See `experiments/studies.py` for the flags. Krizhevsky, Sutskever, Hinton 2012, section 3.2 (the split gains
1.7 points over a net with half as many kernels) and section 6.1, figure 3: one tower's kernels are colour-
agnostic, the other's colour-specific, in every run. Here the split is in cuda-convnet's small net: the second
layer of each tower sees its own tower alone.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np
from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.inference.model import load_run
from cnnjax.runs.results import Row, spread
from experiments import curves, results, studies, tables

STDS = "stds=(0.1, 0.05, 0.05, 0.03)"
NETS = {
    "two towers": {"model": f"alexnet_cifar(groups=2, widths=(64, 64, 64), {STDS})"},
    "one tower, same width": {"model": f"alexnet_cifar(widths=(64, 64, 64), {STDS})"},
    "one tower, same parameters": {"model": f"alexnet_cifar(widths=(48, 52, 64), {STDS})"},
}
LENGTH, SEEDS = 60.0, 3


def make_config() -> config_lib.ConfigDict:
    """SGD with momentum, the mirror, a rate that falls to 0."""
    config = studies.cifar10()
    config.augment.train = "mirror|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 0.5
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """Every net with every seed."""
    return studies.seeds(NETS, LENGTH, SEEDS)


def measure(path: Path) -> Mapping[str, float]:
    """The share of colour in the first kernels of each half of the channels, the larger first."""
    kernel = np.asarray(load_run(path).variables["params"]["conv1"]["kernel"])
    shares = [colour(kernel[..., half]) for half in np.split(np.arange(kernel.shape[-1]), 2)]
    return {"colour_more": max(shares), "colour_less": min(shares)}


def colour(kernel: np.ndarray) -> float:
    """The share of the energy of kernels [h, w, 3, K] that is not the same in R, G and B."""
    grey = kernel.mean(axis=2, keepdims=True)
    return float(np.square(kernel - grey).sum() / np.square(kernel).sum())


def apart(rows: Sequence[Row]) -> list[float]:
    """By measured run how far the halves' shares of colour are apart."""
    rows = results.finished(rows, "colour_more")
    return [float(row["colour_more"]) - float(row["colour_less"]) for row in rows]


def points(values: Sequence[float]) -> str:
    """Mean and spread of shares in per cent."""
    return spread(list(map(str, values)), 100, 0) or "unknown"


def table(study: studies.Study, out: Path) -> str:
    more = {
        "colour in conv1, % of the halves": lambda rows, out: " / ".join(
            points(tables.scores(rows, half)) for half in ("colour_more", "colour_less")
        ),
        "apart, points": lambda rows, out: spread([str(value) for value in apart(rows)], 100, 1),
    }
    columns = ("parameters", "epochs", "training error %", "validation %", "test %", *more, "minutes per run")
    return tables.score_table(out, "net", study.groups(out), columns, more)


def figure(study: studies.Study, out: Path) -> Figure:
    words = {"accuracy": "training error", "validation_accuracy": "validation error"}
    return curves.figure(study.groups(out), out, words)


def claim(study: studies.Study, out: Path) -> studies.Claim:
    """Whether the split is better or worse; no difference found is not the same as none."""
    groups = study.groups(out)
    split, wide, equal = (groups.get(label, []) for label in NETS)
    size = tables.size(*groups.values(), pixels=study.side)
    specialised = tables.difference(apart(split), apart(wide))
    better = tables.difference(tables.scores(split), tables.scores(equal))
    return studies.Claim(
        "of two towers one learns colour, the other not; the split costs nothing",
        "in every run; 1.7 points better than half the kernels on one GPU",
        f"colour apart by {points(apart(split))} points in two towers, "
        f"{points(apart(wide))} in the halves of one; two towers "
        f"{better.points()} against one of the same parameters",
        f"specialisation: {tables.verdict(specialised, size)}; "
        f"accuracy: {tables.verdict(better, size, 'better', 'worse')}",
    )


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs=90.0, measure=measure)

if __name__ == "__main__":
    studies.main(STUDY)
