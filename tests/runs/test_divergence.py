"""Steps whose loss is not finite: nothing moves after the first, or a few are left out; replay shows them."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.data import batches as pipeline
from cnnjax.data.augment.register import AUGMENTATIONS, operation
from cnnjax.errors import UserError
from cnnjax.runs import step as compiled_step
from cnnjax.runs import train
from cnnjax.runs.experiment import build
from cnnjax.runs.folder import Run
from cnnjax.runs.log import NonFiniteLoss
from cnnjax.training.steps import NEVER, TrainMetrics
from tests.conftest import tiny_arrays

BAD = 70  # the one image that is white all over; the shuffle brings it at step 3


def infinite_white(key, batch):
    """An image of nothing but 255 becomes infinite, as broken preprocessing would make it."""
    white = (batch["image"] == 255).all((1, 2, 3), keepdims=True)
    return batch | {"image": jnp.where(white, jnp.inf, batch["image"].astype(jnp.float32))}


@pytest.fixture(autouse=True, scope="module")
def broken_augmentation():
    operation()(infinite_white)
    yield
    AUGMENTATIONS.pop("infinite_white")


@pytest.fixture
def config(tiny_config, tmp_path):
    """Ten steps, of which one in each of the two epochs meets the bad image."""
    arrays = tiny_arrays(num_train=80)
    arrays["train_image"][BAD] = 255
    np.savez(tmp_path / "bad.npz", **arrays)
    tiny_config.data.name, tiny_config.data.num_validation = f"npz:{tmp_path / 'bad.npz'}", 0
    tiny_config.augment.train = "infinite_white|normalize"
    tiny_config.log_every_steps, tiny_config.checkpoint_every_steps = 5, 3
    return tiny_config


def bad_steps(experiment) -> list[int]:
    """Where the shuffle brings the bad image."""
    batches = pipeline.make_batches(experiment.train_source, 16, seed=experiment.config.seed)
    return [step for step in range(10) if BAD in batches.indices(step)]


def test_after_the_first_bad_step_of_an_interval_nothing_moves(config):
    experiment = build(config)
    first, _ = bad_steps(experiment)
    step_fn = compiled_step.lower_step(experiment).compile()
    batches = pipeline.make_batches(experiment.train_source, 16, seed=config.seed)
    state, interval, kept = experiment.init_state(), TrainMetrics.empty(), None
    for step in range(10):
        kept = jax.device_get(state) if step == first else kept
        state, interval = step_fn(state, interval, next(batches), jax.random.key(config.seed))
    assert int(interval.nonfinite_step) == first != NEVER
    assert float(interval.num_steps) == first
    jax.tree.map(np.testing.assert_array_equal, kept.replace(step=10), jax.device_get(state))


def test_a_stopped_run_is_recorded_and_its_step_replayed(config, tmp_path, capsys):
    first, _ = bad_steps(build(config))
    config.log_every_steps, config.checkpoint_every_steps = 1, 2
    assert first == 3
    run = tmp_path / "run"
    with pytest.raises(NonFiniteLoss, match=f"at step {first}; .* `cnnjax replay`"):
        train.train(config, run)
    record = json.loads((run / "nonfinite.json").read_text())
    assert record.keys() == {str(first)}
    assert BAD in record[str(first)]["indices"]
    assert main.run(["replay", f"--workdir={run}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["checkpoint"]) == (first, first - 1)
    assert found["loss"] is None  # JSON has no NaN
    assert found["indices"] == record[str(first)]["indices"]
    assert found["layers"].keys() == {"conv1", "norm1", "conv2", "norm2", "head"}
    assert all(gradient is None for gradient, _ in found["layers"].values())
    assert all(math.isfinite(params) for _, params in found["layers"].values())
    assert main.run(["replay", f"--workdir={run}", f"--step={first - 1}"]) == 0  # a sound one
    row = Run.open(run).metrics()[first - 1]
    out = capsys.readouterr().out
    assert float(re.search(r"loss (\S+);", out)[1]) == pytest.approx(row["loss"], rel=1e-5)
    assert "conv2" in out
    (run / "nonfinite.json").unlink()
    for flags, message in (([], "name one with --step=N"), (["--step=10"], "less than the run's 10 steps")):
        assert main.run(["replay", f"--workdir={run}", *flags]) == 2
        assert message in capsys.readouterr().err


def test_a_few_bad_steps_are_left_out_and_no_more(config, tmp_path):
    bad = bad_steps(build(config))
    config.on_nonfinite = "skip(limit=1)"
    with pytest.raises(NonFiniteLoss, match=r"2 such steps, 1 may be skipped"):
        train.train(config, tmp_path / "run")
    config.on_nonfinite = "skip"
    result = train.train(config, tmp_path / "run")  # from the last good checkpoint, with a higher limit
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state.params))
    rows = [row for row in Run.open(result.path).metrics() if "images_per_second" in row]
    assert [row["skipped_steps"] for row in rows] == [1, 1]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert {int(step) for step in json.loads((result.path / "nonfinite.json").read_text())} == set(bad)


@pytest.mark.parametrize("bad", [(4,), (9,), (2, 4, 7)])
def test_a_skipped_step_that_falls_on_a_sample_of_swa_gives_the_weights_it_leaves(config, bad):
    """Of 10 steps, the 5th and the 10th."""
    config.update({"on_nonfinite": "skip", "swa_start": 0.1})
    experiment = build(config)
    step_fn = compiled_step.lower_step(experiment).compile()
    served = pipeline.make_batches(experiment.train_source, 16, seed=config.seed)
    batches = [next(served) for _ in range(10)]
    broken, *good = sorted(range(10), key=lambda step: BAD not in served.indices(step))
    state, interval, samples = experiment.init_state(), TrainMetrics.empty(), []
    for step in range(10):
        batch = batches[broken if step in bad else good[-1 - step % 5]]
        state, interval = step_fn(state, interval, batch, jax.random.key(config.seed))
        samples += [jax.device_get(state.variables)] if step in (4, 9) else []
    assert int(interval.num_steps) == 10 - len(bad)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda mean, a, b: close(mean, (a + b) / 2), jax.device_get(state.ema), *samples)


def test_indices_are_those_of_the_served_examples(config):
    source = build(config).train_source
    for kind in (pipeline.ResidentBatches, pipeline.StreamBatches):
        batches = kind(source, 32, seed=1)
        for step in range(4):
            batch = next(batches)
            indices = batches.indices(step)
            served = np.asarray(batch["image"])[np.asarray(batch["mask"]) > 0]
            np.testing.assert_array_equal(served, source.images[indices])
        if kind is pipeline.StreamBatches:
            batches.close()


@pytest.mark.parametrize(
    "value", ["go", "stop(1)", "skip(limit=0)", "skip(limit='x')", "skip(3)", "skip(n=3)", ""]
)
def test_other_values_are_refused(value):
    config = config_lib.default()
    config.on_nonfinite = value
    with pytest.raises(UserError, match=r"config\.on_nonfinite="):
        config_lib.validate(config)
