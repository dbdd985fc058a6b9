"""The run folder: config, record and metrics of one training run, written to survive any end.

config.json, record.json, metrics.jsonl, checkpoints/STEP/, test.json, predictions.npz, report.html. Nothing
in it is ever unpickled or executed.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import jax
import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.errors import UserError
from cnnjax.ops import cpu

PACKAGES = ("cnnjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


class Run:
    """An open run folder."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: Any = None
        self._events: Any = None

    @classmethod
    def create(cls, path: str | Path, config: ConfigDict, fingerprint: str) -> "Run":
        """Opens a new or existing folder for training with a config.

        Raises:
          UserError: where another process trains in it, where it holds other files than a run's, or where
            the run in it has another config, or images of another fingerprint, than now.
        """
        run = cls(Path(path))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run.lock()
        except OSError as error:
            raise UserError(f"--workdir={path} cannot be written: {error.strerror}") from None
        saved = run.path / "config.json"
        if saved.exists():
            differences = config_lib.differing(run.config(), config)
            if differences:
                raise UserError(
                    f"{run.path} holds a run with another config ({'; '.join(differences)}); "
                    "give the same values to resume it, or another --workdir"
                )
            trained_on = run.read_json("record.json").get("data", {}).get("fingerprint", fingerprint)
            if trained_on != fingerprint:
                raise UserError(
                    f"{run.path} was trained on other images of {config.data.name} (fingerprint "
                    f"{trained_on[:12]}, now {fingerprint[:12]}); restore them, or choose another --workdir"
                )
        elif any(child.name != ".lock" for child in run.path.iterdir()):
            raise UserError(f"--workdir={path} is neither empty nor a run folder; choose another")
        write_atomically(saved, config_lib.to_json(config))
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Opens an existing run folder for reading."""
        run = cls(Path(path))
        if not (run.path / "config.json").is_file():
            raise UserError(
                f"{path} is not a run folder: it has no config.json; train one with `cnnjax train`"
            )
        return run

    def lock(self) -> None:
        """Keeps others from training in the folder until `close`; a UserError where one does."""
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115, held until `close`
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {self.path}; wait, or choose another --workdir"
            ) from None

    def close(self) -> None:
        """Lets another process train in this folder."""
        for file in filter(None, (self._events, self._lock)):
            file.close()

    def config(self) -> ConfigDict:
        """The config of the run."""
        try:
            config = config_lib.from_json((self.path / "config.json").read_text())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path / 'config.json'} cannot be read: {error}") from None
        config_lib.validate(config)
        return config

    def class_names(self) -> list[str]:
        """The names of the classes that the run was trained on."""
        return self.read_json("record.json")["data"]["class_names"]

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; {} where it is absent."""
        file = self.path / name
        try:
            found = json.loads(file.read_text()) if file.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is damaged: {error}") from None
        if not isinstance(found, dict):
            raise UserError(f"{file} is damaged: it holds no JSON object")
        return found

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes a JSON file of the folder, whole or not at all."""
        write_atomically(self.path / name, json.dumps(plain(value), indent=2) + "\n")

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes an .npz file of the folder, whole or not at all."""
        write_atomically(self.path / name, lambda file: np.savez_compressed(file, **arrays))

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut short is left out."""
        file = self.path / "metrics.jsonl"
        rows = []
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def start_metrics(self, step: int) -> None:
        """Drops the rows after a step, which a resumed run writes again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self._events = _event_writer(self.path / "tensorboard", step)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one row to metrics.jsonl, and to TensorBoard's event files where the extra is installed."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        for name in (name for name in row if self._events and name != "step"):
            self._events.add_scalar(name, row[name], row["step"])


class Follower(Run):
    """The run folder to a process that is not the first of several: it reads, and writes nothing."""

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Left to the first process, like the rest."""

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        pass

    def start_metrics(self, step: int) -> None:
        pass

    def append_metrics(self, row: dict[str, Any]) -> None:
        pass


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the files of a run folder lack inside is a UserError that names the folder, not a traceback."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError, BadZipFile) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(
            f"{path}: one of record.json, metrics.jsonl, test.json, predictions.npz is damaged ({reason})"
        ) from None


def _event_writer(path: Path, step: int) -> Any:
    """A writer of TensorBoard events that hides those after `step`; None without the extra."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=step + 1)


def plain(value: Any) -> Any:
    """A tree of dicts with arrays and NumPy scalars as one of lists and numbers, for JSON."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def write_atomically(path: Path, content: str | Callable[[BinaryIO], None]) -> None:
    """Replaces a file in one step, so that a killed process leaves the old one or the new one.

    `content` is a text, or a function that writes to the open binary file.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def make_record(**facts: Any) -> dict[str, Any]:
    """What is needed to judge or repeat a run: command, commit, versions, machine, flags, and `facts`."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "cpu_kernels": cpu.status(),
        "compile_cache": bool(jax.config.jax_compilation_cache_dir),  # then compile_seconds may be a reading
        "devices": [str(device) for device in jax.devices()],
        "flags": {k: v for k, v in os.environ.items() if k.startswith(("XLA_", "JAX_", "CNNJAX_"))},
        **facts,
    }


def _commit() -> str:
    """The commit of the package's checkout, with '+' where files differ; '' outside a checkout."""
    here = Path(__file__).parent
    try:
        args = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"]
        return subprocess.run(args, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


_VECTORS = {  # flags of /proc/cpuinfo, the widest first
    "amx_bf16": "AMX",
    "avx512_fp16": "AVX-512 with FP16",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, with family and model where the name has no number, and its widest vectors."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if ":" in line}
    flags = facts.get("flags", "").split()
    vectors = next((name for flag, name in _VECTORS.items() if flag in flags), "")
    name = facts.get("model name", "")
    if name and not re.search(r"\d", name):  # a virtual machine hides it: several processors have this name
        name += f" (family {facts.get('cpu family')}, model {facts.get('model')})"
    return ", ".join(filter(None, (name, vectors)))
