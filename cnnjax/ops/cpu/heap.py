"""The C library's heap, set up so that a training step reuses the memory of the step before it."""

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

# XLA:CPU allocates the workspace of a step anew at each step. By default glibc maps it and gives it back, and
# the system clears it page by page: a sixth of the processor's time of ResNet-18. Numbers from malloc.h;
# -1 is never to trim.
_SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
# Aligned blocks are cut from larger ones, and glibc keeps the cuttings apart, up to seven of a size and
# thread: until it has them, a freed workspace is a few bytes too small for the next one.
SETTLING_STEPS = 16  # seven, and as many more as other blocks have taken cuttings
LARGE = 2**29  # bytes of a workspace that no process should hold twice
LONGEST_WAIT = 0.01  # seconds
_Args = ParamSpec("_Args")
_Results = TypeVar("_Results")


def _glibc() -> ctypes.CDLL | None:
    """glibc, unless there is another C library, or the environment sets its heap up."""
    if sys.platform != "linux" or any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version()  # musl has none
    except (AttributeError, OSError):
        return None
    return libc


def keep_freed_memory() -> bool:
    """Lets this process reuse freed memory for later allocations; returns whether it can.

    Call it before a device is used: threads that have allocated keep heaps of their own, of 64 MiB pieces.
    """
    libc = _glibc()
    return libc is not None and 0 not in [libc.mallopt(*setting) for setting in _SETTINGS.values()]


def workspace(compiled: jax.stages.Compiled) -> int:
    """Bytes of this heap that a compiled program takes and gives back at each call; 0 on other devices."""
    shardings, memory = jax.tree.leaves(compiled.input_shardings), compiled.memory_analysis()
    on_cpu = all(device.platform == "cpu" for sharding in shardings for device in sharding.device_set)
    return memory.temp_size_in_bytes if on_cpu and memory is not None else 0


def _place(libc: ctypes.CDLL, size: int) -> int:
    """The address that a block of so many bytes would get now."""
    block = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size))
    libc.free(block)
    return block.value or 0


def settled(step: Callable[_Args, _Results], size: int) -> Callable[_Args, _Results]:
    """`step`, which takes what its last call returned; the process seldom holds its workspace twice.

    `size` is the workspace's, in bytes. XLA frees it a moment after its results are there; a step that begins
    before takes new memory, and from then on there are two. So the first calls, and all of a step of over
    512 MiB, wait for the place of the last one. If other blocks have taken of it, free memory goes back to
    the system, but then not again for a while: the next step is slower, as it gets its pages anew.
    """
    if (libc := _glibc()) is None:
        return step
    calls, place, trimmed = itertools.count(), 0, 0
    far = max(1, size // 2)  # small blocks move the place a little

    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Results:
        nonlocal place, trimmed
        if (call := next(calls)) <= SETTLING_STEPS or size > LARGE:
            jax.block_until_ready(args)
            end, before = time.perf_counter() + (LONGEST_WAIT if call else 0), place
            while abs((place := _place(libc, size)) - before) >= far and time.perf_counter() < end:
                time.sleep(LONGEST_WAIT / 20)
            if abs(place - before) >= far and not SETTLING_STEPS < call < trimmed + SETTLING_STEPS:
                libc.malloc_trim(0)
                trimmed = call
        return step(*args, **kwargs)

    return run
