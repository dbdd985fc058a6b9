"""The C library's heap, set up so that a training step reuses the memory of the step before it."""

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable

import jax

# XLA:CPU allocates the workspace of a step anew at each step. By default glibc maps it and gives it back, and
# the system clears it page by page: a sixth of the processor's time of ResNet-18. Numbers from malloc.h;
# -1 is never to trim.
_SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
# Aligned blocks are cut from larger ones, and glibc keeps the cuttings apart, up to seven of a size and
# thread: until it has them, a freed workspace is a few bytes too small for the next one.
SETTLING_STEPS = 16  # seven, and as many more as other blocks have taken cuttings
LARGE = 2**29  # bytes of a step that no process should hold twice
LONGEST_WAIT = 0.01  # seconds


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


def device_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes of device memory in use while a compiled program runs; 0 if unknown."""
    if (memory := compiled.memory_analysis()) is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes


def _place(libc: ctypes.CDLL, size: int) -> int:
    """The address that a block of so many bytes would get now."""
    block = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size))
    libc.free(block)
    return block.value or 0


def settled(compiled: jax.stages.Compiled) -> Callable:
    """A step that takes what its last call returned; on a CPU the process seldom holds its memory twice.

    XLA frees a step's workspace a moment after its results are there; a step that begins before takes new
    memory, and from then on there are two. So the first steps, and all of over 512 MiB, run one by one, and
    each waits for the place of the last one's workspace. If other blocks have taken of it, free memory goes
    back to the system, but then not again for a while: the next step is slower, as it gets its pages anew.
    """
    inputs, memory = jax.tree.leaves(compiled.input_shardings), compiled.memory_analysis()
    if memory is None or any(device.platform != "cpu" for each in inputs for device in each.device_set):
        return compiled
    libc, large, calls, place, trimmed = _glibc(), device_memory(compiled) > LARGE, itertools.count(), 0, 0
    size = memory.temp_size_in_bytes
    far = max(1, size // 2)  # small blocks move the place a little

    def run(*args: object) -> object:
        nonlocal place, trimmed
        call = next(calls)
        if not large and (libc is None or call > SETTLING_STEPS):
            return compiled(*args)
        jax.block_until_ready(args)  # what the first step is given may still be computed
        if libc is not None:
            end, before = time.perf_counter() + (LONGEST_WAIT if call else 0), place
            while abs((place := _place(libc, size)) - before) >= far and time.perf_counter() < end:
                time.sleep(LONGEST_WAIT / 20)
            if abs(place - before) >= far and not SETTLING_STEPS < call < trimmed + SETTLING_STEPS:
                libc.malloc_trim(0)
                trimmed = call
        return jax.block_until_ready(compiled(*args))

    return run
