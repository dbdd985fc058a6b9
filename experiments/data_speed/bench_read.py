"""How fast images are read from files: by `cnnjax predict`, beside the training pipeline, in turn.

python experiments/data_speed/bench_read.py FOLDER   # with CLASS/*.jpg or CLASS_*.jpg
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnnjax.data.batches import StreamBatches
from cnnjax.data.recipe import covering, fast
from cnnjax.data.sources.folder import ImageFolder
from cnnjax.data.sources.source import Place
from cnnjax.errors import UserError
from cnnjax.inference.images import Failure, read_batches


def bench_read(folder: str, *, size: int = 256, batch_size: int = 64, rounds: int = 5) -> dict[str, Any]:
    """Reads all training images of a folder, decoded to squares of `size`, `rounds` times each way.

    Args:
      folder: as `folder:PATH` takes it: train/CLASS/*.jpg, CLASS/*.jpg or CLASS_*.jpg.

    Returns: images, train and predict (images/s, medians of the rounds), ratio (of predict to train).

    Raises:
      UserError: for a folder without such images, or with one that cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder} is not a folder; name one with train/CLASS/*.jpg, or CLASS_NAME.jpg")
    images = ImageFolder(root)
    source = images.source("train", Place(folder, folder, fast(size), None))
    place = root / images.splits["train"][0]
    ways = {"train": lambda: _train(source, batch_size), "predict": lambda: _predict(place, size, batch_size)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first one fills the disk's cache and is not counted
        for name, read in ways.items():
            speed = _images_per_second(read, len(source))
            if turn:
                speeds[name].append(speed)
    found = {name: statistics.median(values) for name, values in speeds.items()}
    ratio = round(found["predict"] / found["train"], 3)
    return {"images": len(source), **{k: round(v, 1) for k, v in found.items()}, "ratio": ratio}


def _images_per_second(read: Callable[[], int], expected: int) -> float:
    start = time.perf_counter()
    count = read()
    seconds = time.perf_counter() - start
    if count != expected:
        raise UserError(f"{expected - count} of {expected} images cannot be read; see `cnnjax data inspect`")
    return count / seconds


def _train(source: Any, batch_size: int) -> int:
    batches = StreamBatches(source, batch_size, seed=None)
    try:
        return int(sum(float(batch["mask"].sum()) for batch in batches.one_epoch()))
    finally:
        batches.close()


def _predict(place: Path, size: int, batch_size: int) -> int:
    batches = read_batches(place, covering(size, size), 3, batch_size)
    return sum(not isinstance(image, Failure) for batch in batches for _, image in batch)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python experiments/data_speed/bench_read.py FOLDER")
    try:
        print(json.dumps(bench_read(sys.argv[1])))
    except UserError as error:
        sys.exit(f"bench_read: {error}")
