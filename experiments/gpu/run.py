"""What only a GPU can tell of this package, in one call of at most eight minutes.

python experiments/gpu/run.py                         # all parts, on the first GPU
python experiments/gpu/run.py --only=parity,resnet50  # some of them
python experiments/gpu/run.py --dry_run               # all parts at toy size, in under 3 minutes of a CPU
python experiments/gpu/run.py --tables                # only rewrites the table from the CSV

Each part is a process of its own with its own time limit, ended when that is over; its rows are written as
they come. This process imports neither JAX nor torch, so that it holds no memory of the GPU. A part whose
packages are missing has a row that names them, and the first lines say what to carry to the machine.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CARRIED = HERE / "carried"  # packages that the machine lacks, put here beforehand
sys.path[:0] = [str(ROOT), str(CARRIED)]

from experiments import pages, results

RESULTS, COLUMNS = HERE / "results.csv", ("part", "case", "measure", "value", "note", "device", "jax")


class Part(NamedTuple):
    """A part: the seconds that it may take, on a GPU and as a toy, and the modules that it needs."""

    seconds: int
    toy_seconds: int
    needs: tuple[str, ...] = ()
    meaning: str = ""


STEP = ("jax", "flax", "optax")
DATA = (*STEP, "grain", "isal", "simplejpeg", "PIL")
RUNS = (*DATA, "ml_collections", "absl", "rich", "orbax.checkpoint", "matplotlib", "safetensors", "filelock")
PARTS = {
    "device": Part(25, 20, ("jax",), "versions, and the peak rates that shares refer to"),
    "parity": Part(75, 30, STEP, "forward and gradients, against float32 on the CPU"),
    "resnet50": Part(90, 30, (*STEP, "torch"), "a training step, alternating with PyTorch's"),
    "nets": Part(140, 20, (*STEP, "torch"), "the same of five more nets"),
    "airbench": Part(70, 45, RUNS, "94 % on CIFAR-10"),
    "input": Part(45, 20, DATA, "the input pipeline"),
    "profile": Part(35, 15, STEP, "the operations that take the most time"),
}
# The packages that are carried for a module: its own first, then what that needs beside jax, numpy and scipy.
# pip is to look for none itself: it would add those three.
BOTH = "absl-py etils fsspec protobuf psutil typing-extensions zipp"
CARRY = {
    "grain": f"grain array-record cloudpickle portpicker {BOTH}",
    "isal": "isal",
    "simplejpeg": "simplejpeg",
    "PIL": "pillow",
    "ml_collections": "ml-collections absl-py pyyaml",
    "absl": "absl-py",
    "rich": "rich markdown-it-py mdurl pygments",
    "orbax.checkpoint": "orbax-checkpoint aiofiles humanize msgpack prometheus-client pyyaml simplejson "
    f"tensorstore uvloop {BOTH}",
    "matplotlib": "matplotlib contourpy cycler fonttools kiwisolver packaging pillow pyparsing "
    "python-dateutil six tzdata",
    "safetensors": "safetensors",
    "filelock": "filelock",
}
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(name)
    except Exception:
        pass
"""


def environment() -> dict[str, str]:
    """The environment of the parts: the repository and what was carried come first."""
    paths = os.pathsep.join(filter(None, (str(ROOT), str(CARRIED), os.environ.get("PYTHONPATH", ""))))
    # PyTorch needs room on the same GPU.
    return {**os.environ, "PYTHONPATH": paths, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@functools.cache
def imported() -> frozenset[str]:
    """The modules of all parts that a process can import, with all that they import themselves."""
    names = sorted({module for part in PARTS.values() for module in part.needs})
    command = [sys.executable, "-c", IMPORT, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    return frozenset(done.stdout.splitlines())


def missing(modules: Sequence[str]) -> list[str]:
    """The modules that cannot be imported here."""
    return [module for module in modules if module not in imported()]


def to_carry(modules: Sequence[str]) -> list[str]:
    """The packages of missing modules, and those that they need and this machine lacks."""
    here = {re.sub("[-_.]+", "-", str(each.name)).lower() for each in importlib.metadata.distributions()}
    packages = [CARRY[module].split() for module in modules if module in CARRY]
    return sorted({name for own, *needed in packages for name in (own, *({*needed} - here))})


def what_to_carry(parts: Sequence[str]) -> str:
    """For each part that lacks packages a line, and the command that collects them; '' if none does."""
    lacking = {name: missing(PARTS[name].needs) for name in parts}
    lines = [f"{name} needs {', '.join(modules)}" for name, modules in lacking.items() if modules]
    if names := to_carry([module for modules in lacking.values() for module in modules]):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        lines.append("to carry them, where there is a network, before the repository is copied:")
        lines.append(
            f"  pip install --upgrade --target={CARRIED.relative_to(ROOT)} --only-binary=:all: --no-deps "
            f"--python-version={version} {' '.join(names)}"
        )
    return "\n".join(lines)


class Table:
    """results.csv, and what the parts tell each other."""

    def __init__(self, file: Path):
        self.file, self.facts = file, {"device": "", "jax": ""}
        self.peak = 0.0  # FLOP/s, measured

    def add(self, part: str, row: dict[str, object]) -> None:
        """Writes and prints one row."""
        if part == "device" and row["measure"] in self.facts:
            self.facts[str(row["measure"])] = str(row["value"])
        if row.get("measure") == "bfloat16 product, FLOP/s":
            self.peak = float(str(row["value"]))
        whole = dict.fromkeys(COLUMNS, "") | {"part": part} | row | self.facts
        results.append(self.file, {name: whole[name] for name in COLUMNS})
        print(*(f"{whole[name]}" for name in COLUMNS[:5]), sep=" | ", flush=True)


def run_part(name: str, table: Table, *, toy: bool, options: Sequence[str]) -> None:
    """One part in a process of its own; a row says if it could not begin, failed or ran out of time."""
    part = PARTS[name]
    if lacks := missing(part.needs):
        return table.add(name, {"measure": "not run", "note": f"missing: {', '.join(lacks)}"})
    limit, start = part.toy_seconds if toy else part.seconds, time.monotonic()
    command = [sys.executable, "-m", "experiments.gpu.parts", name, *options]
    command += [f"--until={time.time() + limit}", f"--peak={table.peak}", *(["--toy"] if toy else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        child = subprocess.Popen(
            *(command,),
            **{"cwd": ROOT, "env": environment(), "stdout": subprocess.PIPE, "stderr": errors, "text": True},
            start_new_session=True,
        )
        stopper = threading.Timer(limit, os.killpg, (child.pid, signal.SIGKILL))
        stopper.start()
        try:
            for line in child.stdout or ():
                if line.startswith('{"measure"'):
                    table.add(name, json.loads(line))
            code = child.wait()
        finally:
            stopper.cancel()
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1][:300]
    seconds = round(time.monotonic() - start, 1)
    over = code == -signal.SIGKILL and seconds >= limit
    note = f"stopped after its {limit} s" if over else f"exit code {code}: {last}" if code else ""
    table.add(name, {"measure": "seconds", "value": seconds, "note": note})


def read_rows() -> list[dict[str, str]]:
    """The measured rows."""
    return results.read(RESULTS)


def table(rows: Sequence[dict[str, str]]) -> str:
    """The newest row of each device, part, case and measure."""
    lines = ["| part | case | measure | value | note | device |", "|---|---|---|---|---|---|"]
    newest = {(r["device"], r["part"], r["case"], r["measure"]): r for r in rows if r["part"]}
    for row in newest.values():
        cells = [row[name] for name in ("part", "case", "measure", "value", "note", "device")]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    if not newest:
        lines += [f"| {name} | | {part.meaning} | not measured yet | | |" for name, part in PARTS.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dry_run", action="store_true", help="toy sizes, on a CPU too")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, in order (default: all)")
    parser.add_argument(
        "--out", type=Path, help="the CSV (default: results.csv here; of a dry run a new one)"
    )
    parser.add_argument("--cifar10", default="cifar10", help="config.data.name of CIFAR-10, say folder:PATH")
    parser.add_argument("--tables", action="store_true", help="only rewrite the table of README.md")
    flags = parser.parse_args(arguments)
    names = flags.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--only={flags.only}: unknown part {unknown[0]!r}; allowed: {', '.join(PARTS)}")
    if not flags.tables:
        out = flags.out or (Path(tempfile.mkdtemp()) / "dry_run.csv" if flags.dry_run else RESULTS)
        print(what_to_carry(names) or "no package is missing", f"rows go to {out}", sep="\n", flush=True)
        written = Table(out)
        for name in names if "device" in names else ["device", *names]:
            run_part(name, written, toy=flags.dry_run, options=[f"--cifar10={flags.cifar10}"])
    if flags.tables or not flags.dry_run:
        pages.write((HERE / "README.md",), "gpu", table(read_rows()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
