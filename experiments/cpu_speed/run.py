"""Training steps of this project beside PyTorch's, in turn, on this machine's CPU.

python experiments/cpu_speed/run.py            # measures what the CSVs lack of this machine
python experiments/cpu_speed/run.py resnet18 float32 # only what is named; `ops` are the kernels
python experiments/cpu_speed/run.py --tables   # only rewrites tables and figure from the CSVs

Needs the extra `peers`. Each row is `cnnjax bench train --model=M --batch_size=B --dtype=D --against=torch`
in a process of its own, five alternations; leave the machine alone meanwhile.
"""

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax.runs.record import processor
from experiments import pages, results

RESULTS, OPS = HERE / "results.csv", HERE / "ops.csv"
# The ratios to PyTorch that this project set itself, float32 and bfloat16.
TARGETS = {
    ("simple_cnn", 128): (1.8, 1.3),
    ("alexnet_torchvision", 32): (1.1, 1.0),
    ("googlenet_torchvision", 32): (1.2, 1.0),
    ("resnet18", 32): (1.1, 1.0),
    ("resnet50", 32): (1.1, 1.0),
    ("resnet20_cifar", 128): (None, 1.0),
}
DTYPES = ("float32", "bfloat16")
MEASURED = (
    *("images_per_second", "images_per_second_min", "images_per_second_max", "torch_images_per_second"),
    *("ratio", "ratio_min", "ratio_max", "first_step_seconds", "peak_memory_bytes", "cpu_kernels"),
)


def measure(model: str, batch: int, dtype: str) -> dict[str, object]:
    """One row."""
    command = [sys.executable, "-m", "cnnjax", "bench", "train", f"--model={model}", f"--batch_size={batch}"]
    command += [f"--dtype={dtype}", "--against=torch", "--seconds=1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{model} {dtype}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch")}
    return {
        "model": model, "batch": batch, "dtype": dtype, **{key: found[key] for key in MEASURED},
        "shares": json.dumps(found["shares"]),
        **versions, "machine": processor(), "python": platform.python_version(),
    }  # fmt: skip


def measure_ops() -> list[dict[str, object]]:
    """Each kernel beside XLA."""
    command = [sys.executable, str(HERE / "bench_ops.py")]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    facts = {"jax": importlib.metadata.version("jax"), "machine": processor()}
    return [{**json.loads(line), **facts} for line in lines]


def read_rows() -> list[dict[str, str]]:
    """All rows, machines of one model and dtype beside each other."""
    order = [(model, dtype) for model, _ in TARGETS for dtype in DTYPES]
    return sorted(results.read(RESULTS), key=lambda row: order.index((row["model"], row["dtype"])))


def table(rows: list[dict[str, str]]) -> str:
    """The measured rows as Markdown, with the target of each."""
    lines = [
        "| model, batch | dtype | processor | images/s | PyTorch | ratio (lowest, highest) | target "
        "| first step s | where our time goes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        target = TARGETS[row["model"], int(row["batch"])][DTYPES.index(row["dtype"])]
        verdict = "" if target is None else f"{target} {'met' if float(row['ratio']) >= target else 'missed'}"
        where = ", ".join(
            f"{kind} {share:.0%}" for kind, share in list(json.loads(row["shares"]).items())[:3]
        )
        lines.append(
            f"| {row['model']}, {row['batch']} | {row['dtype']} | {row['machine']} "
            f"| {float(row['images_per_second']):,.1f} "
            f"| {float(row['torch_images_per_second']):,.1f} "
            f"| **{float(row['ratio']):.2f}** ({float(row['ratio_min']):.2f}, {float(row['ratio_max']):.2f}) "
            f"| {verdict} | {float(row['first_step_seconds']):.1f} | {where} |"
        )
    last = rows[-1]
    lines += [
        "",
        f"Median of five alternations; synthetic images, SGD with momentum, cross entropy; PyTorch eager and "
        f"channels_last. {last['cpu_kernels']}, jax {last['jax']}, torch {last['torch']}. "
        "Written by `python experiments/cpu_speed/run.py` from `experiments/cpu_speed/results.csv`.",
    ]
    return "\n".join(lines)


def ops_table(rows: list[dict[str, str]]) -> str:
    """Each kernel beside XLA as Markdown, machines beside each other."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    found = {(row["operation"], row["dtype"], row["machine"]): row for row in rows}
    heads = "".join(f" {machine}: XLA ms | kernel ms | ratio |" for machine in machines)
    lines = [f"| operation | dtype |{heads}", "|---|---|" + "---|---|---|" * len(machines)]
    for operation, dtype in dict.fromkeys((row["operation"], row["dtype"]) for row in rows):
        line = f"| {operation} | {dtype} |"
        for machine in machines:
            row = found.get((operation, dtype, machine))
            line += " | | |" if row is None else (
                f" {float(row['xla_ms']):.2f} | {float(row['kernel_ms']):.2f} | {float(row['ratio']):.1f} |"
            )  # fmt: skip
        lines.append(line)
    return "\n".join(lines)


def draw(rows: list[dict[str, str]]) -> None:
    """The ratios as bars, with their range and their targets; a panel a machine."""
    plt.rcParams["svg.hashsalt"] = "cnnjax"  # the same figure is the same file
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    kinds = list(dict.fromkeys((row["model"], row["dtype"]) for row in rows))
    figure, axes = plt.subplots(
        1, len(machines), sharex=True, sharey=True, squeeze=False, figsize=(10, 4), layout="constrained"
    )
    panels = dict(zip(machines, axes[0], strict=True))
    for row in rows:
        axis, i = panels[row["machine"]], kinds.index((row["model"], row["dtype"]))
        ratio, dtype = float(row["ratio"]), DTYPES.index(row["dtype"])
        spread = [[ratio - float(row["ratio_min"])], [float(row["ratio_max"]) - ratio]]
        axis.barh(i, ratio, xerr=spread, color=("#4477aa", "#ee6677")[dtype], error_kw={"elinewidth": 1})
        if target := TARGETS[row["model"], int(row["batch"])][dtype]:
            axis.plot([target, target], [i - 0.4, i + 0.4], color="black")
    for machine, axis in panels.items():
        axis.set_title(",\n".join(machine.rsplit(", ", 1)), fontsize="medium")
        axis.axvline(1, color="grey", linestyle=":")
    axes[0, 0].set_yticks(range(len(kinds)), [f"{model} {dtype}" for model, dtype in kinds])
    axes[0, 0].invert_yaxis()
    figure.supxlabel("images/s, ratio to PyTorch (black: target)", fontsize="medium")
    figure.savefig(HERE / "ratios.svg", metadata={"Date": None})
    plt.close(figure)


def main(arguments: list[str]) -> None:
    if "--tables" not in arguments:
        have = {(row["model"], row["dtype"]) for row in read_rows() if row["machine"] == processor()}
        dtypes = [dtype for dtype in DTYPES if dtype in arguments] or DTYPES
        models = [model for model in arguments if model not in DTYPES]
        for model, batch in TARGETS:
            for dtype in dtypes:
                if (model, dtype) not in have and (not models or model in models):
                    results.append(RESULTS, measure(model, batch, dtype))
        measured = any(row["machine"] == processor() for row in results.read(OPS))
        if not measured and (not models or "ops" in models):
            results.append(OPS, *measure_ops())
    rows, ops = read_rows(), results.read(OPS)
    if rows:
        draw(rows)
        pages.write((HERE / "README.md", ROOT / "README.md"), "cpu_speed", table(rows))
    if ops:
        pages.write((HERE / "README.md",), "cpu_ops", ops_table(ops))


if __name__ == "__main__":
    main(sys.argv[1:])
