"""npz files: images and labels of each split as arrays, maybe the names of the classes; no pickles.

An array is named by its split and kind in any order and case (`train_image`, `x_train`, `TestLabels`);
without a split it is of train. What the arrays may hold is in `arrays`.
"""

import itertools
import re
import zipfile
from pathlib import Path

import numpy as np

from cnnjax.data.files import open_file
from cnnjax.data.sources import arrays, sets
from cnnjax.data.sources.archive import MAX_RATIO, most_bytes
from cnnjax.data.sources.layout import SPLIT_WORDS, SPLITS
from cnnjax.data.sources.source import Arrays, ArraySource, Opened, Place
from cnnjax.errors import UserError, listed

KINDS = {
    **dict.fromkeys(("image", "images", "img", "imgs", "x", "data"), "image"),
    **dict.fromkeys(("label", "labels", "y", "target", "targets"), "label"),
}
CLASS_NAMES = ("", "class name")
NAMES = {  # of an array in small letters, without what is between its words -> split and kind
    "".join(words): (split, kind)
    for word, kind in KINDS.items()
    for part, split in ({"": "train"} | SPLIT_WORDS).items()
    for words in itertools.permutations((word, part))
}
NAMES |= dict.fromkeys(("classnames", "classes", "labelnames", "targetnames"), CLASS_NAMES)


def read_npz(path: Path, *, within: Path | None = None) -> dict[str, np.ndarray]:
    """All arrays of an npz file; raises UserError naming one that is damaged or holds Python objects.

    `within` is that of `files.open_file`.
    """
    with open_file(path, within=within) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > most_bytes(path):
                raise OSError(f"it claims {size} bytes, more than {MAX_RATIO} times its own size")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path}: cannot be read as npz without pickle, or is damaged ({reason})"
            ) from None


def read_split(path: Path, split: str) -> Arrays:
    """Images uint8 [N, H, W, 1] and labels int32 [N] of the file that comes with the package."""
    given = read_npz(path)
    return given[f"{split}_image"][..., None], given[f"{split}_label"].astype(np.int32)


def open_npz(place: Place) -> Opened:
    """Its classes are those of `class_names`, else those of the labels of all splits."""
    path, given = place.path, read_npz(place.path)
    found: dict[tuple[str, str], str] = {}
    for name in given:
        meaning = NAMES.get(re.sub(r"[\W_]", "", name).lower())
        if meaning and (other := found.setdefault(meaning, name)) != name:
            both = f"{other} and {name} are both the {' '.join(meaning).strip()}s"
            raise UserError(f"{path}: {both}; remove one")
    splits = [split for split in SPLITS if (split, "image") in found]
    if not splits:
        allowed = "train_image, train_label, test_image, ..., or x_train, y_train, ..."
        raise UserError(f"{path}: arrays {listed(sorted(given))}; allowed: {allowed}")
    images, told = arrays.to_bytes({split: given[found[split, "image"]] for split in splits}, path)
    splits = place.chosen(splits)  # after the scale, which is that of all
    with_labels = {split: given[found[split, "label"]] for split in splits if (split, "label") in found}
    listed_names = given.get(found.get(CLASS_NAMES, ""), np.zeros(0))
    labels, class_names = arrays.to_numbers(
        with_labels, arrays.as_text(listed_names, f"{path}: class_names"), path
    )
    for split in splits:
        labels.setdefault(split, np.full(len(images[split]), sets.UNLABELLED, np.int32))
    known = sets.read_labels({split: labels[split] for split in splits}, class_names, path)
    sets.check_shapes({split: images[split].shape[1:] for split in known.splits}, path)
    others = sorted(given.keys() - found.values())
    notes = (*known.notes, *told, *([f"left out: arrays {listed(others)}"] if others else []))

    def read(split: str) -> ArraySource:
        return ArraySource(
            images[split], known.labels[split], known.class_names, place.name, split, notes=notes
        )

    return Opened(known.splits, read, notes)
