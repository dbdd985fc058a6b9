"""`cnnjax train --data=FOLDER`: what is chosen for images of which nothing is known."""

import functools
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.data import datasets, fetch
from cnnjax.data.prepare import prepare
from cnnjax.errors import UserError
from cnnjax.runs import hub, pretrained
from cnnjax.runs.facts import recorded
from cnnjax.runs.folder import Run
from cnnjax.runs.loaded import with_data
from cnnjax.runs.own_images import suited


def write(folder, sizes, classes=("cat", "dog"), mode="RGB"):
    """An image of each size in every class folder."""
    draw = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            noise = draw.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(noise).convert(mode).save(folder / name / f"{i}.png")
    return folder


def chosen(folder, **fields):
    config, line = suited(config_lib.assign(config_lib.default(), fields), str(folder))
    config_lib.validate(config)
    return config_lib.flatten(config), line


def test_photographs_of_all_sizes_are_brought_to_one(tmp_path):
    values, line = chosen(write(tmp_path / "photos", [(90, 70), (80, 120), (64, 200)] * 10))
    assert values["data.size"] == 64 and values["augment.train"].startswith("random_crop(64, padding=8)")
    assert values["data.num_validation"] == 6  # a tenth
    assert (values["total_epochs"], values["eval_every_epochs"]) == (60.0, 5.0)  # twelve evaluations
    assert values["data.name"] == f"folder:{tmp_path / 'photos'}" and "data.size=64" in line


def test_small_images_stay_as_they_are_and_each_class_has_one_held_out(tmp_path):
    values, _ = chosen(write(tmp_path / "grey", [(28, 28)] * 3, ("a", "b", "c"), "L"))
    assert values["data.size"] == 0 and values["augment.train"].startswith("random_crop(28, padding=3)")
    assert values["data.num_validation"] == 3


def test_no_more_is_held_out_than_there_is(tmp_path):
    values, _ = chosen(write(tmp_path / "one", [(32, 32)]))
    assert values["data.num_validation"] == 0


@pytest.mark.parametrize(("images", "held_out"), [(40, 4), (12, 2), (3, 1)])
def test_classes_without_images_do_not_count(tmp_path, images, held_out):
    """Only their names are known; with more of them than half the images none, or half, was held out."""
    arrays = {"x": np.zeros((images, 8, 8), np.uint8), "y": np.arange(images) % 2}
    np.savez(tmp_path / "a.npz", **arrays, class_names=[f"class {i}" for i in range(30)])
    assert chosen(tmp_path / "a.npz")[0]["data.num_validation"] == held_out


def test_a_validation_split_of_its_own_is_taken(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "both" / split, [(32, 32)] * 4)
    assert chosen(tmp_path / "both")[0]["data.num_validation"] == 0


def test_what_the_user_says_wins(tmp_path):
    values, line = chosen(write(tmp_path / "x", [(32, 32)] * 4), model="lenet5", total_epochs=3.0)
    assert values["model"] == "lenet5" and values["total_epochs"] == 3.0
    assert "lenet5" not in line


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        ("total_epochs=10", "total_epochs: 10.0"),
        ("batch_size=128", "batch_size: 128"),
        ("model=simple_cnn", "model: 'simple_cnn'"),
        ("augment.train=normalize", "train: 'normalize'"),
        ("data.num_validation=600", "num_validation: 600"),
    ],
)
def test_a_flag_wins_though_its_value_is_the_default(flag, field, tmp_path, capsys):
    write(tmp_path / "x", [(32, 32)] * 4)
    words = ["train", f"--data={tmp_path / 'x'}", f"--config.{flag}", "--print_config"]
    assert main.run(words) == 0
    printed = capsys.readouterr().out
    assert field in printed and f"{flag.partition('=')[0]}=" not in printed.splitlines()[0]


def test_crops_are_of_the_size_that_a_flag_gives(tmp_path):
    values, _ = chosen(write(tmp_path / "x", [(120, 130)] * 4), **{"data.size": 96})
    assert values["augment.train"].startswith("random_crop(96, ") and values["data.size"] == 96


def test_the_fields_of_the_data_set_are_those_of_the_run(tmp_path, monkeypatch):
    """Which splits count, whether it may be downloaded, and what errors call them."""
    for split in ("train", "val"):
        write(tmp_path / "both" / split, [(32, 32)] * 10)
    fields = {"data.test_split": "validation", "data.num_validation": 0}
    assert chosen(tmp_path / "both", **{"data.test_split": "validation"})[0]["data.num_validation"] == 2
    given = config_lib.assign(config_lib.default(), fields)
    assert suited(given, str(tmp_path / "both"), given=fields)[0].data.num_validation == 0
    monkeypatch.setattr(fetch, "download", lambda *_: pytest.fail("it downloads"))
    monkeypatch.setattr(datasets, "find", lambda *_: None)
    for field, value, words in (
        ("download", False, "downloads are off"),
        ("dir", "gone", "config.data.dir: "),
    ):
        with pytest.raises(UserError, match=words):
            suited(config_lib.assign(config_lib.default(), {f"data.{field}": value}), "mnist")


@pytest.mark.parametrize(
    ("weights", "model"),
    [
        ("torchvision", "resnet18"),
        ("torchvision:resnet50", "resnet50"),
        ("timm:resnet50.a1_in1k", "resnet50"),
        ("torchvision:IMAGENET1K_V1", "resnet18"),
        ("hf:someone/flowers", "lenet5"),
    ],
)
def test_the_network_is_that_of_the_weights(weights, model, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_torchvision", lambda row: tmp_path)
    monkeypatch.setattr(hub, "snapshot", lambda *_: tmp_path)
    own = {"model": "lenet5", "data": {"name": "flowers"}}
    (tmp_path / "config.json").write_text(json.dumps({"cnnjax": own}))
    images = stored(tmp_path / "own", "npz", (32, 32))
    assert suited(config_lib.default(), images, weights)[0].model == model
    fields = {"model": "simple_cnn"}
    assert suited(config_lib.default(), images, weights, given=fields)[0].model == "simple_cnn"


def test_the_network_of_a_run_is_taken_and_that_of_a_file_is_asked_for(tmp_path, tiny_run):
    images = str(write(tmp_path / "x", [(32, 32)] * 4))
    found, line = suited(config_lib.default(), images, str(tiny_run))
    assert found.model == "simple_cnn(widths=(2, 3), kernel_size=3)" and f"model={found.model}" in line
    (tmp_path / "own.pth").touch()
    with pytest.raises(UserError, match=r"name it, as in --config\.model=resnet50"):
        suited(config_lib.default(), images, str(tmp_path / "own.pth"))


@pytest.mark.parametrize("sizes", [[(40, 30), (30, 40), (33, 50)], [(70, 90)]])
def test_from_a_folder_to_a_prediction_in_two_commands(tmp_path, sizes, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", sizes)
    small = ["--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.total_epochs=2"]
    assert main.run(["train", "--data=photos", "--workdir=run", *small]) == 0
    assert "chosen for folder:photos: " in capsys.readouterr().out
    assert main.run(["predict", "--workdir=run", "photos/cat/0.png", "--explain"]) == 0
    assert "cat" in capsys.readouterr().out


@pytest.fixture
def scanned():
    """Folders in the order in which they are listed, from now to the end of the test."""
    folders, on = [], [True]

    def hook(event, arguments):
        if on and event in ("os.scandir", "os.listdir"):
            folders.append(str(arguments[0]))

    sys.addaudithook(hook)  # which cannot be taken back
    yield folders
    on.clear()


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "test")])
def test_training_lists_each_folder_once(tmp_path, splits, scanned):
    for split in splits:
        write(tmp_path / "photos" / split, [(32, 32)] * 5)
    small = ["--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.total_epochs=1"]
    assert main.run(["train", f"--data={tmp_path / 'photos'}", f"--workdir={tmp_path / 'run'}", *small]) == 0
    assert (tmp_path / "run" / "test.json").is_file()
    ours = [folder for folder in scanned if folder.startswith(str(tmp_path / "photos"))]
    assert len(ours) == len(set(ours)) == 1 + 3 * len(splits)


OTHERS = "run was trained on other images of folder:photos train; restore them, or choose another --workdir"


@pytest.mark.parametrize(
    ("sizes", "classes", "flags", "told"),
    [
        ([(12, 12)] * 6, ("cat", "dog", "eel"), [], OTHERS),
        ([(12, 12)], ("cat", "dog"), [], OTHERS),
        ([(12, 12), (14, 12)] * 6, ("cat", "dog"), [], OTHERS),
        (
            [(12, 12)] * 12,
            ("cat", "dog"),
            ["--config.seed=1"],
            "another config (config.seed: saved 0, now 1)",
        ),
    ],
)
def test_a_run_of_other_images_is_not_said_to_have_another_config(
    sizes, classes, flags, told, tmp_path, capsys, monkeypatch
):
    """`--data` chooses other fields for them, which the user has not given."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", [(12, 12)] * 12)
    small = ["--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.total_epochs=1"]
    command = ["train", "--data=photos", "--workdir=run", *small]
    assert main.run(command) == 0
    shutil.rmtree(tmp_path / "photos")
    write(tmp_path / "photos", sizes, classes)
    capsys.readouterr()
    assert main.run([*command, *flags]) == 2
    assert told in capsys.readouterr().err


def test_the_config_of_a_run_is_where_another_or_a_sweep_begins(tmp_path, capsys, monkeypatch):
    """With what `--data` chose; as a Python file its `true` was a NameError."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", [(12, 12)] * 6)
    small = ["--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.total_epochs=1"]
    assert main.run(["train", "--data=photos", "--workdir=run", *small]) == 0
    assert main.run(["sweep", "--config=run/config.json", "--set=batch_size=4", "--out=swept"]) == 0
    (point,) = (tmp_path / "swept" / "runs").glob("*/config.json")
    assert Run(point.parent).config() == config_lib.assign(Run("run").config(), {"batch_size": 4})


@pytest.mark.parametrize("images", [1, 2])
def test_a_split_is_not_advised_that_cannot_be_held_out(images, tmp_path, capsys):
    small = ["--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.total_epochs=1"]
    data = write(tmp_path / "photos", [(12, 12)] * images)
    words = [f"--data={data}", f"--workdir={tmp_path / 'run'}", "--config.data.num_validation=0"]
    assert main.run(["train", *words, *small]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "has no labelled validation split" in x)
    assert line.endswith("; config.data.num_validation holds one out of train") == (images > 1)


def test_weights_need_data(capsys):
    assert main.run(["train", "--weights=torchvision"]) == 2
    assert "--weights needs --data" in capsys.readouterr().err


def name_of(door, data):
    """What a door takes --data for."""
    if door == "with_data":
        return with_data(None, data, (8, 8, 3)).data.name
    return suited(config_lib.default(), data)[0].data.name


@pytest.mark.parametrize("door", ["suited", "with_data"])
def test_a_folder_is_data_and_a_known_name_is_that_data_set(door, tmp_path, monkeypatch):
    """For train, and for evaluate, probe, explore and calibration; `./mnist` is a folder."""
    monkeypatch.chdir(write(tmp_path, [(8, 8)] * 5, ("photos/cat", "photos/dog", "mnist/cat")))
    name = functools.partial(name_of, door)
    assert name("photos") == "folder:photos" and name("folder:photos") == "folder:photos"
    assert name("./mnist") == "folder:./mnist"
    with pytest.raises(UserError, match="data='' names no data set"):
        name("")
    assert door == "suited" or (name("mnist"), name("nowhere")) == ("mnist", "nowhere")
    write(tmp_path, [(8, 8)] * 5, ("fi [ve] 12:30 *?/cat",))
    assert name("fi [ve] 12:30 *?") == "folder:fi [ve] 12:30 *?"
    assert door == "suited" or name("12:30") == "12:30"  # no such path: the form is refused when it is opened


@pytest.mark.parametrize("door", ["suited", "with_data"])
def test_an_archive_or_arrays_are_data_too(door, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", [(8, 8)] * 5)
    for form in ("zip", "tar"):
        shutil.make_archive("photos", form, "photos")
    np.savez("photos.npz", x=np.zeros((10, 8, 8, 3), np.uint8), y=np.arange(10) % 2)
    (tmp_path / "photos.zip").rename("photos.ZIP")
    name = functools.partial(name_of, door)
    assert name("photos.ZIP") == "folder:photos.ZIP" and name("photos.npz") == "npz:photos.npz"
    assert name("folder:photos.tar") == "folder:photos.tar"
    words = r"^--data=photos.tar .*; allowed: folder:photos.tar for class folders, tar:photos.tar for Web"
    with pytest.raises(UserError, match=words):
        name("photos.tar")


def test_an_unknown_data_set_is_named_by_its_flag(tmp_path, capsys):
    assert main.run(["train", "--data=nowhere.zip", f"--workdir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.startswith("cnnjax: --data: unknown data set 'nowhere.zip'")


def stored(folder, form, size):
    """--data of 40 images of one size that no run resizes: arrays, or prepared records."""
    folder.mkdir()
    if form == "npz":
        draw = np.random.default_rng(0).integers(0, 256, (40, *size, 3), np.uint8)
        np.savez(folder / "x.npz", x=draw, y=np.arange(40) % 2)
        return str(folder / "x.npz")
    sources = datasets.load_official(f"folder:{write(folder / 'photos', [size] * 20)}")
    prepare(sources, folder / "records")
    return f"records:{folder / 'records'}"


@pytest.mark.parametrize("form", ["npz", "records"])
@pytest.mark.parametrize(
    ("size", "crop"),
    [((96, 96), "96, padding=12"), ((28, 44), "(28, 44), padding=3"), ((8, 8), "8, padding=1")],
)
def test_what_is_stored_at_one_size_is_trained_on_at_that_size(tmp_path, form, size, crop):
    """Windows of 64 pixels were trained on, and whole images evaluated."""
    values, line = chosen(stored(tmp_path / "own", form, size))
    assert values["augment.train"] == f"random_crop({crop})|mirror|normalize"
    assert values["data.size"] == 0 and "data.size" not in line


def test_what_prepare_tells_to_train_with_works_on_few_images(tmp_path, capsys):
    write(tmp_path / "photos", [(32, 32)] * 10)
    assert main.run(["data", "prepare", f"folder:{tmp_path / 'photos'}", f"--out={tmp_path / 'rec'}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("train with --data=")
    small = ["--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.total_epochs=1"]
    assert main.run(["train", line.split()[-1], f"--workdir={tmp_path / 'run'}", *small]) == 0


@pytest.mark.parametrize("sizes", [[(40, 50)] * 12, [(40, 50), (50, 40)] * 6])
@pytest.mark.parametrize("flags", [[], ["--config.data.size=20"]])
def test_photos_of_one_size_come_to_that_of_the_weights_as_others_do(tmp_path, sizes, flags):
    """Photos of one camera were left at their own size."""
    small = write(tmp_path / "small", [(12, 12)] * 5)
    model = "--config.model=simple_cnn(widths=(2, 3), kernel_size=3)"
    once = "--config.total_epochs=1"
    assert main.run(["train", f"--data={small}", f"--workdir={tmp_path / 'start'}", model, once]) == 0
    words = [f"--data={write(tmp_path / 'photos', sizes)}", f"--weights={tmp_path / 'start'}", once, *flags]
    for _ in range(2):  # it resumes without the weights, as the size is that of the run
        assert main.run(["train", *words, f"--workdir={tmp_path / 'run'}"]) == 0
        (tmp_path / "start").rename(tmp_path / "gone") if (tmp_path / "start").exists() else None
    side = 20 if flags else 12
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["size"] == side
    assert recorded(Run(tmp_path / "run")).image_shape == (side, side, 3)


def test_arrays_keep_their_size_whatever_the_weights_take(tmp_path, tiny_run):
    config, _ = suited(config_lib.default(), stored(tmp_path / "own", "npz", (40, 50)), str(tiny_run))
    assert config.data.size == 0


def printed(tmp_path, capsys, text, *flags, sizes=((32, 32),) * 10):
    """The config of `train --config=FILE --data=FOLDER`, and the line of choices."""
    (tmp_path / "mine.py").write_text(
        f"from cnnjax.config import default\n\ndef get_config():\n    c = default()\n{text}    return c\n"
    )
    words = [f"--config={tmp_path / 'mine.py'}", f"--data={write(tmp_path / 'x', sizes)}", *flags]
    assert main.run(["train", *words, "--print_config"]) == 0
    line, *rest = capsys.readouterr().out.splitlines()
    return "\n".join(rest), line


def test_what_a_config_file_says_wins_though_it_is_the_default(tmp_path, capsys):
    text = "    c.model = 'simple_cnn'\n    c.batch_size = 128\n    c.total_epochs = 10.0\n"
    config, line = printed(tmp_path, capsys, text)
    assert "model: 'simple_cnn'" in config and "batch_size: 128" in config and "total_epochs: 10.0" in config
    assert "train: 'normalize'" in config
    assert f"chosen for folder:{tmp_path / 'x'}: data.num_validation=2; " in line


@pytest.mark.parametrize("sizes", [[(80, 80)] * 10, [(80, 70), (70, 80)] * 5])
@pytest.mark.parametrize(("text", "size"), [("", 64), ("    c.data.size = 48\n", 48)])
def test_a_config_file_for_other_images_takes_own_ones_of_any_size(tmp_path, capsys, sizes, text, size):
    config, line = printed(tmp_path, capsys, text, sizes=sizes)
    assert f"size: {size}" in config and ("data.size=64" in line) == (size == 64)


def test_the_network_of_weights_is_taken_beside_a_config_file(tmp_path, capsys, tiny_run):
    config, _ = printed(tmp_path, capsys, "    c.batch_size = 16\n", f"--weights={tiny_run}")
    assert "model: 'simple_cnn(widths=(2, 3), kernel_size=3)'" in config and "init_head: 'new'" in config


def test_beside_crops_of_a_config_file_the_size_is_asked_for(tmp_path, capsys):
    """A size that is chosen would be another than that of the crops."""
    data = write(tmp_path / "x", [(80, 70), (70, 80)] * 5)
    assert (
        main.run(
            ["train", "--config=fashion_mnist_simple_cnn", f"--data={data}", f"--workdir={tmp_path / 'run'}"]
        )
        == 2
    )
    assert "config.data.size=70 must be given, to resize all images" in capsys.readouterr().err


@pytest.mark.parametrize("door", ["suited", "with_data"])
def test_a_prepared_folder_is_data_too(door, tmp_path, monkeypatch):
    """A folder of images may have a dataset.json of another program."""
    monkeypatch.chdir(tmp_path)
    prepare(datasets.load_official(f"folder:{write(tmp_path / 'photos', [(8, 8)] * 5)}"), tmp_path / "rec")
    (tmp_path / "photos" / "dataset.json").write_text("{}")
    assert name_of(door, "rec") == "records:rec" and name_of(door, "photos") == "folder:photos"


def test_a_run_among_the_images_resumes_and_another_begins(tmp_path, monkeypatch, capsys):
    """By default it is in runs/ of the current folder; its folder was to be filled or removed."""
    monkeypatch.chdir(write(tmp_path / "photos", [(12, 12)] * 5))
    small = ["--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.total_epochs=1"]
    words = ["train", "--data=.", *small, "--config.data.num_validation=2"]
    assert main.run(words) == 0 and main.run([*words, "--config.seed=1"]) == 0
    assert main.run(["data", "prepare", "folder:.", "--out=rec"]) == 0
    first, second = sorted((tmp_path / "photos" / "runs").iterdir())
    assert main.run([*words, f"--workdir={first}"]) == 0
    capsys.readouterr()
    assert main.run(["evaluate", f"--workdir={second}", "--split=validation"]) == 0
    assert recorded(Run(first)).class_names == recorded(Run(second)).class_names == ("cat", "dog")
