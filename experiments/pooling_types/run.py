"""Kinds of pooling in SimpleCNN on Fashion-MNIST.

    python experiments/pooling_types/run.py            # goes on where it was stopped
    python experiments/pooling_types/run.py --tables   # only rewrites table and figure from results.csv

Each kind is trained with each learning rate and seed; a kind is judged at the learning rate that is best for
it on validation.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax import config as config_lib
from cnnjax.cli.sweep import Lines
from cnnjax.runs.results import Row, best, read_results, spread
from cnnjax.runs.sweep import sweep
from experiments import pages, studies

MODEL, RATE = "model", "optimizer.learning_rate"
KINDS = ("max", "average", "l2", "min", "center_weighted", "adaptive", "strided")
RATES = (0.003,)
SEEDS = 3


def spec(kind: str) -> str:
    return f'simple_cnn(pooling="{kind}")'


def make_config() -> config_lib.ConfigDict:
    """One epoch on 55,000 images; 5,000 of train are held out for the choice of the learning rate."""
    config = config_lib.default()
    config.data.name = "fashion_mnist"
    config.data.num_validation = 5000
    config.total_epochs = 1.0
    config.optimizer.warmup_epochs = 0.1
    config.eval_batch_size = 1000
    config.log_every_steps = 100
    return config


def read_rows() -> list[Row]:
    return read_results(HERE)


def chosen(rows: list[Row], kind: str) -> list[Row]:
    """The runs of a kind at its best learning rate on validation."""
    members = [row for row in rows if row[MODEL] == spec(kind)]
    rate = (best(members, [RATE]) or {}).get(RATE)
    return [row for row in members if row[RATE] == rate]


def table(rows: list[Row]) -> str:
    """A row a kind, the best on the test split first, as Markdown."""
    lines = [
        "| pooling | learning rate | validation % | test % | test loss | seeds | seconds a run |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {kind: members for kind in KINDS if (members := chosen(rows, kind))}
    for kind in by_test(found):
        members = found[kind]
        columns = {name: [row[name] for row in members] for name in members[0]}
        lines.append(
            f"| {kind} | {columns[RATE][0]} | {spread(columns['validation_accuracy'])} "
            f"| {spread(columns['test_accuracy'])} | {spread(columns['test_loss'], 1, 4)} | {len(members)} "
            f"| {spread(columns['seconds'], 1, 1)} |"
        )
    last = rows[-1]
    versions = json.loads(last["versions"])
    lines += [
        "",
        f"Mean ± standard deviation. {len(rows)} runs of {float(last['epochs']):g} epoch, {last['params']} "
        f"parameters, {last['machine']}, CPU kernels: {last['cpu_kernels']}, jax {versions['jax']}, flax "
        f"{versions['flax']}. Written by `python experiments/pooling_types/run.py` from `results.csv`.",
    ]
    return "\n".join(lines)


def by_test(found: dict[str, list[Row]]) -> list[str]:
    """The kinds, the highest mean test accuracy first."""
    return sorted(
        found, key=lambda kind: -sum(float(r["test_accuracy"]) for r in found[kind]) / len(found[kind])
    )


def plot(rows: list[Row]) -> None:
    """Test accuracy of each run at the kind's learning rate, with the mean."""
    from matplotlib.figure import Figure

    found = {kind: members for kind in KINDS if (members := chosen(rows, kind))}
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    kinds = by_test(found)
    for place, kind in enumerate(kinds):
        values = [100 * float(row["test_accuracy"]) for row in found[kind]]
        axes.plot(values, [place] * len(values), "o", color="#4477aa", alpha=0.6)
        axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color="black")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy %, one dot a seed, the line their mean")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(HERE / "accuracy.svg", metadata={"Date": None})


def claim(rows: list[Row]) -> studies.Claim:
    means = {kind: studies.mean(chosen(rows, kind), "test_accuracy") for kind in KINDS if chosen(rows, kind)}
    order = sorted(means, key=means.get, reverse=True)
    return studies.Claim(
        "kinds of pooling: max, average, L2, min, adaptive, strided",
        "none given",
        "; ".join(f"{kind} {100 * means[kind]:.1f} %" for kind in order),
        f"{order[0]} ahead, {order[-1]} last",
    )


def main() -> None:
    if "--tables" not in sys.argv:
        values = {MODEL: [spec(kind) for kind in KINDS], RATE: RATES}
        sweep(make_config(), values, HERE, seeds=SEEDS, board=Lines())
    if rows := read_rows():
        pages.write((HERE / "README.md",), "pooling_types", table(rows))
        plot(rows)


if __name__ == "__main__":
    studies.start(main)
