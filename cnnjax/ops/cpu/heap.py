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


def settled(step: Callable[_Args, _Results]) -> Callable[_Args, _Results]:
    """`step`, which takes what its last call returned; before its first calls free memory goes back."""
    libc, calls = _glibc(), itertools.count()

    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Results:
        if libc is not None and next(calls) <= SETTLING_STEPS:
            jax.block_until_ready(args)
            time.sleep(0.005)  # XLA frees a workspace a moment after its results are there
            libc.malloc_trim(0)
        return step(*args, **kwargs)

    return run
