import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.models import create_model
from cnnjax.ops import cpu, dense
from cnnjax.ops.activations import ACTIVATIONS, activation, relu
from cnnjax.ops.normalization import (
    batch_norm_inference,
    batch_norm_train,
    layer_norm,
    local_response_norm,
    local_response_norm_caffe,
    scale_channels,
)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def lrn_reference(x, n, k, alpha, beta):
    y = np.empty_like(x)
    channels = x.shape[-1]
    for i in range(channels):
        near = x[..., max(0, i - n // 2) : min(channels - 1, i + n // 2) + 1]
        y[..., i] = x[..., i] / (k + alpha * (near**2).sum(-1)) ** beta
    return y


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_paper_and_caffe_forms(channels):
    x = 30 * normal((2, 3, 2, channels))
    paper = lrn_reference(x, 5, 2.0, 1e-4, 0.75)
    caffe = lrn_reference(x, 5, 1.0, 1e-4 / 5, 0.75)
    x = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(local_response_norm(x), paper, rtol=1e-5)
    np.testing.assert_allclose(local_response_norm_caffe(x), caffe, rtol=1e-5)
    low = local_response_norm(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), paper, rtol=2e-2)


def test_lrn_gradient_is_the_slope():
    x = normal((1, 1, 1, 6)) * 5
    given = jnp.asarray(x, jnp.float32)
    gradient = jax.grad(lambda x: local_response_norm(x, n=3, k=1.0, alpha=0.1).sum())(given)
    for c in range(6):
        step = np.zeros_like(x)
        step[..., c] = 1e-5
        up, down = (lrn_reference(x + s * step, 3, 1.0, 0.1, 0.75).sum() for s in (1, -1))
        np.testing.assert_allclose(gradient[..., c], (up - down) / 2e-5, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"n": 4}, {"n": 0}, {"n": -1}, {"k": 0.0}])
@pytest.mark.parametrize("norm", [local_response_norm, local_response_norm_caffe])
def test_lrn_mistakes(norm, options):
    with pytest.raises(UserError, match=next(iter(options))):
        norm(jnp.ones((1, 1, 1, 3)), **options)


def batch_norm_reference(x, scale, bias, epsilon=1e-5):
    x = np.float64(x)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias, mean, var


def batch_norm_gradient(x, scale, g, epsilon=1e-5):
    """The paper's closed form, section 3, in float64."""
    x, g, axes = np.float64(x), np.float64(g), (0, 1, 2)
    spread = np.sqrt(x.var(axes) + epsilon)
    unit = (x - x.mean(axes)) / spread
    dx = scale / spread * (g - g.mean(axes) - unit * (g * unit).mean(axes))
    return dx, (g * unit).sum(axes), g.sum(axes)


def test_batch_norm_train_and_its_gradient():
    x, g = normal((4, 5, 3, 2)) * [1, 7] + [3, -2], normal((4, 5, 3, 2), 1)
    scale, bias = np.array([1.5, -0.5]), np.array([0.3, 4.0])
    args = [jnp.asarray(a, jnp.float32) for a in (x, scale, bias)]
    got, back = jax.vjp(batch_norm_train, *args)
    for a, b in zip(got, batch_norm_reference(x, scale, bias), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    gradients = back((jnp.asarray(g, jnp.float32), jnp.zeros(2), jnp.zeros(2)))
    for a, b in zip(gradients, batch_norm_gradient(x, scale, g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_gradients_of_mean_and_variance():
    x = jnp.asarray(normal((4, 5, 3, 2)), jnp.float32)
    ones = jnp.ones(2)
    count = 4 * 5 * 3
    mean, var = (jax.grad(lambda x, i=i: batch_norm_train(x, ones, ones)[i].sum())(x) for i in (1, 2))
    np.testing.assert_allclose(mean, np.full(x.shape, 1 / count), rtol=1e-4)
    np.testing.assert_allclose(var, 2 * (x - x.mean((0, 1, 2), keepdims=True)) / count, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("corner", [0.0, 1e4])
def test_variance_survives_a_mean_ten_thousand_times_larger(corner):
    """Also when the first pixel of every image says nothing about the mean."""
    x = (normal((16, 8, 8, 3)) + 1e4).astype(np.float32)
    x[:, 0, 0] = corner
    var = jax.jit(batch_norm_train)(jnp.asarray(x), jnp.ones(3), jnp.zeros(3))[2]
    np.testing.assert_allclose(var, np.float64(x).var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("value", [0.1, -3e4, 1e-30])
def test_a_constant_channel_has_a_variance_of_at_least_zero(value):
    x = jnp.full((3, 5, 7, 2), value)
    y, mean, var = batch_norm_train(x, jnp.ones(2), jnp.zeros(2))
    assert (var >= 0).all()
    np.testing.assert_allclose(mean, value, rtol=1e-5)
    assert jnp.isfinite(y).all()


def test_bfloat16_in_and_out_with_float32_statistics():
    x = jnp.asarray(normal((8, 4, 4, 3)) + 2, jnp.bfloat16)
    y, mean, var = batch_norm_train(x, jnp.ones(3), jnp.zeros(3))
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    expected = batch_norm_reference(np.asarray(x, np.float64), np.ones(3), np.zeros(3))
    np.testing.assert_allclose(var, expected[2], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected[0], atol=2e-2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("vector", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_x_keeps_its_dtype_beside_vectors_of_another_one(dtype, vector, groups):
    x, ones = normal((2, 3, 3, 4)), np.array([1.5, -0.5, 2.0, 1.0])
    wanted = [batch_norm_reference(part, ones, ones)[0] for part in np.split(x, groups)]
    layer = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * ones + ones
    inference = (x - ones) / np.sqrt(abs(ones) + 1e-5) * ones + ones
    tolerance = {jnp.float64: 1e-12, jnp.float32: 1e-5, jnp.bfloat16: 5e-2}[dtype]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        x, v = jnp.asarray(x, dtype), jnp.asarray(ones, vector)
        y, mean, var = batch_norm_train(x, v, v, groups=groups)
        assert mean.dtype == var.dtype == jnp.float32
        for found, expected in (
            (y, np.concatenate(wanted)),
            (batch_norm_inference(x, v, v, v, abs(v)), inference),
            (layer_norm(x, v, v), layer),
            (scale_channels(x, v), x.astype(jnp.float64) * ones[None, None, None]),
        ):
            assert found.dtype == dtype
            np.testing.assert_allclose(np.float64(found), expected, rtol=tolerance, atol=tolerance)
        slopes = jax.grad(lambda *a: batch_norm_train(*a, groups=groups)[0].sum(), argnums=(0, 1, 2))(x, v, v)
        assert [slope.dtype for slope in slopes] == [dtype, vector, vector]


def test_inference_with_the_batch_statistics_equals_training():
    x = jnp.asarray(normal((4, 3, 3, 2)), jnp.float32)
    scale, bias = jnp.array([2.0, 0.5]), jnp.array([0.1, 1.0])
    y, mean, var = batch_norm_train(x, scale, bias, epsilon=1e-3)
    again = batch_norm_inference(x, scale, bias, mean, var, epsilon=1e-3)
    np.testing.assert_allclose(y, again, rtol=1e-5, atol=1e-6)
    low = batch_norm_inference(x.astype(jnp.bfloat16), scale, bias, mean, var)
    assert low.dtype == jnp.bfloat16


def test_batch_norm_under_vmap_and_second_derivatives():
    x, ones = jnp.asarray(normal((3, 2, 4, 4, 2)), jnp.float32), jnp.ones(2)
    y = jax.vmap(lambda x: batch_norm_train(x, ones, ones)[0])(x)
    np.testing.assert_allclose(y[1], batch_norm_train(x[1], ones, ones)[0], rtol=1e-4, atol=1e-5)

    def slope(x):
        return (jax.grad(lambda x: (batch_norm_train(x, ones, ones)[0] ** 3).sum())(x) ** 2).sum()

    assert jnp.isfinite(jax.jit(jax.grad(slope))(x[0])).all()


@pytest.mark.parametrize("shape", [(3, 4, 6, 16), (2, 6, 9, 5)])
@pytest.mark.parametrize("pool", [2, 3])
def test_pooling_after_the_normalization(shape, pool):
    """Windows of 2 on 16 channels are pooled in the pass that normalizes, the others after it."""
    x, scale, bias = normal(shape), normal(shape[-1:], 1), normal(shape[-1:], 2)
    y = np.maximum(batch_norm_reference(x, scale, bias)[0], 0)
    b, h, w, c = y.shape
    cut = y[:, : h // pool * pool, : w // pool * pool]
    windows = cut.reshape(b, h // pool, pool, w // pool, pool, c).transpose(0, 1, 3, 2, 4, 5)
    flat = windows.reshape(b, h // pool, w // pool, pool**2, c)
    args = [jnp.asarray(a, jnp.float32) for a in (x, scale, bias)]
    got, back = jax.vjp(lambda *a: batch_norm_train(*a, act=relu, pool=pool)[0], *args)
    np.testing.assert_allclose(got, flat.max(3), rtol=1e-4, atol=1e-5)
    # The gradient at each maximum, zeros elsewhere, and through the normalization.
    g = np.float32(normal(got.shape, 3))
    taken = (np.arange(pool**2)[:, None] == flat.argmax(3)[..., None, :]) * (g * (flat.max(3) > 0))[
        ..., None, :
    ]
    dy = np.zeros(y.shape)
    spread = taken.reshape(windows.shape).transpose(0, 1, 3, 2, 4, 5).reshape(cut.shape)
    dy[:, : cut.shape[1], : cut.shape[2]] = spread
    for a, b in zip(back(jnp.asarray(g)), batch_norm_gradient(x, scale, dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_batch_norm_mistakes():
    x, two, three = jnp.ones((2, 3, 3, 2)), jnp.ones(2), jnp.ones(3)
    with pytest.raises(UserError, match="scale"):
        batch_norm_train(x, three, two)
    with pytest.raises(UserError, match="var"):
        batch_norm_inference(x, two, two, two, three)
    with pytest.raises(UserError, match="no values"):
        batch_norm_train(x[:0], two, two)
    with pytest.raises(UserError, match="float"):
        batch_norm_train(x.astype(jnp.int32), two, two)
    with pytest.raises(UserError, match="window"):
        batch_norm_train(x, two, two, pool=0)
    for groups in (0, 3):
        with pytest.raises(UserError, match=f"in {groups} groups: they must divide the batch"):
            batch_norm_train(x, two, two, groups=groups)
    with pytest.raises(UserError, match="pooling of x"):
        batch_norm_train(x[0], two, two, pool=2)


def test_activations_by_name():
    x = normal((2, 5))
    known = {
        "gelu": 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "identity": x,
        "relu": np.maximum(x, 0),
        "sigmoid": 1 / (1 + np.exp(-x)),
        "silu": x / (1 + np.exp(-x)),
        "softmax": np.exp(x) / np.exp(x).sum(-1, keepdims=True),
        "tanh": np.tanh(x),
    }
    assert set(known) == set(ACTIVATIONS)
    for name, expected in known.items():
        np.testing.assert_allclose(
            activation(name)(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-6
        )
    with pytest.raises(UserError, match="did you mean 'relu'"):
        activation("rely")


def lowered_for_cuda(function, *arrays) -> str:
    """StableHLO for a GPU that is not here."""
    with cpu.chosen(False):
        return jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


def channel_sums(text: str) -> list[str]:
    """The dtype of each reduction of [B, H, W, C] to its channels, arrays of one place left out."""
    rows = re.findall(r"stablehlo\.reduce\(.*dimensions = \[0, 1, 2\] : \(tensor<([\dx]+)x(\w+)>", text)
    return [dtype for shape, dtype in rows if not shape.startswith("1x1x1x")]


def test_resnet50_sums_four_times_for_each_batch_norm():
    """Mean and variance, and dy and dy * centered in the gradient; in float32 for bfloat16 images."""
    model = create_model("resnet50", dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((4, 96, 96, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)

    def loss(params, batch_stats, image):
        given = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(given, image, train=True, mutable=["batch_stats"])
        return jnp.square(logits).sum(), updates

    gradient = jax.grad(loss, has_aux=True)
    text = lowered_for_cuda(gradient, variables["params"], variables["batch_stats"], image)
    layers = sum(path[-1].key == "scale" for path, _ in jax.tree.leaves_with_path(variables["params"]))
    assert layers == 53 and channel_sums(text) == ["f32"] * (4 * layers)


@pytest.mark.parametrize("groups", [1, 2])
def test_derivatives_of_any_order_are_those_of_the_plain_formula(groups):
    """The gradient in closed form beside what JAX derives, in reverse, forward and both after each other."""

    def plain(x, scale, bias):
        parts = []
        for part in jnp.split(x, groups):
            mean, var = part.mean((0, 1, 2), keepdims=True), part.var((0, 1, 2), keepdims=True)
            parts.append(
                (part - mean) / jnp.sqrt(var + 1e-5) * scale[None, None, None] + bias[None, None, None]
            )
        return jnp.concatenate(parts)

    def ours(x, scale, bias):
        return batch_norm_train(x, scale, bias, groups=groups)[0]

    def loss(function):
        return lambda arrays: (jnp.sin(function(*arrays)) * weight).sum()

    shape = (4, 3, 2, 3)
    weight = jnp.asarray(normal(shape, 5), jnp.float32)
    arrays = tuple(jnp.asarray(a, jnp.float32) for a in (normal(shape), normal(3, 1), normal(3, 2)))
    way = tuple(jnp.asarray(a, jnp.float32) for a in (normal(shape, 6), normal(3, 7), normal(3, 8)))

    def orders(function):
        first = jax.grad(loss(function))
        forward = jax.jvp(loss(function), (arrays,), (way,))[1]
        forward_over_reverse = jax.jvp(first, (arrays,), (way,))[1]
        reverse_over_reverse = jax.vjp(first, arrays)[1](way)[0]
        mapped = jax.vmap(first)(jax.tree.map(lambda a: a[None], arrays))
        return first(arrays), forward, forward_over_reverse, reverse_over_reverse, mapped

    with cpu.chosen(False):
        for got, expected in zip(
            map(jax.tree.leaves, orders(ours)), map(jax.tree.leaves, orders(plain)), strict=True
        ):
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * float(jnp.abs(b).max()))


def test_a_bfloat16_product_has_bfloat16_products_and_float32_sums_in_its_gradient():
    x, kernel = jnp.asarray(normal((6, 5)), jnp.bfloat16), jnp.asarray(normal((5, 4), 1), jnp.float32)
    dy = jnp.asarray(normal((6, 4), 2), jnp.bfloat16)

    def gradient(x, kernel, dy):
        y, back = jax.vjp(dense, x, kernel)
        return y, *back(dy)

    text = lowered_for_cuda(gradient, x, kernel, dy)
    kinds = re.findall(r"dot_general.*: \(tensor<\w+x(\w+)>, tensor<\w+x(\w+)>\) -> tensor<\w+x(\w+)>", text)
    assert kinds == [("bf16", "bf16", "f32")] * 3
    y, dx, dkernel = gradient(x, kernel, dy)
    wide = (
        np.float64(np.asarray(x)),
        np.float64(np.asarray(kernel.astype(jnp.bfloat16))),
        np.float64(np.asarray(dy)),
    )
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(dense(x, kernel, dtype=jnp.float32), wide[0] @ wide[1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.float64(np.asarray(y)), wide[0] @ wide[1], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(np.float64(np.asarray(dx)), wide[2] @ wide[1].T, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(dkernel, wide[0].T @ wide[2], rtol=1e-5, atol=1e-5)
    squared = jax.grad(lambda k: jnp.square(jax.grad(lambda k: (dense(x, k) ** 3).sum())(k)).sum())
    assert jnp.isfinite(squared(kernel)).all()
    mapped = jax.vmap(gradient, (0, None, 0))(x[None], kernel, dy[None])
    np.testing.assert_allclose(mapped[2][0], dkernel, rtol=1e-5, atol=1e-5)
