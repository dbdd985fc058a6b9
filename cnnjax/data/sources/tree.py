"""The folders of images below a root, from the names of its files."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

import numpy as np

from cnnjax.data.decode import IMAGE_SUFFIXES
from cnnjax.data.sources.archive import Files
from cnnjax.data.sources.members import Members
from cnnjax.data.sources.records import FACTS, PLAN

RUN = {"config.json", "record.json"}  # of every run folder
WRITTEN = {*RUN, "sweep.json", FACTS, PLAN}
NONE = np.zeros(0, np.int64)  # no images


def is_image(name: str) -> bool:
    """Whether a file is one by its name, and not drawn by an earlier `predict --explain`."""
    stem, _, suffix = name.rpartition(".")
    if f".{suffix.lower()}" not in IMAGE_SUFFIXES:
        return False
    return ".gradcam" not in stem or not re.search(r"\.gradcam(-\d+)?$", stem)


def find_images(files: Files) -> np.ndarray:
    """bool [N]: which files are images by their name."""
    return np.fromiter(map(is_image, files.members.names()), bool, len(files.members))


def find_written(files: Files, images: np.ndarray) -> dict[str, set[str]]:
    """Folder below the root -> which files of WRITTEN it has."""
    written: dict[str, set[str]] = {}
    for name in files.members.names(np.flatnonzero(~images)):
        folder, _, file = name.rpartition("/")
        if folder and file in WRITTEN:
            written.setdefault(folder, set()).add(file)
    return written


def other_files(files: Files, images: np.ndarray, below: str = "", but: Iterable[str] = ()) -> str:
    """'7 .heic, 2 without suffix': how many files, or those below a folder, are no images; '' if all are.

    Those below the folders `but` do not count.
    """
    inside, outside = f"{below}/" if below else "", tuple(f"{folder}/" for folder in but)
    names = files.members.names(np.flatnonzero(~images))
    others = sorted(name for name in names if name.startswith(inside) and not name.startswith(outside))
    suffixes = (PurePosixPath(name).suffix.lower() for name in others)
    counts = Counter(suffix or "without suffix" for suffix in suffixes)
    drawn = {"pictures of --explain": sum(counts.pop(suffix, 0) for suffix in IMAGE_SUFFIXES)}
    special = {"pipes, devices or links that lead back": 0 if below else files.num_special}
    return ", ".join(f"{count} {what}" for what, count in (counts | drawn | special).items() if count)


@dataclasses.dataclass(eq=False)
class Folder:
    """The images of a folder by position, its folders, and how many images and others it holds with these."""

    path: str  # below the root; "" is the root
    images: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    folders: list["Folder"] = dataclasses.field(default_factory=list)
    count: int = 0
    others: int = 0

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def below(self) -> np.ndarray:
        """All images in it and below it."""
        return np.concatenate([self.images, *(folder.below() for folder in self.folders)])

    def filled(self) -> list["Folder"]:
        """Its folders with images, by name."""
        return sorted((f for f in self.folders if f.count), key=lambda f: f.name)

    def empty(self) -> Iterator["Folder"]:
        """The folders without images below it, none of those in another one."""
        for folder in self.folders:
            yield from folder.empty() if folder.count else (folder,)

    def drop(self, written: Mapping[str, set[str]]) -> list[str]:
        """Takes out the folders that cnnjax wrote, and those with nothing else; returns their paths.

        A run is one whatever pictures it holds, any other only without images.
        """
        own, kept, dropped = self.others - sum(f.others for f in self.folders), [], list[str]()
        for each in self.folders:
            inner, files = each.drop(written), written.get(each.path, set())
            if files >= RUN or (not each.count and (files or inner)):
                dropped.append(each.path)
            else:
                kept.append(each)
                dropped += inner
        self.folders, self.count = kept, len(self.images) + sum(f.count for f in kept)
        self.others = own + sum(f.others for f in kept)
        return dropped

    def outside(self, used: np.ndarray, members: Members) -> Iterator[str]:
        """The images that are not used, bool [N], those of a whole folder as '7 images in FOLDER'."""
        places = [(self.path, self.images[~used[self.images]])]
        for folder in self.folders:
            inside = folder.below()
            if used[inside].any():
                yield from folder.outside(used, members)
            else:
                places.append((folder.path, inside))
        for path, rest in places:
            if len(rest):
                yield f"{len(rest)} images in {path or '.'}" if len(rest) > 1 else members[int(rest[0])].name

    def only(self) -> "Folder | None":
        """The one folder that may hold images; an empty one is a class that is not yet filled."""
        folders = [f for f in self.folders if f.count or not f.others]
        return folders[0] if len(folders) == 1 and folders[0].count > len(self.images) else None


def read_tree(files: Files, images: np.ndarray) -> Folder:
    """The folders below a root, from their files' names."""
    by_path = {"": Folder("")}

    def at(path: PurePosixPath) -> list[Folder]:
        """The folder and those above it, created if missing."""
        if not path.parts:
            return [by_path[""]]
        above = at(path.parent)
        if str(path) not in by_path:
            by_path[str(path)] = Folder(str(path))
            above[0].folders.append(by_path[str(path)])
        return [by_path[str(path)], *above]

    numbers = {name: number for number, name in enumerate(files.folders)}
    above_each = (name.rpartition("/")[0] for name in files.members.names())
    number_of = np.fromiter((numbers.setdefault(name, len(numbers)) for name in above_each), np.int32)
    order = np.argsort(number_of, kind="stable")
    groups = np.split(order, np.searchsorted(number_of[order], range(1, len(numbers))))
    for name, number in sorted(numbers.items()):
        folder, *above = at(PurePosixPath(name))
        inside = groups[number][images[groups[number]]]
        folder.images = np.concatenate([folder.images, inside])
        for each in (folder, *above):
            each.count += len(inside)
            each.others += len(groups[number]) - len(inside)
    return by_path[""]
