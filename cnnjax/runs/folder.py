"""The run folder: config, record and metrics of one training run, written to survive any end.

config.json, record.json, metrics.jsonl, checkpoints/STEP/, test.json, predictions.npz, report.html. Nothing
in it is ever unpickled or executed.
"""

import contextlib
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.files import atomic_write, check_utf8, read_json, remove_left
from cnnjax.errors import UserError, one_line
from cnnjax.runs import processes

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

Json = dict[str, Any]  # an object of a JSON file
PATTERN = re.compile(r"[*?[\\]|:/")  # orbax looks for parts of a save by glob, and for schemes of addresses


class Run:
    """A run folder. Of several processes only the first writes to it."""

    def __init__(self, path: str | Path):
        self.path = check_utf8(Path(path))  # the library of checkpoints takes no other
        self._lock: IO[str] | None = None
        self._events: SummaryWriter | None = None

    @classmethod
    def create(cls, path: str | Path, config: ConfigDict, fingerprint: str) -> "Run":
        """Opens a new or existing folder for training with a config.

        A UserError if another process trains in it, if it holds other files than a run's, or if the run in it
        has another config, or images of another fingerprint, than now.
        """
        run = cls(path)
        if pattern := PATTERN.search(str(run.path.absolute())):
            raise UserError(
                f"--workdir={path}: {pattern[0]!r} in its path is a pattern to the library of checkpoints, "
                "which would lose what it saves; choose another"
            )
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run.lock()
            remove_left(run.path)
        except OSError as error:
            raise UserError(f"--workdir={path} cannot be written: {error.strerror}") from None
        saved = run.path / "config.json"
        if saved.exists():
            run._check_same(config, fingerprint)
        elif any(child.name[0] != "." for child in run.path.iterdir()):
            raise UserError(f"--workdir={path} is neither empty nor a run folder; choose another")
        atomic_write(saved, config_lib.to_json(config))
        return run

    def _check_same(self, config: ConfigDict, fingerprint: str) -> None:
        if differences := config_lib.differing(self.config(), config):
            problem = f"{self.path} holds a run with another config ({'; '.join(differences)})"
            raise UserError(f"{problem}; give the same values to resume it, or another --workdir")
        trained_on = self.read_json("record.json").get("data", {}).get("fingerprint", fingerprint)
        if trained_on != fingerprint:
            problem = f"{self.path} was trained on other images of {config.data.name}"
            prints = f"fingerprint {trained_on[:12]}, now {fingerprint[:12]}"
            raise UserError(f"{problem} ({prints}); restore them, or choose another --workdir")

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Opens an existing run folder for reading."""
        if not (Path(path) / "config.json").is_file():
            problem = f"{path} is not a run folder: it has no config.json"
            raise UserError(f"{problem}; train one with `cnnjax train`")
        return cls(path)

    def lock(self) -> None:
        """Keeps others from training in the folder until `close`; a UserError if one does."""
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115, held until `close`
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            line = f"another process is training in {self.path}; wait, or choose another --workdir"
            raise UserError(line) from None

    def close(self) -> None:
        """Lets another process train in this folder."""
        for file in (self._events, self._lock):
            if file:
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

    def read_json(self, name: str) -> Json:
        """A JSON file of the folder; {} if it is absent."""
        file = self.path / name
        return read_json(file, within=self.path) if os.path.lexists(file) else {}

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """Writes a JSON file of the folder, whole or not at all."""
        self._write(name, json.dumps(plain(value), indent=2) + "\n")

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes an .npz file of the folder, whole or not at all."""
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its one flag has no such name
        self._write(name, file.getvalue())

    def _write(self, name: str, content: str | bytes) -> None:
        if processes.is_first():
            atomic_write(self.path / name, content)

    def metrics(self) -> list[Json]:
        """The rows of metrics.jsonl; an incomplete last line is left out."""
        file, rows = self.path / "metrics.jsonl", []
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def start_metrics(self, step: int) -> None:
        """Drops the rows after a step, which a resumed run writes again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        if processes.is_first():
            with contextlib.suppress(ImportError):  # an extra
                from tensorboardX import SummaryWriter

                self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Adds one row to metrics.jsonl, and to TensorBoard's event files if the extra is installed."""
        if not processes.is_first():
            return
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        if self._events:
            for name in row.keys() - {"step"}:
                self._events.add_scalar(name, row[name], row["step"])


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the errors of damaged files in a run folder into a UserError that names the folder."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError, BadZipFile) as error:
        reason = f"{type(error).__name__}: {one_line(error, 160)}"
        files = "record.json, metrics.jsonl, test.json, predictions.npz"
        raise UserError(f"{path}: one of {files} is damaged ({reason})") from None


def plain(value: Any) -> Any:
    """A tree of dicts with arrays and NumPy scalars as one of lists and numbers, for JSON."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
