"""Prepared data: a folder of ArrayRecord shards of images of one size, as `prepare` writes it.

`dataset.json` holds the facts (classes, splits with their shards, statistics); a record is the label (int32,
little-endian) and the image, raw uint8 [H, W, C] or JPEG.
"""

import bisect
import json
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.data.decode import decode_image
from cnnjax.data.sources.source import FileSource, check_labels, digest
from cnnjax.errors import BadImage, UserError

FACTS = "dataset.json"
ENCODINGS = ("raw", "jpeg")


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a prepared folder; raises UserError where it holds none, or unknown ones."""
    file = folder / FACTS
    try:
        facts = json.loads(file.read_text())
        complete = {"class_names", "splits", "image_shape", "encoding", "mean", "std", "covariance"} <= set(
            facts
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); `cnnjax data prepare` writes it") from None
    if not complete or facts["encoding"] not in ENCODINGS:
        raise UserError(f"{file}: not the facts of prepared images; `cnnjax data prepare` writes them")
    return facts


def read_split(folder: Path, split: str, name: str) -> FileSource:
    """One split of a prepared folder, read when asked for.

    The fingerprint is over the facts, the labels and the sizes of the shards.

    Raises: UserError for a shard that is missing or of another size than when it was written.
    """
    facts = read_facts(folder)
    shards = facts["splits"][split]
    for shard in shards:
        path = folder / shard["file"]
        size = path.stat().st_size if path.is_file() else 0
        if size != shard["bytes"]:
            raise UserError(f"{path}: {size} bytes; allowed: {shard['bytes']}; prepare or copy it again")
    labels = np.asarray([label for shard in shards for label in shard["labels"]], np.int32)
    class_names = tuple(facts["class_names"])
    check_labels(labels, len(class_names), folder / FACTS)
    reader = _Reader(folder, shards, tuple(facts["image_shape"]), facts["encoding"])
    listing = [(s["file"], s["bytes"], s["sha256"]) for s in shards]
    contents = digest(listing, facts["encoding"], labels)
    return FileSource(reader, np.arange(len(labels)), contents, labels, class_names, name, split)


def statistics(folder: Path) -> dict[str, Any]:
    """mean, std (tuples of C) and covariance (C tuples of C) of `train`, on the scale 0..1."""
    facts = read_facts(folder)
    return {
        "mean": tuple(facts["mean"]),
        "std": tuple(facts["std"]),
        "covariance": tuple(map(tuple, facts["covariance"])),
    }


class _Reader:
    """Position -> example; shards are opened when first read, in each process anew."""

    def __init__(self, folder: Path, shards: list[dict], shape: tuple[int, int, int], encoding: str):
        self.files = [str(folder / shard["file"]) for shard in shards]
        counts = [len(shard["labels"]) for shard in shards]
        self.ends = np.cumsum(counts).tolist()
        self.shape, self.encoding = shape, encoding
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    def __call__(self, position: int) -> dict[str, Any]:
        shard = bisect.bisect_right(self.ends, position)
        index = position - (self.ends[shard - 1] if shard else 0)
        what = f"{self.files[shard]} record {index}"
        try:
            if shard not in self._open:
                self._open[shard] = self._reader(self.files[shard])
            record = self._open[shard].read([index])[0]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise BadImage(f"{what}: cannot be read ({error}); prepare it again") from None
        label = int.from_bytes(record[:4], "little", signed=True)
        if self.encoding == "jpeg":
            image = decode_image(record[4:], what, self.shape[2])
        elif len(record) == 4 + int(np.prod(self.shape)):
            image = np.frombuffer(record, np.uint8, offset=4).reshape(self.shape)
        else:
            raise BadImage(f"{what}: {len(record)} bytes; allowed: 4 and an image of {self.shape}")
        if image.shape != self.shape:
            raise BadImage(f"{what}: an image of {image.shape}; allowed: {self.shape}")
        return {"image": image, "label": label}

    @staticmethod
    def _reader(file: str) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        return ArrayRecordReader(file, "readahead_buffer_size:0")
