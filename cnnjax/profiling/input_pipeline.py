"""Speed of the input pipeline: JPEG beside the decoder alone, raw records, augmentation, and memory."""

import functools
import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import simplejpeg

from cnnjax.data import batches as pipeline
from cnnjax.data import datasets, prepare
from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.sources import records
from cnnjax.data.sources.source import FileSource
from cnnjax.errors import UserError
from cnnjax.profiling.benchmark import TrainBench

SIDE, CROP, BATCH = 256, 227, 64
MADE_UP, RAW = 64, 1024  # images
SLICES = 3  # of a measurement beside the peer: the shorter the turns, the less another program's noise tells
CHAIN = f"random_crop({CROP})|mirror|normalize(0.5, 0.25)"


def bench_data(
    name: str | None = None,
    *,
    rounds: int = 5,
    seconds: float = 3.0,
    images: int = 50_000,
    step_model: str = "alexnet",
) -> dict[str, Any]:
    """Measures the pipeline on this machine; the peer decodes in turn with it, on as many threads.

    Args:
      name: JPEG files, as `folder:PATH`; None makes some up (500x375, of noise on a smooth picture).
      rounds: measurements of each kind.
      seconds: of one measurement.
      images: read in all to see whether memory grows.
      step_model: the network whose training step the augmentation is a share of.
    Returns:
      jpeg_images_per_second (decoded to 256x256, on the device) and simplejpeg_images_per_second (decoded at
      full size, thrown away), medians of jpeg_rounds, three to a round and a third as long; jpeg_ratio, the
      median of their ratios, each to simplejpeg before and after it, with _min and _max;
      raw_images_per_second, from records of 256x256 onto the device, with _min and _max;
      augment_milliseconds and step_milliseconds of 32 images, and augment_share; memory_images, and
      memory_growth_bytes of the process between a fifth of them and the last one.
    Raises: UserError where the data holds no JPEG.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = _jpegs(name, Path(folder))
        found = {
            "images": Path(name).name if name else "made up",
            "cores": _cores(),
            **_decoding(source, rounds, seconds),
        }
        raw = _raw_records(source, Path(folder) / "raw")
        found |= _raw_speed(raw, rounds, seconds) | _memory(raw, images)
    found |= _augmentation(step_model, rounds, seconds)
    return found | {"device": jax.devices()[0].device_kind}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jpegs(name: str | None, folder: Path) -> FileSource:
    """The JPEG files that are measured, brought to 256x256 when read."""
    if name is None:
        (folder / "jpeg" / "made_up").mkdir(parents=True)
        draw = np.random.default_rng(0)
        for i in range(MADE_UP):
            coarse = draw.integers(0, 256, (6, 8, 3)).astype(np.float32)
            smooth = jax.image.resize(coarse, (375, 500, 3), "cubic")
            pixels = np.clip(smooth + draw.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90)
            (folder / "jpeg" / "made_up" / f"{i}.jpg").write_bytes(data)
        name = f"folder:{folder / 'jpeg'}"
    source = datasets.load(name, "train", size=SIDE)
    members = getattr(getattr(source, "read", None), "members", ())
    if not members or not all(m.name.lower().endswith((".jpg", ".jpeg")) for m in members):
        raise UserError(f"--data={name} must be folder:PATH of JPEG files")
    return source


def _decoding(source: FileSource, rounds: int, seconds: float) -> dict[str, Any]:
    """The pipeline and simplejpeg alone in turn, on as many threads, from the same files."""
    read = source.read
    encoded = [read.files.read(member) for member in read.members]
    alone, ours = [], []
    with ThreadPoolExecutor(_cores()) as pool:
        _alone(pool, encoded, 0.2)
        alone.append(_alone(pool, encoded, seconds / SLICES))
        for _ in range(rounds * SLICES):
            ours.append(_streamed(source, seconds / SLICES))
            alone.append(_alone(pool, encoded, seconds / SLICES))
    beside = [(before + after) / 2 for before, after in itertools.pairwise(alone)]
    ratios = [a / b for a, b in zip(ours, beside, strict=True)]
    return {
        "jpeg_images_per_second": round(statistics.median(ours), 1),
        "simplejpeg_images_per_second": round(statistics.median(alone), 1),
        "jpeg_ratio": round(statistics.median(ratios), 3),
        "jpeg_ratio_min": round(min(ratios), 3),
        "jpeg_ratio_max": round(max(ratios), 3),
        "jpeg_rounds": len(ratios),
    }


def _alone(pool: ThreadPoolExecutor, encoded: list[bytes], seconds: float) -> float:
    """Images a second that threads decode with simplejpeg at full size, each going through all files."""
    start = time.perf_counter()

    def decode(worker: int) -> int:
        count = worker * len(encoded) // _cores()
        first = count
        while count == first or time.perf_counter() - start < seconds:
            simplejpeg.decode_jpeg(encoded[count % len(encoded)])
            count += 1
        return count - first

    count = sum(pool.map(decode, range(_cores())))
    return count / (time.perf_counter() - start)


def _streamed(source: FileSource, seconds: float) -> float:
    """Images a second that arrive on the device, once what was read ahead is used up."""
    batches = pipeline.StreamBatches(source, BATCH, seed=0)
    try:
        for _ in range(pipeline.MOST_AHEAD + 2):
            next(batches)["image"].block_until_ready()
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - start < seconds:
            next(batches)["image"].block_until_ready()
            count += 1
        return count * BATCH / (time.perf_counter() - start)
    finally:
        batches.close()


class _Repeated:
    """`count` images: a source again and again."""

    def __init__(self, source: FileSource, count: int):
        self.source, self.count = source, count
        self.image_shape, self.class_names = source.image_shape, source.class_names
        self.fingerprint = f"{source.fingerprint} to {count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[index % len(self.source)]


def _raw_records(source: FileSource, out: Path) -> FileSource:
    prepare.prepare({"train": _Repeated(source, RAW)}, out, encoding="raw")
    return records.read_split(out, "train", "raw records")


def _raw_speed(source: FileSource, rounds: int, seconds: float) -> dict[str, float]:
    rates = [_streamed(source, seconds) for _ in range(rounds)]
    return {
        "raw_images_per_second": round(statistics.median(rates), 1),
        "raw_images_per_second_min": round(min(rates), 1),
        "raw_images_per_second_max": round(max(rates), 1),
    }


def _memory(source: FileSource, images: int) -> dict[str, int]:
    """How much the largest resident size grows while so many images stream, after a fifth of them."""
    batches, early = pipeline.StreamBatches(source, BATCH, seed=0), 0
    try:
        for count in range(BATCH, images + BATCH, BATCH):
            next(batches)["image"].block_until_ready()
            if count <= max(images // 5, BATCH):
                early = _resident()
        return {"memory_images": images, "memory_growth_bytes": _resident() - early}
    finally:
        batches.close()


def _resident() -> int:
    """Bytes: the largest resident size so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _augmentation(model: str, rounds: int, seconds: float, batch: int = 32) -> dict[str, float]:
    """A crop, mirror and normalization of 256x256 images beside a training step of the network, in turn."""
    chain = augment_lib.parse(CHAIN, image_shape=(SIDE, SIDE, 3))
    draw = np.random.default_rng(0)
    images = jax.device_put(draw.integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8))
    augment = functools.partial(jax.jit(chain.preprocess), images)
    step = TrainBench(model, batch, "float32", CROP)
    slow, fast = [], []
    for _ in range(rounds):
        slow.append(1e3 * batch / step.rate(seconds))
        fast.append(_milliseconds(augment, min(seconds, 1.0)))
    return {
        "augment_milliseconds": round(statistics.median(fast), 3),
        "step_milliseconds": round(statistics.median(slow), 1),
        "augment_share": round(statistics.median(a / b for a, b in zip(fast, slow, strict=True)), 4),
    }


def _milliseconds(function: Callable[[], jax.Array], seconds: float) -> float:
    jax.block_until_ready(function())
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < seconds:
        jax.block_until_ready(function())
        count += 1
    return (time.perf_counter() - start) / count * 1e3


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """(what, measured, target, whether it is met) of what `bench_data` returns."""
    ratio, raw = found["jpeg_ratio"], found["raw_images_per_second"]
    share, growth = found["augment_share"], found["memory_growth_bytes"] / 2**20
    yield (
        "JPEG decoded to 256x256, to simplejpeg alone",
        f"{found['jpeg_images_per_second']:,.0f} / {found['simplejpeg_images_per_second']:,.0f} images/s: "
        f"{ratio:.1%} ({found['jpeg_ratio_min']:.1%} to {found['jpeg_ratio_max']:.1%}, "
        f"{found['jpeg_rounds']:.0f} rounds)",
        ">= 85%",
        ratio >= 0.85,
    )
    yield (
        "raw 256x256 records onto the device",
        f"{raw:,.0f} images/s ({found['raw_images_per_second_min']:,.0f} to "
        f"{found['raw_images_per_second_max']:,.0f})",
        ">= 6,000 images/s",
        raw >= 6000,
    )
    yield (
        "227 crop, mirror, normalization, of an AlexNet step",
        f"{found['augment_milliseconds']:.2f} / {found['step_milliseconds']:,.1f} ms: {share:.2%}",
        "< 5%",
        share < 0.05,
    )
    yield (
        f"growth of memory over {found['memory_images']:,} images",
        f"{growth:.1f} MiB",
        "flat: < 16 MiB",
        growth < 16,
    )
