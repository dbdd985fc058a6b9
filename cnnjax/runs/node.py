"""The GPUs of one machine, cut over the processes that run on it; nothing here starts JAX's devices."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from cnnjax.errors import UserError, counted

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# (processes of this run on this machine, the place of this one among them), as each program tells it. In a
# Slurm job the processes of Open MPI inherit what Slurm tells the daemon that starts them: Slurm comes last.
LOCAL = {
    "Open MPI": ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "Slurm": ("SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID"),
}


def own_gpus(told: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[int]:
    """The GPUs that this process takes, by their numbers among those it sees; [] for all of them.

    One process a machine takes all. Of several each takes its share in their order, unless Slurm has given
    each its own already. `told` is the environment; `devices` is where the system lists GPUs. A UserError
    names a variable whose value is no number.
    """
    for program, (counts, place) in LOCAL.items():
        if told.get(counts) and told.get(place):
            count, index = _tasks(told, counts), _whole(told, place)
            gpus = visible_gpus(told, devices)
            bound = gpus <= _number(told, "SLURM_GPUS_PER_TASK") or gpus < _number(told, "SLURM_GPUS_ON_NODE")
            if gpus < count or (bound and program == "Slurm"):
                return []
            return share(gpus, index, count, f"{counts}={told[counts]}")
    return []


def share(gpus: int, index: int, count: int, given: str) -> list[int]:
    """The GPUs of one of `count` processes, of a machine with so many; [] for all, or if there are none.

    A UserError names what `given` set the count, such as '--processes=3', if it does not divide the GPUs.
    """
    if count == 1 or not gpus:
        return []
    if gpus % count:
        fits = ", ".join(str(n) for n in range(1, gpus + 1) if not gpus % n)
        problem = f"{given}: {count} processes cannot share {counted(gpus, 'GPU')} equally"
        raise UserError(f"{problem}; allowed: {fits}, or any number on CPUs with JAX_PLATFORMS=cpu")
    each = gpus // count
    return list(range(index * each, (index + 1) * each))


def visible_gpus(told: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """How many GPUs a process sees; 0 where JAX_PLATFORMS leaves them out."""
    platforms = told.get("JAX_PLATFORMS", "")
    if platforms and not {*platforms.split(",")} & {"cuda", "rocm", "gpu"}:
        return 0
    for name in VISIBLE:
        if name in told:
            given = [word.strip() for word in told[name].split(",")]
            return next((i for i, word in enumerate(given) if word in ("", "-1", "NoDevFiles")), len(given))
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))


def _tasks(told: Mapping[str, str], name: str) -> int:
    """The processes on this machine: a number, or of Slurm's list of all: '2(x3),1' is 2, 2, 2 and 1."""
    counts: list[int] = []
    for part in told[name].split(","):
        if not (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)):
            raise UserError(f"{name}={told[name]} must be a number, or as '2(x3),1'; correct or unset it")
        counts += [int(found[1])] * int(found[2] or 1)
    node = _whole(told, "SLURM_NODEID")
    return counts[node] if node < len(counts) else max(counts)


def _whole(told: Mapping[str, str], name: str) -> int:
    """A number that a cluster tells; 0 without one."""
    if not re.fullmatch(r"\d*", value := told.get(name, "")):
        raise UserError(f"{name}={value} must be a number; correct or unset it")
    return int(value or 0)


def _number(told: Mapping[str, str], name: str) -> int:
    """A number that Slurm tells, as in 'a100:4'; 0 without one."""
    found = re.search(r"(\d+)$", told.get(name, ""))
    return int(found[1]) if found else 0
