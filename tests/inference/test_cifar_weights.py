"""Real files of trained CIFAR-10 networks, as their author published them: what they reach here."""

import json
from pathlib import Path

import numpy as np
import pytest

from cnnjax.cli import main
from cnnjax.models import create_model
from cnnjax.models.weights import files
from cnnjax.models.weights.torch import convert_into
from tests.models import count_variant_params

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
IMAGES = SHARED / "cifar10-images.zip"
NAMES = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 56: "resnet56-4bfd9763.th"}
# Per cent that torch 2.13 reaches with the author's network on the same images, decoded by Pillow.
ACCURACY = {20: 81.03, 56: 83.20}


def place(depth: int) -> Path:
    path = SHARED / "weights" / NAMES[depth]
    if not path.is_file():
        pytest.skip(f"{path} is not there: shared/ must lie beside the checkout")
    return path


@pytest.mark.parametrize("depth", NAMES)
def test_files_of_pytorch_resnet_cifar10_are_read_as_they_are(depth):
    found = files.read(place(depth))
    name = f"resnet{depth}_cifar_centered"
    variables = convert_into(found, create_model(name), (32, 32, 3))
    weights = [value for key, value in found.items() if "running" not in key]
    assert sum(map(np.size, weights)) == count_variant_params(name)
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], found["module.linear.bias"])


@pytest.mark.slow
@pytest.mark.parametrize("depth", ACCURACY)
def test_they_reach_on_real_images_what_torch_reaches(depth, tmp_path, capsys):
    file, run = place(depth), f"--workdir={tmp_path / 'run'}"
    if not IMAGES.is_file():
        pytest.skip(f"{IMAGES} is not there: shared/ must lie beside the checkout")
    model = f"--model=resnet{depth}_cifar_centered"
    assert main.run(["weights", "import", str(file), model, "--config.data.name=cifar10", run]) == 0
    capsys.readouterr()
    assert main.run(["evaluate", run, f"--data=folder:{IMAGES}", "--split=test", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["count"] == 10000
    assert 100 * metrics["accuracy"] == pytest.approx(ACCURACY[depth], abs=0.02)
