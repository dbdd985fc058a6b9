"""Readers of idx files, CIFAR's binary archives, npz, and prepared TFDS folders.

Each checks what it reads and raises a UserError that names the file. Nothing is unpickled, and
tensorflow-datasets is imported in `read_prepared` alone.
"""

import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data.decode import decode_image
from cnnjax.data.sources.source import FileSource, check_labels, digest
from cnnjax.errors import UserError

IDX_PREFIX = {"train": "train", "test": "t10k"}


# What unpacks to more than both is taken for a decompression bomb, and not read into memory.
MAX_RATIO, ALWAYS_BYTES = 200, 2**28
MAX_CLASSES = 2**20


def _most_bytes(path: Path) -> int:
    return max(ALWAYS_BYTES, MAX_RATIO * path.stat().st_size)


def find_idx(folder: Path, name: str) -> Path | None:
    """The idx file of that name in the folder, gzipped or not; None if it is not there."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _unzipped(path: Path) -> bytes:
    """The file's bytes, unzipped if its name ends in .gz."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        most = _most_bytes(path)
        with gzip.open(path) as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise OSError(f"it unpacks to more than {most} bytes, {MAX_RATIO} times its own size")
        return data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy or download it again") from None


def read_idx(path: Path, ndim: int, sha256: str | None = None) -> np.ndarray:
    """Reads one idx file of unsigned bytes, gzipped or not.

    Args:
      path: the file; `.gz` is unzipped.
      ndim: 3 for images, 1 for labels.
      sha256: of the unzipped contents, checked if given.
    Returns: uint8 with `ndim` dimensions.
    Raises: UserError naming the file for a wrong checksum, magic number, size or length.
    """
    data = _unzipped(path)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{path}: SHA-256 of the unzipped contents is {hashlib.sha256(data).hexdigest()};"
            f" allowed: {sha256}; download it again, or load other data as idx:FOLDER"
        )
    magic, header = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    if data[:4] != magic or len(data) < header:
        raise UserError(
            f"{path}: starts with {data[:4].hex()}; allowed: {magic.hex()}, an idx file of unsigned"
            f" bytes with {ndim} dimensions"
        )
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
    expected, found = int(np.prod(shape, dtype=object)), len(data) - header
    if found != expected:
        what = "truncated" if found < expected else "followed by other bytes"
        raise UserError(f"{path}: {what}: {found} bytes after the header; allowed: {expected}, for {shape}")
    try:
        return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    except ValueError:  # no bytes, with dimensions beyond those of an array
        raise UserError(f"{path}: dimensions {shape} are too large") from None


def _read_idx_kind(
    folder: Path, split: str, kind: str, ndim: int, sha256: Mapping[str, str] | None
) -> np.ndarray:
    name = f"{IDX_PREFIX[split]}-{kind}-ubyte"
    path = find_idx(folder, name)
    if path is None:
        raise UserError(f"{folder}: {name}[.gz] is missing; copy the four idx files there")
    return read_idx(path, ndim, (sha256 or {}).get(name))


def read_idx_labels(folder: Path, split: str, sha256: Mapping[str, str] | None = None) -> np.ndarray:
    """Labels int32 [N] of the idx files in a folder, see `read_idx_split`."""
    return _read_idx_kind(folder, split, "labels-idx1", 1, sha256).astype(np.int32)


def read_idx_split(
    folder: Path, split: str, sha256: Mapping[str, str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, 1] and labels int32 [N] of the idx files in a folder.

    Args:
      folder: holds `train-images-idx3-ubyte[.gz]` and so on.
      split: "train" or "test" (whose files are called t10k).
      sha256: name without .gz -> checksum of the unzipped contents.
    Raises: UserError naming the file that is missing or wrong.
    """
    images = _read_idx_kind(folder, split, "images-idx3", 3, sha256)
    labels = read_idx_labels(folder, split, sha256)
    if len(images) != len(labels):
        raise UserError(f"{folder}: {len(images)} images and {len(labels)} labels in {split}")
    return images[..., None], labels


def read_cifar(
    path: Path, members: tuple[str, ...], label_bytes: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N] of CIFAR's binary version.

    A record is its labels, one byte each (CIFAR-100: coarse, then fine, which is used), and 3072
    bytes of red, green and blue planes (Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html).

    Args:
      path: the .tar.gz archive, or the folder that holds the .bin files.
      members: names of the .bin files of one split, in order.
      label_bytes: labels in each record.
      num_classes: labels must be below it.
    Raises: UserError naming the file that is missing or wrong.
    """
    blobs = _tar_members(path, members) if path.is_file() else {}
    rows = []
    for member in members:
        if path.is_dir():
            blobs[member] = _unzipped(path / member)
        if member not in blobs:
            raise UserError(f"{path}: {member} is missing; allowed: CIFAR's binary version")
        record = label_bytes + 3072
        if not blobs[member] or len(blobs[member]) % record:
            raise UserError(
                f"{path}: {member} has {len(blobs[member])} bytes; allowed: whole records of {record}"
            )
        rows.append(np.frombuffer(blobs[member], np.uint8).reshape(-1, record))
        check_labels(rows[-1][:, label_bytes - 1], num_classes, f"{path}: {member}")
    table = np.concatenate(rows)
    images = table[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), table[:, label_bytes - 1].astype(np.int32)


def _tar_members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The bytes of the named files of a tar archive, whatever folder they are in."""
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.size > _most_bytes(path):
                    raise OSError(f"{member.name} claims {member.size} bytes")
                if member.isfile() and name in names:
                    found[name] = archive.extractfile(member).read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy or download it again") from None
    return found


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file: {split}_image uint8 [N, H, W(, C)], {split}_label, class_names.

    Raises: UserError naming the file, for one that cannot be read or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _most_bytes(path):
            raise OSError(f"it claims {size} bytes, more than {MAX_RATIO} times its own size")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
        SyntaxError,
        RuntimeError,
        MemoryError,
        LookupError,
    ) as error:  # RuntimeError: of zipfile, for a password or an unknown compression
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as npz without pickle ({reason})") from None


def npz_splits(arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The splits that `read_npz` has found images of."""
    return tuple(name for name in ("train", "validation", "test") if f"{name}_image" in arrays)


def npz_split(arrays: dict[str, np.ndarray], split: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and labels int32 [N] of one split of `read_npz(path)`."""
    images, labels = arrays[f"{split}_image"], arrays.get(f"{split}_label")
    if labels is None or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: {split}_label is missing or not of whole numbers")
    bad = np.flatnonzero((labels < 0) | (labels >= MAX_CLASSES))
    if bad.size:
        label = labels.ravel()[bad[0]]
        raise UserError(f"{path}: label {label} of example {bad[0]}; allowed: 0 to {MAX_CLASSES - 1}")
    return (images[..., None] if images.ndim == 3 else images), labels.astype(np.int32)


def npz_class_names(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    """The names of the classes in the order of the labels; () where the file has none."""
    names = arrays.get("class_names", np.zeros(0))
    if names.ndim != 1:
        raise UserError(f"{path}: class_names is {list(names.shape)}; allowed: one name for each class")
    return tuple(map(str, names))


def find_prepared(name: str, root: Path) -> Path | None:
    """The folder NAME/VERSION of a TFDS data set prepared as ArrayRecord, the newest one, or None.

    Args:
      name: "mnist", with a config "imagenet_resized/32x32", with a version "mnist:3.0.1".
      root: a folder as in `tfds.load(data_dir=)`, or the folder NAME/VERSION itself.
    """
    path, _, version = name.partition(":")
    found = [p.parent for p in root.glob(f"{path}/{version or '*'}/dataset_info.json")]
    if root.parent.name == path and (root / "dataset_info.json").is_file():
        found.append(root)
    numbered = [p for p in found if p.name.replace(".", "").isdigit()]
    readable = [p for p in numbered if any(p.glob("*.array_record*"))]
    return max(readable, key=lambda p: tuple(map(int, p.name.split("."))), default=None)


def prepared_splits(folder: Path) -> tuple[str, ...]:
    """Names of the splits of a prepared TFDS folder."""
    return tuple(_builder(folder).info.splits)


def _builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(folder))


def read_prepared(folder: Path, split: str, name: str, size: int | None = None) -> FileSource:
    """One split of a prepared TFDS folder in ArrayRecord files, read without TensorFlow.

    Args:
      folder: .../NAME/VERSION with dataset_info.json, features.json and the records.
      split: one of `prepared_splits(folder)`.
      name: what the source is called.
      size: resize the short side to it and cut the middle square.
    Raises: UserError for records that are no images with class labels, or not ArrayRecord.
    """
    import tensorflow_datasets as tfds

    builder = _builder(folder)
    features = builder.info.features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    if kinds.get("image") != "Image" or kinds.get("label") != "ClassLabel":
        raise UserError(f"{folder}: features {kinds}; allowed: image: Image, label: ClassLabel")
    if (stored := builder.info.file_format.value) != "array_record":
        raise UserError(f"{folder}: records are {stored}; prepare it with file_format='array_record'")
    encoded = {"image": tfds.decode.SkipDecoding()}  # TFDS decodes with OpenCV or Pillow
    records = builder.as_data_source(split, decoders=encoded)
    channels = features["image"].shape[-1] or 3
    files = sorted(folder.glob(f"*-{split}.*"))
    listing = [(p.name, p.stat().st_size) for p in files]
    contents = digest((folder / "dataset_info.json").read_text(), listing, size)
    reader = _RecordReader(records, f"{folder} {split}", channels, size)
    positions = np.arange(len(records))
    names = tuple(features["label"].names)
    return FileSource(reader, positions, contents, None, names, name, split)


class _RecordReader:
    """Position -> example of a TFDS data source whose images are left encoded."""

    def __init__(self, records: Any, what: str, channels: int, size: int | None):
        self.records, self.what, self.channels, self.size = records, what, channels, size

    def __call__(self, position: int) -> dict[str, Any]:
        record = self.records[position]
        what = f"{self.what} record {position}"
        image = decode_image(record["image"], what, self.channels, self.size)
        return {"image": image, "label": int(record["label"])}
