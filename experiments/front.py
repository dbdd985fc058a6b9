"""The five results on the front page, from the CSVs of their studies.

python experiments/front.py
"""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cnnjax.runs.results import spread
from experiments import pages, results, studies
from experiments.cpu_speed import tables as speed
from experiments.tables import markdown

PEERS = {
    "torch": "eager PyTorch",
    "torch_compile": "`torch.compile`",
    "keras": "Keras",
    "keras_tensorflow": "Keras",
}


def accuracy() -> tuple[str, str]:
    """SimpleCNN on the whole of Fashion-MNIST."""
    study = next(studies.every(["fashion_mnist"]))
    seeds = len(results.finished(study.rows()))
    ours = study.claim(study, study.here).ours
    return f"Test accuracy of SimpleCNN on Fashion-MNIST, {seeds} seeds, two CPU cores", ours


def fine_tuning() -> tuple[str, str]:
    """A pretrained ResNet-20 on few images, against training from scratch."""
    rows = [row for row in results.read(HERE / "finetune" / "results.csv") if row["data"] == "Fashion-MNIST"]
    scores = {
        arm: spread([row["test_accuracy"] for row in rows if row["arm"] == arm])
        for arm in ("all layers", "from scratch")
    }
    images, seeds = rows[0]["images"], len({row["seed"] for row in rows})
    return (
        f"Test accuracy with {images} Fashion-MNIST images, ResNet-20, {seeds} seeds",
        f"pretrained on CIFAR-10 {scores['all layers']} %, from scratch {scores['from scratch']} %",
    )


def training_speed() -> tuple[str, str]:
    """Against the fastest of the others that were measured with a network, on the main machine."""
    rows = speed.read_rows()
    machine = speed.main_machine(rows, "train")
    found = [
        bench
        for (where, _, _, dtype), bench in speed.benches(rows, "train").items()
        if (where, dtype) == (machine, "float32") and speed.best([*bench.values()])
    ]
    ratio = statistics.geometric_mean(top[1] for bench in found if (top := speed.best([*bench.values()])))
    measured = {name for bench in found for name, row in bench.items() if row["ratio"]}
    *peers, last = dict.fromkeys(words for name, words in PEERS.items() if name in measured)
    return (
        f"Training speed, float32, {len(found)} networks, two CPU cores",
        f"{ratio:.2f} times the fastest measured of {', '.join(peers)} and {last} (geometric mean)",
    )


def input_speed() -> tuple[str, str]:
    """JPEG files to batches of 256x256."""
    row = results.read(HERE / "data_speed" / "results.csv")[-1]
    return (
        f"Input pipeline, JPEG to 256x256, {row['cores']} cores",
        f"{float(row['jpeg_images_per_second']):,.0f} images/s, "
        f"{100 * float(row['jpeg_ratio']):.0f} % of the decoder alone",
    )


def resumption() -> tuple[str, str]:
    """Runs killed at random moments."""
    rows = [row for row in results.read(HERE / "reliability" / "results.csv") if row["test"] == "random"]
    killed, wrong = (sum(int(row[name]) for row in rows) for name in ("inputs", "failed"))
    return (
        "Training killed at random moments and restarted",
        f"{killed:,} kills, {wrong:,} results different from an uninterrupted run (bit for bit)",
    )


def table() -> str:
    """A row for each result, with its study."""

    def rows() -> Iterator[tuple[str, str, str]]:
        for study, result in {
            "fashion_mnist": accuracy(),
            "finetune": fine_tuning(),
            "cpu_speed": training_speed(),
            "data_speed": input_speed(),
            "reliability": resumption(),
        }.items():
            yield *result, f"[{study}](experiments/{study}/README.md)"

    return markdown(("what", "result", "study"), [*rows()])


def write() -> None:
    """Fills the table on the front page."""
    pages.write((HERE.parent / "README.md",), "results", table())


if __name__ == "__main__":
    write()
