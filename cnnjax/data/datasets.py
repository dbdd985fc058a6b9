"""Data sets by name: their facts, where they are found, and `load`.

A registered name (`DATASETS`) is looked for in this order: the `data_dir` argument,
`$CNNJAX_DATA_DIR`, Debian's folder, a prepared TFDS folder, the cache of earlier downloads, a
download. Other data is written as `idx:FOLDER`, `folder:PATH` (of a folder, .zip or .tar), `npz:FILE`,
`parquet:FOLDER` (of the Hugging Face Hub), `records:FOLDER` (of `cnnjax data prepare`) or `tfds:NAME`.
"""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data import downloads
from cnnjax.data.catalog import DATASETS, MINI, DatasetInfo
from cnnjax.data.files import cache_folder, make_cache_folder
from cnnjax.data.sources import folder as folders
from cnnjax.data.sources import parquet, readers, records
from cnnjax.data.sources.source import ArraySource, Source, hold_out, to_memory
from cnnjax.errors import UserError, unknown

TFDS_NAME = re.compile(r"\w+(/[\w.-]+)?(:[0-9.]+)?")


def _given_folders(data_dir: str | os.PathLike | None) -> list[Path]:
    given = (data_dir, os.environ.get("CNNJAX_DATA_DIR"))
    return [Path(p).expanduser() for p in given if p]


def _tfds_folder() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _places(info: DatasetInfo, data_dir: str | os.PathLike | None) -> list[tuple[str, Path]]:
    """(kind, folder) in the order they are tried; kind is "files" or "tfds"."""
    if not info.archives:
        return [("files", MINI.parent)]
    places = []
    for root in _given_folders(data_dir):
        places += [("files", root / info.name), ("files", root), ("tfds", root)]
    if info.system:
        places.append(("files", Path(info.system[0])))
    return [*places, ("tfds", _tfds_folder()), ("files", cache_folder(info.name))]


def find(name: str, data_dir: str | os.PathLike | None = None) -> tuple[str, Path] | None:
    """(kind, path) where a registered data set is on this machine, or None; nothing is loaded."""
    info = DATASETS[name]
    for kind, folder in _places(info, data_dir):
        path = readers.find_prepared(name, folder) if kind == "tfds" else info.find(folder)
        if path is not None:
            return kind, path
    return None


def available(name: str, data_dir: str | os.PathLike | None = None) -> str | None:
    """Where a registered data set was found, in words for a table, or None."""
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    found = find(name, data_dir)
    if found is None:
        return None
    kind, path = found
    return "in the package" if path == MINI else f"{path}{' (TFDS)' if kind == 'tfds' else ''}"


def describe(data_dir: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """One row for each registered data set: name, train, test, classes, image, found, licence."""
    return [
        {
            "name": info.name,
            "train": info.splits["train"],
            "test": info.splits["test"],
            "classes": info.num_classes,
            "image": "x".join(map(str, info.image_shape)),
            "found": available(info.name, data_dir),
            "description": info.description,
            "licence": info.licence,
            "source": info.source,
        }
        for info in DATASETS.values()
    ]


def _not_found(info: DatasetInfo, data_dir: str | os.PathLike | None, failure: str) -> UserError:
    tried = ", ".join(dict.fromkeys(str(place) for _, place in _places(info, data_dir)))
    system = f"apt-get install {info.system[1]}, or " if info.system else ""
    files = ", ".join(archive.name for archive in info.archives)
    return UserError(
        f"data set {info.name} is not here: tried {tried}, and {failure};"
        f" to get it: {system}put {files} (from {info.source}) in a folder and name that as"
        " --config.data.dir or CNNJAX_DATA_DIR"
    )


def _read_registered(
    info: DatasetInfo, split: str, data_dir: str | os.PathLike | None, download: bool
) -> ArraySource:
    """One official split of a registered data set, in memory, its size checked."""
    found = find(info.name, data_dir)
    if found is None and not download:
        raise _not_found(info, data_dir, "a download was not allowed")
    if found is None:
        try:
            downloads.download(info.archives, make_cache_folder(info.name), info.mirrors)
        except (OSError, UserError) as error:
            raise _not_found(info, data_dir, str(error)) from None
        found = "files", info.find(cache_folder(info.name))
    kind, path = found
    if kind == "tfds":
        records = to_memory(readers.read_prepared(path, split, info.name))
        image, label = records.images, records.labels
    else:
        image, label = info.read(path, split)
    expected = (info.splits[split], *info.image_shape)
    if image.shape != expected:
        raise UserError(f"{path}: {split} images are {image.shape}; allowed: {expected}")
    return ArraySource(image, label, info.class_names, info.name, split)


@dataclasses.dataclass(frozen=True)
class Place:
    """Data named by its form and place, as in 'folder:PATH'.

    Attributes:
      name: all of that.
      rest: what follows the colon.
      size: short side of the images, or None.
      data_dir: where prepared data sets may be.
    """

    name: str
    rest: str
    size: int | None
    data_dir: str | os.PathLike | None

    @property
    def path(self) -> Path:
        return Path(self.rest).expanduser()


Opened = tuple[tuple[str, ...], Callable[[str], Source]]  # the official splits, and a function that opens one


def _open_idx(place: Place) -> Opened:
    """Class names are not in idx files: the labels of `train` say how many there are."""
    path = place.path
    stems = {split: f"{prefix}-images-idx3-ubyte" for split, prefix in readers.IDX_PREFIX.items()}
    splits = tuple(split for split, stem in stems.items() if readers.find_idx(path, stem))
    if "train" not in splits:
        raise UserError(f"{path}: no {stems['train']}[.gz]; allowed: a folder of idx files")

    def read(split: str) -> Source:
        image, label = readers.read_idx_split(path, split)
        train = readers.read_idx_labels(path, "train")
        names = tuple(map(str, range(int(train.max(initial=0)) + 1)))
        return ArraySource(image, label, names, f"idx:{path}", split)

    return splits, read


def _open_npz(place: Place) -> Opened:
    """Class names are its array `class_names`, else the labels of `train` counted."""
    path = place.path
    arrays = readers.read_npz(path)
    splits = readers.npz_splits(arrays)
    if "train" not in splits:
        raise UserError(f"{path}: arrays {sorted(arrays)}; allowed: train_image, train_label, ...")

    def read(split: str) -> Source:
        image, label = readers.npz_split(arrays, split, path)
        train = readers.npz_split(arrays, "train", path)[1]
        names = readers.npz_class_names(arrays, path) or tuple(map(str, range(int(train.max(initial=0)) + 1)))
        return ArraySource(image, label, names, f"npz:{path}", split)

    return splits, read


def _open_folder(place: Place) -> Opened:
    opened = folders.ImageFolder(place.path)
    return tuple(opened.splits), lambda split: opened.source(split, place.name, place.size)


def _open_parquet(place: Place) -> Opened:
    opened = parquet.ParquetFolder(place.path)
    return tuple(opened.files), lambda split: opened.source(split, place.name, place.size)


def _open_records(place: Place) -> Opened:
    splits = tuple(records.read_facts(place.path)["splits"])
    return splits, lambda split: records.read_split(place.path, split, place.name)


def _open_prepared(place: Place) -> Opened:
    name = place.rest
    if not TFDS_NAME.fullmatch(name):
        raise UserError(f"data set 'tfds:{name}'; allowed: tfds:NAME[/CONFIG][:VERSION]")
    roots = [*_given_folders(place.data_dir), _tfds_folder()]
    path = next(filter(None, (readers.find_prepared(name, root) for root in roots)), None)
    if path is None:
        raise UserError(
            f"data set tfds:{name} is not here as ArrayRecord: tried {', '.join(map(str, roots))};"
            f" `cnnjax data prepare tfds:{name}` makes it (file_format=array_record); name another folder as"
            " --config.data.dir, CNNJAX_DATA_DIR or TFDS_DATA_DIR"
        )
    splits = readers.prepared_splits(path)
    return splits, lambda split: readers.read_prepared(path, split, place.name, place.size)


# What a name may begin with: what follows the colon, and how that is opened.
FORMS: dict[str, tuple[str, Callable[[Place], Opened]]] = {
    "idx": ("FOLDER", _open_idx),
    "folder": ("PATH", _open_folder),
    "parquet": ("FOLDER", _open_parquet),
    "records": ("FOLDER", _open_records),
    "npz": ("FILE", _open_npz),
    "tfds": ("NAME", _open_prepared),
}


def forms() -> list[str]:
    """['idx:FOLDER', ...]: how data without a registered name is written."""
    return [f"{form}:{place}" for form, (place, _) in FORMS.items()]


def _open(name: str, data_dir: str | os.PathLike | None, size: int | None, download: bool) -> Opened:
    """(official splits, split -> source) of any name that `load` takes."""
    form, colon, rest = name.partition(":")
    if not colon:
        if name not in DATASETS:
            raise unknown("data set", name, [*DATASETS, *forms()])
        info = DATASETS[name]
        return tuple(info.splits), lambda split: _read_registered(info, split, data_dir, download)
    if not rest:
        raise UserError(f"data set {name!r} names no place; allowed: {', '.join(forms())}")
    if form not in FORMS:
        raise unknown("form of data set", f"{form}:", [f"{form}:" for form in FORMS])
    return FORMS[form][1](Place(name, rest, size, data_dir))


def _held_out_count(size: int, num_validation: int, validation_fraction: float) -> int:
    """How many of `size` examples are held out; raises UserError unless some, and not all."""
    if num_validation and validation_fraction:
        raise UserError(
            f"num_validation={num_validation} and validation_fraction={validation_fraction};"
            " allowed: one of them, the other 0"
        )
    if not 0 <= validation_fraction < 1:
        raise UserError(f"validation_fraction={validation_fraction}; allowed: 0 <= fraction < 1")
    count = num_validation or round(validation_fraction * size)
    if not 0 < count < size:
        given = f"num_validation={num_validation}, validation_fraction={validation_fraction}"
        raise UserError(f"{given}: {count} of {size} held out; allowed: 1 to {size - 1}")
    return count


def official_splits(name: str, data_dir: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The splits that a data set has of itself, nothing held out."""
    return _open(name, data_dir, None, True)[0]


def tfds_folder(data_dir: str | os.PathLike | None = None) -> Path:
    """Where TFDS data sets are prepared."""
    return [*_given_folders(data_dir), _tfds_folder()][0]


def load(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    num_validation: int = 0,
    validation_fraction: float = 0.0,
    seed: int = 0,
    size: int | None = None,
    download: bool = True,
) -> Source:
    """Opens one split of a data set.

    `validation` is held out of `train` by seed, a like share of every class (where labels are not
    known without reading all, as in tfds:NAME, any examples alike), and `train` then is the rest.

    Args:
      name: of `DATASETS`, or one of `forms()`.
      split: "train", "validation", "test", or another one that a TFDS folder has.
      data_dir: where to look first, see the top of this file.
      num_validation: examples held out, or
      validation_fraction: the part of train held out, in [0, 1).
      seed: of the draw; the indices are a pure function of it.
      size: for image folders, parquet and tfds:NAME: short side to it, and the middle square.
      download: whether a registered data set that is not here may be downloaded.
    Returns: an `ArraySource` for registered names, idx and npz; else a `FileSource`.
    Raises: UserError naming what does not exist and what does.
    """
    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"data_dir={str(data_dir)!r} is not a folder; allowed: a folder, or none")
    if seed < 0:
        raise UserError(f"seed={seed}; allowed: a whole number >= 0")
    official, read = _open(name, data_dir, size, download)
    held_out = bool(num_validation or validation_fraction)
    if held_out and "validation" in official:
        raise UserError(
            f"{name} has a validation split of its own; set num_validation and validation_fraction to 0"
        )
    if split not in official and not (held_out and split == "validation"):
        names = [*official, "validation"] if held_out else official
        hint = "" if held_out or split != "validation" else "; num_validation holds one out of train"
        raise UserError(f"{unknown(f'split of {name}', split, names)}{hint}")
    if not held_out or split not in ("train", "validation"):
        return read(split)
    train = read("train")
    count = _held_out_count(len(train), num_validation, validation_fraction)
    labels = np.zeros(len(train), np.int32) if train.labels is None else train.labels
    rest, drawn = hold_out(labels, count, seed)
    return train.subset(drawn if split == "validation" else rest, split)
