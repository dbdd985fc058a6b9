"""What is in a data set: counts, sizes, colours, duplicates, and images that cannot be read."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnjax.data.sources.source import Source
from cnnjax.errors import BadImage


@dataclasses.dataclass
class Found:
    """What was seen in one split.

    Attributes:
      classes: label -> images.
      sizes: (height, width) -> images.
      unreadable: one message an image, which names the file.
      first: SHA-256 of the pixels -> the position of the first image that has them.
      copies: images whose pixels an earlier image of the split has.
    """

    classes: Counter = dataclasses.field(default_factory=Counter)
    sizes: Counter = dataclasses.field(default_factory=Counter)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    first: dict[bytes, int] = dataclasses.field(default_factory=dict)
    copies: int = 0


class Colours:
    """Sums over pixels, from which mean, deviation and covariance come; channels on the scale 0..1."""

    def __init__(self, channels: int):
        self.pixels, self.total, self.products = 0, np.zeros(channels), np.zeros((channels, channels))

    def add(self, image: np.ndarray) -> None:
        """Counts the pixels of uint8 [H, W, C] in."""
        values = image.reshape(-1, image.shape[-1]).astype(np.float64) / 255
        self.pixels += len(values)
        self.total += values.sum(0)
        self.products += values.T @ values

    def facts(self) -> dict[str, np.ndarray]:
        """mean [C], std [C], and of the covariance eigenvalues [C] (falling), vectors [C, C] (columns)."""
        mean = self.total / max(self.pixels, 1)
        covariance = self.products / max(self.pixels, 1) - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        std = np.sqrt(np.maximum(np.diag(covariance), 0))
        return {"mean": mean, "std": std, "eigenvalues": values[::-1], "eigenvectors": vectors[:, ::-1]}


def inspect(
    sources: dict[str, Source], progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Found], dict[str, np.ndarray]]:
    """Reads every image of every split once.

    Args:
      progress: called with (images done, images in all).
    Returns: what was found in each split, and `Colours.facts` of the first split.
    """
    found = {split: Found() for split in sources}
    total, done, colours = sum(map(len, sources.values())), 0, None
    for split, source in sources.items():
        for index in range(len(source)):
            example = _read(source, index, found[split])
            done += 1
            progress(done, total)
            if example is None:
                continue
            _note(found[split], index, example)
            if split == next(iter(sources)):
                colours = colours or Colours(example["image"].shape[-1])
                colours.add(example["image"])
    return found, (colours or Colours(1)).facts()


def _read(source: Source, index: int, found: Found) -> dict[str, Any] | None:
    try:
        return source[index]
    except BadImage as error:
        found.unreadable.append(str(error))
        return None


def _note(found: Found, index: int, example: dict[str, Any]) -> None:
    image = np.ascontiguousarray(example["image"])
    found.classes[int(example["label"])] += 1
    found.sizes[image.shape[:2]] += 1
    sha = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
    found.copies += sha in found.first
    found.first.setdefault(sha, index)


def shared(found: dict[str, Found]) -> list[tuple[str, int, str, int]]:
    """Every image of one split that another has too, as (split, position, split, position)."""
    splits = list(found)
    return [
        (a, found[a].first[sha], b, index)
        for at, a in enumerate(splits)
        for b in splits[at + 1 :]
        for sha, index in found[b].first.items()
        if sha in found[a].first
    ]
