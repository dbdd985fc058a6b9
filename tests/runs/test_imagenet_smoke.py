"""The ImageNet recipes on real images, narrow and short: prepared by the command, trained, tested."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cnnjax import config
from cnnjax.cli import main
from cnnjax.runs import config_files, train
from tests import ROOT
from tests.data.test_sources import SHARED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs shared/data beside the repository"),
]
# Biases of 1, the paper's, drown what narrow layers pass on.
NARROW = "alexnet(bias=0.0, widths=(16, 32, 48, 48, 32, 64, 64))"


def archive(path: Path, origin: str, members: dict[str, str]) -> str:
    """A zip of other names for members of a shared archive."""
    with zipfile.ZipFile(SHARED / origin) as old, zipfile.ZipFile(path, "w") as new:
        for name, member in members.items():
            new.writestr(name, old.read(member))
    return f"folder:{path}"


def cifar(path: Path, each: int, classes: tuple[str, ...]) -> str:
    """`each` training and each / 4 validation images of some classes of CIFAR-10, in ImageNet's folders."""
    wanted = {
        f"{to}/{name}/{i:04d}.jpg": f"{split}/{name}/{i:04d}.jpg"
        for split, to, count in (("train", "train", each), ("test", "val", each // 4))
        for name in classes
        for i in range(count)
    }
    return archive(path, "cifar10-images.zip", wanted)


def samples(path: Path, count: int) -> str:
    """Images of ImageNet, one a class, in its folders; the same for validation."""
    origin = "imagenet-samples.zip"
    with zipfile.ZipFile(SHARED / origin) as old:
        names = [name for name in old.namelist() if name.endswith(".JPEG")][:count]
    wanted = {f"{split}/{n.partition('_')[0]}/{n}": n for split in ("train", "val") for n in names}
    return archive(path, origin, wanted)


def recipe(name: str, prepared: Path, **fields) -> config.ConfigDict:
    found = config_files.from_file(str(ROOT / "configs" / f"imagenet_{name}.py"))
    found.data.name, found.data.num_validation = f"records:{prepared}", 0
    found.update(fields)
    return found


def prepare(name: str, out: Path, *flags: str) -> None:
    assert main.run(["data", "prepare", name, f"--out={out}", *flags]) == 0


def test_two_towers_learn_from_upsampled_cifar_in_prepared_records(tmp_path):
    """Crops of 227 from 256, mirror, PCA colour; raw records; read by two processes, then by threads."""
    name = cifar(tmp_path / "cifar.zip", 64, ("airplane", "frog", "horse", "ship"))
    prepare(name, tmp_path / "records", "--short_side=256")
    small = recipe("alexnet", tmp_path / "records", model=NARROW, batch_size=32, eval_batch_size=32)
    assert small.augment.train.startswith("random_crop(227)|mirror|pca_color(0.1)|normalize")
    small.total_epochs, small.log_every_steps = 12.0, 8
    small.optimizer.schedule, small.optimizer.warmup_epochs = "cosine", 1.0
    small.optimizer.name, small.optimizer.learning_rate = "adamw", 0.001
    small.data.num_workers = 2
    result = train.train(small, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.15
    assert all(row["data_wait_seconds"] >= 0 for row in rows)
    assert result.test["protocol"] == "ten_crop" and result.test["accuracy"] > 0.35
    assert len(np.load(tmp_path / "run" / "predictions.npz")["label"]) == 64


@pytest.mark.parametrize(
    ("name", "model", "side"),
    [
        ("alexnet", NARROW, 256),
        ("googlenet", "googlenet_with_aux", 256),
        ("resnet50", "resnet50_v1", 256),
        ("resnet50_90", "resnet18(zero_init=True)", 256),
        ("resnet50_modern", "resnet18", 232),
        ("inception_v3", "inception_v3_with_aux", 342),
    ],
)
def test_each_recipe_takes_two_steps_on_images_of_imagenet(tmp_path, name, model, side):
    prepare(samples(tmp_path / "samples.zip", 8), tmp_path / "out", f"--short_side={side}", "--format=jpeg")
    small = recipe(name, tmp_path / "out", model=model, batch_size=4, eval_batch_size=4, total_epochs=1.0)
    small.eval_protocol, small.batch_norm = "center", "global"
    result = train.train(small, tmp_path / "run")
    assert int(result.state.step) == 2
    assert np.isfinite(result.test["loss"]) and len(result.class_names) == 8
