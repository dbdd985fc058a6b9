"""Fetches the original archives of a data set, checks them, and puts them in place whole."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnjax.data.files import sha256_of
from cnnjax.errors import UserError


def check(path: Path, sha256: str) -> None:
    """Raises UserError naming the file if its SHA-256 is not the pinned one."""
    if (actual := sha256_of(path)) != sha256:
        raise UserError(f"{path}: SHA-256 is {actual}; allowed: {sha256}; delete it and load again")


def download(archives: Mapping[str, str], folder: Path, mirrors: Sequence[str]) -> None:
    """Fetches the archives (name -> SHA-256) that are not in the folder yet, with a bar in a terminal.

    Pooch writes each to a temporary file beside its place, checks and renames it: the folder holds whole,
    checked files only, whatever interrupts it. `mirrors` are tried in order.
    Raises: UserError naming the address, if no mirror answers or a checksum is wrong.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    bar, headers = sys.stderr.isatty(), {"Accept-Encoding": "identity"}  # checksums are of compressed files
    fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**20, timeout=30, headers=headers)
    for name, sha256 in archives.items():
        path, failures = folder / name, []
        if path.is_file() and sha256_of(path) == sha256:
            continue
        for mirror in mirrors:
            address = f"{mirror.rstrip('/')}/{name}"
            try:
                pooch.retrieve(address, sha256, fname=name, path=folder, downloader=fetch)
            except OSError as error:  # those of requests too
                failures.append(f"{address}: {_cause(error)}")
            except ValueError:
                failures.append(f"{address}: another SHA-256 than {sha256}")
            else:
                path.chmod(0o644)  # temporary files are readable by their owner alone
                break
        else:
            raise UserError(f"download failed: {'; '.join(failures)}")


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain: what the system said."""
    while error.__context__ is not None:
        error = error.__context__
    return error
