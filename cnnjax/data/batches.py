"""Shuffled, restorable batches of a source, resident on the device or streamed by grain.

A batch is `{"image": uint8 [B, H, W, C], "label": int32 [B], "mask": float32 [B]}` with the global B, and
`index` and `epoch`, int32 [B]: each example's place in the source, and how often it was served before. Every
example comes once an epoch with mask 1. The last batch of an epoch is filled up with images of the same
epoch whose mask is 0: the shapes never change, and BatchNorm only ever sees real images.
"""

import functools
import math
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Sharding

from cnnjax.data.loading import BatchReader, epoch_order
from cnnjax.data.sources.source import check_skipped
from cnnjax.errors import UserError

Batch = dict[str, jax.Array]
RESIDENT_BYTES = 2**31  # sources in memory up to this size are kept whole on each device
MOST_AHEAD = 8  # streamed batches that wait for the step
READ_AHEAD_BYTES = 2**28  # of all of them


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
        "index": array((batch_size,), jnp.int32),
        "epoch": array((batch_size,), jnp.int32),
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
        self.position, self.skipped = 0, source.skipped
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
        return self._cut(self._images, self._labels, self._order[1], np.int32(index), np.int32(epoch))

    def indices(self, step: int) -> list[int]:
        """The source's indices of the examples in the batch of a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = jax.device_get(self._order_of(np.int32(epoch)))
        return order[index * self.batch_size :][: self.batch_size].tolist()

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
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    index: jax.Array,
    epoch: jax.Array,
    *,
    batch_size: int,
) -> Batch:
    slots = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    chosen = order[slots % order.shape[0]]  # past the end: real images again, with mask 0
    mask = (slots < order.shape[0]).astype(jnp.float32)
    epochs = jnp.full(batch_size, epoch, jnp.int32)
    return {
        "image": images[chosen],
        "label": labels[chosen],
        "mask": mask,
        "index": chosen,
        "epoch": epochs,
    }


def _children() -> set[int]:
    """The processes that this one has started and that are alive."""
    return {child.pid for child in multiprocessing.active_children()}


class StreamBatches:
    """Batches of a source too large to be resident: read by grain's threads or processes, ahead of the step.

    A batch is a pure function of its step (see `loading`), so no example is lost or repeated for any number
    of threads, workers and processes, and the position is all that there is to save. Memory is that of
    the batches read ahead, at most `READ_AHEAD_BYTES` or two of them, and 8 bytes an example for the order.
    Of several processes each reads the rows that its devices take.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        seed: int | None,
        sharding: Sharding | None = None,
        num_workers: int = 0,
        max_bad: int | None = None,
    ):
        """`num_workers` 0 reads with threads; `max_bad` None refuses the first image that cannot be read."""
        self.size, self.batch_size, self.sharding = len(source), batch_size, sharding
        self.steps_per_epoch = steps_per_epoch(self.size, batch_size)
        self.position, self._bad, self.max_bad = 0, {}, max_bad
        self.num_workers = num_workers
        self._rows = np.arange(batch_size)
        if sharding is not None:
            cuts = sharding.addressable_devices_indices_map((batch_size,)).values()
            self._rows = np.unique(np.concatenate([self._rows[cut] for cut in cuts]))
        self._read = BatchReader(
            source,
            batch_size,
            self.steps_per_epoch,
            seed,
            max_bad is not None,
            self._rows,
        )
        each = len(self._rows) * math.prod(source.image_shape)
        self._ahead_of_step = max(2, min(MOST_AHEAD, READ_AHEAD_BYTES // each))
        self._ahead: tuple[int, Iterator[dict] | None] = (-1, None)

    def _stream(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Host batches of the steps from start to stop, in order; a dead worker is an error that says so."""
        threads = 1 if self.num_workers else min(4, os.cpu_count() or 1)
        ahead = max(1, self._ahead_of_step // max(1, self.num_workers))
        steps = grain.MapDataset.range(start, stop).map(self._read)
        batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
        if self.num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's processes are given flags of its own
            options = grain.MultiprocessingOptions(num_workers=self.num_workers, per_worker_buffer_size=ahead)
            batches = batches.mp_prefetch(options)  # spawned, never forked
        before, workers = _children(), set()
        iterator = iter(batches)
        try:
            for batch in iterator:
                workers = workers or _children() - before
                yield batch
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            dead = ", ".join(map(str, sorted(workers - _children()))) or "one of them"
            reason = str(error).partition(". ")[0]
            raise UserError(
                f"a process that reads {self._read.source.name} died: {dead} ({reason}); "
                "was it out of memory? try fewer config.data.num_workers"
            ) from None
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def _put(self, batch: dict[str, Any]) -> Batch:
        self._bad |= dict(batch.pop("bad"))
        if self.max_bad is not None:
            check_skipped(self.skipped, self.max_bad)
        if len(self._rows) == self.batch_size:
            return jax.device_put(batch, self.sharding)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(
                self.sharding, x, (self.batch_size, *x.shape[1:])
            ),
            batch,
        )

    @property
    def skipped(self) -> tuple[str, ...]:
        """A message for every image that has been left out so far."""
        return tuple(self._bad.values())

    def indices(self, step: int) -> list[int]:
        """The source's indices of the examples in the global batch of a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.size, self._read.seed, epoch)
        return order[index * self.batch_size :][: self.batch_size].tolist()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._ahead[0] != self.position:
            self.close()
            self._ahead = (self.position, self._stream(self.position, np.iinfo(np.int32).max))
        batch = next(self._ahead[1])
        self.position += 1
        self._ahead = (self.position, self._ahead[1])
        return self._put(batch)

    def close(self) -> None:
        """Ends the processes and threads that read ahead."""
        if self._ahead[1] is not None:
            self._ahead[1].close()
        self._ahead = (-1, None)

    def one_epoch(self) -> Iterator[Batch]:
        """The batches of the first epoch, whatever the position."""
        return map(self._put, self._stream(0, self.steps_per_epoch))

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


Batches = ResidentBatches | StreamBatches


def make_batches(
    source: Any,
    batch_size: int,
    *,
    seed: int | None = None,
    sharding: Sharding | None = None,
    num_workers: int = 0,
    max_bad: int | None = None,
) -> Batches:
    """The batches of a source: resident where its images fit on the device, else streamed.

    Args:
      source: random access, see `data.load`.
      batch_size: the global batch, at least 1.
      seed: of the shuffle; None keeps the source's order (evaluation).
      sharding: where the batches go; None is the default device.
      num_workers: processes that read; 0 reads with threads. The batches are the same.
      max_bad: images that may be left out as they cannot be read; None refuses the first.

    Raises:
      UserError: for an empty source.
    """
    if not len(source):
        raise UserError("the data set has no images in this split; choose another split or folder")
    images = getattr(source, "images", None)
    if images is not None and images.nbytes <= RESIDENT_BYTES:
        return ResidentBatches(source, batch_size, seed=seed, sharding=sharding)
    return StreamBatches(
        source,
        batch_size,
        seed=seed,
        sharding=sharding,
        num_workers=num_workers,
        max_bad=max_bad,
    )
