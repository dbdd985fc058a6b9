"""WebDataset: tars of samples, each an image beside its label, read at random without unpacking.

A sample is the files that follow each other and share their name up to its first dot: `000123.jpg` and
`000123.cls`, the label as digits, or `000123.json` with a field "label" or "cls"; other files are left out.
A tar belongs to the split whose word its name or a folder of it has (`imagenet-train-0000.tar`,
`test/0000.tar`); if no name has any, all are train. `classnames.txt` beside them has a class a line. The
headers of all tars are read once, by threads; then each image is one read.
"""

import bisect
import functools
import itertools
import os
import re
import reprlib
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cnnjax.data.decode import IMAGE_SUFFIXES, decode_image, read_header
from cnnjax.data.files import allow_open, open_file, parse_json, raise_open_limit, read_lines
from cnnjax.data.machine import num_cores
from cnnjax.data.sources import sets, shards, tars
from cnnjax.data.sources.archive import MOST_IMAGE_BYTES, in_junk, is_junk, open_for
from cnnjax.data.sources.members import Member, Members
from cnnjax.data.sources.source import FileSource, Opened, Place, Shape, digest
from cnnjax.errors import BadImage, UserError, counted

MOST_LABEL_BYTES = 2**20  # of a .json
FIELDS = ("label", "cls")  # of a .json


class TarFolder:
    """The images of each split with their tars, and the labels; no image is read."""

    def __init__(self, place: Place):
        self.root = root = place.path
        if not (files := [root] if root.is_file() else shards.find_files(root, ".tar")):
            raise UserError(f"{root}: no *.tar; allowed: a folder of WebDataset tars, or one of them")
        by_split = shards.by_split(root, files)
        self.files = {split: by_split[split] for split in place.chosen([*by_split])}
        self.members, labels, dotted = {}, {}, 0
        raise_open_limit()  # many tars are listed side by side
        for split, paths in self.files.items():
            with ThreadPoolExecutor(min(32, 4 * num_cores())) as pool:  # mostly waits for a disk
                read = [*pool.map(_read_tar, paths)]
            self.members[split] = [members for members, *_ in read]
            labels[split] = np.concatenate([each for _, each, _ in read])
            dotted += sum(count for *_, count in read)
            self._check_labels(split, labels[split])
        names = _class_names((root.parent if root.is_file() else root) / "classnames.txt")
        self.known = known = sets.read_labels(labels, names, root)
        if dotted:
            left_out = f"left out: {counted(dotted, 'image')} with a dot in their names"
            self.known = known._replace(notes=(*known.notes, left_out))
        self.place = place

    def _check_labels(self, split: str, labels: np.ndarray) -> None:
        """Refuses images without a label, unless no image of the split has one."""
        (without,) = np.nonzero(labels == sets.UNLABELLED)
        if 0 < len(without) < len(labels):
            first = _Reader(self.files[split], self.members[split], labels, decode_image).find(without[0])[1]
            others = f"others of {split} have; allowed: a .cls or .json beside each image"
            raise UserError(f"{first}: no label; {others}")

    def source(self, split: str) -> FileSource:
        """One split, read on access, RGB unless other channels are asked for."""
        place, labels = self.place, self.known.labels[split]
        channels = place.channels or 3
        decode = functools.partial(decode_image, channels=channels, recipe=place.recipe)
        reader = _Reader(self.files[split], self.members[split], labels, decode)
        listings = [members.listing(np.arange(len(members)), "") for members in reader.members]
        contents = digest([path.name for path in reader.files], *listings, labels, place.size)
        return FileSource(
            reader,
            total=len(labels),
            positions=np.arange(len(labels)),
            contents=contents,
            labels=labels,
            class_names=self.known.class_names,
            name=place.name,
            split=split,
            shape=place.shape(channels),
            notes=self.known.notes,
            header=reader.header,
        )


def open_tars(place: Place) -> Opened:
    """See `TarFolder`."""
    folder = TarFolder(place)
    return Opened(folder.known.splits, folder.source, folder.known.notes)


def _class_names(file: Path) -> list[str]:
    """Those of a file that may be missing, one per line."""
    names = read_lines(file, file) if file.is_file() else []
    while names[-1:] == [""]:
        names.pop()
    if "" in names:  # left out, it would move those below it to other labels
        given = f"line {names.index('') + 1} is empty"
        raise UserError(f"{file}: {given}; allowed: a class name per line, in the order of the labels")
    return names


class _Reader:
    """Tars are opened when first read, in each process anew."""

    def __init__(
        self,
        files: list[Path],
        members: list[Members],
        labels: np.ndarray,
        decode: Callable[..., np.ndarray],
    ):
        self.files, self.members, self.labels, self.decode = files, members, labels, decode
        self.ends = np.cumsum([*map(len, members)]).tolist()
        self._open: dict[int, int] = {}
        allow_open(len(files), files[0].parent)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def find(self, position: int) -> tuple[int, str, Member]:
        """The number of an image's tar, its name for messages, and where it is."""
        tar = bisect.bisect_right(self.ends, position)
        member = self.members[tar][position - (self.ends[tar - 1] if tar else 0)]
        return tar, f"{self.files[tar]}/{member.name}", member

    def _encoded(self, position: int) -> tuple[bytes, str]:
        tar, what, member = self.find(position)
        if member.size > MOST_IMAGE_BYTES:
            raise BadImage(f"{what}: {member.size} bytes; allowed: at most {MOST_IMAGE_BYTES}")
        try:
            if tar not in self._open:
                self._open[tar] = open_for(self, self.files[tar])
            data = os.pread(self._open[tar], member.size, member.offset)
        except OSError as error:
            raise BadImage(f"{what}: cannot be read ({error.strerror})") from None
        if len(data) != member.size:
            raise BadImage(f"{what}: cut short; copy or download the tar again")
        return data, what

    def header(self, position: int) -> Shape:
        """[H, W, 3] of an image, from its header."""
        return *read_header(*self._encoded(position))[:2], 3

    def __call__(self, position: int, out: np.ndarray | None) -> tuple[np.ndarray, int, str]:
        data, what = self._encoded(position)
        return self.decode(data, what, out=out), int(self.labels[position]), what


def _read_tar(path: Path) -> tuple[Members, np.ndarray, int]:
    """The images of a tar and their labels, int64 [N], in its order; how many images it leaves out."""
    labels, dotted = list[int](), list[str]()
    try:
        members = Members(_images(path, labels, dotted), distinct=True)
    except tarfile.TarError as error:
        allowed = "allowed: tars that are not compressed; unpack a .tar.gz with gzip -d"
        raise UserError(f"{path}: cannot be read as tar ({error}); {allowed}") from None
    return members, np.array(labels, np.int64), len(dotted)


def _images(path: Path, labels: list[int], dotted: list[str]) -> Iterator[Member]:
    """One image for each sample; adds its label to `labels`, and to `dotted` images with more dots."""
    with open_file(path) as file:
        for key, entries in itertools.groupby(_kept(path), _key):
            found: dict[str, list[tars.Entry]] = {}
            for entry in entries:
                found.setdefault(entry.name[len(key) :].lower(), []).append(entry)
            images = [entry for suffix in found if suffix in IMAGE_SUFFIXES for entry in found[suffix]]
            others = [suffix for suffix in found if suffix not in IMAGE_SUFFIXES]
            dotted += [e.name for suffix in others if suffix.endswith(IMAGE_SUFFIXES) for e in found[suffix]]
            if not (images or ".cls" in found):
                continue
            marks = found.get(".cls") or found.get(".json") or []
            if len(images) != 1 or len(marks) > 1:
                given = f"{len(images)} images" if len(images) != 1 else f"{len(marks)} labels"
                raise UserError(
                    f"{path}: sample {key!r} has {given}; allowed: one image, beside its .cls or .json"
                )
            labels.append(_label(path, file.fileno(), marks[0]) if marks else sets.UNLABELLED)
            yield Member(images[0].name, images[0].size, images[0].offset)


def _kept(path: Path) -> Iterator[tars.Entry]:
    """Without what systems leave behind, which would divide a sample that it is in."""
    for entry in tars.read_entries(path):
        folder, _, name = entry.name.rpartition("/")
        if not (is_junk(name) or in_junk(folder)):
            yield entry


def _key(entry: tars.Entry) -> str:
    """The name up to its first dot; folders above may have some."""
    folder, slash, name = entry.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _label(path: Path, file: int, entry: tars.Entry) -> int:
    """The label that a .cls or .json states; a UserError names one that is no whole number."""
    what = f"{path}/{entry.name}"
    if entry.size > MOST_LABEL_BYTES:
        raise UserError(f"{what}: {entry.size} bytes; allowed: at most {MOST_LABEL_BYTES} for a label")
    data = os.pread(file, entry.size, entry.offset)
    if entry.name.lower().endswith(".cls"):
        if not re.fullmatch(rb"-?\d{1,9}", text := data.strip()):
            raise UserError(f"{what}: label {reprlib.repr(data)}; allowed: digits, counted from 0")
        return int(text)
    try:
        fields = parse_json(data)
    except ValueError as error:
        raise UserError(f"{what} is damaged: {error}") from None
    label = next((fields[name] for name in FIELDS if name in fields), None)
    if type(label) is not int:
        allowed = f"a whole number as {' or '.join(map(repr, FIELDS))}"
        raise UserError(f"{what}: label {reprlib.repr(label)}; allowed: {allowed}")
    return label
