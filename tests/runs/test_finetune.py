"""Training that starts from another run: what is taken over, what is drawn anew, what is refused."""

import jax
import numpy as np
import pytest

from cnnjax import config as config_lib
from cnnjax.errors import UserError
from cnnjax.runs import evaluate, train
from cnnjax.runs.experiment import build
from tests.conftest import tiny_arrays


@pytest.fixture(scope="module")
def pretrained(tiny_data, tmp_path_factory):
    config = config_lib.default()
    config.model = "simple_cnn(widths=(2, 3), kernel_size=3)"
    config.batch_size, config.eval_batch_size, config.total_epochs = 16, 16, 3.0
    config.data.name, config.data.num_validation = tiny_data, 10
    config.optimizer.learning_rate = 0.01
    return config, train.train(config, tmp_path_factory.mktemp("runs") / "run")


def copy(config, **fields):
    other = config_lib.assign(config, {})
    other.update(fields)
    return other


def test_a_run_starts_from_the_best_checkpoint_of_another(pretrained):
    config, result = pretrained
    state = build(copy(config, init_from=str(result.path))).init_state()
    best = evaluate.evaluate(result.path, checkpoint="best", split="validation")[0]
    found, _ = train.Evaluator(build(config), "validation")(state.variables)
    assert found["loss"] == best["loss"]


def test_another_number_of_classes_needs_a_new_head(pretrained, tmp_path):
    config, result = pretrained
    arrays = tiny_arrays()
    two = {k: (v % 2 if k.endswith("label") else v) for k, v in arrays.items()}
    np.savez(tmp_path / "two.npz", **two)
    other = copy(config, init_from=str(result.path))
    other.data.name = f"npz:{tmp_path / 'two.npz'}"
    with pytest.raises(UserError, match=r"head/kernel is \[12, 3\], here \[12, 2\].*config.init_head=new"):
        build(other)
    other.init_head = "new"
    state = build(other).init_state()
    assert state.params["head"]["kernel"].shape == (12, 2)
    np.testing.assert_array_equal(
        state.params["conv1"]["kernel"],
        build(copy(config, init_from=str(result.path))).init_state().params["conv1"]["kernel"],
    )


def test_fine_tuning_moves_what_is_not_frozen(pretrained, tmp_path):
    config, result = pretrained
    other = copy(config, init_from=str(result.path), freeze="conv|norm", total_epochs=2.0)
    start = build(other).init_state()
    end = train.train(other, tmp_path / "run").state
    jax.tree.map(np.testing.assert_array_equal, end.params["conv1"], start.params["conv1"])
    assert not np.array_equal(end.params["head"]["kernel"], start.params["head"]["kernel"])


def test_what_does_not_fit_is_listed(pretrained, tmp_path):
    config, result = pretrained
    with pytest.raises(UserError, match=r"missing conv3/bias.*conv2/kernel is \[3, 3, 2, 3\], here"):
        build(copy(config, init_from=str(result.path), model="simple_cnn(widths=(2, 4, 5), kernel_size=3)"))
    with pytest.raises(UserError, match="neither a run folder nor a weights file"):
        build(copy(config, init_from=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="config.init_head='fresh'"):
        build(copy(config, init_head="fresh"))


def test_a_weights_file_becomes_a_run_that_can_be_evaluated_and_written_again(tmp_path, capsys):
    """Import, evaluate on real images, export: the file comes back bit for bit."""
    from cnnjax import load_run
    from cnnjax.cli import main
    from cnnjax.models import create_model, init_variables
    from cnnjax.models.weights import files, to_torch

    spec = "squeezenet1_1(stem='cifar', stem_width=8, squeezes=((2,),(4,)), num_classes=3)"
    model = create_model(spec)
    variables = jax.device_get(init_variables(model, jax.random.key(0), (32, 32, 3)))
    file = tmp_path / "given.safetensors"
    files.write(file, to_torch(variables, model))
    flags = [f"--model={spec}", f"--workdir={tmp_path / 'run'}"]
    assert main.run(["weights", "import", str(file), *flags]) == 0, capsys.readouterr().err
    assert main.run(["weights", "import", str(file), "--model=vgg11", f"--workdir={tmp_path / 'no'}"]) == 2
    assert "missing classifier.0.bias" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert load_run(tmp_path / "run").class_names == ("0", "1", "2")
    again = tmp_path / "again.safetensors"
    assert main.run(["weights", "export", str(again), f"--workdir={tmp_path / 'run'}"]) == 0
    ours, theirs = files.read(again), files.read(file)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    draw = np.random.default_rng(0)
    arrays = {
        "train_image": draw.integers(0, 255, (6, 256, 256, 3), np.uint8),
        "train_label": np.arange(6, dtype=np.uint8) % 3,
        "test_image": draw.integers(0, 255, (5, 256, 256, 3), np.uint8),
        "test_label": np.arange(5, dtype=np.uint8) % 3,
    }
    np.savez(tmp_path / "images.npz", **arrays)
    data = f"--data=npz:{tmp_path / 'images.npz'}"
    capsys.readouterr()
    assert main.run(["evaluate", f"--workdir={tmp_path / 'run'}", data, "--json"]) == 0
    assert '"count": 5' in capsys.readouterr().out
