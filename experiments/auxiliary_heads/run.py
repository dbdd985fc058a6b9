"""GoogLeNet's auxiliary heads: none, the later one, both, on CIFAR-10.

See `experiments/studies.py` for the flags. Szegedy et al. 2014, arXiv:1409.4842, section 5, has two; Szegedy
et al. 2015, arXiv:1512.00567, section 4: the earlier one can go, the later helps near the end of training.
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

HEADS = {"none": "False", "the later one": "('4d',)", "both": "True"}
NETS = {label: {"model": f"googlenet_cifar(aux_logits={heads})"} for label, heads in HEADS.items()}
EARLY = {"the earlier one": {"model": "googlenet_cifar(aux_logits=('4a',))"}}
LENGTH, LONG, SEEDS = 20.0, 60.0, 2


def make_config() -> config_lib.ConfigDict:
    """Nesterov momentum at one rate for all that falls to 0; each head weighs 0.3."""
    config = studies.cifar10()
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize"
    config.optimizer.name = "nesterov(momentum=0.9)"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 0.5
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """Every choice with every seed; then, while hours last, 60 epochs with the earlier head alone too."""
    long = {f"{label}, {LONG:g} epochs": values for label, values in {**NETS, **EARLY}.items()}
    return [*studies.seeds(NETS, LENGTH, SEEDS), *studies.later(studies.seeds(long, LONG, 1))]


def table(study: studies.Study, out: Path) -> str:
    return tables.score_table(out, "auxiliary heads", study.groups(out))


def figure(study: studies.Study, out: Path) -> Figure:
    words = {"accuracy": "training error", "validation_accuracy": "validation error"}
    return curves.figure({k: v for k, v in study.groups(out).items() if k in NETS}, out, words)


def claim(study: studies.Study, out: Path) -> studies.Claim:
    groups = {label: rows for label, rows in study.groups(out).items() if label in NETS}
    none, late, both = (tables.scores(groups.get(label, ())) for label in NETS)
    gain, more = tables.difference(late, none, among=2), tables.difference(both, late, among=2)
    size = tables.size(*groups.values(), pixels=study.side)
    return studies.Claim(
        "auxiliary heads help a little and late; the earlier one not at all",
        "ImageNet: BatchNorm in the later head gains 0.4 points of top-1, the earlier head nothing",
        f"the later one {gain.points()}; the earlier beside it {more.points()}",
        f"later: {tables.verdict(gain, size)}; earlier: {tables.verdict(more, size)}",
    )


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs=250.0)

if __name__ == "__main__":
    studies.main(STUDY)
