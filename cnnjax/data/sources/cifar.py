"""CIFAR's binary version: an archive or folder of records (www.cs.toronto.edu/~kriz/cifar.html)."""

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnnjax.data.sources.archive import most_bytes, read_bytes
from cnnjax.data.sources.source import Arrays, as_labels
from cnnjax.errors import UserError


def read_cifar(path: Path, members: Sequence[str], label_bytes: int, num_classes: int) -> Arrays:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N] of the .bin files of one split, in order.

    `path` is the .tar.gz archive, or the folder that holds the files. A record is `label_bytes` labels, one
    byte each (CIFAR-100: coarse, then fine, which is used), and 3072 bytes of red, green and blue planes
    (Krizhevsky 2009). UserError names the file that is missing or wrong.
    """
    archived = _tar_members(path, members) if path.is_file() else {}
    rows = []
    for member in members:
        if path.is_file() and member not in archived:
            raise UserError(f"{path}: {member} is missing; allowed: CIFAR's binary version")
        data = archived[member] if path.is_file() else read_bytes(path / member)
        record = label_bytes + 3072
        if not data or len(data) % record:
            raise UserError(f"{path}: {member} has {len(data)} bytes; allowed: whole records of {record}")
        rows.append(np.frombuffer(data, np.uint8).reshape(-1, record))
        as_labels(rows[-1][:, label_bytes - 1], f"{path}: {member}", num_classes)
    table = np.concatenate(rows)
    images = table[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), table[:, label_bytes - 1].astype(np.int32)


def _tar_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of the named files of a tar archive, whatever folder they are in."""
    members = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.size > most_bytes(path):
                    raise OSError(f"{member.name} claims {member.size} bytes")
                file = archive.extractfile(member) if member.isfile() and name in names else None
                if file is not None:
                    members[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy or download it again") from None
    return members
