"""The manifest of a checkpoint: SHA-256 and length of each of its files, written last, and its own digest."""

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

NAME = "manifest.json"


def write(folder: Path, facts: dict[str, Any]) -> None:
    """Hashes and syncs every file of a folder, then writes the manifest with `facts` beside them."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _write(folder / NAME, {**facts, "files": files})


def add(folder: Path, facts: dict[str, Any]) -> None:
    """Changes `facts` in the manifest of a folder, all or none of them."""
    part = folder / f".{NAME}"
    _write(part, {**read(folder), **facts})
    part.replace(folder / NAME)


def _write(path: Path, manifest: dict[str, Any]) -> None:
    with path.open("w") as file:
        json.dump({**manifest, "sha256": _digest(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
      ValueError: in one line, where it is missing, damaged, or not what was written.
    """
    try:
        manifest = json.loads((folder / NAME).read_bytes())
        written = manifest.pop("sha256")
        if written != _digest(manifest):
            raise ValueError("its own SHA-256 differs")
        _check(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise ValueError(f"{NAME} cannot be read: {reason}") from None
    return manifest


def _check(manifest: dict[str, Any]) -> None:
    """Raises a ValueError where the fields are not of the kinds that `write` gives them."""
    for name in ("position", "metrics"):
        group = manifest.get(name, {})
        if not isinstance(group, dict) or not all(type(v) in (int, float) for v in group.values()):
            raise ValueError(f"{name} is not a group of numbers")
    if not isinstance(manifest["files"], dict):
        raise ValueError("files is not a group")
    for name, facts in manifest["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or not name.isprintable():
            raise ValueError(f"{name!r} is no file of the checkpoint")
        if not isinstance(facts, dict) or {*map(type, map(facts.get, ("bytes", "sha256")))} != {int, str}:
            raise ValueError(f"{name!r} has no length and SHA-256")


def verify(folder: Path) -> dict[str, Any]:
    """`read`, after every file was found with the length and the SHA-256 that the manifest says.

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
            if _sha256(path) != facts["sha256"]:
                raise ValueError(f"{name} has another SHA-256 than when it was saved")
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from None
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
