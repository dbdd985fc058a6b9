"""What holds for a set is decided from all of its splits: arrays, labels, channels and sizes, by format."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.cli import main
from cnnjax.data.datasets import hold_out, load, official_splits
from cnnjax.data.sources.source import to_memory
from cnnjax.errors import UserError
from tests.data.test_datasets import message, write_idx, write_prepared
from tests.data.test_parquet import write as write_parquet
from tests.data.test_webdataset import samples
from tests.data.test_webdataset import write as write_tar

DRAW = np.random.default_rng(3)
GREY = DRAW.integers(0, 256, (6, 8, 8), dtype=np.uint8)
COLOUR = DRAW.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABEL = np.arange(6) % 3


def npz(path: Path, **arrays) -> str:
    np.savez(path / "a.npz", **arrays)
    return f"npz:{path / 'a.npz'}"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(form: str, path: Path, images: dict[str, list[np.ndarray]], labels: dict[str, list[int]]) -> str:
    """A set of images of any size and channels in one of the formats that hold encoded images."""
    for split, each in images.items():
        if form == "parquet":
            write_parquet(path / f"{split}.parquet", map(png, each), labels[split])
        for i, (pixels, label) in enumerate(zip(each, labels[split], strict=True)):
            file = path / split / "abc"[label] / f"{i}.png"
            if form == "folder":
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(png(pixels))
    return f"{form}:{path}"


# Arrays


@pytest.mark.parametrize(
    "names",
    [
        ("train_image", "train_label", "test_image", "test_label"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("trainX", "trainy", "testX", "testy"),
        ("TrainImages", "TrainTargets", "TestingImages", "TestingTargets"),
        ("images", "labels", "test_data", "test_target"),
        ("X", "y", "X-val", "y-val"),
        ("data", "target", "valid_data", "valid_target"),
    ],
)
def test_arrays_are_found_by_the_names_that_people_give(tmp_path, names):
    arrays = dict(zip(names, (GREY, LABEL, GREY[:3], LABEL[:3]), strict=True))
    name = npz(tmp_path, **arrays, ids=np.arange(6))
    other = "validation" if "val" in names[2] else "test"
    assert official_splits(name) == ("train", other)
    np.testing.assert_array_equal(load(name, "train").images[..., 0], GREY)
    np.testing.assert_array_equal(load(name, other).labels, LABEL[:3])
    assert "left out: arrays ids" in load(name, "train").notes


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("colour", lambda x: x.transpose(0, 3, 1, 2)),
        ("colour", lambda x: x / np.float32(255)),
        ("colour", lambda x: (x / 255).astype(np.float64).transpose(0, 3, 1, 2)),
        ("colour", lambda x: x.astype(np.float32)),
        ("colour", lambda x: x.astype(np.int64)),
        ("grey", lambda x: x[:, None]),
        ("grey", lambda x: x[..., None]),
        ("grey", lambda x: x / 255),
    ],
)
def test_layouts_and_scales_give_the_same_bytes(tmp_path, kind, change):
    plain = COLOUR if kind == "colour" else GREY
    plain = plain.copy()
    plain[:1] = 0
    # Alone, the images of test could be of either scale.
    arrays = {"train_image": change(plain), "test_image": change(plain)[:1]}
    name = npz(tmp_path, **arrays, train_label=LABEL, test_label=LABEL[:1])
    images = load(name, "train").images
    assert images.shape == (6, 8, 8, 3 if kind == "colour" else 1) and images.flags.c_contiguous
    np.testing.assert_array_equal(images, plain.reshape(images.shape))
    np.testing.assert_array_equal(load(name, "test").images, images[:1])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (COLOUR.transpose(1, 2, 3, 0)[:, :3, :, :3], "[8, 3, 3, 3]"),  # height 3, or channels first?
        (COLOUR.reshape(6, 192), "[6, 192]"),
        (np.zeros((6, 4, 8, 8), np.uint8), "[6, 4, 8, 8]"),
        ((COLOUR / 255 - 0.5) / 0.25, "normalization"),
        (COLOUR / 16, "0 to 1"),
        (COLOUR.astype(np.int32) * 257, "65535"),
        (np.full((6, 8, 8), np.nan), "nan"),
        (GREY.astype("U3"), "<U3"),
    ],
)
def test_arrays_that_could_mean_two_things_are_refused(tmp_path, images, words):
    text = message(
        load, npz(tmp_path, train_image=images, train_label=np.resize(LABEL, len(images))), "train"
    )
    assert words in text and "allowed" in text


SCALES = {  # of train and test, and what test is read as, or words of the refusal
    "0 to 1": (np.float32([0, 1]), np.float32([0, 0.5]), [0, 128]),
    "a darker test": (np.float32([0, 255]), np.float32([0, 110]), [0, 110]),
    "a black test": (np.float64([0, 255]), np.float64([0, 0]), [0, 0]),
    "bits": (np.uint8([0, 1]), np.uint8([0, 1]), [0, 255]),
    "whole bits": (np.int64([0, 1]), np.int64([0, 0]), [0, 0]),
    "truths": (np.array([False, True]), np.array([True, False]), [255, 0]),
    "bytes": (np.uint8([0, 2]), np.uint8([0, 2]), [0, 2]),
    "another test": (np.float32([0, 1]), np.float32([0, 255]), "train up to 1, test up to 255"),
    "another train": (np.float32([0, 255]), np.float32([0, 0.9]), "train up to 255, test up to 0.9"),
    "bits in one": (np.uint8([0, 1]), np.uint8([0, 255]), "train up to 1, test up to 255"),
    "no number in one": (np.float32([0, 255]), np.float32([0, np.nan]), "to nan"),
}


@pytest.mark.parametrize("known", [(), ("0", "1", "2")])
@pytest.mark.parametrize("case", SCALES)
def test_the_scale_is_that_of_all_splits_whichever_is_read(tmp_path, case, known):
    """With the classes of a network only the split that is asked for is looked at."""
    train, test, wanted = SCALES[case]
    arrays = {"x_train": np.resize(train, (6, 8, 8)), "x_test": np.resize(test, (6, 8, 8))}
    name = npz(tmp_path, **arrays, y_train=LABEL, y_test=LABEL)
    if isinstance(wanted, str):
        for split in ("train", "test"):
            assert wanted in message(load, name, split, class_names=known)
        return
    source = load(name, "test", class_names=known)
    assert source.images[0, 0, :2, 0].tolist() == wanted
    told = f"{train.dtype} images of 0 and 1 are read as black and white"
    assert (told in source.notes) == ("bits" in case)


@pytest.mark.parametrize("tops", [(1, 1), (0, 1), (1, 0), (0, 255), (0, 0)])
def test_idx_files_of_zeros_and_ones_are_black_and_white(tmp_path, tops):
    write_idx(tmp_path, {"train": 6, "test": 6})
    for prefix, top in zip(("train", "t10k"), tops, strict=True):
        path = tmp_path / f"{prefix}-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:16] + bytes([top]) * 72)
    for split, top in zip(("train", "test"), tops, strict=True):
        source = load(f"idx:{tmp_path}", split)
        assert (source.images == (255 if top else 0)).all()
        told = "uint8 images of 0 and 1 are read as black and white" in source.notes
        assert told == (max(tops) == 1)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:16] + bytes([255]) * 72)
    if tops[1] == 1:
        text = message(load, f"idx:{tmp_path}", "test")
        assert "train up to 255, test up to 1; allowed" in text or "test up to 1, train up to 255" in text


def test_splits_that_differ_in_shape_type_or_twice_named_are_refused(tmp_path):
    more = {"train_label": LABEL, "test_label": LABEL}
    text = message(load, npz(tmp_path, train_image=GREY, test_image=COLOUR, **more), "train")
    assert "train 8x8x1, test 8x8x3" in text
    text = message(load, npz(tmp_path, train_image=GREY, test_image=GREY / 255, **more), "train")
    assert "train uint8, test float64" in text
    assert "remove one" in message(load, npz(tmp_path, train_image=GREY, x_train=GREY, **more), "train")
    write_idx(tmp_path, {"train": 6})
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(
        bytes((0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2)) + bytes(4)
    )
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 1, 0)))
    assert "train 4x3x1, test 2x2x1" in message(load, f"idx:{tmp_path}", "train")


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((6, 8, 8, 2), 2), ((6, 12, 10, 10), 10), ((6, 4, 5, 4), 4), ((6, 8, 9, 9), 0), ((6, 3, 8, 3), 0)],
)
def test_layouts_of_other_channel_counts(tmp_path, shape, channels):
    name = npz(tmp_path, x=np.resize(GREY, shape), y=LABEL)
    if channels:
        assert load(name, "train").image_shape == shape[1:]
    else:
        words = "[N, H, W, C], where C is 1, 3, or at most H and W, and H not 1 or 3"
        assert words in message(load, name, "train")


# Labels


@pytest.mark.parametrize(
    "labels",
    [
        LABEL[:, None],
        np.eye(3)[LABEL],
        np.eye(3, dtype=bool)[LABEL],
        LABEL.astype(np.float32),
        LABEL.astype(np.uint8),
    ],
)
def test_labels_in_columns_one_hot_or_as_floats_are_classes(tmp_path, labels):
    source = load(npz(tmp_path, train_image=GREY, train_label=labels), "train")
    np.testing.assert_array_equal(source.labels, LABEL)
    assert source.labels.dtype == np.int32 and source.class_names == ("0", "1", "2")


@pytest.mark.parametrize("kind", [str, np.bytes_])
def test_labels_that_are_names_are_the_classes_of_all_splits(tmp_path, kind):
    train, test = np.asarray(["cat", "emu"] * 3, kind), np.asarray(["dog", "cat"], kind)
    arrays = {"train_image": GREY, "train_label": train, "test_image": GREY[:2], "test_label": test}
    name = npz(tmp_path, **arrays)
    assert load(name, "train").class_names == load(name, "test").class_names == ("cat", "dog", "emu")
    assert load(name, "train").labels.tolist() == [0, 2] * 3 and load(name, "test").labels.tolist() == [1, 0]
    assert "train has no images of dog" in load(name, "train").notes
    name = npz(tmp_path, **arrays, class_names=["emu", "cat"])
    assert "dog are not in class_names" in message(load, name, "train")
    name = npz(tmp_path, **arrays, class_names=["cat", "dog", "emu", "cat"])
    for split in ("train", "test"):
        assert "class_names has cat twice" in message(load, name, split)
    name = npz(tmp_path, **arrays, class_names=["cat", "", "dog", "emu"])
    assert "class_names has an empty name" in message(load, name, "train")
    arrays |= {"train_label": LABEL, "test_label": LABEL[:2]}  # numbers say which of the two they mean
    assert load(npz(tmp_path, **arrays, class_names=["cat", "dog", "cat"]), "train").labels.tolist()[2] == 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.eye(3)[LABEL] * 0.9, "one class for each image"),
        (np.ones((6, 3), int), "one class for each image"),
        (LABEL + 0.5, "0.5 of example 0"),
        (np.where(LABEL == 2, np.nan, LABEL), "nan of example 2"),
        (LABEL - 1, "label -1 of example 0"),
        (np.where(LABEL == 0, -2, LABEL), "label -2 of example 0"),
        (LABEL + 2**33, "8589934592 of example 0"),
        (np.full(6, -1), "train has no labels: 6 images"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, words):
    assert words in message(load, npz(tmp_path, train_image=GREY, train_label=labels), "train")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"y": np.eye(4)[LABEL], "x_test": GREY, "y_test": np.eye(3)[LABEL]},
            "4 in train labels, 3 in test labels",
        ),
        ({"y": np.eye(3)[LABEL], "class_names": [*"abcd"]}, "3 in train labels, 4 in class_names"),
        ({"y": np.eye(4)[LABEL], "class_names": [*"abc"]}, "4 in train labels, 3 in class_names"),
    ],
)
def test_one_hot_columns_are_the_same_classes_in_all_splits_and_names(tmp_path, arrays, words):
    """Else a class without images in one split would give the others the labels of their neighbours."""
    for split in ("train", "test"):
        assert words in message(load, npz(tmp_path, x=GREY, **arrays), split)


def test_labels_from_1_are_told(tmp_path):
    arrays = {"train_image": GREY, "train_label": LABEL + 1}
    assert "train has no images of 0" in load(npz(tmp_path, **arrays), "train").notes
    text = message(load, npz(tmp_path, **arrays, class_names=["a", "b", "c"]), "train")
    assert "subtract 1" in text


@pytest.mark.parametrize("form", ["npz", "idx", "parquet"])
def test_numbered_classes_are_those_of_all_splits(tmp_path, form):
    labels = {"train": [0, 1, 0], "test": [0, 4, 1]}
    if form == "npz":
        name = npz(tmp_path, x=GREY[:3], y=labels["train"], x_test=GREY[:3], y_test=labels["test"])
    elif form == "idx":
        write_idx(tmp_path, {"train": 3, "test": 3})
        for split, stem in (("train", "train"), ("test", "t10k")):
            (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(
                bytes((0, 0, 8, 1, 0, 0, 0, 3, *labels[split]))
            )
        name = f"idx:{tmp_path}"
    else:
        for split, each in labels.items():
            write_parquet(tmp_path / f"{split}.parquet", map(png, GREY[:3]), each, features=None)
        name = f"parquet:{tmp_path}"
    for split, each in labels.items():
        source = load(name, split)
        assert source.class_names == ("0", "1", "2", "3", "4") and source.labels.tolist() == each
    assert "train has no images of 2, 3, 4" in load(name, "train").notes


# Splits without labels


@pytest.mark.parametrize("form", ["npz", "npz without", "parquet", "parquet null", "parquet without", "tfds"])
def test_a_split_without_labels_is_left_out_and_told(tmp_path, form):
    if form.startswith("npz"):
        more = {} if "without" in form else {"y_test": np.full(6, -1)}
        name = npz(tmp_path, x_train=GREY, y_train=LABEL, x_test=GREY, **more)
    elif form.startswith("parquet"):
        name = write("parquet", tmp_path, {"train": [*COLOUR]}, {"train": [*LABEL]})
        label = {"parquet": [-1] * 6, "parquet null": [None] * 6}.get(form)
        if label is None:
            import pyarrow
            from pyarrow import parquet

            table = parquet.read_table(tmp_path / "train.parquet").drop(["label"])
            parquet.write_table(pyarrow.table(table), tmp_path / "test.parquet")
        else:
            write_parquet(tmp_path / "test.parquet", map(png, COLOUR), label)
    else:
        write_prepared(tmp_path, "pets", {"train": COLOUR, "test": COLOUR}, ["a", "b"], unlabelled=("test",))
        name = "tfds:pets"
    source = load(name, "train", data_dir=tmp_path)
    assert source.splits == ("train",) and "test has no labels: 6 images" in source.notes
    network = {"class_names": source.class_names, "image_shape": source.image_shape}
    for known in ({}, network)[: 1 if form == "parquet without" else 2]:  # that file alone tells its columns
        told = message(load, name, "test", data_dir=tmp_path, **known)
        assert "'test'; allowed: train; " in told and "test has no labels: 6 images" in told


def test_parquet_files_that_name_no_split_are_all_train(tmp_path):
    for i in range(2):
        write_parquet(tmp_path / f"{i:04d}.parquet", map(png, COLOUR[:3]), [0, 1, 2])
    assert len(load(f"parquet:{tmp_path}", "train")) == 6
    write_parquet(tmp_path / "test.parquet", map(png, COLOUR[:3]), [0, 1, 2])
    assert "0000.parquet: its name does not name a split" in message(load, f"parquet:{tmp_path}", "train")


# Folders of shards


def few(form: str, path: Path) -> None:
    """Three images in one file of that form, or for a folder in two class folders."""
    if form == "parquet":
        write_parquet(path.with_suffix(".parquet"), map(png, COLOUR[:3]), [0, 1, 2])
    elif form == "tar":
        write_tar(path.with_suffix(".tar"), samples(0, 3))
    else:
        for i in range(3):
            file = path / "abc"[i] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(COLOUR[i]))


@pytest.mark.parametrize("form", ["parquet", "tar"])
@pytest.mark.parametrize(
    ("files", "given"),
    [
        (("full/train/0", "full/test/0", "mini/train/0"), "full, mini"),
        (("full/train/0", "mini/test/0"), "full, mini"),
        (("snapshots/1a/data/train-0", "snapshots/2b/data/train-0"), "snapshots/1a/data, snapshots/2b/data"),
        (("train/0", "old/train/0"), "., old"),
        (("full/0", "mini/0"), "full, mini"),
    ],
)
def test_configs_and_revisions_are_not_merged_to_one_set(tmp_path, form, files, given):
    for file in files:
        few(form, tmp_path / file)
    for split in ("train", "test"):
        text = message(load, f"{form}:{tmp_path}", split)
        assert f"{tmp_path}: several configs or revisions: {given}; name one of the folders" in text


@pytest.mark.parametrize("form", ["parquet", "tar"])
@pytest.mark.parametrize(
    "files",
    [
        ("train-0", "train-1", "test-0"),
        ("data/train-0", "data/train-1", "data/test-0"),
        ("pets_train_0", "pets_train_1", "pets_test"),
        ("TrainSet-0", "TrainSet-1", "TestSet"),
        ("train/0", "train/1", "test/0"),
        ("train/part0/0", "train/part1/0", "test/0"),
        ("a/train/train-0", "a/train/train-1", "a/test/test-0"),
        (
            "snapshots/1a/train-0",
            "snapshots/1a/train-1",
            "snapshots/1a/.hidden/train-2",
            "snapshots/1a/test/0",
        ),
    ],
)
def test_files_of_one_set_are_merged(tmp_path, form, files):
    for file in files:
        few(form, tmp_path / file)
    lengths = {split: len(load(f"{form}:{tmp_path}", split)) for split in ("train", "test")}
    assert lengths == {"train": 6, "test": 3}


@pytest.mark.parametrize("form", ["folder", "parquet", "tar"])
def test_linked_folders_are_read_and_unreadable_ones_refused(tmp_path, form, monkeypatch):
    few(form, tmp_path / "set/train/0")
    few(form, tmp_path / "elsewhere/1")
    (tmp_path / "set/train/more").symlink_to(tmp_path / "elsewhere")
    assert len(load(f"{form}:{tmp_path / 'set'}", "train")) == 6
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    text = message(load, f"{form}:{tmp_path / 'set'}", "train")
    assert f"{tmp_path / 'set/train/more'}: cannot be read (Permission denied)" in text


# Channels and sizes


@pytest.mark.parametrize("form", ["folder", "parquet"])
@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("order", ["grey first", "colour first", "grey train", "colour train", "grey"])
def test_channels_are_those_of_the_set(tmp_path, form, size, order):
    grey, colour = [GREY[0], GREY[1]], [COLOUR[0], COLOUR[1]]
    images = {
        "grey first": {"train": [*grey, *colour], "test": colour},
        "colour first": {"train": [*colour, *grey], "test": grey},
        "grey train": {"train": grey, "test": colour},
        "colour train": {"train": colour, "test": grey},
        "grey": {"train": grey, "test": grey},
    }[order]
    name = write(form, tmp_path, images, {split: [0, 1, 0, 1][: len(each)] for split, each in images.items()})
    channels = 1 if order == "grey" and form == "parquet" else 3
    for split, each in images.items():
        source = load(name, split, size=size)
        assert source.image_shape == (size or 8, size or 8, channels)
        assert to_memory(source).images.shape == (len(each), *source.image_shape)


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_images_of_several_sizes_are_counted_before_any_is_read(tmp_path, form):
    odd = np.zeros((5, 7, 3), np.uint8)
    for number, images in enumerate(
        ({"train": [*COLOUR, odd], "test": [*COLOUR]}, {"train": [*COLOUR], "test": [odd]})
    ):
        labels = {split: [i % 2 for i in range(len(each))] for split, each in images.items()}
        name = write(form, tmp_path / str(number), images, labels)
        for split in images:
            text = message(load, name, split)
            assert f"8x8 ({12 if number == 0 else 6}), 5x7 (1)" in text and "size=8 must be given" in text
            assert load(name, split, any_size=True).image_shape == (8, 8, 3)
        assert load(name, "train", size=8).image_shape == (8, 8, 3)


def test_sizes_are_those_of_upright_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        (tmp_path / "ab"[i]).mkdir()
        upright = (
            Image.fromarray(np.zeros((6, 8, 3), np.uint8))
            if i
            else Image.fromarray(np.zeros((8, 6, 3), np.uint8))
        )
        upright.save(tmp_path / "ab"[i] / "0.jpg", **({} if i else {"exif": exif}))
    assert load(f"folder:{tmp_path}", "train").image_shape == (6, 8, 3)


# Bad images


@pytest.mark.parametrize("form", ["folder", "parquet"])
@pytest.mark.parametrize("place", [0, 3])
def test_bad_images_of_any_kind_can_be_skipped_wherever_they_are(tmp_path, form, place):
    name = write(form, tmp_path, {"train": [*COLOUR]}, {"train": [0] * 3 + [1] * 3})
    if form == "parquet":
        for kind in (None, b"", b"not an image"):
            data = [png(each) for each in COLOUR]
            data[place] = kind
            write_parquet(tmp_path / "train.parquet", data, [0] * 3 + [1] * 3)
            assert len(to_memory(load(name, "train"), 1)) == 5
        return
    file = tmp_path / f"train/{'ab'[place // 3]}/{place}.png"
    for broken in (lambda: file.symlink_to(tmp_path / "nowhere"), lambda: file.write_bytes(b""), file.mkdir):
        file.unlink()
        broken()
        found = load(name, "train")
        assert len(to_memory(found, 1)) == 5 and found.image_shape == (8, 8, 3)
        if file.is_dir():
            return


def test_a_set_without_one_image_that_can_be_read_is_told(tmp_path):
    name = write("parquet", tmp_path, {"train": [*COLOUR]}, {"train": [0, 1] * 3})
    write_parquet(tmp_path / "train.parquet", [b"x"] * 4, [0, 1] * 2)
    with pytest.raises(UserError, match="no image can be read|not an image"):
        to_memory(load(name, "train", size=4), 10)
    assert "train has no images" in message(load, npz(tmp_path, x=GREY[:0], y=LABEL[:0]), "train")


# Validation


def test_a_class_of_one_image_stays_in_train_and_that_is_told(tmp_path):
    labels = np.asarray([0] * 5 + [1] * 5 + [2])
    for seed in range(20):
        for count in range(1, 9):
            rest, drawn = hold_out(labels, count, seed)
            assert 10 in rest and len(drawn) == count and {*labels[rest]} == {0, 1, 2}
    name = npz(tmp_path, x=np.zeros((11, 8, 8), np.uint8), y=labels)
    held = load(name, "validation", num_validation=4)
    assert sorted(held.labels) == [0, 0, 1, 1] and "which has no images of 2" in held.notes
    assert "allowed: 1 to 8" in message(load, name, "train", num_validation=9)


def test_the_sets_own_validation_split_is_used_unless_it_is_the_test(tmp_path):
    arrays = {"train_image": GREY, "train_label": LABEL, "val_image": GREY[:2], "val_label": LABEL[:2]}
    name = npz(tmp_path, **arrays)
    for number in (0, 3):
        train = load(name, "train", num_validation=number)
        assert train.splits == ("train", "validation") and len(train) == 6
        assert len(load(name, "validation", num_validation=number)) == 2
        assert ("its own validation split is used, none is held out" in train.notes) == bool(number)
    split = {"test_split": "validation", "num_validation": 3}
    assert [len(load(name, each, **split)) for each in ("train", "validation", "test")] == [3, 3, 2]
    assert load(name, "train", test_split="validation").splits == ("train", "test")
    assert "test_split='tset' is not a split" in message(load, name, "train", test_split="tset")


def test_a_size_that_arrays_are_not_brought_to_is_told(tmp_path):
    notes = load(npz(tmp_path, x=GREY, y=LABEL), "train", size=4).notes
    assert "size=4 has no effect, as images are stored as arrays" in notes


@pytest.mark.parametrize("form", ["npz", "records"])
def test_what_is_not_resized_is_not_said_to_be(tmp_path, form, tiny_run, capsys):
    """`prepare --short_side` wrote arrays as they are, and evaluation advised to prepare them."""
    draw = np.random.default_rng(0).integers(0, 256, (12, 300, 300, 1), np.uint8)
    name = npz(tmp_path, x=draw, y=np.arange(12) % 2)
    out = tmp_path / "out"
    assert main.run(["data", "prepare", name, f"--out={out}"]) == 0
    told = capsys.readouterr().out
    assert "stored as 300x300\n" in told and "no effect" not in told
    name = f"records:{out}" if form == "records" else name
    assert main.run(["data", "prepare", name, f"--out={tmp_path / 'new'}", "--short_side=64"]) == 0
    told = capsys.readouterr().out
    assert "size=64 has no effect, as images are stored as arrays" in told and "stored as 300x300\n" in told
    assert main.run(["evaluate", f"--workdir={tiny_run}", f"--data={name}", "--split=train"]) == 2
    assert capsys.readouterr().err.endswith("images of 300x300x1; this run takes 8x8x1; resize them\n")
