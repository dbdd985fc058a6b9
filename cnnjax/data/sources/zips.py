"""The directory of a zip, entry by entry: `zipfile` keeps half a kilobyte and more of each."""

import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

END, ENTRY = struct.Struct("<4s4H2LH"), struct.Struct("<4s6H3L5H2L")
END64, LOCATOR64 = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
MOST_COMMENT = 2**16  # bytes after the end of the directory
LARGE = 2**32 - 1  # in place of a number that stands in an extra field
UTF8 = 0x800


class Entry(NamedTuple):
    """What the directory says of a file or folder; the names are `zipfile.ZipInfo`'s."""

    filename: str
    orig_filename: str
    flag_bits: int
    compress_type: int
    CRC: int
    compress_size: int
    file_size: int
    header_offset: int
    external_attr: int


def read_directory(file: IO[bytes]) -> Iterator[Entry]:
    """Raises: ValueError or struct.error for a damaged directory, or none."""
    start, size, shift = _find(file)
    end = file.seek(start) + size
    while (at := start) < end:
        fields = ENTRY.unpack(file.read(ENTRY.size))
        mark, _, _, flags, method, _, _, crc, stored, whole, *lengths, _, _, attributes, offset = fields
        if mark != b"PK\1\2":
            raise ValueError(f"no entry of its directory at byte {at}")
        rest, length = file.read(sum(lengths)), lengths[0]
        name, start = rest[:length], at + ENTRY.size + sum(lengths)
        if LARGE in (whole, stored, offset):
            whole, stored, offset = _large(rest[length : length + lengths[1]], whole, stored, offset)
        text = _decoded(name, marked=bool(flags & UTF8))
        own = text.partition("\0")[0] if "\0" in text else text
        yield Entry(own, text, flags, method, crc, stored, whole, offset + shift, attributes)


def _decoded(name: bytes, *, marked: bool) -> str:
    """A name that is not marked as UTF-8 may be that nevertheless: Info-ZIP and macOS leave the mark out."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        if marked:
            raise
        return name.decode("cp437")


def _find(file: IO[bytes]) -> tuple[int, int, int]:
    """Where the directory begins, its bytes, and what stands before the zip, as a program that unpacks it."""
    before = max(0, file.seek(0, 2) - END.size - MOST_COMMENT)
    file.seek(before)
    tail = file.read()
    if (at := tail.rfind(b"PK\5\6")) < 0:
        raise ValueError("no end of a directory")
    *_, size, start, _ = END.unpack_from(tail, at)
    end = before + at
    if end >= END64.size + LOCATOR64.size:
        file.seek(end - END64.size - LOCATOR64.size)
        wide, locator = file.read(END64.size), file.read(LOCATOR64.size)
        if locator.startswith(b"PK\6\7") and wide.startswith(b"PK\6\6"):
            end -= END64.size + LOCATOR64.size
            *_, size, start = END64.unpack(wide)
    if (shift := end - size - start) < 0:
        raise ValueError("its directory is cut short")
    file.seek(0)
    if shift and file.read(4) == b"PK\3\4":  # a program that unpacks it may stand before it, not files
        raise ValueError("several zips in one, and the directory names the files of the last alone")
    return start + shift, size, shift


def _large(extra: bytes, *numbers: int) -> list[int]:
    """The numbers, those that are too large for the entry from its extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            return [next(wide, number) if number == LARGE else number for number in numbers]
        extra = extra[4 + length :]
    return [*numbers]
