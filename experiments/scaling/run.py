"""How ResNet-50, AlexNet and Inception v3 would scale on TPU pods, by XLA's own compiler and without a TPU.

    python experiments/scaling/run.py                 # what is not in results.csv yet; a minute or two a row
    python experiments/scaling/run.py resnet50/v5e    # only the rows whose name holds that
    python experiments/scaling/run.py --tables        # only rewrites the table and the plot

Needs `pip install -e '.[tpu]'` on Linux. Each row is one `cnnjax compile`.
"""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from experiments import pages, results

RESULTS = HERE / "results.csv"
PER_CHIP = 128  # images
TOPOLOGIES = {"v5e:2x4": 8, "v5e:8x8": 64, "v5e:16x16": 256, "v6e:2x4": 8}
# name -> (model, image size, fields)
NETS = {
    "resnet50": ("resnet50", 224, {"batch_norm": "global"}),
    "resnet50 grouped": ("resnet50", 224, {"batch_norm": f"groups({PER_CHIP})"}),
    "inception_v3": ("inception_v3_with_aux", 299, {"batch_norm": "global"}),
    "inception_v3 grouped": ("inception_v3_with_aux", 299, {"batch_norm": f"groups({PER_CHIP})"}),
    "alexnet": ("alexnet", 227, {}),
    "alexnet towers": ("alexnet", 227, {"mesh": "data:{half},model:2", "sharding": "towers"}),
}


def jobs() -> list[tuple[str, str]]:
    """(net, topology) in the order in which they are most wanted."""
    return [(net, topology) for topology in TOPOLOGIES for net in NETS]


def measure(net: str, topology: str) -> dict[str, object]:
    """One row."""
    model, size, fields = NETS[net]
    chips = TOPOLOGIES[topology]
    fields = {
        "model": model,
        "batch_size": PER_CHIP * chips,
        "dtype": "bfloat16",
        "augment.train": f"random_crop({size})|mirror|normalize(mean=0.45, std=0.25)",
        "augment.eval": f"center_crop({size})|normalize(mean=0.45, std=0.25)",
        "optimizer.name": "sgd",
        "loss.label_smoothing": 0.1,
        **fields,
    }
    side = 256 if size < 256 else 320
    flags = [f"--config.{name}={str(value).format(half=chips // 2)}" for name, value in fields.items()]
    command = [sys.executable, "-m", "cnnjax", "compile", f"--topology={topology}", "--json"]
    done = subprocess.run(
        [*command, f"--image={side}x{side}x3", *flags], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    kinds = found["collectives"]
    reduced = kinds.get("all-reduce", {"count": 0, "bytes_sent": 0})
    others = [value for kind, value in kinds.items() if kind != "all-reduce"]
    return {
        "net": net,
        "topology": topology,
        "chips": chips,
        "images_per_chip": PER_CHIP,
        "memory_gib": round(found["memory_bytes"] / 2**30, 3),
        "state_gib": round(found["argument_bytes"] / 2**30, 3),
        "temporary_gib": round(found["temporary_bytes"] / 2**30, 3),
        "tflops": round(found["xla_flops"] / 1e12, 4),
        "gbytes_accessed": round(found["bytes_accessed"] / 1e9, 3),
        "all_reduces": reduced["count"],
        "all_reduce_mbytes": round(reduced["bytes_sent"] / 1e6, 3),
        "other_collectives": sum(value["count"] for value in others),
        "other_mbytes": round(sum(value["bytes_sent"] for value in others) / 1e6, 3),
        "compute_ms": round(1e3 * found["compute_seconds"], 3),
        "network_ms": round(1e3 * found["network_seconds"], 3),
        "efficiency_alone": round(found["efficiency_alone"], 4),
        "efficiency_hidden": round(found["efficiency_hidden"], 4),
        "compile_seconds": found["compile_seconds"],
        "jax": importlib.metadata.version("jax"),
        "libtpu": importlib.metadata.version("libtpu"),
    }


def table(rows: list[dict[str, str]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| net | topology | GiB per chip | all-reduces | MB sent | others | MB sent | compute ms "
        "| network ms | efficiency % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = [(net, topology) for net in NETS for topology in TOPOLOGIES]
    for row in sorted(rows, key=lambda row: order.index((row["net"], row["topology"]))):
        alone, hidden = (100 * float(row[f"efficiency_{name}"]) for name in ("alone", "hidden"))
        lines.append(
            f"| {row['net']} | {row['topology']} | {float(row['memory_gib']):.2f} | {row['all_reduces']} "
            f"| {float(row['all_reduce_mbytes']):.1f} | {row['other_collectives']} "
            f"| {float(row['other_mbytes']):.1f} | {float(row['compute_ms']):.1f} "
            f"| {float(row['network_ms']):.2f} | {alone:.0f} to {hidden:.0f} |"
        )
    last = rows[-1]
    return "\n".join(lines) + (
        f"\n\nWritten by `python experiments/scaling/run.py` from `results.csv`; jax {last['jax']}, "
        f"libtpu {last['libtpu']}."
    )


def plot(rows: list[dict[str, str]]) -> None:
    """Lower bound of the efficiency by number of v5e chips, one line a net."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for net in NETS:
        points = sorted(
            (int(row["chips"]), 100 * float(row["efficiency_alone"]))
            for row in rows
            if row["net"] == net and row["topology"].startswith("v5e")
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=net) if points else None
    axes.set_xscale("log", base=2)
    axes.set(xlabel="v5e chips", ylabel="predicted efficiency %, nothing hidden", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(HERE / "efficiency.svg", metadata={"Date": None})


def read_rows() -> list[dict[str, str]]:
    return results.read(RESULTS)


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    for net, topology in jobs() if "--tables" not in sys.argv else ():
        done = {(row["net"], row["topology"]) for row in read_rows()}
        if (net, topology) in done or (words and not any(word in f"{net}/{topology}" for word in words)):
            continue
        row = measure(net, topology)
        print(row, flush=True)
        results.append(RESULTS, row)
    if rows := read_rows():
        pages.write((HERE / "README.md",), "scaling", table(rows))
        plot(rows)


if __name__ == "__main__":
    main()
