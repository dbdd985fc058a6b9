"""Files of the network: whole and checked or not at all, resumed after a cut, by one process at a time."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from cnnjax.data import web
from cnnjax.data.files import PART, read_file, sha256_of
from cnnjax.errors import UserError, visible

if TYPE_CHECKING:
    from requests import Response

CONNECTIONS = 50  # for one file, each of which brings some of it
MOST_BYTES = 2**36  # of a file whose size nobody says
GIT_DIGITS = 40  # of the name that git gives a file, a SHA-1


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file of the network, and what is known of it beforehand."""

    address: str
    size: int | None = None  # bytes
    digits: str = ""  # its SHA-256 or the first digits of it, or 40 digits: git's name of it
    token: str = ""  # for the host of the address alone


def digits_of(path: Path, kind: str) -> str:
    """The SHA-256 of a file in hex, or git's name of it, whichever `kind` is of."""
    if len(kind) != GIT_DIGITS:
        return sha256_of(path)
    data = read_file(path)
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_whole(path: Path, remote: Remote) -> bool:
    """Whether a file is there, and is the one that is known."""
    if not path.is_file() or remote.size not in (None, path.stat().st_size):
        return False
    return not remote.digits or digits_of(path, remote.digits).startswith(remote.digits)


def fetch(remote: Remote, path: Path) -> None:
    """Fetches a file to a path unless the right one is there, with a bar on a terminal.

    It appears whole and checked; what an interrupted process has received is resumed by the next.

    Raises:
      NoNetwork: the server does not answer, breaks off, or must not be asked.
      UserError: it has no such file, or another one, or there is no room; nothing is left of it.
    """
    part = path.with_name(f"{PART}{path.name[-200:]}")
    with _alone(part, path) as file:
        if file is None or is_whole(path, remote):
            return
        try:
            left = (
                remote.digits and os.fstat(file.fileno()).st_size
            )  # of another process; else not to be told
            if not left or (problem := _received(remote, file, part)):
                file.truncate(0)
                problem = _received(remote, file, part)
            if problem:
                file.truncate(0)
                raise UserError(f"{web.shown(remote.address)}: {problem}; the file was discarded")
            os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                file.truncate(0)
            error.filename, error.filename2 = str(path), None
            raise


def download(archives: Mapping[str, str], folder: Path, mirrors: Sequence[str]) -> None:
    """Fetches the archives (name -> SHA-256) that are not in the folder yet, from the first mirror that can.

    A UserError names what is wrong with each of them.
    """
    for name, sha256 in archives.items():
        failures = []
        if is_whole(folder / name, Remote("", None, sha256)):
            continue
        for mirror in mirrors:
            try:
                fetch(Remote(f"{mirror.rstrip('/')}/{name}", None, sha256), folder / name)
                break
            except UserError as error:
                failures.append(str(error))
        else:
            raise UserError(f"download failed: {'; '.join(failures)}")


@contextlib.contextmanager
def _alone(part: Path, path: Path) -> Iterator[FileIO | None]:
    """The unfinished file of a path, locked; None if another process finished it while it had the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with open(handle, "r+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that downloads {visible(path.name)}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            if part.is_file() and os.path.samestat(part.stat(), os.fstat(file.fileno())):
                try:
                    yield file
                finally:
                    if file.seek(0, os.SEEK_END) == 0:
                        part.unlink(missing_ok=True)
                return
            if path.is_file():
                yield None
                return


def _received(remote: Remote, file: FileIO, part: Path) -> str:
    """What is wrong with a file that is received as far as it is missing, or ''."""
    _receive(remote, file, part)
    size = part.stat().st_size
    if remote.size not in (None, size):
        return f"it has {size:,} bytes, not {remote.size:,}"
    if remote.digits and not (digits := digits_of(part, remote.digits)).startswith(remote.digits):
        kind = "name in git" if len(remote.digits) == GIT_DIGITS else "SHA-256"
        return f"its {kind} is {digits}, not {remote.digits}"
    return ""


def _receive(remote: Remote, file: FileIO, part: Path) -> None:
    """Adds what is missing to an unfinished file, over as many connections as it takes."""
    import urllib3

    etag, problem = "", ""
    with _bar(remote.address.rpartition("/")[2], remote.size) as advance:
        for _ in range(CONNECTIONS):
            begun = file.seek(0, os.SEEK_END)
            if begun == remote.size:
                return
            headers = {"Range": f"bytes={begun}-"} if begun else {}
            headers |= {"If-Range": etag} if begun and etag else {}
            with web.answer(remote.address, headers, remote.token) as response:
                if response.status_code == 416:  # there is more of it than the server has
                    file.truncate(0)
                    continue
                have, total = _start(response, begun, remote)
                file.seek(have)
                file.truncate()
                _check_room(part.parent, (total or 0) - have)
                etag = response.headers.get("etag", "")
                try:
                    for chunk in web.chunks(response, (total or MOST_BYTES) - have, remote.address):
                        _write(file, chunk)
                        have += len(chunk)
                        advance(have, total)
                    if total in (None, have):
                        return
                    problem = "the connection was cut"
                except urllib3.exceptions.HTTPError as error:
                    problem = f"the connection was cut: {web.cause(error)}"
            if not remote.digits and (not etag or etag.startswith("W/")):
                file.truncate(0)  # the next connection may have another file
                break
            if have <= begun:
                break
    raise web.NoNetwork(f"{web.shown(remote.address)}: {problem}")


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _start(response: "Response", begun: int, remote: Remote) -> tuple[int, int | None]:
    """(bytes that are kept of what there is, size of the whole) as a response says."""
    length = response.headers.get("content-length", "")
    total = int(length) if length.isdecimal() else None
    have = 0
    if response.status_code == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("content-range", ""))
        if not span or int(span[1]) != begun:
            raise UserError(f"{web.shown(remote.address)}: the server sent another part of the file")
        have, total = begun, int(span[2])
    if total is not None and remote.size not in (None, total):
        raise UserError(f"{web.shown(remote.address)}: it has {total:,} bytes, not {remote.size:,}")
    return have, total


def _check_room(folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        advice = "free some space, or set XDG_CACHE_HOME to a folder on another disk"
        raise UserError(f"{folder} has room for {free:,} bytes; {needed:,} are needed; {advice}")


@contextlib.contextmanager
def _bar(name: str, size: int | None) -> Iterator[Callable[[int, int | None], None]]:
    """A function of (bytes so far, all or None), shown on the standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    words = progress.TextColumn("{task.description}", markup=False)
    columns = words, progress.BarColumn(), progress.DownloadColumn(), progress.TimeRemainingColumn()
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(visible(name), total=size)
        yield lambda done, total: bar.update(task, completed=done, total=total)
