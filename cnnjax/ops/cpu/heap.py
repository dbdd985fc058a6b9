"""The C library's heap, set up so that a training step reuses the memory of the step before it."""

import contextlib
import ctypes
import os
import sys

# XLA:CPU allocates the workspace of a step anew at each step. By default glibc maps it and gives it back, and
# the system clears it page by page: a sixth of the processor's time of ResNet-18. Numbers from malloc.h.
_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8
_DEFAULT_MMAP_MAX = 65536
# Aligned blocks are cut from larger ones, and glibc keeps the cuttings apart, up to seven of a size and
# thread: until it has them, a freed workspace is a few bytes too small for the next one. In a first run the
# peak grows by up to three workspaces, so steps of more bytes than this are mapped as by default.
LARGEST_STEP = 2**30


def keep_freed_memory(step_bytes: int = 0) -> bool:
    """Makes this process reuse freed memory in steps of at most `LARGEST_STEP` bytes; whether it can.

    Call it before a device is used: threads that have allocated keep heaps of 64 MiB, and map larger blocks.
    Other C libraries, and glibc set up by the environment (GLIBC_TUNABLES, MALLOC_...), are left alone.
    """
    if sys.platform != "linux" or any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
        return False
    with contextlib.suppress(AttributeError, OSError):  # musl has neither function
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version()
        mapped = _DEFAULT_MMAP_MAX if step_bytes > LARGEST_STEP else 0
        settings = [(_MMAP_MAX, mapped), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)]
        return 0 not in [libc.mallopt(*setting) for setting in settings]
    return False
