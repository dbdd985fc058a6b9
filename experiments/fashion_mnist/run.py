"""SimpleCNN on Fashion-MNIST over three seeds, then a larger net within an hour.

    python experiments/fashion_mnist/run.py            # trains what is missing, then writes the tables
    python experiments/fashion_mnist/run.py --tables   # only rewrites the tables from results.csv

Rows are appended to results.csv as runs end; the README here and the one of the project get their table from
that file.
"""

import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax import config as config_lib
from cnnjax.cli.progress import terminal
from cnnjax.runs import train as loop
from cnnjax.runs.folder import Run
from experiments import pages, results, studies

SIMPLE, HOUR = "configs/fashion_mnist_simple_cnn.py", "configs/fashion_mnist_airbench.py"
SEEDS = {SIMPLE: (0, 1, 2), HOUR: (0,)}
GOALS = {SIMPLE: 92, HOUR: 95.5}  # test accuracy in per cent
RESULTS = HERE / "results.csv"
PAGES = (HERE / "README.md", ROOT / "README.md")


def train(file: str, seed: int) -> dict[str, object]:
    """Trains one seed of a config to the end and returns its row."""
    config = config_lib.from_file(str(ROOT / file))
    config.seed = seed
    result = loop.train(config, HERE / "runs" / f"{Path(file).stem}_seed{seed}", terminal())
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
        "config": file,
        "commit": record["commit"],
        "started": record["started"],
        "machine": f"{record['machine']['processor']}, {record['machine']['cores']} cores",
        "versions": json.dumps(record["versions"]),
    }


def read_rows() -> list[dict[str, str]]:
    """The rows of results.csv so far."""
    return results.read(RESULTS)


def runs_of(rows: list[dict[str, str]], file: str) -> list[dict[str, str]]:
    """The rows of one config."""
    return [row for row in rows if row["config"] == file]


def lines(rows: list[dict[str, str]]) -> list[str]:
    """A line a run of one config, and below several their mean and standard deviation."""

    def spread(name: str, scale: float, digits: int) -> str:
        values = [scale * float(row[name]) for row in rows]
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    name = f"`{Path(rows[0]['config']).stem}`"
    found = [
        f"| {name} | {row['seed']} | {100 * float(row['validation_accuracy']):.2f} "
        f"| {100 * float(row['test_accuracy']):.2f} | {row['test_macro_f1']} "
        f"| {float(row['train_seconds']):,.0f} |"
        for row in rows
    ]
    if len(rows) > 1:
        found.append(
            f"| {name} | **mean ± std** | {spread('validation_accuracy', 100, 2)} "
            f"| **{spread('test_accuracy', 100, 2)}** | {spread('test_macro_f1', 1, 4)} "
            f"| {spread('train_seconds', 1, 0)} |"
        )
    return found


def source(rows: list[dict[str, str]]) -> str:
    """Where the lines of one config come from."""
    first = rows[0]
    versions = json.loads(first["versions"])
    return (
        f"`{first['config']}`: {float(first['epochs']):g} epochs, {first['machine']}, CPU kernels: "
        f"{first['cpu_kernels']}, jax {versions['jax']}, flax {versions['flax']}; compiled in "
        f"{first['compile_seconds']} s."
    )


def table(rows: list[dict[str, str]]) -> str:
    """The runs of both configs as Markdown."""
    groups = [members for file in SEEDS if (members := runs_of(rows, file))]
    head = ["| config | seed | validation % | test % | macro F1 | seconds |", "|---|---|---|---|---|---|"]
    return "\n".join(
        [
            *head,
            *(line for members in groups for line in lines(members)),
            "",
            *(source(members) for members in groups),
            "Seconds are training with its evaluations. Written by `python experiments/fashion_mnist/run.py` "
            "from `experiments/fashion_mnist/results.csv`.",
        ]
    )


def reached(rows: list[dict[str, str]], file: str) -> tuple[str, str]:
    """What the runs of a config reached, and whether that is its goal."""
    if not (members := runs_of(rows, file)):
        return "not run yet", f"{GOALS[file]} % not tried"
    accuracy = [100 * float(row["test_accuracy"]) for row in members]
    mean = statistics.mean(accuracy)
    seconds = statistics.mean(float(row["train_seconds"]) for row in members)
    apart = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
    verdict = f"{'at least' if mean >= GOALS[file] else 'below'} {GOALS[file]} %"
    return f"{mean:.2f}{apart} % in {seconds:.0f} s", verdict


def claim(rows: list[dict[str, str]]) -> studies.Claim:
    """The module's net, and a larger one within an hour."""
    (simple, simple_goal), (hour, hour_goal) = (reached(rows, file) for file in SEEDS)
    return studies.Claim(
        "the module's own CNN on Fashion-MNIST, and a larger one within an hour",
        "nets of two convolutions: 87.6 to 93.4 % (the data set's table)",
        f"{simple}; within an hour: {hour}",
        f"{simple_goal}; {hour_goal}",
    )


def main() -> None:
    done = {(row["config"], int(row["seed"])) for row in read_rows()}
    for file, seeds in () if "--tables" in sys.argv else SEEDS.items():
        for seed in seeds:
            if (file, seed) not in done:
                results.append(RESULTS, train(file, seed))
    pages.write(PAGES, "fashion_mnist", table(read_rows()))


if __name__ == "__main__":
    studies.start(main)
