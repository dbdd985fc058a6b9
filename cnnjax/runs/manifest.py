"""The manifest of a checkpoint: SHA-256 and length of each of its files, written last, and its own digest."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NotRequired, TypedDict, cast

from cnnjax.data.files import atomic_write, open_file, read_json, sha256_of
from cnnjax.errors import UserError

NAME = "manifest.json"
ARRAYS = "tree/manifest.ocdbt"  # the file through which orbax finds all arrays
Numbers = dict[str, float]


class File(TypedDict):
    """What is known of a file."""

    bytes: int
    sha256: str


class Manifest(TypedDict):
    """What a checkpoint holds."""

    step: int
    position: Numbers  # of the data
    metrics: Numbers  # what it is judged by
    files: dict[str, File]


class _Signed(TypedDict):
    """A manifest as it is written; older ones lack what is not required."""

    position: NotRequired[Numbers]
    metrics: NotRequired[Numbers]
    files: dict[str, File]
    sha256: str


def write(folder: Path, step: int, position: Numbers) -> None:
    """Hashes and syncs every file of a folder, then writes the manifest; an OSError without the arrays."""
    files: dict[str, File] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if ARRAYS not in files:  # they were written to another folder, of which orbax says nothing
        raise OSError("the arrays of the save are missing")
    _write(folder, {"step": step, "position": position, "metrics": {}, "files": files})


def set_metrics(folder: Path, metrics: Numbers) -> None:
    """Replaces the metrics in the manifest of a folder."""
    _write(folder, {**read(folder), "metrics": metrics})


def _write(folder: Path, manifest: Manifest) -> None:
    atomic_write(folder / NAME, json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1))


def read(folder: Path) -> Manifest:
    """The manifest of a folder; a UserError unless it is there as it was written."""
    file = folder / NAME
    manifest = read_json(file, _Signed, within=folder)
    reason = "" if manifest.pop("sha256") == _digest(manifest) else "its own SHA-256 differs"
    for name in manifest["files"]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or not name.isprintable():
            reason = f"{name!r} is not a file of the checkpoint"
    if reason:
        raise UserError(f"{file} is damaged: {reason}")
    return cast(Manifest, {"position": {}, "metrics": {}, **manifest})


def verify(folder: Path) -> Manifest:
    """`read`; a UserError names the first file that is missing, cut or changed."""
    manifest = read(folder)
    for name, facts in manifest["files"].items():
        with open_file(folder / name, within=folder) as file:
            if (size := os.fstat(file.fileno()).st_size) != facts["bytes"]:
                raise UserError(f"{name} has {size} bytes, not {facts['bytes']}")
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise UserError(f"{name} has a different SHA-256 than when it was saved")
    return manifest


def _digest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
