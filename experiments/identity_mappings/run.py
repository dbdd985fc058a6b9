"""Original and pre-activation units at 110 layers on CIFAR-10: error, and gradients by depth during training.

See `experiments/studies.py` for the flags. He et al. 2016, arXiv:1603.05027, tables 2 and 3. scores.csv holds
for each run the Euclidean norm of the gradient of each block's second convolution at steps from the first to
the last.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.folder import Run
from cnnjax.runs.replay import replay_step
from cnnjax.runs.results import Row, spread
from experiments import curves, results, studies, tables

NETS = {
    "original": {"model": "preact_resnet110_cifar(order='original')"},
    "pre-activation": {"model": "preact_resnet110_cifar(order='full_preactivation')"},
}
BLOCKS = 18  # of each of three stages
MOMENTS = (0.0, 0.01, 0.1, 0.5, 1.0)  # of the run at which gradients are measured
LENGTH, LONG, SEEDS = 20.0, 60.0, 2


def make_config() -> config_lib.ConfigDict:
    """SGD with momentum at 0.1 after an epoch of warm-up, divided by 10 at 50 and 75 %; crops, mirror."""
    config = studies.cifar10()
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "step(boundaries=(0.5, 0.75), factor=0.1)"
    config.optimizer.weight_decay, config.optimizer.decay = 0.0001, "all"
    config.optimizer.warmup_epochs = 1.0
    config.keep_checkpoints = 100  # gradients are replayed from the one before each moment
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """Both nets with every seed; then, while hours last, 60 epochs."""
    long = {f"{label}, {LONG:g} epochs": values for label, values in NETS.items()}
    return [*studies.seeds(NETS, LENGTH, SEEDS), *studies.later(studies.seeds(long, LONG, 1))]


def measure(path: Path) -> Mapping[str, float]:
    """The gradient norms of all blocks at all moments."""
    total = Run.open(path).read_json("record.json")["total_steps"]
    found = {}
    for moment in MOMENTS:
        layers = replay_step(path, round(moment * (total - 1))).layers
        for i, j in blocks():
            found[f"at_{moment:g}_stage{i}_block{j}"] = layers[f"stage{i}_block{j}/conv2"][0]
    return found


def blocks() -> list[tuple[int, int]]:
    return [(i, j) for i in range(1, 4) for j in range(1, BLOCKS + 1)]


def norms(row: Row, moment: float) -> list[float]:
    """The gradient norm of each block, from the image on."""
    return [float(row[f"at_{moment:g}_stage{i}_block{j}"]) for i, j in blocks()]


def measured(rows: Sequence[Row]) -> list[Row]:
    """Those with gradient norms; a run that diverged has none."""
    return results.finished(rows, f"at_{MOMENTS[0]:g}_stage1_block1")


def decay(row: Row, moment: float) -> float:
    """How many times larger the gradients are in the last stage than in the first, on average."""
    found = norms(row, moment)
    return sum(found[-BLOCKS:]) / sum(found[:BLOCKS])


def table(study: studies.Study, out: Path) -> str:
    more = {
        f"gradient, last stage / first, at {100 * moment:g} %": lambda rows, out, moment=moment: spread(
            [str(decay(row, moment)) for row in measured(rows)], 1, 2
        )
        for moment in (MOMENTS[0], MOMENTS[2], MOMENTS[-1])
    }
    columns = ("parameters", "epochs", "training error %", "validation %", "test %", *more, "minutes per run")
    return tables.score_table(out, "units", study.groups(out), columns, more)


def figure(study: studies.Study, out: Path) -> Figure:
    """Training error by epoch, and gradient norms by block."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    groups = {label: rows for label, rows in study.groups(out).items() if label in NETS}
    curves.draw(left, groups, out, "accuracy", error=True)
    left.set_ylabel("training error %")
    for (net, rows), colour in zip(groups.items(), curves.COLOURS, strict=False):
        for moment, style in ((0.0, ":"), (0.1, "--"), (1.0, "-")):
            found = [norms(row, moment) for row in measured(rows)]
            means = [sum(values) / len(values) for values in zip(*found, strict=True)]
            label = f"{net}, at {100 * moment:g} %"
            right.plot(range(1, len(means) + 1), means, style, color=colour, label=label)
    right.set(yscale="log", xlabel="block", ylabel="norm of the gradient of conv2")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return drawn


def claim(study: studies.Study, out: Path) -> studies.Claim:
    groups = study.groups(out)
    original, new = (groups.get(label, []) for label in NETS)
    test = tables.difference(tables.scores(new), tables.scores(original))
    size = tables.size(original, new, pixels=study.side)
    return studies.Claim(
        "pre-activation units have a lower error than the original ones at great depth",
        "CIFAR-10, 110 layers: 93.39 % original, 93.63 % pre-activation; 1001 layers: 92.39 and 95.08 %",
        f"pre-activation less original: test {test.points()}; "
        + ", ".join(
            f"{label}: training error {tables.training_error(rows, out)} %"
            for label, rows in groups.items()
            if label in NETS
        ),
        tables.verdict(test, size),
    )


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs=182.0, measure=measure)

if __name__ == "__main__":
    studies.main(STUDY)
