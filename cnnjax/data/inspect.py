"""What is in a data set: counts, sizes, colours, duplicates, and images that cannot be read."""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from cnnjax.data.sources.source import Example, Source
from cnnjax.data.statistics import Moments, moments
from cnnjax.errors import BadImage


@dataclasses.dataclass
class Contents:
    """What one split holds."""

    classes: Counter[int] = dataclasses.field(default_factory=Counter)  # label -> images
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)  # (height, width) -> images
    unreadable: list[str] = dataclasses.field(default_factory=list)  # messages that name the file
    first: dict[bytes, int] = dataclasses.field(default_factory=dict)  # SHA-256 of pixels -> first position
    copies: int = 0  # images whose pixels an earlier image of the split has
    colours: Moments | None = None  # of all pixels; None before the first image

    def add(self, index: int, example: Example) -> None:
        """Counts an example in."""
        image = np.ascontiguousarray(example["image"])
        height, width, _ = image.shape
        self.classes[example["label"]] += 1
        self.sizes[height, width] += 1
        sha = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
        self.copies += sha in self.first
        self.first.setdefault(sha, index)
        self.colours = moments(image) if self.colours is None else self.colours + moments(image)


def inspect(
    sources: Mapping[str, Source], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Contents]:
    """Reads every image of every split once; `progress` is called with (images done, images in all)."""
    contents = {split: Contents() for split in sources}
    total, done = sum(map(len, sources.values())), 0
    for split, source in sources.items():
        for index in range(len(source)):
            try:
                contents[split].add(index, source[index])
            except BadImage as error:
                contents[split].unreadable.append(str(error))
            done += 1
            progress(done, total)
    return contents


def shared(contents: Mapping[str, Contents]) -> list[tuple[str, int, str, int]]:
    """Every image of one split that another has too, as (split, position, split, position)."""
    return [
        (a, contents[a].first[sha], b, index)
        for a, b in itertools.combinations(contents, 2)
        for sha, index in contents[b].first.items()
        if sha in contents[a].first
    ]
