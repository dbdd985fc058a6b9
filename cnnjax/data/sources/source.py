"""What a source of images is: random access to `{"image": uint8 [H, W, C], "label": int}`."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cnnjax.errors import BadImage, UserError

Indices = Sequence[int] | np.ndarray


def digest(*parts: Any) -> str:
    """SHA-256 in hex of strings and arrays, each with its length or shape and type."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            data = str(part).encode()
            sha.update(f"str{len(data)}:".encode() + data)
    return sha.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N] in [0, num_classes).
      class_names: one a class, in the order of the labels.
      name, split: what it was loaded as; the name may hold a path, so no fingerprint has it.
      skipped: what was left out when it was read, as messages.
    Raises: UserError where arrays and class names do not fit each other.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    split: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        what = f"{self.name} {self.split}"
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            shape = f"{self.images.dtype} {list(self.images.shape)}"
            raise UserError(f"{what}: images are {shape}; allowed: uint8 [N, H, W, C]")
        if self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"{what}: {len(self.images)} images and labels {list(self.labels.shape)};"
                " allowed: one label for each image"
            )
        check_labels(self.labels, self.num_classes, what)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over split, class names and every byte of images and labels."""
        return digest(self.split, *self.class_names, self.images, self.labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def subset(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> "ArraySource":
        """The examples at `indices`, in that order, copied."""
        indices = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            split=split or self.split,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Images that are read when asked for: from files, or from records.

    Attributes:
      read: position -> {"image": uint8 [H, W, C], "label": int}.
      positions: int64 [N], the positions that this source serves.
      contents: a digest that changes with what `read` would give.
      labels: int32 [N] where they are known without reading, else None.
    """

    read: Callable[[int], dict[str, Any]]
    positions: np.ndarray
    contents: str
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    name: str
    split: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of the first image that can be read, which all others must have."""
        shape = getattr(self.read, "shape", None)
        if shape is not None:
            return shape
        for position in self.positions[:-1]:
            with contextlib.suppress(BadImage):
                return self.read(int(position))["image"].shape
        return self.read(int(self.positions[-1]))["image"].shape

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over split, class names, `contents` and the positions served."""
        return digest(self.split, *self.class_names, self.contents, self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read(int(self.positions[index]))

    def subset(self, indices: Indices, split: str | None = None) -> "FileSource":
        """The examples at `indices`, in that order; nothing is read."""
        indices = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self,
            positions=self.positions[indices],
            labels=None if self.labels is None else self.labels[indices],
            split=split or self.split,
        )


Source = ArraySource | FileSource


def check_labels(labels: np.ndarray, num_classes: int, what: object) -> None:
    """Raises UserError naming the first label outside [0, num_classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise UserError(
            f"{what}: label {labels[wrong[0]]} of example {wrong[0]} is out of range;"
            f" allowed: 0 to {num_classes - 1}"
        )


def to_memory(source: Source, max_bad: int | None = None) -> ArraySource:
    """Reads all of a source into memory; its images must have one shape.

    Args:
      max_bad: images that may be left out as they cannot be read; None refuses the first.
    Raises: UserError naming the first example of another shape, or that cannot be read.
    """
    if isinstance(source, ArraySource):
        return source
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    skipped, count = [], 0
    for index in range(len(source)):
        try:
            example = source[index]
            if example["image"].shape != source.image_shape:
                raise BadImage(
                    f"{source.name} {source.split}: image {index} is {example['image'].shape};"
                    f" allowed: {source.image_shape}, as the first"
                )
        except BadImage as error:
            if max_bad is None:
                raise
            skipped.append(str(error))
            check_skipped(skipped, max_bad)
            continue
        images[count], labels[count] = example["image"], example["label"]
        count += 1
    return ArraySource(
        images[:count], labels[:count], source.class_names, source.name, source.split, tuple(skipped)
    )


def check_skipped(skipped: Sequence[str], max_bad: int) -> None:
    """Raises a UserError where more images than that could not be read."""
    if len(skipped) > max_bad:
        raise UserError(f"more than {max_bad} images cannot be read, the first: {skipped[0]}")


def hold_out(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` examples by seed, from each class its share: (rest, drawn), each ascending.

    A class's share is count / N of it, rounded so that the shares sum to count (largest remainders
    first). The order of the draw comes from PCG64's raw stream, which NumPy keeps stable, so the
    indices are a pure function of (labels, count, seed) on every version.
    """
    ranks = np.random.PCG64(seed).random_raw(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    shares = np.floor(exact + 1e-9).astype(np.int64)
    most = np.argsort(-(exact - shares), kind="stable")[: count - shares.sum()]
    shares[most] += 1
    drawn = []
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels == label)
        drawn.append(members[np.argsort(ranks[members], kind="stable")[:share]])
    held = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), held, assume_unique=True), held


def channel_statistics(source: Source, limit: int = 10_000) -> tuple[tuple, tuple]:
    """Mean and standard deviation of each channel over all pixels, on the scale 0..1.

    Args:
      source: any source, `train` as a rule.
      limit: read at most that many examples, evenly spaced; in memory every one is read.
    Returns: (mean, std), each a tuple of C numbers; a std of 0 is given as 1.
    """
    groups = _groups(source, limit)
    counts = np.zeros((source.image_shape[2], 256), np.int64)
    for group in groups:
        for channel in range(len(counts)):
            counts[channel] += np.bincount(group[..., channel].ravel(), minlength=256)
    levels, total = np.arange(256) / 255, counts.sum(1)
    mean = counts @ levels / total
    std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / total)
    return tuple(map(float, mean)), tuple(map(float, np.where(std > 0, std, 1.0)))


def channel_covariance(source: Source, limit: int = 10_000) -> tuple[tuple[float, ...], ...]:
    """Covariance [C, C] of the channels over all pixels, on the scale 0..1; see `channel_statistics`."""
    channels = source.image_shape[2]
    pixels, total, products = 0, np.zeros(channels), np.zeros((channels, channels))
    for group in _groups(source, limit):
        values = group.reshape(-1, channels).astype(np.float64) / 255
        pixels, total, products = pixels + len(values), total + values.sum(0), products + values.T @ values
    mean = total / pixels
    return tuple(tuple(map(float, row)) for row in products / pixels - np.outer(mean, mean))


def _groups(source: Source, limit: int) -> Iterator[np.ndarray]:
    """uint8 [n, H, W, C] of all images in memory, else of at most `limit` that can be read."""
    if isinstance(source, ArraySource):
        yield from (source.images[i : i + 1024] for i in range(0, len(source), 1024))
        return
    for index in _spaced(source, limit):
        with contextlib.suppress(BadImage):  # the pipeline says what becomes of it
            yield source[index]["image"][None]


def sample_images(source: Source, count: int) -> np.ndarray:
    """uint8 [n, H, W, C]: at most `count` images of one shape, evenly spaced, but unreadable ones."""
    images = []
    for index in _spaced(source, count):
        with contextlib.suppress(BadImage):
            images.append(source[index]["image"])
    return np.stack(images)


def _spaced(source: Source, count: int) -> list[int]:
    return np.linspace(0, len(source) - 1, min(count, len(source))).astype(int).tolist()
