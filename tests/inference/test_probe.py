"""What features tell of classes: both classifiers, their choices, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

import cnnjax
from cnnjax.cli import main
from cnnjax.data import datasets
from cnnjax.errors import UserError
from cnnjax.inference.probe import NEIGHBOURS, PENALTIES, pooled, probe
from tests.conftest import tiny_arrays


@pytest.fixture(scope="module")
def trained(tiny_run):
    return cnnjax.load_run(tiny_run)


def save(file, **changes):
    np.savez(file, **(tiny_arrays() | changes))
    return f"npz:{file}"


def test_learned_features_tell_the_classes_and_shuffled_labels_do_not(trained, tmp_path):
    found = probe(trained)
    assert (found.width, found.num_train, found.num_test, found.num_classes) == (12, 80, 37, 3)
    assert min(found.linear.accuracy, found.neighbours.accuracy) > 0.8
    assert found.linear.chosen in PENALTIES and found.neighbours.chosen in NEIGHBOURS
    for score in (found.linear, found.neighbours):
        assert score.low < score.accuracy <= score.high
    shuffled = np.random.default_rng(0).permutation(tiny_arrays()["train_label"])
    data = save(tmp_path / "shuffled.npz", train_label=shuffled)
    assert probe(trained, data).linear.accuracy < 0.65


def test_a_probe_takes_other_images_and_classes_than_the_network(trained, tiny_run, tmp_path, capsys):
    """Two classes of coloured images of another size; a layer that is a map is averaged over places."""
    arrays = tiny_arrays()
    for split in ("train", "test"):
        image = np.kron(arrays[f"{split}_image"], np.ones((1, 2, 2, 3), np.uint8))
        arrays |= {f"{split}_image": image, f"{split}_label": arrays[f"{split}_label"] // 2}
    np.savez(tmp_path / "two.npz", **arrays)
    flags = [f"--workdir={tiny_run}", f"--data=npz:{tmp_path / 'two.npz'}", "--layer=conv1"]
    assert main.run(["probe", *flags, "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert (found["layer"], found["width"], found["num_classes"]) == ("conv1", 2, 2)
    assert main.run(["probe", *flags]) == 0
    shown = capsys.readouterr().out
    assert f"{100 * found['linear']['accuracy']:.2f} %" in shown and "k = " in shown
    source = datasets.load(f"npz:{tmp_path / 'two.npz'}", "test")
    features, labels = pooled(trained, source, "conv1", batch_size=16)
    maps = trained.features([source[i]["image"] for i in range(len(source))], "conv1")
    np.testing.assert_allclose(features, maps.mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels, source.labels)


def test_what_cannot_be_probed_is_told(trained, tmp_path):
    label = np.zeros(90, np.uint8)
    label[0] = 1
    data = save(tmp_path / "one.npz", train_label=label, test_label=np.zeros(37, np.uint8))
    with pytest.raises(UserError, match="a class with 1 training images"):
        probe(trained, data)
    alone = save(tmp_path / "alone.npz", train_label=label * 0, test_label=np.zeros(37, np.uint8))
    with pytest.raises(UserError, match="images of one class; a probe needs two or more"):
        probe(trained, alone)
    folder = tmp_path / "photos"
    for name in "ab":
        (folder / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / name / "1.png")
    missing = (
        "'test'; allowed: train; .*; a probe needs labelled train and test images; put some into test/CLASS/"
    )
    with pytest.raises(UserError, match=f"^data: unknown split of folder:.* {missing}$"):
        probe(trained, f"folder:{folder}")
    with pytest.raises(UserError, match="unknown layer 'stage9'"):
        probe(trained, layer="stage9")
