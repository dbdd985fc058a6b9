"""Speed of the input pipeline: JPEG next to the decoder alone, raw records, augmentation, and memory."""

import contextlib
import functools
import itertools
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import simplejpeg

from cnnjax.data import batches as pipeline
from cnnjax.data import prepare
from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.files import expanded, scratch_folder
from cnnjax.data.machine import num_cores, peak_resident
from cnnjax.data.recipe import fast
from cnnjax.data.sources import records
from cnnjax.data.sources.folder import ImageFolder
from cnnjax.data.sources.source import FileSource, Place
from cnnjax.errors import UserError
from cnnjax.profiling.benchmark import Figures, TrainBench, calls_per_second
from cnnjax.profiling.peers.process import spread

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
) -> Figures:
    """Measures the pipeline on this machine, alternating with the decoder alone on one thread per core.

    The pipeline has one more, for when one waits for Python's lock, which the decoder does not hold.
    `name` is `folder:PATH` with JPEG files; None generates some (500x375, noise on a smooth picture). The
    figures are jpeg_images_per_second (decoded to 256x256, on the device) and jpeg_alone_images_per_second
    (by simplejpeg at full size, thrown away), medians of jpeg_rounds, three to a round and a third as long;
    jpeg_ratio, the median of their ratios, each to simplejpeg before and after it; the same as records_...
    of the JPEG of 256x256 in records; raw_images_per_second, from raw records of 256x256 onto the device;
    augment_milliseconds and step_milliseconds of 32 images in `step_model`, and augment_share;
    memory_growth_bytes from a fifth of `images` to the last one.
    """
    with scratch_folder() as folder:
        source, encoded = _jpegs(name, folder)
        figures: Figures = {"images": Path(name).name if name else "made up", "cores": num_cores()}
        figures |= _decoding("jpeg", source, encoded, rounds, seconds)
        repeated = source.subset(np.arange(RAW) % len(source))
        figures |= _decoding("records", *_jpeg_records(repeated, folder / "records"), rounds, seconds)
        prepare.prepare({"train": repeated}, folder / "raw", encoding="raw")
        raw = records.read_split(folder / "raw", "train", "raw records")
        figures |= spread("raw_images_per_second", [_streamed(raw, seconds) for _ in range(rounds)], 1)
        figures |= _memory(raw, images)
    figures |= _augmentation(step_model, rounds, seconds)
    return figures | {"device": jax.devices()[0].device_kind}


def _jpegs(name: str | None, folder: Path) -> tuple[FileSource, list[bytes]]:
    """JPEG files as a source, which brings them to 256x256, and encoded."""
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
    form, _, path = name.partition(":")
    bad = UserError(f"--data={name} must be folder:PATH of JPEG files")
    if form != "folder":
        raise bad
    images = ImageFolder(expanded(path))
    source = images.source("train", Place(name, path, fast(SIDE), None))
    members = [images.files.members[place] for place in images.places("train").tolist()]
    if not all(m.name.lower().endswith((".jpg", ".jpeg")) for m in members):
        raise bad
    return source, [images.files.read(member) for member in members]


def _jpeg_records(source: FileSource, folder: Path) -> tuple[FileSource, list[bytes]]:
    """The images as `prepare` writes them as JPEG: a source, and encoded."""
    from array_record.python.array_record_module import ArrayRecordReader

    prepare.prepare({"train": source}, folder, encoding="jpeg")
    shards = [ArrayRecordReader(str(file)) for file in sorted(folder.glob("*.array_record"))]
    encoded = [record[records.LABEL_BYTES :] for shard in shards for record in shard.read_all()]
    return records.read_split(folder, "train", "JPEG records"), encoded


def _decoding(
    name: str, source: FileSource, encoded: list[bytes], rounds: int, seconds: float
) -> dict[str, float]:
    """The pipeline and simplejpeg alone in turn, from the same files."""
    with ThreadPoolExecutor(num_cores()) as pool:
        _alone(pool, encoded, 0.2)
        alone, ours = [_alone(pool, encoded, seconds / SLICES)], []
        for _ in range(rounds * SLICES):
            ours.append(_streamed(source, seconds / SLICES))
            alone.append(_alone(pool, encoded, seconds / SLICES))
    beside = [(before + after) / 2 for before, after in itertools.pairwise(alone)]
    return {
        f"{name}_images_per_second": round(statistics.median(ours), 1),
        f"{name}_alone_images_per_second": round(statistics.median(alone), 1),
        **spread(f"{name}_ratio", [a / b for a, b in zip(ours, beside, strict=True)], 3),
        f"{name}_rounds": len(ours),
    }


def _alone(pool: ThreadPoolExecutor, encoded: list[bytes], seconds: float) -> float:
    """Images a second that threads decode with simplejpeg at full size, each going through all files."""
    start = time.perf_counter()

    def decode(worker: int) -> int:
        count = worker * len(encoded) // num_cores()
        first = count
        while count == first or time.perf_counter() - start < seconds:
            simplejpeg.decode_jpeg(encoded[count % len(encoded)])
            count += 1
        return count - first

    return sum(pool.map(decode, range(num_cores()))) / (time.perf_counter() - start)


def _streamed(source: FileSource, seconds: float) -> float:
    """Images a second that arrive on the device, once what was read ahead is used up."""
    with contextlib.closing(pipeline.StreamBatches(source, BATCH, seed=0)) as batches:
        for _ in range(pipeline.MOST_AHEAD + 2):
            next(batches)["image"].block_until_ready()
        return BATCH * calls_per_second(lambda: next(batches)["image"].block_until_ready(), seconds)


def _memory(source: FileSource, images: int) -> dict[str, int]:
    """How much the largest resident size grows while so many images stream, after a fifth of them."""
    early = 0
    with contextlib.closing(pipeline.StreamBatches(source, BATCH, seed=0)) as batches:
        for count in range(BATCH, images + BATCH, BATCH):
            next(batches)["image"].block_until_ready()
            if count <= max(images // 5, BATCH):
                early = peak_resident()
        return {"memory_images": images, "memory_growth_bytes": peak_resident() - early}


def _augmentation(model: str, rounds: int, seconds: float, batch: int = 32) -> dict[str, float]:
    """A crop, mirror and normalization of 256x256 images beside a training step of the network, in turn."""
    chain = augment_lib.parse(CHAIN, image_shape=(SIDE, SIDE, 3))
    images = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    augment = functools.partial(jax.jit(chain), jax.random.key(0), {"image": jax.device_put(images)})
    step, slow, fast = TrainBench(model, batch, "float32", CROP), [], []
    for _ in range(rounds):
        slow.append(1e3 * batch / step.rate(seconds))
        jax.block_until_ready(augment())
        fast.append(1e3 / calls_per_second(lambda: jax.block_until_ready(augment()), min(seconds, 1.0)))
    return {
        "augment_milliseconds": round(statistics.median(fast), 3),
        "step_milliseconds": round(statistics.median(slow), 1),
        "augment_share": round(statistics.median(a / b for a, b in zip(fast, slow, strict=True)), 4),
    }
