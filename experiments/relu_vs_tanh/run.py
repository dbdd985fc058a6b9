"""Epochs to 25 % training error with ReLU, tanh and sigmoid, in a four-layer net on CIFAR-10.

See `experiments/studies.py` for the flags. Krizhevsky, Sutskever, Hinton 2012, section 3.1 and figure 1: no
regularization of any kind, the learning rate chosen for each net on its own, here on validation among four.
The training error of an epoch is the mean over its steps, as they ran.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row, spread
from experiments import curves, results, studies, tables

STDS = "response_norm='none', stds=(0.1, 0.05, 0.05, 0.03)"
NETS = {a: {"model": f"alexnet_cifar(activation='{a}', {STDS})"} for a in ("relu", "tanh", "sigmoid")}
RATES = (0.003, 0.01, 0.03, 0.1)
SHORT, LENGTH, SEEDS, GOAL = 10.0, 40.0, 3, 0.25
PAPER = 6.0  # times sooner
# ReLU and tanh are there within ten epochs; as the rate is constant, nothing that follows changes when.
EPOCHS = {"relu": 15.0, "tanh": 15.0, "sigmoid": LENGTH}


def make_config() -> config_lib.ConfigDict:
    """SGD with momentum at a constant rate."""
    config = studies.cifar10()
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_epochs = 0.0
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """All rates for ten epochs, then all seeds at the best rate of each activation."""
    return studies.tuned(rows, NETS, RATES, SHORT, EPOCHS, SEEDS)


def chosen(study: studies.Study, out: Path) -> dict[str, list[Row]]:
    """By activation its runs at its best rate."""
    return {label: rows for label, rows in study.groups(out).items() if label in NETS}


def epochs_to_goal(curve: curves.Curve) -> float | None:
    """Epochs until the training error fell to 25 %, between the two that it lies between; None if never."""
    before = (0.0, 0.9)
    for point in (point for point in curve if "accuracy" in point):
        now = (point["epoch"], 1 - point["accuracy"])
        if now[1] <= GOAL:
            return before[0] + (now[0] - before[0]) * (before[1] - GOAL) / (before[1] - now[1])
        before = now
    return None


def times(rows: Sequence[Row], out: Path) -> list[float | None]:
    """The epochs to the goal of each finished run."""
    read = curves.read(out)
    return [epochs_to_goal(read.get(row["run"], [])) for row in results.finished(rows)]


def words(rows: Sequence[Row], out: Path) -> str:
    """'5.1 ± 0.2', or 'more than 40' if a run did not get there; 'unknown' if all diverged."""
    found = times(rows, out)
    if None in found:
        return f"more than {max(float(row['epochs']) for row in rows):g}"
    return spread([str(value) for value in found], 1, 1) or "unknown"


def ratios(study: studies.Study, out: Path, other: str) -> list[float]:
    """How many times sooner ReLU is there than another activation, by seed; [] if a run did not get there."""
    groups = chosen(study, out)
    relu, others = (
        dict(zip([row["seed"] for row in results.finished(rows)], times(rows, out), strict=True))
        for rows in (groups.get("relu", ()), groups.get(other, ()))
    )
    pairs = [(sooner, others[seed]) for seed, sooner in relu.items() if seed in others]
    found = [later / sooner for sooner, later in pairs if sooner and later]
    return found if len(found) == len(pairs) else []


def ratio(study: studies.Study, out: Path, other: str) -> str:
    """The same in words; a lower bound if the other never got there."""
    relu, slower = (chosen(study, out).get(name, []) for name in ("relu", other))
    if found := ratios(study, out, other):
        return spread(list(map(str, found)), 1, 1)
    sooner = times(relu, out)
    if not sooner or None in sooner or None not in times(slower, out):
        return "unknown"
    return f"more than {max(float(row['epochs']) for row in slower) / statistics.mean(sooner):.1f}"


def table(study: studies.Study, out: Path) -> str:
    goal = "epochs to 25 % training error"
    columns = ("learning rate", goal, "training error %", "validation %", "test %", "minutes per run")
    scores = tables.score_table(out, "activation", chosen(study, out), columns, {goal: words})
    others = [other for other in list(NETS)[1:] if other in chosen(study, out)]
    found = [f"{ratio(study, out, other)} times sooner than {other}" for other in others]
    here = f"ReLU gets there {' and '.join(found) or 'alone'}"
    return f"{here}; the paper reports {PAPER:g} times sooner than tanh.{fastest(study, out)}\n\n{scores}"


def fastest(study: studies.Study, out: Path) -> str:
    """The epochs to the goal at the rate that gets there first in the tries, in words."""
    groups, found = study.groups(out), dict[str, float]()
    for name in NETS:
        tries = [times(rows, out) for label, rows in groups.items() if label.startswith(f"{name}, rate")]
        if there := [value for values in tries for value in values if value]:
            found[name] = min(there)
    first = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
    return (
        f" At the learning rates that were fastest in the search (one seed): {first} epochs." if found else ""
    )


def figure(study: studies.Study, out: Path) -> Figure:
    """The paper's figure 1: training error by epoch."""
    drawn = curves.figure(chosen(study, out), out, {"accuracy": "training error of the epoch"})
    drawn.axes[0].axhline(100 * GOAL, color="black", linestyle=":")
    return drawn


def claim(study: studies.Study, out: Path) -> studies.Claim:
    groups = chosen(study, out)
    relu, tanh = (times(groups.get(name, ()), out) for name in ("relu", "tanh"))
    ends = [float(row["epochs"]) for row in results.finished(groups.get("tanh", ()))]
    longest = [end if value is None else value for value, end in zip(tanh, ends, strict=True)]  # at the least
    sooner = tables.difference(longest, relu) if relu and None not in relu else tables.difference([], [])
    found = ratios(study, out, "tanh")
    fewer = tables.difference([PAPER] * len(found), found)
    ours = {name: f"{name} {words(rows, out)} epochs" for name, rows in groups.items()}
    if "sigmoid" in ours:
        ours["sigmoid"] += f" ({tables.size(groups['sigmoid'], pixels=study.side)})"
    if "tanh" in ours:
        ours["tanh"] += f", {ratio(study, out, 'tanh')} times as many"
    compared = [groups[name] for name in ("relu", "tanh") if name in groups]
    return studies.Claim(
        "ReLU reaches 25 % training error on CIFAR-10 about 6 times sooner than tanh",
        "6 times (figure 1)",
        "; ".join(ours.values()),
        f"ReLU sooner {tables.verdict(sooner, tables.size(*compared, pixels=study.side))}"
        + ("; six times sooner does not" if fewer.decided and fewer.value > 0 else ""),
    )


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs=LENGTH)

if __name__ == "__main__":
    studies.main(STUDY)
