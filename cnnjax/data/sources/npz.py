"""npz files: arrays {split}_image uint8 [N, H, W(, C)] and {split}_label, maybe class_names; no pickles."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cnnjax.data.sources.archive import MAX_RATIO, most_bytes
from cnnjax.data.sources.source import Arrays, ArraySource, Opened, Place, as_labels, numbered_classes
from cnnjax.errors import UserError


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file; raises UserError naming one that is damaged or holds Python objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > most_bytes(path):
            raise OSError(f"it claims {size} bytes, more than {MAX_RATIO} times its own size")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as npz without pickle ({reason})") from None


def read_split(arrays: Mapping[str, np.ndarray], split: str, path: Path) -> Arrays:
    """Images uint8 [N, H, W, C] and labels int32 [N] of one split of `read_npz(path)`."""
    images, labels = arrays[f"{split}_image"], arrays.get(f"{split}_label")
    if labels is None:
        raise UserError(f"{path}: {split}_label is missing; allowed: a whole number for each image")
    return (images[..., None] if images.ndim == 3 else images), as_labels(labels, f"{path}: {split}_label")


def open_npz(place: Place) -> Opened:
    """Its classes are named in the array `class_names`, else the labels of `train` are counted."""
    path = place.path
    arrays = read_npz(path)
    splits = tuple(split for split in ("train", "validation", "test") if f"{split}_image" in arrays)
    if "train" not in splits:
        raise UserError(f"{path}: arrays {sorted(arrays)}; allowed: train_image, train_label, ...")
    given = arrays.get("class_names", np.zeros(0))

    def read(split: str) -> ArraySource:
        images, labels = read_split(arrays, split, path)
        if given.ndim != 1:
            raise UserError(f"{path}: class_names is {list(given.shape)}; allowed: one name for each class")
        names = (name.decode() if isinstance(name, bytes) else str(name) for name in given)
        classes = tuple(names) or numbered_classes(read_split(arrays, "train", path)[1])
        return ArraySource(images, labels, classes, place.name, split)

    return Opened(splits, read)
