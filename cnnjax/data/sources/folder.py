"""Image folders and archives of them: split/class/*.jpg, class/*.jpg, or CLASS_anything.jpg side by side."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cnnjax.data.decode import decode_image, read_header
from cnnjax.data.sources.archive import Files
from cnnjax.data.sources.layout import read_layout
from cnnjax.data.sources.source import FileSource, Opened, Place, Shape, digest


class ImageFolder:
    """The splits, classes and files of a folder or archive, as `layout` understands them.

    `class_names` are those of `train`, sorted, in the order of the labels; for loose files what precedes
    their first `_` (`n01440764_tench.JPEG`).
    """

    def __init__(self, root: Path | Files, class_names: tuple[str, ...] = (), only: str | None = None):
        self.files = root if isinstance(root, Files) else Files(root)
        layout = read_layout(self.files, class_names, only)
        self.splits, self.class_names, self.notes = layout.splits, layout.class_names, layout.notes

    def places(self, split: str) -> np.ndarray:
        """int64 [N]: the images of a split in `files.members`, in the order of its source."""
        return np.concatenate([*self.splits[split][1].values()])

    def source(self, split: str, place: Place) -> FileSource:
        """The images of one split, read on access, RGB unless other channels are asked for.

        The fingerprint is over the files' names and sizes (in a zip also their checksums), not their bytes.
        """
        folder, by_class = self.splits[split]
        places, counts = self.places(split), list(map(len, by_class.values()))
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        channels = place.channels or 3
        decode = functools.partial(decode_image, channels=channels, recipe=place.recipe)
        read = functools.partial(_read, self.files, places, labels, decode)
        contents = digest(self.files.members.listing(places, f"{folder}/"), place.size)
        total, shape = len(places), place.shape(channels)
        rest = contents, labels, self.class_names, place.name, split, shape, self.notes
        header = functools.partial(_header, self.files, places)
        return FileSource(read, total, np.arange(total), *rest, header=header)


def open_folder(place: Place) -> Opened:
    """See `ImageFolder`."""
    known = {} if place.listed is None else place.listed
    files, images = known.get((place.path,)), known.get(key := (place.path, place.class_names, place.only))
    if not isinstance(files, Files):
        known[(place.path,)] = files = Files(place.path)
    if not isinstance(images, ImageFolder):
        known[key] = images = ImageFolder(files, place.class_names, place.only)
    return Opened(tuple(images.splits), lambda split: images.source(split, place), images.notes)


def _header(files: Files, places: np.ndarray, position: int) -> Shape:
    member = files.members[int(places[position])]
    return *read_header(files.read(member), files.where(member))[:2], 3


def _read(
    files: Files,
    places: np.ndarray,
    labels: np.ndarray,
    decode: Callable[..., np.ndarray],
    position: int,
    out: np.ndarray | None,
) -> tuple[np.ndarray, int, str]:
    member = files.members[int(places[position])]
    what, data = files.where(member), files.read(member)
    return decode(data, what, out=out), int(labels[position]), what
