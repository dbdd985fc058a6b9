"""Files: written whole or not at all, read if they are what they should be, downloaded; cache folders."""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import io
import json
import os
import reprlib
import resource
import secrets
import shutil
import stat
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cnnjax.errors import UserError, check_local, one_line

PART = ".cnnjax-part-"  # how the names of unfinished files begin; they are ignored everywhere
_unfinished: set[Path] = set()
MOST_BYTES = 2**29  # of a file that is read whole
MOST_NESTED = 64
OTHER_FILES = 64  # that a process has open beside its data
WORDS: dict[type, str] = {
    **{dict: "an object", list: "a list", str: "a text", bool: "true or false"},
    **{int: "an integer", float: "a number", types.NoneType: "null"},
}


def raise_open_limit() -> int:
    """Raises the soft limit of open files to the hard one; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a system with a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_open(count: int, what: object) -> None:
    """Raises the limit of open files as far as it goes; a UserError if `what` has more files than that."""
    most = raise_open_limit()
    if most != resource.RLIM_INFINITY and count + OTHER_FILES > most:
        given = f"{what}: {count} files are read at once, this process may open {most}"
        raise UserError(f"{given}; raise its limit to {count + OTHER_FILES} or more (ulimit -n)")


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replaces a file in one step, so that a killed process leaves the old one or the new one."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path` and of its suffix to write to, which takes its place if all goes well.

    Raises:
      OSError: one that names `path`, if the file cannot be written.
    """
    check_local("", path)
    part = handle = None
    name = os.fsdecode(os.fsencode(path.name)[-200:])
    try:
        remove_left(path.parent, name)
        handle, part = _new_part(path.parent, name)
        _unfinished.add(part)
        yield part
        os.fsync(handle)
        os.replace(part, path)
    except OSError as error:
        if error.errno and (error.filename is None or PART in str(error.filename)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        if part and handle:
            os.close(handle)
            _unfinished.discard(part)
            part.unlink(missing_ok=True)


def _new_part(folder: Path, name: str) -> tuple[int, Path]:
    """A file for `replacing`, locked as long as it is open, so that nobody takes it for one that was left."""
    while True:
        part = folder.absolute() / f"{PART}{secrets.token_hex(8)}-{name}"
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask, unlike mkstemp's
        with contextlib.suppress(OSError):  # not all file systems have locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, part
        os.close(handle)


def remove_left(folder: Path, name: str = "") -> None:
    """Removes the files that `replacing` a file of that name, or of any, left in killed processes."""
    for part in folder.glob(f"{PART}*{glob.escape(name)}"):
        with contextlib.suppress(OSError), open(part, "rb", opener=_at_once) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by who writes to it
            part.unlink()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, removed at the end, that by a signal too."""
    with tempfile.TemporaryDirectory(prefix="cnnjax-") as name:
        _unfinished.add(Path(name))
        try:
            yield Path(name)
        finally:
            _unfinished.discard(Path(name))


def remove_unfinished() -> None:
    """Removes what this process has not finished writing, as it ends by a signal."""
    for path in [*_unfinished]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def open_file(path: str | os.PathLike[str], *, within: Path | None = None) -> io.BufferedReader:
    """Opens a file to read; unlike `open` it never waits, as for one who writes to a pipe.

    A UserError names a file that is missing, a folder, pipe or device, or a link out of the folder `within`.
    """
    file, _ = _opened(path, within)
    return open(path, "rb", opener=lambda *_: file)


def read_file(path: str | os.PathLike[str], most: int = MOST_BYTES, *, within: Path | None = None) -> bytes:
    """The bytes of a file, see `open_file`; more than `most` of them are a UserError too.

    Four system calls, where `open` makes nine: after each a thread waits for Python's lock.
    """
    file, size = _opened(path, within)
    try:
        data = b"" if size > most else os.read(file, size + 1)
        while size <= most and len(data) not in (size, most + 1):
            if not (more := os.read(file, most + 1 - len(data))):
                break
            data += more  # it grows, or tells no size, as those of /proc
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(file)
    if (size := max(size, len(data))) > most:
        raise UserError(f"{path} cannot be read: it has {size:,} bytes; allowed: at most {most:,}")
    return data


def read_lines(path: str | os.PathLike[str], what: object) -> list[str]:
    """The lines of a text file, see `read_file`, without space around them; errors call it `what`."""
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    return [line.strip() for line in io.StringIO(text, newline=None)]  # its ends of lines alone


def _opened(path: str | os.PathLike[str], within: Path | None) -> tuple[int, int]:
    """The descriptor of a file, see `open_file`, and its size in bytes."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # the latter for a name with a NUL
        raise _unreadable(path, error) from None
    found = os.fstat(file)
    if stat.S_ISDIR(found.st_mode):
        reason = os.strerror(errno.EISDIR)
    elif not stat.S_ISREG(found.st_mode):
        reason = "it is a pipe or a device; put a regular file there"
    elif within and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(within)):
        reason = f"it is a link to outside {within}; copy the file there"
    else:
        return file, found.st_size
    os.close(file)
    raise UserError(f"{path} cannot be read: {reason}")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(f"{path} cannot be read: {reason}")


def _at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


def open_to_append(path: Path) -> IO[str]:
    """Opens a file to be added to or locked, created if missing; a UserError for a link, pipe or folder."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise UserError(f"{path} is not a regular file; remove it")
    return open(path, "a", encoding="utf-8", opener=_at_once)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes in hex; raises as `open_file` does."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, kind: Any = dict[str, Any], *, within: Path | None = None) -> Any:
    """The value of a JSON file, if it is of a kind, see `check_kind`; a UserError names any other file."""
    data = read_file(path, within=within)
    try:
        return parse_json(data, kind)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def parse_json(data: bytes, kind: Any = dict[str, Any]) -> Any:
    """The value of JSON text, if it is of a kind, see `check_kind`.

    A ValueError of one line also refuses a name that stands twice in an object, an integer of more than 18
    digits, and deep nesting.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(one_line(error, 120)) from None
    level: list[Any] = [[value]]
    for _ in range(MOST_NESTED):
        inner = (x for each in level for x in (each.values() if isinstance(each, dict) else each))
        if not (level := [x for x in inner if isinstance(x, dict | list)]):
            break
    else:
        raise ValueError(f"it is nested more than {MOST_NESTED - 1} deep")
    check_kind(value, kind)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return values


def _integer(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"the integer {digits[:18]}... is too long")
    return int(digits)


def check_kind(value: Any, kind: Any, name: str = "it") -> None:
    """Raises a ValueError, which calls the value `name`, unless a value of JSON is of a kind.

    A kind is a type (`float` admits integers, `Any` everything), a union of types, `list[...]`,
    `dict[str, ...]`, or a TypedDict, which may have other entries too.
    """
    origin = typing.get_origin(kind)
    if typing.is_typeddict(kind):
        check_kind(value, dict[str, Any], name)
        if missing := sorted(kind.__required_keys__ - value.keys()):
            raise ValueError(f"{name} lacks {', '.join(missing)}")
        for entry, inner in _hints(kind).items():
            if entry in value:
                check_kind(value[entry], inner, entry if name == "it" else f"{name}.{entry}")
    elif origin in (dict, list):
        check_kind(value, origin, name)
        inner = typing.get_args(kind)[-1]
        each = value if origin is list else value.values()
        if inner is not Any and not set(map(type, each)) <= _types(inner):
            for key, one in enumerate(value) if origin is list else value.items():
                check_kind(one, inner, f"{name}[{key!r}]")
    elif type(value) not in _types(kind):
        if name == "it" and kind is dict:
            raise ValueError("it is not a JSON object")
        allowed = " or ".join(sorted(WORDS[each] for each in _types(kind)))
        raise ValueError(f"{name} is {reprlib.repr(value)}; allowed: {allowed}")


_hints = functools.cache(typing.get_type_hints)


def _types(kind: Any) -> set[Any]:
    """The types of the values of a kind."""
    if isinstance(kind, types.UnionType):
        return set().union(*map(_types, typing.get_args(kind)))
    return {int, float} if kind is float else {kind}


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder in place of ~, as a shell reads it; a UserError without a home."""
    if (whole := os.path.expanduser(path)) == "~" or whole.startswith("~/"):
        raise UserError(f"{path}: there is no home folder; set HOME, or for the cache XDG_CACHE_HOME")
    return Path(whole)


def check_utf8(path: Path) -> Path:
    """The path, for a library that takes no other; a UserError if its bytes are not UTF-8, or an address."""
    check_local("", path)
    whole = str(path.absolute())
    with contextlib.suppress(UnicodeEncodeError):
        if os.fsencode(whole) == whole.encode():
            return path
    raise UserError(f"{path}: this path must be UTF-8; rename it, choose another, or use a UTF-8 locale")


def cache_folder(kind: str) -> Path:
    """$XDG_CACHE_HOME (else ~/.cache) /cnnjax/KIND; a relative $XDG_CACHE_HOME is ignored, as XDG demands."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else expanded("~/.cache")) / "cnnjax" / kind


class OpenToOthers(PermissionError):
    """A cache folder that is not used, since another user may change what is in it."""


def check_cache_folder(kind: str, *, alone: bool = False) -> None:
    """Raises `OpenToOthers` if another user may change a cache folder, or with `alone` read it."""
    folder = cache_folder(kind)
    own, root = folder.parent, folder.parent.parent
    for place, closed in ((root, 0o002), (own, 0o022), (folder, 0o077 if alone else 0o022)):
        if not os.path.lexists(place) or not root.is_dir():
            return
        status = place.stat() if place == root else place.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISDIR(status.st_mode):
            raise OpenToOthers(f"{place} is not a folder, but a link or a file; remove it")
        if place != root and status.st_uid != os.getuid():
            raise OpenToOthers(f"{place} belongs to another user; set XDG_CACHE_HOME to a folder of your own")
        if mode & closed and not (place == root and mode & stat.S_ISVTX):  # as /tmp is
            raise OpenToOthers(
                f"{place} is open to other users; chmod 700 it{', or remove it' * (place != root)}"
            )
        if place == own and not mode & 0o077 and not alone:
            return  # nobody else gets to what is below


def make_cache_folder(kind: str, *, alone: bool = False) -> Path:
    """`cache_folder`, created for the user alone if missing; raises as `check_cache_folder` does."""
    folder = cache_folder(kind)
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    check_cache_folder(kind, alone=alone)
    for place in (folder.parent, folder):
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
    check_cache_folder(kind, alone=alone)
    return folder


def check_sha256(path: Path, sha256: str) -> None:
    """Raises UserError naming the file if its SHA-256 is not the pinned one."""
    if (actual := sha256_of(path)) != sha256:
        raise UserError(f"{path}: SHA-256 is {actual}; allowed: {sha256}; delete it and load again")
