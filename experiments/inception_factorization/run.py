"""Four ways to see 5x5 pixels in an Inception cell, on CIFAR-10 at full width.

See `experiments/studies.py` for the flags. Szegedy et al. 2015, arXiv:1512.00567, section 3.1: two 3x3 with a
ReLU between (77.2 % on ImageNet) against linear (76.2 %); section 3.2: 1xn and nx1. The nets differ in
nothing but the branch with the largest kernel.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.profiling.summary import summarize
from cnnjax.runs.results import Row
from experiments import curves, studies, tables

NETS = {
    "5x5": {"model": "inception_cifar_5x5"},
    "two 3x3, ReLU between": {"model": "inception_cifar_3x3"},
    "two 3x3, linear between": {"model": "inception_cifar_3x3_linear"},
    "1x5, then 5x1": {"model": "inception_cifar_1xn"},
}
LENGTH, SEEDS = 20.0, 3


def make_config() -> config_lib.ConfigDict:
    """SGD with Nesterov momentum at one rate for all that falls to 0; padded crops and the mirror."""
    config = studies.cifar10()
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize"
    config.optimizer.name = "nesterov(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 0.5
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """Every cell with every seed."""
    return studies.seeds(NETS, LENGTH, SEEDS)


def table(study: studies.Study, out: Path) -> str:
    more = {"MMACs": lambda rows, out: f"{summarize(rows[0]['model'], (32, 32, 3)).macs / 1e6:.0f}"}
    columns = (
        "parameters",
        "MMACs",
        "epochs",
        "training error %",
        "validation %",
        "test %",
        "minutes per run",
    )
    return tables.score_table(out, "cell", study.groups(out), columns, more)


def figure(study: studies.Study, out: Path) -> Figure:
    words = {"accuracy": "training error", "validation_accuracy": "validation error"}
    return curves.figure(study.groups(out), out, words)


def claim(study: studies.Study, out: Path) -> studies.Claim:
    """Whether two 3x3 are better or worse than one 5x5; no difference found is not the same as none."""
    groups = study.groups(out)
    test = {label: tables.scores(rows) for label, rows in groups.items()}
    whole, relu, linear, line = (test.get(label, []) for label in NETS)
    size = tables.size(*groups.values(), pixels=study.side)
    pairs = (relu, linear), (relu, whole), (line, whole)
    # ReLU and 5x5 are each in two of them.
    gain, squares, lines = (tables.difference(*pair, among=2) for pair in pairs)
    return studies.Claim(
        "5x5 = two 3x3 with 18 against 25 weights, or 1x5 and 5x1 with 10; ReLU between two 3x3 beats linear",
        "ImageNet top-1: 77.2 % with ReLU, 76.2 % linear",
        f"ReLU less linear {gain.points()}; two 3x3 less 5x5 {squares.points()}; "
        f"1x5, 5x1 less 5x5 {lines.points()}",
        f"ReLU: {tables.verdict(gain, size)}; two 3x3 against 5x5: "
        f"{tables.verdict(squares, size, 'better', 'worse')}; 1x5, 5x1: "
        f"{tables.verdict(lines, size, 'better', 'worse')}",
    )


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs=100.0)

if __name__ == "__main__":
    studies.main(STUDY)
