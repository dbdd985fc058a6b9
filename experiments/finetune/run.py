"""Fine-tuning against training from scratch: few real images of classes that the first net never saw.

    python experiments/finetune/run.py            # resumes where it was stopped, some minutes
    python experiments/finetune/run.py --tables   # only rewrites the table from results.csv

SimpleCNN is trained on the classes 0-4 of `fashion_mnist_mini`; then nets for the classes 5-9 are trained on
20 images of each: from scratch, from the first net's weights with a new head, and with its convolutions
frozen.
"""

import statistics
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax import config as config_lib
from cnnjax.data import datasets
from cnnjax.runs import train
from experiments import pages, results, studies

RESULTS = HERE / "results.csv"
SEEDS = (0, 1, 2)
ARMS = {
    "scratch": {},
    "fine-tuned, all layers": {"init_head": "new"},
    "fine-tuned, convolutions frozen": {"init_head": "new", "freeze": "conv|norm"},
}


def write_half(classes: range, per_class: int, seed: int, file: Path) -> str:
    """Saves some classes of the sample, `per_class` training images of each drawn by seed."""
    arrays = {}
    for split in ("train", "test"):
        source = datasets.load("fashion_mnist_mini", split)
        draw = np.random.default_rng(seed)
        chosen = [draw.permutation(np.flatnonzero(source.labels == k)) for k in classes]
        index = np.concatenate([c[:per_class] if split == "train" else c for c in chosen])
        arrays[f"{split}_image"] = source.images[index]
        arrays[f"{split}_label"] = source.labels[index] - classes.start
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    return f"npz:{file}"


def make_config(data: str, seed: int, epochs: float) -> config_lib.ConfigDict:
    config = config_lib.default()
    config.seed, config.total_epochs = seed, epochs
    config.data.name, config.data.num_validation = data, 0
    config.eval_every_epochs = epochs
    return config


def run(seed: int) -> list[dict[str, object]]:
    """All arms of one seed."""
    folder = HERE / "runs" / f"seed{seed}"
    first = make_config(write_half(range(5), 600, seed, folder / "first.npz"), seed, 8.0)
    train.train(first, folder / "first")
    few = write_half(range(5, 10), 20, seed, folder / "few.npz")
    rows = []
    for arm, fields in ARMS.items():
        config = make_config(few, seed, 30.0)
        config.batch_size = 20
        config.update(fields)
        if fields:
            config.init_from = str(folder / "first")
        result = train.train(config, folder / arm.replace(" ", "_").replace(",", ""))
        rows.append({"seed": seed, "arm": arm, "test_accuracy": f"{result.test['accuracy']:.4f}"})
    return rows


def read_rows() -> list[dict[str, str]]:
    return results.read(RESULTS)


def table(rows: list[dict[str, str]]) -> str:
    """Mean and standard deviation of each arm, as Markdown."""
    lines = ["| start | test accuracy %, mean ± std | seeds |", "|---|---|---|"]
    for arm in ARMS:
        found = [100 * float(row["test_accuracy"]) for row in rows if row["arm"] == arm]
        spread = f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}"
        lines.append(f"| {arm} | {spread} | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    done = {int(row["seed"]) for row in read_rows()}
    for seed in () if "--tables" in sys.argv else SEEDS:
        if seed not in done:
            results.append(RESULTS, *run(seed))
    pages.write((HERE / "README.md",), "finetune", table(read_rows()))


if __name__ == "__main__":
    studies.start(main)
