"""Inception v4 to ConvNeXt V2: exact counts, the papers' shapes and scales, timm's names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as leaves

from cnnjax import ops
from cnnjax.models import create_model, init_variables, names_in_torch, variant
from cnnjax.models.convnext import GlobalResponseNorm
from cnnjax.models.ghostnet import GatedGhost, Ghost
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm
from cnnjax.models.weights.torch import convert_into, torch_entry
from tests.models import published_counts

# As timm counts them.
PARAMS = {
    "inception_v4": 42679816,
    "inception_resnet_v2": 55843464,
    "xception": 22855952,
    "xception41": 26969560,
    "xception65": 39916312,
    "xception71": 42338736,
    "xception41p": 26907752,
    "xception65p": 39819560,
    **{f"{prefix}efficientnet_lite0": 4652008 for prefix in ("", "tf_")},
    **{f"{prefix}efficientnet_lite1": 5416680 for prefix in ("", "tf_")},
    **{f"{prefix}efficientnet_lite2": 6092072 for prefix in ("", "tf_")},
    **{f"{prefix}efficientnet_lite3": 8197096 for prefix in ("", "tf_")},
    **{f"{prefix}efficientnet_lite4": 13006568 for prefix in ("", "tf_")},
    "ghostnet_050": 2587292,
    "ghostnet_100": 5182508,
    "ghostnet_130": 7358820,
    "ghostnetv2_100": 6156908,
    "ghostnetv2_130": 8960404,
    "ghostnetv2_160": 12392698,
    "convnextv2_atto": 3708400,
    "convnextv2_femto": 5233240,
    "convnextv2_pico": 9066280,
    "convnextv2_nano": 15623800,
    "convnextv2_tiny": 28635496,
    "convnextv2_base": 88717800,
    "convnextv2_large": 197956840,
    "convnextv2_huge": 660289640,
}


def test_exact_parameter_counts():
    """Of the table; `test_models` counts every model again and compares it with the table."""
    assert {name: published_counts()[name] for name in PARAMS} == PARAMS


SHAPES = {
    "inception_v4": {
        "stem": (35, 35, 384),
        "cell_a4": (35, 35, 384),
        "reduction_a": (17, 17, 1024),
        "cell_b7": (17, 17, 1024),
        "reduction_b": (8, 8, 1536),
        "cell_c3": (8, 8, 1536),
    },
    "inception_resnet_v2": {
        "stem": (35, 35, 192),
        "mixed5b": (35, 35, 320),
        "cell_a10": (35, 35, 320),
        "cell_b20": (17, 17, 1088),
        "cell_c9": (8, 8, 2080),
        "last": (8, 8, 1536),
    },
    "xception": {
        "stem1": (149, 149, 32),
        "stem2": (147, 147, 64),
        "block1": (74, 74, 128),
        "block2": (37, 37, 256),
        "block11": (19, 19, 728),
        "block12": (10, 10, 1024),
        "norm4": (10, 10, 2048),
    },
    "ghostnet_100": {
        "stem": (112, 112, 16),
        "stage2_block1": (56, 56, 24),
        "stage5_block1": (28, 28, 40),
        "stage7_block5": (14, 14, 112),
        "last": (7, 7, 960),
        "dense": (1280,),
    },
    "convnextv2_atto": {
        "stem": (56, 56, 40),
        "stage2_block2": (28, 28, 80),
        "stage3_block6": (14, 14, 160),
        "stage4_block2": (7, 7, 320),
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_part_has_the_shape_that_the_paper_prints(name):
    model, size = create_model(name), variant(name).preset.input_size

    def run():
        image = jnp.zeros((1, *size))
        return model.init_with_output(jax.random.key(0), image, capture_intermediates=True, mutable=True)[1]

    found = leaves(jax.eval_shape(run)["intermediates"], sep="/")
    shapes = {path.removesuffix("/__call__"): value[0].shape[1:] for path, value in found.items()}
    assert {path: shapes.get(path) for path in SHAPES[name]} == SHAPES[name]


def test_residual_cells_add_the_papers_fraction_of_their_branches():
    model = create_model("inception_resnet_v2(width=0.05, cells=(1, 1, 0))")
    image = jax.random.normal(jax.random.key(1), (2, 75, 75, 3))

    @jax.jit
    def run():
        return model.init_with_output(jax.random.key(0), image, capture_intermediates=True, mutable=True)[1]

    maps = {path: value[0] for path, value in leaves(run()["intermediates"], sep="/").items()}
    for cell, before, scale in (("cell_a1", "mixed5b", 0.17), ("cell_b1", "reduction_a", 0.1)):
        total = maps[f"{before}/__call__"] + scale * maps[f"{cell}/project/__call__"]
        np.testing.assert_allclose(maps[f"{cell}/__call__"], jax.nn.relu(total), rtol=1e-4, atol=1e-5)
    total = maps["reduction_b/__call__"] + maps["last_cell/project/__call__"]  # the last: in full, no ReLU
    np.testing.assert_allclose(maps["last_cell/__call__"], total, rtol=1e-4, atol=1e-5)


def test_ghost_gates_are_those_of_the_nearest_pixel_of_the_halved_map():
    unit = partial(ConvNorm, conv=partial(Conv, use_bias=False), norm=BatchNorm)
    x = jax.random.normal(jax.random.key(0), (1, 5, 4, 2))
    variables = GatedGhost(2, unit, unit).init(jax.random.key(1), x)
    alike = {"gate1": np.eye(2)[None, None], "gate2": np.eye(5)[2, None, :, None, None].repeat(2, -1)}
    alike["gate3"] = alike["gate2"].swapaxes(0, 1)  # each passes on what it reads
    for name, kernel in alike.items():
        assert variables["params"][name]["conv"]["kernel"].shape == kernel.shape
        variables["params"][name]["conv"]["kernel"] = jnp.asarray(kernel, jnp.float32)
    gated, plain = GatedGhost(2, unit, unit).apply(variables, x), Ghost(2, unit).apply(variables, x)
    gates = jax.nn.sigmoid(ops.avg_pool(x, 2))[:, np.array([0, 0, 0, 1, 1])][:, :, np.array([0, 0, 1, 1])]
    np.testing.assert_allclose(gated, plain * gates, rtol=1e-4, atol=1e-5)


def test_a_ghost_of_an_odd_width_leaves_the_last_channel_out():
    unit = partial(ConvNorm, conv=partial(Conv, use_bias=False), norm=BatchNorm)
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    even, variables = Ghost(6, unit).init_with_output(jax.random.key(1), x)
    np.testing.assert_array_equal(Ghost(5, unit).apply(variables, x), even[..., :5])


@pytest.mark.parametrize("name", ["convnext_tiny", "convnextv2_atto"])
def test_convnext_kernels_start_with_the_authors_standard_deviation(name):
    model = create_model(f"{name}(stage_sizes=(1,), widths=(128,), stem='cifar')")
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    for kernel in (params["stage1_block1"]["dense1"]["kernel"], params["head"]["kernel"]):
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.01)


def test_global_response_norm_is_the_papers_and_its_gradient_is_finite_where_a_channel_is_dead():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)).at[..., 1].set(0)
    scale, bias = np.arange(5.0, dtype=np.float32), np.ones(5, np.float32)
    variables = {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}
    y, gradient = jax.value_and_grad(lambda x: GlobalResponseNorm().apply(variables, x).sum())(x)
    norms = np.sqrt((np.asarray(x) ** 2).sum((1, 2), keepdims=True))
    image = np.asarray(x)
    expected = scale * (image * norms / (norms.mean(-1, keepdims=True) + 1e-6)) + bias + image
    np.testing.assert_allclose(GlobalResponseNorm().apply(variables, x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y, expected.sum(), rtol=1e-4)
    assert np.isfinite(gradient).all()
    fresh = GlobalResponseNorm().init(jax.random.key(0), x)
    np.testing.assert_array_equal(GlobalResponseNorm().apply(fresh, x), x)  # it begins as the identity


TIMM_ENTRIES = {
    "vgg11_bn": {
        "features.1.running_var": (64,),
        "pre_logits.fc1.weight": (4096, 512, 7, 7),
        "pre_logits.fc2.weight": (4096, 4096, 1, 1),
        "head.fc.bias": (1000,),
    },
    "mobilenet_v2": {
        "conv_stem.weight": (32, 3, 3, 3),
        "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
        "blocks.1.0.bn1.running_mean": (96,),
        "blocks.3.2.conv_dw.weight": (384, 1, 3, 3),
        "blocks.6.0.conv_pwl.weight": (320, 960, 1, 1),
        "bn2.weight": (1280,),
        "classifier.bias": (1000,),
    },
    "convnext_tiny": {
        "stem.0.weight": (96, 3, 4, 4),
        "stages.0.blocks.2.conv_dw.weight": (96, 1, 7, 7),
        "stages.1.blocks.0.mlp.fc1.weight": (768, 192),
        "stages.2.downsample.0.bias": (192,),
        "stages.2.downsample.1.weight": (384, 192, 2, 2),
        "head.norm.weight": (768,),
        "head.fc.weight": (1000, 768),
    },
}


@pytest.mark.parametrize("name", TIMM_ENTRIES)
def test_families_of_torchvision_are_read_by_timms_names_too(name):
    model, size = create_model(name), variant(name).preset.input_size
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), size))
    flat = leaves(shapes)
    timm = names_in_torch(model)[1]
    entries = {path: torch_entry(path, leaf.shape, model, timm) for path, leaf in flat.items()}
    assert {e.name: e.shape for e in entries.values()}.items() >= TIMM_ENTRIES[name].items()
    assert len({e.name for e in entries.values()}) == len(flat)


@pytest.mark.filterwarnings("ignore:the ImageNet stem")
@pytest.mark.parametrize(
    "spec",
    [
        "vgg11(depths=(1, 1), widths=(2, 3), dense_widths=(4, 5))",
        "mobilenet_v2(width=0.125)",
        "convnext_tiny(widths=(2, 3, 4, 5))",
    ],
)
def test_a_file_with_timms_names_gives_the_same_variables(spec):
    model = create_model(spec)
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (32, 32, 3)))
    flat = {path: draw.normal(size=leaf.shape).astype("float32") for path, leaf in leaves(shapes).items()}
    entries = (torch_entry(path, leaf.shape, model, names_in_torch(model)[1]) for path, leaf in flat.items())
    back = convert_into({e.name: e.to_torch(flat[e.path]) for e in entries}, model, (32, 32, 3))
    for path, leaf in leaves(back).items():
        np.testing.assert_array_equal(leaf, flat[path], err_msg=str(path))
