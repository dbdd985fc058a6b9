"""Files on disk: written whole or not at all, their checksums, and the user's cache folder."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replaces a file in one step, so that a killed process leaves the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's is readable by its owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises a ValueError of one line if it cannot be read or holds no object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(" ".join(str(reason).split())[:120]) from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def cache_folder(kind: str) -> Path:
    """$XDG_CACHE_HOME (else ~/.cache) /cnnjax/KIND; a relative $XDG_CACHE_HOME is ignored, as XDG demands."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "cnnjax" / kind


def make_cache_folder(kind: str) -> Path:
    """`cache_folder`, created below a folder that only the user may change, as the compile cache needs it."""
    folder = cache_folder(kind)
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)
    return folder
