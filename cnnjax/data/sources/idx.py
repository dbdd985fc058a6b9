"""idx files, as MNIST and its relatives are published, gzipped or not."""

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cnnjax.data.sources import arrays, sets
from cnnjax.data.sources.archive import read_bytes
from cnnjax.data.sources.source import Arrays, ArraySource, Opened, Place, Shape
from cnnjax.errors import UserError

PREFIX = {"train": "train", "test": "t10k"}


def find_idx(folder: Path, name: str) -> Path | None:
    """The idx file of that name in the folder, gzipped or not; None if it is not there."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def read_idx(path: Path, ndim: int, sha256: str | None = None) -> np.ndarray:
    """Reads one idx file of unsigned bytes: uint8 with `ndim` dimensions, 3 of images or 1 of labels.

    Raises: UserError naming the file for a wrong checksum (of the unzipped contents), magic number or size.
    """
    data = read_bytes(path)
    if sha256 is not None and (actual := hashlib.sha256(data).hexdigest()) != sha256:
        given = f"{path}: SHA-256 of the unzipped contents is {actual}; allowed: {sha256}"
        raise UserError(f"{given}; download it again, or load other data as idx:FOLDER")
    magic, header = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    if data[:4] != magic or len(data) < header:
        allowed = f"{magic.hex()}, an idx file of unsigned bytes with {ndim} dimensions"
        raise UserError(f"{path}: starts with {data[:4].hex()}; allowed: {allowed}")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
    expected, after = int(np.prod(shape, dtype=object)), len(data) - header
    if after != expected:
        what = "truncated" if after < expected else "followed by other bytes"
        raise UserError(f"{path}: {what}: {after} bytes after the header; allowed: {expected}, for {shape}")
    try:
        return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    except ValueError:  # no bytes, with dimensions beyond those of an array
        raise UserError(f"{path}: dimensions {shape} are too large") from None


def _read_kind(folder: Path, split: str, kind: str, ndim: int, sha256: Mapping[str, str]) -> np.ndarray:
    name = f"{PREFIX[split]}-{kind}-ubyte"
    if (path := find_idx(folder, name)) is None:
        raise UserError(f"{folder}: {name}[.gz] is missing; copy the four idx files there")
    return read_idx(path, ndim, sha256.get(name))


def read_split(folder: Path, split: str, sha256: Mapping[str, str] | None = None) -> Arrays:
    """Images uint8 [N, H, W, 1] and labels int32 [N] of the idx files (`train-images-idx3-ubyte[.gz]`, ...).

    `sha256` is name without .gz -> checksum of unzipped contents. UserError names a missing or wrong file.
    """
    images = _read_kind(folder, split, "images-idx3", 3, sha256 or {})
    labels = _read_kind(folder, split, "labels-idx1", 1, sha256 or {}).astype(np.int32)
    if len(images) != len(labels):
        raise UserError(f"{folder}: {len(images)} images and {len(labels)} labels in {split}")
    return images[..., None], labels


def open_idx(place: Place) -> Opened:
    """A folder of idx files; they hold no class names, so the labels of all splits are counted."""
    folder = place.path
    stems = {split: f"{prefix}-images-idx3-ubyte" for split, prefix in PREFIX.items()}
    splits = tuple(split for split, stem in stems.items() if find_idx(folder, stem))
    if not splits:
        raise UserError(f"{folder}: no {stems['train']}[.gz]; allowed: a folder of idx files")
    labels = {split: _read_kind(folder, split, "labels-idx1", 1, {}) for split in place.chosen(splits)}
    known = sets.read_labels(labels, (), folder)
    sets.check_shapes({split: _image_shape(folder, stems[split]) for split in known.splits}, folder)

    def read(split: str) -> ArraySource:
        images, numbers = read_split(folder, split)
        every = {split: images}
        if images.size and images.max() <= 1:  # black, or of 0 to 1: the other splits tell
            every |= {other: read_split(folder, other)[0] for other in splits if other != split}
        scaled, told = arrays.to_bytes(every, folder)
        notes = (*known.notes, *told)
        return ArraySource(scaled[split], numbers, known.class_names, place.name, split, notes=notes)

    return Opened(known.splits, read, known.notes)


def _image_shape(folder: Path, name: str) -> Shape:
    """[H, W, 1] as the header says."""
    path = find_idx(folder, name)
    assert path is not None
    with contextlib.suppress(OSError, EOFError, zlib.error):  # else `read_idx` says what is wrong
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(16)
        return int.from_bytes(header[8:12], "big"), int.from_bytes(header[12:16], "big"), 1
    return 0, 0, 0
