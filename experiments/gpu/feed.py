"""The input pipeline beside a training step: JPEG files and raw records on their way to the device."""

import contextlib
import itertools
import time
from pathlib import Path

import jax
import numpy as np
import simplejpeg

from cnnjax.data import batches, prepare
from cnnjax.data.files import scratch_folder
from cnnjax.data.machine import num_cores
from cnnjax.data.recipe import fast
from cnnjax.data.sources import records
from cnnjax.data.sources.folder import ImageFolder
from cnnjax.data.sources.source import FileSource, Place
from cnnjax.profiling.benchmark import TrainBench
from experiments.gpu.steps import TOY, Say

MADE_UP, RAW = 64, 2048  # images
WARM = 10  # steps before the clock starts: what was read ahead is used up


def jpegs(folder: Path, side: int) -> FileSource:
    """Made-up photographs of a quarter more pixels a side, as files, brought to `side`."""
    (folder / "jpeg" / "made_up").mkdir(parents=True)
    draw, full = np.random.default_rng(0), side * 5 // 4
    for index in range(MADE_UP):
        coarse = draw.integers(0, 256, (8, 8, 3)).repeat(full // 8 + 1, 0).repeat(full // 8 + 1, 1)
        pixels = np.clip(coarse[:full, :full] + draw.normal(0, 12, (full, full, 3)), 0, 255).astype(np.uint8)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90)
        (folder / "jpeg" / "made_up" / f"{index}.jpg").write_bytes(data)
    images = ImageFolder(folder / "jpeg")
    return images.source("train", Place("made up", str(folder / "jpeg"), fast(side), None))


def feed(say: Say, *, toy: bool) -> None:
    """Images per second that arrive, from each kind of file, alone and with a step that takes them."""
    model, batch, side = ("simple_cnn", 8, 28) if toy else ("resnet50", 256, 224)
    seconds = 0.1 if toy else 4.0
    cores = f"{num_cores()} cores, {side} pixels, batch {batch}"
    with scratch_folder() as folder:
        source = jpegs(folder, side)
        repeated = source.subset(np.arange(batch * 4 if toy else RAW) % len(source))
        prepare.prepare({"train": repeated}, folder / "raw", encoding="raw")
        sources = {"raw records": records.read_split(folder / "raw", "train", "raw"), "JPEG files": repeated}
        for name, each in sources.items():
            say(
                case=name,
                measure="images/s on the device",
                value=round(rate(each, batch, seconds)),
                note=cores,
            )
        if model == TOY[0]:  # one channel; the pipeline's images have three
            return
        bench = TrainBench(model, batch, "bfloat16", side)
        bench.rate(1.0)
        alone = bench.rate(seconds)
        say(case=model, measure="images/s of the same images", value=round(alone))
        for name, each in sources.items():
            fed = rate(each, batch, seconds, bench)
            say(
                case=name, measure="images/s of training", value=round(fed), note=f"{fed / alone:.3f} of that"
            )


def rate(source: FileSource, batch: int, seconds: float, bench: TrainBench | None = None) -> float:
    """Images per second that arrive on the device, or that a step there takes."""
    key, count, start = jax.random.key(0), 0, 0.0
    with contextlib.closing(batches.StreamBatches(source, batch, seed=0)) as stream:
        for step in itertools.count(-WARM):
            if step == 0:
                start = time.perf_counter()
            if step >= 2 and time.perf_counter() - start >= seconds:
                break
            arrived = next(stream)
            if bench:
                taken = {name: arrived[name] for name in ("image", "label", "mask")}
                bench.state, metrics = bench.compiled(bench.state, taken, key)
                arrived = {"image": metrics.loss} if step % 8 == 0 else {}
            jax.block_until_ready(arrived)
            count += batch if step >= 0 else 0
        if bench:
            jax.block_until_ready(bench.state)
        return count / (time.perf_counter() - start)
