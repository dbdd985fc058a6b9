"""Classes of other data by their names: the same labels as those that a network was trained on."""

import csv
import dataclasses
import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnnjax.data.sources.source import (
    ArraySource,
    FileSource,
    Reader,
    Source,
    check_label,
    listed,
    numbered_names,
)
from cnnjax.errors import UserError


def same(name: str) -> str:
    """Equal for names that differ in nothing but case and how Unicode writes their letters."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def numbered(class_names: Sequence[str]) -> bool:
    """Whether classes have no names but those of `numbered_names`."""
    return tuple(class_names) == numbered_names(len(class_names))


@functools.cache
def imagenet_ids() -> dict[str, str]:
    """The WordNet id of each of ImageNet's 1000 classes by its name, in the order of the labels.

    The names are torchvision's, the ids timm's (`experiments/models/weights.py` writes the table).
    """
    file = Path(__file__).parents[1] / "imagenet_classes.csv"
    return {row["name"]: row["wordnet"] for row in csv.DictReader(file.read_text("utf-8").splitlines())}


def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes."""
    return tuple(imagenet_ids())


def known_as(name: str) -> str:
    """A name as classes are matched, see `same`; a WordNet id is the ImageNet class that it names."""
    key = same(name)
    return _wordnet().get(key, key)


@functools.cache
def _wordnet() -> dict[str, str]:
    return {wordnet: same(name) for name, wordnet in imagenet_ids().items()}


def with_classes(source: ArraySource | FileSource, class_names: Sequence[str]) -> Source:
    """The same examples, each labelled by the place of its class's name in `class_names`.

    A UserError names those that are not in it, if they have examples (or labels are not known beforehand).
    """
    names = tuple(class_names)
    if source.class_names == names:
        return source
    places: dict[str, int] = {}
    # A name as it is written comes before one that is alike, and that before the class of a WordNet id.
    for keys in ([*map(known_as, names)], [*map(same, names)], names):
        counts = Counter(keys)
        places |= {key: place for place, key in enumerate(keys) if counts[key] == 1}
    looks = [(name, same(name), known_as(name)) for name in source.class_names]
    found = [next((places[key] for key in keys if key in places), -1) for keys in looks]
    table = np.asarray(found, np.int32)
    occurring = range(len(table)) if source.labels is None else np.unique(source.labels)
    if strange := [source.class_names[i] for i in occurring if table[i] < 0]:
        problem = f"{source.name} {source.split}: images of {listed(strange)}, not classes of the network"
        raise unknown_classes(problem, source.class_names, names)
    if isinstance(source, ArraySource):
        return dataclasses.replace(source, labels=table[source.labels], class_names=names)
    labels = None if source.labels is None else table[source.labels]
    read = functools.partial(_relabel, source.read, table)
    return dataclasses.replace(source, read=read, labels=labels, class_names=names)


def unknown_classes(problem: str, theirs: Sequence[str], class_names: Sequence[str]) -> UserError:
    """The error for data with classes that a network does not know."""
    hint = ""
    if numbered(theirs) and not numbered(class_names):
        hint = "; these have no names: put them in folders by class, or into an npz as class_names"
    elif numbered(class_names) and not numbered(theirs):
        hint = "; those have no names: give a file of them as class_names, one per line"
    return UserError(f"{problem}; allowed: {listed(class_names)}; here: {listed(theirs)}{hint}")


def _relabel(
    read: Reader, table: np.ndarray, position: int, out: np.ndarray | None
) -> tuple[np.ndarray, int, str]:
    image, label, what = read(position, out)
    check_label(label, len(table), what)  # before it is another one
    return image, int(table[label]), what
