"""The manifest of a checkpoint: SHA-256 and length of each of its files, written last, and its own digest."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TypedDict, cast

from cnnjax.data.files import atomic_write, read_json, sha256_of

NAME = "manifest.json"
Numbers = Mapping[str, int | float]


class File(TypedDict):
    """What is known of a file."""

    bytes: int
    sha256: str


class Manifest(TypedDict):
    """What a checkpoint holds: its step, the position of the data, what it is judged by, and its files."""

    step: int
    position: Numbers
    metrics: Numbers
    files: dict[str, File]


def write(folder: Path, step: int, position: Numbers, metrics: Numbers) -> None:
    """Hashes and syncs every file of a folder, then writes the manifest."""
    files: dict[str, File] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _write(folder, {"step": step, "position": position, "metrics": metrics, "files": files})


def set_metrics(folder: Path, metrics: Numbers) -> None:
    """Replaces the metrics in the manifest of a folder."""
    _write(folder, {**read(folder), "metrics": metrics})


def _write(folder: Path, manifest: Manifest) -> None:
    atomic_write(folder / NAME, json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1))


def read(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
      ValueError: in one line, if it is missing, damaged, or not what was written.
    """
    try:
        manifest = read_json(folder / NAME)
        if manifest.pop("sha256") != _digest(manifest):
            raise ValueError("its own SHA-256 differs")
        _check(manifest)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{NAME} cannot be read: {error}") from None
    return cast(Manifest, {"position": {}, "metrics": {}, **manifest})


def _check(manifest: Mapping[str, object]) -> None:
    """Raises a ValueError unless the fields are of the kinds that `write` gives them."""
    for name in ("position", "metrics"):
        group = manifest.get(name, {})
        if not isinstance(group, dict) or not all(type(v) in (int, float) for v in group.values()):
            raise ValueError(f"{name} is not a group of numbers")
    files = manifest["files"]
    if not isinstance(files, dict):
        raise ValueError("files is not a group")
    for name, facts in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or not name.isprintable():
            raise ValueError(f"{name!r} is no file of the checkpoint")
        if not isinstance(facts, dict) or {*map(type, map(facts.get, ("bytes", "sha256")))} != {int, str}:
            raise ValueError(f"{name!r} has no length and SHA-256")


def verify(folder: Path) -> Manifest:
    """`read`, if every file has the length and the SHA-256 of the manifest.

    Raises:
      ValueError: naming the first file that is missing, cut or changed.
    """
    manifest = read(folder)
    for name, facts in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != facts["bytes"]:
                raise ValueError(f"{name} has {size} bytes, not {facts['bytes']}")
            if sha256_of(path) != facts["sha256"]:
                raise ValueError(f"{name} has another SHA-256 than when it was saved")
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from None
    return manifest


def _digest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
