"""AlexNet to MobileNet: exact counts, the papers' shapes and initial values, torchvision's logits."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax import lax

from cnnjax.errors import UserError
from cnnjax.models import create_model, init_variables, list_models, variant
from cnnjax.models.alexnet import AlexNet
from cnnjax.models.cifar_fast import FROZEN, identity_uniform, whitening_kernel
from cnnjax.models.weights.torch import convert_into, to_torch, torch_entries
from tests import golden
from tests.models import count_variant_params

PARAMS = {
    "alexnet": 60965224,
    "alexnet_one_tower": 62378344,
    "alexnet_torchvision": 61100840,
    "caffenet": 60965224,
    "alexnet_cifar": 89578,
    "alexnet_cifar_local": 2109610,  # 576 weights for each of 36 places and 64 + 32 features, and the rest
    "zfnet": 62357608,
    "nin_cifar": 966986,
    "nin_imagenet": 7595176,
    "vgg11": 132863336,
    "vgg11_bn": 132868840,
    "vgg13": 133047848,
    "vgg13_bn": 133053736,
    "vgg16": 138357544,
    "vgg16_bn": 138365992,
    "vgg19": 143667240,
    "vgg19_bn": 143678248,
    "squeezenet1_0": 1248424,
    "squeezenet1_1": 1235496,
    "mobilenet_v1": 4231976,
    "mobilenet_v2": 3504872,
    "airbench94": 1972792,
}


@pytest.mark.parametrize("name", PARAMS)
def test_exact_parameter_count(name):
    assert count_variant_params(name) == PARAMS[name]


@pytest.mark.parametrize(
    ("name", "millions"),
    {
        "mobilenet_v1": 4.2,
        "mobilenet_v1_075": 2.6,
        "mobilenet_v1_050": 1.3,
        "mobilenet_v1_025": 0.5,
        "airbench95": 4.61,
        "airbench96": 9.92,
    }.items(),
)
def test_rounded_parameter_counts_of_the_papers(name, millions):
    digits = len(str(millions).split(".")[1])
    assert round(count_variant_params(name) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("name", "model"),
    {
        "alexnet": "alexnet_torchvision",
        "vgg11": "vgg11",
        "vgg16_bn": "vgg16_bn",
        "squeezenet1_1": "squeezenet1_1",
        "mobilenet_v2": "mobilenet_v2",
    }.items(),
)
def test_logits_are_torchvisions(name, model):
    assert golden.relative_error(name, model) < 1e-4


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("vgg13", 26, ["features.0.weight", "features.22.bias", "classifier.0.weight", "classifier.6.bias"]),
        ("vgg19", 38, ["features.34.weight", "features.2.weight", "classifier.3.weight"]),
        ("vgg19_bn", 102, ["features.49.weight", "features.50.running_var", "features.50.weight"]),
        (
            "squeezenet1_0",
            52,
            ["features.5.squeeze.weight", "features.7.squeeze.bias", "features.12.expand3x3.bias"],
        ),
        (
            "mobilenet_v2",
            262,
            ["features.1.conv.2.running_mean", "features.17.conv.3.bias", "features.18.1.weight"],
        ),
    ],
)
def test_torch_names_of_other_depths(name, count, some):
    entries = {e.name for e in torch_entries(create_model(name), variant(name).preset.input_size)}
    assert len(entries) == count
    assert entries >= set(some)


@pytest.mark.parametrize(
    "spec",
    [
        "alexnet_torchvision(widths=(8, 16, 16, 16, 8, 32, 32))",
        "vgg11_bn(widths=(4, 8, 8, 8, 8), dense_widths=(32, 32))",
        "squeezenet1_1(stem_width=8, squeezes=((2,), (4, 4), (8,)))",
        "mobilenet_v2(stages=((1, 8, 1, 1), (2, 8, 2, 2), (2, 16, 1, 2)))",
    ],
)
def test_torch_state_dict_round_trip_is_exact(spec):
    model, size = create_model(spec), (96, 96, 3)
    variables = random_variables(model, size)
    back = convert_into(to_torch(variables, model), model, size)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


# --- Shapes: the sizes that the papers print for each layer. ---------------------------------------


@functools.cache
def shapes(spec: str) -> dict[str, tuple[int, ...]]:
    """[H, W, C] of what each module puts out at the preset's size, by path."""
    model, size = create_model(spec), variant(spec).preset.input_size

    def run():
        image = jnp.zeros((1, *size))
        return model.init_with_output(jax.random.key(0), image, capture_intermediates=True, mutable=True)[1]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no preset may be too small for its stem
        found = jax.eval_shape(run)["intermediates"]
    return {
        k[: -len("/__call__")]: v[0].shape[1:] for k, v in traverse_util.flatten_dict(found, sep="/").items()
    }


PAPER_SHAPES = {
    "alexnet": {
        "conv1": (55, 55, 96),
        "conv2": (27, 27, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "dense1": (4096,),
        "dense2": (4096,),
        "head": (1000,),
    },
    "caffenet": {"conv2": (27, 27, 256), "conv5": (13, 13, 256)},
    "alexnet_torchvision": {"conv1": (55, 55, 64), "conv2": (27, 27, 192), "conv5": (13, 13, 256)},
    "alexnet_cifar": {"conv1": (32, 32, 32), "conv2": (16, 16, 32), "conv3": (8, 8, 64)},
    "zfnet": {
        "conv1": (110, 110, 96),
        "conv2": (26, 26, 256),
        "conv3": (13, 13, 384),
        "conv5": (13, 13, 256),
    },
    "nin_cifar": {
        "mlpconv1": (32, 32, 96),
        "mlpconv2": (16, 16, 192),
        "mlpconv3": (8, 8, 192),
        "head": (8, 8, 10),
    },
    "nin_imagenet": {"mlpconv1": (54, 54, 96), "mlpconv2": (27, 27, 256), "head": (6, 6, 1000)},
    "vgg16": {
        "stage1_conv2": (224, 224, 64),
        "stage2_conv2": (112, 112, 128),
        "stage3_conv3": (56, 56, 256),
        "stage4_conv3": (28, 28, 512),
        "stage5_conv3": (14, 14, 512),
        "dense1": (4096,),
    },
    "squeezenet1_1": {"stem": (111, 111, 64), "stage1_fire2": (55, 55, 128), "head": (13, 13, 1000)},
    "squeezenet1_0": {
        "stage1_fire3": (54, 54, 256),
        "stage2_fire4": (27, 27, 512),
        "stage3_fire1": (13, 13, 512),
    },
    "mobilenet_v1": {
        "stem": (112, 112, 32),
        "stage1_block1": (112, 112, 64),
        "stage2_block2": (56, 56, 128),
        "stage4_block6": (14, 14, 512),
        "stage5_block2/depthwise": (7, 7, 1024),
        "stage5_block2": (7, 7, 1024),
    },
    "mobilenet_v2": {
        "stage1_block1": (112, 112, 16),
        "stage2_block1/expand": (112, 112, 96),
        "stage2_block2": (56, 56, 24),
        "stage3_block3": (28, 28, 32),
        "stage5_block3": (14, 14, 96),
        "stage7_block1": (7, 7, 320),
        "last": (7, 7, 1280),
    },
    "airbench94": {
        "whiten": (31, 31, 24),
        "stage1": (15, 15, 64),
        "stage2": (7, 7, 256),
        "stage3": (3, 3, 256),
    },
}


@pytest.mark.parametrize("name", PAPER_SHAPES)
def test_layers_have_the_shapes_of_the_paper(name):
    found = shapes(name)
    assert {path: found[path] for path in PAPER_SHAPES[name]} == PAPER_SHAPES[name]


def test_alexnet_sees_9216_values_behind_its_convolutions():
    size = variant("alexnet").preset.input_size
    params = jax.eval_shape(lambda: init_variables(AlexNet(), jax.random.key(0), size))["params"]
    assert params["dense1"]["kernel"].shape == (9216, 4096)
    assert params["conv2"]["kernel"].shape == (5, 5, 48, 256)  # half of the 96 channels
    assert params["conv3"]["kernel"].shape == (3, 3, 256, 384)  # both towers
    assert params["conv4"]["kernel"].shape == (3, 3, 192, 384)
    assert params["conv5"]["kernel"].shape == (3, 3, 192, 256)


def test_mobilenet_v1_stages_follow_the_table():
    blocks = [k for k in shapes("mobilenet_v1") if re.fullmatch(r"stage\d_block\d", k)]
    assert len(blocks) == 13


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v1", "mobilenet_v2"])
def test_cifar_stem_keeps_small_images_and_the_imagenet_stem_warns(name):
    image = jnp.zeros((1, 32, 32, 3))
    with pytest.warns(UserWarning, match='use stem="cifar"'):
        jax.eval_shape(create_model(name).init, jax.random.key(0), image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = create_model(name, stem="cifar")
        init = functools.partial(model.init, capture_intermediates=True, mutable=True)
        found = jax.eval_shape(init, jax.random.key(0), image)["intermediates"]
    assert found["stem"]["__call__"][0].shape[1:3] == (32, 32)
    sizes = [leaf.shape[1] for leaf in jax.tree.leaves(found) if len(leaf.shape) == 4]
    assert min(sizes) >= 4
    with pytest.raises(UserError, match=r"unknown stem 'cifr' \(did you mean 'cifar'\?\)"):
        jax.eval_shape(create_model(name, stem="cifr").init, jax.random.key(0), image)


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        ("alexnet", 224, r"image \(224, 224\): AlexNet takes 227x227"),
        ("zfnet", 227, r"image \(227, 227\): ZFNet takes 224x224"),
        ("alexnet_torchvision", 62, "at least 63x63"),
        ("vgg16", 31, "at least 32x32"),
        ("airbench94", 9, "at least 10x10"),
        ("nin_imagenet", 38, "window 3"),
        ("alexnet(order=('pool', 'pool'))", 227, r"order \('pool', 'pool'\): allowed are \('norm', 'pool'\)"),
        ("alexnet(response_norm='pape')", 227, r"unknown response_norm 'pape' \(did you mean 'paper'\?\)"),
        ("alexnet_cifar(poolings=('mx', 'max', 'max'))", 32, "unknown pooling 'mx'"),
    ],
)
def test_impossible_sizes_and_values_are_readable_errors(spec, size, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(create_model(spec).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


# --- What the layers compute. ----------------------------------------------------------------------


def random_variables(model: nn.Module, size: tuple[int, ...]) -> dict:
    """Variables without a zero or a constant anywhere."""
    shape = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), size))
    leaves, tree = jax.tree.flatten(shape)
    draw = np.random.default_rng(0)
    return tree.unflatten([draw.uniform(0.02, 0.2, leaf.shape).astype(np.float32) for leaf in leaves])


def captured(model: nn.Module, variables: dict, image: jax.Array, **fields) -> dict[str, np.ndarray]:
    """What each module puts out, by path."""

    @jax.jit
    def run(variables, image):
        return model.apply(variables, image, capture_intermediates=True, mutable=["intermediates"], **fields)[
            1
        ]["intermediates"]

    flat = traverse_util.flatten_dict(run(variables, image), sep="/")
    return {k.removesuffix("/__call__"): np.asarray(v[0]) for k, v in flat.items()}


TINY_ALEXNET = {"image_size": 67, "widths": (8, 16, 16, 16, 8, 32, 32)}


@pytest.mark.parametrize("groups", [1, 2])
def test_the_first_half_of_the_channels_is_the_first_tower(groups):
    model = create_model("alexnet", groups=groups, response_norm="none", **TINY_ALEXNET)
    variables = random_variables(model, (67, 67, 3))
    image = jax.random.uniform(jax.random.key(1), (1, 67, 67, 3))
    before = captured(model, variables, image)
    variables["params"]["conv1"]["kernel"][..., 4:] *= 2  # changes the second tower alone
    after = captured(model, variables, image)
    same = {
        (layer, half): bool(np.array_equal(before[layer][..., part], after[layer][..., part]))
        for layer, width in {"conv1": 8, "conv2": 16, "conv3": 16}.items()
        for half, part in {1: slice(0, width // 2), 2: slice(width // 2, width)}.items()
    }
    assert same == {
        ("conv1", 1): True,
        ("conv1", 2): False,
        ("conv2", 1): groups == 2,
        ("conv2", 2): False,
        ("conv3", 1): False,  # conv3 reads both towers
        ("conv3", 2): False,
    }


def max3(x: np.ndarray) -> np.ndarray:
    return np.asarray(lax.reduce_window(x, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"))


def response_norm(x: np.ndarray, k: float, alpha: float) -> np.ndarray:
    """Over the five channels around each, summed one by one."""
    channels = x.shape[-1]
    total = np.zeros_like(x)
    for i in range(channels):
        for j in range(max(0, i - 2), min(channels, i + 3)):
            total[..., i] += x[..., j] ** 2
    return x / (k + alpha * total) ** 0.75


@pytest.mark.parametrize("name", ["alexnet", "caffenet"])
def test_alexnet_normalizes_then_pools_and_caffenet_the_reverse(name):
    model = create_model(name, **TINY_ALEXNET)
    variables = random_variables(model, (67, 67, 3))
    image = 50 * jax.random.uniform(jax.random.key(1), (1, 67, 67, 3))  # so large that the squares count
    found = captured(model, variables, image)
    x = np.maximum(found["conv1"], 0)
    expected = {
        "alexnet": lambda x: max3(response_norm(x, 2.0, 1e-4)),
        "caffenet": lambda x: response_norm(max3(x), 1.0, 1e-4 / 5),
    }[name](x)
    params = variables["params"]["conv2"]
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = lax.conv_general_dilated(
        expected, params["kernel"], (1, 1), [(2, 2)] * 2, dimension_numbers=dimensions, feature_group_count=2
    )
    np.testing.assert_allclose(found["conv2"], np.asarray(expected) + params["bias"], rtol=1e-4)


def test_dropout_of_one_half_behind_both_hidden_layers_of_alexnet():
    model = create_model("alexnet", image_size=67, widths=(8, 16, 16, 16, 8, 4000, 4000))
    variables = random_variables(model, (67, 67, 3))
    image = jax.random.uniform(jax.random.key(1), (1, 67, 67, 3))
    found = captured(model, variables, image, train=True, rngs={"dropout": jax.random.key(2)})
    for i in (1, 2):
        dense, dropped = found[f"dense{i}"], found[f"dropout{i}"]
        assert (dense > 0).all()
        assert np.mean(dropped == 0) == pytest.approx(0.5, abs=0.05)
        np.testing.assert_allclose(dropped[dropped > 0], 2 * dense[dropped > 0], rtol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_cifar"])
def test_smaller_windows_do_not_overlap_but_keep_every_size(name):
    size = variant(name).preset.input_size

    def shape(window):
        model = create_model(name, pool_window=window)
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda: init_variables(model, jax.random.key(0), size)))

    assert shape(3) == shape(2)


def test_vgg_takes_other_sizes_by_adaptive_pooling():
    model = create_model("vgg11", widths=(2, 2, 2, 2, 3), dense_widths=(4, 4))
    shape = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 64, 5)))["params"]
    assert shape["dense1"]["kernel"].shape == (7 * 7 * 3, 4)
    assert shape["stage1_conv1"]["conv"]["kernel"].shape == (3, 3, 5, 2)


def test_inverted_residuals_are_linear_at_their_end_and_added_where_alike():
    model, size = create_model("mobilenet_v2(stages=((1, 8, 1, 1), (2, 8, 2, 2)))"), (80, 80, 3)
    variables = random_variables(model, size)
    found = captured(model, variables, 30 * jax.random.normal(jax.random.key(1), (1, *size)))
    block, project = found["stage2_block2"], found["stage2_block2/project"]
    np.testing.assert_allclose(block, found["stage2_block1"] + project, rtol=1e-5)
    np.testing.assert_array_equal(found["stage2_block2/project/norm"], project)
    assert found["stem/conv"].max() > found["stem"].max() == 6  # ReLU6


# --- Initial values. -------------------------------------------------------------------------------


def initial(spec: str, size: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Fresh parameters by path."""
    model = create_model(spec)
    variables = jax.jit(lambda key: init_variables(model, key, size))(jax.random.key(3))
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(variables["params"], sep="/").items()}


def assert_normal(kernel: np.ndarray, std: float) -> None:
    assert kernel.mean() == pytest.approx(0, abs=5 * std / kernel.size**0.5)
    assert kernel.std() == pytest.approx(std, rel=4 / kernel.size**0.5)
    assert np.abs(kernel).max() > 2.5 * std  # no uniform draw reaches that far


def test_alexnet_starts_as_in_the_paper():
    params = initial(
        "alexnet(image_size=67, widths=(32, 32, 32, 32, 32, 64, 64), num_classes=50)", (67, 67, 3)
    )
    for path, value in params.items():
        layer, leaf = path.split("/")
        if leaf == "kernel":
            assert_normal(value, 0.01)
        else:
            assert (value == (layer in ("conv2", "conv4", "conv5", "dense1", "dense2"))).all(), path


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("zfnet(image_size=56, widths=(32, 32, 32, 32, 32, 64, 64), num_classes=50)", (56, 56, 3)),
        ("caffenet(image_size=67, widths=(32, 32, 32, 32, 32, 64, 64), num_classes=50)", (67, 67, 3)),
    ],
)
def test_its_successors_start_at_the_same_spread(spec, size):
    for path, value in initial(spec, size).items():
        if path.endswith("kernel"):
            assert_normal(value, 0.01)
        else:
            biased = spec.startswith("caffenet") and re.match("conv[245]|dense", path)
            np.testing.assert_allclose(value, 1.0 if biased else 0.0)


def test_alexnet_cifar_starts_as_caffes_cifar10_full():
    params = initial("alexnet_cifar", (32, 32, 3))
    for layer, std in {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "head": 0.01}.items():
        assert_normal(params[f"{layer}/kernel"], std)
        assert not params[f"{layer}/bias"].any()


def test_vgg_and_mobilenet_v2_start_as_torchvisions():
    params = initial("vgg11_bn(widths=(32, 32, 32, 32, 32), dense_widths=(32, 32))", (32, 32, 3))
    assert_normal(params["stage2_conv1/conv/kernel"], (2 / (9 * 32)) ** 0.5)
    assert_normal(params["dense1/kernel"], 0.01)
    assert_normal(params["head/kernel"], 0.01)
    params = initial("mobilenet_v2(stages=((1, 32, 1, 1), (6, 32, 1, 2)), last_width=64)", (96, 96, 3))
    assert_normal(params["stage2_block1/depthwise/conv/kernel"], (2 / (9 * 192)) ** 0.5)
    assert_normal(params["stage2_block1/project/conv/kernel"], (2 / 32) ** 0.5)
    assert_normal(params["head/kernel"], 0.01)


def test_squeezenet_starts_he_uniform():
    params = initial("squeezenet1_1(squeezes=((64,),), num_classes=200)", (96, 96, 3))
    kernel, bound = params["stage1_fire1/squeeze/kernel"], (6 / 64) ** 0.5
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert_normal(params["head/kernel"], 0.01)


def test_nin_starts_at_the_released_spreads():
    for path, value in initial("nin_cifar(widths=((96, 96), (48, 48), (48, 48)))", (32, 32, 3)).items():
        if path.endswith("kernel"):
            assert_normal(value, 0.05)
        else:
            assert not value.any()


# --- The nets of the speed runs. -------------------------------------------------------------------


def test_whitening_kernel_makes_patches_white_strongest_first():
    images = jax.random.normal(jax.random.key(0), (20, 16, 16, 3))
    images = images + 3 * images.mean(-1, keepdims=True) + jnp.roll(images, 1, 1)  # correlated
    whitening = jax.jit(whitening_kernel)
    kernel = whitening(images, epsilon=0.0)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    outputs = lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    outputs = np.asarray(outputs[..., :12].reshape(-1, 12), np.float64)
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), np.eye(12), atol=2e-3)
    norms = np.linalg.norm(np.asarray(kernel[..., :12]).reshape(-1, 12), axis=0)
    assert (np.diff(norms) > 0).all()  # the largest variance is scaled the most down
    damped = whitening(images, epsilon=10.0)
    assert np.linalg.norm(damped) < np.linalg.norm(kernel)


def test_identity_uniform_passes_each_input_channel_on():
    kernel = jax.jit(lambda key: identity_uniform(key, (3, 3, 4, 16)))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(y[..., :4], x, rtol=1e-5, atol=1e-5)
    rest = np.asarray(kernel[..., 4:])
    assert 0.9 / 6 < np.abs(rest).max() <= 1 / 6  # 1 / sqrt(3 * 3 * 4)


def test_frozen_names_the_whitening_kernel_and_the_scales_alone():
    for name, groups in (("airbench94", 6), ("airbench96", 9)):
        shape = jax.eval_shape(lambda n=name: init_variables(create_model(n), jax.random.key(0), (32, 32, 3)))
        paths = list(traverse_util.flatten_dict(shape["params"], sep="/"))
        frozen = [path for path in paths if re.fullmatch(FROZEN, path)]
        assert "whiten/kernel" in frozen
        assert len(frozen) == 1 + groups
        assert all(path.endswith("/scale") for path in frozen if path != "whiten/kernel")


def test_speed_run_logits_are_scaled_by_one_ninth():
    model, other = (create_model("airbench94", widths=(8, 8, 8), **kw) for kw in ({}, {"scale": 1.0}))
    variables = random_variables(model, (16, 16, 3))
    image = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    logits = [jax.jit(m.apply)(variables, image) for m in (model, other)]
    np.testing.assert_allclose(9 * logits[0], logits[1], rtol=1e-5)


def test_every_classic_variant_has_a_source_and_a_preset_it_serves():
    pattern = re.compile("alexnet|caffenet|zfnet|nin_|vgg|squeezenet|mobilenet_v|airbench")
    for name in filter(pattern.match, list_models()):
        assert variant(name).source
        assert variant(name).preset.num_classes == shapes(name)["head"][-1]
