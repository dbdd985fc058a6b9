"""Host batches as a pure function of the step: what a reading thread or process does. No JAX here."""

import dataclasses
import functools
from typing import Any

import numpy as np

from cnnjax.errors import BadImage


@dataclasses.dataclass(frozen=True)
class BatchReader:
    """step -> {"image": uint8 [B, H, W, C], "label": int32 [B], "mask": float32 [B], "bad": messages}; also
    "index", the places in the source, and "epoch", int32 [B].

    B is this process's part of the global batch. As whole batches are read by their number,
    any number of threads, workers and processes serves the same examples.

    Attributes:
      rows: of the global batch that this process reads; None is all.
      seed: of the order of each epoch, a permutation of (seed, epoch); None keeps the source's.
      skip: whether an image that cannot be read becomes another one with mask 0, and a message.
    """

    source: Any
    batch_size: int
    steps_per_epoch: int
    seed: int | None
    skip: bool = False
    rows: np.ndarray | None = None

    def __call__(self, step: int) -> dict[str, Any]:
        size = len(self.source)
        epoch, index = divmod(int(step), self.steps_per_epoch)
        order = epoch_order(size, self.seed, epoch)
        slots = index * self.batch_size + (np.arange(self.batch_size) if self.rows is None else self.rows)
        local = len(slots)
        image = np.empty((local, *self.source.image_shape), np.uint8)
        label, mask = np.zeros(local, np.int32), (slots < size).astype(np.float32)
        bad: dict[int, str] = {}
        good, failed = -1, []
        for row, position in enumerate(order[slots % size]):
            try:
                example = self.source[int(position)]
            except BadImage as error:
                if not self.skip:
                    raise
                bad[int(position)] = str(error)
                failed.append(row)
                continue
            image[row], label[row], good = example["image"], example["label"], row
        mask[failed] = 0
        image[failed] = image[good] if good >= 0 else 0  # BatchNorm sees real images, where there are any
        return {
            "image": image,
            "label": label,
            "mask": mask,
            "index": order[slots % size].astype(np.int32),
            "epoch": np.full(local, epoch, np.int32),
            "bad": list(bad.items()),
        }


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, seed: int | None, epoch: int) -> np.ndarray:
    """int64 [size]: the source's indices in the order of one epoch."""
    if seed is None:
        return np.arange(size)
    return np.random.default_rng((seed, epoch)).permutation(size)
