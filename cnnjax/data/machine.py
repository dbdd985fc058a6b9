"""What this process may use of its machine, and what it has used."""

import os
import resource
import sys


def num_cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_resident() -> int:
    """The largest resident size of this process so far, in bytes."""
    try:
        with open("/proc/self/status", "rb") as lines:  # getrusage counts what the process was forked from
            return next(int(line.split()[1]) for line in lines if line.startswith(b"VmHWM")) * 1024
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
