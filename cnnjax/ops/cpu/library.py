"""The compiled kernels: finding, loading and registering them, once, at their first use."""

import contextlib
import contextvars
import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, get_abstract_mesh

SWITCH = "CNNJAX_CPU_KERNELS"
ONEDNN = "onednn-cpu-gomp"
HANDLERS = (
    *("CnnjaxConvolution", "CnnjaxBatchNorm", "CnnjaxMaxPool", "CnnjaxResponseNorm"),
    *("CnnjaxActivation", "CnnjaxLayerNorm", "CnnjaxChannelSum", "CnnjaxMaterialized", "CnnjaxProgram"),
)
# OpenMP's threads spin this many rounds (some microseconds) for the next kernel before they sleep. They share
# the cores with XLA's threads, which by default they would keep waiting for milliseconds. Without "active" it
# is a hundred rounds once several of XLA's threads have called kernels, and waking them takes as long as a
# small layer.
SPIN = {"GOMP_SPINCOUNT": "2000", "OMP_WAIT_POLICY": "active"}
LONGEST_UNROLLED = 36  # turns of a loop; the longest stage of ResNet-152 has 35 equal blocks

_paused = contextvars.ContextVar("paused", default="")  # why


class Missing(Exception):
    """Why the kernels are unavailable, in a few words."""


def status(devices: int = 1) -> str:
    """Which kernels a program of so many devices has on a CPU: "oneDNN 3.2", or "off: " and the reason."""
    if why := _paused.get() or "for several devices" * (devices > 1):
        return f"off: {why}"
    library, words = _load()
    return words if library else f"off: {words}"


def library() -> ctypes.CDLL | None:
    """The loaded library, its handlers registered with XLA; None if there is none."""
    return _load()[0]


def chosen(on: bool) -> contextlib.AbstractContextManager[None]:
    """`paused`, unless on."""
    return contextlib.nullcontext() if on else paused("as the config asks")


@contextlib.contextmanager
def paused(why: str = "for comparison") -> Iterator[None]:
    """Functions traced inside go through XLA; `status` says why."""
    token = _paused.set(why)
    try:
        yield
    finally:
        _paused.reset(token)


def takes(*arrays: jax.Array) -> bool:
    """Whether the kernels take these arrays, as far as can be known while tracing.

    They leave to XLA: other dtypes than float32 and bfloat16, arrays without values, the inside of
    `shard_map`, meshes with explicit axes, and every platform but the CPU. Lowering decides the rest.
    """
    if _paused.get() or any(x.dtype not in (jnp.float32, jnp.bfloat16) or 0 in x.shape for x in arrays):
        return False
    if any(kind != AxisType.Auto for kind in get_abstract_mesh().axis_types):
        return False
    return traced_for() == "cpu" and library() is not None


def turns_unrolled(length: int) -> int:
    """`unroll` of a `lax.scan` of `length` turns around convolutions, as it is traced now.

    XLA:CPU convolves about ten times slower inside a loop than outside. Where it convolves, without kernels
    or for several devices, short loops are unrolled; compiling 100 blocks one by one would take minutes.
    """
    kernels = not _paused.get() and get_abstract_mesh().size <= 1 and library() is not None
    return length if traced_for() == "cpu" and not kernels and length <= LONGEST_UNROLLED else 1


def traced_for() -> str:
    """The platform that is compiled for now: that of `jax.default_device`, or else the default one."""
    device = jax.config.jax_default_device or jax.default_backend()  # type: ignore[attr-defined]
    return device if isinstance(device, str) else str(device.platform)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    try:
        if (switch := os.environ.get(SWITCH, "")).lower() in ("off", "0", "false", "no"):
            raise Missing(f"{SWITCH}={switch}")
        if (loaded := _open()).cnnjax_interface() > _interface():
            raise Missing("the kernels were compiled for a newer jaxlib; install cnnjax again")
        for symbol in HANDLERS:
            target = re.sub(r"(?<=.)([A-Z])", r"_\1", symbol).lower()  # "cnnjax_batch_norm"
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(loaded, symbol)), platform="cpu")
        version = loaded.cnnjax_start(thread_count())
    except Missing as error:
        return None, str(error)
    except Exception as error:  # whatever a broken installation does, XLA can do the work
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return loaded, f"oneDNN {version // 100}.{version % 100}"


def _open() -> ctypes.CDLL:
    if not (spec := importlib.util.find_spec("cnnjax.ops.cpu._kernels")) or not spec.origin:
        raise Missing("cnnjax was installed without its compiled kernels")
    chosen_by_user = SPIN.keys() & os.environ.keys()
    if not chosen_by_user:
        os.environ.update(SPIN)  # OpenMP reads them while it is loaded, here or never
    try:
        ctypes.CDLL(str(_onednn()))  # the kernels find it by its name once it is in the process
        return ctypes.CDLL(spec.origin)
    finally:
        if not chosen_by_user:
            for name in SPIN:
                del os.environ[name]


def _interface() -> int:
    """Version of XLA's call interface: it takes handlers of older versions, and newer ones break it."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text("utf-8")
    numbers = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header))
    return 1000 * int(numbers["MAJOR"]) + int(numbers["MINOR"])


def _onednn() -> Path:
    try:
        for file in importlib.metadata.files(ONEDNN) or []:
            if file.name == "libdnnl.so.3":
                return Path(file.locate()).resolve()
    except importlib.metadata.PackageNotFoundError:
        raise Missing(f"package {ONEDNN} is not installed") from None
    raise Missing(f"package {ONEDNN} holds no libdnnl.so.3")


def thread_count() -> int:
    """Threads for a kernel: the least of the process's cores, the cgroup's quota and OMP_NUM_THREADS."""
    counts = [len(os.sched_getaffinity(0)), *_quotas()]
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit() and int(asked) > 0:
        counts.append(int(asked))
    return max(1, min(counts))


def _quotas() -> list[int]:
    """Whole cores that the cgroup (version 2 or 1) and its parents grant; [] without a limit."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", "cpu" if controllers else "")
        inside = (root / path.lstrip("/"), *(root / path.lstrip("/")).parents)
        for folder in (f for f in inside if f.is_relative_to(root)):
            if controllers:
                limit = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            else:
                limit = _read(folder / "cpu.max").split()
            if len(limit) == 2 and all(number.isdigit() and int(number) for number in limit):
                found.append(max(1, round(int(limit[0]) / int(limit[1]))))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
