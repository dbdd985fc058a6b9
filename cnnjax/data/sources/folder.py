"""Image folders and archives of them: split/class/*.jpg, class/*.jpg, or CLASS_anything.jpg side by side."""

import contextlib
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cnnjax.data.decode import IMAGE_SUFFIXES, decode_image
from cnnjax.data.sources.archive import Files, Member
from cnnjax.data.sources.source import FileSource, digest
from cnnjax.errors import BadImage, UserError

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


class ImageFolder:
    """The splits, classes and files of a folder or archive; nothing is decoded.

    Attributes:
      splits: split -> its folder in the archive ("" where there are no split folders, and all is `train`).
      class_names: the class folders of `train`, sorted; of loose files what stands before their first `_`
        (`n01440764_tench.JPEG`). Labels are positions among them.
    """

    def __init__(self, root: Path):
        self.root, self.files = root, Files(root)
        tops = {PurePosixPath(m.name).parts[0] for m in self.files.members if "/" in m.name}
        if root.is_dir():
            tops |= {p.name for p in root.iterdir() if p.is_dir()}
        self.splits = {SPLIT_FOLDERS[top]: top for top in sorted(tops) if top in SPLIT_FOLDERS} or {
            "train": ""
        }
        first = self.splits.get("train", next(iter(self.splits.values())))
        self.class_names = tuple(sorted({*self._by_class(first), *self._empty_classes(first)}))

    def _empty_classes(self, folder: str) -> set[str]:
        if not (self.root / folder).is_dir():
            return set()
        return {p.name for p in (self.root / folder).iterdir() if p.is_dir() and not p.name.startswith(".")}

    def _by_class(self, folder: str) -> dict[str, list[Member]]:
        """Class -> the image files of one split folder."""
        found: dict[str, list[Member]] = {}
        for member in self.files.members:
            path = PurePosixPath(member.name)
            parts = path.parts[1:] if folder else path.parts
            if (folder and path.parts[0] != folder) or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            name, loose, _ = parts[0].partition("_") if len(parts) == 1 else (parts[0], "_", "")
            if not loose:
                raise UserError(
                    f"{self.files.where(member)}: an image outside a class folder; allowed: CLASS/NAME, or "
                    "CLASS_NAME for loose files"
                )
            found.setdefault(name, []).append(member)
        return found

    def source(self, split: str, name: str, size: int | None = None) -> FileSource:
        """One split; see `read_folder`."""
        folder = self.splits[split]
        place, by_class = os.path.join(self.root, folder), self._by_class(folder)
        if strange := sorted({*by_class, *self._empty_classes(folder)} - set(self.class_names)):
            raise UserError(f"{place}/{strange[0]}: not a class of train; allowed: {self.class_names}")
        members, labels = [], []
        for label, class_name in enumerate(self.class_names):
            found = by_class.get(class_name, [])
            if not found and split == "train":
                raise UserError(f"{place}/{class_name}: a class without images; fill or remove it")
            members += found
            labels += [label] * len(found)
        if not members:
            raise UserError(f"{place}: no images; allowed: class/*{', class/*'.join(IMAGE_SUFFIXES)}")
        labels = np.asarray(labels, np.int32)
        reader = _Reader(self.files, members, labels, size)
        listing = [(m.name.removeprefix(f"{folder}/"), m.size, m.crc) for m in members]
        order = np.arange(len(members))
        return FileSource(reader, order, digest(listing, size), labels, self.class_names, name, split)


def read_folder(root: Path, split: str, name: str, size: int | None = None) -> FileSource:
    """The images of one split of a folder, .zip or .tar as RGB, read when asked for.

    The fingerprint is over the files' names and sizes (in a zip also their checksums), not their bytes: it is
    quick for a million of them. Files whose names do not end as an image's are left out.

    Args:
      root: holds split folders of class folders, or class folders alone, or loose files (all `train`).
      split: one of `ImageFolder(root).splits`.
      name: what the source is called.
      size: cut the middle square and resize it to this.
    Raises: UserError for a class of its own in another split or a class without images; when read,
      BadImage naming the file for one that is broken or of another size than the first.
    """
    return ImageFolder(root).source(split, name, size)


class _Reader:
    """Position -> example; every image must have the first one's shape."""

    def __init__(self, files: Files, members: list[Member], labels: np.ndarray, size: int | None):
        self.files, self.members, self.labels, self.size = files, members, labels, size
        self.shape = (size, size, 3) if size else None

    def _decode(self, position: int) -> np.ndarray:
        member = self.members[position]
        return decode_image(self.files.read(member), self.files.where(member), 3, self.size)

    def _first_shape(self, end: int) -> tuple[int, int, int]:
        """Of the first image that can be read."""
        for position in range(end):
            with contextlib.suppress(BadImage):
                return self._decode(position).shape
        return self._decode(end).shape

    def __call__(self, position: int) -> dict[str, Any]:
        image = self._decode(position)
        if self.shape is None:
            self.shape = image.shape if position == 0 else self._first_shape(position)
        if image.shape != self.shape:
            raise BadImage(
                f"{self.files.where(self.members[position])}: {image.shape[0]}x{image.shape[1]} pixels, the"
                f" first image has {self.shape[0]}x{self.shape[1]}; give size= to bring all to one"
            )
        return {"image": image, "label": int(self.labels[position])}
