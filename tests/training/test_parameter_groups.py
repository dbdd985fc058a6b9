"""Frozen parts do not move, their statistics neither; groups have their own learning rate."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from cnnjax.errors import UserError
from cnnjax.models import create_model
from cnnjax.models.pyramid import module_layers
from cnnjax.runs import train
from cnnjax.runs.experiment import build
from cnnjax.training import parameter_groups
from cnnjax.training.optimizers import make_optimizer
from cnnjax.training.schedules import SCHEDULES, make_schedule


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_frozen_paths_and_statistics_stay_and_the_rest_moves(tiny_config, tmp_path, optimizer):
    tiny_config.freeze, tiny_config.optimizer.name = "conv1|norm1", optimizer
    before = build(tiny_config).init_state()
    start = flat(before.params) | flat(before.batch_stats)
    result = train.train(tiny_config, tmp_path / "run")
    end = flat(result.state.params) | flat(result.state.batch_stats)
    for path, value in start.items():
        same = np.array_equal(end[path], value)
        assert same == path.startswith(("conv1", "norm1")), path
    record = train.Run.open(result.path).read_json("record.json")
    assert record["model"]["frozen"] == ["conv1/bias", "conv1/kernel", "norm1/bias", "norm1/scale"]


def test_a_frozen_batch_norm_normalizes_with_its_running_statistics(tiny_config):
    experiment = build(tiny_config)
    state = experiment.init_state()
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    frozen = parameter_groups.frozen_collection(state.batch_stats, "norm")
    found, updates = experiment.model.apply(
        {**state.variables, "frozen": frozen}, image, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_array_equal(found, experiment.model.apply(state.variables, image))
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], state.batch_stats)


@pytest.mark.parametrize("freeze", ["", "stem"])
def test_scales_multiply_the_update_of_the_first_matching_group(freeze):
    params = {"stem": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}}
    grads = jax.tree.map(jnp.ones_like, params)
    schedule = make_schedule("constant", learning_rate=0.1, total_steps=9)
    scales = parameter_groups.parse_scales("stem: 0.5, head/bias: 0, head: 10")
    tx = parameter_groups.with_groups(make_optimizer("sgd", schedule), freeze=freeze, scales=scales)
    updates, _ = tx.update(grads, tx.init(params), params, value=1.0)
    new = flat(optax.apply_updates(params, updates))
    np.testing.assert_allclose(new["stem/kernel"], 1.0 if freeze else 0.95)
    np.testing.assert_allclose(new["head/kernel"], 0.0, atol=1e-7)
    np.testing.assert_allclose(new["head/bias"], 1.0)


def test_learning_rates_decay_by_layer_or_by_stage():
    """A normalization has the rate of the convolution before it; the head has the whole rate."""
    layers = module_layers(create_model("preact_resnet110_cifar(stage_sizes=(1, 2, 1))"), (32, 32, 3))
    last = {
        "stage1_block1": 4,
        "stage2_block1": 3,
        "stage2_block2": 2,
        "stage3_block1": 1,
        "norm": 1,
        "head": 0,
    }
    by_layer = dict(parameter_groups.parse_scales("layer_decay(0.5)", layers))
    assert by_layer == {f"^{name}(/|$)": 0.5**depth for name, depth in {"stem": 5, **last}.items()}
    by_stage = dict(parameter_groups.parse_scales("norm: 7, stage_decay(0.5)", layers))
    assert by_stage["norm"] == 7 and by_stage["^stem(/|$)"] == 0.5**4
    assert by_stage["^stage2_block1(/|$)"] == by_stage["^stage2_block2(/|$)"] == 0.25


@pytest.mark.parametrize("spec", ["layer_decay(0.75), head: 10", "head: 10, layer_decay(0.75)"])
def test_a_factor_of_its_own_counts_before_the_decay_wherever_it_stands(spec):
    tx = parameter_groups.with_groups(
        optax.identity(), scales=parameter_groups.parse_scales(spec, {"head": "head"})
    )
    params = {"head": {"kernel": jnp.ones(2)}}
    np.testing.assert_array_equal(tx.update(params, tx.init(params))[0]["head"]["kernel"], 10.0)


def test_layer_decay_reaches_every_parameter_of_an_experiment(tiny_config):
    tiny_config.optimizer.learning_rate_scales = "layer_decay(0.5)"
    tiny_config.optimizer.update({"name": "sgd(momentum=0.0)", "schedule": "constant", "warmup_epochs": 0.0})
    tiny_config.optimizer.weight_decay = 0.0
    experiment = build(tiny_config)
    params = experiment.init_state().params
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = experiment.tx.update(grads, experiment.tx.init(params), params, value=1.0)
    for path, update in flat(updates).items():
        scale = {"conv1": 0.25, "norm1": 0.25, "conv2": 0.5, "norm2": 0.5, "head": 1}[path.partition("/")[0]]
        np.testing.assert_allclose(update, -0.01 * scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("freeze", "pattern", "epochs"),
    [
        ("stem|stage1", "stem|stage1", np.inf),
        ("until(2, stem)", "stem", 2),
        ("until(0.5, all but head|norm)", "^(?!.*(?:head|norm))", 0.5),
        ("all but head", "^(?!.*(?:head))", np.inf),
    ],
)
def test_what_freezes_and_for_how_long(freeze, pattern, epochs):
    assert parameter_groups.parse_freeze(freeze) == (pattern, epochs)
    assert parameter_groups.is_frozen("head/kernel", pattern) is False


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"),
    [(1.1, 100, 110), (2.2, 50, 110), (0.07, 100, 7), (0.5, 5, 3), (2, 7, 14)],
)
def test_epochs_that_floats_do_not_hold_freeze_no_step_more(epochs, per_epoch, steps):
    assert parameter_groups.parse_freeze(f"until({epochs}, stem)").steps(per_epoch) == steps


@pytest.mark.parametrize(
    "freeze", ["until(0, stem)", "until(x, stem)", "until(2, )", "until(1, ()", "all but ("]
)
def test_a_freeze_that_cannot_be_read_is_told(freeze):
    with pytest.raises(UserError, match="^freeze="):
        parameter_groups.parse_freeze(freeze)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "lamb"])
def test_what_thaws_finds_its_averages_new_and_the_schedule_where_it_is(optimizer):
    """From then on it moves as in an optimizer that begins there, but for the learning rate."""
    params = {"stem": {"kernel": jnp.ones((2, 3))}, "head": {"kernel": jnp.full((3, 2), 2.0)}}
    draw = np.random.default_rng(0)
    many = [jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), params) for _ in range(4)]
    groups = {"freeze": "stem", "until": 2}
    late = lambda step: 0.1 * (step + 1)  # noqa: E731 - a schedule
    tx = parameter_groups.with_groups(make_optimizer(optimizer, late, weight_decay=0.1, **groups), **groups)
    new = make_optimizer(optimizer, lambda step: late(step + 2), weight_decay=0.1)
    state, moved, fresh, other = tx.init(params), params, new.init(params), params
    for i, grads in enumerate(many):
        updates, state = tx.update(grads, state, moved, value=1.0)
        moved = optax.apply_updates(moved, updates)
        if i < 2:
            np.testing.assert_array_equal(moved["stem"]["kernel"], 1.0)
            assert np.all(updates["head"]["kernel"] != 0)
        else:
            updates, fresh = new.update(grads, fresh, other, value=1.0)
            other = optax.apply_updates(other, updates)
            np.testing.assert_allclose(moved["stem"]["kernel"], other["stem"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "layer_decay(0)",
        "layer_decay(1.5)",
        "layer_decay()",
        "decay(0.5)",
        "stem",
        "stem: fast",
        ": 2",
        "stem: -1",
        "stem: nan",
        "(: 1",
    ],
)
def test_scales_that_cannot_be_read_are_told(text):
    with pytest.raises(UserError, match="^learning_rate_scales="):
        parameter_groups.parse_scales(text)


@pytest.mark.parametrize(
    ("freeze", "words"),
    [("nowhere", "matches no"), (".", "matches every"), ("(", "not a regular expression")],
)
def test_a_pattern_that_freezes_nothing_or_all_is_told(tiny_config, freeze, words):
    tiny_config.freeze = freeze
    with pytest.raises(UserError, match=rf"config.freeze=.*{words}"):
        build(tiny_config)


@pytest.mark.parametrize("text", ["nowhere: 2", "head: 2, nowhere: 2", "layer_decay(0.5), nowhere: 2"])
def test_a_factor_for_no_parameter_is_told(tiny_config, text):
    tiny_config.optimizer.learning_rate_scales = text
    words = (
        f"config.optimizer.learning_rate_scales={text!r}: 'nowhere' matches no parameter path; paths: conv1/"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        build(tiny_config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": "cosin"}, r"unknown config.optimizer.schedule 'cosin' \(did you mean"),
        ({"schedule": "step(factor=0)"}, r"config.optimizer.schedule='step\(factor=0\)': factor=0 must be "),
        ({"schedule": "one_cycle"}, "config.optimizer.warmup_epochs: warmup_steps=[0-9]* must be 0 "),
        ({"name": "adamx"}, "unknown config.optimizer.name 'adamx'"),
        ({"name": "adam(power=1)"}, r"config.optimizer.name='adam\(power=1\)': optimizer: adam takes no "),
        ({"decay_mode": "couple"}, "unknown config.optimizer.decay_mode 'couple'"),
        ({"decay": "kernal"}, "config.optimizer.decay='kernal' must match a parameter path"),
        ({"learning_rate_scales": "stem"}, "config.optimizer.learning_rate_scales='stem': 'stem' must be a "),
    ],
)
def test_mistakes_name_the_field_of_the_config(tiny_config, fields, words):
    tiny_config.optimizer.update(fields)
    with pytest.raises(UserError, match=f"^{words}"):
        build(tiny_config)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - {"one_cycle"}))
@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(1.01, 1.0, 5), (0.31, 0.3, 2), (0.2, 0.19, 1)])
def test_a_warm_up_that_only_rounds_to_the_run_leaves_its_last_step(
    tiny_config, schedule, epochs, warmup, steps
):
    tiny_config.total_epochs = epochs
    tiny_config.optimizer.update({"schedule": schedule, "warmup_epochs": warmup, "learning_rate": 1.0})
    experiment = build(tiny_config)
    assert experiment.total_steps == steps
    rates = [float(experiment.schedule(step)) for step in range(steps)]
    assert rates[0] == pytest.approx(rates[-1] / steps) and rates[-1] > 0


@pytest.mark.parametrize("freeze", ["all but conv2", "until(1, all but conv2)"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_decay_pattern_may_match_what_is_frozen_alone_but_not_nothing(tiny_config, freeze, name):
    tiny_config.freeze = freeze
    tiny_config.optimizer.update({"name": name, "decay": "head/kernel"})
    experiment = build(tiny_config)
    assert experiment.record_entries()["model"]["decayed"] == ["head/kernel"]
    tiny_config.optimizer.weight_decay = 0.0
    assert build(tiny_config).record_entries()["model"]["decayed"] == []
    tiny_config.optimizer.decay = "kernal"
    with pytest.raises(UserError, match="config.optimizer.decay='kernal' must match a parameter path"):
        build(tiny_config)


def test_frozen_leaves_have_no_optimizer_state():
    params = {"stem": {"kernel": jnp.ones(5)}, "head": {"kernel": jnp.ones(3)}}
    schedule = make_schedule("constant", learning_rate=0.1, total_steps=9)
    tx = parameter_groups.with_groups(make_optimizer("adamw", schedule), freeze="stem")
    assert not [leaf for leaf in jax.tree.leaves(tx.init(params)) if leaf.shape == (5,)]
