"""Files, encoded bytes and arrays of any size as images of one shape, decoded ahead by threads."""

import collections
import dataclasses
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnjax.data.decode import IMAGE_SUFFIXES, decode_image
from cnnjax.errors import UserError

DECODERS = 8  # threads; the decoders leave Python's lock while they work, as in training
MAX_BYTES = 2**28  # of one file
STDIN = "-"


@dataclasses.dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why."""

    name: str
    reason: str


def read_batches(
    images: Any, image_shape: tuple[int, int, int], batch_size: int
) -> Iterator[list[tuple[str, Any]]]:
    """(name, uint8 `image_shape` or Failure), `batch_size` at a time.

    Args:
      images: see `name_images`.

    Raises:
      UserError: as `name_images`.
    """

    def read(name: str, image: Any) -> np.ndarray | Failure:
        try:
            return fit(image, image_shape, name)
        except UserError as error:
            return Failure(name, str(error))

    with ThreadPoolExecutor(DECODERS) as pool:
        named, ahead = iter(name_images(images)), collections.deque()
        for name, image in itertools.islice(named, 2 * batch_size):
            ahead.append((name, pool.submit(read, name, image)))
        while ahead:
            batch = []
            while ahead and len(batch) < batch_size:
                name, future = ahead.popleft()
                batch.append((name, future.result()))
                for following, image in itertools.islice(named, 1):
                    ahead.append((following, pool.submit(read, following, image)))
            yield batch


def fit(image: Any, image_shape: tuple[int, int, int], name: str = "image") -> np.ndarray:
    """One image, a path, encoded bytes or uint8 [H, W, C], as uint8 of `image_shape`.

    Raises:
      UserError: naming what cannot be read, or does not fit.
    """
    height, width, channels = image_shape
    size = height if height == width else None
    if isinstance(image, np.ndarray):
        if image.shape == image_shape and image.dtype == np.uint8:
            return image
        image = _encode(image, name)
    data = image if isinstance(image, bytes) else _read_bytes(image)
    found = decode_image(data, name, channels, size)
    if found.shape != image_shape:
        raise UserError(
            f"{name}: {found.shape[0]}x{found.shape[1]} pixels; this run takes {height}x{width} only"
        )
    return found


def name_images(images: Any) -> Iterable[tuple[str, Any]]:
    """(name, path, bytes or array) of every image that the argument of `predict` stands for.

    Raises:
      UserError: for a path that is not there, a folder without images, or an array of another shape.
    """
    if isinstance(images, str | Path | bytes) or (hasattr(images, "ndim") and images.ndim == 3):
        images = [images]
    for number, image in enumerate(images):
        if isinstance(image, bytes):
            yield f"image {number}", image
        elif not isinstance(image, str | Path):
            yield f"image {number}", np.asarray(image)
        elif str(image) == STDIN:
            yield "stdin", sys.stdin.buffer.read(MAX_BYTES)
        elif Path(image).is_dir():
            files = sorted(p for p in Path(image).rglob("*") if _is_image(p))
            if not files:
                raise UserError(f"{image}: a folder without images; allowed: *{', *'.join(IMAGE_SUFFIXES)}")
            yield from ((str(file), file) for file in files)
        else:
            yield str(image), Path(image)


def _is_image(path: Path) -> bool:
    """Whether a file in a folder is meant: not the pictures that an earlier `--explain` left there."""
    if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():  # no folder, pipe or device
        return False
    drawn = path.suffixes[-2:-1] and path.suffixes[-2].startswith(".gradcam")
    return not drawn


def _read_bytes(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:  # also a pipe, which has no size beforehand
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES // 2**20} MiB; allowed is an image file")
    return data


def _encode(image: np.ndarray, name: str) -> bytes:
    """An array as an encoded image, so that it takes the same way as a file."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UserError(
            f"{name} is {image.dtype} {list(image.shape)}; allowed: uint8 [H, W, 1 or 3], one or a batch"
        )
    data = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(data, format="png")
    return data.getvalue()
