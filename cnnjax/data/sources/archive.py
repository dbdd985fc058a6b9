"""Files of a folder, a zip or a tar archive, read at random and never unpacked to disk."""

import contextlib
import dataclasses
import errno
import gzip
import itertools
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from isal import isal_zlib  # as zlib, with the processor's instructions for it

from cnnjax.data.files import open_file, read_file
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


@dataclasses.dataclass(frozen=True)
class Member:
    """One file: its name below the root with /, its size in bytes, and what is needed to find it."""

    name: str
    size: int
    offset: int = 0
    stored: int = 0  # bytes in the archive
    method: int = zipfile.ZIP_STORED
    crc: int | None = None
    own: str = ""  # the name in a zip, as it stands there


class Files:
    """The files below a folder, .zip or plain .tar, by name; a copy opens it anew.

    Hidden files and `JUNK` are left out; `folders` are the folders' names, as far as an archive has them.
    """

    def __init__(self, root: Path):
        self.root = root
        self._archive: int | None = None
        if root.is_dir():
            members = _walk(root)
        elif not root.is_file():
            allowed = "a folder, or a .zip or .tar, of split/class/images"
            raise UserError(f"{root}: no such folder; allowed: {allowed}")
        else:
            members = _zip_members(root) if _is_zip(root) else _tar_members(root)
            self._archive = self._opened()
        own, folders = {}, set()
        for member in members:
            parts = PurePosixPath(member.name).parts
            kept = [*itertools.takewhile(lambda part: not is_junk(part), parts)]
            if len(kept) < len(parts) or member.name.endswith("/"):
                folders.add("/".join(kept))
            else:
                own[member.name] = member  # of two of one name the last one counts, as in unpacking
        if deep := next((name for name in (*own, *folders) if name.count("/") > MOST_DEEP), None):
            raise UserError(f"{root}/{deep[:80]}...: folders more than {MOST_DEEP} deep; move them up")
        self.folders = sorted(folders)
        self.members = sorted((m for m in own.values() if m.size != NO_FILE), key=lambda m: m.name)
        self.num_special = len(own) - len(self.members)  # pipes, devices and links that lead back

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "members": self.members}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= {**state, "_archive": None}
        self._archive = None if self.root.is_dir() else self._opened()

    def _opened(self) -> int:
        try:
            return os.open(self.root, os.O_RDONLY)
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
            return read_file(self.root / member.name, MOST_IMAGE_BYTES)
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

    def __del__(self) -> None:
        if self._archive is not None:
            os.close(self._archive)


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system leaves behind."""
    return name.startswith(".") or name.lower() in JUNK


def _walk(root: Path) -> list[Member]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    members = []
    above = {str(root): [os.path.realpath(root)]}  # folder -> where it and those above it really are
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        start = "" if below == "." else f"{below}/"
        for name in [*folders]:
            path = os.path.join(folder, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(above[folder][-1], name)
            above[path] = [*above[folder], real]
            if leads_back := real in above[folder]:
                members.append(Member(f"{start}{name}", NO_FILE))
            if leads_back or is_junk(name):
                folders.remove(name)
        members += [Member(f"{start}{name}/", 0) for name in folders]
        members += [Member(f"{start}{name}", _size(os.path.join(folder, name))) for name in files]
    return members


def _size(path: str) -> int:
    """Bytes of a file; 0 for a link to nothing, which is told when it is read."""
    try:
        found = os.stat(path)
        return found.st_size if stat.S_ISREG(found.st_mode) else NO_FILE
    except OSError as error:
        return NO_FILE if error.errno == errno.ELOOP else 0


def _check_name(root: Path, name: str) -> None:
    """Refuses names that point outside the archive: it is not unpacked, but not to be trusted either."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{root}: member {name!r} points outside the archive; allowed: names below its root")


def _is_zip(root: Path) -> bool:
    with open_file(root) as file:  # a tar may end in a zip
        return file.read(262)[257:] != b"ustar" and zipfile.is_zipfile(file)


def _zip_members(root: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(root) as archive:
            infos = archive.infolist()
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        raise UserError(f"{root}: cannot be read as zip ({error}); copy or download it again") from None
    members: dict[str, Member] = {}
    whole, doubtful = root.stat().st_size, []
    for info in infos:
        _check_name(root, info.filename)
        name = info.filename.replace("\\", "/")  # as some programs on Windows write them
        if info.header_offset + info.compress_size > whole:
            raise UserError(f"{root}: member {info.filename!r} reaches beyond the archive; copy it again")
        if name in members or not name or name.endswith("/") or any(map(is_junk, name.split("/"))):
            doubtful.append(info)
        if not name or name.endswith("/"):
            members |= {name: Member(name, 0)} if name else {}
            continue
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise UserError(f"{root}: member {info.filename!r} is a link; allowed: files and folders")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{root}: member {info.filename!r}; allowed: stored or deflated, not encrypted")
        sizes = (info.file_size, info.header_offset, info.compress_size)
        members[name] = Member(name, *sizes, info.compress_type, info.CRC, info.orig_filename)
    with open_file(root) as file:  # what is left out is never read, where a damaged name would show
        for info in doubtful:
            if not _data_offset(file.fileno(), info.header_offset, info.orig_filename):
                raise UserError(
                    f"{root}: member {info.filename!r} has another name at its own place, so one "
                    "of them is damaged; copy or download it again"
                )
    return [*members.values()]


def _data_offset(archive: int, offset: int, name: str) -> int:
    """Where the data of a zip's member begin; 0 if its own header does not name it as the directory does."""
    header = os.pread(archive, LOCAL_HEADER + 4 * len(name), max(offset, 0))
    length, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    own = header[LOCAL_HEADER : LOCAL_HEADER + length]
    known = name in (own.decode("cp437"), own.decode("utf-8", "replace"))
    return offset + LOCAL_HEADER + length + extra if known else 0


def _tar_members(root: Path) -> list[Member]:
    members = []
    try:
        with tarfile.open(root, "r:") as archive:
            for info in archive:
                _check_name(root, info.name)
                name = PurePosixPath(info.name).as_posix()
                if info.isdir():
                    members.append(Member(f"{name}/", 0))
                    continue
                if not info.isfile() or info.issparse():
                    raise UserError(f"{root}: member {info.name!r} is a link; allowed: files and folders")
                members.append(Member(name, info.size, info.offset_data, info.size))
            with open_file(root) as file:  # tarfile takes a damaged header for the end, a block of zeros
                file.seek(archive.offset)
                if file.read(512) != bytes(512):
                    raise UserError(f"{root}: truncated or damaged; copy or download it again")
    except UserError:
        raise
    except Exception as error:  # tarfile raises many kinds for damaged headers
        reason = f"cannot be read as zip or tar ({error}); allowed: .zip, or .tar that is not compressed"
        with contextlib.suppress(OSError), open(root, "rb") as file:
            if file.read(8).startswith(COMPRESSED):
                reason = "a compressed tar can only be read from its start; unpack it once "
                reason += f"(tar -xf {root.name}) and name the folder, or take a .zip"
        raise UserError(f"{root}: {reason}") from None
    if max((m.offset + m.stored for m in members), default=0) > root.stat().st_size:
        raise UserError(f"{root}: truncated; copy or download it again")
    return members
