"""What holds for a data set is decided from all of its splits: which have labels, the classes, the shape."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from cnnjax.data.machine import num_cores
from cnnjax.data.sources.source import FileSource, Header, Shape, as_labels, numbered_names
from cnnjax.errors import BadImage, UserError, listed

UNLABELLED = -1  # in place of a label; so do the sets of TFDS and of the Hugging Face Hub
MOST_HEADERS = 10_000  # read after two shapes have been seen

_counted: dict[tuple[str, ...], Counter[Shape]] = {}  # in this process, by names and contents


class SeveralSizes(UserError):
    """Images of several sizes, and nothing that brings them to one; most have the short side `side`."""

    side = 0


class Known(NamedTuple):
    """The splits that have labels, the classes, notes (see `Opened`), and by split the labels, int32 [N]."""

    splits: tuple[str, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    labels: Mapping[str, np.ndarray]


def read_labels(values: Mapping[str, np.ndarray], class_names: Sequence[str], what: object) -> Known:
    """From the labels of every split as they are stored, [N]; without class names the classes are numbered.

    A split without images or labels is left out, and told. UserError for a label that is no class.
    """
    notes, used = [], {}
    for split, each in values.items():
        if not len(each):
            notes.append(f"{split} has no images")
        elif (each == UNLABELLED).all():
            notes.append(f"{split} has no labels: {len(each)} images")
        else:
            used[split] = each
    if class_names and used:
        low, high = min(each.min() for each in used.values()), max(each.max() for each in used.values())
        if low == 1 and high == len(class_names):
            raise UserError(f"{what}: labels are 1 to {high}; allowed: from 0; subtract 1 from all of them")
    limit = (len(class_names),) if class_names else ()
    labels = {split: as_labels(each, f"{what} {split}", *limit) for split, each in used.items()}
    top = max((int(each.max()) for each in labels.values()), default=0)
    names = tuple(class_names) or numbered_names(top + 1)
    for split, each in labels.items():
        if missing := np.setdiff1d(np.arange(len(names)), each).tolist():
            notes.append(f"{split} has no images of {listed([names[label] for label in missing])}")
    counts = ", ".join(f"{split} {len(each)}" for split, each in labels.items())
    return Known(tuple(labels), names, (f"{counts} images", *notes) if labels else tuple(notes), labels)


def check_shapes(shapes: Mapping[str, Shape], what: object) -> None:
    """Raises a UserError if the images of two splits differ in shape."""
    if len(set(shapes.values())) > 1:
        given = ", ".join(f"{split} {in_words(shape)}" for split, shape in shapes.items())
        raise UserError(f"{what}: images of different shapes: {given}; allowed: one shape for all splits")


def in_words(shape: Sequence[int]) -> str:
    """'28x28x1' of [H, W, C]."""
    return "x".join(map(str, shape))


def headers(places: Sequence[tuple[Header, int]]) -> Iterator[Shape]:
    """[H, W, C] of images, read from their headers by threads; without those that cannot be read."""
    with ThreadPoolExecutor(num_cores()) as pool:
        for start in range(0, len(places), 512):
            yield from filter(None, pool.map(read_shape, places[start : start + 512]))


def read_shape(place: tuple[Header, int]) -> Shape | None:
    """[H, W, C] of one image, None if it cannot be read."""
    header, position = place
    try:
        return header(position)
    except BadImage:  # the pipeline decides what happens to it
        return None


def count_shapes(splits: Sequence[FileSource]) -> Counter[Shape]:
    """How many images of all splits have which shape; of the first MOST_HEADERS if there are several."""
    key = tuple(part for source in splits for part in (source.name, source.contents))
    if key not in _counted:
        places = [(source.header, i) for source in splits if source.header for i in range(source.total)]
        counts: Counter[Shape] = Counter()
        for number, shape in enumerate(headers(places), 1):
            counts[shape] += 1
            if len(counts) > 1 and number >= MOST_HEADERS:
                break
        _counted[key] = counts
    return _counted[key]


def shape_of(name: str, splits: Sequence[FileSource], any_size: bool) -> Shape | None:
    """[H, W, C] of the images of all splits, or with `any_size` of most; None if no header can be read.

    A UserError for several sizes counts them.
    """
    if not (counts := count_shapes(splits)):
        return None
    first, *others = counts.most_common()
    if others and not any_size:
        seen, total = counts.total(), sum(source.total for source in splits)
        given = listed([f"{in_words(shape[:2])} ({count})" for shape, count in (first, *others)], most=5)
        among = f", among the first {seen} of {total}" if seen < total else ""
        side = min(first[0][:2])
        one = f"size={side} must be given, to resize all images"
        error = SeveralSizes(f"{one}: {name} has sizes {given}{among}")
        error.side = side
        raise error
    return first[0]
