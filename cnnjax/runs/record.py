"""What a run was: the command, commit, versions, machine and flags, kept in its record.json."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

import jax

import cnnjax
from cnnjax.data.machine import num_cores
from cnnjax.data.recipe import Fields
from cnnjax.ops import cpu

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
_VECTORS = {  # flags of /proc/cpuinfo, the widest first
    "amx_bf16": "AMX",
    "avx512_fp16": "AVX-512 with FP16",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}


class Statistics(TypedDict, total=False):
    """Of the channels, on the scale 0..1, as far as augmentations need them."""

    mean: list[float]
    std: list[float]
    covariance: list[list[float]]


class DataFacts(TypedDict, total=False):
    """What record.json says of the images; folders of imported weights may have none of it."""

    name: str
    fingerprint: str
    class_names: list[str]
    image_shape: list[int]
    eval_augment: str
    recipe: Fields  # of the files that evaluation and prediction read; runs from before it: `recipe.fast`
    train_recipe: Fields  # of those that training reads
    statistics: Statistics
    fingerprints: dict[str, str]  # of other splits than train, by split


class ModelFacts(TypedDict, total=False):
    """What record.json says of the network."""

    spec: str
    num_params: int


class Machine(TypedDict, total=False):
    """What record.json says of the machine."""

    processor: str
    cores: int | None


class Session(TypedDict, total=False):
    """What record.json says of a process that resumed the run."""

    started: str
    command: list[str]
    versions: dict[str, str]
    commit: str
    cpu_kernels: str
    machine: Machine


class Record(TypedDict, total=False):
    """What is read of record.json, of what `make_record` and the experiment put there; old runs lack some."""

    id: str  # by which trackers know the run
    command: list[str]
    started: str
    commit: str
    python: str
    versions: dict[str, str]
    machine: Machine
    devices: list[str]
    cpu_kernels: str
    compile_seconds: float
    norm_groups: int  # of a microbatch, with BatchNorm statistics of their own
    sessions: list[Session]  # after the first
    data: DataFacts
    model: ModelFacts
    teacher: dict[str, str]  # of config.loss.distill: its source and fingerprint


def make_record(**facts: object) -> dict[str, object]:
    """What is needed to judge or repeat a run, and `facts`."""
    return {
        "id": uuid.uuid4().hex[:16],
        "command": [Path(sys.argv[0]).name.replace("__main__.py", "cnnjax"), *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {
            "cnnjax": cnnjax.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": num_cores(),
        },
        "cpu_kernels": cpu.status(),
        # If it is on, compile_seconds may be those of reading a program.
        "compile_cache": bool(jax.config.values["jax_compilation_cache_dir"]),
        "devices": [str(device) for device in jax.devices()],
        "flags": {k: v for k, v in os.environ.items() if k.startswith(("XLA_", "JAX_", "CNNJAX_"))},
        **facts,
    }


def resumed(given: Mapping[str, object], **facts: object) -> tuple[Mapping[str, object], str]:
    """A record with this process as one more session, and what differs from the one before; '' if nothing."""
    record, now = cast(Record, given), make_record(**facts)
    sessions = record.get("sessions", [])
    session = cast(Session, {name: now[name] for name in Session.__annotations__})
    old, new = _numerics(sessions[-1] if sessions else record), _numerics(session)
    names = [name for name in new if old.get(name) not in (None, new[name])]
    told = "; ".join(f"{name} {new[name] or 'unknown'}, before {old[name] or 'unknown'}" for name in names)
    return {**record, "sessions": [*sessions, session]}, told


def _numerics(session: Session | Record) -> dict[str, str | None]:
    """What the last bits of results depend on; None for what is not recorded."""
    return {
        **session.get("versions", {}),
        "CPU kernels": session.get("cpu_kernels"),
        "commit": session.get("commit"),
        "processor": session.get("machine", {}).get("processor"),
    }


def _commit(file: Path = Path(__file__)) -> str:
    """The commit of the checkout that a file belongs to, with '+' if files differ; '' if it is in none."""

    def git(*args: str) -> subprocess.CompletedProcess[str]:
        words = ["git", "-C", str(file.parent), *args]
        return subprocess.run(words, capture_output=True, text=True, timeout=10)

    try:
        if git("ls-files", "--error-unmatch", file.name).returncode:
            return ""  # also installed into an environment within another project's checkout
        return git("describe", "--always", "--abbrev=40", "--dirty=+").stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and widest vectors; family and model too if the name has no number."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if ":" in line}
    vectors = next((name for flag, name in _VECTORS.items() if flag in facts.get("flags", "").split()), "")
    name = facts.get("model name", "")
    if name and not re.search(r"\d", name):  # a virtual machine hides it: several processors have this name
        name += f" (family {facts.get('cpu family')}, model {facts.get('model')})"
    return ", ".join(filter(None, (name, vectors)))
