"""Memory of batches, used again: to map and clear a new page costs as much as to fill it."""

import contextlib
import math
import mmap
import threading

import numpy as np

MOST = 16  # blocks that are kept


class Memory:
    """uint8 arrays in blocks that are taken again once nothing looks at them; a copy begins with none.

    They begin at a page, so a CPU device takes them as they are: 64 bytes, a line of its cache, would do.
    """

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Memory"], tuple[()]]:
        return Memory, ()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 [shape], not cleared."""
        size = max(1, math.prod(shape))
        with self._lock:
            block = next((b for b in self._blocks if len(b) == size and _free(b)), None) or self._new(size)
            return np.frombuffer(block, np.uint8, math.prod(shape)).reshape(shape)

    def _new(self, size: int) -> mmap.mmap:
        block = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                block.madvise(mmap.MADV_HUGEPAGE)
        if len(self._blocks) < MOST:
            self._blocks.append(block)
        return block

    def clear(self) -> None:
        """Gives all blocks back, those that arrays look at once these are gone."""
        with self._lock:
            self._blocks.clear()


def _free(block: mmap.mmap) -> bool:
    """Whether no array looks at a block: one that has exports cannot be resized, even to its own size."""
    try:
        block.resize(len(block))
    except BufferError:
        return False
    except SystemError:  # a system that cannot resize them says so after that check
        pass
    return True
