"""Shuffled, restorable batches of a source, resident on the device or streamed by grain.

A batch is `{"image": uint8 [B, H, W, C], "label": int32 [B], "mask": float32 [B]}` with the global B, and
`index` and `epoch`, int32 [B]: each example's place in the source, and how often it was served before. Every
example comes once an epoch with mask 1. The last batch of an epoch is padded with images of the same
epoch whose mask is 0: the shapes never change, and BatchNorm only ever sees real images.
"""

import abc
import dataclasses
import functools
import math
import multiprocessing
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from cnnjax.data.augment.register import Batch
from cnnjax.data.machine import num_cores
from cnnjax.data.memory import Memory
from cnnjax.data.sources.source import ArraySource, FileSource, Source, check_skipped, lost_classes
from cnnjax.errors import BadImage, UserError

RESIDENT_BYTES = 2**31  # sources in memory up to this size are kept whole on each device
MOST_AHEAD = 8  # streamed batches that wait for the step
READ_AHEAD_BYTES = 2**28  # of all of them


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Batches that serve each example once."""
    return math.ceil(num_examples / batch_size)


def abstract_batch(
    source: Source, batch_size: int, sharding: Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and sharding of a batch of a source, to compile a step before there is one."""
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    row, mask = array((batch_size,), jnp.int32), array((batch_size,), jnp.float32)
    image = array((batch_size, *source.image_shape), jnp.uint8)
    return {"image": image, "label": row, "mask": mask, "index": row, "epoch": row}


def put(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    """A host array, the same in every process, on the devices; `device_put` would compare it between them."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


class Batches(abc.ABC):
    """An endless iterator over batches, each a pure function of (seed, step): `position` is all to save."""

    def __init__(self, size: int, batch_size: int, seed: int | None):
        """`size` is examples an epoch; `seed` shuffles, None keeps the source's order."""
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.steps_per_epoch = steps_per_epoch(size, batch_size)
        self.position = 0  # the step of the next batch
        self._bad: dict[int, str] = {}
        self.lost = ""  # see `lost_classes`

    def __iter__(self) -> Iterator[Batch]:
        return self

    @abc.abstractmethod
    def __next__(self) -> Batch: ...

    @abc.abstractmethod
    def one_epoch(self) -> Iterator[Batch]:
        """The batches of the first epoch, whatever the position."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """A message for every image that has been left out so far."""
        return tuple(dict.fromkeys(self._bad.values()))

    def restore_skipped(self, messages: Sequence[str]) -> None:
        """Counts images that were left out before this process began, as `skipped` then told."""
        self._bad = {-1 - i: message for i, message in enumerate(messages)} | self._bad

    @abc.abstractmethod
    def _order(self, epoch: int) -> np.ndarray | jax.Array:
        """[size]: the source's indices in the order of one epoch."""

    def indices(self, step: int) -> list[int]:
        """The source's indices of the examples in the global batch of a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return np.asarray(self._order(epoch))[index * self.batch_size :][: self.batch_size].tolist()

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class ResidentBatches(Batches):
    """Batches of a source that is whole on each device, shuffled by a key of `fold_in(key(seed), epoch)`."""

    def __init__(
        self, source: ArraySource, batch_size: int, *, seed: int | None, sharding: Sharding | None = None
    ):
        super().__init__(len(source), batch_size, seed)
        whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
        self._bad, self.lost = dict(enumerate(source.skipped)), source.lost
        places = np.arange(self.size, dtype=np.int32) if source.places is None else source.places
        arrays = {"image": source.images, "label": np.asarray(source.labels, np.int32), "index": places}
        self._rows = {name: put(array, whole) for name, array in arrays.items()}
        self._kept_order: tuple[int, jax.Array] | None = None
        self._permute = jax.jit(self._permutation, out_shardings=whole)
        self._gather = jax.jit(functools.partial(_gather, batch_size), out_shardings=sharding)

    def _permutation(self, epoch: jax.Array) -> jax.Array:
        if self.seed is None:
            return jnp.arange(self.size, dtype=jnp.int32)
        key = jax.random.fold_in(jax.random.key(self.seed), epoch)
        return jax.random.permutation(key, self.size).astype(jnp.int32)

    def _order(self, epoch: int) -> jax.Array:
        if self._kept_order is None or self._kept_order[0] != epoch:
            self._kept_order = epoch, self._permute(np.int32(epoch))
        return self._kept_order[1]

    def at(self, step: int) -> Batch:
        """The batch of a step counted from the start of training."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._gather(self._rows, self._order(epoch), np.int32(index), np.int32(epoch))

    def __next__(self) -> Batch:
        batch = self.at(self.position)
        self.position += 1
        return batch

    def indices(self, step: int) -> list[int]:
        return np.asarray(self._rows["index"])[super().indices(step)].tolist()

    def one_epoch(self) -> Iterator[Batch]:
        return (self.at(step) for step in range(self.steps_per_epoch))


def _gather(size: int, rows: Batch, order: jax.Array, index: jax.Array, epoch: jax.Array) -> Batch:
    slots = index * size + jnp.arange(size, dtype=jnp.int32)
    chosen = order[slots % order.shape[0]]  # past the end: real images again, with mask 0
    mask, epochs = (slots < order.shape[0]).astype(jnp.float32), jnp.full(size, epoch, jnp.int32)
    return {name: array[chosen] for name, array in rows.items()} | {"mask": mask, "epoch": epochs}


HostBatch = tuple[dict[str, np.ndarray], list[tuple[int, str]]]  # and index, message of unreadable images


@dataclasses.dataclass(frozen=True)
class BatchReader:
    """step -> this process's rows of the global batch, the same for any number of threads and workers.

    Epochs are permuted by (seed, epoch), with seed None not at all; `skip` replaces an image that cannot be
    read by another one with mask 0, and a message.
    """

    source: Source
    batch_size: int
    steps_per_epoch: int
    seed: int | None
    skip: bool
    rows: np.ndarray
    memory: Memory = dataclasses.field(default_factory=Memory)

    def __call__(self, step: int, pool: ThreadPoolExecutor | None = None, threads: int = 1) -> HostBatch:
        """The batch; the threads of a pool, if one is given, read its images side by side."""
        size, count = len(self.source), len(self.rows)
        epoch, step_of_epoch = divmod(int(step), self.steps_per_epoch)
        slots = step_of_epoch * self.batch_size + self.rows
        index = epoch_order(size, self.seed, epoch)[slots % size].astype(np.int32)
        image = self.memory.take((count, *self.source.image_shape))
        label, mask = np.zeros(count, np.int32), (slots < size).astype(np.float32)
        few = -(-count // threads)  # where one has the slower part, the others have the next batch
        parts = [range(start, min(start + few, count)) for start in range(0, count, few)]
        read = functools.partial(self._read_rows, index, image, label)
        bad = dict(failure for failures in (pool.map if pool else map)(read, parts) for failure in failures)
        if failed := [*bad]:
            good = np.setdiff1d(np.arange(count), failed)
            mask[failed] = 0
            for part in (image, label):  # BatchNorm sees real images, and mixing their own labels
                part[failed] = part[good[-1]] if good.size else 0
        epochs = np.full(count, epoch, np.int32)
        batch = {"image": image, "label": label, "mask": mask, "index": index, "epoch": epochs}
        return batch, [(int(index[row]), message) for row, message in bad.items()]

    def _read_rows(
        self, index: np.ndarray, image: np.ndarray, label: np.ndarray, rows: range
    ) -> list[tuple[int, str]]:
        """Fills some rows of a batch; returns those that cannot be read, with a message."""
        failed = []
        for row in rows:
            try:
                label[row] = _read_into(self.source, int(index[row]), image[row])
            except BadImage as error:
                if not self.skip:
                    raise error.refused("train") from None
                failed.append((row, str(error)))
        return failed


def _read_into(source: Source, index: int, out: np.ndarray) -> int:
    """Fills an image, and returns its label."""
    example = source.example(index, out) if isinstance(source, FileSource) else source[index]
    image = example["image"]
    if image.strides != out.strides or not np.may_share_memory(image, out):  # not decoded to it, or turned
        out[...] = image
    return example["label"]


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, seed: int | None, epoch: int) -> np.ndarray:
    """int64 [size]: the source's indices in the order of one epoch."""
    return np.arange(size) if seed is None else np.random.default_rng((seed, epoch)).permutation(size)


@functools.cache
def read_pool(threads: int) -> ThreadPoolExecutor:
    """The process's threads that read images, of all streams.

    They are never shut down: a stream that nobody closed is collected in any thread, even in one of these.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix="read")


def _children() -> set[int]:
    """The live processes that this one has started."""
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


class StreamBatches(Batches):
    """Batches of a source too large to be resident: read by grain's threads or processes, ahead of the step.

    Each process reads the rows that its devices take. Memory is that of the batches read ahead, at most
    `READ_AHEAD_BYTES` or two of them, and 8 bytes an example for the order.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int | None,
        sharding: Sharding | None = None,
        num_workers: int = 0,
        max_bad: int | None = None,
    ):
        super().__init__(len(source), batch_size, seed)
        self.sharding, self.max_bad, self.num_workers = sharding, max_bad, num_workers
        rows = np.arange(batch_size)
        if sharding is not None:
            shares = sharding.addressable_devices_indices_map((batch_size,)).values()
            rows = np.unique(np.concatenate([rows[share] for share in shares]))
        self._read = BatchReader(source, batch_size, self.steps_per_epoch, seed, max_bad is not None, rows)
        bytes_each = len(rows) * math.prod(source.image_shape)
        self._batches_ahead = max(2, min(MOST_AHEAD, READ_AHEAD_BYTES // bytes_each))
        self._ahead: tuple[int, Generator[HostBatch]] | None = None  # the position it is at

    def _order(self, epoch: int) -> np.ndarray:
        return epoch_order(self.size, self.seed, epoch)

    def _stream(self, start: int, stop: int) -> Generator[HostBatch]:
        """Host batches of the steps from start to stop, in order; a dead worker is an error that says so."""
        ahead = max(1, self._batches_ahead // max(1, self.num_workers))
        threads = num_cores() + 1  # where one waits for Python's lock, another has its core
        side_by_side = functools.partial(self._read, pool=read_pool(threads), threads=threads)
        steps = grain.MapDataset.range(start, stop).map(self._read if self.num_workers else side_by_side)
        at_once = 1 if self.num_workers else min(3, ahead)  # so that the pool has work where batches end
        batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=at_once, prefetch_buffer_size=ahead))
        if self.num_workers:
            flags.FLAGS.mark_as_parsed()  # grain's processes are given flags of its own
            options = grain.MultiprocessingOptions(num_workers=self.num_workers, per_worker_buffer_size=ahead)
            batches = batches.mp_prefetch(options)  # spawned, never forked
        before, iterator = _children(), iter(batches)
        workers: set[int] = set()
        try:
            for batch in iterator:
                workers = workers or _children() - before
                yield batch
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            dead = ", ".join(map(str, sorted(workers - _children()))) or "one of them"
            died = f"{self._read.source.name} died: {dead} ({str(error).split('. ')[0]})"
            hint = f"was it out of memory? try fewer than num_workers={self.num_workers}"
            raise UserError(f"a process that reads {died}; {hint}") from None
        finally:
            iterator.close()

    def _put(self, read: HostBatch) -> Batch:
        batch, bad = read
        self._bad |= dict(bad)
        self.lost = lost_classes(self._read.source, self._bad) if bad else self.lost
        if self.max_bad is not None:
            check_skipped(self.skipped, self.max_bad)
        if len(self._read.rows) == self.batch_size:
            return {name: put(array, self.sharding) for name, array in batch.items()}
        whole = functools.partial(jax.make_array_from_process_local_data, self.sharding)
        return {name: whole(x, (self.batch_size, *x.shape[1:])) for name, x in batch.items()}

    def __next__(self) -> Batch:
        if self._ahead is None or self._ahead[0] != self.position:
            self.close()
            self._ahead = self.position, self._stream(self.position, np.iinfo(np.int32).max)
        batch = next(stream := self._ahead[1])
        self.position += 1
        self._ahead = self.position, stream
        return self._put(batch)

    def close(self) -> None:
        """Ends the processes and threads that read ahead."""
        if self._ahead is not None:
            self._ahead[1].close()
        self._ahead = None
        self._read.memory.clear()

    def one_epoch(self) -> Iterator[Batch]:
        return map(self._put, self._stream(0, self.steps_per_epoch))


def make_batches(
    source: Source,
    batch_size: int,
    *,
    seed: int | None = None,
    sharding: Sharding | None = None,
    num_workers: int = 0,
    max_bad: int | None = None,
) -> Batches:
    """The batches of a source: resident if it is an array of at most `RESIDENT_BYTES`, else streamed.

    `seed` None keeps the source's order (evaluation); `sharding` None is the default device. `num_workers`
    processes read, with 0 threads; the batches are the same. `max_bad` images may be left out as they cannot
    be read; None refuses the first. UserError for an empty source.
    """
    if not len(source):
        raise UserError("the data set has no images in this split; choose another split or folder")
    if isinstance(source, ArraySource) and source.images.nbytes <= RESIDENT_BYTES:
        return ResidentBatches(source, batch_size, seed=seed, sharding=sharding)
    stream = functools.partial(StreamBatches, num_workers=num_workers, max_bad=max_bad)
    return stream(source, batch_size, seed=seed, sharding=sharding)
