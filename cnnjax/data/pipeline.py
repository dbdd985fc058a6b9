"""Shuffled, restorable batches of a source, resident on the device or streamed by grain.

A batch is `{"image": uint8 [B, H, W, C], "label": int32 [B], "mask": float32 [B]}` with the global B. Every
example comes once an epoch with mask 1. The last batch of an epoch is filled up with images of the same
epoch whose mask is 0: the shapes never change, and BatchNorm only ever sees real images.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from cnnjax.errors import UserError

Batch = dict[str, jax.Array]
RESIDENT_BYTES = 2**31  # sources in memory up to this size are kept whole on each device


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Batches that serve each example once."""
    return math.ceil(num_examples / batch_size)


def abstract_batch(source: Any, batch_size: int, sharding: Sharding | None = None) -> Batch:
    """Shapes, dtypes and sharding of a batch of a source, to compile a step before there is one."""
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    return {
        "image": array((batch_size, *source.image_shape), jnp.uint8),
        "label": array((batch_size,), jnp.int32),
        "mask": array((batch_size,), jnp.float32),
    }


def put(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    """A host array, the same in every process, on the devices."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


class ResidentBatches:
    """Batches of a source whose images lie whole on each device, shuffled and cut there by key.

    The order of epoch e is `permutation(fold_in(key(seed), e))`: the batch at a step is a pure function of
    (seed, step), so its position is all that there is to save.
    """

    def __init__(self, source: Any, batch_size: int, *, seed: int | None, sharding: Sharding | None = None):
        """`seed` None keeps the source's order; `sharding` is that of the batches."""
        self.size, self.batch_size, self.seed = len(source), batch_size, seed
        self.steps_per_epoch = steps_per_epoch(self.size, batch_size)
        self.position = 0
        whole = None
        if sharding is not None:
            whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        self._images = put(source.images, whole)
        self._labels = put(np.asarray(source.labels, np.int32), whole)
        self._order: tuple[int, jax.Array | None] = (-1, None)
        self._order_of = jax.jit(self._epoch_order, out_shardings=whole)
        self._cut = jax.jit(functools.partial(_cut, batch_size=batch_size), out_shardings=sharding)

    def _epoch_order(self, epoch: jax.Array) -> jax.Array:
        """int32 [size]: the source's indices in the order of one epoch."""
        if self.seed is None:
            return jnp.arange(self.size, dtype=jnp.int32)
        key = jax.random.fold_in(jax.random.key(self.seed), epoch)
        return jax.random.permutation(key, self.size).astype(jnp.int32)

    def at(self, step: int) -> Batch:
        """The batch of a step counted from the start of training."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._order_of(np.int32(epoch)))
        return self._cut(self._images, self._labels, self._order[1], np.int32(index))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.at(self.position)
        self.position += 1
        return batch

    def one_epoch(self) -> Iterator[Batch]:
        """The batches of the first epoch, whatever the position."""
        return (self.at(step) for step in range(self.steps_per_epoch))

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def _cut(
    images: jax.Array, labels: jax.Array, order: jax.Array, index: jax.Array, *, batch_size: int
) -> Batch:
    slots = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    chosen = order[slots % order.shape[0]]  # past the end: real images again, with mask 0
    mask = (slots < order.shape[0]).astype(jnp.float32)
    return {"image": images[chosen], "label": labels[chosen], "mask": mask}


class StreamBatches:
    """Batches of a source too large to be resident: read by grain's threads, ahead of the step.

    The order of an epoch is a NumPy permutation of (seed, epoch); a batch is a pure function of its step, so
    no example is lost or repeated for any number of threads. Of several processes each reads the rows that
    its devices take.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        seed: int | None,
        sharding: Sharding | None = None,
        num_threads: int = 8,
        prefetch: int = 8,
    ):
        self.source, self.size = source, len(source)
        self.batch_size, self.seed, self.sharding = batch_size, seed, sharding
        self.steps_per_epoch = steps_per_epoch(self.size, batch_size)
        self.position = 0
        self._options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        self._ahead: tuple[int, Iterator[dict] | None] = (-1, None)
        self._rows = np.arange(batch_size)
        if sharding is not None:
            cuts = sharding.addressable_devices_indices_map((batch_size,)).values()
            self._rows = np.unique(np.concatenate([self._rows[cut] for cut in cuts]))

    def _read(self, step: int) -> dict[str, np.ndarray]:
        epoch, index = divmod(int(step), self.steps_per_epoch)
        order = _numpy_order(self.size, self.seed, epoch)
        slots = index * self.batch_size + self._rows
        examples = [self.source[int(i)] for i in order[slots % self.size]]
        return {
            "image": np.stack([example["image"] for example in examples]),
            "label": np.asarray([example["label"] for example in examples], np.int32),
            "mask": (slots < self.size).astype(np.float32),
        }

    def _stream(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        steps = grain.MapDataset.range(start, stop).map(self._read)
        return iter(steps.to_iter_dataset(self._options))

    def _put(self, batch: dict[str, np.ndarray]) -> Batch:
        if len(self._rows) == self.batch_size:
            return jax.device_put(batch, self.sharding)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(
                self.sharding, x, (self.batch_size, *x.shape[1:])
            ),
            batch,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._ahead[0] != self.position:
            self._ahead = (self.position, self._stream(self.position, np.iinfo(np.int32).max))
        batch = next(self._ahead[1])
        self.position += 1
        self._ahead = (self.position, self._ahead[1])
        return self._put(batch)

    def one_epoch(self) -> Iterator[Batch]:
        """The batches of the first epoch, whatever the position."""
        return map(self._put, self._stream(0, self.steps_per_epoch))

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@functools.lru_cache(maxsize=4)
def _numpy_order(size: int, seed: int | None, epoch: int) -> np.ndarray:
    if seed is None:
        return np.arange(size)
    return np.random.default_rng((seed, epoch)).permutation(size)


def make_batches(
    source: Any, batch_size: int, *, seed: int | None = None, sharding: Sharding | None = None
) -> ResidentBatches | StreamBatches:
    """The batches of a source: resident where its images fit on the device, else streamed.

    Args:
      source: random access, see `data.load`.
      batch_size: the global batch, at least 1.
      seed: of the shuffle; None keeps the source's order (evaluation).
      sharding: where the batches go; None is the default device.

    Raises:
      UserError: for an empty source.
    """
    if not len(source):
        raise UserError("the data set has no images in this split; choose another split or folder")
    images = getattr(source, "images", None)
    resident = images is not None and images.nbytes <= RESIDENT_BYTES
    kind = ResidentBatches if resident else StreamBatches
    return kind(source, batch_size, seed=seed, sharding=sharding)
