"""The stages of a network by name: where they are, what they are worth, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import cnnjax
from cnnjax.errors import UserError
from cnnjax.models import create_model, init_variables, variable_shapes, variant
from cnnjax.models.pyramid import layer_values, model_features, module_layers
from cnnjax.profiling.summary import summarize

# By network: name, stride and width of each stage of its pyramid.
PYRAMIDS = {
    "resnet50": "stem/2/64 stage1/4/256 stage2/8/512 stage3/16/1024 stage4/32/2048",
    "vgg11": "stage1/1/64 stage2/2/128 stage3/4/256 stage4/8/512 stage5/16/512",
    "alexnet": "conv1/4/96 conv2/8/256 conv5/16/256",
    "mobilenet_v2": "stage1/2/16 stage2/4/24 stage3/8/32 stage5/16/96 stage7/32/320",
    "googlenet": "cell3b/8/480 cell4e/16/832 cell5b/32/1024",
    "densenet121": "stage1/4/256 stage2/8/512 stage3/16/1024 stage4/32/1024",
    "wrn_16_4": "stage1/1/64 stage2/2/128 stage3/4/256",
    "lenet_300_100": "",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n[0] in "dgm")) for n in PYRAMIDS]
)
def test_strides_and_widths_are_known_without_running(name):
    features = model_features(name)
    found = [f"{s}/{features.strides[s]}/{features.widths[s]}" for s in features.stages]
    assert " ".join(found) == PYRAMIDS[name]


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scan", [False, True])
def test_a_pyramid_is_what_the_blocks_return(scan, remat):
    """At another size than it was asked for, with equal blocks in a loop or computed again too."""
    options = {"scan_blocks": scan, "remat": remat}
    model = create_model("resnet20_cifar(stage_sizes=(3, 2), widths=(4, 8))", **options)
    with jax.enable_x64(True):  # float32 rounds otherwise in a compiled program than op by op
        model = model.clone(dtype=jnp.float64)
        features = model_features(model, image_shape=(32, 32, 3))
        variables = init_variables(model, jax.random.key(0), (32, 32, 3))
        image = jax.random.normal(jax.random.key(1), (2, 16, 24, 3), jnp.float64)
        maps = jax.jit(features)(variables, image)
        _, state = model.clone(scan_blocks=False, remat=False).apply(
            variables, image, capture_intermediates=lambda *_: True, mutable=True
        )
    wanted = {f"stage{i}": state["intermediates"][f"stage{i}_block{5 - i - 1}"] for i in (1, 2)}
    assert maps.keys() == wanted.keys() and features.strides == {"stage1": 1, "stage2": 2}
    for name, value in maps.items():
        assert value.shape == (
            2,
            16 // features.strides[name],
            24 // features.strides[name],
            features.widths[name],
        )
        np.testing.assert_allclose(value, wanted[name]["__call__"][0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "side"),
    [("squeezenet1_1", 32), ("googlenet", 32), ("nin_imagenet", 40), ("vgg11", 32), ("simple_cnn", 28)],
)
def test_stages_keep_their_strides_where_one_window_covers_a_map(name, side):
    features = model_features(name)
    shape = (side, side, variant(name).preset.input_size[2])
    small = model_features(create_model(name), image_shape=shape)
    assert (small.strides, small.widths) == (features.strides, features.widths)
    maps = jax.eval_shape(features, variable_shapes(create_model(name), shape), jnp.zeros((2, *shape)))
    shapes = {stage.name: (2, *stage.layer.shape) for stage in small.stages.values()}
    assert {stage: value.shape for stage, value in maps.items()} == shapes


class Shallow(nn.Module):
    """A network that leaves out a stage of small images."""

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Conv(2, (3, 3), name="stage1")(image)
        if image.shape[1] > 8:
            x = nn.Conv(2, (3, 3), strides=2, name="stage2")(x)
        return nn.Dense(2, name="head")(x.mean((1, 2)))


def test_a_stage_that_is_missing_at_a_size_is_named():
    features = model_features(Shallow(), image_shape=(9, 9, 3))
    variables = init_variables(Shallow(), jax.random.key(0), (9, 9, 3))
    assert [*features(variables, jnp.zeros((1, 10, 10, 3)))] == ["stage1", "stage2"]
    with pytest.raises(UserError, match="stage 'stage2' is missing in images of 8x8; allowed there: stage1;"):
        features(variables, jnp.zeros((1, 8, 8, 3)))


def test_a_stage_ends_after_its_activation_and_before_the_pooling():
    model = create_model("simple_cnn(widths=(2, 3))")
    variables = init_variables(model, jax.random.key(0), (8, 8, 1))
    image = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    value = layer_values(model, variables, image, "conv1")
    assert value.shape == (2, 8, 8, 2) and value.min() == 0
    np.testing.assert_array_equal(value, layer_values(model, variables, image, "norm1"))
    head = jax.device_get(variables["params"]["head"])
    logits = np.asarray(layer_values(model, variables, image, None)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, model.apply(variables, image), rtol=1e-5, atol=1e-6)


def test_one_stage_is_named_alone():
    assert list(model_features("resnet18", "stage4").stages) == ["stage4"]


def test_other_names_list_those_that_there_are():
    assert [*cnnjax.model_features("resnet18", ["stage4", "stage2"]).stages] == ["stage2", "stage4"]
    with pytest.raises(UserError, match="unknown stage 'stage5'.*allowed: stage1, stage2"):
        model_features("resnet18", ["stage5"])
    model = create_model("simple_cnn(widths=(2, 3))")
    variables = init_variables(model, jax.random.key(0), (8, 8, 1))
    with pytest.raises(UserError, match="unknown layer 'stage1'.*conv1, "):
        layer_values(model, variables, jnp.zeros((1, 8, 8, 1)), "stage1")


@pytest.mark.parametrize("of", [model_features, summarize])
def test_a_module_needs_the_size_of_its_images(of):
    with pytest.raises(UserError, match=r"SimpleCNN: .*pass image_shape=\(H, W, C\)"):
        of(create_model("simple_cnn"))


def test_layers_are_in_the_order_of_the_forward_pass_with_their_normalizations():
    layers = module_layers(create_model("simple_cnn"), (28, 28, 1))
    assert layers == {"conv1": "conv1", "norm1": "conv1", "conv2": "conv2", "norm2": "conv2", "head": "head"}
    assert [*layers] == ["conv1", "norm1", "conv2", "norm2", "head"]
    deep = module_layers(create_model("inception_v3_with_aux(width=0.1)"), (299, 299, 3))
    assert [*deep][-4:] == ["mixed7a", "mixed7b", "mixed7c", "head"] and "aux" in deep
