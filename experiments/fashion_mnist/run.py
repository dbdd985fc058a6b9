"""SimpleCNN on Fashion-MNIST over three seeds: trains what is missing, then writes the tables.

    python experiments/fashion_mnist/run.py            # resumes where it was stopped
    python experiments/fashion_mnist/run.py --tables   # only rewrites the tables from results.csv

Rows are appended to results.csv as runs end; the README here and the one of the project get their table from
that file.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax import config as config_lib  # noqa: E402
from cnnjax import loop  # noqa: E402
from cnnjax.progress import terminal  # noqa: E402
from cnnjax.runs import Run  # noqa: E402
from experiments import pages, studies  # noqa: E402

CONFIG = "configs/fashion_mnist_simple_cnn.py"
SEEDS = (0, 1, 2)
RESULTS = HERE / "results.csv"
PAGES = (HERE / "README.md", ROOT / "README.md")


def train(seed: int) -> dict[str, object]:
    """Trains one seed to the end and returns its row."""
    config = config_lib.from_file(str(ROOT / CONFIG))
    config.seed = seed
    result = loop.train(config, HERE / "runs" / f"seed{seed}", terminal())
    run = Run.open(result.path)
    record, last = run.read_json("record.json"), run.metrics()[-1]
    return {
        "seed": seed,
        "validation_accuracy": f"{last['validation_accuracy']:.4f}",
        "test_accuracy": f"{result.test['accuracy']:.4f}",
        "test_macro_f1": f"{result.test['macro']['f1']:.4f}",
        "epochs": config.total_epochs,
        "train_seconds": f"{last['seconds']:.1f}",
        "compile_seconds": record["compile_seconds"],
        "cpu_kernels": record.get("cpu_kernels", "off"),
        "config": CONFIG,
        "commit": record["commit"],
        "started": record["started"],
        "machine": f"{record['machine']['processor']}, {record['machine']['cores']} cores",
        "versions": json.dumps(record["versions"]),
    }


def read_rows() -> list[dict[str, str]]:
    """The rows of results.csv so far."""
    if not RESULTS.exists():
        return []
    with open(RESULTS, newline="") as file:
        return list(csv.DictReader(file))


def append(row: dict[str, object]) -> None:
    """Adds one row to results.csv, with the head where it is new."""
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def table(rows: list[dict[str, str]]) -> str:
    """The rows as Markdown, with mean and standard deviation over the seeds."""

    def spread(name: str, scale: float, digits: int) -> str:
        values = [scale * float(row[name]) for row in rows]
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    lines = ["| seed | validation % | test % | macro F1 | minutes |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['seed']} | {100 * float(row['validation_accuracy']):.2f} "
        f"| {100 * float(row['test_accuracy']):.2f} | {row['test_macro_f1']} "
        f"| {float(row['train_seconds']) / 60:.1f} |"
        for row in rows
    ]
    if len(rows) > 1:
        lines.append(
            f"| **mean ± std** | {spread('validation_accuracy', 100, 2)} "
            f"| **{spread('test_accuracy', 100, 2)}** | {spread('test_macro_f1', 1, 4)} "
            f"| {spread('train_seconds', 1 / 60, 1)} |"
        )
    first = rows[0]
    versions = json.loads(first["versions"])
    lines += [
        "",
        f"`{first['config']}`, {float(first['epochs']):g} epochs, {first['machine']}, "
        f"CPU kernels: {first['cpu_kernels']}, jax {versions['jax']}, flax {versions['flax']}. Minutes are "
        f"training with its evaluations, after {first['compile_seconds']} s of compilation. Written by "
        "`python experiments/fashion_mnist/run.py` from `experiments/fashion_mnist/results.csv`.",
    ]
    return "\n".join(lines)


def claim(rows: list[dict[str, str]]) -> studies.Claim:
    accuracy = [100 * float(row["test_accuracy"]) for row in rows]
    seconds = statistics.mean(float(row["train_seconds"]) for row in rows)
    return studies.Claim(
        "the module's own CNN on Fashion-MNIST",
        "nets of two convolutions: 87.6 to 93.4 % (the data set's table)",
        f"{statistics.mean(accuracy):.2f} ± {statistics.stdev(accuracy):.2f} % in {seconds:.0f} s",
        "at least 92 %" if statistics.mean(accuracy) >= 92 else "below 92 %",
    )


def main() -> None:
    done = {int(row["seed"]) for row in read_rows()}
    for seed in () if "--tables" in sys.argv else SEEDS:
        if seed not in done:
            append(train(seed))
    pages.write(PAGES, "fashion_mnist", table(read_rows()))


if __name__ == "__main__":
    main()
