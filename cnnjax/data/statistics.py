"""Moments of the channels on the scale 0..1, and a data set's counts, sizes, colours, copies, bad images."""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from cnnjax.data.sources.source import (
    ArraySource,
    Example,
    FileSource,
    Source,
    check_label,
    evenly_spaced,
    read_some,
)
from cnnjax.errors import BadImage

PIXELS = 2**18  # that are float64 at a time: 6 MB of colours


class Statistics(NamedTuple):
    """C numbers each, and C rows of C; a deviation of 0 is given as 1, as `normalize` divides by it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over pixels, which add up."""

    pixels: int  # their number
    total: np.ndarray  # [C]
    products: np.ndarray  # [C, C], of their outer products

    @classmethod
    def empty(cls, channels: int) -> "Moments":
        return cls(0, np.zeros(channels), np.zeros((channels, channels)))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.pixels + other.pixels, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.pixels

    @property
    def covariance(self) -> np.ndarray:
        return self.products / self.pixels - np.outer(self.mean, self.mean)

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(np.maximum(np.diag(self.covariance), 0))

    def statistics(self) -> Statistics:
        std = tuple(np.where(self.std > 0, self.std, 1.0).tolist())
        return Statistics(tuple(self.mean.tolist()), std, tuple(map(tuple, self.covariance.tolist())))


def moments(images: np.ndarray) -> Moments:
    """Of uint8 [..., C]; the sums are of whole numbers, so they are exact in any chunks."""
    pixels = images.reshape(-1, images.shape[-1])
    sums = Moments.empty(pixels.shape[1])
    for start in range(0, len(pixels), PIXELS):
        values = pixels[start : start + PIXELS].astype(np.float64)
        sums += Moments(len(values), values.sum(0), values.T @ values)
    return Moments(sums.pixels, sums.total / 255, sums.products / 255**2)


def channel_statistics(source: Source, limit: int = 10_000) -> Statistics:
    """Of a source, `train` as a rule: of `limit` examples, evenly spaced, or of all if it is in memory."""
    return sum(map(moments, _groups(source, limit)), Moments.empty(source.image_shape[2])).statistics()


def _groups(source: Source, limit: int) -> Iterator[np.ndarray]:
    """All images in memory, 1024 at a time; else at most `limit` of those that can be read, one by one."""
    if isinstance(source, ArraySource):
        yield from (source.images[i : i + 1024] for i in range(0, len(source), 1024))
        return
    for _, example in read_some(source, evenly_spaced(len(source), limit), limit, []):
        yield example["image"]  # what happens to others the pipeline decides


@dataclasses.dataclass
class Contents:
    """What one split holds."""

    classes: Counter[int] = dataclasses.field(default_factory=Counter)  # label -> images
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)  # (height, width) -> images
    unreadable: list[str] = dataclasses.field(default_factory=list)  # messages that name the file
    names: dict[int, str] = dataclasses.field(default_factory=dict)  # by position, of images that have one
    first: dict[bytes, int] = dataclasses.field(default_factory=dict)  # SHA-256 of pixels -> first position
    grey: int = 0  # images that have one channel, or the same in all
    copies: list[tuple[bytes, int]] = dataclasses.field(
        default_factory=list
    )  # those whose pixels came before
    colours: Moments | None = None  # of all pixels; None before the first image

    def add(self, index: int, example: Example, name: str = "") -> None:
        """Counts an example in."""
        if name:
            self.names[index] = name
        image = np.ascontiguousarray(example["image"])
        self.classes[example["label"]] += 1
        self.sizes[image.shape[0], image.shape[1]] += 1
        self.grey += bool((image == image[..., :1]).all())
        sha = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
        if self.first.setdefault(sha, index) != index:
            self.copies.append((sha, index))
        self.colours = moments(image) if self.colours is None else self.colours + moments(image)


def inspect(
    sources: Mapping[str, Source], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Contents]:
    """Reads every image of every split once, of any size; `progress` is called with (images done, in all)."""
    contents = {split: Contents() for split in sources}
    places = [(split, index) for split, source in sources.items() for index in range(len(source))]
    for done, (split, index) in enumerate(places, 1):
        try:
            contents[split].add(index, *_of_any_size(sources[split], index))
        except BadImage as error:
            contents[split].unreadable.append(str(error))
        progress(done, len(places))
    return contents


def _of_any_size(source: Source, index: int) -> tuple[Example, str]:
    """An example and its name; "" of what is in arrays."""
    if not isinstance(source, FileSource):
        return source[index], ""
    image, label, what = source.read(int(source.positions[index]), None)
    check_label(label, source.num_classes, what)
    return {"image": image, "label": label}, what


def shared(contents: Mapping[str, Contents]) -> list[tuple[str, int, str, int]]:
    """Every image of a split that one before it has too, as (that split, first position, split, position)."""
    return [
        (a, contents[a].first[sha], b, index)
        for a, b in itertools.combinations(contents, 2)
        for sha, index in itertools.chain(contents[b].first.items(), contents[b].copies)
        if sha in contents[a].first
    ]
