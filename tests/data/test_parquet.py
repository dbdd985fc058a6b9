"""Parquet files of the Hugging Face Hub: the same images as those that were written, and what is refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cnnjax.cli import main
from cnnjax.data.datasets import load
from cnnjax.data.decode import read_header
from cnnjax.data.sources import parquet as parquet_source
from cnnjax.data.sources.source import to_memory
from cnnjax.errors import BadImage, UserError
from tests.data.test_sources import encoded

NAMES = ("cat", "dog", "emu")
HUB = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}
TYPES = {"image": pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])}


def pixels(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 6, 5, channels), dtype=np.uint8)


def write(path: Path, images, labels, features=HUB, names=("image", "label")) -> None:
    """One file in row groups of four, as `datasets` writes them."""
    cells = [{"bytes": data, "path": None} for data in images]
    arrays = [pyarrow.array(cells, TYPES["image"]), pyarrow.array(labels, pyarrow.int64())]
    table = pyarrow.Table.from_arrays(arrays, list(names))
    if features:
        hub = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": hub})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=4)


def folder(tmp_path: Path, channels: int = 3, **options) -> tuple[str, np.ndarray, np.ndarray]:
    """11 images of train in two files, and 3 of test."""
    image, label = pixels(14, channels), np.arange(14) % 3
    data = [encoded(x if channels == 3 else x[..., 0]) for x in image]
    write(tmp_path / "data/train-00000-of-00002.parquet", data[:6], label[:6], **options)
    write(tmp_path / "data/train-00001-of-00002.parquet", data[6:11], label[6:11], **options)
    write(tmp_path / "data/test-00000-of-00001.parquet", data[11:], label[11:], **options)
    return f"parquet:{tmp_path}", image, label


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_served_in_any_order(tmp_path, channels):
    name, image, label = folder(tmp_path, channels)
    source = load(name, "train")
    assert source.class_names == NAMES and source.image_shape == (6, 5, channels)
    for position in (10, 0, 4, 5, 7, 3):
        np.testing.assert_array_equal(source[position]["image"], image[position])
        assert source[position]["label"] == label[position]
    again = to_memory(pickle.loads(pickle.dumps(source)))  # as worker processes get it
    np.testing.assert_array_equal(again.images, image[:11])
    np.testing.assert_array_equal(to_memory(load(name, "test")).images, image[11:])
    held = load(name, "validation", num_validation=3)
    assert sorted(held.labels) == [0, 1, 2]
    assert load(name, "train", size=4).image_shape == (4, 4, channels)


def test_threads_in_different_places_read_each_group_once(tmp_path, monkeypatch):
    """As the threads of `prepare`, each in a shard of its own: two of them, in turn."""
    image = pixels(40)
    write(tmp_path / "train.parquet", map(encoded, image), np.arange(40) % 3)
    source, groups, read = load(f"parquet:{tmp_path}", "train"), [], parquet_source._read

    def counted(path, group, column):
        groups.append(group)
        return read(path, group, column)

    monkeypatch.setattr(parquet_source, "_read", counted)
    for position in np.arange(40).reshape(2, 20).T.flat:  # 0, 20, 1, 21 ...
        np.testing.assert_array_equal(source[int(position)]["image"], image[position])
    assert sorted(groups) == [*range(10)]


@pytest.mark.parametrize(
    "features", [None, {"img": {"_type": "Image"}, "fine_label": {"dtype": "int64", "_type": "Value"}}]
)
def test_columns_and_classes_without_the_hubs_metadata(tmp_path, features):
    name, image, label = folder(tmp_path, features=features, names=("img", "fine_label"))
    source = load(name, "train")
    assert source.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(source.labels, label[:11])
    np.testing.assert_array_equal(source[9]["image"], image[9])


@pytest.mark.parametrize("other", [[], ["id"]])
@pytest.mark.parametrize("features", [None, {"image": {"_type": "Image"}}])
@pytest.mark.parametrize("labels", [["cat", "dog"], [0.5, 1.0]])
def test_a_label_column_that_is_no_whole_numbers_is_refused_as_such(tmp_path, labels, features, other):
    """Beside it a column of whole numbers was taken for the labels."""
    cells = pyarrow.array([{"bytes": b"x", "path": None}] * 2, TYPES["image"])
    table = pyarrow.table({"image": cells, "label": labels, **{name: [7, 8] for name in other}})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "0.parquet")
    with pytest.raises(UserError, match=r"0.parquet: column 'label' is (string|double); allowed: whole num"):
        load(f"parquet:{tmp_path}", "train")


def test_the_fingerprint_changes_with_the_labels(tmp_path):
    name, image, label = folder(tmp_path)
    before = load(name, "test").fingerprint
    write(tmp_path / "data/test-00000-of-00001.parquet", [encoded(x) for x in image[11:]], label[11:][::-1])
    assert load(name, "test").fingerprint != before


def test_records_are_prepared_from_it(tmp_path):
    name, _, label = folder(tmp_path / "hub")
    out = tmp_path / "out"
    assert main.run(["data", "prepare", name, f"--out={out}", "--short_side=5"]) == 0
    found = load(f"records:{out}", "train")
    assert found.class_names == NAMES and found.image_shape == (5, 5, 3)
    np.testing.assert_array_equal(found.labels, label[:11])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "train-00000-of-00002.parquet").write_bytes(b"PAR1"), "cannot be read as Parquet"),
        (lambda d: [f.unlink() for f in d.glob("train*")], "unknown split .* 'train'"),
        (lambda d: (d / "test-00000-of-00001.parquet").rename(d / "more.parquet"), "does not name a split"),
        (lambda d: write(d / "train-00001-of-00002.parquet", [b""], [None]), "without a label"),
        (lambda d: write(d / "train-00001-of-00002.parquet", [b""], [3]), "label 3 of example 6"),
        (lambda d: write(d / "train-00000-of-00002.parquet", [b"x"], [0], {"text": {}}), "columns"),
        (
            lambda d: write(d / "train-00000-of-00002.parquet", [b"x"], [0], {}, ("label", "image")),
            "column 'label' is struct",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_file(tmp_path, change, words):
    name, *_ = folder(tmp_path)
    change(tmp_path / "data")
    with pytest.raises(UserError, match=words):
        load(name, "train")


def test_a_cut_file_and_a_bad_image_are_told(tmp_path):
    name, *_ = folder(tmp_path)
    write(tmp_path / "data/train-00001-of-00002.parquet", [b"not an image", b"", None], [0, 1, 2])
    source = load(name, "train")
    for position in (6, 7, 8):
        with pytest.raises(BadImage, match=f"row group 0 row {position - 6}"):
            source[position]
    bomb = b"BM" + bytes(16) + 2 * (10**6).to_bytes(4, "little") + bytes(28)  # claims a million by a million
    with pytest.raises(BadImage, match="row 0"):
        read_header(bomb, "row 0")
    file = tmp_path / "data/test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="test-00000-of-00001.parquet: cannot be read"):
        load(name, "test")
