"""Response normalization and overlapping pooling in Krizhevsky's two CIFAR nets.

See `experiments/studies.py` for the flags. Krizhevsky, Sutskever, Hinton 2012, section 3.3: a four-layer net
errs on 13 % without and 11 % with response normalization; section 3.4: overlapping pooling gains 0.4 points
on ImageNet. The nets are cuda-convnet's: that of 18 % (no augmentation) and that of 13 and 11 % (24x24 crops,
mirrored), on pixels 0..255 less the mean, rate 0.001, taken down at the end.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row
from experiments import curves, studies, tables

PIXELS = "normalize(mean=(0.4914, 0.4822, 0.4465), std=0.00392156862745098)"  # 0..255 less the mean
WHOLE = {"augment.train": PIXELS, "augment.eval": PIXELS, "optimizer.decay": "kernels"}
CROPS = {
    "optimizer.decay": r"(local\d|head)/kernel$",  # none of the convolutions, as published
    "augment.train": f"random_crop(24)|mirror|{PIXELS}",
    "augment.eval": f"center_crop(24)|{PIXELS}",
}
NETS = {
    "18 % net, neither": {"model": "alexnet_cifar(pool_window=2, response_norm='none')", **WHOLE},
    "18 % net, overlapping": {"model": "alexnet_cifar(response_norm='none')", **WHOLE},
    "18 % net, LRN": {"model": "alexnet_cifar(pool_window=2)", **WHOLE},
    "18 % net, both": {"model": "alexnet_cifar", **WHOLE},
    "local net, overlapping": {"model": "alexnet_cifar_local(response_norm=False)", **CROPS},
    "local net, both": {"model": "alexnet_cifar_local", **CROPS},
}
LENGTH, SEEDS = 60.0, 3
PAIRS = {  # what is compared: with it, without it
    "LRN in the local net": ("local net, both", "local net, overlapping"),
    "LRN in the 18 % net": ("18 % net, both", "18 % net, overlapping"),
    "LRN in the 18 % net, without overlapping": ("18 % net, LRN", "18 % net, neither"),
    "overlapping in the 18 % net": ("18 % net, overlapping", "18 % net, neither"),
}


def make_config() -> config_lib.ConfigDict:
    """SGD with momentum at 0.001, a tenth over the last seventh and a hundredth at the end; decay 0.004."""
    config = studies.cifar10()
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.001
    config.optimizer.schedule = "step(boundaries=(0.86, 0.93), factor=0.1)"
    config.optimizer.weight_decay = 0.004
    config.optimizer.warmup_epochs = 0.0
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """Every net with every seed."""
    return studies.seeds(NETS, LENGTH, SEEDS)


def paper_epochs(run: studies.Planned) -> float:
    """Of cuda-convnet's schedules."""
    return 470.0 if run.label.startswith("local") else 140.0


def table(study: studies.Study, out: Path) -> str:
    compared = [(name, gain(study, out, name).points()) for name in PAIRS]
    gains = tables.markdown(("turned on", "test accuracy, ± standard error"), compared)
    return f"{gains}\n\n{tables.score_table(out, 'net', study.groups(out))}"


def gain(study: studies.Study, out: Path, name: str) -> tables.Difference:
    """Test accuracy with less that without, among all that is compared of this net."""
    with_it, without = (tables.scores(study.groups(out).get(label, ())) for label in PAIRS[name])
    net = PAIRS[name][1].partition(",")[0]
    return tables.difference(
        with_it, without, among=sum(other.startswith(net) for _, other in PAIRS.values())
    )


def figure(study: studies.Study, out: Path) -> Figure:
    words = {"accuracy": "training error", "validation_accuracy": "validation error"}
    return curves.figure(study.groups(out), out, words)


def claim(study: studies.Study, out: Path) -> studies.Claim:
    found, groups = {name: gain(study, out, name) for name in PAIRS}, study.groups(out)
    pairs = {name: [groups.get(label, ()) for label in PAIRS[name]] for name in PAIRS}
    size = {name: tables.size(*rows, pixels=study.side) for name, rows in pairs.items()}
    return studies.Claim(
        "LRN and overlapping pooling lower the error of a four-layer net on CIFAR-10",
        "LRN: 13 % to 11 %; overlapping: 0.4 points on ImageNet",
        "; ".join(f"{name} {value.points()}" for name, value in found.items()),
        "; ".join(f"{name}: {tables.verdict(value, size[name])}" for name, value in found.items()),
    )


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs)

if __name__ == "__main__":
    studies.main(STUDY)
