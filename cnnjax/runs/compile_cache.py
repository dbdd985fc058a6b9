"""Compiled programs kept between processes, in a folder that no other user can read or change.

JAX keeps them and removes the least recently used. It runs what is in their files, so the folder has mode
0700; there is one for each combination of versions, platform and features of the processor. They are in the
user's cache folder, which others may read, as data sets are there too, but not write to.
"""

import hashlib
import importlib.util
import os
import platform
import sys
from pathlib import Path

import jax
import jaxlib

import cnnjax
from cnnjax.data.files import make_cache_folder
from cnnjax.errors import UserError, scheme_of, visible
from cnnjax.ops import cpu
from cnnjax.runs import devices

SWITCH = "CNNJAX_COMPILE_CACHE"
MAX_BYTES = 2**31
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # through which JAX keeps its cache in a bucket


def enable() -> str:
    """Makes JAX load programs from the folder, and save there what took over a second to compile.

    Returns the folder, or "off: " and the reason. A folder that others may change is never read.
    A UserError if there is no device to compile for.
    """
    devices.check()
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "false", "no"):
        return f"off: {SWITCH}={os.environ[SWITCH]}"
    if own := jax.config.values["jax_compilation_cache_dir"]:
        if (package := PACKAGES.get(scheme_of(own))) and not importlib.util.find_spec(package):
            raise UserError(f"the compilation cache {own}: pip install {package}, or name a folder")
        return str(own)  # the user's choice
    try:
        folder = make_cache_folder(key(), alone=True)
        _remove_unfinished(folder)
    except (OSError, UserError) as error:
        sys.stderr.write(f"cnnjax: compiled programs are not cached: {visible(error)}\n")
        return f"off: {error}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    return str(folder)


def key() -> str:
    """A digest of all else that a compiled program depends on: versions, platform, processor."""
    device = jax.devices()[0]
    kind = [device.platform, device.device_kind, device.client.platform_version]
    versions = [cnnjax.__version__, jax.__version__, jaxlib.__version__]
    facts = [*versions, platform.machine(), *kind, _processor_features(), cpu.status()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = ("flags", "Features", "model name")
    return "".join(sorted({line for line in lines if line.startswith(names)}))


def _remove_unfinished(folder: Path) -> None:
    """Removes programs without a time of last use, which a killed process leaves, and what is no file.

    JAX neither replaces such a program nor removes old ones while there is one; at a pipe it would wait.
    """
    for program in folder.glob("*-cache"):
        used = program.with_name(f"{program.name.removesuffix('-cache')}-atime")
        if not (program.is_file() and used.is_file()):
            program.unlink(missing_ok=True)
