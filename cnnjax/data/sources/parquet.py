"""Data sets of the Hugging Face Hub as they are downloaded: Parquet files of encoded images and labels.

A file belongs to the split whose word its name or a folder of it has (`data/train-00000-of-00002.parquet`,
`test/0000.parquet`); if no name has any, all are train. Several configs or revisions are refused. Columns
and class names are those of the Hub's metadata, else the one column of images and of whole numbers. Row
groups are read whole, slow at random: `cnnjax data prepare` large data sets once.
"""

import bisect
import json
import reprlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnjax.data.decode import decode_image, read_header
from cnnjax.data.machine import num_cores
from cnnjax.data.recipe import Recipe
from cnnjax.data.sources import sets, shards
from cnnjax.data.sources.archive import most_bytes
from cnnjax.data.sources.source import FileSource, Opened, Place, Shape, digest
from cnnjax.errors import BadImage, UserError, one_line

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

_channels: dict[str, int] = {}  # of the sets seen by this process, by names and sizes of their files
MAX_GROUP_BYTES = 2**31  # of a row group, which is read as a whole


class ParquetFolder:
    """The files of each split, the names of the columns, and the classes; no image is read."""

    def __init__(self, place: Place):
        self.root = root = place.path
        if not (files := shards.find_files(root, ".parquet")):
            raise UserError(f"{root}: no *.parquet; allowed: a folder of Parquet files from the Hub")
        by_split = shards.by_split(root, files)
        self.files = {split: by_split[split] for split in place.chosen([*by_split])}
        first = self.files.get("train", next(iter(self.files.values())))[0]
        self.image, self.label, names = columns = _columns(first)
        for path in (path for paths in self.files.values() for path in paths):
            if self.label in _opened(path).schema_arrow.names and (other := _columns(path)) != columns:
                raise UserError(f"{path}: columns {other}; allowed: {columns}, as in {first}")
        self.known = sets.read_labels({split: self._labels(split) for split in self.files}, names, root)
        self.place = place

    def _labels(self, split: str) -> np.ndarray:
        """[N] as they are stored, -1 where there is none."""
        parts, without = [], 0
        for path in self.files[split]:
            if self.label not in (file := _opened(path)).schema_arrow.names:
                parts.append(np.full(file.metadata.num_rows, sets.UNLABELLED))
                without += file.metadata.num_rows
                continue
            column = _read(path, None, self.label)
            without += column.null_count
            parts.append(np.full(len(column), sets.UNLABELLED) if column.null_count else column.to_numpy())
        labels = np.concatenate(parts)
        if 0 < without < len(labels):
            raise UserError(f"{self.root}: {split} has examples without a label (column {self.label})")
        return labels

    @property
    def channels(self) -> int:
        """Those asked for, else 3 if any image of any split has colours, else 1."""
        if self.place.channels:
            return self.place.channels
        key = str([(str(self.root), _listing(self.files[split])) for split in self.known.splits])
        if key not in _channels:
            readers = [
                _Reader(self.files[split], self.image, self.known.labels[split])
                for split in self.known.splits
            ]
            places = [(reader.header, i) for reader in readers for i in range(reader.ends[-1])]
            colours = (shape[2] == 3 for shape in map(sets.read_shape, places) if shape)
            _channels[key] = 3 if any(colours) else 1
        return _channels[key]

    def source(self, split: str) -> FileSource:
        """One split, read on access."""
        place = self.place
        labels, listing = self.known.labels[split], _listing(self.files[split])
        reader = _Reader(self.files[split], self.image, labels, place.recipe, self.channels)
        return FileSource(
            reader,
            total=len(labels),
            positions=np.arange(len(labels)),
            contents=digest(listing, labels, place.size),
            labels=labels,
            class_names=self.known.class_names,
            name=place.name,
            split=split,
            shape=place.shape(self.channels),
            notes=self.known.notes,
            header=reader.header,
        )


def open_parquet(place: Place) -> Opened:
    """See `ParquetFolder`."""
    folder = ParquetFolder(place)
    splits, notes = folder.known.splits, folder.known.notes
    return Opened(splits, lambda split: folder.source(split), notes)


def _listing(files: Sequence[Path]) -> list[tuple[str, int]]:
    return [(path.name, path.stat().st_size) for path in files]


class _Group:
    """A row group that is read once, by the first thread that asks for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.column: pyarrow.ChunkedArray | None = None


class _Reader:
    """Keeps the row groups that were read last, one a thread; `channels` None is those of each image."""

    def __init__(
        self,
        files: Sequence[Path],
        column: str,
        labels: np.ndarray,
        recipe: Recipe | None = None,
        channels: int | None = None,
    ):
        self.column, self.labels, self.recipe, self.channels = column, labels, recipe, channels
        self.groups: list[tuple[Path, int]] = []  # file, number of the row group in it
        counts: list[int] = []
        for path in files:
            metadata = _opened(path).metadata
            self.groups += [(path, index) for index in range(metadata.num_row_groups)]
            counts += [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self.ends = np.cumsum(counts).tolist()
        if min(counts) < 0 or self.ends[-1] != len(labels):
            given = f"row groups of {self.ends[-1]} rows and {len(labels)} labels"
            raise UserError(f"{files[0].parent}: {given}; copy or download it again")
        self._kept: dict[int, _Group] = {}  # the one that was asked for last is last
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= {**state, "_kept": {}, "_lock": threading.Lock()}

    def _encoded(self, position: int) -> tuple[bytes, str]:
        group = bisect.bisect_right(self.ends, position)
        path, index = self.groups[group]
        row = position - (self.ends[group - 1] if group else 0)
        with self._lock:
            kept = self._kept[group] = self._kept.pop(group, _Group())
            if len(self._kept) > num_cores() + 1:  # as many threads read at once
                del self._kept[next(iter(self._kept))]
        with kept.lock:
            if kept.column is None:
                kept.column = _read(path, index, self.column)
        cell = kept.column[row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        what = f"{path} row group {index} row {row}"
        if not isinstance(data, bytes):
            raise BadImage(f"{what}: no image bytes in column {self.column}; allowed: embedded images")
        return data, what

    def header(self, position: int) -> Shape:
        """[H, W, C] of an image, from its header."""
        height, width, channels = read_header(*self._encoded(position))
        return height, width, self.channels or channels

    def __call__(self, position: int, out: np.ndarray | None) -> tuple[np.ndarray, int, str]:
        data, what = self._encoded(position)
        image = decode_image(data, what, self.channels or 3, self.recipe, out)
        return image, int(self.labels[position]), what


def _opened(path: Path) -> "parquet.ParquetFile":
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        if not 0 <= (rows := file.metadata.num_rows) <= most_bytes(path) // 8:
            raise OSError(f"it claims {rows} rows")
        return file
    except Exception as error:  # Arrow raises many kinds for a damaged file
        raise _unreadable(path, error) from None


def _read(path: Path, group: int | None, column: str) -> "pyarrow.ChunkedArray":
    """A column of one row group, or of the whole file."""
    import pyarrow

    file = _opened(path)
    try:
        if group is None:
            return file.read(columns=[column]).column(column)
        if (claimed := file.metadata.row_group(group).total_byte_size) > MAX_GROUP_BYTES:
            raise OSError(f"row group {group} claims {claimed} bytes; allowed: {MAX_GROUP_BYTES}")
        # A dictionary may name one value of the group often: so few rows at a time stay below the limit.
        chunks, size = [], 0
        few = {"batch_size": MAX_GROUP_BYTES // max(1, claimed), "row_groups": [group], "columns": [column]}
        for batch in file.iter_batches(**few):
            chunks.append(batch.column(0))
            if (size := size + batch.nbytes) > MAX_GROUP_BYTES:
                raise OSError(f"row group {group} unpacks to more than {MAX_GROUP_BYTES} bytes")
        return pyarrow.chunked_array(chunks)
    except Exception as error:  # Arrow raises many kinds for a damaged file
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read as Parquet ({one_line(error)}); copy or download it again")


def _columns(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Names of the image and of the label column, and of the classes (() if it does not name them)."""
    import pyarrow

    schema = _opened(path).schema_arrow
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        features = {name: feature for name, feature in info["features"].items() if isinstance(feature, dict)}
    except (ValueError, AttributeError, KeyError):
        features = {}
    types = {field.name: field.type for field in schema}
    images = [n for n, t in types.items() if pyarrow.types.is_binary(t) or pyarrow.types.is_struct(t)]
    labels = [n for n, t in types.items() if pyarrow.types.is_integer(t)]
    named = "label" in types and "label" not in labels
    if features:
        kinds = {name: feature.get("_type") for name, feature in features.items()}
        images = [name for name in images if kinds.get(name) == "Image"]
        classes = [name for name in labels if kinds.get(name) == "ClassLabel"]
        labels, named = classes or labels, named and not classes
    if named:
        raise UserError(f"{path}: column 'label' is {types['label']}; allowed: whole numbers, from 0")
    labels = [name for name in labels if name == "label"] or labels
    if len(images) != 1 or len(labels) != 1:
        given = f"{path}: columns {schema.names}: images {images}, labels {labels}"
        raise UserError(f"{given}; allowed: one column of each, or a column 'label'")
    names = features.get(labels[0], {}).get("names") or []
    if not isinstance(names, list):
        raise UserError(f"{path}: class names {reprlib.repr(names)}; allowed: a list of them")
    return images[0], labels[0], tuple(map(str, names))
