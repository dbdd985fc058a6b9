"""Residual nets: exact counts, torchvision's logits, the papers' shapes, scanned blocks equal to unrolled."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.models import (
    create_model,
    init_variables,
    list_models,
    preact_resnet,
    resnet,
    stages,
    variant,
)
from cnnjax.models.layers import BatchNorm, Conv
from cnnjax.ops import cpu
from tests import golden
from tests.models import count_variant_params

PARAMS = {
    "plain18": 11515688,
    "plain34": 21623848,
    "resnet18_option_a": 11515688,
    "resnet34_option_a": 21623848,
    "resnet18": 11689512,
    "resnet34": 21797672,
    "resnet50": 25557032,
    "resnet50_v1": 25557032,
    "resnet101": 44549160,
    "resnet152": 60192808,
    "wide_resnet50_2": 68883240,
    "wide_resnet101_2": 126886696,
    "resnext50_32x4d": 25028904,
    "resnext101_32x8d": 88791336,
    "resnext101_64x4d": 83455272,
    "seresnet50": 28088024,
    "plain20_cifar": 269722,
    "resnet20_cifar": 269722,
    "resnet32_cifar": 464154,
    "resnet44_cifar": 658586,
    "resnet56_cifar": 853018,
    "resnet110_cifar": 1727962,
    "resnet1202_cifar": 19421274,
    "resnet20_cifar_option_b": 272474,
    "resnet20_cifar_centered": 269722,
    "resnet32_cifar_centered": 464154,
    "resnet44_cifar_centered": 658586,
    "resnet56_cifar_centered": 853018,
    "resnet110_cifar_centered": 1727962,
    "preact_resnet164_cifar": 1703258,
    "preact_resnet1001_cifar": 10327706,
    "wrn_40_1": 563930,
    "wrn_40_2": 2243546,
    "wrn_16_4": 2748890,
    "wrn_40_4": 8949210,
    "wrn_16_8": 10961370,
    "wrn_22_8": 17158106,
    "wrn_28_10": 36479194,
    "wrn_28_12": 52517850,
    "wrn_22_10": 26797914,
    "wrn_40_8": 35748314,
    "wrn_40_10": 55841754,
    "wrn_52_1": 758362,
}
# One stage of a first block and two that are alike.
TINY = {
    "basic": "resnet18(stage_sizes=(3,), widths=(4,), stem='cifar')",
    "option a": "resnet20_cifar(stage_sizes=(3,), widths=(4,))",
    "option c": "resnet18_option_c(stage_sizes=(3,), widths=(4,), stem='cifar')",
    "plain": "plain20_cifar(stage_sizes=(3,), widths=(4,))",
    "bottleneck": "resnet50(stage_sizes=(3,), widths=(4,), stem='cifar')",
    "aggregated": "resnext50_32x4d(stage_sizes=(3,), widths=(16,), stem='cifar')",
    "squeeze and excitation": "seresnet50(stage_sizes=(3,), widths=(8,), stem='cifar')",
    "averaged": "seresnet152d(stage_sizes=(1, 3), widths=(8, 8), stem='cifar')",
    "pre-activation": "preact_resnet164_cifar(stage_sizes=(3,), widths=(4,))",
    "wide": "wrn_16_4(depth=22, widen_factor=1)",  # three stages
}


@pytest.mark.parametrize("name", PARAMS)
def test_exact_parameter_count(name):
    assert count_variant_params(name) == PARAMS[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_torchvision_weights_give_torchvision_logits(name):
    assert golden.relative_error(name) < 1e-4


def test_published_variants_of_the_papers_are_here():
    names = {
        *(f"plain{d}_cifar" for d in (20, 32, 44, 56, 110)),
        *(f"preact_resnet{d}" for d in (18, 34, 50, 101, 152, 200)),
        *(f"resnet{d}_v1" for d in (50, 101, 152)),
        *(f"resnet{d}_option_c" for d in (18, 34)),
    }
    assert names <= set(list_models())


def output_shapes(spec: str, size: int, **fields) -> dict[str, tuple[int, ...]]:
    """Shape of the output of each module at the top of a net."""
    model = create_model(spec, **fields)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    _, state = jax.eval_shape(
        lambda variables, image: model.apply(
            variables, image, capture_intermediates=lambda module, _: len(module.path) == 1
        ),
        variables,
        image,
    )
    found = state["intermediates"]
    return {k: v["__call__"][0].shape[1:] for k, v in found.items() if k != "__call__"}


def test_imagenet_stages_have_the_sizes_of_table_1():
    shapes = output_shapes("resnet50", 224)
    assert shapes["stem"] == (112, 112, 64)
    assert [shapes[f"stage{i}_block1"] for i in (1, 2, 3, 4)] == [
        (56, 56, 256),
        (28, 28, 512),
        (14, 14, 1024),
        (7, 7, 2048),
    ]
    assert sum(name.startswith("stage") for name in shapes) == 3 + 4 + 6 + 3
    assert output_shapes("resnet18", 224)["stage4_block2"] == (7, 7, 512)


@pytest.mark.parametrize(
    "name, channels",
    [
        ("resnet20_cifar", (16, 32, 64)),
        ("preact_resnet164_cifar", (64, 128, 256)),
        ("wrn_28_10", (160, 320, 640)),
    ],
)
def test_cifar_stages_keep_32_16_8_pixels(name, channels):
    shapes = output_shapes(name, 32)
    expected = [(size, size, c) for size, c in zip((32, 16, 8), channels, strict=True)]
    assert [shapes[f"stage{i}_block1"] for i in (1, 2, 3)] == expected


def test_v1_halves_the_image_in_the_first_convolution_and_v1_5_in_the_second():
    def kernels_input(name):
        model = create_model(name, stage_sizes=(1, 1), widths=(4, 4))
        _, state = jax.eval_shape(
            lambda: model.init_with_output(
                jax.random.key(0), jnp.zeros((1, 96, 96, 3)), capture_intermediates=True, mutable=True
            )
        )
        block = state["intermediates"]["stage2_block1"]
        return [block[f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)]

    assert kernels_input("resnet50") == [24, 12, 12]
    assert kernels_input("resnet50_v1") == [12, 12, 12]


def test_wide_resnet50_2_has_twice_the_inner_channels_and_resnext_32_groups():
    def kernel(name):
        params = jax.eval_shape(
            lambda: init_variables(create_model(name), jax.random.key(0), (32, 32, 3))["params"]
        )
        return params["stage1_block1"]["conv2"]["kernel"].shape

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert kernel("resnet50") == (3, 3, 64, 64)
        assert kernel("wide_resnet50_2") == (3, 3, 128, 128)
        assert kernel("resnext50_32x4d") == (3, 3, 4, 128)
        assert kernel("resnext101_64x4d") == (3, 3, 4, 256)


# --- Values ---------------------------------------------------------------------------------------


def randomized(spec: str, size: int = 8, **fields) -> tuple:
    """A model, variables without zeros, and two images."""
    model = create_model(spec, num_classes=5, **fields)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (size, size, 3)))
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0)
    values = [
        draw.uniform(0.2, 0.8, leaf.shape).astype(np.float32) - 0.4 * (leaf.ndim > 1) for leaf in leaves
    ]
    image = draw.standard_normal((2, size, size, 3)).astype(np.float32)
    return model, jax.tree.unflatten(tree, values), image


def loss_and_all(model, variables: dict, image: np.ndarray):
    """The training loss, its gradient and the new statistics, and the evaluation's logits."""

    def loss(params):
        logits, updates = model.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        return (logits * jnp.cos(jnp.arange(logits.size).reshape(logits.shape))).sum(), updates

    (value, updates), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return value, gradient, updates["batch_stats"], model.apply(variables, image)


@pytest.mark.parametrize(
    "kind, fields",
    [
        ("option a", {"scan_blocks": True}),
        ("option a", {"remat": True}),
        ("squeeze and excitation", {"scan_blocks": True, "remat": True}),
        ("pre-activation", {"scan_blocks": True, "remat": True}),
        ("wide", {"scan_blocks": True}),
    ],
)
def test_scanned_and_rematerialized_blocks_equal_unrolled_ones(kind, fields):
    model, variables, image = randomized(TINY[kind])
    other = model.clone(**fields)
    shapes = jax.eval_shape(lambda: init_variables(other, jax.random.key(0), image.shape[1:]))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    expected, found = (jax.jit(partial(loss_and_all, m))(variables, image) for m in (model, other))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4 * (1e-3 + np.abs(theirs).max()))


def test_stacked_variables_give_the_same_and_unstack_to_what_they_were():
    model, variables, image = randomized(
        "resnet20_cifar(stage_sizes=(2, 4), widths=(4, 6), scan_blocks=True)"
    )
    blocks = stages.scanned_blocks(model)
    assert blocks == [["stage2_block2", "stage2_block3", "stage2_block4"]]
    stacked = stages.stack_blocks(variables, blocks)
    assert len(jax.tree.leaves(stacked)) == len(jax.tree.leaves(variables)) - 2 * (2 + 4 + 4)
    expected, found = (jax.jit(partial(loss_and_all, model))(v, image) for v in (variables, stacked))
    found = stages.unstack_blocks(found, blocks)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)
    jax.tree.map(np.testing.assert_array_equal, stages.unstack_blocks(stacked, blocks), variables)


def test_scanned_blocks_keep_frozen_statistics_of_some_as_unrolled_ones_do():
    model, variables, image = randomized("resnet20_cifar(stage_sizes=(4,), widths=(4,))")
    norm = {"statistics": np.ones((), bool)}
    frozen = {
        "stage1_block2": {"norm1": norm, "norm2": norm},
        "stage1_block3": {"norm1": norm, "norm2": norm},
    }

    def train(model, variables):
        return model.apply({**variables, "frozen": frozen}, image, train=True, mutable=["batch_stats"])

    expected, found = (jax.jit(partial(train, m))(variables) for m in (model, model.clone(scan_blocks=True)))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    old, new = variables["batch_stats"], found[1]["batch_stats"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), new, expected[1]["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, new["stage1_block3"], old["stage1_block3"])
    assert not np.allclose(new["stage1_block4"]["norm1"]["mean"], old["stage1_block4"]["norm1"]["mean"])


def test_alike_blocks_begin_with_values_of_their_own_and_statistics_at_rest():
    model = create_model(TINY["option a"])
    found, scanned, trained = (
        jax.jit(lambda key, init=init: init(key, jnp.ones((1, 8, 8, 3))))(jax.random.key(3))
        for init in (
            model.init,
            model.clone(scan_blocks=True).init,
            partial(model.init, train=True),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, found, scanned)
    jax.tree.map(np.testing.assert_array_equal, found, trained)
    kernels = [found["params"][f"stage1_block{i}"]["conv1"]["kernel"] for i in (1, 2, 3)]
    assert all(not np.allclose(kernels[i], kernels[i - 1]) for i in (0, 1, 2))
    np.testing.assert_array_equal(found["batch_stats"]["stage1_block3"]["norm1"]["var"], 1)


def test_scanning_compiles_equal_blocks_once():
    def convolutions(**fields):
        model = create_model("resnet20_cifar", stage_sizes=(9, 9, 9), **fields)
        shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (8, 8, 3)))
        with cpu.paused():
            jaxpr = jax.make_jaxpr(model.apply)(shapes, jnp.zeros((1, 8, 8, 3)))
        return str(jaxpr).count("conv_general_dilated[")

    assert convolutions() == 1 + 3 * 9 * 2
    assert convolutions(scan_blocks=True) == 1 + 3 * 2 * 2  # a stage: its first block, and one for the rest


def test_without_kernels_a_cpu_runs_no_loop_around_convolutions():
    """Forward and backward, but for very deep nets: XLA's convolutions are slow in its loops."""

    def loops(blocks, kernels, devices=1):
        model = create_model(f"resnet20_cifar(stage_sizes=({blocks},), widths=(2,), scan_blocks=True)")
        shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (8, 8, 3)))
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        with cpu.chosen(kernels), jax.set_mesh(mesh):
            gradient = jax.jit(jax.grad(lambda *inputs: model.apply(*inputs).sum()))
            return gradient.lower(shapes, jnp.zeros((1, 8, 8, 3))).as_text().count("stablehlo.while")

    assert loops(4, kernels=False) == 0
    assert loops(60, kernels=False) == 2
    if cpu.status().startswith("oneDNN"):
        assert loops(4, kernels=True) == 2
    if jax.device_count() > 1:
        assert loops(4, kernels=True, devices=2) == 0


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", ["resnet20_cifar", "preact_resnet110_cifar"])
def test_scanned_blocks_computed_again_hold_less_memory(name, kernels):
    def held(remat):
        model = create_model(name, stage_sizes=(6, 1, 1), scan_blocks=True, remat=remat)
        shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (32, 32, 3)))

        def loss(params, rest, image):
            variables = {"params": params, "batch_stats": rest}
            return model.apply(variables, image, train=True, mutable=["batch_stats"])[0].sum()

        with cpu.chosen(kernels):
            inputs = shapes["params"], shapes["batch_stats"], jnp.zeros((16, 32, 32, 3))
            lowered = jax.jit(jax.grad(loss)).lower(*inputs)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    found = held(True), held(False)
    assert found[0] < 0.8 * found[1], found


def test_shortcut_option_a_pads_channels_and_takes_every_second_pixel():
    x = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 4, 3)
    y = resnet.option_a(x, 5, 2)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], 0)
    assert y.shape == (2, 2, 2, 5)
    y = resnet.option_a_centered(x, 6, 2)
    np.testing.assert_array_equal(y[..., 1:4], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., (0, 4, 5)], 0)
    np.testing.assert_array_equal(resnet.option_a_centered(x, 3, 1), x)


def test_a_wide_net_has_the_dropout_of_its_published_accuracy():
    rates = {name: create_model(name).dropout for name in list_models("wrn_*")}
    assert {name: rate for name, rate in rates.items() if rate} == {"wrn_40_10": 0.3}
    assert variant("wrn_40_10").published == "CIFAR-10, dropout 0.3"


def test_zero_init_makes_a_block_the_identity_and_its_relu():
    def variables(name):
        model = create_model(TINY[name], zero_init=True)
        return jax.jit(lambda key: init_variables(model, key, (8, 8, 3)))(jax.random.key(0))

    found = variables("option a")
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    block = resnet.BasicBlock(4, 1, *block_layers(), resnet.option_a)
    y = block.apply({k: v["stage1_block2"] for k, v in found.items()}, x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    params = variables("squeeze and excitation")["params"]["stage1_block2"]
    np.testing.assert_array_equal(params["norm3"]["scale"], 0)
    np.testing.assert_array_equal(params["norm2"]["scale"], 1)


def test_a_plain_net_is_a_residual_net_without_its_shortcuts():
    model, variables, image = randomized(TINY["plain"])
    assert not np.allclose(model.apply(variables, image), model.clone(shortcut="a").apply(variables, image))
    first = variables["params"]["stage1_block1"]
    stats = variables["batch_stats"]["stage1_block1"]
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    block = resnet.BasicBlock(4, 1, *block_layers(), resnet.no_shortcut)
    y = block.apply({"params": first, "batch_stats": stats}, x)
    for i in (1, 2):
        y = jax.lax.conv_general_dilated(
            jnp.asarray(y) if i == 2 else x,
            first[f"conv{i}"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        norm, moments = jax.device_get((first[f"norm{i}"], stats[f"norm{i}"]))
        y = (np.asarray(y) - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * norm["scale"] + norm["bias"]
        y = np.maximum(y, 0)
    np.testing.assert_allclose(
        block.apply({"params": first, "batch_stats": stats}, x), y, rtol=1e-4, atol=1e-4
    )


def block_layers() -> tuple:
    """Convolution and normalizations as the net hands them to its blocks."""
    return partial(Conv, use_bias=False), partial(BatchNorm, act=ops.relu), BatchNorm


# --- Pre-activation -------------------------------------------------------------------------------


def reference_unit(order: str, x: np.ndarray, w1: float, w2: float) -> np.ndarray:
    """Fig. 4 with convolutions that multiply by w1, w2 and normalizations that add 1."""

    def relu(x):
        return np.maximum(x, 0)

    def norm(x):
        return x + 1

    return {
        "original": lambda: relu(x + norm(w2 * relu(norm(w1 * x)))),
        "norm_after_add": lambda: relu(norm(x + w2 * relu(norm(w1 * x)))),
        "relu_before_add": lambda: x + relu(norm(w2 * relu(norm(w1 * x)))),
        "relu_preactivation": lambda: x + norm(w2 * relu(norm(w1 * relu(x)))),
        "full_preactivation": lambda: x + w2 * relu(norm(w1 * relu(norm(x)))),
    }[order]()


@pytest.mark.parametrize("order", preact_resnet.ORDERS)
def test_activation_orders_are_those_of_figure_4(order):
    conv, norm_relu, norm = block_layers()
    unit = preact_resnet.Unit(
        ((1, 3, 1), (1, 3, 1)), preact_resnet.ORDERS[order], True, conv, norm, norm_relu
    )
    x = np.random.default_rng(0).uniform(-3, 3, (1, 4, 4, 1)).astype(np.float32)
    variables = jax.tree.map(np.zeros_like, unit.init(jax.random.key(0), x))
    params, stats = variables["params"], variables["batch_stats"]
    for name, leaf in params.items():
        if name.startswith("norm"):
            leaf["scale"], leaf["bias"] = np.ones(1, np.float32), np.ones(1, np.float32)
            stats[name]["var"] = np.full(1, 1 - 1e-5, np.float32)
    for name, value in (("conv1", -0.7), ("conv2", 1.3)):
        params[name]["kernel"][1, 1] = value
    expected = reference_unit(order, x, -0.7, 1.3)
    np.testing.assert_allclose(unit.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


def test_only_some_orders_end_with_an_activation_of_the_last_sum():
    def leaves(order):
        model = create_model(TINY["pre-activation"], order=order)
        params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (8, 8, 3))["params"])
        return set(params)

    assert "norm" in leaves("full_preactivation")
    assert not any("norm" in leaves(order) for order in preact_resnet.ORDERS if order != "full_preactivation")
    with pytest.raises(UserError, match=r"unknown order 'full'.*allowed: full_preactivation"):
        leaves("full")


@pytest.mark.parametrize("spec", ["wrn_16_4(depth=10, dropout=0.5)", "wrn_16_4(depth=22, dropout=0.5)"])
def test_wide_resnet_drops_between_its_convolutions_only_in_training(spec):
    model, variables, image = randomized(spec, widen_factor=1)
    model = model.clone(scan_blocks=True)

    def logits(key):
        return model.apply(variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0]

    run = jax.jit(logits)
    first, again, other = (run(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    jaxprs = [str(jax.make_jaxpr(m.apply)(variables, image)) for m in (model, model.clone(dropout=0.0))]
    assert jaxprs[0] == jaxprs[1]  # in evaluation nothing of it is left


# --- Initialization, sizes, mistakes --------------------------------------------------------------


def test_kernels_are_he_normal_with_fan_out_and_scales_begin_at_one():
    model = create_model("resnet18(stage_sizes=(1,), widths=(128,), stem='cifar')")
    params = jax.jit(lambda key: init_variables(model, key, (8, 8, 3))["params"])(jax.random.key(0))
    block = params["stage1_block1"]
    for name in ("conv1", "conv2"):
        np.testing.assert_allclose(block[name]["kernel"].std(), np.sqrt(2 / (9 * 128)), rtol=0.01)
        np.testing.assert_allclose(block[name]["kernel"].mean(), 0, atol=4e-4)
    np.testing.assert_allclose(params["stem"]["conv"]["kernel"].std(), np.sqrt(2 / (9 * 128)), rtol=0.05)
    np.testing.assert_allclose(params["head"]["kernel"].std(), np.sqrt(1 / 128), rtol=0.02)
    np.testing.assert_array_equal(block["norm2"]["scale"], 1)
    np.testing.assert_array_equal(block["norm2"]["bias"], 0)


@pytest.mark.parametrize("size", [(1, 1, 1), (7, 13, 2), (33, 20, 4)])
@pytest.mark.parametrize("kind", ["option a", "averaged", "bottleneck", "pre-activation", "wide"])
def test_any_size_and_number_of_channels_is_served(kind, size):
    model = create_model(TINY[kind], num_classes=7)
    image = jax.ShapeDtypeStruct((2, *size), jnp.float32)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert logits.shape == (2, 7)


def test_the_imagenet_stem_warns_on_small_images():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with pytest.warns(UserWarning, match='use stem="cifar"'):
        jax.eval_shape(create_model("resnet18").init, jax.random.key(0), image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(create_model("resnet18(stem='cifar')").init, jax.random.key(0), image)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("resnet18(shortcut='e')", "unknown shortcut 'e'.*a, a_centered, b, c, d, none"),
        ("resnet18(stem='mnist')", "unknown stem 'mnist'.*imagenet"),
        ("resnet20_cifar(stage_sizes=(2, 2))", "as many of each"),
        ("wrn_28_10(depth=27)", "depth 27"),
        (
            "resnext50_32x4d(widths=(8, 8, 8, 8), stem='cifar')",
            "layer stage1_block1/conv1 has 8 inputs and 0 outputs",
        ),
        ("resnet20_cifar(num_classes=0)", "num_classes=0 must be an integer of at least 1"),
        ("preact_resnet164_cifar(unit='tall')", "unknown unit 'tall'"),
    ],
)
def test_mistakes_are_told_in_one_line(spec, message):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(create_model(spec).init, jax.random.key(0), image)


def test_cifar_variants_take_small_images_and_their_own_statistics():
    names = [name for name in resnet.VARIANTS if "_cifar" in name and not name.endswith("_centered")]
    assert len(names) == 12
    for name in (*names, *list_models("wrn_*")):
        preset = variant(name).preset
        assert preset.input_size == (32, 32, 3) and preset.num_classes == 10 and preset.mean is None
