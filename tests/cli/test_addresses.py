"""Addresses of buckets where a path belongs: one line at every door, and no folder named `gs:`."""

import os
from pathlib import Path

import jax
import pytest

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.data import datasets, prepare
from cnnjax.errors import UserError, scheme_of
from cnnjax.explore import report
from cnnjax.runs import compile_cache, pretrained, sweep
from cnnjax.runs import train as loop

BUCKET = "gs://bucket/place"
RUN = f"--workdir={BUCKET}"
COMMANDS = [
    ["train", RUN],
    ["train", "--workdir", BUCKET],
    ["train", "--workdir=http://host/run"],
    ["train", f"--config={BUCKET}/x.py"],
    ["train", f"--config.data.dir={BUCKET}"],
    ["train", "--config.data.name=folder:https://host/images"],
    *(["train", f"--config.data.name={form}:{BUCKET}"] for form in datasets.FORMS),
    ["train", f"--config.init_from={BUCKET}"],
    ["train", f"--config.loss.distill=distill('{BUCKET}')"],
    ["launch", "--processes=2", "--", "train", RUN],
    ["sweep", f"--out={BUCKET}"],
    ["sweep", f"--set=data.name=folder:{BUCKET}", "--out=x"],
    ["study", "depth", f"--out={BUCKET}"],
    ["evaluate", RUN],
    ["evaluate", "--workdir=x", f"--data=folder:{BUCKET}"],
    ["predict", RUN, "x.jpg"],
    ["predict", "--workdir=x", f"{BUCKET}/x.jpg"],
    ["explore", RUN],
    ["report", BUCKET],
    ["probe", "--model=resnet18", f"--weights={BUCKET}"],
    ["export", RUN, "--out=x"],
    ["export", "--workdir=x", f"--out={BUCKET}"],
    ["data", f"--dir={BUCKET}"],
    ["data", "inspect", f"folder:{BUCKET}"],
    ["data", "prepare", "fashion_mnist_mini", f"--out={BUCKET}"],
    ["compile", f"--config={BUCKET}"],
    ["weights", "import", BUCKET],
    ["weights", "export", BUCKET],
    ["push", f"--out={BUCKET}"],
    ["checkpoint", "list", RUN],
    ["replay", RUN],
    ["bench", "data", f"--data=folder:{BUCKET}"],
]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Where a folder would appear."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CNNJAX_DATA_DIR", raising=False)
    yield tmp_path
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_door_of_the_command_refuses_an_address_in_one_line(words, empty, capsys):
    assert main.run(words) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1
    assert "addresses cannot be read from or written to; allowed: a path on this machine" in err


FUNCTIONS = {
    "train": lambda place: loop.train(config_lib.default(), place),
    "sweep": lambda place: sweep.sweep(config_lib.default(), {"batch_size": [64]}, out=place),
    "data_dir": lambda place: datasets.load("fashion_mnist_mini", "train", data_dir=place),
    "folder": lambda place: datasets.load(f"folder:{place}", "train"),
    "records": lambda place: datasets.load(f"records:{place}", "train"),
    "weights": lambda place: pretrained.resolve(str(place), "resnet18"),
    "prepare": lambda place: prepare.prepare(
        {"train": datasets.load("fashion_mnist_mini", "train")}, Path(place)
    ),
    "report": lambda place: report.write(place),
}


@pytest.mark.parametrize("place", [BUCKET, Path(BUCKET), "s3://bucket/place"], ids=repr)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_that_takes_a_place_refuses_an_address(name, place, empty):
    with pytest.raises(UserError, match="addresses cannot be read from or written to"):
        FUNCTIONS[name](place)


def test_the_variables_that_name_a_folder_do_too(empty, monkeypatch):
    monkeypatch.setenv("CNNJAX_DATA_DIR", "s3://bucket/data")
    with pytest.raises(UserError, match=r"CNNJAX_DATA_DIR=s3://bucket/data: .*aws s3 cp"):
        datasets.load("cifar10", "train", download=False)
    monkeypatch.delenv(compile_cache.SWITCH, raising=False)
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setattr(compile_cache, "PACKAGES", {"gs": "no_such_package_here"})
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    try:
        with pytest.raises(UserError, match="pip install no_such_package_here, or name a folder"):
            compile_cache.enable()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("gs://b", "gs"),
        ("records:S3://b", "s3"),
        ("abfs://b", "abfs"),
        ("memory://x", "memory"),
        ("file:/x", "file"),
        ("distill('gs://b', alpha=0.5)", "gs"),
        ("records:/data", ""),
        ("folder:C:/data", ""),
        ("hf:user/name@main", ""),
        ("v5e:2x4", ""),
        ("runs/a//b", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_what_is_an_address(text, scheme):
    assert scheme_of(text) == scheme


def test_weights_may_still_come_from_the_web():
    config_lib.validate(
        config_lib.assign(config_lib.default(), {"init_from": "https://host/file.safetensors"})
    )
