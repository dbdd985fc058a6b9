"""Image folders and archives of them: split/class/*.jpg, class/*.jpg, or CLASS_anything.jpg side by side."""

import functools
import os
from pathlib import Path, PurePosixPath

import numpy as np

from cnnjax.data.decode import IMAGE_SUFFIXES, decode_image
from cnnjax.data.sources.archive import Files, Member
from cnnjax.data.sources.source import FileSource, Opened, Place, digest
from cnnjax.errors import UserError

VALIDATION = dict.fromkeys(("validation", "valid", "val"), "validation")
SPLIT_FOLDERS = {"train": "train", **VALIDATION, "test": "test"}


class ImageFolder:
    """The splits, classes and files of a folder or archive; files that are not named as images are left out.

    `splits` is split -> its folder in the archive ("" without split folders: all is `train`). `class_names`
    are the class folders of `train`, sorted, in the order of the labels; for loose files what precedes their
    first `_` (`n01440764_tench.JPEG`).
    """

    def __init__(self, root: Path):
        self.root, self.files = root, Files(root)
        tops = {PurePosixPath(m.name).parts[0] for m in self.files.members if "/" in m.name}
        if root.is_dir():
            tops |= {p.name for p in root.iterdir() if p.is_dir()}
        named = {SPLIT_FOLDERS[top]: top for top in sorted(tops) if top in SPLIT_FOLDERS}
        self.splits = named or {"train": ""}
        first = self.splits.get("train", next(iter(self.splits.values())))
        self.class_names = tuple(sorted({*self._by_class(first), *self._empty_classes(first)}))

    def _empty_classes(self, folder: str) -> set[str]:
        if not (self.root / folder).is_dir():
            return set()
        return {p.name for p in (self.root / folder).iterdir() if p.is_dir() and not p.name.startswith(".")}

    def _by_class(self, folder: str) -> dict[str, list[Member]]:
        """Class -> the image files of one split folder."""
        by_class: dict[str, list[Member]] = {}
        for member in self.files.members:
            path = PurePosixPath(member.name)
            parts = path.parts[1:] if folder else path.parts
            if (folder and path.parts[0] != folder) or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            name, loose, _ = parts[0].partition("_") if len(parts) == 1 else (parts[0], "_", "")
            if not loose:
                outside = f"{self.files.where(member)}: an image outside a class folder"
                raise UserError(f"{outside}; allowed: CLASS/NAME, or CLASS_NAME for loose files")
            by_class.setdefault(name, []).append(member)
        return by_class

    def source(self, split: str, name: str, size: int | None = None) -> FileSource:
        """The images of one split as RGB, read on access; `size` cuts the middle square and resizes it.

        The fingerprint is over the files' names and sizes (in a zip also their checksums), not their bytes.
        Raises: UserError for a class that `train` lacks or a class without images.
        """
        folder = self.splits[split]
        place, by_class = os.path.join(self.root, folder), self._by_class(folder)
        if strange := sorted({*by_class, *self._empty_classes(folder)} - set(self.class_names)):
            raise UserError(f"{place}/{strange[0]}: not a class of train; allowed: {self.class_names}")
        if split == "train" and (empty := [each for each in self.class_names if each not in by_class]):
            raise UserError(f"{place}/{empty[0]}: a class without images; fill or remove it")
        groups = [by_class.get(class_name, []) for class_name in self.class_names]
        if not (members := [member for group in groups for member in group]):
            raise UserError(f"{place}: no images; allowed: class/*{', class/*'.join(IMAGE_SUFFIXES)}")
        labels = np.repeat(np.arange(len(groups), dtype=np.int32), [*map(len, groups)])
        listing = [(m.name.removeprefix(f"{folder}/"), m.size, m.crc) for m in members]
        read = functools.partial(_read, self.files, members, labels, size)
        shape = (size, size, 3) if size else None
        facts = digest(listing, size), labels, self.class_names, name, split, shape
        return FileSource(read, len(members), np.arange(len(members)), *facts)


def open_folder(place: Place) -> Opened:
    """See `ImageFolder`."""
    images = ImageFolder(place.path)
    return Opened(tuple(images.splits), lambda split: images.source(split, place.name, place.size))


def _read(
    files: Files, members: list[Member], labels: np.ndarray, size: int | None, position: int
) -> tuple[np.ndarray, int, str]:
    what, data = files.where(members[position]), files.read(members[position])
    return decode_image(data, what, 3, size), int(labels[position]), what
