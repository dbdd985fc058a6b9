"""Does computing in bfloat16 cost accuracy? SimpleCNN on Fashion-MNIST and a small ResNet on CIFAR-10.

python experiments/bfloat16/run.py                                     # what is not in the tables yet
python experiments/bfloat16/run.py cifar10 --data=records:runs/cifar10 # images that were prepared before
python experiments/bfloat16/run.py --tables                            # only rewrites the table
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from cnnjax import config as config_lib
from cnnjax.cli.boards import Lines
from cnnjax.runs.results import Row, read_results, spread
from cnnjax.runs.sweep import sweep
from experiments import pages, results, studies

DTYPES = ("float32", "bfloat16")
SEEDS = 3


def fashion_mnist() -> config_lib.ConfigDict:
    """SimpleCNN, as by default, for two epochs."""
    config = config_lib.default()
    config.data.name = "fashion_mnist"
    config.optimizer.warmup_epochs = 0.1
    return config


def cifar10() -> config_lib.ConfigDict:
    """A ResNet of one block a stage, with BatchNorm, on augmented images."""
    config = config_lib.default()
    config.data.name = "cifar10"
    config.model = "resnet20_cifar(stage_sizes=(1, 1, 1))"
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate, config.optimizer.weight_decay = 0.1, 0.0001
    config.optimizer.warmup_epochs = 0.2
    return config


CASES = {"fashion_mnist": fashion_mnist, "cifar10": cifar10}


def make_config(case: str) -> config_lib.ConfigDict:
    config = CASES[case]()
    config.data.num_validation = 5000
    config.total_epochs = 2.0
    config.eval_batch_size = 1000
    config.log_every_steps = 100
    return config


def read_rows() -> list[Row]:
    """The rows of both sweeps, each with its case."""
    return [{"case": case, **row} for case in CASES for row in read_results(HERE / case)]


def table(rows: list[Row]) -> str:
    """A row for each data set and dtype, as Markdown; nothing as long as no run has ended."""
    if not rows:
        return ""
    lines = [
        "| data | network | dtype | validation % | test % | test loss | seeds | seconds per run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for dtype in DTYPES:
            members = [row for row in rows if (row["case"], row["dtype"]) == (case, dtype)]
            if not members:
                continue
            columns = {name: [row[name] for row in members] for name in members[0]}
            cells = [
                case,
                f"`{make_config(case).model}`",
                dtype,
                spread(columns["validation_accuracy"]),
                spread(columns["test_accuracy"]),
                spread(columns["test_loss"], 1, 4),
                results.seeds(members),
                spread(columns["seconds"], 1, 1),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    last = rows[-1]
    versions = json.loads(last["versions"])
    lines += [
        "",
        f"Mean ± standard deviation. {len(rows)} runs of {float(last['epochs']):g} epochs, "
        f"{last['machine']}, CPU kernels: {last['cpu_kernels']}, jax {versions['jax']}, flax "
        f"{versions['flax']}. Written by `python experiments/bfloat16/run.py` from `*/results.csv`.",
    ]
    return "\n".join(lines)


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("--")] or list(CASES)
    data = next((word.partition("=")[2] for word in sys.argv if word.startswith("--data=")), "")
    for case in words if "--tables" not in sys.argv else ():
        config = make_config(case)
        config.data.name = data or config.data.name
        sweep(config, {"dtype": DTYPES}, HERE / case, seeds=SEEDS, board=Lines())
    if rows := read_rows():
        pages.write((HERE / "README.md",), "bfloat16", table(rows))


if __name__ == "__main__":
    studies.start(main)
