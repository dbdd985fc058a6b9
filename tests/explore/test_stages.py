"""The forward pass as a row of stages, and the windows that its values come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.explore import windows
from cnnjax.explore.stages import IMAGE, counts, stages
from cnnjax.models import create_model, init_variables, variant
from cnnjax.models.forward import run
from cnnjax.models.macs import count_macs
from tests.explore.test_explore import SHAPE, build


def test_what_a_module_does_in_one_go_comes_apart():
    model, variables = build("simple_cnn(widths=(4, 6), kernel_size=3)", num_classes=3)
    rows = stages(model, variables, SHAPE).rows
    block = ["convolution", "normalization", "ReLU", "max pooling"]
    assert [row.kind for row in rows] == [*block, *block, "flattening", "dense layer"]
    assert [row.sources for row in rows] == [(IMAGE,), *((i,) for i in range(9))]
    assert rows[3].layer.shape == (6, 6, 4)
    assert rows[3].window.size == (2, 2)
    assert [row.params for row in rows[:2]] == [9 * 4 + 4, 8]


def test_a_shortcut_is_an_addition_of_what_it_reads():
    model = create_model("resnet20_cifar(widths=(4, 8), stage_sizes=(1, 1))")
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (8, 8, 1)))
    rows = stages(model, variables, (8, 8, 1)).rows
    sums = [row for row in rows if row.kind == "addition"]
    assert [row.module for row in sums] == ["stage1_block1", "stage2_block1"]
    kinds = [[rows[i].kind for i in row.sources] for row in sums]
    assert kinds[0] == ["normalization", "ReLU"] or kinds[0] == ["ReLU", "normalization"]


@pytest.mark.parametrize(
    "name", ["alexnet", "squeezenet1_1", "mobilenet_v3_small", "convnext_tiny", "airbench94"]
)
def test_all_parameters_and_multiply_adds_are_of_some_stage(name):
    model, shape = create_model(name), variant(name).preset.input_size
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), shape))
    params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    found = stages(model, variables, shape)
    assert counts(found.rows) == {"params": params, "macs": count_macs(model, shape)}
    assert found.rows[-1].layer.shape == (variant(name).preset.num_classes,)
    norms = [row for row in found.rows if row.kind == "normalization"]
    assert all(row.layer.shape == found.rows[row.sources[0]].layer.shape for row in norms)


@pytest.mark.parametrize(
    "spec",
    ["simple_cnn(widths=(4, 6), kernel_size=3)", 'lenet5(pooling="average")', "mobilenet_v1_025"],
)
def test_products_and_bias_add_up_to_what_the_network_computes(spec):
    """Strides, padding, depthwise groups and both kinds of pooling, at corners and in the middle."""
    shape = variant(spec).preset.input_size if spec.startswith("lenet") else (12, 12, 1)
    shape = (32, 32, 3) if spec.startswith("mobilenet") else shape
    model, variables = build(spec, shape)
    found = stages(model, variables, shape)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, *shape)), jnp.float32)
    keep = [row.layer for row in found.rows]
    _, values = jax.jit(lambda v, x: run(found.traced, v, x, keep=keep))(variables, image)
    looked_at = 0
    for row, value in zip(found.rows[:16], values, strict=False):
        if row.window is None:
            continue
        before = np.asarray(image if row.sources[0] == IMAGE else values[row.sources[0]])[0]
        kernel = found.kernel(row, variables)
        height, width, units = row.layer.shape
        for place, unit in (((0, 0), 0), ((height // 2, width - 1), units - 1)):
            weights = None if kernel is None else np.asarray(kernel)
            looked = windows.look(row.window, before, weights, unit, place)
            if looked.weights is None:
                total = windows.pooled(row, looked)
            else:
                params = variables["params"]
                for name in row.module.split("/"):
                    params = params[name]
                bias = float(params["bias"][unit]) if "bias" in params else 0.0
                total = float(windows.products(looked).sum()) + bias
            np.testing.assert_allclose(total, value[0, *place, unit], rtol=1e-3, atol=1e-5)
            looked_at += 1
        sizes = windows.size_rule(row, before.shape)
        assert sizes.endswith(f"= {width}")
    assert looked_at >= 6


def test_the_size_rule_has_the_numbers_in_it():
    model, variables = build("simple_cnn(widths=(4, 6), kernel_size=3)", num_classes=3)
    rows = stages(model, variables, SHAPE).rows
    assert windows.size_rule(rows[0], SHAPE) == "⌊(12 + 2 − 3) / 1⌋ + 1 = 12"
    assert windows.size_rule(rows[3], (12, 12, 4)) == "⌊(12 + 0 − 2) / 2⌋ + 1 = 6"
