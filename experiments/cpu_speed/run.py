"""Training and prediction of this project beside other frameworks, in turn, on this machine's CPU.

    python experiments/cpu_speed/run.py train            # measures what training.csv lacks of this machine
    python experiments/cpu_speed/run.py predict          # likewise inference.csv
    python experiments/cpu_speed/run.py predict --dtypes=int8 --against=openvino,onnxruntime
    python experiments/cpu_speed/run.py ops              # likewise ops.csv: each kernel beside XLA
    python experiments/cpu_speed/run.py train --nets=resnet18,resnet50 --dtypes=float32 --rounds=3 --again
    python experiments/cpu_speed/run.py tables           # only rewrites tables and figure from the CSVs

Needs the extra `peers`. Each measurement is a `cnnjax bench` in a process of its own, and its rows are
written as it ends, so a study that was stopped goes on where it was; leave the machine alone meanwhile.
`--again` measures anew what is there. Without JAX's cache of compiled programs: first steps are cold. Peak
memory is in training.csv.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax.runs.record import processor
from experiments import pages, results
from experiments.cpu_speed import tables
from experiments.cpu_speed.tables import DTYPES, NETS, OPS, Row, ops_table, read_rows, table

FILES = {"train": tables.TRAINING, "predict": tables.INFERENCE}
# What is alternated with; a framework that has no such net, or is late, is a row that says so.
AGAINST = {
    "train": "torch,torch_compile,keras,keras_tensorflow",
    "predict": "torch,torch_compile,openvino,onnxruntime",
}
FIGURES = (
    *(
        "images_per_second",
        "images_per_second_min",
        "images_per_second_max",
        "ratio",
        "ratio_min",
        "ratio_max",
    ),
    *("p50_ms", "p99_ms", "first_seconds", "peak_memory_bytes", "mode", "failed", "version", "shares"),
)


def measure(kind: str, model: str, batch: int, dtype: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one bench: ours, then each peer's."""
    command = [sys.executable, "-m", "cnnjax", "bench", kind, f"--model={model}", f"--batch_size={batch}"]
    command += [f"--dtype={dtype}", f"--against={options.against or AGAINST[kind]}", "--json"]
    command += [f"--rounds={options.rounds}", f"--seconds={options.seconds}"]
    command += [f"--peer_seconds={options.peer_seconds}"]
    cold = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    cold["CNNJAX_COMPILE_CACHE"] = "off"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=cold)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no words"])[-1])
    return rows_of(json.loads(done.stdout.splitlines()[-1]), options.rounds)


def rows_of(found: Mapping[str, object], rounds: int) -> list[Row]:
    """What `cnnjax bench --json` printed as rows of a CSV."""
    peers = found["peers"]
    assert isinstance(peers, dict)
    first = found.get("first_step_seconds", found.get("first_call_seconds"))
    jax = importlib.metadata.version("jax")
    ours = {**found, "first_seconds": first, "version": f"jax {jax}, {found['cpu_kernels']}"}
    ours["shares"] = json.dumps(found["shares"]) if "shares" in found else ""
    ours |= dict.fromkeys(
        ("ratio", "ratio_min", "ratio_max"), ""
    )  # to the best, which follows from the others
    return [
        {
            **{name: str(found[name]) for name in ("model", "batch", "dtype")},
            "framework": name,
            **{figure: str(row.get(figure, "")) for figure in FIGURES},
            **{
                "rounds": str(row.get("rounds", rounds)),
                "machine": processor(),
                "python": platform.python_version(),
            },
            "date": datetime.date.today().isoformat(),
        }
        for name, row in {"cnnjax": ours, **peers}.items()
    ]


def wanted(kind: str, options: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """(net, batch, dtype) that are asked for, and not yet in the CSV unless it is `--again`."""
    have = {
        (row["model"], row["batch"], row["dtype"])
        for row in results.read(FILES[kind])
        if row["machine"] == processor() and row["framework"] == "cnnjax"
    }
    for net in options.nets.split(",") if options.nets else NETS:
        batches = [NETS[net]] if kind == "train" else [1, 32]
        for batch in [int(batch) for batch in options.batches.split(",")] if options.batches else batches:
            for dtype in options.dtypes.split(","):
                if options.again or (net, str(batch), dtype) not in have:
                    yield net, batch, dtype


def keep(file: Path, rows: list[Row], names: Sequence[str] = ("model", "batch", "dtype", "machine")) -> None:
    """Writes rows in the place of those that have the same in these columns."""
    this = [rows[0][name] for name in names]
    others = [row for row in results.read(file) if [row[name] for name in names] != this]
    results.write(file, list(rows[0]), [*others, *rows])


def measure_ops() -> list[Row]:
    """Each kernel beside XLA."""
    command = [sys.executable, str(HERE / "bench_ops.py")]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    facts = {"jax": importlib.metadata.version("jax"), "machine": processor()}
    return [{name: str(value) for name, value in {**json.loads(line), **facts}.items()} for line in lines]


def measure_all(kind: str, options: argparse.Namespace) -> None:
    """Goes on after a bench that failed; it is measured at the next start."""
    for net, batch, dtype in wanted(kind, options):
        start = time.monotonic()
        try:
            rows = measure(kind, net, batch, dtype, options)
        except RuntimeError as error:
            print(f"{kind} {net} {batch} {dtype}: {error}", flush=True)
            continue
        keep(FILES[kind], rows)
        (name, ratio, _, _) = tables.best(rows) or ("nothing", float("nan"), 0, 0)
        took = f"{time.monotonic() - start:.0f} s"
        print(f"{kind} {net} {batch} {dtype}: {ratio:.2f} of {name} ({took})", flush=True)


def write() -> None:
    """Tables and figure from the CSVs."""
    rows, ops = read_rows(), results.read(OPS)
    tables.draw(rows)
    own = HERE / "README.md"
    pages.write((own, ROOT / "docs" / "speed.md"), "cpu_speed", table(rows))
    pages.write((own,), "cpu_training", tables.training_table(rows))
    pages.write((own,), "cpu_inference", tables.inference_table(rows))
    pages.write((ROOT / "docs" / "speed.md",), "cpu_shares", tables.shares_table(rows))
    pages.write((own,), "cpu_ops", ops_table(ops))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("train", "predict", "ops", "tables"))
    parser.add_argument("--nets", default="", help=f"with commas; default: {','.join(NETS)}")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--batches", default="", help="with commas; default: the net's, of predict 1,32")
    parser.add_argument("--against", default="", help="default: all of the extra `peers`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--peer_seconds", type=float, default=240.0)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := set(options.nets.split(",")) - {"", *NETS}:
        parser.error(f"--nets={','.join(unknown)}: the study has {', '.join(NETS)}")
    if options.kind in FILES:
        measure_all(options.kind, options)
    have = any(row["machine"] == processor() for row in results.read(OPS))
    if options.kind == "ops" and (options.again or not have):
        keep(OPS, measure_ops(), ("machine",))
    write()


if __name__ == "__main__":
    main(sys.argv[1:])
