"""Faster kernels on x86-64 CPUs: oneDNN inside XLA:CPU, behind the functions of `cnnjax.ops`.

A function traced on a CPU takes them if the library, an optional part of the installation, loads; all else
goes through XLA, with the same results. `CNNJAX_CPU_KERNELS=off` turns them off.
"""

from cnnjax.ops.cpu.channels import channel_sums, make_activation, make_layer_norm, materialized, scale_rows
from cnnjax.ops.cpu.convolution import make_convolution
from cnnjax.ops.cpu.heap import SETTLING_STEPS, device_memory, keep_freed_memory, settled
from cnnjax.ops.cpu.layers import make_batch_norm, make_max_pool, make_response_norm, max_windows_and_places
from cnnjax.ops.cpu.library import chosen, paused, status, takes, traced_for, turns_unrolled
from cnnjax.ops.cpu.program import Code, Program, Unsupported, lacks_int8, run_program

__all__ = [
    "SETTLING_STEPS", "Code", "Program", "Unsupported", "channel_sums", "chosen", "device_memory",
    "keep_freed_memory", "lacks_int8", "make_activation", "make_batch_norm", "make_convolution",
    "make_layer_norm", "make_max_pool", "make_response_norm", "materialized", "max_windows_and_places",
    "paused", "run_program", "scale_rows", "settled", "status", "takes", "traced_for", "turns_unrolled",
]  # fmt: skip

keep_freed_memory()  # here, as XLA starts its threads later
