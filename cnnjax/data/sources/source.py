"""What a source of images is: random access to `{"image": uint8 [H, W, C], "label": int}`."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

import numpy as np

from cnnjax.data.files import expanded
from cnnjax.data.recipe import Recipe
from cnnjax.errors import BadImage, UserError, check_local, listed, visible

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, C] and labels int32 [N]
Indices = Sequence[int] | np.ndarray
Shape = tuple[int, int, int]  # [H, W, C]
DataDir = str | os.PathLike | None
Listed = dict[tuple[object, ...], object]  # folders and archives that were listed, to be used again
MAX_CLASSES = 2**20


class Example(TypedDict):
    """One image, uint8 [H, W, C], and its class."""

    image: np.ndarray
    label: int


class Source(Protocol):
    """The examples of one split, by position."""

    @property
    def name(self) -> str: ...  # what it was loaded as; it may hold a path, so no fingerprint has it
    @property
    def split(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...  # in the order of the labels
    @property
    def num_classes(self) -> int: ...
    @property
    def labels(self) -> np.ndarray | None: ...  # int32 [N], or None if not known without reading all
    @property
    def image_shape(self) -> Shape: ...  # of every image
    @property
    def notes(self) -> tuple[str, ...]: ...  # see `Opened`
    @property
    def splits(self) -> tuple[str, ...]: ...  # what the data set can be asked for, as it was loaded
    @property
    def fingerprint(self) -> str: ...  # the same as long as split, classes, images and their order are
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...
    def subset(self, indices: Indices, split: str | None = None) -> "Source":
        """The examples at `indices`, in that order, or those where a mask of bools, one for each, is True."""


class Opened(NamedTuple):
    """A data set: the splits it comes with, and the source of one of them."""

    splits: tuple[str, ...]
    read: Callable[[str], "ArraySource | FileSource"]
    notes: tuple[str, ...] = ()  # what a user should know of it: how many images, what was left out


class Place(NamedTuple):
    """Data named by its form and place, as in 'folder:PATH'."""

    name: str
    rest: str  # what follows the colon
    recipe: Recipe | None  # that brings each image of a file to one size, if given
    data_dir: DataDir  # where prepared data sets are looked for first
    channels: int | None = None  # that image files are decoded to; None is what they have
    class_names: tuple[str, ...] = ()  # those of a network, if they are known before; else those of `train`
    only: str | None = None  # the one split that is looked at then, if it is there
    listed: Listed | None = None  # what was listed before; what is listed now is added

    def chosen(self, splits: Sequence[str]) -> list[str]:
        """The splits that are looked at, of those that are there."""
        return [split for split in splits if split == self.only] or list(splits)

    @property
    def path(self) -> Path:
        check_local("data", self.name)
        return expanded(self.rest)

    @property
    def size(self) -> int | None:
        """The height that images are brought to, which fingerprints tell apart."""
        return self.recipe.shape[0] if self.recipe else None

    def shape(self, channels: int) -> Shape | None:
        """[H, W, C] that images are brought to."""
        return (*self.recipe.shape, channels) if self.recipe else None


def data_folders(data_dir: DataDir) -> list[Path]:
    """Where the user keeps data sets: `data_dir` and $CNNJAX_DATA_DIR, as far as they are given."""
    given = {"data_dir": data_dir, "CNNJAX_DATA_DIR": os.environ.get("CNNJAX_DATA_DIR")}
    for name, folder in given.items():
        check_local(name, folder)
    return [expanded(folder) for folder in given.values() if folder]


def digest(*parts: object) -> str:
    """SHA-256 in hex of strings (or their UTF-8) and arrays, each with its length or shape and type."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            data = part if isinstance(part, bytearray) else str(part).encode(errors="surrogatepass")
            sha.update(f"str{len(data)}:".encode())
            sha.update(data)
    return sha.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory; see `Source`. Raises UserError if arrays and class names do not fit each other."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N] in [0, num_classes)
    class_names: tuple[str, ...]
    name: str
    split: str
    skipped: tuple[str, ...] = ()  # messages about the images that were left out when it was read
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    places: np.ndarray | None = None  # int32 [N] in what was read, if images were left out
    lost: str = ""  # see `lost_classes`

    def __post_init__(self) -> None:
        what = f"{self.name} {self.split}"
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            given = f"images are {self.images.dtype} {list(self.images.shape)}"
            raise UserError(f"{what}: {given}; allowed: uint8 [N, H, W, C]")
        if self.labels.shape != self.images.shape[:1]:
            given = f"{len(self.images)} images and labels {list(self.labels.shape)}"
            raise UserError(f"{what}: {given}; allowed: one label for each image")
        labels = as_labels(self.labels, what, self.num_classes)
        if self.labels.dtype.kind not in "iu":
            object.__setattr__(self, "labels", labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> Shape:
        return self.images.shape[1:]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over split, class names and every byte of images and labels."""
        return digest(self.split, *self.class_names, self.images, self.labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image = self.images[index]
        image.flags.writeable = False  # a view: who writes to it would change the data set
        return {"image": image, "label": int(self.labels[index])}

    def subset(self, indices: Indices, split: str | None = None) -> "ArraySource":
        """See `Source`; copied."""
        indices = as_positions(indices, self)
        images, labels = self.images[indices], self.labels[indices]
        return dataclasses.replace(self, images=images, labels=labels, split=split or self.split, places=None)


# Position, and memory to decode to if that can be -> image uint8 [H, W, C], label, its name.
Reader = Callable[[int, np.ndarray | None], tuple[np.ndarray, int, str]]
Header = Callable[[int], Shape]  # position -> what its image has, without reading the pixels


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Images that are read on access, from files or records; see `Source`."""

    read: Reader
    total: int  # positions of the split
    positions: np.ndarray  # int64 [N], those that this source serves
    contents: str  # a digest that changes with what `read` would give
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    name: str
    split: str
    shape: Shape | None = None  # of every image of the set, if known
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    header: Header | None = None  # given if `shape` is not

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> Shape:
        if self.shape is None:
            self.read(0, None)  # says what is wrong with it
            raise UserError(f"{self.name}: no image has a header that can be read")
        return self.shape

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over split, class names, `contents` and the positions served."""
        return digest(self.split, *self.class_names, self.contents, self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Example:
        return self.example(index)

    def example(self, index: int, out: np.ndarray | None = None) -> Example:
        """The image and its class; the image may be decoded to `out`, uint8 [H, W, C] and contiguous."""
        position = int(self.positions[index])
        image, label, what = self.read(position, out)
        if image.shape != self.image_shape:
            here, others = ("x".join(map(str, shape)) for shape in (image.shape, self.image_shape))
            raise BadImage(f"{what}: {here} pixels, other images have {others}; give one size= for all")
        check_label(label, self.num_classes, what)
        return {"image": image, "label": label}

    def subset(self, indices: Indices, split: str | None = None) -> "FileSource":
        """See `Source`; nothing is read."""
        indices = as_positions(indices, self)
        labels = None if self.labels is None else self.labels[indices]
        positions = self.positions[indices]
        return dataclasses.replace(self, positions=positions, labels=labels, split=split or self.split)


def resizes(source: Source) -> bool:
    """Whether its images can be brought to a size: those of files can, arrays and records cannot."""
    return isinstance(source, FileSource) and source.header is not None


def as_positions(indices: Indices, source: Source) -> np.ndarray:
    """Indices, or a mask, as int64 positions of `source`; UserError for what are none."""
    given, total = np.asarray(indices), len(source)
    what = f"{source.name} {source.split}: indices"
    if given.shape == (total,) and given.dtype == bool:
        given = np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        allowed = f"whole numbers, or one bool for each of {total} examples"
        raise UserError(f"{what} are {given.dtype} {list(given.shape)}; allowed: {allowed}")
    if (wrong := given[(given < 0) | (given >= total)]).size:
        raise UserError(f"{what} have {wrong[0]}; allowed: 0 to {total - 1}")
    return given.astype(np.int64)


def check_label(label: int, num_classes: int, what: str) -> None:
    """BadImage names an example whose label is no class."""
    if not 0 <= label < num_classes:
        raise BadImage(f"{what}: label {label} is out of range; allowed: 0 to {num_classes - 1}")


def describe(source: Source) -> str:
    """One line about a data set, of which `source` is a split: its classes, and what a user should know."""
    classes = f"{source.num_classes} classes ({listed(source.class_names)})"
    notes = source.notes or (f"{source.split} {len(source)} images",)
    return visible(f"{source.name}: {'; '.join([classes, *notes])}", most=2000)


def as_labels(values: np.ndarray, what: object, num_classes: int = MAX_CLASSES) -> np.ndarray:
    """Labels of any file as int32; UserError names the first that is no whole number in [0, num_classes)."""
    if values.dtype.kind not in "biuf":
        raise UserError(f"{what}: labels are {values.dtype}; allowed: whole numbers")
    with np.errstate(invalid="ignore"):  # of NaN
        fits = (values >= 0) & (values < num_classes) & (values == np.floor(values))
    if (wrong := np.flatnonzero(~fits)).size:
        given = f"label {values.flat[wrong[0]]} of example {wrong[0]} is out of range"
        raise UserError(f"{what}: {given}; allowed: 0 to {num_classes - 1}, whole numbers")
    return values.astype(np.int32)


def numbered_names(count: int) -> tuple[str, ...]:
    """ "0", "1", ...: the names of so many classes that have none."""
    return tuple(map(str, range(count)))


def read_some(
    source: Source, indices: Iterable[int], max_bad: int | None, skipped: list[str]
) -> Iterator[tuple[int, Example]]:
    """(index, example) of the images that can be read; `skipped` gets a message for each other one.

    BadImage for the first if `max_bad` is None, UserError for more than `max_bad`, or if none can be read.
    """
    count = 0
    for index in indices:
        try:
            example = source[index]
        except BadImage as error:
            if max_bad is None:
                raise error.refused("train") from None
            skipped.append(str(error))
            check_skipped(skipped, max_bad)
        else:
            count += 1
            yield index, example
    if skipped and not count:
        raise UserError(f"{source.name} {source.split}: no image can be read, the first: {skipped[0]}")


def to_memory(source: Source, max_bad: int | None = None) -> ArraySource:
    """Reads a source into memory; up to `max_bad` unreadable images are left out, None refuses the first."""
    if isinstance(source, ArraySource):
        return source
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels, places = np.empty(len(source), np.int32), np.empty(len(source), np.int32)
    skipped: list[str] = []
    for index, example in read_some(source, range(len(source)), max_bad, skipped):
        count = index - len(skipped)
        images[count], labels[count], places[count] = example["image"], example["label"], index
    count = len(source) - len(skipped)
    rest = source.class_names, source.name, source.split, tuple(skipped), source.notes, source.splits
    places, lost = places[:count], lost_classes(source, np.setdiff1d(np.arange(len(source)), places[:count]))
    return ArraySource(images[:count], labels[:count], *rest, places if skipped else None, lost)


def lost_classes(source: Source, bad: Iterable[int]) -> str:
    """A line if classes have only images that cannot be read; "" if not, or if labels are not known."""
    if (labels := source.labels) is None:
        return ""
    lost = np.setdiff1d(labels, np.delete(labels, [i for i in bad if i >= 0]))
    names = listed([source.class_names[label] for label in lost])
    return f"no readable image of class {names} is left in {source.split}" if lost.size else ""


def check_skipped(skipped: Sequence[str], max_bad: int) -> None:
    """Raises a UserError if more than `max_bad` images could not be read."""
    if len(skipped) > max_bad:
        raise UserError(f"more than {max_bad} images cannot be read, the first: {skipped[0]}")


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` positions of `length`, the first and the last among them."""
    return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()


def sample_images(source: Source, count: int) -> np.ndarray:
    """uint8 [n, H, W, C]: at most `count` images, evenly spaced, without unreadable ones."""
    found = read_some(source, evenly_spaced(len(source), count), count, [])
    return np.stack([example["image"] for _, example in found])
