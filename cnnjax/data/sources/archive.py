"""Files of a folder, a zip or a tar archive, read at random and never unpacked to disk."""

import contextlib
import errno
import functools
import gzip
import itertools
import os
import stat
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from isal import isal_zlib  # as zlib, with the processor's instructions for it

from cnnjax.data.files import open_file, read_file
from cnnjax.data.sources.members import FOLDER, Member, Members, Row
from cnnjax.data.sources.tars import read_entries
from cnnjax.data.sources.zips import read_directory
from cnnjax.errors import BadImage, UserError

LOCAL_HEADER = 30  # bytes of a zip member's own header before its name
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, Zstandard
# Names that systems leave behind, in small letters; hidden files are left out too.
JUNK = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
MOST_DEEP = 20  # folders in folders
NO_FILE = -1  # in place of the size of a pipe, a device, or a link that leads back
# What unpacks to more than both is taken for a decompression bomb, and not read into memory.
MAX_RATIO, ALWAYS_BYTES = 200, 2**28
MOST_IMAGE_BYTES, MOST_FILE_BYTES = 2**28, 2**34  # of one encoded image; of one file of arrays


def most_bytes(path: Path) -> int:
    """What a compressed file may unpack to."""
    return max(ALWAYS_BYTES, MAX_RATIO * path.stat().st_size)


def read_bytes(path: Path) -> bytes:
    """The file's bytes, unzipped if its name ends in .gz; raises UserError naming a file that is damaged."""
    try:
        if path.suffix != ".gz":
            return read_file(path, MOST_FILE_BYTES)
        with open_file(path) as packed, gzip.open(packed) as file:
            data = file.read((most := most_bytes(path)) + 1)
        if len(data) > most:
            raise OSError(f"it unpacks to more than {most} bytes, {MAX_RATIO} times its own size")
        return data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy or download it again") from None


def open_for(owner: object, path: Path) -> int:
    """A descriptor that is closed as its owner goes; raises OSError.

    Unlike by `__del__`, also where the interpreter ends and has nothing left to close it with.
    """
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, descriptor).atexit = False  # threads may still read
    return descriptor


class Files:
    """The files below a folder, .zip or plain .tar, by name; a copy opens it anew.

    Hidden files and `JUNK` are left out; `folders` are the folders' names, as far as an archive has them.
    """

    def __init__(self, root: Path):
        self.root = root
        self._archive: int | None = None
        members: Iterable[Row]
        if root.is_dir():
            members = walk(root)
        elif not root.is_file():
            allowed = "a folder, or a .zip or .tar, of split/class/images"
            raise UserError(f"{root}: no such folder; allowed: {allowed}")
        else:
            members = _zip_members(root) if _is_zip(root) else _tar_members(root)
            self._archive = self._opened()
        folders: set[str] = set()
        special: set[str] = set()
        self.members = Members(_kept(root, members, folders, special), distinct=self._archive is None)
        _check_places(root, [(m.name, m.own, m.offset) for m in self.members.twins if m.crc is not None])
        self.folders, self.num_special = sorted(folders), len(special)

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "members": self.members}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= {**state, "_archive": None}
        self._archive = None if self.root.is_dir() else self._opened()

    def _opened(self) -> int:
        try:
            return open_for(self, self.root)
        except OSError as error:
            raise UserError(f"{self.root}: cannot be read ({error.strerror})") from None

    def where(self, member: Member) -> str:
        """The file's name for messages."""
        return f"{self.root}/{member.name}"

    def read(self, member: Member) -> bytes:
        """The bytes of an image; BadImage names one that cannot be read, is damaged or too large."""
        try:
            if self._archive is not None:
                return self._read_archived(self._archive, member)
            return read_file(self.where(member), MOST_IMAGE_BYTES)
        except BadImage:
            raise
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).partition("read: ")[2]
            raise BadImage(f"{self.where(member)}: cannot be read ({reason})") from None

    def _read_archived(self, archive: int, member: Member) -> bytes:
        offset = member.offset
        if max(member.size, member.stored) > MOST_IMAGE_BYTES:
            given = f"{member.size} bytes, {member.stored} of them in the archive"
            raise BadImage(f"{self.where(member)}: {given}; allowed: at most {MOST_IMAGE_BYTES}")
        if member.crc is not None:
            offset = _data_offset(archive, offset, member.own)
        data = os.pread(archive, member.stored, offset) if offset else b""
        try:
            if member.method == zipfile.ZIP_DEFLATED:
                data = isal_zlib.decompressobj(-15).decompress(data, member.size + 1)
        except isal_zlib.error:  # type: ignore[misc]  # the stub has an instance for the class
            data = b""
        if len(data) != member.size or (member.crc is not None and isal_zlib.crc32(data) != member.crc):
            raise BadImage(f"{self.where(member)}: damaged in the archive; copy or download it again")
        return data


def _kept(root: Path, members: Iterable[Row], folders: set[str], special: set[str]) -> Iterator[Row]:
    """The files that are no junk; adds the folders, and pipes, devices and links that lead back."""
    looked: dict[str, tuple[str, bool]] = {}  # folder -> what of it is no junk, whether that is all
    for member in members:
        folder, _, name = member[0].rpartition("/")
        if folder not in looked:
            parts = PurePosixPath(folder).parts
            kept = "/".join(itertools.takewhile(lambda part: not is_junk(part), parts))
            looked[folder] = kept, kept.count("/") + bool(kept) == len(parts)
            if kept.count("/") > MOST_DEEP - 1:
                raise UserError(f"{root}/{kept[:80]}...: folders more than {MOST_DEEP} deep; move them up")
        kept, whole = looked[folder]
        if not (whole and name) or is_junk(name):
            folders.add(kept)
        elif member[1] == NO_FILE:
            special.add(member[0])
        else:
            yield member


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system leaves behind."""
    return name.startswith(".") or name.lower() in JUNK


@functools.lru_cache
def in_junk(folder: str) -> bool:
    """Whether a folder, or one above it, is junk."""
    return any(is_junk(part) for part in PurePosixPath(folder).parts if part != "..")


def walk(root: Path) -> Iterator[Row]:
    """Files and folders, those of a folder by name."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    above = {str(root): [os.path.realpath(root)]}  # folder -> where it and those above it really are
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        start = "" if below == "." else f"{below}/"
        for name in [*folders]:
            path = os.path.join(folder, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(above[folder][-1], name)
            above[path] = [*above[folder], real]
            if leads_back := real in above[folder]:
                yield f"{start}{name}", NO_FILE, *FOLDER[1:]
            if leads_back or is_junk(name):
                folders.remove(name)
        folders.sort()
        yield from ((f"{start}{name}/", *FOLDER) for name in folders)
        for name in sorted(files):
            yield f"{start}{name}", _size(f"{folder}/{name}"), 0, 0, zipfile.ZIP_STORED, None, ""


def _size(path: str) -> int:
    """Bytes of a file; 0 for a link to nothing, which is told when it is read."""
    try:
        found = os.stat(path)
        return found.st_size if stat.S_ISREG(found.st_mode) else NO_FILE
    except OSError as error:
        return NO_FILE if error.errno == errno.ELOOP else 0


def _check_name(root: Path, name: str) -> None:
    """Refuses names that point outside the archive: it is not unpacked, but not to be trusted either."""
    if ".." not in name and "\\" not in name and not name.startswith("/"):
        return
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{root}: member {name!r} points outside the archive; allowed: names below its root")


def _is_zip(root: Path) -> bool:
    with open_file(root) as file:  # a tar may end in a zip
        return file.read(262)[257:] != b"ustar" and zipfile.is_zipfile(file)


def _zip_members(root: Path) -> Iterator[Row]:
    doubtful, whole = [], root.stat().st_size  # of what is left out
    try:
        with open_file(root) as file:
            for info in read_directory(file):
                _check_name(root, info.filename)
                name = info.filename.replace("\\", "/")  # as some programs on Windows write them
                if info.header_offset + info.compress_size > whole:
                    reaches = f"{root}: member {info.filename!r} reaches beyond the archive"
                    raise UserError(f"{reaches}; copy it again")
                folder, _, last = name.rpartition("/")
                if not last or in_junk(folder) or is_junk(last):
                    doubtful.append((info.filename, info.orig_filename, info.header_offset))
                if not last:
                    yield from ((each, *FOLDER) for each in [name] if each)
                    continue
                if (info.external_attr >> 16) & 0o170000 == 0o120000:
                    raise UserError(f"{root}: member {name!r} is a link; allowed: files and folders")
                if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    allowed = "allowed: stored or deflated, not encrypted"
                    raise UserError(f"{root}: member {name!r}; {allowed}")
                sizes = min(info.file_size, 2**62), info.header_offset, info.compress_size
                yield name, *sizes, info.compress_type, info.CRC, info.orig_filename
    except UserError:
        raise
    except (ValueError, struct.error) as error:
        raise UserError(f"{root}: cannot be read as zip ({error}); copy or download it again") from None
    _check_places(root, doubtful)


def _check_places(root: Path, places: Iterable[tuple[str, str, int]]) -> None:
    """Refuses a zip if its directory names what is left out, and so never read, unlike its own headers."""
    with open_file(root) if places else contextlib.nullcontext() as file:
        for name, own, offset in places:
            if file and not _data_offset(file.fileno(), offset, own):
                raise UserError(
                    f"{root}: member {name!r} has another name at its own place, so one "
                    "of them is damaged; copy or download it again"
                )


def _data_offset(archive: int, offset: int, name: str) -> int:
    """Where the data of a zip's member begin; 0 if its own header does not name it as the directory does."""
    header = os.pread(archive, LOCAL_HEADER + 4 * len(name), max(offset, 0))
    length, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    own = header[LOCAL_HEADER : LOCAL_HEADER + length]
    known = name in (own.decode("cp437"), own.decode("utf-8", "replace"))
    return offset + LOCAL_HEADER + length + extra if known else 0


def _tar_members(root: Path) -> Iterator[Row]:
    try:
        for name, size, offset in read_entries(root):
            _check_name(root, name)
            clean = PurePosixPath(name).as_posix() if "./" in name or "//" in name else name
            clean += "/" * (name[-1:] == "/" != clean[-1:])
            yield clean, size, offset, size, zipfile.ZIP_STORED, None, ""
    except UserError:
        raise
    except Exception as error:  # tarfile raises many kinds for damaged headers
        reason = f"cannot be read as zip or tar ({error}); allowed: .zip, or .tar that is not compressed"
        with contextlib.suppress(OSError), open(root, "rb") as file:
            if file.read(8).startswith(COMPRESSED):
                reason = "a compressed tar can only be read from its start; unpack it once "
                reason += f"(tar -xf {root.name}) and name the folder, or take a .zip"
        raise UserError(f"{root}: {reason}") from None
