"""~ is the home folder at every door, as a shell has it: no folder of that name appears."""

import pwd
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from cnnjax import config as config_lib
from cnnjax import load_dataset
from cnnjax.cli import main, study
from cnnjax.data import files
from cnnjax.data.sources.tfds import tfds_folders
from cnnjax.errors import UserError
from cnnjax.explore import comparison, report
from cnnjax.inference import export, model, push, weights
from cnnjax.runs import (
    checkpoints,
    children,
    compile_cache,
    evaluate,
    hub,
    loaded,
    pretrained,
    results,
    sweep,
    train,
)
from cnnjax.runs.experiment import build


@pytest.fixture
def home(tiny_run, tiny_config, tmp_path, monkeypatch):
    """A home folder with a run, an image and a config; the working folder is another and stays empty."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    shutil.copytree(tiny_run, folder / "run")
    Image.new("L", (8, 8)).save(folder / "x.png")
    for place in ("0/a", "0/b", "0/c", "1/a", "1/b", "1/c"):
        (photo := folder / f"photos/{place}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(photo)
    (folder / "names").write_text("0\n1\n2\n")
    text = f"from cnnjax.config import from_dict\nget_config = lambda: from_dict({tiny_config.to_dict()})"
    (folder / "my.py").write_text(text)
    monkeypatch.setattr(weights, "to_torch", lambda *_: {"x": np.zeros(2, np.float32)})
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(elsewhere)
    yield folder
    assert not list(elsewhere.iterdir())


COMMANDS = {
    "train --config=~/my.py --workdir=~/new": "new/test.json",
    "train --config=~/my.py --config.init_from=~/run --workdir=~/new": "new/test.json",
    "train --config=~/my.py --config.data.name=folder:~/photos --config.data.size=8 --workdir=~/new "
    "--config.data.num_validation=0 --config.batch_size=2": "new/checkpoints",
    "sweep --config=~/my.py --out=~/swept": "swept/results.csv",
    "evaluate --workdir=~/run": "",
    "evaluate --weights=~/run --class_names=~/names": "",
    "predict --workdir=~/run ~/x.png --explain --out=~/drawn": "drawn",
    "report ~/run": "run/report.html",
    "report ~/run --out=~/page.html": "page.html",
    "export --workdir=~/run --out=~/net.safetensors": "net.safetensors",
    "weights export ~/torch.safetensors --workdir=~/run": "torch.safetensors",
    "push --workdir=~/run --out=~/hub": "hub/config.json",
    "data prepare fashion_mnist_mini --out=~/prepared": "prepared/dataset.json",
    "data inspect fashion_mnist_mini --out=~/sheet.png": "sheet.png",
    "data inspect folder:~/photos --out=~/sheet.png": "sheet.png",
    "checkpoint verify --workdir=~/run": "",
    "replay --workdir=~/run --step=1": "",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_doors_of_the_command(command, home, capsys):
    assert main.run(command.split()) == 0, capsys.readouterr().err
    assert (home / COMMANDS[command]).exists()


def test_a_study_and_a_launched_run(home, monkeypatch):
    started = []
    monkeypatch.setattr(children, "run", lambda commands, *_: started.extend(commands) or (0, 0))
    assert main.run(["study", "degradation", "--out=~/studies"]) == 0 and study.STUDIES.is_dir()
    assert main.run(["launch", "--", "train", "--workdir=~/two"]) == 0
    assert f"--out={home}/studies" in started[0] and f"--workdir={home}/two" in started[1]


FUNCTIONS = {
    "train": (lambda config: train.train(config, "~/new"), "new/test.json"),
    "sweep": (lambda config: sweep.sweep(config, {"batch_size": [16]}, "~/s"), "s/results.csv"),
    "evaluate": (lambda _: evaluate.evaluate("~/run", class_names="~/names"), ""),
    "weights": (lambda _: loaded.load(weights="~/run"), ""),
    "load_run": (lambda _: model.load_run("~/run").predict("~/x.png"), ""),
    "init_from": (lambda config: build(config_lib.assign(config, {"init_from": "~/run"})), ""),
    "report": (lambda _: report.write("~/run"), "run/report.html"),
    "compare": (lambda _: comparison.compare(["~/run"], "~/page.html"), "page.html"),
    "export": (
        lambda _: export.export(model.load_run("~/run"), "safetensors", "~/x.safetensors"),
        "x.safetensors",
    ),
    "export_weights": (lambda _: weights.export_weights("~/run", "~/t.safetensors"), "t.safetensors"),
    "push": (lambda _: push.write(loaded.load("~/run"), "~/hub"), "hub/config.json"),
    "load_dataset": (lambda _: load_dataset("folder:~/photos", "train"), ""),
    "checkpoints": (lambda _: checkpoints.describe("~/run"), ""),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_doors_of_python(name, home, tiny_config):
    function, written = FUNCTIONS[name]
    function(tiny_config)
    assert (home / written).exists()
    if name == "sweep":
        assert results.read_results("~/s") and comparison.sweep("~/s") == home / "s/report.html"


def test_the_variables_that_name_a_folder(home, monkeypatch):
    for name in ("CNNJAX_DATA_DIR", "TFDS_DATA_DIR", "TORCH_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, f"~/{name}")
    assert tfds_folders("~/d") == [home / "d", home / "CNNJAX_DATA_DIR", home / "TFDS_DATA_DIR"]
    assert (pretrained._torch_home(), hub.cache()) == (home / "TORCH_HOME", home / "HF_HUB_CACHE")


UNKNOWN = [
    "train --data=~typo/photos --workdir=~/new",
    "train --config=~/my.py --config.data.name=folder:~typo/photos --workdir=~/new",
    "train --config=~/my.py --config.data.name=mnist --config.data.dir=~typo/d --workdir=~/new",
    "evaluate --workdir=~/run --data=npz:~typo/x.npz",
    *(f"data inspect {form}:~typo/x --out=~/x.png" for form in ("folder", "records", "npz", "tar", "idx")),
    "data inspect mnist --dir=~typo/d --out=~/x.png",
    "data prepare parquet:~typo/x --out=~/prepared",
    "bench data --data=folder:~typo/photos",
    "predict --weights=~typo/run ~/x.png --model=simple_cnn",
]


@pytest.mark.parametrize("command", UNKNOWN)
def test_the_home_of_an_unknown_user_is_a_name(command, home, capsys):
    assert main.run(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "~typo/" in error, error


def test_the_home_of_an_unknown_user_is_a_name_in_python(home, monkeypatch):
    monkeypatch.setenv("CNNJAX_DATA_DIR", "~typo/d")
    assert main.run(["data"]) == 0
    for name in ("folder:~typo/x", "fashion_mnist_mini"):
        with pytest.raises(UserError, match="~typo"):
            load_dataset(name, "train", data_dir="~typo/d")
    with pytest.raises(UserError, match="is neither a run folder nor a weights file"):
        pretrained.resolve("~typo/run")


def test_without_a_home_what_needs_none_is_done_and_the_rest_names_the_variable(home, monkeypatch, capsys):
    """As in a container with --user."""
    for name in ("HOME", "XDG_CACHE_HOME", "CNNJAX_COMPILE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["nobody"])
    assert main.run(["data"]) == 0 and load_dataset("fashion_mnist_mini", "train")
    own = jax.config.values[name := "jax_compilation_cache_dir"]
    jax.config.update(name, None)
    try:
        assert "XDG_CACHE_HOME" in compile_cache.enable()
    finally:
        jax.config.update(name, own)
    monkeypatch.setenv("CNNJAX_COMPILE_CACHE", "off")
    capsys.readouterr()
    for command in (
        "data prepare mnist --out=out",
        "data inspect folder:~/photos --out=x.png",
        "predict --model=resnet18 --weights=torchvision {home}/x.png",
        "train --workdir=~/new",
    ):
        assert main.run(command.format(home=home).split()) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "set HOME" in error, error
    with pytest.raises(UserError, match="set HOME, or for the cache XDG_CACHE_HOME"):
        files.cache_folder("mnist")
