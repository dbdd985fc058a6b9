"""Every model: exact parameter counts, the module's shapes, one surface over the whole registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnnjax.errors import UserError
from cnnjax.models import create_model, list_models, variant
from cnnjax.training.state import count_variant_params, init_variables

PARAMS = {"simple_cnn": 29034, "lenet5": 61706}


@pytest.mark.parametrize("name", PARAMS)
def test_exact_parameter_count(name):
    assert count_variant_params(name) == PARAMS[name]


def test_simple_cnn_has_the_shapes_of_the_module():
    model = create_model("simple_cnn")
    image = jnp.zeros((1, 28, 28, 1))
    _, state = model.init_with_output(
        jax.random.key(0), image, capture_intermediates=lambda module, _: True, mutable=True
    )
    shapes = {k: v["__call__"][0].shape for k, v in state["intermediates"].items() if isinstance(v, dict)}
    assert shapes["conv1"] == (1, 28, 28, 16)
    assert shapes["conv2"] == (1, 14, 14, 32)  # so the first pooling leaves 14
    assert state["params"]["head"]["kernel"].shape == (7 * 7 * 32, 10)  # and the second 7


def test_lenet5_pads_28_to_32_and_refuses_more():
    model = create_model("lenet5")
    small = init_variables(model, jax.random.key(0), (28, 28, 1))
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(
        jnp.shape, init_variables(model, jax.random.key(0), (32, 32, 1))
    )
    with pytest.raises(UserError, match="at most 32x32"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 32, 1)))


@pytest.mark.parametrize("pooling", ["max", "average", "min", "l2"])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_activation_and_pooling_are_fields(activation, pooling):
    model = create_model(f"simple_cnn(activation={activation!r}, pooling={pooling!r})")
    image = jax.random.normal(jax.random.key(1), (2, 28, 28, 1))
    logits = [m.apply(m.init(jax.random.key(0), image), image) for m in (model, create_model("simple_cnn"))]
    same = (activation, pooling) == ("relu", "max")
    assert np.allclose(*logits) == same


def test_unknown_names_and_fields_say_what_is_allowed():
    with pytest.raises(UserError, match=r"unknown model 'simple_cn' \(did you mean 'simple_cnn'\?\)"):
        create_model("simple_cn")
    with pytest.raises(UserError, match=r"did you mean 'pooling'\?"):
        create_model("simple_cnn(poling='max')")
    with pytest.raises(UserError, match="not a name or a call of literals"):
        create_model("simple_cnn(activation=print)")
    with pytest.raises(UserError, match="unknown pooling 'mx'"):
        model = create_model("simple_cnn(pooling='mx')")
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


def initialized(name: str, **fields) -> tuple[nn.Module, dict, jax.Array]:
    """The model, randomized variables (no zero anywhere) and a batch of three images."""
    model, size = create_model(name, **fields), variant(name).preset.input_size
    image = jax.random.normal(jax.random.key(7), (3, *size))
    variables = jax.jit(lambda key: init_variables(model, key, size))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.05 * jax.random.uniform(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, leaves), image


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list_models())
def test_logits_parameters_and_statistics_are_float32(name, dtype):
    model, variables, image = initialized(name, dtype=jnp.dtype(dtype))
    logits = model.apply(variables, image)
    assert logits.shape == (3, variant(name).preset.num_classes)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", list_models())
def test_evaluation_is_deterministic_and_jit_changes_nothing(name):
    model, variables, image = initialized(name)
    apply = jax.jit(model.apply)
    first, updates = model.apply(variables, image, mutable=["batch_stats"])
    np.testing.assert_array_equal(apply(variables, image), apply(variables, image))
    np.testing.assert_allclose(first, apply(variables, image), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(apply(variables, image[:1]), first[:1], rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, updates.get("batch_stats", {}), variables["batch_stats"])


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_gets_a_finite_gradient(name):
    model, variables, image = initialized(name)

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                image,
                train=True,
                rngs={"dropout": jax.random.key(2)},
                mutable=["batch_stats", "intermediates"],
            )
            return (logits * jnp.cos(jnp.arange(logits.size).reshape(logits.shape))).sum()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_training_moves_the_running_statistics_by_one_minus_momentum():
    model, variables, image = initialized("simple_cnn")
    _, updates = model.apply(variables, image, train=True, mutable=["batch_stats"])
    old, new = variables["batch_stats"]["norm1"]["mean"], updates["batch_stats"]["norm1"]["mean"]
    x = nn.Conv(16, (5, 5), padding=2).apply({"params": variables["params"]["conv1"]}, image)
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * x.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
