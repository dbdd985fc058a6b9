"""Faster kernels on x86-64 CPUs: oneDNN inside XLA:CPU, behind the functions of `cnnjax.ops`.

They are taken when a function is traced on a CPU and the library, an optional part of the installation,
loads; everything else goes through XLA, with the same results. `CNNJAX_CPU_KERNELS=off` turns them off.
"""

from cnnjax.ops.cpu.convolution import make_convolution
from cnnjax.ops.cpu.library import paused, status, takes

__all__ = ["make_convolution", "paused", "status", "takes"]
