"""The memory of a compiled step, and the error when it does not fit."""

import contextlib
import re
from collections.abc import Callable, Iterator

import jax

from cnnjax.errors import UserError


def device_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes that a device holds while a compiled program runs; 0 if they are not known."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes


@contextlib.contextmanager
def out_of_memory(where: str, model: str, batch_size: int, needed: Callable[[], int] = int) -> Iterator[None]:
    """Turns XLA's error for too little memory into a UserError that names the remedies.

    `needed` returns the bytes of the compiled step on a device, 0 if they are not known.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
            raise
        reported = re.search(r"[Uu]sed [\d.]+\w* of [\d.]+\w*|allocating [\d.]+ ?\w*", str(error))
        size = f" ({reported[0]})" if reported else ""
        step = f"; the compiled step needs {needed() / 2**30:.1f} GiB a device" if needed() else ""
    else:
        return
    raise UserError(
        f"out of memory on {where}{size}: config.model={model!r}, batch_size={batch_size}{step}; lower "
        "the batch, raise config.accumulate_steps, take config.dtype='bfloat16', config.sharding='fsdp' on "
        "more devices, or remat=True of a residual net; `cnnjax models NAME --memory` tells beforehand"
    )
