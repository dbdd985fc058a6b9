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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urljoin, urlsplit

from cnnjax.data.files import PART, open_file, parse_json, read_file
from cnnjax.errors import UserError, visible

if TYPE_CHECKING:
    from requests import Response

SECONDS = 30.0  # that a server may be silent
PAUSE = 2.0  # seconds before a busy server is asked again
REDIRECTS = 5
CONNECTIONS = 50  # for one file, each of which brings some of it
MOST_BYTES = 2**36  # of a file whose size nobody says
MOST_JSON = 2**24
GIT_DIGITS = 40  # of the name that git gives a file, a SHA-1


class NoNetwork(UserError):
    """No answer, or none is asked for as the user says so."""


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file of the network, and what is known of it beforehand."""

    address: str
    size: int | None = None  # bytes
    digits: str = ""  # its SHA-256 or the first digits of it, or 40 digits: git's name of it
    token: str = ""  # for the host of the address alone


def offline() -> bool:
    """Whether the user forbids the network, by --offline, $CNNJAX_OFFLINE or $HF_HUB_OFFLINE."""
    values = (os.environ.get(name, "") for name in ("CNNJAX_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "true", "yes", "on") for value in values)


def digits_of(path: Path, kind: str) -> str:
    """The SHA-256 of a file in hex, or git's name of it, whichever `kind` is of."""
    if len(kind) != GIT_DIGITS:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    data = read_file(path)
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_whole(path: Path, remote: Remote) -> bool:
    """Whether a file is there, and is the one that is known."""
    if not path.is_file() or remote.size not in (None, path.stat().st_size):
        return False
    return not remote.digits or digits_of(path, remote.digits).startswith(remote.digits)


def fetch(remote: Remote, path: Path) -> None:
    """Fetches a file to a path unless the right one is there, with a bar on a terminal.

    It appears whole and checked; what an interrupted process has received is resumed by the next. Raises:
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
                raise UserError(f"{shown(remote.address)}: {problem}; it is not kept")
            os.fsync(file.fileno())
            os.chmod(part, 0o644)
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


def get_json(address: str, token: str = "") -> dict[str, object]:
    """The JSON value at an address; raises as `fetch` does."""
    import urllib3

    with _answer(address, {}, token) as response:
        try:
            data = b"".join(_chunks(response, MOST_JSON, address))
        except urllib3.exceptions.HTTPError as error:
            raise NoNetwork(f"{shown(address)}: {_cause(error)}") from None
    try:
        return parse_json(data, dict)
    except ValueError as error:
        raise UserError(f"{shown(address)}: its answer is damaged: {error}") from None


def send(
    method: str,
    address: str,
    body: bytes | BinaryIO,
    headers: Mapping[str, str],
    token: str = "",
    also: Sequence[int] = (),
) -> object:
    """Sends a body and returns the JSON object of the answer, {} if it is none; raises as `fetch` does.

    The statuses in `also` are no errors.
    """
    if offline():
        raise NoNetwork(f"{shown(address)}: the network is not used (--offline)")
    import requests

    _origin(address)
    own = {**headers, "User-Agent": "cnnjax"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with requests.request(
            method,
            address,
            data=body,
            headers=own,
            timeout=SECONDS,
            allow_redirects=False,
            auth=lambda request: request,
        ) as response:
            if response.status_code >= 300 and response.status_code not in also:
                raise UserError(f"{shown(address)}: {_refusal(response.status_code)}")
            return parse_json(response.content) if response.content.startswith(b"{") else {}
    except requests.RequestException as error:
        raise NoNetwork(f"{shown(address)}: {_cause(error)}") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(address)}: its answer is damaged: {error}") from None


def version(address: str) -> str:
    """What tells one file at an address from the next: its server's tag, date and size of it."""
    with _answer(address, {}, "") as response:
        return " ".join(
            response.headers.get(name, "") for name in ("etag", "last-modified", "content-length")
        )


def shown(address: str) -> str:
    """An address as errors and records have it: without what may be a secret."""
    return address.partition("?")[0]


@contextlib.contextmanager
def _alone(part: Path, path: Path) -> Iterator[FileIO | None]:
    """The unfinished file of a path, locked; None if another process finished it while it had the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with open(handle, "r+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that fetches {visible(path.name)}", file=sys.stderr)
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
            with _answer(remote.address, headers, remote.token) as response:
                if response.status_code == 416:  # there is more of it than the server has
                    file.truncate(0)
                    continue
                have, total = _start(response, begun, remote)
                file.seek(have)
                file.truncate()
                _check_room(part.parent, (total or 0) - have)
                etag = response.headers.get("etag", "")
                try:
                    for chunk in _chunks(response, (total or MOST_BYTES) - have, remote.address):
                        _write(file, chunk)
                        have += len(chunk)
                        advance(have, total)
                    if total in (None, have):
                        return
                    problem = "the connection was cut"
                except urllib3.exceptions.HTTPError as error:
                    problem = f"the connection was cut: {_cause(error)}"
            if not remote.digits and (not etag or etag.startswith("W/")):
                file.truncate(0)  # the next connection may have another file
                break
            if have <= begun:
                break
    raise NoNetwork(f"{shown(remote.address)}: {problem}")


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
            raise UserError(f"{shown(remote.address)}: the server sends another part than was asked for")
        have, total = begun, int(span[2])
    if total is not None and remote.size not in (None, total):
        raise UserError(f"{shown(remote.address)}: it has {total:,} bytes, not {remote.size:,}")
    return have, total


def _check_room(folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        advice = "free some space, or set XDG_CACHE_HOME to a folder on another disk"
        raise UserError(f"{folder} has room for {free:,} bytes; {needed:,} are needed; {advice}")


@contextlib.contextmanager
def _answer(address: str, headers: dict[str, str], token: str) -> Iterator["Response"]:
    """The successful response of an address, past redirects; the token goes to its own host alone."""
    if offline():
        raise NoNetwork(f"{shown(address)}: the network is not used (--offline)")
    import requests

    here, own = address, _origin(address)
    headers = {**headers, "Accept-Encoding": "identity", "User-Agent": "cnnjax"}  # sums are of whole files
    with requests.Session() as session:
        for attempt in range(2 * REDIRECTS):
            secret = {"Authorization": f"Bearer {token}"} if token and _origin(here) == own else {}
            try:
                response = session.get(
                    here,
                    headers=headers | secret,
                    stream=True,
                    timeout=SECONDS,
                    allow_redirects=False,
                    auth=lambda request: request,  # none of ~/.netrc
                )
            except requests.RequestException as error:
                raise NoNetwork(f"{shown(address)}: {_cause(error)}") from None
            except ValueError:  # of the library, which reads the address to go on to
                raise UserError(f"{shown(address)}: it is redirected to no address") from None
            with response:
                if response.is_redirect:
                    here = urljoin(here, response.headers["location"])
                    if _origin(here)[0] != own[0] and own[0] == "https":
                        raise UserError(f"{shown(address)}: it is redirected to an address without https")
                elif response.status_code in (429, 500, 502, 503, 504) and not attempt:
                    time.sleep(PAUSE)
                elif response.status_code in (200, 206, *[416] * ("Range" in headers)):
                    yield response
                    return
                else:
                    raise UserError(f"{shown(address)}: {_refusal(response.status_code)}")
    raise UserError(f"{shown(address)}: redirected more than {REDIRECTS} times")


def _refusal(status: int) -> str:
    if status in (401, 403):
        return f"{status}, not for everyone, or not there; a token that may read it goes into HF_TOKEN"
    return "404, there is no such file" if status == 404 else f"the server answers {status}"


def _origin(address: str) -> tuple[str, str, int | None]:
    """(scheme, host, port) of an address; a UserError if it is none of http or https without a password."""
    try:
        parts = urlsplit(address)
        origin = parts.scheme, parts.hostname or "", parts.port
    except ValueError:
        origin = "", "", None
    if origin[0] not in ("http", "https") or not origin[1] or "@" in parts.netloc:
        raise UserError(f"{shown(address).rpartition('@')[2]} is no address of the form https://host/file")
    return origin


def _chunks(response: "Response", most: int, address: str) -> Iterator[bytes]:
    while chunk := response.raw.read1(
        2**18
    ):  # what has come, where `iter_content` waits for more and loses it
        most -= len(chunk)
        if most < 0:
            raise UserError(f"{shown(address)}: it is longer than its server says")
        yield chunk


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain: what the system said."""
    while error.__context__ is not None:
        error = error.__context__
    return error


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
