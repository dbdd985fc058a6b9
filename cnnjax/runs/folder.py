"""The run folder: config, record and metrics of one training run, written to survive any end.

config.json, record.json, metrics.jsonl, checkpoints/STEP/, test.json, predictions.npz, report.html. Nothing
in it is ever unpickled or executed.
"""

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import re
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict

import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.files import (
    atomic_write,
    check_utf8,
    expanded,
    open_to_append,
    parse_json,
    read_file,
    read_json,
    remove_left,
)
from cnnjax.errors import UserError, listed
from cnnjax.runs import processes
from cnnjax.runs.config_files import from_json
from cnnjax.runs.record import Record
from cnnjax.runs.trackers import Place, Trackers

Json = dict[str, Any]  # an object of a JSON file
PATTERN = re.compile(r"[*?[\\]|:/")  # orbax looks for parts of a save by glob, and for schemes of addresses


class Averages(TypedDict):
    """Scores averaged over classes."""

    precision: float
    recall: float
    f1: float


class PerClass(TypedDict):
    """Scores by class."""

    precision: list[float]
    recall: list[float]
    f1: list[float]
    support: list[int]


class Test(TypedDict):
    """What is read of test.json, see `training.metrics.compute`."""

    step: int
    split: NotRequired[str]
    count: int
    skipped: NotRequired[int]
    accuracy: float
    top5_accuracy: NotRequired[float]
    loss: float
    ema_accuracy: NotRequired[float]
    macro: Averages
    micro: Averages
    weighted: Averages
    occurring: NotRequired[Averages]
    per_class: PerClass
    confusion_matrix: NotRequired[list[list[int]]]


class NonFinite(TypedDict):
    """A step of nonfinite.json, and the examples of its batch."""

    step: int
    indices: list[int]


SKIPPED = "skipped_images.json"
KINDS = {
    **{"record.json": Record, "test.json": Test},
    **{"nonfinite.json": dict[str, NonFinite], SKIPPED: dict[str, list[str]]},
}


class Run:
    """A run folder. Of several processes only the first writes to it."""

    def __init__(self, path: str | Path):
        self.path = check_utf8(expanded(path))  # the library of checkpoints takes no other
        self._lock: IO[str] | None = None
        self._folder: int | None = None  # open while it is locked, so that it can be told from another
        self.trackers: Trackers | None = None  # while it is trained

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
            run._check_usable(path, config, fingerprint)  # before anything is written to what is not a run
            run.lock()
            remove_left(run.path)
        except OSError as error:
            raise UserError(f"--workdir={path} cannot be written: {error.strerror}") from None
        try:
            run._check_usable(path, config, fingerprint)  # again, as another process may have been quicker
            atomic_write(run.path / "config.json", config_lib.to_json(config))
        except BaseException:
            run.close()
            raise
        return run

    def _check_usable(self, given: str | Path, config: ConfigDict, fingerprint: str) -> None:
        if os.path.lexists(self.path / "config.json"):
            self._check_same(config, fingerprint)
        elif any(child.name[0] != "." for child in self.path.iterdir()):
            raise UserError(f"--workdir={given} is neither empty nor a run folder; choose another")

    def _check_same(self, config: ConfigDict, fingerprint: str) -> None:
        if differences := self.differing(config, fingerprint):
            problem = f"{self.path} contains a run with another config ({'; '.join(differences)})"
            raise UserError(f"{problem}; give the same values to resume it, or another --workdir")
        for name in KINDS:
            self.read_json(name)  # a damaged one is told before the first step
        self.check_images("train", fingerprint, "or choose another --workdir")

    def differing(self, config: ConfigDict, fingerprint: str) -> list[str]:
        """What forbids a resumption with a config; the images of train may have moved to another name."""
        same = config_lib.assign(config, {"data.name": self.config().data.name})
        moved = self.images()["train"] == fingerprint
        return config_lib.differing(self.config(), same if moved else config)

    def images(self) -> dict[str, str]:
        """By split the fingerprint of its images when the run first used it, as far as it is recorded."""
        data = self.read_json("record.json").get("data", {})
        return {"train": data.get("fingerprint", ""), **data.get("fingerprints", {})}

    def check_images(self, split: str, fingerprint: str, advice: str) -> None:
        """Raises a UserError if a split has other images than when the run used it, as far as it is known.

        A run that is being trained records them.
        """
        if (before := self.images().get(split)) and before != fingerprint:
            used = "trained" if split == "train" else "evaluated"
            problem = f"{self.path} was {used} on other images of {self.config().data.name} {split}"
            prints = f"fingerprint {before[:12]}, now {fingerprint[:12]}"
            raise UserError(f"{problem} ({prints}); restore them, {advice}")
        record = self.read_json("record.json")
        if self._lock and before is None and "data" in record:
            known = {**record["data"].get("fingerprints", {}), split: fingerprint}
            self.write_json("record.json", {**record, "data": {**record["data"], "fingerprints": known}})

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Opens an existing run folder for reading."""
        run = cls(path)
        if not os.path.lexists(run.path / "config.json"):
            problem = f"{path} is not a run folder: it has no config.json"
            raise UserError(f"{problem}; train one with `cnnjax train`")
        return run

    def lock(self) -> None:
        """Keeps others from training in the folder until `close`; a UserError if one does."""
        self._lock = open_to_append(self.path / ".lock")
        self._folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            line = f"another process is training in {self.path}; wait, or choose another --workdir"
            raise UserError(line) from None

    def check_there(self) -> None:
        """Raises an OSError if the folder that `lock` has locked was removed, or another put in its place."""
        with contextlib.suppress(FileNotFoundError):
            if self._folder is None or os.path.samestat(os.stat(self.path), os.fstat(self._folder)):
                return
        raise FileNotFoundError(errno.ENOENT, "the run folder was removed or replaced", str(self.path))

    def close(self) -> None:
        """Lets another process train in this folder."""
        for file in (self.trackers, self._lock):
            if file:
                file.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def config(self) -> ConfigDict:
        """The config of the run."""
        return from_json(self.path / "config.json", within=self.path)

    def class_names(self) -> list[str]:
        """The names of the classes that the run was trained on."""
        facts = self.read_json("record.json").get("data", {})
        if "class_names" not in facts:
            raise UserError(f"{self.path / 'record.json'} names no classes; restore it, or train again")
        return facts["class_names"]

    def read_json(self, name: str) -> Json:
        """A JSON file of the folder, of its kind; {} if it is absent."""
        file = self.path / name
        kind = KINDS.get(name, dict[str, Any])
        if not os.path.lexists(file):
            return {}
        try:
            return read_json(file, kind, within=self.path)
        except UserError as error:
            advice = "restore it, or train again" if name == "record.json" else "restore or remove it"
            raise UserError(f"{error}; {advice}") from None

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
            self.check_there()
            atomic_write(self.path / name, content)

    def remove_scores(self) -> None:
        """Removes the scores of the test split, which are of other weights than those about to be trained."""
        if processes.is_first():
            self.check_there()
            for name in ("test.json", "predictions.npz"):
                (self.path / name).unlink(missing_ok=True)

    def metrics(self) -> list[Json]:
        """The rows of metrics.jsonl; an incomplete last line is left out, and with a warning damaged ones."""
        file, rows, damaged = self.path / "metrics.jsonl", [], []
        *lines, last = read_file(file, within=self.path).split(b"\n") if os.path.lexists(file) else [b""]
        for number, line in enumerate([*lines, last] if last else lines, 1):
            try:
                rows.append(_row(line))
            except ValueError as error:
                damaged += [f"line {number} ({error})"] if number <= len(lines) else []
        if damaged and processes.is_first():
            warnings.warn(f"{file}: damaged lines skipped: {listed(damaged, most=3)}", stacklevel=1)
        return rows

    def start_metrics(self, step: int) -> list[Json]:
        """Drops the rows after a step, which a resumed run writes again; returns the others."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        if processes.is_first() and (config := self.config()).trackers:
            place = Place(self.path, self._id(), config_lib.flatten(config), step)
            self.trackers = Trackers(config.trackers, place)
        return rows

    def _id(self) -> str:
        """What tells the run from all others, wherever its folder is moved; older records have none."""
        record = self.read_json("record.json")
        if "id" not in record:
            record["id"] = uuid.uuid4().hex[:16]
            self.write_json("record.json", record)
        return record["id"]

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Adds one row to metrics.jsonl, and passes it to the trackers."""
        if not processes.is_first():
            return
        self.check_there()
        with open_to_append(self.path / "metrics.jsonl") as file:
            file.write(json.dumps(row) + "\n")
        self.track(row)

    def track(self, row: Mapping[str, float]) -> None:
        """Passes a row to the trackers alone."""
        if self.trackers:
            self.trackers.log(row)


def _row(line: bytes) -> Json:
    """A row of metrics.jsonl; a ValueError if it is damaged."""
    row = parse_json(line, dict[str, float])
    if type(row.get("step")) is not int or row["step"] < 0:
        raise ValueError("it has no step")
    if not all(math.isfinite(row.get(name, 0)) for name in ("epoch", "seconds")):
        raise ValueError("its time is not finite")
    return row


def plain(value: Any) -> Any:
    """A tree of dicts with arrays and NumPy scalars as one of lists and numbers, for JSON."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
