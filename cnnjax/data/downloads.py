"""Fetches the original archives of a data set, checks them, and puts them in place whole."""

import dataclasses
import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cnnjax.data.files import sha256_of
from cnnjax.errors import UserError

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file to fetch: its name, its length in bytes, and its SHA-256 in hex."""

    name: str
    num_bytes: int
    sha256: str


def check(path: Path, archive: Archive) -> None:
    """Raises UserError naming the file where its SHA-256 is not the pinned one."""
    if (found := sha256_of(path)) != archive.sha256:
        raise UserError(f"{path}: SHA-256 is {found}; allowed: {archive.sha256}; delete it and load again")


def download(archives: Sequence[Archive], folder: Path, mirrors: Sequence[str]) -> None:
    """Fetches the archives that are not in the folder yet, with a progress bar on stderr.

    Each is written to a temporary file beside its place, checked, and renamed: the folder holds
    whole, checked files only, whatever interrupts it.

    Args:
      archives: what to fetch.
      folder: where to; made if need be.
      mirrors: addresses of folders that hold all of them, in the order they are tried.
    Raises: UserError naming the address, where no mirror answers or a checksum is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    with bar as progress:
        for archive in archives:
            path = folder / archive.name
            if path.is_file() and path.stat().st_size == archive.num_bytes:
                check(path, archive)
                continue
            _fetch_first(archive, path, mirrors, progress)


def _fetch_first(archive: Archive, path: Path, mirrors: Sequence[str], progress: Progress) -> None:
    """Fetches one archive from the first mirror that gives it whole."""
    failures = []
    for mirror in mirrors:
        address = mirror.rstrip("/") + "/" + archive.name
        try:
            return _fetch(archive, path, address, progress)
        except UserError as error:
            failures.append(str(error))
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            failures.append(f"{address}: {error}")
    raise UserError(f"download failed: {'; '.join(failures)}")


def _fetch(archive: Archive, path: Path, address: str, progress: Progress) -> None:
    """Streams one address to a temporary file, checks it, renames it to its place."""
    task = progress.add_task(archive.name, total=archive.num_bytes)
    sha, length = hashlib.sha256(), 0
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer,
        ):
            # One byte more than expected is enough to know that it is another file.
            while length <= archive.num_bytes and (chunk := answer.read(CHUNK)):
                file.write(chunk)
                sha.update(chunk)
                length += len(chunk)
                progress.update(task, completed=length)
        if sha.hexdigest() != archive.sha256:
            raise UserError(
                f"{address}: {length} bytes with SHA-256 {sha.hexdigest()};"
                f" allowed: {archive.num_bytes} with {archive.sha256}"
            )
        os.chmod(temporary, 0o644)  # mkstemp's is readable by its owner alone
        os.replace(temporary, path)
    finally:
        progress.remove_task(task)
        Path(temporary).unlink(missing_ok=True)
