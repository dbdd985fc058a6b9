"""Folders and archives of images: which are splits and classes, what is left out and what is refused."""

import io
import json
import os
import tarfile
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.cli import main
from cnnjax.cli.progress import Lines
from cnnjax.cli.tables import Console
from cnnjax.data import datasets
from cnnjax.data.decode import FORMATS, IMAGE_SUFFIXES
from cnnjax.data.sources.folder import ImageFolder
from cnnjax.data.sources.layout import split_of
from cnnjax.data.sources.source import Place, describe
from cnnjax.errors import BadImage, UserError
from cnnjax.runs.train import train

OTHERS = (".txt", ".csv", ".json", ".array_record")
KINDS = ("folder", "zip", "tar")


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(root: Path, kind: str, names: Sequence[str]) -> Path:
    """A folder, zip or tar of pictures, of text for names of other files, and of folders that end in /."""
    path = root / f"data.{kind}"
    files = {name: png(n % 256) if not name.endswith(OTHERS) else b"x" for n, name in enumerate(names)}
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, b"" if name.endswith("/") else data)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name.rstrip("/"))
                entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                entry.size = 0 if name.endswith("/") else len(data)
                archive.addfile(entry, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                (path / name).mkdir(exist_ok=True)
            else:
                (path / name).write_bytes(data)
    return path


def several(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(count)]


def understood(path: Path) -> dict[str, dict[str, int]]:
    """split -> class -> images."""
    images = ImageFolder(path)
    return {s: {c: len(m) for c, m in by_class.items()} for s, (_, by_class) in images.splits.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("train", "test", "test"),
        ("Training", "Testing", "test"),
        ("TRAIN", "VAL", "validation"),
        ("seg_train", "seg_test", "test"),
        ("train", "dev", "validation"),
        ("train", "eval", "validation"),
        ("train", "valid", "validation"),
        ("training_set", "test_set", "test"),
        ("TrainSet", "ValidationSet", "validation"),
        ("train-images", "test-images", "test"),
        ("train2017", "val2017", "validation"),
        ("asl_alphabet_train", "asl_alphabet_test", "test"),
        ("1_train", "2_test", "test"),
        ("images/train", "images/test", "test"),
        ("my data/v1/Train", "my data/v1/Test", "test"),
        ("train/images", "test/images", "test"),
        ("training_set/training_set", "test_set/test_set", "test"),
    ],
)
def test_splits_are_found_as_people_name_them(tmp_path, kind, train, other, split):
    names = [*several(f"{train}/a", f"{train}/b", count=3), *several(f"{other}/a", f"{other}/b")]
    names += ["images/readme.txt"] if train == "images/train" else []
    path = write(tmp_path, kind, names)
    assert understood(path) == {"train": {"a": 3, "b": 3}, split: {"a": 2, "b": 2}}
    assert datasets.official_splits(f"folder:{path}") == ("train", split)


@pytest.mark.parametrize(
    "name", ["train_station", "test-tube", "trains", "contest", "trainer", "evaluation", "7"]
)
def test_names_that_only_look_like_splits_are_classes(tmp_path, name):
    path = write(tmp_path, "zip", several(name, "b", "c"))
    assert set(understood(path)["train"]) == {name, "b", "c"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (several("train/a", "val/a", "validation/a"), ["val and validation", "both named like validation"]),
        (several("Train/a", "train/a", "test/a"), ["Train and train", "both named like train"]),
        (
            several("bus", "car", "train"),
            ["is train, beside bus, a split or a class", "into one folder train/"],
        ),
        (several("cat", "dog", "test/cat", "test/dog"), ["is test, beside cat, a split or a class"]),
        (several("train_v1/a", "test_v2/a"), ["test_v2 and train_v1 splits or classes"]),
        (several("cat/train", "cat/test", "dog/train", "dog/test"), ["/cat: splits inside a class"]),
        (several("cat/train2", "cat/test2", "dog"), ["/cat: splits inside a class"]),
        (
            several("set/images/TRAIN/a", "set/images/TEST/a", "other/x"),
            ["/images: splits inside a class"],
        ),
        (several("train/a", "train/b", "train/val/a"), ["train/val/a: of class val or a? move it away"]),
        (several("roses", "tulips", "flowers/roses", "flowers/tulips"), ["of class flowers or roses?"]),
        (["train_cat_1.png", "train_dog_1.png", "test_cat_1.png"], ["files begin with test_ and train_"]),
        (several("train/Cat", "train/cat"), ["are 'Cat' and 'cat' one class or two"]),
        (several("train/caf\u00e9", "train/cafe\u0301"), ["one class or two"]),
        ([*several("train/a", "train/b"), "train/c/"], ["train/c: a class without images; fill or remove"]),
        (
            [*several("train/a"), "train/c/x.txt", "train/c/d/y.csv"],
            ["train/c: a class without images but 1 .csv, 1 .txt; fill it or move it away"],
        ),
        ([*several("train/a"), "train/c/.DS_Store"], ["train/c: a class without images"]),
        (several("train/a", "train/b", "test/a", "test/c"), ["test/c: not a class of train; allowed: a, b"]),
        (
            [*several("train/a", "train/b"), "test/a_1.png", "test/x.png"],
            ["test/x.png: does not begin with a class"],
        ),
        (several("train/a", "train/b", "test/a", "test/A"), ["a second folder of class a; merge them"]),
        ([f"img_{n}.png" for n in range(4)], ["all 4 images begin with img_, which is one class"]),
        ([*(f"{c}_{n}.png" for n in range(4) for c in "ab"), "c/1.png"], ["8 images beside folders of 1"]),
        (["a.txt", "b.csv", "c.txt"], ["no images but 2 .txt, 1 .csv"]),
        (["tench.png"], ["tench.png: an image outside a class folder"]),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_could_mean_two_things_is_refused_in_one_line(tmp_path, kind, names, words):
    path = write(tmp_path, kind, names)
    with pytest.raises(UserError) as error:
        ImageFolder(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("names", "expected", "words"),
    [
        (  # a picture beside the class folders, and a folder beside the splits
            [*several("train/a", "train/b", "test/a", "test/b"), "train/plot.png", *several("seg_pred")],
            {"train": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}},
            ["left out: train/plot.png, 2 images in seg_pred, outside class folders"],
        ),
        (  # suffixes that are no images'
            [*several("a", "b"), "a/1.txt", "labels.csv", "b/2.csv", "b/LICENSE.txt", "c.csv"],
            {"train": {"a": 2, "b": 2}},
            ["left out: 2 .txt, 3 .csv"],
        ),
        (  # a test folder without labels
            [*several("train/cat", "train/dog"), *several("test", count=3)],
            {"train": {"cat": 2, "dog": 2}},
            ["test has no labels: 3 images outside class folders in test"],
        ),
        (  # the same one folder deeper, as others need it
            [*several("train/cat", "train/dog"), *several("test/unknown", count=3)],
            {"train": {"cat": 2, "dog": 2}},
            ["test has no labels: 3 images outside class folders in test/unknown"],
        ),
        (  # a test folder of loose files that begin with their class, the longest that fits
            [*several("train/a", "train/a_b"), "test/a_1.png", "test/a_b_1.png", "test/A_b_2.png"],
            {"train": {"a": 2, "a_b": 2}, "test": {"a": 1, "a_b": 2}},
            ["train 4, test 3 images"],
        ),
        (  # classes in other letters
            several("train/Cat", "train/caf\u00e9", "val/cat", "val/cafe\u0301"),
            {"train": {"Cat": 2, "caf\u00e9": 2}, "validation": {"Cat": 2, "caf\u00e9": 2}},
            ["train 4, validation 4 images"],
        ),
        (  # capital and small letters are two classes
            several("train/A", "train/a", "test/A", "test/a"),
            {"train": {"A": 2, "a": 2}, "test": {"A": 2, "a": 2}},
            [],
        ),
        (  # a class without test images
            several("train/a", "train/b", "test/a"),
            {"train": {"a": 2, "b": 2}, "test": {"a": 2, "b": 0}},
            ["test has no images of b"],
        ),
        (  # folders in class folders
            [*several("train/a/x", "train/a/y"), *several("train/b")],
            {"train": {"a": 4, "b": 2}},
            ["train/a/x and other folders inside a class folder belong to its class"],
        ),
        (  # a class named like a split has its way out
            several("train/bus", "train/train", "train/test", "test/train"),
            {"train": {"bus": 2, "test": 2, "train": 2}, "test": {"bus": 0, "test": 0, "train": 2}},
            [],
        ),
        (  # what systems leave behind is no picture, nor is what predict --explain drew
            [*several("train/a", "train/b"), *several(
                "train/.ipynb_checkpoints", "train/a/@eaDir/1.png", "__MACOSX/train/a", "train/a/.thumb",
                "train/#recycle", "lost+found",
            ), "train/a/._0.png", "train/b/0.gradcam.png", "train/b/0.gradcam-2.png"],
            {"train": {"a": 2, "b": 2}},
            ["train 4 images"],
        ),
        (  # a picture beside the one folder on top
            [*several("set/a", "set/b"), "cover.png"],
            {"train": {"a": 2, "b": 2}},
            ["left out: cover.png"],
        ),
        (  # folders without images, as of labels and of a split that is not yet filled
            [*several("images/train/a", "images/train/b"), "labels/a/0.txt", "labels/b.txt", "images/test/"],
            {"train": {"a": 2, "b": 2}},
            ["left out: 2 .txt; folders without images: images/test, labels"],
        ),
        (several("val/a", "test/b"), {"validation": {"a": 2, "b": 0}, "test": {"a": 0, "b": 2}}, []),
        (
            ["n02_ray.png", "n01_tench_2.png"],
            {"train": {"n01": 1, "n02": 1}},
            ["loose files belong to the class before their first _: n01_tench_2.png of n01"],
        ),
        (  # folders that are left out are named as a whole
            several("x/train/a", "x/test/a", "x/x/train/a", "x/x/train/b", "x/x/test/a"),
            {"train": {"a": 2}, "test": {"a": 2}},
            ["left out: 6 images in x/x, outside class folders"],
        ),
        (["./train/a/1.png", "./test/a/1.png", "./"], {"train": {"a": 1}, "test": {"a": 1}}, []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_understood_and_left_out_is_told(tmp_path, kind, names, expected, words):
    path = write(tmp_path, kind, names)
    assert understood(path) == expected
    notes = "; ".join(ImageFolder(path).notes)
    assert all(word in notes for word in words), notes
    for split, by_class in expected.items():
        source = datasets.load(f"folder:{path}", split)
        labels = [label for label, count in enumerate(by_class.values()) for _ in range(count)]
        assert source.labels.tolist() == labels and [source[i]["label"] for i in range(len(source))] == labels


@pytest.mark.parametrize("kind", KINDS)
def test_splits_that_a_network_does_not_ask_for_are_not_called_left_out(tmp_path, kind):
    names = several("train/a", "train/b", "val/a", "test/a", "test/b", "extra/x")
    path = write(tmp_path, kind, [*names, "readme.txt"])
    source = datasets.load(f"folder:{path}", "test", class_names=("a", "b"), image_shape=(4, 4, 3))
    assert source.notes == ("test 4 images", "left out: 2 images in extra, outside class folders, 1 .txt")


@pytest.mark.parametrize("kind", KINDS)
def test_an_unlabelled_split_is_named_where_it_is_asked_for(tmp_path, kind):
    path = write(tmp_path, kind, [*several("train/cat", "train/dog"), *several("test", count=3)])
    network = {"class_names": ("cat", "dog"), "image_shape": (4, 4, 3)}
    for known in ({}, network):
        with pytest.raises(UserError, match="'test'; allowed: train; train .*; test has no labels: 3 images"):
            datasets.load(f"folder:{path}", "test", **known)


def test_every_suffix_that_pillow_has_for_our_formats_is_an_image():
    Image.init()
    formats = {name.upper() for name in FORMATS} | {"MPO"}
    assert set(IMAGE_SUFFIXES) == {s for s, kind in Image.registered_extensions().items() if kind in formats}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_any_such_suffix_is_used(tmp_path, kind):
    path = write(tmp_path, kind, [f"{c}/0{s}" for c in "ab" for s in IMAGE_SUFFIXES] + ["b/1.JFIF"])
    assert understood(path) == {"train": {"a": len(IMAGE_SUFFIXES), "b": len(IMAGE_SUFFIXES) + 1}}


def test_the_last_of_two_members_of_one_name_counts_as_in_unpacking(tmp_path):
    for kind in ("zip", "tar"):
        with pytest.warns(UserWarning) if kind == "zip" else io.BytesIO():
            path = write(tmp_path, kind, ["a/1.png"])
            if kind == "zip":
                with zipfile.ZipFile(path, "a") as archive:
                    archive.writestr("a/1.png", png(99))
            else:
                with tarfile.open(path, "a") as archive:
                    entry = tarfile.TarInfo("a/1.png")
                    entry.size = len(png(99))
                    archive.addfile(entry, io.BytesIO(png(99)))
        source = datasets.load(f"folder:{path}", "train")
        assert len(source) == 1 and source[0]["image"].max() == 99


def test_a_zip_with_windows_separators(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in several("train\\a", "train\\b"):
            archive.writestr(name.replace("/", "\\"), png())
    assert understood(path) == {"train": {"a": 2, "b": 2}}


@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "Käfer犬"), ("cp437", "Käfer"), ("cp437", "ßß")])
def test_names_in_a_zip_without_the_mark_of_their_encoding(tmp_path, encoding, name):
    """Info-ZIP and macOS write UTF-8, programs on Windows an old code page; neither says so."""
    encoded = name.encode(encoding)
    path = write(tmp_path, "zip", several("train/" + "x" * len(encoded), "train/b"))
    path.write_bytes(path.read_bytes().replace(b"x" * len(encoded), encoded))
    assert understood(path) == {"train": {"b": 2, name: 2}}
    source = datasets.load(f"folder:{path}", "train")
    assert [source[i]["label"] for i in range(4)] == source.labels.tolist()  # each name is at its own place


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_names_that_are_not_utf_8_or_of_several_lines(tmp_path, kind):
    path = write(tmp_path, kind, several("train/caf\udce9", "train/a\nb", "seg_\udce9/x"))
    assert understood(path) == {"train": {"a\nb": 2, "caf\udce9": 2}}
    told = describe(datasets.load(f"folder:{path}", "train"))
    assert r"2 classes (a\nb, caf\udce9)" in told and r"seg_\udce9" in told and told.isprintable()


def test_links_and_pipes(tmp_path):
    path = write(tmp_path, "folder", [*several("real/a", "real/b"), "set/readme.txt"])
    (path / "set/train").symlink_to(path / "real")
    (path / "real/a/broken.png").symlink_to(path / "nowhere.png")
    (path / "real/a/gone").symlink_to(path / "nowhere")
    os.mkfifo(path / "real/b/pipe.png")
    images = ImageFolder(path / "set")
    assert understood(path / "set") == {"train": {"a": 3, "b": 2}}
    assert "1 without suffix" in images.notes[-1] and "1 pipes, devices or links" in images.notes[-1]
    source = images.source("train", Place("links", "", None, None))
    with pytest.raises(BadImage, match=r"broken.png: cannot be read"):
        source[2]
    (path / "set/train/a/up").symlink_to(path / "set")
    (path / "set/train/b/beside").symlink_to(path / "real/a")
    images = ImageFolder(path / "set")
    assert understood(path / "set") == {"train": {"a": 3, "b": 2 + 3}}
    assert "3 pipes, devices or links that lead back" in images.notes[-1]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_endless_folders_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match="folders more than 20 deep"):
        ImageFolder(write(tmp_path, kind, ["a/" * 2000 + "1.png"]))


RUN = ["config.json", "record.json", "checkpoints/2/x.txt", "report/a/1.png", "report/a/2.png"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("above", ["", "train/", "train/a/", "train/more/deep/"])
@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ([f"out/{name}" for name in RUN], "out"),
        ([f"out/seed{seed}/{name}" for seed in range(2) for name in [*RUN, "../sweep.json"]], "out"),
        (["out/config.json", "out/checkpoints/x.txt"], "out"),  # killed as it began
        (["out/dataset.json", "out/train-00000.array_record", "out/train-00000.json"], "out"),
        (["out/plan.json", "out/train-00000.array_record"], "out"),  # not yet whole
    ],
)
def test_runs_and_prepared_data_among_the_images_are_left_out(tmp_path, kind, above, written, shown):
    """Their pictures became images of a class; without any they were to be filled or removed."""
    names = several("train/a", "train/b", "test/a")
    before = ImageFolder(write(tmp_path, kind, names))
    (tmp_path / "with").mkdir()
    names += [os.path.normpath(f"{above}{name}") for name in written]
    after = ImageFolder(path := write(tmp_path / "with", kind, names))
    top = f"{above}{shown}".replace("more/deep/out", "more")  # what holds nothing else goes with it
    assert f"left out: {top}, written by cnnjax" in after.notes
    assert understood(path) == {"train": {"a": 2, "b": 2}, "test": {"a": 2, "b": 0}}
    for split in before.splits:
        sources = [images.source(split, Place("", "", None, None)) for images in (before, after)]
        assert sources[0].fingerprint == sources[1].fingerprint


def test_a_description_beside_images_does_not_hide_them(tmp_path):
    """Other programs write a dataset.json, or a config.json, too."""
    names = [*several("a", "b"), "dataset.json", "config.json", "a/dataset.json", "b/config.json"]
    assert understood(write(tmp_path, "folder", names)) == {"train": {"a": 2, "b": 2}}


def test_splits_of_names():
    assert split_of("ILSVRC2012_img_train") == ("train", ("ilsvrc", "2012"))
    assert split_of("Testing Set") == ("test", ()) and split_of("train_val") is None
    assert split_of(unicodedata.normalize("NFD", "Trainé")) is None and split_of("") is None


FINGERPRINTS = {  # of data sets that runs were trained on before split folders had other names than these
    ("splits", "train"): "4a2c085ed186",
    ("splits", "validation"): "926ce131b236",
    ("splits", "test"): "bf69f746c28e",
    ("classes", "train"): "b51011bf6542",
    ("loose", "train"): "c6676d4ec718",
    ("loose splits", "validation"): "a4f52f8229ff",
}
OLD = {
    "splits": [
        "train/b/1.jpg", "train/a/2.png", "train/a/x/3.JPG", "train/a-b/1.png", "val/a/1.png", "val/b/1.png",
        "test/a-b/9.webp", "train/a/notes.txt", "readme.md", "train/a/.x.png",
    ],
    "classes": ["b/1.jpg", "a/2.png", "a/10.png"],
    "loose": ["n02_ray.JPEG", "n01_tench.JPEG", "n01_a_b.png"],
    "loose splits": ["train/n02_ray.JPEG", "train/n01_tench.JPEG", "val/n01_a_b.png"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "split"), FINGERPRINTS)
def test_runs_on_layouts_that_always_worked_resume(tmp_path, name, split):
    for number, file in enumerate(OLD[name]):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x" * (number + 1))
    source = datasets.load(f"folder:{tmp_path}", split)
    assert source.fingerprint.startswith(FINGERPRINTS[name, split])


NAMES = [*several("[set]/Training/[a]", "[set]/Training/:b:", "[set]/Testing/:b:", count=6), "[set]/plot.png"]
LINE = "2 classes (:b:, [a]); train 12, test 6 images; test has no images of [a]; left out: [set]/plot.png"


def test_inspect_says_what_was_understood_with_classes_by_split(tmp_path, capsys):
    path = write(tmp_path, "folder", [*NAMES, "notes.txt"])
    Image.new("L", (9, 5)).save(path / "[set]/Training/:b:/0.png")
    assert main.run(["data", "inspect", f"folder:{path}"]) == 0
    printed = capsys.readouterr().out
    assert f"folder:{path}: {LINE}, outside class folders, 1 .txt" in printed
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert rows[0][:7] == ["train", "12", "2", "6, 6", "3", "12", "4x4 (11), 5x9 (1)"]
    assert rows[1][:7] == ["test", "6", "1", "0, 6", "3", "6", "4x4 (6)"]
    assert rows[2:] == [[":b:", "6", "6"], ["[a]", "6", "0"]]
    assert "mean of train: " in printed


def test_prepare_says_the_same_and_needs_a_train_split(tmp_path, capsys):
    path = write(tmp_path, "zip", NAMES)
    assert main.run(["data", "prepare", f"folder:{path}", f"--out={tmp_path / 'out'}", "--short_side=4"]) == 0
    assert capsys.readouterr().out.startswith(f"folder:{path}: {LINE}")
    path = write(tmp_path, "tar", several("test/a", "test/b"))
    assert main.run(["data", "prepare", f"folder:{path}", f"--out={tmp_path / 'other'}"]) == 2
    assert "only test can be prepared; add a train split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "stored"),
    [(["40x30"], (30, 40)), (["40x30", "9x8", "40x30"], (30, 30)), (["300x400"], (256, 256))],
)
def test_prepare_keeps_small_images_and_says_so(sizes, stored, tmp_path, capsys):
    for i, size in enumerate(sizes):
        for label in "ab":
            file = tmp_path / "set" / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", tuple(map(int, size.split("x")))).save(file)
    assert main.run(["data", "prepare", f"folder:{tmp_path / 'set'}", f"--out={tmp_path / 'out'}"]) == 0
    assert f"stored as {stored[0]}x{stored[1]}; --short_side=N resizes to NxN\n" in capsys.readouterr().out
    assert datasets.load(f"records:{tmp_path / 'out'}", "train").image_shape == (*stored, 3)


def test_train_says_the_same_in_one_line_before_the_first_step(tmp_path, tiny_config):
    path = write(tmp_path, "zip", NAMES)
    tiny_config.update({"data": {"name": f"folder:{path}", "num_validation": 2}, "total_epochs": 1.0})
    tiny_config.augment.train = "normalize"
    shown = io.StringIO()
    train(tiny_config, tmp_path / "run", Lines(Console(file=shown)))
    line, *header, first_row = shown.getvalue().splitlines()[:5]
    held = "2 of train held out for validation"
    assert line == f"folder:{path}: {LINE}, outside class folders; {held}; images 4x4x3"
    assert header[-1] == f"run folder {tmp_path / 'run'}" and first_row.startswith("step ")


def test_predict_takes_the_files_that_training_takes_and_tells_the_others(tmp_path, tiny_run, capsys):
    names = [f"a/0{suffix}" for suffix in IMAGE_SUFFIXES]
    names += [
        "a/.hidden.png",
        ".ipynb_checkpoints/1.png",
        "__MACOSX/1.png",
        "@eaDir/1.png",
        "a/0.gradcam.png",
    ]
    path = write(tmp_path, "folder", [*names, "a/x.heic", "b.csv", "c.csv"])
    assert main.run(["predict", f"--workdir={tiny_run}", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    found = [json.loads(line)["image"] for line in printed.out.splitlines()]
    assert sorted(found) == sorted(str(path / f"a/0{suffix}") for suffix in IMAGE_SUFFIXES)
    assert printed.err == f"{path}: skipped 1 .heic, 2 .csv, 1 pictures of --explain\n"
