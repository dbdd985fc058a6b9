"""Files, encoded bytes and arrays of any size as images of one shape, decoded ahead by threads."""

import collections
import dataclasses
import io
import itertools
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from cnnjax.data.decode import IMAGE_SUFFIXES, decode_image
from cnnjax.data.files import expanded
from cnnjax.data.recipe import Recipe
from cnnjax.data.sources.archive import Files
from cnnjax.data.sources.tree import find_images, other_files
from cnnjax.errors import UserError, one_line

DECODERS = 8  # threads; the decoders leave Python's lock while they work, as in training
MAX_BYTES = 2**28  # of one file
STDIN = "-"
_loading = threading.Lock()  # an image of Pillow, which may be given twice, reads its file when it is used
# A path, an encoded image, one of Pillow, or uint8 [H, W, C].
AnyImage = str | Path | bytes | Image.Image | np.ndarray
Images = AnyImage | jax.Array | Iterable[AnyImage]  # also uint8 [B, H, W, C]


@dataclasses.dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why."""

    name: str
    reason: str


Batch = Sequence[tuple[str, np.ndarray | Failure]]  # names, and uint8 images of one shape


def read_batches(images: Images, recipe: Recipe, channels: int, batch_size: int) -> Iterator[Batch]:
    """(name, uint8 [*recipe.shape, channels] or Failure), `batch_size` at a time, two batches ahead."""

    def read(name: str, image: AnyImage) -> tuple[str, np.ndarray | Failure]:
        try:
            return name, fit(image, recipe, channels, name)
        except UserError as error:
            return name, Failure(name, str(error))

    def begin(name: str, image: AnyImage) -> Future[tuple[str, np.ndarray | Failure]]:
        if (ready := _ready(image, recipe, channels)) is None:
            return pool.submit(read, name, image)
        done: Future[tuple[str, np.ndarray | Failure]] = Future()  # takes less time than a thread
        done.set_result((name, ready))
        return done

    with ThreadPoolExecutor(DECODERS) as pool:
        futures = (begin(*named) for named in name_images(images))
        ahead = collections.deque(itertools.islice(futures, 2 * batch_size))
        while ahead:
            batch = [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]
            ahead.extend(itertools.islice(futures, len(batch)))
            yield batch


def ready(images: Images, recipe: Recipe, channels: int) -> np.ndarray | None:
    """uint8 [B, *recipe.shape, channels] if the images are one array of that shape already, or one image."""
    shape = (*recipe.shape, channels)
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[-3:] == shape:
        return images if images.ndim == 4 else images[None] if images.ndim == 3 else None
    return None


def _ready(image: AnyImage, recipe: Recipe, channels: int) -> np.ndarray | None:
    """The image if it is of that shape already."""
    if isinstance(image, np.ndarray) and image.shape == (*recipe.shape, channels) and image.dtype == np.uint8:
        return image
    return None


def as_batch(images: jax.Array | np.ndarray, shape: tuple[int, int, int]) -> jax.Array:
    """Images as they are; UserError unless they are uint8 [B, *shape]."""
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        allowed = f"uint8 [B, {', '.join(map(str, shape))}]; `TrainedModel.fit` makes them of any image"
        raise UserError(f"images are {images.dtype} {list(images.shape)}; allowed: {allowed}")
    return jnp.asarray(images)


def fit(image: AnyImage, recipe: Recipe, channels: int, name: str = "image") -> np.ndarray:
    """One image of any kind and size as uint8 [*recipe.shape, channels]; arrays of that shape stay."""
    if (ready := _ready(image, recipe, channels)) is not None:
        return ready
    if isinstance(image, np.ndarray) and channels not in (1, 3):  # which nothing brings to size
        allowed = f"uint8 [{', '.join(map(str, (*recipe.shape, channels)))}]"
        raise UserError(f"{name} is {image.dtype} {list(image.shape)}; allowed: {allowed}, one or a batch")
    if isinstance(image, np.ndarray | Image.Image):
        image = _encode(image, name)
    data = image if isinstance(image, bytes) else _read_bytes(image)
    return decode_image(data, name, channels, recipe)


def name_images(images: Images) -> Iterator[tuple[str, AnyImage]]:
    """The name and the image of everything that the argument of `predict` stands for."""
    if isinstance(images, str | Path | bytes | Image.Image):
        images = [images]
    elif isinstance(images, np.ndarray | jax.Array) and images.ndim == 3:
        images = np.asarray(images)[None]
    try:
        several = iter(images)
    except TypeError:
        allowed = "a path, an encoded image, one of Pillow, uint8 [H, W, 1 or 3], or several of these"
        raise UserError(f"images={images!r}; allowed: {allowed}") from None
    for number, image in enumerate(several):
        if isinstance(image, bytes | Image.Image):
            yield f"image {number}", image
        elif not isinstance(image, str | Path):
            yield f"image {number}", np.asarray(image)
        elif str(image) == STDIN:
            yield "stdin", sys.stdin.buffer.read(MAX_BYTES)
        elif image and expanded(image).is_dir():  # "" would be the current folder
            yield from ((str(file), file) for file in list_folder(image)[0])
        else:
            yield str(image), expanded(image)


def list_folder(folder: str | Path) -> tuple[list[Path], str]:
    """The images in a folder and below it, and what else is there; a folder without any is a UserError."""
    files = Files(folder := expanded(folder))
    chosen = find_images(files)
    images, others = sorted(files.members.names(np.flatnonzero(chosen))), other_files(files, chosen)
    if not images:
        found, allowed = f" but {others}" if others else "", f"allowed: *{', *'.join(IMAGE_SUFFIXES)}"
        raise UserError(f"{folder}: a folder without images{found}; {allowed}")
    return [Path(folder, name) for name in images], others


def size_of(count: int, batch_size: int, compiled: Collection[int] = ()) -> int:
    """The size that a batch of so many images is filled up to; of few, as each is compiled.

    It is a third more at most, or as many again if that is among those `compiled`, which takes less time.
    """
    sizes = (2**i * (2 + j) // 2 for i in range(int(batch_size).bit_length()) for j in (0, 1))
    size = min((size for size in sizes if count <= size < batch_size), default=max(count, batch_size))
    return min((each for each in tuple(compiled) if size <= each <= min(2 * size, batch_size)), default=size)


def filled(batch: np.ndarray, size: int) -> np.ndarray:
    """A batch filled up with its first row to a size."""
    return np.concatenate([batch, np.broadcast_to(batch[:1], (size - len(batch), *batch.shape[1:]))])


def _read_bytes(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:  # also a pipe, which has no size beforehand
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES // 2**20} MiB; allowed: an image file")
    return data


def _encode(image: np.ndarray | Image.Image, name: str) -> bytes:
    """An array or an image of Pillow as an encoded one, so that it takes the same way as a file."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
            allowed = "allowed: uint8 [H, W, 1 or 3] with a pixel at least, one or a batch"
            raise UserError(f"{name} is {image.dtype} {list(image.shape)}; {allowed}")
        image = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    data = io.BytesIO()
    try:
        with _loading:
            image = ImageOps.exif_transpose(image)
        other = image.mode in ("CMYK", "YCbCr", "LAB", "HSV")  # which PNG lacks
        (image.convert("RGB") if other else image).save(data, format="png")
    except (OSError, ValueError) as error:  # of a file that is cut short, or closed
        raise UserError(f"{name}: {one_line(error)}; allowed: an image of 8 bits per channel") from None
    return data.getvalue()
