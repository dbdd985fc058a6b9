"""What XLA says when a step does not fit into memory, in one line."""

import contextlib
import re
from collections.abc import Callable, Iterator

import jax

from cnnjax.errors import UserError


def device_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes that a device holds while a compiled program runs."""
    found = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return held - found.alias_size_in_bytes


@contextlib.contextmanager
def out_of_memory(where: str, model: str, batch_size: int, needed: Callable[[], int] = int) -> Iterator[None]:
    """XLA's error for what does not fit into memory as one line that says what would.

    `needed` tells the bytes of the compiled step on a device, 0 where they are not known.

    Raises:
      UserError: in place of that error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
            raise
        found = re.search(r"[Uu]sed [\d.]+\w* of [\d.]+\w*|allocating [\d.]+ ?\w*", str(error))
        size = f" ({found[0]})" if found else ""
        step = f"; the compiled step needs {needed() / 2**30:.1f} GiB a device" if needed() else ""
    else:
        return
    raise UserError(
        f"out of memory on {where}{size}: config.model={model!r}, batch_size={batch_size}{step}; lower "
        "the batch, raise config.accumulate_steps, take config.dtype='bfloat16', config.sharding='fsdp' on "
        "more devices, or remat=True of a residual net; `cnnjax models NAME --memory` tells beforehand"
    )
