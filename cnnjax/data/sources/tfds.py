"""Folders that TensorFlow Datasets has prepared as ArrayRecord, read without TensorFlow."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cnnjax.data.decode import decode_image, read_header
from cnnjax.data.files import expanded
from cnnjax.data.recipe import Recipe
from cnnjax.data.sources.sets import UNLABELLED
from cnnjax.data.sources.source import (
    DataDir,
    FileSource,
    Opened,
    Place,
    Shape,
    data_folders,
    digest,
    evenly_spaced,
)
from cnnjax.errors import BadImage, UserError, one_line

SOME = 32  # records of a split whose labels are read when it is opened
NAME = re.compile(r"\w+(/[\w.-]+)?(:[0-9.]+)?")


def find_prepared(name: str, root: Path) -> Path | None:
    """The newest folder NAME/VERSION of a data set prepared as ArrayRecord, or None.

    `name` is as "mnist", "imagenet_resized/32x32" or "mnist:3.0.1"; `root` a TFDS data_dir, or that folder.
    """
    path, _, version = name.partition(":")
    versions = [p.parent for p in root.glob(f"{path}/{version or '*'}/dataset_info.json")]
    if root.parent.name == path and (root / "dataset_info.json").is_file():
        versions.append(root)
    readable = [p for p in versions if p.name.replace(".", "").isdigit() and any(p.glob("*.array_record*"))]
    return max(readable, key=lambda p: tuple(map(int, p.name.split("."))), default=None)


def tfds_folders(data_dir: DataDir) -> list[Path]:
    """Where prepared data sets are looked for; the first is where they are prepared."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [*data_folders(data_dir), expanded(default)]


def open_tfds(place: Place) -> Opened:
    """The data set tfds:NAME, looked for in all `tfds_folders`."""
    name, roots = place.rest, tfds_folders(place.data_dir)
    if not NAME.fullmatch(name):
        raise UserError(f"data set 'tfds:{name}'; allowed: tfds:NAME[/CONFIG][:VERSION]")
    if not (path := next(filter(None, (find_prepared(name, root) for root in roots)), None)):
        missing = f"data set tfds:{name} was not found as ArrayRecord: tried {', '.join(map(str, roots))}"
        make = f"`cnnjax data prepare tfds:{name}` makes it (file_format=array_record)"
        other = "name another folder as data_dir, CNNJAX_DATA_DIR or TFDS_DATA_DIR"
        raise UserError(f"{missing}; {make}; {other}")
    return open_prepared(path, place)


def open_prepared(folder: Path, place: Place) -> Opened:
    """A folder .../NAME/VERSION, read as `place` says.

    Raises UserError for records that are not ArrayRecord, or no images with class labels.
    """
    import tensorflow_datasets as tfds

    with _told(folder):
        builder = tfds.builder_from_directory(str(folder))
        features = builder.info.features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    if kinds.get("image") != "Image" or kinds.get("label") != "ClassLabel":
        raise UserError(f"{folder}: features {kinds}; allowed: image: Image, label: ClassLabel")
    if (stored := builder.info.file_format.value) != "array_record":
        raise UserError(f"{folder}: records are {stored}; prepare it with file_format='array_record'")
    encoded = {"image": tfds.decode.SkipDecoding()}  # TFDS decodes with OpenCV or Pillow
    splits = place.chosen([*builder.info.splits])
    with _told(folder):
        records = {split: builder.as_data_source(split, decoders=encoded) for split in splits}
    used = [split for split, each in records.items() if _has_labels(each)]
    counts = ", ".join(f"{split} {len(records[split])}" for split in used)
    without = [
        f"{split} has no labels: {len(each)} images" for split, each in records.items() if split not in used
    ]
    height, width, channels = features["image"].shape
    channels = place.channels or channels or 3
    shape = place.shape(channels) or ((height, width, channels) if height and width else None)

    def read(split: str) -> FileSource:
        with _told(folder):
            _check_count(folder, split, len(records[split]))
        listing = [(p.name, p.stat().st_size) for p in sorted(folder.glob(f"*-{split}.*"))]
        contents = digest((folder / "dataset_info.json").read_text("utf-8"), listing, place.size)
        where = records[split], f"{folder} {split}", channels
        return FileSource(
            functools.partial(_read_record, *where, place.recipe),
            total=len(records[split]),
            positions=np.arange(len(records[split])),
            contents=contents,
            labels=None,
            class_names=tuple(features["label"].names),
            name=place.name,
            split=split,
            shape=shape,
            notes=notes,
            header=functools.partial(_read_shape, *where),
        )

    notes = (f"{counts} images", *without)
    return Opened(tuple(used), read, notes)


def _has_labels(records: Sequence[dict]) -> bool:
    """From some of a split, as each is read with its image; the others are checked when they are read."""
    try:
        return any(records[i]["label"] != UNLABELLED for i in evenly_spaced(len(records), SOME))
    except Exception:  # of shards that are damaged or missing: told when that split is read
        return True


def _read_shape(records: Sequence[dict], where: str, channels: int, position: int) -> Shape:
    record, what = _record(records, where, position)
    return *read_header(record["image"], what)[:2], channels


def _check_count(folder: Path, split: str, count: int) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    shards = sorted(folder.glob(f"*-{split}.array_record*"))
    if (stored := sum(ArrayRecordReader(str(shard)).num_records() for shard in shards)) != count:
        raise ValueError(f"{split} has {stored} records, dataset_info.json says {count}")


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Makes one line of what TFDS raises for files that are damaged or missing."""
    try:
        yield
    except Exception as error:
        reason = f"cannot be read as TFDS prepares it ({one_line(error)})"
        raise UserError(f"{folder}: {reason}; prepare or copy it again") from None


def _record(records: Sequence[dict], where: str, position: int) -> tuple[dict, str]:
    """A record and what it is called; BadImage for one that the reader, or the features, cannot read."""
    what = f"{where} record {position}"
    try:
        return records[position], what
    except Exception as error:
        raise BadImage(f"{what}: cannot be read ({one_line(error)}); prepare or copy it again") from None


def _read_record(
    records: Sequence[dict],
    where: str,
    channels: int,
    recipe: Recipe | None,
    position: int,
    out: np.ndarray | None,
) -> tuple[np.ndarray, int, str]:
    record, what = _record(records, where, position)
    return decode_image(record["image"], what, channels, recipe, out), int(record["label"]), what
