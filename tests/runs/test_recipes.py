"""The recipes: ImageNet's are built for images as their files say they are prepared; the speed run trains."""

import re

import numpy as np
import pytest

from cnnjax.data.sources.source import ArraySource
from cnnjax.models.cifar_fast import whitening_kernel
from cnnjax.runs import config_files, experiment, train
from tests import ROOT
from tests.conftest import tiny_arrays

RECIPES = ROOT / "configs"
PARAMETERS = {
    "imagenet_googlenet": 13_378_280,
    "imagenet_inception_v3": 27_161_264,
    "imagenet_resnet50": 25_557_032,
    "imagenet_resnet50_90": 25_557_032,
    "imagenet_resnet50_modern": 25_557_032,
}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_recipe_can_be_built(name):
    file = RECIPES / f"{name}.py"
    side = int(re.search(r"--short_side=(\d+)", file.read_text())[1])
    recipe = config_files.from_file(str(file))
    assert recipe.data.name == f"records:imagenet{side}"
    recipe.data.name = "folder:prepared"
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    names = tuple(map(str, range(1000)))
    built = experiment.build(
        recipe, source=ArraySource(images, np.zeros(2, np.int32), names, "folder:prepared", "train")
    )
    assert built.record_entries()["model"]["num_params"] == PARAMETERS[name]
    trained, tested = built.augment.output_shape, built.eval_augment.output_shape
    assert trained == ((176, 176, 3) if name.endswith("modern") else tested)
    assert built.protocol.input_shapes == {built.eval_augment.output_shape}


def test_the_speed_run_starts_from_whitened_training_images():
    recipe = config_files.from_file(str(RECIPES / "cifar10_airbench.py"))
    recipe.data.num_validation = 0
    recipe.model = "airbench94(widths=(8, 8, 8))"
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    names = tuple(map(str, range(10)))
    built = experiment.build(recipe, source=ArraySource(images, np.zeros(40, np.int32), names, "x", "train"))
    params = built.init_state().params
    normalized = built.eval_augment.preprocess(images)
    np.testing.assert_allclose(params["whiten"]["kernel"], whitening_kernel(normalized), rtol=1e-4, atol=1e-4)
    assert "whiten/kernel" in built.record_entries()["model"]["frozen"]
    assert "whiten/bias" not in built.record_entries()["model"]["frozen"]


def test_the_speed_run_trains(tmp_path):
    recipe = config_files.from_file(str(RECIPES / "cifar10_airbench.py"))
    recipe.model, recipe.data.num_validation = "airbench94(widths=(8, 8, 8))", 0
    recipe.total_epochs, recipe.optimizer.warmup_epochs = 2.0, 0.5
    recipe.batch_size = recipe.eval_batch_size = 20
    recipe.data.name = f"npz:{tmp_path / 'images.npz'}"
    arrays = tiny_arrays(num_train=40, num_test=20, size=32)
    # Three different channels: of grey images whitening leaves channels of rounding noise, which the recipe's
    # BatchNorm (epsilon 1e-12) divides by their tiny deviation.
    colours = {
        k: np.concatenate([a, a[:, ::-1], a[:, :, ::-1]], -1) for k, a in arrays.items() if a.ndim == 4
    }
    np.savez(tmp_path / "images.npz", **arrays | colours)
    start = experiment.build(recipe).init_state().params
    end = train.train(recipe, tmp_path / "run").state.params
    np.testing.assert_array_equal(end["whiten"]["kernel"], start["whiten"]["kernel"])
    assert not np.array_equal(end["head"]["kernel"], start["head"]["kernel"])
