"""Prepared data: a folder of ArrayRecord shards of images of one size, as `prepare` writes it.

A record is the label (int32, little-endian) and the image, raw uint8 [H, W, C] or JPEG.
"""

import bisect
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from cnnjax.data.decode import Alike
from cnnjax.data.files import allow_open, check_utf8, read_json
from cnnjax.data.sources import sets
from cnnjax.data.sources.source import FileSource, Opened, Place, Shape, as_labels, digest
from cnnjax.data.statistics import Statistics
from cnnjax.errors import BadImage, UserError

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordReader

FACTS = "dataset.json"
PLAN = "plan.json"  # of a preparation, from its beginning
ENCODINGS = ("raw", "jpeg")
LABEL_BYTES = 4  # before the image


class Shard(TypedDict):
    """One file of records; `pixels`, `total` and `products` are its `Moments`."""

    file: str
    bytes: int
    sha256: str
    labels: list[int]
    skipped: list[str]  # messages about the images left out
    pixels: int
    total: list[float]
    products: list[list[float]]


class Prepared(TypedDict):
    """What `dataset.json` holds; the statistics are those of `train`."""

    class_names: list[str]
    image_shape: list[int]
    encoding: str
    splits: dict[str, list[Shard]]
    mean: list[float]
    std: list[float]
    covariance: list[list[float]]


def read_facts(folder: Path) -> Prepared:
    """The facts of a prepared folder; raises UserError if there are none, or unknown ones."""
    file = check_utf8(folder) / FACTS
    try:
        facts = read_json(file, Prepared)
    except UserError as error:
        reason = str(error).removeprefix(f"{file} ")
        raise UserError(f"{file}: {reason}; `cnnjax data prepare` writes it") from None
    shape = facts["image_shape"]
    sound = len(shape) == 3 and all(0 < side < 2**15 for side in shape) and shape[2] == len(facts["mean"])
    names = [shard["file"] for shards in facts["splits"].values() for shard in shards]
    rows = facts["mean"], facts["std"], *facts["covariance"]
    sound = sound and all(len(row) == shape[2] and np.isfinite(row).all() for row in rows)
    if not sound or facts["encoding"] not in ENCODINGS or any(Path(name).name != name for name in names):
        raise UserError(f"{file}: not the description of prepared images; `cnnjax data prepare` writes them")
    return facts


def read_split(folder: Path, split: str, name: str) -> FileSource:
    """One split of a prepared folder, read on access; UserError names a shard missing or of another size."""
    shards = (facts := read_facts(folder))["splits"][split]
    for shard in shards:
        path = folder / shard["file"]
        if (size := path.stat().st_size if path.is_file() else 0) != shard["bytes"]:
            raise UserError(f"{path}: {size} bytes; allowed: {shard['bytes']}; prepare or copy it again")
    classes, given = tuple(facts["class_names"]), [label for shard in shards for label in shard["labels"]]
    labels = as_labels(np.asarray(given, np.int64), folder / FACTS, len(classes))
    height, width, channels = facts["image_shape"]
    shape = height, width, channels
    reader = _Reader(folder, shards, shape, facts["encoding"], labels)
    contents = digest([(s["file"], s["bytes"], s["sha256"]) for s in shards], facts["encoding"], labels)
    return FileSource(
        reader,
        total=len(labels),
        positions=np.arange(len(labels)),
        contents=contents,
        labels=labels,
        class_names=classes,
        name=name,
        split=split,
        shape=shape,
    )


def open_records(place: Place) -> Opened:
    """A prepared folder."""
    facts = read_facts(place.path)
    labels = {
        split: np.asarray([label for shard in shards for label in shard["labels"]])
        for split, shards in facts["splits"].items()
        if split in place.chosen([*facts["splits"]])
    }
    known = sets.read_labels(labels, facts["class_names"], place.path / FACTS)

    def read(split: str) -> FileSource:
        return dataclasses.replace(read_split(place.path, split, place.name), notes=known.notes)

    return Opened(known.splits, read, known.notes)


def statistics(folder: Path) -> Statistics:
    """Of the images of `train`."""
    facts = read_facts(folder)
    return Statistics(tuple(facts["mean"]), tuple(facts["std"]), tuple(map(tuple, facts["covariance"])))


class _Reader:
    """Shards are opened when first read, in each process anew."""

    def __init__(self, folder: Path, shards: list[Shard], shape: Shape, encoding: str, labels: np.ndarray):
        allow_open(len(shards), folder)
        self.files = [str(folder / shard["file"]) for shard in shards]
        self.ends = np.cumsum([len(shard["labels"]) for shard in shards]).tolist()
        self.shape, self.encoding, self.labels = shape, encoding, labels
        self._decode = Alike(shape[2])
        self._open: dict[int, ArrayRecordReader] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def __call__(self, position: int, out: np.ndarray | None = None) -> tuple[np.ndarray, int, str]:
        shard = bisect.bisect_right(self.ends, position)
        before = self.ends[shard - 1] if shard else 0
        index = position - before
        what = f"{self.files[shard]} record {index}"
        try:
            if shard not in self._open:
                from array_record.python.array_record_module import ArrayRecordReader

                opened = ArrayRecordReader(self.files[shard], "readahead_buffer_size:0")
                if (count := opened.num_records()) != self.ends[shard] - before:
                    raise ValueError(f"it has {count} records; allowed: {self.ends[shard] - before}")
                self._open[shard] = opened
            record = self._open[shard].read(index, index + 1)[0]  # quicker than of a list
            if len(record) <= LABEL_BYTES:
                raise ValueError("it is damaged")
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise BadImage(f"{what}: cannot be read ({error}); prepare it again") from None
        label = int.from_bytes(record[:LABEL_BYTES], "little", signed=True)
        if label != (noted := self.labels[position]):
            raise BadImage(f"{what}: label {label}; allowed: {noted}, as in {FACTS}; prepare it again")
        if self.encoding == "jpeg":
            return self._decode(record, LABEL_BYTES, what, out), label, what
        if len(record) != LABEL_BYTES + int(np.prod(self.shape)):
            allowed = f"{LABEL_BYTES} and an image of {self.shape}"
            raise BadImage(f"{what}: {len(record)} bytes; allowed: {allowed}")
        return np.frombuffer(record, np.uint8, offset=LABEL_BYTES).reshape(self.shape), label, what
