"""The files of a folder or an archive as columns: a million of them take 0.1 GB and a few seconds."""

import array
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

UNCHECKED = -1  # in place of a checksum
COLUMNS, CHUNK = 5, 2**12
AS_IT_IS = "utf-8", "surrogatepass"  # names need not be UTF-8


class Member(NamedTuple):
    """One file: its name below the root with /, its size in bytes, and what is needed to find it."""

    name: str
    size: int
    offset: int = 0
    stored: int = 0  # bytes in the archive
    method: int = zipfile.ZIP_STORED
    crc: int | None = None
    own: str = ""  # the name in a zip, as it stands there


Row = tuple[str, int, int, int, int, int | None, str]  # as a Member, which takes as long to make as to read
FOLDER = 0, 0, 0, zipfile.ZIP_STORED, None, ""  # after the name of a folder


class Members:
    """Files by name, each at most once: of two of one name the last one counts, as in unpacking.

    `distinct` are those of a folder, which come by name in each folder.
    """

    def __init__(self, members: Iterable[Row], distinct: bool = False):
        text, bounds, table, own = bytearray(), array.array("q", [0]), array.array("q"), {}
        ascending, last = True, ""
        for number, (name, size, offset, stored, method, crc, written) in enumerate(members):
            ascending &= last < name or not number
            last = name
            text += name.encode(*AS_IT_IS)
            bounds.append(len(text))
            table.extend((size, offset, stored, method, UNCHECKED if crc is None else crc))
            if written and written != name:
                own[number] = written
        self._text, self._bounds, self._own = text, np.frombuffer(bounds, np.int64), own
        self._table = np.frombuffer(table, np.int64).reshape(-1, COLUMNS)
        self.twins: list[Member] = []  # those that share their name
        del text, bounds, table
        if not ascending and not distinct:
            self._sort()

    def _sort(self) -> None:
        lengths = np.diff(self._bounds)
        most = int(lengths.max())  # a name that is far longer than the others would widen the column of all
        width = f"S{most}" if most * len(self) <= 3 * len(self._text) else object
        names = np.fromiter((name.encode(*AS_IT_IS) for name in self.names()), width, len(self))
        order = np.argsort(names, kind="stable")
        last = np.ones(len(self), bool)
        for start in range(0, len(self), CHUNK):
            few = names[order[start : start + CHUNK + 1]]
            last[start : start + len(few) - 1] = few[1:] != few[:-1]
        (first,) = np.nonzero(~last)
        self.twins = [self[i] for i in order[np.union1d(first, first + 1)].tolist()]
        order = order[last]
        if self._own:
            self._own = {new: self._own[old] for new, old in enumerate(order.tolist()) if old in self._own}
        self._text = bytearray()  # here, as the old text is a third of all
        for start in range(0, len(order), CHUNK):
            self._text += b"".join(names[order[start : start + CHUNK]].tolist())
        del names
        self._bounds = np.concatenate([[0], np.cumsum(lengths[order])])
        self._table = self._table[order]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Member:
        name = self._text[self._bounds[index] : self._bounds[index + 1]].decode(*AS_IT_IS)
        size, offset, stored, method, crc = self._table[index].tolist()
        known = None if crc == UNCHECKED else crc
        return Member(name, size, offset, stored, method, known, self._own.get(index, name))

    def names(self, indices: np.ndarray | None = None) -> Iterator[str]:
        """Those of some files, or of all in order."""
        for start in range(0, len(self) if indices is None else len(indices), CHUNK):
            few = slice(start, start + CHUNK)
            at = np.arange(start, min(start + CHUNK, len(self))) if indices is None else indices[few]
            begin, end = self._bounds[at], self._bounds[at + 1]
            follow = (begin[1:] == end[:-1]).all()
            if follow and (text := self._text[begin[0] : end[-1]]).isascii():  # a byte is a letter
                starts, ends = (begin - begin[0]).tolist(), (end - begin[0]).tolist()
                yield from map(text.decode().__getitem__, map(slice, starts, ends))
            else:
                bounds = zip(begin.tolist(), end.tolist(), strict=True)
                yield from (self._text[a:b].decode(*AS_IT_IS) for a, b in bounds)

    def by_name(self, indices: np.ndarray) -> np.ndarray:
        """Some files, by position, in the order of their names."""
        names = [*self.names(indices)]
        return indices[sorted(range(len(names)), key=names.__getitem__)]

    def listing(self, indices: np.ndarray, folder: str) -> bytearray:
        """The text of [(name, size, checksum), ...] of some files, without a folder before their names."""
        text = bytearray()
        for start in range(0, len(indices), CHUNK):
            text += b", " if text else b"["
            text += self._listing(indices[start : start + CHUNK], folder)
        text += b"]" if text else b"[]"
        return text

    def _listing(self, indices: np.ndarray, folder: str) -> bytes:
        numbers = self._table[indices][:, [0, -1]].tolist()
        names = zip(self.names(indices), numbers, strict=True)
        rows = ((name.removeprefix(folder), n, None if c == UNCHECKED else c) for name, (n, c) in names)
        return ", ".join(map(str, rows)).encode(*AS_IT_IS)
