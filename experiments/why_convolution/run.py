"""Accuracy against parameters of fully connected and convolutional nets on Fashion-MNIST, and shifted images.

See `experiments/studies.py` for the flags. shifts.csv holds the accuracy of each run on the test images moved
by 1 to 4 pixels, each image to a side drawn once for all runs.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np
from matplotlib.figure import Figure

import cnnjax
from cnnjax import config as config_lib
from cnnjax.runs.results import Row, read_results
from cnnjax.runs.sweep import Board, sweep
from experiments import pages, studies  # noqa: F401

MODEL = "model"
NETS = {
    "no hidden layer": "lenet_300_100(widths=())",
    "dense 16": "lenet_300_100(widths=(16,))",
    "dense 128": "lenet_300_100(widths=(128,))",
    "dense 300, 100": "lenet_300_100",
    "CNN 4, 8": "simple_cnn(widths=(4, 8))",
    "CNN 8, 16": "simple_cnn(widths=(8, 16))",
    "CNN 16, 32": "simple_cnn",
}
SHIFTS = (1, 2, 3, 4)
SEEDS = 5


def make_config(full: bool) -> config_lib.ConfigDict:
    """AdamW, the default learning rate, no augmentation, 55,000 images."""
    config = config_lib.default()
    config.data.name = "fashion_mnist"
    config.data.num_validation = 5000
    config.total_epochs = 20.0 if full else 2.0
    config.optimizer.warmup_epochs = 0.1
    config.eval_batch_size = 1000
    config.log_every_steps = 430
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """Every net with every seed, then each on shifted images."""
    sweep(config, {MODEL: list(NETS.values())}, out, seeds=SEEDS, board=board)
    source = cnnjax.load_dataset(config.data.name, "test")
    moved = {shift: shifted(source.images, shift) for shift in SHIFTS}

    def measure(path: Path) -> dict[str, float]:
        model = cnnjax.load_run(path)
        return {
            f"shift_{shift}": np.mean(
                [p.probabilities.argmax() for p in model.predict(images, batch_size=1000)] == source.labels
            )
            for shift, images in moved.items()
        }

    studies.add_scores(out, "shifts", measure)


def shifted(images: np.ndarray, pixels: int) -> np.ndarray:
    """uint8 [N, H, W, C], each moved up, down, left or right, black where nothing was."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    sides = np.random.default_rng(0).integers(4, size=len(images))
    places = np.array([(0, 1), (2, 1), (1, 0), (1, 2)])[sides] * pixels
    return np.stack(
        [image[y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)]
    )


def read_rows() -> list[Row]:
    """The rows of results.csv with those of shifts.csv."""
    return studies.with_scores(read_results(HERE), HERE, "shifts")


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By net its runs."""
    return studies.by_field(rows, MODEL, NETS)


def table(rows: list[Row]) -> str:
    moved = {f"moved {shift} px %": studies.percent(f"shift_{shift}") for shift in SHIFTS}
    columns = ("parameters", "validation %", "test %", *moved)
    return studies.score_table(HERE, "net", groups(rows), columns, moved)


def figure(rows: list[Row]) -> Figure:
    """Accuracy against parameters, and against the shift."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for kind, colour in (("CNN", studies.COLOURS[0]), ("", studies.COLOURS[1])):
        members = {n: m for n, m in groups(rows).items() if n.startswith("CNN") == bool(kind)}
        for i, (net, runs) in enumerate(members.items(), 1):
            values = [100 * float(row["test_accuracy"]) for row in runs]
            left.plot([int(runs[0]["params"])] * len(values), values, "o", color=colour, alpha=0.6)
            left.annotate(net, (int(runs[0]["params"]), max(values)), fontsize=7)
            curve = [100 * studies.mean(runs, c) for c in ("test_accuracy", *(f"shift_{s}" for s in SHIFTS))]
            right.plot((0, *SHIFTS), curve, color=colour, alpha=0.3 + 0.7 * i / len(members), label=net)
    left.set(xscale="log", xlabel="parameters", ylabel="test accuracy %")
    right.set(xlabel="pixels that the test images are moved by", ylabel="accuracy %")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return drawn


def claim(rows: list[Row]) -> studies.Claim:
    found = groups(rows)
    accuracy = {net: studies.mean(members, "test_accuracy") for net, members in found.items()}
    params = {net: int(members[0]["params"]) for net, members in found.items()}
    dense = max((net for net in found if not net.startswith("CNN")), key=accuracy.get)
    better = [net for net in found if net.startswith("CNN") and accuracy[net] >= accuracy[dense]]
    small = min(better, key=params.get) if better else max(found, key=accuracy.get)
    return studies.Claim(
        "a CNN needs far fewer weights than a fully connected net for the same accuracy",
        "none given",
        f"{small}: {params[small]:,} weights, {100 * accuracy[small]:.1f} %; best dense net: "
        f"{params[dense]:,}, {100 * accuracy[dense]:.1f} %",
        f"holds: {params[dense] / params[small]:.0f} times fewer" if better else "does not hold here",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
