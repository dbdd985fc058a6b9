"""Images of validation and test that cannot be read: counted, listed, and no other image in their place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import cnnjax
from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.errors import BadImage
from cnnjax.explore import comparison, report
from cnnjax.explore.markup import Markup
from cnnjax.explore.page import network
from cnnjax.inference import calibration
from cnnjax.inference.probe import open_images, pooled
from cnnjax.runs import evaluate, inputs, train
from cnnjax.runs.folder import Run
from cnnjax.runs.log import Progress

BAD = {"validation": ["b/1.png"], "test": ["a/1.png", "b/2.png"]}


class Notes(Progress):
    """Keeps the notes about skipped images."""

    def __init__(self):
        self.skipped: list[str] = []

    def note(self, text):
        self.skipped += [text] * text.startswith(("skipped: ", "no readable"))


def damaged(folder: Path, bad: dict[str, list[str]]) -> ConfigDict:
    """A config for images in a folder of which some are damaged, that skips them."""
    for number, split in enumerate(("train", "validation", "test")):
        for i in range(8):
            file = folder / "images" / split / "ab"[i % 2] / f"{i // 2}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 80 * number + 9 * i).save(file)
        for name in bad.get(split, ()):
            (folder / "images" / split / name).write_bytes(b"x")
    config = config_lib.default()
    config.update(
        {"model": "simple_cnn(widths=(2, 3), kernel_size=3)", "batch_size": 4, "eval_batch_size": 4}
    )
    config.update({"total_epochs": 2.0, "ema_decay": 0.5})
    config.data.update({"name": f"folder:{folder / 'images'}", "on_bad_image": "skip", "num_validation": 0})
    return config


@pytest.fixture(scope="module", params=["memory", "stream"])
def run(request, tmp_path_factory) -> tuple[Path, list[str]]:
    """A finished run, some of whose validation and test images are damaged, and what its user was told."""
    folder = tmp_path_factory.mktemp("skipped")
    config = damaged(folder, BAD)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stream":
            patch.setattr(inputs, "SMALL_BYTES", 0)
        train.train(config, folder / "run", notes := Notes())
        yield folder / "run", notes.skipped


def test_images_that_no_split_could_read_are_counted_and_listed(run, capsys):
    path, told = run
    listed = json.loads((path / "skipped_images.json").read_text())
    for split, names in BAD.items():
        assert all(name in message for name, message in zip(names, listed.pop(split), strict=True))
    assert not listed and len(told) == 3  # once each, though validation is evaluated twice
    test = Run.open(path).read_json("test.json")
    assert (test["count"], test["skipped"]) == (6, 2)
    assert evaluate.evaluate(path, split="validation")[0]["skipped"] == 1
    assert "skipped" not in evaluate.evaluate(path, split="train")[0]
    assert main.run(["evaluate", f"--workdir={path}"]) == 0
    assert "test, 6 images, 2 skipped" in " ".join(capsys.readouterr().out.split())
    assert "6 images, 2 skipped" in report.write(path).read_text().replace("\u00a0", " ")


def test_reports_show_the_image_of_the_caption_after_one_that_was_skipped(run, tmp_path, monkeypatch):
    path, _ = run
    shutil.copytree(path, copy := tmp_path / "run")
    with np.load(copy / "predictions.npz") as arrays:
        columns = dict(arrays)
    assert columns["index"].tolist() == [0, 2, 3, 4, 5, 7]  # as the folder lists them
    assert columns["label"].tolist() == [0, 0, 0, 1, 1, 1]
    columns["prediction"] = 1 - columns["label"]
    columns["loss"] = np.arange(6, dtype=np.float32)
    np.savez(copy / "predictions.npz", **columns)
    shown = []
    monkeypatch.setattr(report, "image", lambda pixels: shown.append(int(pixels[0, 0, 0])) or Markup())
    report.write(copy)
    comparison.compare([copy], tmp_path / "one.html")
    assert shown == 2 * [160 + 9 * i for i in (7, 3, 1, 6, 4, 0)]


@pytest.mark.parametrize("limit", [inputs.SMALL_BYTES, 0])
def test_a_class_of_which_no_image_can_be_read_is_told(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "SMALL_BYTES", limit)
    config = damaged(
        tmp_path, {"train": [f"a/{i}.png" for i in range(4)], "test": [f"b/{i}.png" for i in range(4)]}
    )
    config.total_epochs = 1.0
    train.train(config, tmp_path / "run", notes := Notes())
    told = [text for text in notes.skipped if not text.startswith("skipped: ")]
    assert told == [
        f"no readable image of class {name} is left in {split}"
        for name, split in (("a", "train"), ("b", "test"))
    ]


def calibrated(trained, config):
    return len(calibration.choose(None, config, trained.image_shape, trained.recipe, trained.name))


def probed(trained, config):
    return pooled(trained, open_images(trained, None, "test"), max_bad=inputs.max_bad_images(config))[1].size


DOORS = {
    "calibration": (calibrated, 3 + 4),
    "probe": (probed, 2 + 4),
    "explore": (lambda trained, config: len(network.Tests.of(trained, config, 32).labels), 2 + 4),
}


@pytest.mark.parametrize("door", DOORS)
def test_single_images_are_skipped_as_the_run_skips_them(door, run, monkeypatch):
    monkeypatch.setattr(inputs, "SMALL_BYTES", 0)
    trained, (read, count) = cnnjax.load_run(run[0]), DOORS[door]
    config = trained.config
    assert read(trained, config) == count
    config.data.on_bad_image = "error"
    with pytest.raises(BadImage, match=r"1.png.* or train with on_bad_image=skip"):
        read(trained, config)
