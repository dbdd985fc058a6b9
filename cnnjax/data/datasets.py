"""Data sets by name: where they are found, and `load`.

A registered name (`DATASETS`) is searched for in this order: the `data_dir` argument,
`$CNNJAX_DATA_DIR`, Debian's folder, a prepared TFDS folder, the cache of earlier downloads; then it is
downloaded. Other data is written as `idx:FOLDER`, `folder:PATH` (of a folder, .zip or .tar), `npz:FILE`,
`parquet:FOLDER` (of the Hugging Face Hub), `tar:FOLDER` (of WebDataset), `records:FOLDER` (of `cnnjax data
prepare`) or `tfds:NAME`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data import fetch, files
from cnnjax.data import recipe as recipes
from cnnjax.data.catalog import DATASETS, MINI, DatasetInfo
from cnnjax.data.recipe import Recipe
from cnnjax.data.sources import folder, idx, npz, parquet, records, sets, tfds, webdataset
from cnnjax.data.sources import source as sources
from cnnjax.data.sources.classes import with_classes
from cnnjax.data.sources.source import (
    ArraySource,
    DataDir,
    FileSource,
    Listed,
    Opened,
    Place,
    Shape,
    Source,
    listed,
)
from cnnjax.errors import UserError, check_count, check_fraction, check_local, unknown

# What a name may begin with: what follows the colon, and how that is opened.
FORMS: dict[str, tuple[str, Callable[[Place], Opened]]] = {
    "idx": ("FOLDER", idx.open_idx),
    "folder": ("PATH", folder.open_folder),
    "parquet": ("FOLDER", parquet.open_parquet),
    "records": ("FOLDER", records.open_records),
    "tar": ("FOLDER", webdataset.open_tars),
    "npz": ("FILE", npz.open_npz),
    "tfds": ("NAME", tfds.open_tfds),
}


def forms() -> list[str]:
    """['idx:FOLDER', ...]: how data without a registered name is written."""
    return [f"{form}:{place}" for form, (place, _) in FORMS.items()]


def _places(info: DatasetInfo, data_dir: DataDir) -> list[tuple[str, Path]]:
    """(kind, folder) in the order they are tried; kind is "files" or "tfds"."""
    if not info.archives:
        return [("files", MINI.parent)]
    given = sources.data_folders(data_dir)
    places = [place for r in given for place in (("files", r / info.name), ("files", r), ("tfds", r))]
    places += [("files", Path(info.system[0]))] if info.system else []
    with contextlib.suppress(UserError):  # no home
        places.append(("tfds", tfds.tfds_folders(None)[-1]))
    with contextlib.suppress(UserError, files.OpenToOthers):  # a download tells
        files.check_cache_folder(info.name)
        places.append(("files", files.cache_folder(info.name)))
    return places


def find(name: str, data_dir: DataDir = None) -> tuple[str, Path] | None:
    """(kind, path) of a registered data set that is available locally, or None; nothing is loaded."""
    for kind, place in _places(DATASETS[name], data_dir):
        if path := tfds.find_prepared(name, place) if kind == "tfds" else DATASETS[name].layout.find(place):
            return kind, path
    return None


def available(name: str, data_dir: DataDir = None) -> str | None:
    """Where a registered data set was found, in words for a table, or None."""
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    if (place := find(name, data_dir)) is None:
        return None
    kind, path = place
    return "in the package" if path == MINI else f"{path}{' (TFDS)' if kind == 'tfds' else ''}"


def _not_found(info: DatasetInfo, data_dir: DataDir, failure: str) -> UserError:
    tried = ", ".join(dict.fromkeys(str(place) for _, place in _places(info, data_dir)))
    system = f"apt-get install {info.system[1]}, or " if info.system else ""
    by_hand = f"put {', '.join(info.archives)} (from {info.source}) in a folder and name that as data_dir or"
    missing = f"data set {info.name} was not found: tried {tried}, and {failure}"
    return UserError(f"{missing}; to get it: {system}{by_hand} CNNJAX_DATA_DIR")


def _read_registered(info: DatasetInfo, split: str, data_dir: DataDir, download: bool) -> ArraySource:
    """One official split of a registered data set, in memory, its size checked."""
    if find(info.name, data_dir) is None:
        if not download:
            raise _not_found(info, data_dir, "downloads are off")
        try:
            fetch.download(info.archives, files.make_cache_folder(info.name), info.mirrors)
        except (OSError, UserError) as error:
            raise _not_found(info, data_dir, str(error)) from None
    place = find(info.name, data_dir)
    assert place is not None  # the download has put it into the last of the places
    kind, path = place
    if kind == "tfds":
        prepared = sources.to_memory(tfds.open_prepared(path, Place(info.name, "", None, None)).read(split))
        images, labels = prepared.images, prepared.labels
    else:
        images, labels = info.layout.read(path, split)
    if images.shape != (expected := (info.splits[split], *info.image_shape)):
        raise UserError(f"{path}: {split} images are {images.shape}; allowed: {expected}")
    return ArraySource(images, labels, info.class_names, info.name, split)


def _open(name: str, data_dir: DataDir, recipe: Recipe | None, download: bool, **known: Any) -> Opened:
    """A data set of any name that `load` takes; `known` are fields of `Place`."""
    form, colon, rest = name.partition(":")
    if not colon:
        if name not in DATASETS:
            raise unknown("data set", name, [*DATASETS, *forms()])
        info = DATASETS[name]
        return Opened(tuple(info.splits), lambda split: _read_registered(info, split, data_dir, download))
    if not rest:
        raise UserError(f"data set {name!r} is incomplete; allowed: {', '.join(forms())}")
    if form not in FORMS:
        raise unknown("form of data set", f"{form}:", [f"{form}:" for form in FORMS])
    place = Place(name, rest, recipe, data_dir, **known)
    if place.only in (None, *(opened := FORMS[form][1](place)).splits):
        return opened
    return FORMS[form][1](place._replace(only=None))  # so that an error names the others


def hold_out(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` examples by seed, from each class its share: (rest, drawn), each ascending.

    A class's share is count / N of it, rounded so that the shares sum to count (largest remainders first),
    and never all of it, so count is at most N less the classes: a class of one image stays in the rest.
    The draw's order is PCG64's raw stream, which NumPy keeps stable: the indices are the same in any version.
    """
    ranks = np.random.PCG64(seed).random_raw(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    assert count <= (sizes - 1).sum()
    shares = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(shares - exact, kind="stable")
    shares = np.minimum(shares, sizes - 1)
    while missing := count - shares.sum():
        shares[order[(shares < sizes - 1)[order]][:missing]] += 1
    drawn = []
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels == label)
        drawn.append(members[np.argsort(ranks[members], kind="stable")[:share]])
    held = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), held, assume_unique=True), held


def _part_of_train(
    train: ArraySource | FileSource, split: str, num_validation: int, validation_fraction: float, seed: int
) -> ArraySource | FileSource:
    """What is left of train, or held out; UserError unless that is some, and not all of any class."""
    labels = np.zeros(len(train), np.int32) if train.labels is None else train.labels
    size, most = len(labels), len(labels) - len(np.unique(labels))
    if not 0 < (count := num_validation or round(validation_fraction * size)) <= most:
        fraction = f"validation_fraction={validation_fraction}"
        given = f"num_validation={num_validation}" if num_validation else fraction
        allowed = f"1 to {most}, so that each class keeps one" if most else "0, as each class has one image"
        raise UserError(f"{given}: {count} of {size} training images cannot be held out; allowed: {allowed}")
    rest, drawn = hold_out(labels, count, seed)
    notes = (*train.notes, f"{count} of train held out for validation")
    if missing := np.setdiff1d(labels, labels[drawn]).tolist():
        notes += (f"which has no images of {listed([train.class_names[each] for each in missing])}",)
    part = train.subset(drawn if split == "validation" else rest, split)
    return dataclasses.replace(part, notes=notes)


def _recipe_of(size: int | None, split: str) -> Recipe | None:
    """How images are brought to a size that the user gave."""
    if size is None:
        return None
    if not 0 < size <= 2**14:
        raise UserError(f"size={size}; allowed: a whole number of pixels from 1 to {2**14}")
    return recipes.fast(size) if split == "train" else recipes.covering(size, size)


def _told(source: ArraySource | FileSource, split: str, recipe: Recipe | None) -> list[str]:
    """What a user should know of how images are brought to size."""
    if recipe and recipe.mode == "square" and sources.resizes(source):
        return [f"{split} is decoded fast: the middle square first, large JPEGs at 1/2 to 1/8 of their size"]
    if recipe and source.image_shape[:2] != recipe.shape:
        return [f"size={recipe.shape[0]} has no effect, as images are stored as arrays"]
    return []


def load_official(name: str, data_dir: DataDir = None, **arguments: Any) -> dict[str, Source]:
    """Opens all official splits of a data set, nothing held out; a folder is listed only once."""
    listed: Listed = {}
    splits, _, notes = _open(name, data_dir, None, True, listed=listed)
    if not splits:
        raise UserError("; ".join([f"{name} has no split with labels", *notes]))
    return {split: load(name, split, data_dir=data_dir, listed=listed, **arguments) for split in splits}


def official_splits(name: str, data_dir: DataDir = None, listed: Listed | None = None) -> tuple[str, ...]:
    """The names of the official splits of a data set; `listed` is as in `load`."""
    return _open(name, data_dir, None, True, listed=listed).splits


def _check_arguments(data_dir: DataDir, seed: int, num_validation: int, validation_fraction: float) -> None:
    check_count("num_validation", num_validation, 0)
    check_fraction("validation_fraction", validation_fraction)
    if num_validation and validation_fraction:
        given = f"num_validation={num_validation}, validation_fraction={validation_fraction}"
        raise UserError(f"{given}; allowed: one of them, the other 0")
    check_local("data_dir", data_dir)
    if data_dir and not files.expanded(data_dir).is_dir():
        raise UserError(f"data_dir={str(data_dir)!r} is not a folder; allowed: a folder, or none")
    check_count("seed", seed, 0)


def load(
    name: str | Path,
    split: str,
    *,
    data_dir: DataDir = None,
    num_validation: int = 0,
    validation_fraction: float = 0.0,
    seed: int = 0,
    size: int | None = None,
    recipe: Recipe | None = None,
    any_size: bool = False,
    test_split: str = "test",
    class_names: Sequence[str] = (),
    image_shape: Shape | None = None,
    download: bool = True,
    listed: Listed | None = None,
) -> Source:
    """Opens one split of a data set: an `ArraySource` for registered names, idx and npz, else a `FileSource`.

    `name` is in `DATASETS` or one of `forms()`; `split` is "train", "validation", "test", or another one of a
    TFDS folder; `data_dir` is searched first. `test_split` names the official split to use as `test`.
    If there is no validation split, or it is the test split, `num_validation` examples or the fraction
    `validation_fraction` in [0, 1) of train are held out, drawn by `seed` alone: an equal share of every
    class (of all examples if labels cannot be read alone, as in tfds:NAME).
    `size` resizes the short side of image files and of tfds:NAME and crops the centre (`recipe.covering`, for
    the train split `recipe.fast`); `recipe` replaces it. Without either all images must have the same size,
    or with `any_size` images of another size than most are bad.
    `class_names` and `image_shape` are those of a network: labels become indices into its classes, files are
    decoded to its channels, images of other shapes are bad; if none are held out, only `split` is read.
    `listed` keeps a folder's files, for the next split.
    Raises UserError for unknown names, listing the known ones, and for images of different sizes.
    """
    name = str(name)
    _check_arguments(data_dir, seed, num_validation, validation_fraction)
    recipe = recipe or _recipe_of(size, split)
    held_out = num_validation or validation_fraction
    only = (test_split if split == "test" else split) if class_names and not held_out else None
    known = {"class_names": tuple(class_names), "channels": image_shape and image_shape[2], "only": only}
    official, read, notes = _open(name, data_dir, recipe, download, listed=listed, **known)
    if test_split not in ("test", *official) and not only:
        allowed = ", ".join([*official, *notes])
        raise UserError(f"test_split={test_split!r} is not a split of {name}; allowed: {allowed}")
    own = "validation" in official and test_split != "validation"
    places = {each: each for each in official if each not in ("validation", "test", test_split)}
    places |= {"test": test_split} if test_split in official else {}
    places |= {"validation": "validation"} if own else {"validation": "train"} if held_out else {}
    if split not in places:
        hint = "; num_validation holds one out of train" if split == "validation" else ""
        given = unknown(f"split of {name}", split, places) if places else f"{name} has no split with labels"
        raise UserError("; ".join([f"{given}{hint}", *notes]))
    source = read(places[split])
    if isinstance(source, FileSource) and not source.shape:
        splits = [each for each in map(read, official) if isinstance(each, FileSource)]
        source = dataclasses.replace(source, shape=image_shape or sets.shape_of(name, splits, any_size))
    if held_out and not own and places[split] == "train":
        source = _part_of_train(source, split, num_validation, validation_fraction, seed)
    told = [*source.notes, *_told(source, split, recipe)]
    told += ["its own validation split is used, none is held out"] if held_out and own else []
    source = dataclasses.replace(source, splits=tuple(places), notes=tuple(told))
    return with_classes(source, class_names) if class_names else source
