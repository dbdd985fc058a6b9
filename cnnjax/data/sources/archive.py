"""Files of a folder, a zip or a tar archive, read at random and never unpacked."""

import dataclasses
import os
import tarfile
import threading
import zipfile
from pathlib import Path, PurePosixPath

from isal import isal_zlib as zlib  # the same checksums, with the processor's instructions for them

from cnnjax.errors import UserError

LOCAL_HEADER = 30  # bytes of a zip member's own header before its name


@dataclasses.dataclass(frozen=True)
class Member:
    """One file: its name below the root with /, its size in bytes, and what is needed to find it."""

    name: str
    size: int
    offset: int = 0
    stored: int = 0  # bytes in the archive
    method: int = zipfile.ZIP_STORED
    crc: int | None = None


class Files:
    """The files below a root, and their bytes; another process opens the root anew.

    Attributes:
      root: a folder, a .zip or an uncompressed .tar.
      members: sorted by name; hidden files and what macOS and Windows leave behind are left out.
    """

    def __init__(self, root: Path):
        self.root, self._descriptor, self._lock = root, None, threading.Lock()
        self._unpacked = root.is_dir()
        if self._unpacked:
            found = _walk(root)
        elif not root.is_file():
            raise UserError(
                f"{root}: no such folder; allowed: a folder, or a .zip or .tar, of split/class/images"
            )
        elif zipfile.is_zipfile(root):
            found = _zip_members(root)
        else:
            found = _tar_members(root)
        self.members = sorted((m for m in found if not _hidden(m.name)), key=lambda m: m.name)

    def __getstate__(self) -> dict:
        return {"root": self.root, "members": self.members, "_unpacked": self._unpacked}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._descriptor, self._lock = None, threading.Lock()

    def where(self, member: Member) -> str:
        """The file's name for messages."""
        return f"{self.root}/{member.name}"

    def read(self, member: Member) -> bytes:
        """The bytes of a file; raises UserError naming it where they cannot be read or are damaged."""
        try:
            if self._unpacked:
                return (self.root / member.name).read_bytes()
            return self._read_archived(member)
        except OSError as error:
            raise UserError(f"{self.where(member)}: cannot be read ({error.strerror})") from None

    def _read_archived(self, member: Member) -> bytes:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.root, os.O_RDONLY)
        offset = member.offset
        if member.crc is not None:
            header = os.pread(self._descriptor, LOCAL_HEADER, offset)
            offset += LOCAL_HEADER + int.from_bytes(header[26:28], "little")
            offset += int.from_bytes(header[28:30], "little")
        data = os.pread(self._descriptor, member.stored, offset)
        try:
            if member.method == zipfile.ZIP_DEFLATED:
                data = zlib.decompress(data, -15, member.size)
        except zlib.error:
            data = b""
        if len(data) != member.size or (member.crc is not None and zlib.crc32(data) != member.crc):
            raise UserError(f"{self.where(member)}: damaged in the archive; copy or download it again")
        return data

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1] == "Thumbs.db"


def _walk(root: Path) -> list[Member]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    found = []
    for folder, _, files in os.walk(root, onerror=refuse, followlinks=True):
        below = os.path.relpath(folder, root)
        if len(PurePosixPath(below).parts) > 20:
            raise UserError(f"{folder}: folders more than 20 deep; is there a link to a folder above?")
        for name in files:
            path = name if below == "." else f"{below}/{name}".replace(os.sep, "/")
            try:
                found.append(Member(path, os.stat(os.path.join(folder, name)).st_size))
            except OSError as error:
                raise UserError(f"{folder}/{name}: cannot be read ({error.strerror})") from None
    return found


def _check_name(root: Path, name: str) -> None:
    """Refuses what would lie outside the archive; nothing is unpacked, but such an archive is no friend's."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{root}: member {name!r} points outside the archive; allowed: names below its root")


def _zip_members(root: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(root) as archive:
            infos = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{root}: cannot be read as zip ({error})") from None
    found = []
    for info in infos:
        _check_name(root, info.filename)
        if info.is_dir():
            continue
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise UserError(f"{root}: member {info.filename!r} is a link; allowed: files and folders")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{root}: member {info.filename!r}; allowed: stored or deflated, not encrypted")
        found.append(
            Member(
                info.filename,
                info.file_size,
                info.header_offset,
                info.compress_size,
                info.compress_type,
                info.CRC,
            )
        )
    return found


def _is_compressed(root: Path) -> bool:
    """Whether a file is gzip, bzip2, xz or Zstandard."""
    magic = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    try:
        with open(root, "rb") as file:
            return file.read(8).startswith(magic)
    except OSError:
        return False


def _tar_members(root: Path) -> list[Member]:
    found = []
    try:
        with tarfile.open(root, "r:") as archive:
            for info in archive:
                _check_name(root, info.name)
                if info.isdir():
                    continue
                if not info.isfile() or info.issparse():
                    raise UserError(f"{root}: member {info.name!r} is a link; allowed: files and folders")
                name = PurePosixPath(info.name).as_posix()
                found.append(Member(name, info.size, info.offset_data, info.size))
    except (OSError, EOFError, tarfile.TarError) as error:
        if _is_compressed(root):
            raise UserError(
                f"{root}: a compressed tar can only be read from its start; unpack it once "
                f"(tar -xf {root.name}) and name the folder, or take a .zip"
            ) from None
        raise UserError(
            f"{root}: cannot be read as zip or tar ({error}); allowed: .zip, or .tar that is not compressed"
        ) from None
    size = root.stat().st_size
    if found and max(m.offset + m.stored for m in found) > size:
        raise UserError(f"{root}: truncated; copy or download it again")
    return found
