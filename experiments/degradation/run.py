"""Plain and residual nets of 20 and 56 layers on CIFAR-10: do deeper ones train worse?

See `experiments/studies.py` for the flags. He et al. 2015, arXiv:1512.03385, section 4.2 and figure 6. Half
of the paper's 64,000 steps with one seed, and 20 epochs of the same shape with two more; then, while hours
last, the depths between and the whole schedule.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row
from experiments import curves, results, studies, tables

STEPS_AN_EPOCH = 45_000 / 128
HALF, PAPER, SHORT = 32_000 / STEPS_AN_EPOCH, 64_000 / STEPS_AN_EPOCH, 20.0


def nets(*depths: int) -> dict[str, dict[str, str]]:
    """By label the model, plain nets first."""
    return {f"{kind} {d}": {"model": f"{kind}{d}_cifar"} for kind in ("plain", "resnet") for d in depths}


def make_config() -> config_lib.ConfigDict:
    """The paper's: SGD with momentum at 0.1, divided by 10 at 50 and 75 %, padded crops and the mirror."""
    config = studies.cifar10()
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "step(boundaries=(0.5, 0.75), factor=0.1)"
    config.optimizer.weight_decay, config.optimizer.decay = 0.0001, "all"
    config.optimizer.warmup_epochs = 0.5
    config.checkpoint_every_steps = 352
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """See above; the label says the length."""
    long = studies.seeds(_long(nets(20, 56), "32,000 steps"), HALF, 1)
    short = studies.seeds(_long(nets(20, 56), "20 epochs"), SHORT, 2, first=1)
    between = studies.seeds(_long(nets(32, 44), "32,000 steps"), HALF, 1)
    whole = studies.seeds(_long(nets(20, 56), "64,000 steps"), PAPER, 1)
    return [*long, *short, *studies.later(between + whole)]


def _long(runs: dict[str, dict[str, str]], words: str) -> dict[str, dict[str, str]]:
    return {f"{label}, {words}": values for label, values in runs.items()}


def table(study: studies.Study, out: Path) -> str:
    return tables.score_table(out, "net", study.groups(out))


def by_length(study: studies.Study, out: Path) -> dict[str, dict[str, list[Row]]]:
    """The rows by length of training, as the labels say it, and by net, the longest first."""
    found: dict[str, dict[str, list[Row]]] = {}
    for label, rows in study.groups(out).items():
        net, _, length = label.partition(", ")
        found.setdefault(length, {})[net] = rows

    def epochs(item: tuple[str, dict[str, list[Row]]]) -> float:
        return max(float(row["epochs"]) for rows in item[1].values() for row in rows)

    return dict(sorted(found.items(), key=epochs, reverse=True))


def figure(study: studies.Study, out: Path) -> Figure:
    """Figure 6: training error left, validation error right, of the longest runs."""
    columns = {"accuracy": "training error", "validation_accuracy": "validation error"}
    return curves.figure(next(iter(by_length(study, out).values())), out, columns)


def deeper(nets: Mapping[str, Sequence[Row]], out: Path, kind: str) -> tables.Difference:
    """Training error of 56 layers less that of 20, as shares."""
    errors = [
        [1 - value for value in curves.last(out, nets.get(f"{kind} {depth}", ()), "accuracy")]
        for depth in (56, 20)
    ]
    return tables.difference(*errors)


def claim(study: studies.Study, out: Path) -> studies.Claim:
    """Decided on the lengths with most seeds."""
    found = by_length(study, out)
    apart = {
        f"{kind}, {length}": deeper(nets, out, kind)
        for length, nets in found.items()
        for kind in ("plain", "resnet")
    }
    words = [f"{name}: {value.points()}" for name, value in apart.items() if not math.isnan(value.value)]
    nets = max(found.values(), key=lambda nets: max(len(results.finished(rows)) for rows in nets.values()))
    plain, residual = (deeper(nets, out, kind) for kind in ("plain", "resnet"))
    lower, size = (
        dataclasses.replace(residual, value=-residual.value),
        tables.size(*nets.values(), pixels=study.side),
    )
    return studies.Claim(
        "deeper plain nets end with higher training error, deeper residual nets with lower",
        "figure 6: plain 56 above plain 20 throughout, ResNet-56 below ResNet-20",
        f"Training error, 56 layers minus 20 layers: {'; '.join(words) or '56 layers have not run yet'}",
        f"plain: {tables.verdict(plain, size)}; residual: {tables.verdict(lower, size)}",
    )


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs=PAPER)

if __name__ == "__main__":
    studies.main(STUDY)
