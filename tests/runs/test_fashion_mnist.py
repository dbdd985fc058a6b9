"""The main job on the real Fashion-MNIST, cut short."""

import pytest

from cnnjax import config as config_lib
from cnnjax.data import datasets
from cnnjax.runs import config_files, train
from tests import ROOT

HERE = datasets.available("fashion_mnist")
needs_data = pytest.mark.skipif(
    HERE is None, reason="Fashion-MNIST is not here: apt-get install dataset-fashion-mnist"
)


@needs_data
def test_a_quarter_of_an_epoch_learns_a_lot(tmp_path):
    config = config_files.from_file(str(ROOT / "configs/fashion_mnist_simple_cnn.py"))
    config.total_epochs, config.eval_every_epochs = 0.25, 0.25
    config.optimizer.warmup_epochs = 0.02
    config.eval_protocol = "center"  # the six views of "mirror_translate" take longer than training
    result = train.train(config, tmp_path / "run")
    assert result.test["count"] == 10_000
    assert result.test["accuracy"] > 0.8
    rows = train.Run.open(result.path).metrics()
    assert rows[-1]["validation_accuracy"] > 0.8
    assert len(result.class_names) == 10


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda file: file.stem)
def test_every_config_is_valid_and_says_what_it_is(file):
    config_lib.validate(config_files.from_file(str(file)))
    assert file.read_text().startswith('"""')
