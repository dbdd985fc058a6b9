"""Networks as one call of the CPU kernels against the plain path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cnnjax
from cnnjax.data import datasets
from cnnjax.inference.fused import fuse
from cnnjax.inference.model import untrained
from cnnjax.models import create_model
from cnnjax.ops import cpu

pytestmark = pytest.mark.skipif(not cpu.takes(), reason=f"CPU kernels {cpu.status()}")
# Of the largest logit. bfloat16 has 8 bits: 0.4 % a number, which deep networks add up.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
SIDES = {
    "simple_cnn": 32,
    "resnet20_cifar": 32,
    "alexnet_torchvision": 224,
    "vgg11": 224,
    "googlenet_torchvision": 96,
    "inception_v3": 139,
    "resnet18": 96,
    "resnet50": 96,
    "resnext50_32x4d": 96,
    "densenet121": 96,
    "mobilenet_v2": 96,
    "efficientnet_b0": 96,
    "convnext_tiny": 96,
    "mobilenet_v3_large": 96,
    # and one of each other family that has a program
    "lenet_300_100": 28,
    "lenet5": 32,
    "plain20_cifar": 32,
    "nin_cifar": 32,
    "nin_imagenet": 64,
    "googlenet_cifar": 32,
    "inception_v2": 64,
    "inception_v4": 96,
    "inception_resnet_v2": 96,
    "inception_cifar_1xn": 32,
    "xception": 64,
    "xception41": 64,
    "airbench94": 32,
    "preact_resnet164_cifar": 32,
    "dpn68": 64,
    "repvgg_a0": 64,
    "regnetx_002": 64,
    "res2net50_48w_2s": 64,
    "squeezenet1_1": 64,
    "mobilenet_v1_025": 64,
    "mnasnet0_5": 64,
    "efficientnet_lite0": 64,
}


def variables_of(model, shape):
    """Random ones of a size that keeps the values of all layers near 1, BatchNorm's statistics too."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    rng = np.random.default_rng(0)

    def leaf(path, array):
        name = path[-1].key
        if name == "kernel":
            return (rng.standard_normal(array.shape) * (1.5 / np.prod(array.shape[:-1])) ** 0.5).astype("f")
        low, high = {"var": (0.5, 2), "scale": (0.5, 1.5)}.get(name, (-0.2, 0.2))
        return rng.uniform(low, high, array.shape).astype("f")

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def errors(name, dtype, counts=(1, 2, 3, 4, 5)):
    """Of batches of all those sizes, twice each, relative to the largest logit.

    Images a million times as large go first, so that what a program keeps from before is no good value.
    """
    model, shape = create_model(name), (SIDES[name], SIDES[name], 3)
    variables = variables_of(model, shape)
    images = np.random.default_rng(1).standard_normal((max(counts), *shape), np.float32)
    with cpu.paused():
        wanted = np.asarray(jax.jit(lambda x: model.apply(variables, x))(images))
    network = fuse(lambda x: model.apply(variables, x), shape, dtype)
    if network is None and dtype == "bfloat16":
        pytest.skip("oneDNN has no bfloat16 on this processor")
    assert network is not None
    run = jax.jit(network)
    for count in (*counts, *counts):
        run(network.number, np.float32(1e6) * np.tile(images, (2, 1, 1, 1)))
        found = np.asarray(run(network.number, images[:count]))
        yield abs(found - wanted[:count]).max() / abs(wanted).max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenet_v2"])
def test_logits_are_those_of_the_plain_network(name, dtype):
    assert max(errors(name, dtype)) < TOLERANCE[dtype]


def test_predictions_are_those_of_the_plain_network(tiny_run, tiny_data):
    images = datasets.load(tiny_data, "test").images
    fast, plain = cnnjax.load_run(tiny_run), cnnjax.load_run(tiny_run)
    assert fast._fused is not None
    for count, batch_size in ((1, 64), (2, 64), (5, 64), (5, 4), (37, 16), (1, 1)):
        found = fast.predict(images[:count], batch_size=batch_size)
        with cpu.paused():
            wanted = plain.predict(images[:count], batch_size=batch_size)
        assert [p.name for p in found] == [p.name for p in wanted]
        both = ([p.probabilities for p in x] for x in (found, wanted))
        np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-6)
    assert "_fused" not in vars(plain)


@pytest.mark.parametrize("options", ["scan_blocks=True", "remat=True"])
def test_how_a_network_was_trained_does_not_matter_to_its_program(options):
    spec = "resnet20_cifar(stage_sizes=(3,), widths=(4,){})"
    plain, trained = untrained(spec.format("")), untrained(spec.format(f", {options}"))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert trained._fused is not None
    (wanted,), (found,) = plain.predict(image), trained.predict(image)
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=1e-4)
    if not cpu.lacks_int8():
        assert untrained(spec.format(f", {options}"), "int8").predict(image)


@pytest.mark.parametrize("paused", [False, True])
def test_bfloat16_gives_the_probabilities_within_its_rounding(paused, tiny_run, tiny_data):
    images = datasets.load(tiny_data, "test").images[:7]
    wanted = cnnjax.load_run(tiny_run).predict(images)
    half = cnnjax.load_run(tiny_run, dtype="bfloat16")
    with cpu.chosen(not paused):
        found = half.predict(images)
    both = np.stack([[p.probabilities for p in x] for x in (found, wanted)])
    assert 0 < abs(both[0] - both[1]).max() < 2e-2


def test_views_of_several_sizes_go_through_the_plain_network(tiny_run):
    assert cnnjax.load_run(tiny_run, protocol="mirror")._fused is not None
    with cpu.paused():
        assert fuse(lambda x: x.mean((1, 2)), (8, 8, 3), jnp.float32) is None


SPOILT = [  # a number that training left behind, and whether the classes depend on it
    ("conv1", "kernel", np.nan, True),
    ("norm1", "scale", np.inf, True),
    ("norm1", "var", np.nan, True),
    ("norm2", "bias", np.inf, True),
    ("norm2", "bias", -np.inf, False),  # ReLU makes it zero
    ("head", "bias", np.nan, True),
]


def spoilt(layer, leaf, value):
    """An untrained SimpleCNN with one such number, and images."""

    def spoil(path, array):
        here = {layer, leaf} <= {part.key for part in path}
        return array.at[(0,) * array.ndim].set(value) if here else array

    trained = untrained("simple_cnn")
    variables = jax.tree_util.tree_map_with_path(spoil, trained.variables)
    images = np.random.default_rng(0).integers(0, 256, (8, *trained.image_shape), np.uint8)
    return dataclasses.replace(trained, variables=variables), images


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("layer", "leaf", "value", "matters"), SPOILT)
def test_weights_that_are_not_finite_give_nan_as_in_the_plain_network(layer, leaf, value, matters, dtype):
    """The activations of oneDNN give 0 for NaN, and the classes would be those of a sound network."""
    trained, images = spoilt(layer, leaf, value)
    fast, plain = trained.with_dtype(dtype), trained.with_dtype(dtype)
    found = np.stack([p.probabilities for p in fast.predict(images)])
    with cpu.paused():
        wanted = np.stack([p.probabilities for p in plain.predict(images)])
    assert np.isnan(wanted).all() == np.isnan(wanted).any() == matters
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))


@pytest.mark.parametrize("operation", [jnp.sin, lambda x: x[:, ::-1], lambda x: x.transpose(0, 2, 1, 3)])
def test_a_network_with_other_operations_has_no_program(operation):
    def network(x):
        return operation(x).reshape(x.shape[0], -1) @ np.ones((8 * 8 * 3, 5), np.float32)

    assert fuse(network, (8, 8, 3), jnp.float32) is None
    assert fuse(lambda x: network(jax.nn.relu(operation(x))), (8, 8, 3), jnp.float32) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the ImageNet stem leaves little")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SIDES)
def test_logits_of_all_networks_are_those_of_the_plain_ones(name, dtype):
    assert max(errors(name, dtype)) < TOLERANCE[dtype]
