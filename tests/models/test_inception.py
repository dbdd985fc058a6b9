"""GoogLeNet to ConvNeXt: exact counts, the papers' shapes and initial values, torchvision's logits."""

import functools
import itertools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.scipy.special import erf

from cnnjax import ops
from cnnjax.data.datasets import load
from cnnjax.errors import UserError
from cnnjax.models import create_model, init_variables, variant
from cnnjax.models.googlenet import AuxiliaryHead
from cnnjax.models.inception_cifar import LARGE, Large
from cnnjax.models.layers import Dense, DropPath, SqueezeExcite, conv_unit
from cnnjax.models.net import Net, he_normal, scaled
from cnnjax.models.weights.torch import convert, convert_into, to_torch, torch_entries
from tests import golden
from tests.models import count_variant_params

PARAMS = {
    "googlenet": 6998552,
    "googlenet_with_aux": 13378280,
    "googlenet_bn": 7005832,
    "googlenet_torchvision": 6624904,
    "googlenet_torchvision_with_aux": 13004888,
    "inception_v2": 11285224,  # the released 11,295,240 less a bias for each of its 10,016 BN channels
    "inception_v3": 23834568,
    "inception_v3_with_aux": 27161264,
    "densenet121": 7978856,
    "densenet169": 14149480,
    "densenet201": 20013928,
    "densenet161": 28681000,
    "densenet_bc_100_12": 769162,
    "efficientnet_b0": 5288548,
    "efficientnet_b1": 7794184,
    "efficientnet_b2": 9109994,
    "efficientnet_b3": 12233232,
    "efficientnet_b4": 19341616,
    "convnext_tiny": 28589128,
    "convnext_small": 50223688,
    "convnext_base": 88591464,
    "convnext_large": 197767336,
}

# The smallest member that still has every part of its family, and an input that it serves.
TINY = {
    "googlenet(stem='cifar', width=0.06)": (16, 16, 3),
    "googlenet_cifar(width=0.06, aux_logits=True)": (12, 12, 1),
    "googlenet_torchvision(stem='cifar', width=0.06, aux_logits=True)": (8, 8, 1),
    "inception_v2(width=0.08)": (28, 28, 1),
    "inception_v3(width=0.05)": (75, 75, 1),
    "inception_cifar_3x3(widths=(3, 5), stage_size=1)": (14, 14, 1),
    "densenet121(stem='cifar', stage_sizes=(1, 2), growth_rate=4, stem_width=8)": (14, 14, 1),
    "efficientnet_b0(stem='cifar', stages=((1, 3, 1, 8, 1), (4, 5, 2, 8, 2)))": (14, 14, 1),
    "convnext_tiny(stem='cifar', stage_sizes=(1, 2), widths=(8, 16))": (14, 14, 1),
}
# Small images in front of an ImageNet stem are on purpose here, except where a test asks for the warning.
pytestmark = pytest.mark.filterwarnings("ignore:the ImageNet stem")


@pytest.mark.parametrize("name", PARAMS)
def test_exact_parameter_count(name):
    assert count_variant_params(name) == PARAMS[name]


def test_parameters_of_densenets_largest_cifar_net():
    assert count_variant_params("densenet_bc_190_40") == pytest.approx(25.6e6, rel=2e-3)


# --- Torchvision's weights. ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model"),
    {
        "googlenet": "googlenet_torchvision",
        "inception_v3": "inception_v3",
        "densenet121": "densenet121",
        "efficientnet_b0": "efficientnet_b0",
        "convnext_tiny": "convnext_tiny",
    }.items(),
)
def test_logits_are_torchvisions(name, model):
    assert golden.relative_error(name, model) < 1e-4


@pytest.mark.parametrize(
    ("name", "model", "heads"),
    [("googlenet", "googlenet_torchvision", ["aux1", "aux2"]), ("inception_v3", "inception_v3", ["aux"])],
)
def test_auxiliary_heads_are_used_where_built_and_named_where_dropped(name, model, heads):
    state_dict = golden.state_dict(name)
    with pytest.warns(UserWarning, match="left out of the state dict: (aux1|AuxLogits)"):
        without = convert(state_dict, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        variables = convert(state_dict, f"{model}_with_aux")
    assert set(variables["params"]) - set(without["params"]) == set(heads)
    back = to_torch(variables, create_model(f"{model}_with_aux"))
    assert set(back) == {k for k in state_dict if not k.endswith("num_batches_tracked")}
    for entry, value in back.items():
        np.testing.assert_array_equal(value, state_dict[entry], err_msg=entry)


def test_the_auxiliary_dense_layer_reads_torchs_order_of_channels_and_pixels():
    width, model = 0.06, create_model("googlenet_torchvision(width=0.06, aux_logits=True)")
    variables = random_variables(model, (32, 32, 3))
    unit, dense = conv_unit(model, False, he_normal, width), scaled(Dense, width)
    head = AuxiliaryHead(unit, dense, functools.partial(ops.adaptive_avg_pool, output_size=4), 1000)
    channels = variables["params"]["aux2"]["conv"]["conv"]["kernel"].shape[2]
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, channels))
    found = captured(head, {kind: tree["aux2"] for kind, tree in variables.items()}, x)
    torch = to_torch(variables, model)
    flat = found["conv"].transpose(0, 3, 1, 2).reshape(2, -1)  # [B, C * H * W]
    hidden = flat @ torch["aux2.fc1.weight"].T + torch["aux2.fc1.bias"][None]
    np.testing.assert_allclose(found["dense"], hidden, rtol=1e-4)
    expected = jax.nn.relu(hidden) @ torch["aux2.fc2.weight"].T + torch["aux2.fc2.bias"][None]
    np.testing.assert_allclose(found["head"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        (
            "densenet161",
            {
                "features.conv0.weight": (96, 3, 7, 7),
                "features.denseblock4.denselayer24.conv2.weight": (48, 192, 3, 3),
                "features.transition3.conv.weight": (1056, 2112, 1, 1),
                "features.norm5.running_var": (2208,),
                "classifier.weight": (1000, 2208),
            },
        ),
        (
            "efficientnet_b4",
            {
                "features.0.0.weight": (48, 3, 3, 3),
                "features.1.1.block.1.fc1.weight": (6, 24, 1, 1),
                "features.1.1.block.2.1.bias": (24,),
                "features.7.1.block.3.0.weight": (448, 2688, 1, 1),
                "features.8.0.weight": (1792, 448, 1, 1),
                "classifier.1.bias": (1000,),
            },
        ),
        (
            "convnext_base",
            {
                "features.0.0.weight": (128, 3, 4, 4),
                "features.5.26.layer_scale": (512, 1, 1),
                "features.6.1.weight": (1024, 512, 2, 2),
                "features.7.2.block.5.weight": (1024, 4096),
                "classifier.0.weight": (1024,),
            },
        ),
    ],
)
def test_torch_names_of_other_depths_and_widths(name, entries):
    found = {e.name: e.shape for e in torch_entries(create_model(name), variant(name).preset.input_size)}
    assert {k: found.get(k) for k in entries} == entries


@pytest.mark.parametrize(
    "family", ["googlenet_torchvision", "inception_v3", "densenet121", "efficientnet_b0", "convnext_tiny"]
)
def test_torch_state_dict_round_trip_is_exact(family):
    spec, size = next(item for item in TINY.items() if item[0].startswith(family))
    model = create_model(spec)
    variables = random_variables(model, size)
    back = convert_into(to_torch(variables, model), model, size)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


# --- Shapes: the sizes that the papers print for each layer. ---------------------------------------


@functools.cache
def shapes(spec: str, side: int | None = None) -> dict[str, tuple[int, ...]]:
    """[H, W, C] of what each module puts out, by path; at the preset's size unless told."""
    model, size = create_model(spec), variant(spec).preset.input_size
    size = (side, side, size[2]) if side else size

    def run():
        image = jnp.zeros((1, *size))
        return model.init_with_output(jax.random.key(0), image, capture_intermediates=True, mutable=True)[1]

    found = traverse_util.flatten_dict(jax.eval_shape(run)["intermediates"], sep="/")
    return {k.removesuffix("/__call__"): v[0].shape[1:] for k, v in found.items()}


GOOGLENET = {
    "stem/conv1": (112, 112, 64),
    "stem/conv2": (56, 56, 64),
    "stem/conv3": (56, 56, 192),
    "stem": (28, 28, 192),
    "cell3a": (28, 28, 256),
    "cell3b": (28, 28, 480),
    "cell4a": (14, 14, 512),
    "cell4b": (14, 14, 512),
    "cell4c": (14, 14, 512),
    "cell4d": (14, 14, 528),
    "cell4e": (14, 14, 832),
    "cell5a": (7, 7, 832),
    "cell5b": (7, 7, 1024),
}
PAPER_SHAPES = {
    "googlenet": GOOGLENET,
    "googlenet_bn": GOOGLENET,
    "googlenet_torchvision": GOOGLENET,
    "googlenet_with_aux": GOOGLENET
    | {"aux1/conv": (4, 4, 128), "aux1/dense": (1024,), "aux2/conv": (4, 4, 128), "aux2": (1000,)},
    "inception_v2": {
        "stem": (28, 28, 192),
        "cell3a": (28, 28, 256),
        "cell3b": (28, 28, 320),
        "cell3c": (14, 14, 576),
        "cell4b": (14, 14, 576),
        "cell4d": (14, 14, 608),
        "cell4e": (7, 7, 1056),
        "cell5b": (7, 7, 1024),
    },
    "inception_v3_with_aux": {
        "stem/conv1a_3x3": (149, 149, 32),
        "stem/conv2a_3x3": (147, 147, 32),
        "stem/conv2b_3x3": (147, 147, 64),
        "stem/conv3b_1x1": (73, 73, 80),
        "stem/conv4a_3x3": (71, 71, 192),
        "stem": (35, 35, 192),
        "mixed5b": (35, 35, 256),
        "mixed5d": (35, 35, 288),
        "mixed6a": (17, 17, 768),
        "mixed6e": (17, 17, 768),
        "aux/conv0": (5, 5, 128),
        "aux/conv1": (1, 1, 768),
        "aux": (1000,),
        "mixed7a": (8, 8, 1280),
        "mixed7c": (8, 8, 2048),
    },
    "densenet121": {
        "stem": (56, 56, 64),
        "stage1_block6": (56, 56, 256),
        "transition1": (28, 28, 128),
        "stage2_block12": (28, 28, 512),
        "stage3_block24": (14, 14, 1024),
        "stage4_block16": (7, 7, 1024),
    },
    "densenet_bc_100_12": {
        "stem": (32, 32, 24),
        "stage1_block16": (32, 32, 216),
        "transition2": (8, 8, 150),
        "stage3_block16": (8, 8, 342),
    },
    "efficientnet_b0": {
        "stem": (112, 112, 32),
        "stage1_block1": (112, 112, 16),
        "stage2_block2": (56, 56, 24),
        "stage3_block2": (28, 28, 40),
        "stage4_block3": (14, 14, 80),
        "stage5_block3": (14, 14, 112),
        "stage6_block4": (7, 7, 192),
        "stage7_block1": (7, 7, 320),
        "last": (7, 7, 1280),
    },
    "convnext_tiny": {
        "stem": (56, 56, 96),
        "stage1_block3": (56, 56, 96),
        "stage2_block3": (28, 28, 192),
        "stage3_block9": (14, 14, 384),
        "stage4_block3": (7, 7, 768),
    },
    "googlenet_cifar": {"stem": (32, 32, 48), "cell3b": (32, 32, 120), "cell4e": (16, 16, 208)},
    "inception_cifar_5x5": {"stage1_block2": (32, 32, 64), "stage3_block2": (8, 8, 256)},
}


@pytest.mark.parametrize("name", PAPER_SHAPES)
def test_layers_have_the_shapes_of_the_paper(name):
    found = shapes(name)
    assert {path: found.get(path) for path in PAPER_SHAPES[name]} == PAPER_SHAPES[name]


def test_naive_cells_let_the_channels_grow_from_stage_to_stage():
    """1409.4842, section 4: the pooling's outputs add those of the convolutions to every cell's inputs."""
    found = shapes("googlenet_naive")
    widths = [found[f"cell{name}"][-1] for name in ("3a", "3b", "4a", "4e", "5b")]
    assert widths == [192 + 64 + 128 + 32, 416 + 128 + 192 + 96, 832 + 192 + 208 + 48, 3344, 4944]
    assert not any("reduce" in path or "branch_pool" in path for path in found)
    assert count_variant_params("googlenet_naive") > 10 * PARAMS["googlenet"]


def test_the_large_branch_is_5x5_in_the_paper_and_3x3_in_torchvision():
    for name, side in {"googlenet": 5, "googlenet_bn": 5, "googlenet_torchvision": 3}.items():
        params = parameter_shapes(name)
        assert params["cell3a/branch5x5/conv/kernel"] == (side, side, 16, 32)
        assert ("cell3a/branch5x5/conv/bias" in params) == (name == "googlenet")


SMALLEST = {
    "googlenet(width=0.06)": 31,
    "googlenet(width=0.06, aux_logits=True)": 79,
    "googlenet_torchvision(width=0.06, aux_logits=True)": 15,
    "googlenet_cifar(width=0.06)": 4,
    "googlenet_cifar(width=0.06, aux_logits=True)": 10,
    "inception_v3(width=0.05)": 75,
    "inception_cifar_1xn(widths=(2, 2, 2))": 4,
    "xception(width=0.02, middle=1)": 7,
    "densenet121(stage_sizes=(1, 1, 1, 1))": 29,
    "convnext_tiny(stage_sizes=(1, 1, 1, 1))": 32,
    "convnext_tiny(stem='cifar', stage_sizes=(1, 1, 1, 1))": 16,
}


@pytest.mark.parametrize(("spec", "side"), SMALLEST.items())
def test_the_smallest_image_and_one_pixel_less(spec, side):
    assert shapes(spec, side)["head"]
    with pytest.raises(UserError, match=r"window .* more than size|window .* is larger than size"):
        shapes(spec, side - 1)


@pytest.mark.parametrize("spec", ["inception_v2(width=0.05)", "efficientnet_b0(width=0.25)"])
def test_any_size_and_channel_count(spec):
    model = create_model(spec)
    for size in [(1, 1, 3), (33, 18, 5)]:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *size)))


@pytest.mark.parametrize("name", ["googlenet", "densenet121", "efficientnet_b0", "convnext_tiny"])
def test_cifar_stem_keeps_small_images_and_the_imagenet_stem_warns(name):
    image, key = jnp.zeros((1, 32, 32, 3)), jax.random.key(0)
    with pytest.warns(UserWarning, match='stem="cifar"'):
        jax.eval_shape(create_model(name).init, key, image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(create_model(name, stem="cifar").init, key, image)
    side = shapes(f"{name}(stem='cifar')", 32)["stem"][0]
    assert side == (16 if name == "convnext_tiny" else 32)
    with pytest.raises(UserError, match=r"unknown stem 'cifr' \(did you mean 'cifar'\?\)"):
        jax.eval_shape(create_model(name, stem="cifr").init, key, image)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "googlenet_cifar(aux_logits=('4c',))",
            "aux_logits .* allowed are True, False or some of",
        ),
        ("inception_cifar_5x5(kernel_size=4)", "kernel_size 4: allowed are odd numbers from 3 on"),
    ],
)
def test_impossible_values_are_readable_errors(spec, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(create_model(spec).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


# --- What the layers compute. ----------------------------------------------------------------------


def parameter_shapes(spec: str) -> dict[str, tuple[int, ...]]:
    """By path, at the preset's size."""
    model, size = create_model(spec), variant(spec).preset.input_size
    params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), size))["params"]
    return {k: v.shape for k, v in traverse_util.flatten_dict(params, sep="/").items()}


def random_variables(model: nn.Module, size: tuple[int, ...]) -> dict:
    """Variables without a zero or a constant anywhere."""
    shape = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), size))
    leaves, tree = jax.tree.flatten(shape)
    draw = np.random.default_rng(0)
    return tree.unflatten([draw.uniform(0.02, 0.2, leaf.shape).astype(np.float32) for leaf in leaves])


def captured(model: nn.Module, variables: dict, image: jax.Array, **fields) -> dict[str, jax.Array]:
    """What each module puts out, by path."""
    apply = functools.partial(model.apply, capture_intermediates=True, **fields)
    apply = jax.jit(functools.partial(apply, mutable=["intermediates", "batch_stats"]))
    _, state = apply(variables, image)
    found = traverse_util.flatten_dict(state["intermediates"], sep="/")
    return {k.removesuffix("/__call__"): v[0] for k, v in found.items()}


def torch_response_norm(x: np.ndarray) -> np.ndarray:
    """alpha / n of the squares of five channels, k = 1, summed one by one."""
    total = np.zeros_like(x)
    for i in range(x.shape[-1]):
        total[..., i] = (x[..., max(0, i - 2) : i + 3] ** 2).sum(-1)
    return x / (1 + 1e-4 / 5 * total) ** 0.75


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_caffes_response_norm_stands_in_the_stem_of_the_net_without_batch_norm(name):
    spec, size = f"{name}(stem='cifar', width=0.06)", (8, 8, 3)
    model = create_model(spec)
    variables = random_variables(model, size)
    image = 300 * jax.random.uniform(jax.random.key(1), (1, *size))  # so large that the squares count
    found = captured(model, variables, image)
    x = np.asarray(found["stem/conv3"], np.float64)
    expected = torch_response_norm(x) if name == "googlenet" else x
    assert not np.allclose(torch_response_norm(x), x, rtol=1e-2)
    np.testing.assert_allclose(found["stem"], expected, rtol=1e-4)


def test_dense_layers_append_to_what_they_read():
    spec, size = next(item for item in TINY.items() if item[0].startswith("densenet"))
    model = create_model(spec)
    image = jax.random.normal(jax.random.key(1), (1, *size))
    found = captured(model, random_variables(model, size), image)
    np.testing.assert_array_equal(found["stage1_block1"][..., :8], found["stem"])
    np.testing.assert_array_equal(found["stage2_block2"][..., :10], found["stage2_block1"])
    np.testing.assert_array_equal(found["stage2_block2"][..., 10:], found["stage2_block2/conv2"])


def test_squeeze_excite_gates_channels_by_all_channels_means():
    module = SqueezeExcite(2, act=jax.nn.silu)
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))
    params = random_variables_of(module, x)
    fc1, fc2 = params["params"]["fc1"], params["params"]["fc2"]
    hidden = jax.nn.silu(x.mean((1, 2)) @ fc1["kernel"] + fc1["bias"][None])
    gate = jax.nn.sigmoid(hidden @ fc2["kernel"] + fc2["bias"][None])
    assert fc1["kernel"].shape == (6, 2)
    np.testing.assert_allclose(module.apply(params, x), x * gate[:, None, None], rtol=1e-5)


def random_variables_of(module: nn.Module, x: jax.Array) -> dict:
    """As `random_variables` for a layer."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), x))
    draw = np.random.default_rng(0)
    return tree.unflatten([draw.uniform(0.02, 0.2, leaf.shape).astype(np.float32) for leaf in leaves])


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jax.random.normal(jax.random.key(0), (4000, 2, 1, 3))
    key = {"dropout": jax.random.key(1)}
    y = np.asarray(DropPath(0.25, train=True).apply({}, x, rngs=key))
    dropped = (y == 0).all((1, 2, 3))
    assert dropped.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(y[~dropped], x[~dropped] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x), x)
    np.testing.assert_array_equal(DropPath(0.0, train=True).apply({}, x, rngs=key), x)
    with pytest.raises(UserError, match="^rate=1.0 must be"):  # whose gradient is not a number
        DropPath(1.0, train=True).apply({}, x, rngs=key)


@pytest.mark.parametrize(
    ("spec", "rates"),
    [  # torchvision's: block / blocks in EfficientNet, block / (blocks - 1) in ConvNeXt
        ("efficientnet_b0(drop_path_rate=0.8, stem='cifar', stages=((1, 3, 1, 8, 4),))", [0, 0.2, 0.4, 0.6]),
        (
            "convnext_tiny(stem='cifar', stage_sizes=(4,), widths=(8,), drop_path_rate=0.6)",
            [0, 0.2, 0.4, 0.6],
        ),
    ],
)
def test_stochastic_depth_grows_linearly_with_depth(spec, rates):
    model, size = create_model(spec, num_classes=2), (4, 4, 8)
    image = jax.random.normal(jax.random.key(0), (600, *size))
    variables = random_variables(model, size)
    found = captured(model, variables, image, train=True, rngs={"dropout": jax.random.key(1)})
    blocks = [found["stem"], *(found[f"stage1_block{i}"] for i in range(1, 5))]
    kept = [
        np.mean(np.any(np.asarray(a) != np.asarray(b), axis=(1, 2, 3)))
        for a, b in itertools.pairwise(blocks)
        if a.shape == b.shape
    ]
    assert 1 - np.array(kept) == pytest.approx(np.array(rates[-len(kept) :]), abs=0.08)


def test_convnext_block_by_its_formula():
    spec = "convnext_tiny(stem='cifar', stage_sizes=(1,), widths=(4,))"
    model, size = create_model(spec), (6, 6, 3)
    variables = random_variables(model, size)
    found = captured(model, variables, jax.random.normal(jax.random.key(0), (2, *size)))
    block, path = variables["params"]["stage1_block1"], "stage1_block1"
    y = np.asarray(found[f"{path}/conv"], np.float64)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * block["norm"]["scale"] + block["norm"]["bias"]
    y = y @ block["dense1"]["kernel"] + block["dense1"]["bias"]
    y = y * (1 + np.asarray(erf(y / 2**0.5))) / 2  # the exact GELU
    y = y @ block["dense2"]["kernel"] + block["dense2"]["bias"]
    np.testing.assert_allclose(found[path], found["stem"] + y * block["layer_scale"], rtol=1e-4)


# --- Factorization (1512.00567, section 3). --------------------------------------------------------

BRANCHES = {
    "5x5": ("nxn", 5, 25),
    "two 3x3": ("3x3", 5, 18),
    "two 3x3, linear": ("3x3_linear", 5, 18),
    "1x5, 5x1": ("1xn", 5, 10),
    "7x7": ("nxn", 7, 49),
    "three 3x3": ("3x3", 7, 27),
    "1x7, 7x1": ("1xn", 7, 14),
}


@pytest.mark.parametrize(("branch", "side", "weights"), BRANCHES.values(), ids=BRANCHES)
def test_factorized_kernels_see_the_same_pixels_with_fewer_weights(branch, side, weights):
    channels = 6
    unit, linear = (
        conv_unit(Net(), False, he_normal, act=ops.activation(act)) for act in ("relu", "identity")
    )
    module = Large(channels, LARGE[branch](side, unit, linear))
    x = jax.random.uniform(jax.random.key(0), (1, 9, 9, channels))
    variables = random_variables_of(module, x)
    kernels = [v for k, v in traverse_util.flatten_dict(variables["params"]).items() if k[-1] == "kernel"]
    assert sum(kernel.size for kernel in kernels) == weights * channels**2
    gradient = jax.grad(lambda x: module.apply(variables, x)[0, 4, 4].sum())(x)
    seen = np.argwhere(np.asarray(gradient).any((0, 3)))
    assert seen.min(0).tolist() == [4 - side // 2] * 2
    assert seen.max(0).tolist() == [4 + side // 2] * 2
    assert len(seen) == side**2


def test_the_linear_variant_differs_by_the_relu_alone():
    models = [create_model(f"inception_cifar_3x3{end}(widths=(3,), stage_size=1)") for end in ("", "_linear")]
    image = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.tree.map(lambda x: x - 0.1, random_variables(models[0], (8, 8, 3)))
    variables["batch_stats"] = jax.tree.map(lambda x: x + 0.2, variables["batch_stats"])
    with jax.disable_jit():  # operation by operation, so that equal means equal in every bit
        with_relu, linear = (captured(m, variables, image) for m in models)
    between, end = "stage1_block1/branch_large/conv1", "stage1_block1/branch_large/conv2"
    assert (linear[between] < 0).any()
    np.testing.assert_array_equal(np.maximum(linear[between], 0), with_relu[between])
    assert (linear[end] >= 0).all()
    other = {k for k in linear if not np.array_equal(linear[k], with_relu[k])}
    behind = r"(stage1_block1(/branch_large(/conv1(/norm)?|/conv2.*)?)?|head|__call__)$"
    assert all(re.match(behind, k) for k in other), other


# --- Auxiliary heads. ------------------------------------------------------------------------------

AUXILIARY = {
    "googlenet_cifar(width=0.06, num_classes=4, aux_logits=True)": (32, 2),
    "googlenet_cifar(width=0.06, num_classes=4, aux_logits=('4d',))": (32, 1),
    "googlenet_cifar(width=0.06, num_classes=4)": (32, 0),
    "inception_v3(width=0.02, num_classes=4, aux_logits=True)": (299, 1),
}


@pytest.mark.parametrize(("spec", "heads"), AUXILIARY.items())
def test_auxiliary_logits_are_sown_while_training_alone(spec, heads):
    (side, number), model = heads, create_model(spec)
    image = jnp.zeros((2, side, side, 3))

    def run(train: bool):
        variables = init_variables(model, jax.random.key(0), image.shape[1:])
        rngs = {"dropout": jax.random.key(1)}
        mutable = ["intermediates", "batch_stats"]
        return model.apply(variables, image, train=train, rngs=rngs, mutable=mutable)

    logits, state = jax.eval_shape(lambda: run(True))
    sown = state.get("intermediates", {}).get("aux_logits", ())
    assert [(x.shape, x.dtype) for x in sown] == [((2, 4), jnp.float32)] * number
    assert logits.shape == (2, 4)
    assert "intermediates" not in jax.eval_shape(lambda: run(False))[1]


def test_auxiliary_heads_do_not_change_the_logits():
    image = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    model = create_model("googlenet_cifar(width=0.06, aux_logits=True)")
    variables = random_variables(model, (12, 12, 3))
    without = {
        kind: {k: v for k, v in tree.items() if not k.startswith("aux")} for kind, tree in variables.items()
    }
    plain = create_model("googlenet_cifar(width=0.06)")
    both = jax.jit(lambda: (model.apply(variables, image), plain.apply(without, image)))()
    np.testing.assert_array_equal(*both)


# --- Initial values. -------------------------------------------------------------------------------


def initial(spec: str, size: tuple[int, ...], *paths: str) -> list[np.ndarray]:
    """Fresh parameters at these paths."""
    model = create_model(spec)

    def init(key):
        params = init_variables(model, key, size)["params"]
        flat = traverse_util.flatten_dict(params, sep="/")
        return [flat[path] for path in paths]

    return [np.asarray(x) for x in jax.jit(init)(jax.random.key(3))]


def assert_uniform(kernel: np.ndarray, bound: float) -> None:
    assert 0.97 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=6 / kernel.size**0.5)


def assert_truncated(kernel: np.ndarray, std: float) -> None:
    """A normal of that standard deviation without what lies beyond two of them."""
    assert 1.9 * std < np.abs(kernel).max() <= 2.001 * std
    assert kernel.std() == pytest.approx(0.8796 * std, rel=6 / kernel.size**0.5)


def assert_normal(kernel: np.ndarray, std: float) -> None:
    assert np.abs(kernel).max() > 2.5 * std  # no uniform draw reaches that far
    assert kernel.std() == pytest.approx(std, rel=6 / kernel.size**0.5)


def test_googlenet_starts_as_caffes():
    kernel, bias, head, head_bias, aux_bias = initial(
        "googlenet(stem='cifar', width=0.25, aux_logits=True)",
        (12, 12, 3),
        "cell4e/branch3x3/conv/kernel",
        "cell4e/branch3x3/conv/bias",
        "head/kernel",
        "head/bias",
        "aux2/dense/bias",
    )
    assert_uniform(kernel, (3 / (9 * 40)) ** 0.5)
    assert_uniform(head, (3 / 256) ** 0.5)
    np.testing.assert_allclose(bias, 0.2)
    np.testing.assert_allclose(aux_bias, 0.2)
    assert not head_bias.any()


def test_inception_v3_starts_truncated():
    paths = ("mixed6b/branch7x7_2/conv/kernel", "aux/conv1/conv/kernel", "aux/head/kernel")
    kernels = initial("inception_v3(width=0.2, aux_logits=True)", (299, 299, 1), *paths)
    for kernel, std in zip(kernels, (0.1, 0.01, 0.001), strict=True):
        assert_truncated(kernel, std)


def test_the_others_start_as_their_references():
    kernel, head = initial("densenet_bc_40_12", (8, 8, 3), "stage3_block6/conv1/kernel", "head/kernel")
    assert_normal(kernel, (2 / 120) ** 0.5)
    assert_uniform(head, 132**-0.5)
    spec = "efficientnet_b0(stages=((1, 3, 1, 16, 1), (6, 5, 2, 40, 1)))"
    kernel, head = initial(spec, (8, 8, 3), "stage2_block1/depthwise/conv/kernel", "head/kernel")
    assert_normal(kernel, (2 / (25 * 96)) ** 0.5)  # torchvision counts the fan-out of all groups
    assert_uniform(head, 1000**-0.5)
    spec, block = "convnext_tiny(stage_sizes=(1, 1), widths=(16, 32))", "stage2_block1"
    kernel, scale = initial(spec, (16, 16, 3), f"{block}/dense1/kernel", f"{block}/layer_scale")
    assert_normal(kernel, 0.02)  # its bounds are 2, not two deviations
    np.testing.assert_allclose(scale, 1e-6)


# --- Learning. -------------------------------------------------------------------------------------


@functools.cache
def fashion(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """32 garments of the embedded sample, enlarged by repetition and cut to [H, W, C], and their labels."""
    source = load("fashion_mnist_mini", "train")
    rows = [source[i] for i in range(32)]
    image = np.stack([row["image"] for row in rows]).astype(np.float32) / 128 - 1
    times = -(-size[0] // 28)
    step = 28 // size[0] if size[0] < 28 else 1
    image = image[:, ::step, ::step].repeat(times, 1).repeat(times, 2)[:, : size[0], : size[1]]
    return image.repeat(size[2], 3), np.array([row["label"] for row in rows])


def drawn(model: nn.Module, size: tuple[int, ...]) -> dict:
    """He-normal kernels and neutral normalizations: XLA would take long to compile the draws of a net."""
    draw, shape = np.random.default_rng(0), random_variables(model, size)

    constants = {"scale": 1.0, "var": 1.0, "layer_scale": 0.1}

    def leaf(path: tuple, x: np.ndarray) -> np.ndarray:
        if x.ndim > 1:
            return (draw.standard_normal(x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5).astype(np.float32)
        return np.full(x.shape, constants.get(path[-1].key, 0.0), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shape)


LEARNING = (
    "googlenet_cifar",
    "inception_cifar_3x3",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    pytest.param("inception_v2", marks=pytest.mark.slow),
    pytest.param("inception_v3", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("family", LEARNING)
def test_loss_falls_on_real_images_and_every_parameter_moves(family):
    spec, size = next(item for item in TINY.items() if item[0].startswith(family))
    model = create_model(spec, num_classes=10)
    image, label = fashion(size)
    variables, tx = drawn(model, size), optax.flatten(optax.adam(5e-3))  # flat: compiles sooner

    @jax.jit
    def step(variables, opt_state, key):
        def loss(params):
            mutable = ["batch_stats", "intermediates"]
            logits, updates = model.apply(
                {**variables, "params": params}, image, train=True, rngs={"dropout": key}, mutable=mutable
            )
            heads = (logits, *updates.get("intermediates", {}).get("aux_logits", ()))
            losses = [optax.softmax_cross_entropy_with_integer_labels(x, label).mean() for x in heads]
            return losses[0] + 0.3 * sum(losses[1:]), (losses[0], updates.get("batch_stats", {}))

        grads, (value, stats) = jax.grad(loss, has_aux=True)(variables["params"])
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "batch_stats": stats}, opt_state, value

    before, opt_state, losses = variables["params"], tx.init(variables["params"]), []
    for i in range(20):
        variables, opt_state, value = step(variables, opt_state, jax.random.key(i))
        losses.append(float(value))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.85 * losses[0], losses
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, variables["params"])
    assert all(jax.tree.leaves(moved)), [k for k, v in traverse_util.flatten_dict(moved).items() if not v]
