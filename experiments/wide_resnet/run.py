"""Thin and deep against wide and shallow residual nets, in equal time and with equal parameters.

See `experiments/studies.py` for the flags. Zagoruyko, Komodakis 2016, arXiv:1605.07146, tables 4 and 5. Each
net trains for 45 minutes of two quiet cores: its epochs follow from its images a second in
`experiments/speeds.csv`. WRN-40-1 and WRN-16-2 have about as many parameters, as have WRN-22-2 and WRN-10-4.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.results import Row
from experiments import curves, results, speeds, studies, tables

SIZES = ((40, 1), (16, 2), (22, 2), (10, 4))  # depth, widening factor
NETS = {f"WRN-{d}-{k}": {"model": f"wrn_16_4(depth={d}, widen_factor={k})"} for d, k in SIZES}
PAIRS = (("WRN-40-1", "WRN-16-2"), ("WRN-22-2", "WRN-10-4"))
SECONDS, SEEDS, PAPER = 45 * 60, 2, 200.0


def make_config() -> config_lib.ConfigDict:
    """The paper's Nesterov momentum at 0.1 and decay, over fewer epochs and with a cosine."""
    config = studies.cifar10()
    config.augment.train = "random_crop(32, padding=4, padding_mode='reflect')|mirror|normalize"
    config.optimizer.name = "nesterov(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay, config.optimizer.decay = 0.0005, "all"
    config.optimizer.warmup_epochs = 0.0
    return config


def epochs(model: str) -> float:
    """That fit into the time on the first machine in speeds.csv; the paper's of a net that is not there."""
    return speeds.epochs((model, "128", "float32", "32"), SECONDS, 45_000, PAPER)


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    """Every net with every seed."""
    runs = [studies.seeds({label: net}, epochs(net["model"]), SEEDS) for label, net in NETS.items()]
    return sorted((run for each in runs for run in each), key=lambda run: run.seed)


def table(study: studies.Study, out: Path) -> str:
    return tables.score_table(out, "net", study.groups(out))


def figure(study: studies.Study, out: Path) -> Figure:
    """Test error by parameters and by minutes of training, a dot a run."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, column in zip(drawn.subplots(1, 2, sharey=True), ("parameters", "minutes"), strict=True):
        for (net, rows), colour in zip(study.groups(out).items(), curves.COLOURS, strict=False):
            xs = [
                float(row["params"]) if column == "parameters" else tables.quiet_seconds(row, out) / 60
                for row in results.finished(rows)
            ]
            errors = [100 - 100 * value for value in tables.scores(rows)]
            axes.plot(xs, errors, "o", color=colour, alpha=0.7, label=net)
        axes.set(xscale="log" if column == "parameters" else "linear", xlabel=column)
        axes.grid(alpha=0.3)
    drawn.axes[0].set_ylabel("test error %")
    drawn.axes[1].legend(fontsize=8)
    return drawn


def claim(study: studies.Study, out: Path) -> studies.Claim:
    groups = study.groups(out)
    gains = {
        f"{wide} less {deep}": tables.difference(*(tables.scores(groups.get(n, ())) for n in (wide, deep)))
        for deep, wide in PAIRS
    }
    size = tables.size(*groups.values(), pixels=study.side)
    minutes = ", ".join(dict.fromkeys(tables.minutes(rows, out) for rows in groups.values()))
    return studies.Claim(
        "width is the cheaper way to capacity than depth",
        "CIFAR-10: WRN-16-8 95.73 %, pre-activation ResNet-1001 95.08 %, at a fraction of the time",
        "; ".join(f"{name} {gain.points()}" for name, gain in gains.items()) + f", each in {minutes} minutes",
        "; ".join(f"{name}: {tables.verdict(gain, size)}" for name, gain in gains.items()),
    )


STUDY = studies.Study(
    HERE, make_config, plan, table, figure, claim, paper_epochs=PAPER, caption="A dot is a run."
)

if __name__ == "__main__":
    studies.main(STUDY)
