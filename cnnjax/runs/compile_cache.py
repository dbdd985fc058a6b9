"""Compiled programs kept between processes, in a folder that no other user can read or change.

JAX keeps them; what is in its files is run, so they lie in folders of mode 0700, one for each combination of
versions, platform and features of the processor. Those lie in `~/.cache/cnnjax/` (or
`$XDG_CACHE_HOME/cnnjax/`), which other users may read, as data sets lie there too, but not write to.
"""

import hashlib
import importlib.metadata
import os
import platform
import stat
import sys
import time
from pathlib import Path

import jax

from cnnjax.ops import cpu

SWITCH = "CNNJAX_COMPILE_CACHE"
MAX_BYTES = 2**31  # the oldest go where there are more
_SUFFIX = "-cache"  # of JAX's files
_STAMP = ".checked"


class Refused(Exception):
    """Why compiled programs are not kept, in a few words."""


def enable() -> str:
    """From now on JAX takes compiled programs from the folder, and leaves there what took it over a second.

    Returns: the folder, or "off: " and the reason. A folder that others may change is never read.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "false", "no"):
        return f"off: {SWITCH}={os.environ[SWITCH]}"
    if jax.config.jax_compilation_cache_dir:
        return jax.config.jax_compilation_cache_dir  # the user's own choice
    try:
        folder = _private(_root() / key())
        _tidy(folder)
    except (Refused, OSError, RuntimeError) as error:
        sys.stderr.write(f"cnnjax: compiled programs are not kept: {error}\n")
        return f"off: {error}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return str(folder)


def key() -> str:
    """A digest of what a compiled program depends on beside itself: versions, platform, processor."""
    versions = [importlib.metadata.version(name) for name in ("cnnjax", "jax", "jaxlib")]
    device = jax.devices()[0]
    kind = [device.platform, device.device_kind, getattr(device.client, "platform_version", "")]
    facts = [*versions, platform.machine(), *kind, _processor_features(), cpu.status()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("flags", "Features", "model name")
    return "".join(sorted({line for line in lines if line.startswith(names)}))


def _root() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "cnnjax"


def _private(folder: Path) -> Path:
    """Makes the folder and the one above it where they are missing.

    Raises:
      Refused: where one of them is a link or another user's, where others may do anything with the folder, or
        write to the one above it.
    """
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for place, closed in ((folder.parent, 0o022), (folder, 0o077)):
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise Refused(f"{place} is not a folder")
        if found.st_uid != os.getuid():
            raise Refused(f"{place} belongs to another user")
        if stat.S_IMODE(found.st_mode) & closed:
            raise Refused(f"{place} is open to other users; chmod 700 it, or remove it")
    return folder


def _tidy(folder: Path) -> None:
    """Removes what a killed process has left half written since the last time, and the oldest of too much."""
    stamp = folder / _STAMP
    checked = stamp.stat().st_mtime if stamp.exists() else 0.0
    began = time.time()
    files = sorted(
        ((file.stat(), file) for file in folder.glob(f"*{_SUFFIX}")), key=lambda pair: -pair[0].st_mtime
    )
    total = 0
    for facts, file in files:
        total += facts.st_size
        if total > MAX_BYTES or (facts.st_mtime >= checked - 1 and not _is_whole(file)):
            file.unlink(missing_ok=True)
    stamp.touch()
    os.utime(stamp, (began, began))


def _is_whole(file: Path) -> bool:
    from jax._src import compilation_cache  # how JAX compresses them has no public name

    try:
        return bool(compilation_cache.decompress_executable(file.read_bytes()))
    except Exception:  # zlib and zstandard raise errors of their own
        return False
