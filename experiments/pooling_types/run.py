"""Kinds of pooling in SimpleCNN on Fashion-MNIST; max, L2, average and strided on CIFAR-10 too.

See `experiments/studies.py` for the flags. Only `pooling` differs: all nets of a seed have the same number of
parameters, start from the same numbers and see the same batches.
"""

import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row
from experiments import studies, tables

KINDS = ("max", "average", "l2", "min", "center_weighted", "adaptive", "strided")
ON_CIFAR = ("max", "l2", "average", "strided")
LENGTH, SEEDS = 10.0, 3


def nets(kinds: Sequence[str]) -> dict[str, dict[str, str]]:
    return {kind: {"model": f'simple_cnn(pooling="{kind}")'} for kind in kinds}


def make_config() -> config_lib.ConfigDict:
    """AdamW at the default learning rate, which falls to 0; 55,000 images."""
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
    """Every kind with every seed."""
    return studies.seeds(nets(KINDS), LENGTH, SEEDS)


def plan_on_cifar(rows: Sequence[Row]) -> list[studies.Planned]:
    return studies.seeds(nets(ON_CIFAR), LENGTH, SEEDS)


def by_test(study: studies.Study, out: Path) -> dict[str, list[Row]]:
    """The kinds, the highest mean test accuracy first: an order to read, not a choice."""
    groups = study.groups(out)
    return dict(sorted(groups.items(), key=lambda item: -statistics.mean(tables.scores(item[1]) or [0.0])))


def scored(groups: Mapping[str, Sequence[Row]]) -> dict[str, list[float]]:
    """The test accuracies of each kind that has any."""
    return {kind: values for kind, rows in groups.items() if (values := tables.scores(rows))}


def table(study: studies.Study, out: Path) -> str:
    columns = ("parameters", "epochs", "training error %", "validation %", "test %")
    return tables.score_table(out, "pooling", by_test(study, out), columns)


def figure(study: studies.Study, out: Path) -> Figure:
    """Test accuracy of each run, with the mean of its kind."""
    drawn = Figure(figsize=(7, 3.2), layout="constrained")
    axes, groups = drawn.add_subplot(), scored(by_test(study, out))
    for place, shares in enumerate(groups.values()):
        values = [100 * share for share in shares]
        axes.plot(values, [place] * len(values), "o", color="#4477aa", alpha=0.6)
        axes.plot([statistics.mean(values)] * 2, [place - 0.3, place + 0.3], color="black")
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy %, one dot a seed, the line their mean")
    axes.grid(axis="x", alpha=0.3)
    return drawn


def claim(study: studies.Study, out: Path) -> studies.Claim:
    groups = by_test(study, out)
    size = tables.size(*groups.values(), pixels=study.side)
    return studies.Claim(
        "kinds of pooling: max, average, L2, min, adaptive, strided",
        "none given",
        "; ".join(f"{kind} {100 * statistics.mean(values):.1f} %" for kind, values in scored(groups).items()),
        f"against max: {against(groups, 'max')} ({size})",
    )


def against(groups: Mapping[str, Sequence[Row]], usual: str) -> str:
    """Which kinds are better, worse, or neither than the usual one, at 5 % for all comparisons together."""
    others = {kind: tables.scores(rows) for kind, rows in groups.items() if kind != usual}
    found: dict[str, list[str]] = {"better": [], "worse": [], "not decided": []}
    for kind, values in others.items():
        apart = tables.difference(values, tables.scores(groups.get(usual, ())), among=len(others))
        found[("better" if apart.value > 0 else "worse") if apart.decided else "not decided"].append(kind)
    return "; ".join(f"{', '.join(kinds)} {word}" for word, kinds in found.items() if kinds) or "not decided"


STUDY = studies.Study(
    HERE, make_config, plan, table, figure, claim, paper_epochs=20.0, images=60_000, caption=studies.DOTS
)
CIFAR = dataclasses.replace(
    STUDY, here=HERE / "cifar10", config=make_cifar_config, plan=plan_on_cifar, images=50_000
)

if __name__ == "__main__":
    studies.main(STUDY, CIFAR)
