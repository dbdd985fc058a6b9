"""Prepared data: a folder of ArrayRecord shards of images of one size, as `prepare` writes it.

A record is the label (int32, little-endian) and the image, raw uint8 [H, W, C] or JPEG.
"""

import bisect
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from cnnjax.data.decode import decode_image
from cnnjax.data.sources.source import FileSource, Opened, Place, Shape, check_labels, digest
from cnnjax.data.statistics import Statistics
from cnnjax.errors import BadImage, UserError

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordReader

FACTS = "dataset.json"
ENCODINGS = ("raw", "jpeg")


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


class Facts(TypedDict):
    """What `dataset.json` holds; the statistics are those of `train`."""

    class_names: list[str]
    image_shape: list[int]
    encoding: str
    splits: dict[str, list[Shard]]
    mean: list[float]
    std: list[float]
    covariance: list[list[float]]


def read_facts(folder: Path) -> Facts:
    """The facts of a prepared folder; raises UserError if there are none, or unknown ones."""
    file = folder / FACTS
    try:
        facts = json.loads(file.read_text())
        complete = Facts.__required_keys__ <= set(facts)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); `cnnjax data prepare` writes it") from None
    if not complete or facts["encoding"] not in ENCODINGS:
        raise UserError(f"{file}: not the facts of prepared images; `cnnjax data prepare` writes them")
    return facts


def read_split(folder: Path, split: str, name: str) -> FileSource:
    """One split of a prepared folder, read on access; UserError names a shard missing or of another size."""
    shards = (facts := read_facts(folder))["splits"][split]
    for shard in shards:
        path = folder / shard["file"]
        if (size := path.stat().st_size if path.is_file() else 0) != shard["bytes"]:
            raise UserError(f"{path}: {size} bytes; allowed: {shard['bytes']}; prepare or copy it again")
    labels = np.asarray([label for shard in shards for label in shard["labels"]], np.int32)
    classes = tuple(facts["class_names"])
    check_labels(labels, len(classes), folder / FACTS)
    height, width, channels = facts["image_shape"]
    shape = height, width, channels
    reader = _Reader(folder, shards, shape, facts["encoding"])
    contents = digest([(s["file"], s["bytes"], s["sha256"]) for s in shards], facts["encoding"], labels)
    everything = np.arange(len(labels))
    return FileSource(reader, len(labels), everything, contents, labels, classes, name, split, shape)


def open_records(place: Place) -> Opened:
    """A prepared folder."""
    splits = tuple(read_facts(place.path)["splits"])
    return Opened(splits, lambda split: read_split(place.path, split, place.name))


def statistics(folder: Path) -> Statistics:
    """Of the images of `train`."""
    facts = read_facts(folder)
    return Statistics(tuple(facts["mean"]), tuple(facts["std"]), tuple(map(tuple, facts["covariance"])))


class _Reader:
    """Shards are opened when first read, in each process anew."""

    def __init__(self, folder: Path, shards: list[Shard], shape: Shape, encoding: str):
        self.files = [str(folder / shard["file"]) for shard in shards]
        self.ends = np.cumsum([len(shard["labels"]) for shard in shards]).tolist()
        self.shape, self.encoding = shape, encoding
        self._open: dict[int, ArrayRecordReader] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def __call__(self, position: int) -> tuple[np.ndarray, int, str]:
        shard = bisect.bisect_right(self.ends, position)
        index = position - (self.ends[shard - 1] if shard else 0)
        what = f"{self.files[shard]} record {index}"
        try:
            if shard not in self._open:
                from array_record.python.array_record_module import ArrayRecordReader

                self._open[shard] = ArrayRecordReader(self.files[shard], "readahead_buffer_size:0")
            record = self._open[shard].read([index])[0]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise BadImage(f"{what}: cannot be read ({error}); prepare it again") from None
        label = int.from_bytes(record[:4], "little", signed=True)
        if self.encoding == "jpeg":
            return decode_image(record[4:], what, self.shape[2]), label, what
        if len(record) != 4 + int(np.prod(self.shape)):
            raise BadImage(f"{what}: {len(record)} bytes; allowed: 4 and an image of {self.shape}")
        return np.frombuffer(record, np.uint8, offset=4).reshape(self.shape), label, what
