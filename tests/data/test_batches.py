"""Batches: every example once an epoch, whatever the batch size; positions that can be restored."""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjax.data import batches as pipeline
from cnnjax.data.memory import Memory
from cnnjax.data.sources.source import ArraySource
from cnnjax.errors import UserError

KINDS = {"resident": pipeline.ResidentBatches, "stream": pipeline.StreamBatches}


def numbered(count: int) -> ArraySource:
    """Image i holds the number i; its label is i % 5."""
    number = np.arange(count)
    image = np.zeros((count, 2, 2, 1), np.uint8)
    image[:, 0, 0, 0], image[:, 0, 1, 0] = number % 256, number // 256
    return ArraySource(image, (number % 5).astype(np.int32), tuple("abcde"), "numbered", "train")


def numbers(batch: dict) -> np.ndarray:
    image = np.asarray(batch["image"]).astype(int)
    return image[:, 0, 0, 0] + 256 * image[:, 0, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 25), seed=st.none() | st.integers(0, 9))
def test_every_example_once_an_epoch(kind, count, batch_size, seed):
    batches = KINDS[kind](numbered(count), batch_size, seed=seed)
    for _ in range(2):
        seen = []
        for _ in range(batches.steps_per_epoch):
            batch = next(batches)
            assert batch["image"].shape == (batch_size, 2, 2, 1)
            assert batch["image"].dtype == np.uint8
            np.testing.assert_array_equal(batch["label"], numbers(batch) % 5)
            seen += list(numbers(batch)[np.asarray(batch["mask"]) > 0])
        assert sorted(seen) == list(range(count))
        if seed is None:
            assert seen == sorted(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_order_depends_on_seed_and_epoch_alone(kind):
    def two_epochs(seed, batch_size=7):
        batches = KINDS[kind](numbered(30), batch_size, seed=seed)
        rows = [next(batches) for _ in range(2 * batches.steps_per_epoch)]
        real = np.concatenate([numbers(b)[np.asarray(b["mask"]) > 0] for b in rows])
        return real[:30], real[30:]

    first, second = two_epochs(3)
    assert list(first) != list(second)
    np.testing.assert_array_equal(two_epochs(3)[1], second)
    np.testing.assert_array_equal(two_epochs(3, batch_size=11)[1], second)
    assert list(two_epochs(4)[0]) != list(first)


@pytest.mark.parametrize("kind", KINDS)
def test_restored_position_continues_at_the_next_example(kind):
    batches = KINDS[kind](numbered(23), 4, seed=1)
    for _ in range(8):
        next(batches)
    state = batches.get_state()
    expected = [numbers(next(batches)) for _ in range(9)]
    again = KINDS[kind](numbered(23), 4, seed=1)
    next(again)
    again.set_state(state)
    for row in expected:
        np.testing.assert_array_equal(numbers(next(again)), row)


def test_memory_is_used_again_once_nothing_looks_at_it():
    memory = Memory()
    first = memory.take((2, 3, 4))
    assert first.shape == (2, 3, 4) and first.ctypes.data % 64 == 0
    place, row = first.ctypes.data, first[1]
    row[:] = 7
    del first
    second = memory.take((2, 3, 4))  # a row of the first one still looks at it
    assert second.ctypes.data != place
    second[:] = 1
    assert (row == 7).all()
    del row
    assert memory.take((4, 6)).ctypes.data == place
    assert pickle.loads(pickle.dumps(memory)).take((0, 3)).size == 0
    memory.clear()
    assert (second == 1).all()


def test_batches_that_are_kept_never_change():
    batches = pipeline.StreamBatches(numbered(300), 8, seed=0)
    kept = [next(batches) for _ in range(3)]
    before = [numbers(batch).tolist() for batch in kept]
    for _ in range(100):
        next(batches)
    batches.close()
    assert [numbers(batch).tolist() for batch in kept] == before


def test_small_sources_are_resident_and_others_stream():
    source = numbered(4)
    assert isinstance(pipeline.make_batches(source, 2), pipeline.ResidentBatches)

    class Lazy:
        image_shape = source.image_shape

        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            return source[index]

    streamed = pipeline.make_batches(Lazy(), 3)
    assert isinstance(streamed, pipeline.StreamBatches)
    rows = list(streamed.one_epoch())
    assert [list(np.asarray(b["mask"])) for b in rows] == [[1, 1, 1], [1, 0, 0]]


def test_an_empty_source_is_an_error():
    with pytest.raises(UserError, match="no images"):
        pipeline.make_batches(numbered(1).subset([]), 2)


def test_worker_processes_serve_the_same_batches_and_a_position_outlives_their_number():
    whole = numbered(34)
    threads = pipeline.StreamBatches(whole, 16, seed=2)
    expected = [next(threads) for _ in range(8)]
    workers = pipeline.StreamBatches(whole, 16, seed=2, num_workers=2)
    workers.set_state({"position": 3})
    for row in expected[3:]:
        batch = next(workers)
        np.testing.assert_array_equal(batch["image"], row["image"])
        np.testing.assert_array_equal(batch["mask"], row["mask"])
    workers.close()


def test_processes_share_each_global_batch():
    whole = numbered(21)
    rows = pipeline.StreamBatches(whole, 8, seed=5)._read
    for step in range(4):
        parts = [dataclasses.replace(rows, rows=cut)(step)[0]["image"] for cut in np.arange(8).reshape(2, 4)]
        np.testing.assert_array_equal(np.concatenate(parts), rows(step)[0]["image"])


def test_a_whole_batch_for_the_devices_of_several_processes_is_not_compared_between_them(monkeypatch):
    class Across:  # as over a `model` axis: each process holds all rows
        is_fully_addressable = False

        def addressable_devices_indices_map(self, shape):
            return {0: (slice(None),)}

    def compared(*_):
        raise AssertionError("device_put waits for the other processes")

    monkeypatch.setattr(pipeline.jax, "device_put", compared)
    monkeypatch.setattr(pipeline.jax, "make_array_from_callback", lambda shape, _, part: part((slice(None),)))
    with contextlib.closing(pipeline.StreamBatches(numbered(9), 4, seed=None, sharding=Across())) as batches:
        assert numbers(next(batches)).tolist() == [0, 1, 2, 3]


def test_padding_is_made_of_real_images():
    batch = pipeline.ResidentBatches(numbered(3), 8, seed=None).at(0)
    assert list(numbers(batch)) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert list(np.asarray(batch["mask"])) == [1, 1, 1, 0, 0, 0, 0, 0]


class Slow:
    """A hundred images, each a hundredth of a second away."""

    name, image_shape = "slow images", (2, 2, 1)

    def __len__(self):
        return 100

    def __getitem__(self, index):
        time.sleep(0.01)
        return {"image": np.zeros((2, 2, 1), np.uint8), "label": 0}


class Waiting(ArraySource):
    """Counts the reads that are under way; they wait until so many are."""

    most, now, lock, enough = 0, 0, threading.Lock(), threading.Event()

    def __getitem__(self, index):
        with Waiting.lock:
            Waiting.now += 1
            Waiting.most = max(Waiting.most, Waiting.now)
            if Waiting.most >= 48:
                Waiting.enough.set()
        Waiting.enough.wait(2)
        with Waiting.lock:
            Waiting.now -= 1
        return super().__getitem__(index)


def test_as_many_images_are_read_side_by_side_as_there_are_cores(monkeypatch):
    """Of a machine with 64 of them, at a batch of 2048 whose size leaves two batches read ahead."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(pipeline, "READ_AHEAD_BYTES", 0)
    small = numbered(2048)
    source = Waiting(small.images, small.labels, small.class_names, "slow", "train")
    with contextlib.closing(pipeline.StreamBatches(source, 2048, seed=0)) as batches:
        first = next(batches)
        assert sorted(numbers(first)) == list(range(2048))
    assert Waiting.most >= 48


class Collecting(ArraySource):
    """Its reads wait until they are let go on, then collect garbage."""

    go_on = threading.Event()

    def __getitem__(self, index):
        if index > 3:
            Collecting.go_on.wait(5)
            gc.collect()
        return super().__getitem__(index)


def test_a_stream_that_nobody_closed_may_be_collected_by_its_own_reads(recwarn):
    small = numbered(40)
    source = Collecting(small.images, small.labels, small.class_names, "collected", "train")
    batches = pipeline.StreamBatches(source, 4, seed=None)
    next(batches)
    circle = [batches]
    circle.append(circle)  # so that only a collection ends it
    gone = weakref.ref(batches)
    gc.disable()
    try:
        del batches, circle
        Collecting.go_on.set()
        deadline = time.monotonic() + 10
        while gone() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()
    after = pipeline.StreamBatches(small, 4, seed=None)
    assert list(numbers(next(after))) == [0, 1, 2, 3]
    after.close()
    assert not [str(each.message) for each in recwarn]


@pytest.mark.slow
def test_a_dead_process_is_noticed_and_named():
    batches = pipeline.StreamBatches(Slow(), 10, seed=0, num_workers=2)
    next(batches)
    victim = min(child.pid for child in multiprocessing.active_children())
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"a process that reads slow images died: {victim} .*exit code -9"):
        for _ in range(1000):
            next(batches)
    assert time.monotonic() - start < 30  # seconds, where the machine is not busy
    batches.close()
