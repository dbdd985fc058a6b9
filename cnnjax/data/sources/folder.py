"""Image folders and archives of them: split/class/*.jpg, class/*.jpg, or CLASS_anything.jpg side by side."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cnnjax.data.decode import decode_image, read_header
from cnnjax.data.sources.archive import Files, Member
from cnnjax.data.sources.layout import read_layout
from cnnjax.data.sources.source import FileSource, Opened, Place, Shape, digest


class ImageFolder:
    """The splits, classes and files of a folder or archive, as `layout` understands them.

    `class_names` are those of `train`, sorted, in the order of the labels; for loose files what precedes
    their first `_` (`n01440764_tench.JPEG`).
    """

    def __init__(self, root: Path, class_names: tuple[str, ...] = (), only: str | None = None):
        self.files = Files(root)
        layout = read_layout(self.files, class_names, only)
        self.splits, self.class_names, self.notes = layout.splits, layout.class_names, layout.notes

    def members(self, split: str) -> list[Member]:
        """The images of a split in the order of its source."""
        return [member for images in self.splits[split][1].values() for member in images]

    def source(self, split: str, place: Place) -> FileSource:
        """The images of one split, read on access, RGB unless other channels are asked for.

        The fingerprint is over the files' names and sizes (in a zip also their checksums), not their bytes.
        """
        folder, by_class = self.splits[split]
        members, counts = self.members(split), list(map(len, by_class.values()))
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        listing = [(m.name.removeprefix(f"{folder}/"), m.size, m.crc) for m in members]
        channels = place.channels or 3
        decode = functools.partial(decode_image, channels=channels, recipe=place.recipe)
        read = functools.partial(_read, self.files, members, labels, decode)
        contents = digest(listing, place.size)
        total, shape = len(members), place.shape(channels)
        rest = contents, labels, self.class_names, place.name, split, shape, self.notes
        header = functools.partial(_header, self.files, members)
        return FileSource(read, total, np.arange(total), *rest, header=header)


def open_folder(place: Place) -> Opened:
    """See `ImageFolder`."""
    images = ImageFolder(place.path, place.class_names, place.only)
    return Opened(tuple(images.splits), lambda split: images.source(split, place), images.notes)


def _header(files: Files, members: list[Member], position: int) -> Shape:
    member = members[position]
    return *read_header(files.read(member), files.where(member))[:2], 3


def _read(
    files: Files, members: list[Member], labels: np.ndarray, decode: Callable[..., np.ndarray], position: int
) -> tuple[np.ndarray, int, str]:
    what, data = files.where(members[position]), files.read(members[position])
    return decode(data, what), int(labels[position]), what
