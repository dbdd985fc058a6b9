"""The CPU kernels against XLA: forward, gradients, transformations, bad calls, memory.

The same tests with every access of the kernels checked by AddressSanitizer:

    CFLAGS=-fsanitize=address pip install -e .
    export ASAN_OPTIONS=detect_leaks=0
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" \\
        pytest -n0 tests/test_cpu_kernels.py -k "not devices and not switch and not memory and not processors"
"""

import ctypes
import functools
import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from jax import export

from cnnjax import ops
from cnnjax.ops import cpu
from cnnjax.ops.cpu.library import library, thread_count
from cnnjax.runs import train
from cnnjax.runs.record import processor
from tests.conftest import simulated

pytestmark = pytest.mark.skipif(cpu.status().startswith("off"), reason=f"CPU kernels {cpu.status()}")
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
# An example is a compilation of some seconds, so that a failing one is not made smaller.
settings.register_profile(
    "kernels",
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
examples = settings(settings.get_profile("kernels"))
dtypes = st.sampled_from(["float32", "bfloat16"])


def normal(seed, shape, dtype="float32", mean=0.0):
    return (mean + jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


def distance(found, wanted):
    """Norm of the difference, relative to the norm."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    assert found.shape == wanted.shape
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)


def compare(function, arrays, dtype):
    """Result and all gradients in `dtype` by the kernels against XLA's float32 on the same numbers."""

    def run(*arrays):
        y, pullback = jax.vjp(function, *arrays)
        dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(dtype).astype(y.dtype)
        return y, *pullback(dy)

    lowered = jax.jit(run).lower(*arrays)
    assert lowered.as_text().count("custom_call @cnnjax_") >= 2
    found = lowered.compile()(*arrays)
    with cpu.paused():
        wanted = jax.jit(lambda *arrays: run(*(x.astype(jnp.float32) for x in arrays)))(*arrays)
    for got, exact, given_ in zip(found, wanted, (found[0], *arrays), strict=True):
        assert got.dtype == given_.dtype
        assert distance(got, exact) < TOLERANCE[dtype]


@st.composite
def convolutions(draw, least=1, most=5):
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    sizes = st.integers(least, most)
    depth, filters = (1, 1) if groups == 8 else draw(st.tuples(sizes, sizes))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    smallest = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(least, least + 7)) for least in smallest]
    sides = st.tuples(st.integers(0, 3), st.integers(0, 3))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.tuples(sides, sides)))
    parameters = {
        "strides": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    x = (draw(st.integers(1, 3)), *size, groups * depth)
    return x, (*kernel, depth, groups * filters), parameters, draw(st.booleans())


def compare_convolution(x, kernel, parameters, has_bias, dtype):
    arrays = [normal(0, x, dtype), normal(1, kernel, dtype)]
    if has_bias:
        arrays.append(normal(2, kernel[3:], dtype))
    compare(lambda *arrays: ops.conv2d(*arrays, **parameters), arrays, dtype)


@examples
@given(convolutions(), dtypes)
def test_convolution_and_its_gradients_are_those_of_xla(problem, dtype):
    compare_convolution(*problem, dtype)


@settings(examples, max_examples=8)
@given(convolutions(16, 40), st.sampled_from([1, 2, 3, 16]), dtypes)
def test_convolutions_of_many_channels_are_those_of_xla_on_any_number_of_threads(problem, threads, dtype):
    library().cnnjax_start(threads)
    try:
        compare_convolution(*problem, dtype)
    finally:
        library().cnnjax_start(thread_count())


@settings(examples, max_examples=16)
@given(
    st.sampled_from([3, 5, 5]),
    st.sampled_from([16, 24, 72, 80]),
    st.sampled_from([16, 64, 88, 112]),
    st.sampled_from([1, 1, 2]),
    st.tuples(st.integers(20, 29), st.integers(16, 27)),
    st.tuples(*[st.tuples(st.integers(0, 5), st.integers(0, 5))] * 2),
    st.sampled_from([1, 2, 3, 16]),
    st.booleans(),
)
def test_square_windows_of_stride_one_are_those_of_xla(
    window, channels, filters, groups, size, padding, threads, has_bias
):
    """Sizes at which Winograd's method is taken where the processor is one for it."""
    x, kernel = (3, *size, channels * groups), (window, window, channels, filters * groups)
    library().cnnjax_start(threads)
    try:
        compare_convolution(x, kernel, {"padding": padding, "groups": groups}, has_bias, "float32")
    finally:
        library().cnnjax_start(thread_count())


@settings(examples, max_examples=4)
@given(
    st.sampled_from([(32, 48), (64, 96), (48, 160)]),
    st.tuples(st.integers(12, 13), st.integers(13, 14)),
    st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    st.integers(1, 3),
    st.booleans(),
)
def test_windows_of_three_in_bfloat16_are_those_of_xla(kernel, size, padding, threads, has_bias):
    """Of many pixels with a mean, where products of pairs of bfloat16 are taken if the processor has them."""
    (channels, filters), (count, width) = kernel, size
    arrays = [normal(0, (count, 9, width, channels), "bfloat16", mean=1.0)]
    arrays.append(normal(1, (3, 3, channels, filters), "bfloat16"))
    if has_bias:
        arrays.append(normal(2, (filters,), "bfloat16"))
    library().cnnjax_start(threads)
    try:
        compare(lambda *arrays: ops.conv2d(*arrays, padding=padding), arrays, "bfloat16")
    finally:
        library().cnnjax_start(thread_count())


IDENTITY = ops.activation("identity")
FUSED = [IDENTITY, ops.relu, jax.nn.relu6, ops.silu, jax.nn.hard_swish]  # in the pass of batch normalization


@settings(examples, max_examples=5)
@given(st.integers(1, 90), st.integers(1, 3), st.integers(1, 70), st.sampled_from(FUSED), dtypes)
def test_batch_norm_and_its_gradients_are_those_of_xla(rows, width, channels, act, dtype):
    x = normal(0, (rows, width, channels), dtype, mean=2.0)
    scale, bias = normal(1, (channels,)), normal(2, (channels,))
    assume(rows * width >= 8)  # a variance of almost nothing makes any rounding large
    y, mean, var = jax.jit(functools.partial(ops.batch_norm_train, act=act))(x, scale, bias)
    exact = np.asarray(x, np.float64).reshape(-1, channels)
    assert mean.dtype == var.dtype == jnp.float32 and y.dtype == x.dtype
    assert distance(mean, exact.mean(0)) < 1e-6 and distance(var, exact.var(0)) < 1e-5
    function = functools.partial(ops.batch_norm_train, act=act)
    compare(lambda *arrays: function(*arrays)[0], [x, scale, bias], dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("act", FUSED, ids=["identity", "relu", "relu6", "silu", "hard_swish"])
def test_batch_norm_and_its_activation_are_one_pass_with_the_derivatives_of_jax(act, dtype):
    """Also where the activation's slope jumps: channels of scale 0 are their bias everywhere."""
    plain = jax.nn.relu if act is ops.relu else act
    bias = jnp.resize(jnp.float32([-3, -0.0, 0, 3, 6, 20, -20, 0.5]), 24)
    scale = jnp.where(jnp.arange(24) < 8, 0, 2 + normal(1, (24,)))
    arrays = 3 * normal(0, (37, 5, 24), dtype), scale, bias
    dy = jnp.cos(jnp.arange(37 * 5 * 24.0)).reshape(37, 5, 24).astype(dtype)

    def run(dy, *arrays):
        y, pullback = jax.vjp(lambda *arrays: ops.batch_norm_train(*arrays, act=act)[0], *arrays)
        return y, *pullback(dy)

    def run_in_float32(*arrays):
        y, pullback = jax.vjp(lambda *arrays: plain(ops.batch_norm_train(*arrays)[0]), *arrays[1:])
        return y, *pullback(arrays[0])

    lowered = jax.jit(run).lower(dy, *arrays)
    with cpu.paused():
        wanted = jax.jit(run_in_float32)(*(array.astype(jnp.float32) for array in (dy, *arrays)))
    for got, exact in zip(lowered.compile()(dy, *arrays), wanted, strict=True):
        for channels in (np.s_[..., :5], np.s_[..., 5:8], np.s_[..., 8:]):
            assert distance(got[channels], exact[channels]) < TOLERANCE[dtype]
    lines = [line.strip() for line in lowered.as_text().splitlines()]
    of_x = [line for line in lines if line.startswith("%") and "tensor<37x5x24x" in line]
    assert len(of_x) == 2 and all("custom_call @cnnjax_batch_norm" in line for line in of_x), of_x


def pooled(x, scale, bias, act=ops.relu):
    """Normalization and pooling in one pass."""
    return ops.batch_norm_train(x, scale, bias, act=act, pool=2)[0]


def pooled_after(x, scale, bias, act=ops.relu):
    """One after the other."""
    return ops.max_pool(ops.batch_norm_train(x, scale, bias, act=act)[0], 2)


@settings(examples, max_examples=5)
@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from(FUSED[:2]),
    dtypes,
)
def test_batch_norm_with_pooling_takes_the_same_pixels_as_pooling_after_it(b, h, w, blocks, act, dtype):
    channels = 16 * blocks
    x = jnp.round(normal(0, (b, 2 * h, 2 * w, channels)) * 2).astype(dtype)  # many ties
    x = x.at[0, 0, 0, ::5].set(jnp.nan)
    arrays = x, normal(1, (channels,)), normal(2, (channels,))

    def run(function):
        def both(*arrays):
            y, pullback = jax.vjp(functools.partial(function, act=act), *arrays)
            return y, *pullback(normal(3, y.shape, dtype))

        return jax.jit(both).lower(*arrays)

    one, two = run(pooled), run(pooled_after)
    assert one.as_text().count("custom_call @cnnjax_batch_norm") == 2
    assert f"tensor<{b}x{2 * h}x{2 * w}x{channels}xi1>" not in one.as_text()  # no pooling by XLA
    (y, *found), (wanted_y, *wanted) = one.compile()(*arrays), two.compile()(*arrays)
    np.testing.assert_array_equal(np.float32(y), np.float32(wanted_y))
    for got, exact in zip(found, wanted, strict=True):
        assert got.dtype == exact.dtype
        np.testing.assert_array_equal(jnp.isnan(got), jnp.isnan(exact))
        assert distance(jnp.nan_to_num(got), jnp.nan_to_num(exact)) < TOLERANCE[dtype]


def test_images_that_the_kernel_does_not_pool_are_pooled_after_it():
    for shape in ((2, 5, 6, 16), (2, 4, 7, 16), (2, 4, 6, 24)):
        arrays = normal(0, shape), normal(1, shape[-1:]), normal(2, shape[-1:])
        assert_equal(
            *(jax.jit(jax.grad(lambda *a, f=f: (f(*a) ** 2).sum()))(*arrays) for f in (pooled, pooled_after))
        )


def test_batch_norm_with_pooling_under_transformations():
    arrays = normal(0, (4, 6, 4, 16)), normal(1, (16,)), normal(2, (16,))

    def loss(*arrays):
        return jnp.tanh(pooled(*arrays)).sum()

    def squares(*arrays):
        return sum((g**2).sum() for g in jax.grad(loss, (0, 1, 2))(*arrays))

    assert_equal(*both(jax.grad(squares, (0, 1, 2)), *arrays), 1e-4)
    assert_equal(*both(jax.vmap(jax.grad(loss)), *(jnp.stack([a, 2 * a]) for a in arrays)))
    exported = export.export(jax.jit(jax.grad(loss)), platforms=["cpu", "tpu"])(*arrays)
    assert "custom_call @cnnjax" not in exported.mlir_module()
    assert_equal(exported.call(*arrays), jax.grad(loss)(*arrays))
    slope = jax.jit(lambda *a: jax.jvp(loss, a, a)[1])(*arrays)  # forward mode
    wanted = sum((g * a).sum() for g, a in zip(jax.grad(loss, (0, 1, 2))(*arrays), arrays, strict=True))
    np.testing.assert_allclose(slope, wanted, rtol=1e-4)


def test_batch_norm_of_many_rows_far_from_zero():
    x = normal(0, (40_001, 7), mean=3000.0)
    _, mean, var = ops.batch_norm_train(x, jnp.ones(7), jnp.zeros(7))
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var(0), rtol=1e-4)


def test_gradient_through_the_statistics():
    def loss(x, scale, bias):
        y, mean, var = ops.batch_norm_train(x, scale, bias)
        return jnp.sin(y).sum() + (mean**3).sum() + jnp.cos(var).sum()

    arrays = normal(0, (5, 4, 3)), normal(1, (3,)), normal(2, (3,))
    found = jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays)
    with cpu.paused():
        wanted = jax.jit(lambda *arrays: jax.grad(loss, (0, 1, 2))(*arrays))(*arrays)
    assert max(map(distance, found, wanted)) < 1e-5


@settings(examples, max_examples=6)
@given(
    st.tuples(st.integers(2, 4), st.integers(2, 5)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.integers(0, 1),
    st.booleans(),
    st.sampled_from([32, 300]),
    dtypes,
)
def test_max_pool_takes_the_same_pixels_as_xla(window, strides, padding, ceil, channels, dtype):
    assume(window[0] > strides[0] or window[1] > strides[1])  # other windows are XLA's
    x = jnp.round(normal(0, (2, 7, 8, channels)) * 2).astype(dtype)  # many ties
    x = x.at[0, 3, 3, ::5].set(jnp.nan)

    def run(x):
        y, pullback = jax.vjp(lambda x: ops.max_pool(x, window, strides, padding, ceil), x)
        return y, pullback(normal(1, y.shape, dtype))[0]

    lowered = jax.jit(run).lower(x)
    assert lowered.as_text().count("custom_call @cnnjax_max_pool") == 2
    y, dx = lowered.compile()(x)
    with cpu.paused():
        wanted, wanted_dx = jax.jit(lambda x: run(x))(x)
    np.testing.assert_array_equal(y.astype(jnp.float32), wanted.astype(jnp.float32))
    assert distance(dx, wanted_dx) < TOLERANCE[dtype]


@settings(examples, max_examples=5)
@given(st.sampled_from([1, 3, 5, 9]), st.integers(1, 70), dtypes)
def test_local_response_norm_and_its_gradient_are_those_of_xla(n, channels, dtype):
    x = normal(0, (2, 3, channels), dtype) * 20
    compare(lambda x: ops.local_response_norm(x, n=n, alpha=1e-2), [x], dtype)


@settings(examples, max_examples=4)
@given(
    st.sampled_from([(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)]),
    st.sampled_from([16, 24, 80]),
    st.tuples(st.integers(1, 30), st.integers(1, 40)),
    st.tuples(*[st.tuples(st.integers(1, 2), st.integers(0, 4))] * 2),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    dtypes,
)
def test_depthwise_convolution_and_its_gradients_are_those_of_xla(
    window, channels, size, padding, threads, has_bias, dtype
):
    side, stride = window
    assume(all(pixels + sum(pads) >= side for pixels, pads in zip(size, padding, strict=True)))
    parameters = {"strides": stride, "padding": padding, "groups": channels}
    library().cnnjax_start(threads)
    try:
        compare_convolution((2, *size, channels), (side, side, 1, channels), parameters, has_bias, dtype)
    finally:
        library().cnnjax_start(thread_count())


@settings(examples, max_examples=4)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(8, 150), dtypes)
def test_layer_norm_activations_and_products_of_channels_are_those_of_xla(rows, width, channels, dtype):
    x = normal(0, (3, rows, width, channels), dtype, mean=2.0)
    scale, bias = normal(1, (channels,)), normal(2, (channels,))
    x = x.at[..., 0].add(4)  # a variance of almost nothing makes any rounding large
    compare(ops.layer_norm, [x, scale, bias], dtype)
    compare(lambda x: ops.gelu(ops.silu(x - 2)), [x], dtype)
    compare(
        lambda *arrays: ops.dense(*arrays), [x, normal(3, (channels, 32), dtype), normal(4, (32,))], dtype
    )
    gates = normal(5, (3, channels), dtype)
    compare(lambda x, *by: sum(map(functools.partial(ops.scale_channels, x), by)), [x, scale, gates], dtype)
    compare(lambda x: ops.global_avg_pool(ops.silu(x)), [x], dtype)


def test_a_gate_of_channels_copies_no_bfloat16_image():
    def gated(x, factor):
        return ops.scale_channels(x, factor * ops.global_avg_pool(x))

    x, factor = normal(0, (2, 5, 7, 9), "bfloat16"), normal(1, (2, 9), "bfloat16")
    step = jax.jit(lambda x, factor, dy: jax.vjp(gated, x, factor)[1](dy)).lower(x, factor, x).compile()
    assert 'custom_call_target="cnnjax_channel_sum' in step.as_text()
    assert "bf16[2,35,9]" not in step.as_text()


def test_activations_of_large_numbers_and_of_nan():
    x = jnp.float32([-1e30, -200, -90, -87, -14, -1e-3, 0, 1e-30, 14, 200, 1e30, jnp.inf, jnp.nan])
    for found, wanted in (
        (ops.gelu, functools.partial(jax.nn.gelu, approximate=False)),
        (ops.silu, jax.nn.silu),
    ):
        np.testing.assert_allclose(jax.jit(found)(x), wanted(x), rtol=1e-6, atol=3e-7)


def test_gradients_of_gradients_through_layer_norm_and_activations():
    def loss(x, kernel, scale, factor):
        y = ops.layer_norm(ops.conv2d(x, kernel, padding=1, groups=16), scale, scale)
        y = ops.scale_channels(ops.gelu(y) + ops.silu(y), factor)
        return jnp.tanh(ops.scale_channels(y, ops.global_avg_pool(y))).sum()

    def squares(*arrays):
        return sum((g**2).sum() for g in jax.grad(loss, (0, 1, 2, 3))(*arrays))

    arrays = normal(0, (2, 4, 5, 16)), normal(1, (3, 3, 1, 16)), normal(2, (16,)), normal(3, (16,))
    assert_equal(*both(jax.grad(squares, (0, 1, 2, 3)), *arrays), 1e-4)
    assert_equal(*both(jax.vmap(jax.grad(loss)), *(jnp.stack([a, 2 * a]) for a in arrays)))
    assert_equal(*both(lambda *a: jax.jvp(loss, a, a), *arrays), 1e-4)


# Transformations


def net(x, kernel, bias):
    y = ops.conv2d(x, kernel, bias, padding=1)
    y, _, _ = ops.batch_norm_train(y, bias + 1, bias, act=ops.relu)
    return jnp.sum(jnp.tanh(ops.max_pool(y, 3, 2, 1)) ** 2)


NET = normal(0, (4, 7, 6, 3)), normal(1, (3, 3, 3, 32)), normal(2, (32,))


def both(function, *arrays):
    found = jax.jit(lambda *arrays: function(*arrays))(*arrays)
    with cpu.paused():
        wanted = jax.jit(lambda *arrays: function(*arrays))(*arrays)
    return found, wanted


def assert_equal(found, wanted, tolerance=1e-5):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    assert max(distance(a, b) for a, b in pairs) < tolerance


def test_vmap_over_images_kernels_or_both():
    for axes in ((0, None, None), (None, 0, 0), (0, 0, 0)):
        arrays = [a if axis is None else jnp.stack([a, a * 2]) for a, axis in zip(NET, axes, strict=True)]
        assert_equal(*both(jax.vmap(jax.grad(net, 1), axes), *arrays))


def test_gradient_of_the_gradient():
    def gradient_norm(*arrays):
        return sum((g**2).sum() for g in jax.grad(net, (0, 1, 2))(*arrays))

    assert_equal(*both(jax.grad(gradient_norm, (0, 1, 2)), *NET), 1e-4)


def test_forward_mode_and_remat():
    def loss(x, kernel, bias):
        y = ops.local_response_norm(ops.conv2d(x, kernel, bias, padding=1))
        return jnp.tanh(ops.batch_norm_train(y, bias, bias)[0]).sum()

    def derivatives(*arrays):
        return jax.jvp(loss, arrays, arrays), jax.grad(jax.checkpoint(loss), (0, 1, 2))(*arrays)

    assert_equal(*both(derivatives, *NET), 1e-4)


def test_frozen_arrays_have_no_gradient():
    x, kernel, bias = NET
    assert_equal(*both(jax.grad(lambda bias: net(x, kernel, bias)), bias))
    assert_equal(*both(jax.grad(lambda x: net(x, kernel, bias)), x))


def test_scan_trains_as_a_python_loop():
    def step(kernel, x):
        loss, gradient = jax.value_and_grad(net, 1)(x, kernel, NET[2])
        return kernel - 1e-3 * gradient, loss

    images = normal(3, (3, *NET[0].shape))
    kernel, losses = jax.jit(lambda k: jax.lax.scan(step, k, images))(NET[1])
    one = jax.jit(step)
    looped = NET[1]
    for image, loss in zip(images, losses, strict=True):
        looped, alone = one(looped, image)
        np.testing.assert_allclose(loss, alone, rtol=1e-5)
    np.testing.assert_allclose(kernel, looped, rtol=1e-4, atol=1e-6)


def test_exported_programs_are_portable():
    function = jax.jit(jax.value_and_grad(net, (0, 1, 2)))
    assert "cnnjax_" in function.lower(*NET).as_text().replace("jit_cnnjax", "")
    for platforms in (["cpu"], ["cpu", "tpu"]):
        exported = export.export(function, platforms=platforms)(*NET)
        assert "custom_call @cnnjax" not in exported.mlir_module()
    assert_equal(exported.call(*NET), function(*NET))


def test_other_dtypes_and_shard_map_go_through_xla():
    x, kernel, _ = NET
    half = jax.jit(ops.conv2d).lower(x.astype(jnp.float16), kernel.astype(jnp.float16)).as_text()
    assert "custom_call" not in half
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        lambda *arrays: jax.lax.psum(net(*arrays), "data"),
        mesh=mesh,
        in_specs=(spec("data"), spec(), spec()),
        out_specs=spec(),
    )
    found = jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(*NET)
    assert_equal(found, jax.jit(jax.value_and_grad(net, (0, 1, 2)))(*NET))


MAPS = (2, 8, 8, 32)
INSIDE = {  # name: a function of an array of the shape and of float32 vectors
    "dense": (lambda x, *v: ops.dense(x, jnp.stack(v, 1)), (2, 32)),
    "dense of maps": (lambda x, *v: ops.dense(x, jnp.stack(v, 1)), MAPS),
    "conv2d": (lambda x, *v: ops.conv2d(x, jnp.stack(v, 1).astype(x.dtype)[None, None]), MAPS),
    "batch_norm": (lambda x, *v: ops.batch_norm_train(x, *v, act=ops.relu)[0], MAPS),
    "layer_norm": (lambda x, *v: ops.gelu(ops.layer_norm(x, *v)), MAPS),
    "max_pool": (lambda x, *_: ops.max_pool(x, 3, 2), MAPS),
    "scale": (lambda x, *_: ops.scale_channels(x, ops.global_avg_pool(x)), MAPS),
    "response_norm": (lambda x, *_: ops.local_response_norm(ops.silu(x)), MAPS),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", INSIDE)
def test_inside_shard_map_jax_knows_what_differs_between_devices(name, dtype):
    function, shape = INSIDE[name]
    x, vectors = normal(0, shape, dtype), (normal(1, (32,)), normal(2, (32,)))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def inside(function, out_specs):
        in_specs = spec("data"), spec(), spec()
        sharded = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
        return jax.eval_shape(sharded, x, *vectors)

    gradient = jax.grad(lambda *arrays: function(*arrays).astype(jnp.float32).sum(), (0, 1, 2))
    found = inside(gradient, (spec("data"), spec(), spec()))
    assert [leaf.shape for leaf in found] == [shape, (32,), (32,)]
    with pytest.raises(ValueError, match="replicat"):
        inside(function, spec())


def test_threads_may_call_at_the_same_time():
    def call(i):
        x = normal(i, (2, 6 + i, 7, 3))
        step = jax.jit(lambda x: ops.conv2d(x, NET[1], padding=1))
        for _ in range(20):
            step(x).block_until_ready()
        results[i] = x, step(x)

    results = {}
    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    with cpu.paused():
        for x, y in results.values():
            assert distance(y, jax.jit(lambda x: ops.conv2d(x, NET[1], padding=1))(x)) < 1e-5


# Other processes


def run(program, **environment):
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.skipif("AVX-512" not in processor(), reason="without AVX-512 all tests here are of AVX2")
def test_convolutions_on_avx2_are_those_of_xla_too():
    program = """
from tests.ops.test_cpu_kernels import *

test_square_windows_of_stride_one_are_those_of_xla()
test_convolutions_of_many_channels_are_those_of_xla_on_any_number_of_threads()
"""
    run(program, ONEDNN_MAX_CPU_ISA="AVX2")


def test_processors_without_bfloat16_convolve_in_float32():
    program = """
import jax, jax.numpy as jnp
from cnnjax import ops
from cnnjax.ops import cpu

x, kernel = jnp.ones((2, 9, 9, 16), jnp.bfloat16), jnp.ones((3, 3, 16, 8), jnp.bfloat16)
def run(x, kernel):
    y, pullback = jax.vjp(lambda x, kernel: ops.conv2d(x, kernel, padding=1), x, kernel)
    return y, *pullback(y)
text = jax.jit(run).lower(x, kernel).as_text()
assert text.count("custom_call @cnnjax_convolution") == 3, text
found = jax.jit(run)(x, kernel)
with cpu.paused():
    wanted = jax.jit(run)(x, kernel)
for a, b in zip(found, wanted, strict=True):
    assert a.dtype == b.dtype == jnp.bfloat16
    assert jnp.abs(a / b - 1).max() < 1e-2
network = cpu.Program(jnp.bfloat16)
network.value((1, 1, 8)), network.value((1, 1, 4), wide=True)
network.step("dense", 0, 1, weights=jnp.ones((8, 4)))
try:
    network.finish()
except cpu.Unsupported:
    pass
else:
    raise AssertionError("a dense layer in bfloat16")
"""
    run(program, ONEDNN_MAX_CPU_ISA="AVX2")


def test_switch_turns_the_kernels_off_and_import_does_not_load_them():
    program = """
import jax.numpy as jnp
from cnnjax import ops
from cnnjax.ops import cpu
assert "libdnnl" not in open("/proc/self/maps").read()
y = ops.conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)))
assert y.tolist() == [[[[9, 9], [9, 9]], [[9, 9], [9, 9]]]]
print("libdnnl" in open("/proc/self/maps").read(), cpu.status())
"""
    assert run(program, CNNJAX_CPU_KERNELS="off") == "False off: CNNJAX_CPU_KERNELS=off"
    assert run(program, CNNJAX_CPU_KERNELS="").startswith("True oneDNN ")


def test_config_field_turns_the_kernels_off(tiny_config, tmp_path):
    tiny_config.total_epochs, tiny_config.cpu_kernels = 0.2, False
    tiny_config.optimizer.warmup_epochs = 0.0
    train.train(tiny_config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["cpu_kernels"] == "off: as the config asks"
    with cpu.paused():
        assert not cpu.takes(jnp.ones((1, 4, 4, 1)))


def test_several_devices_have_the_same_loss_without_gathering_the_batch():
    program = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.ops.test_cpu_kernels import net, normal
x, kernel, bias = normal(0, (8, 8, 6, 3)), normal(1, (3, 3, 3, 32)), normal(2, (32,))
step = jax.jit(jax.value_and_grad(lambda x, k, b: net(x, k, b), (1, 2)))
wanted = step(x, kernel, bias)
for count in (1, 2, 4, 8):
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    whole = NamedSharding(mesh, P())
    arrays = jax.device_put((x, kernel, bias), (NamedSharding(mesh, P("data")), whole, whole))
    assert "all-gather" not in step.lower(*arrays).compile().as_text()
    for a, b in zip(jax.tree.leaves(step(*arrays)), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
print(jax.device_count())
"""
    assert run(program, **simulated(8)) == "8"


def test_thread_count_follows_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert thread_count() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert 1 <= thread_count() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "limit",
    [
        "OMP_THREAD_LIMIT=1",
        "OMP_THREAD_LIMIT=3",
        "OMP_DYNAMIC=true",
        "OMP_MAX_ACTIVE_LEVELS=0",
        "OMP_NESTED=true",
    ],
)
def test_fewer_threads_than_asked_compute_the_same_gradients(limit):
    """Four are asked for; the last time from a thread of OpenMP, which has no others beside it."""
    program = """
import ctypes
import jax, jax.numpy as jnp
from cnnjax import ops
from cnnjax.ops import cpu
from cnnjax.ops.cpu.library import library

library().cnnjax_start(4)
x, kernel = (jax.random.normal(jax.random.key(0), shape) for shape in ((8, 28, 28, 32), (3, 3, 32, 64)))

def gradient(kernel):
    return jax.grad(lambda kernel: jnp.sin(ops.conv2d(x, kernel, strides=2, padding=1)).sum())(kernel)

found = [jax.jit(gradient)(kernel)]
within = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.append(jax.jit(gradient)(kernel)))
ctypes.CDLL("libgomp.so.1").GOMP_parallel(within, None, 2, 0)
with cpu.paused():
    wanted = jax.jit(lambda kernel: gradient(kernel))(kernel)
print([float(jnp.abs(each - wanted).max() / jnp.abs(wanted).max()) for each in found])
"""
    name, value = limit.split("=")
    found = json.loads(run(program, **{name: value}))
    assert len(found) >= 2 and max(found) < 1e-5


# Bad calls and memory


def call(target, results, *arrays, **attributes):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    fixed = {k: np.array(v, np.int64) if isinstance(v, list) else v for k, v in attributes.items()}
    return jax.block_until_ready(jax.ffi.ffi_call(target, shapes)(*arrays, **fixed))


def convolve(x=(1, 5, 5, 4), kernel=(3, 3, 4, 8), y=(1, 3, 3, 8), dtype="float32", **changes):
    attributes = {"mode": 0, "strides": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
    attributes.update(changes)
    attributes["mode"], attributes["groups"] = np.int64(attributes["mode"]), np.int64(attributes["groups"])
    arrays = [jnp.zeros(x, dtype), jnp.zeros(kernel, changes.pop("other", dtype))]
    return call("cnnjax_convolution", [(y, dtype)], *arrays, **attributes)


@pytest.mark.parametrize(
    "change",
    [
        {"y": (1, 4, 3, 8)},
        {"y": (2, 3, 3, 8)},
        {"y": (1, 3, 3, 7)},
        {"x": (5, 5, 4)},
        {"x": (1, 5, 5, 5)},
        {"x": (0, 5, 5, 4)},
        {"kernel": (7, 3, 4, 8)},
        {"groups": 3},
        {"groups": 0},
        {"groups": 2},
        {"strides": [0, 1]},
        {"strides": [1]},
        {"strides": [1, 2**40]},
        {"dilation": [1, -1]},
        {"padding": [-1, 1, 0, 0]},
        {"padding": [0, 0]},
        {"mode": 3},
        {"mode": 1},
        {"dtype": "float16"},
        {"dtype": "int32"},
    ],
    ids=str,
)
def test_bad_convolutions_are_errors_with_the_numbers(change):
    with pytest.raises(jax.errors.JaxRuntimeError, match="cnnjax kernel: .*[0-9]"):
        convolve(**change)


def test_other_bad_calls_are_errors_with_the_numbers():
    f32, u8, x = "float32", "uint8", jnp.zeros((2, 6, 6, 4))
    norm, pool = (
        {"epsilon": np.float32(1e-5), "act": 0, "pool": 1},
        {"strides": [2, 2], "padding": [0] * 4},
    )
    statistics = [((4,), f32), ((4,), f32)]
    y = ((2, 3, 3, 4), f32)
    wide, means, vectors = ((2, 3, 3, 16), f32), [((16,), f32)] * 2, [jnp.zeros(16)] * 2
    bad = [
        ("cnnjax_batch_norm", [(x.shape, f32), *statistics], [x, jnp.zeros(5), jnp.zeros(4)], norm),
        ("cnnjax_batch_norm", [(x.shape, f32), *statistics], [x, jnp.zeros(4)], norm),
        ("cnnjax_batch_norm", [((2, 6, 6, 5), f32), *statistics], [x, jnp.zeros(4), jnp.zeros(4)], norm),
        ("cnnjax_batch_norm", [y, *statistics], [x, jnp.zeros(4), jnp.zeros(4)], norm),
        ("cnnjax_batch_norm", [y, *statistics], [x, jnp.zeros(4), jnp.zeros(4)], {**norm, "pool": 2}),
        ("cnnjax_batch_norm", [wide, *means], [jnp.zeros(wide[0]), *vectors], {**norm, "pool": 2}),
        ("cnnjax_batch_norm", [wide, *means], [jnp.zeros((2, 6, 6, 16)), *vectors], {**norm, "pool": 3}),
        ("cnnjax_batch_norm", [wide, *means], [jnp.zeros((2, 6, 7, 16)), *vectors], {**norm, "pool": 2}),
        ("cnnjax_batch_norm", [wide, *means], [jnp.zeros((2, 6, 6, 16)), *vectors], norm),
        (
            "cnnjax_batch_norm",
            [wide, *means],
            [jnp.zeros((2, 6, 6, 16)), *vectors],
            {**norm, "act": 2, "pool": 2},
        ),
        ("cnnjax_batch_norm", [(x.shape, f32), *statistics], [x, *([jnp.zeros(4)] * 2)], {**norm, "act": 5}),
        ("cnnjax_max_pool", [y, ((2, 3, 3, 4), f32)], [x], {"window": [2, 2], **pool}),
        ("cnnjax_max_pool", [y, ((2, 3, 3, 3), u8)], [x], {"window": [2, 2], **pool}),
        ("cnnjax_max_pool", [y, ((2, 3, 3, 4), u8)], [x], {"window": [16, 17], **pool}),
        ("cnnjax_max_pool", [y, ((2, 3, 3, 4), u8)], [x], {"window": [3, 2], **pool}),
        ("cnnjax_max_pool", [(x.shape, f32)], [jnp.zeros(y[0])], {"window": [2, 2], **pool}),
        ("cnnjax_activation", [y], [x], {"silu": True}),
        ("cnnjax_activation", [(x.shape, f32)], [x, jnp.zeros(y[0])], {"silu": False}),
        ("cnnjax_activation", [(x.shape, u8)], [x], {"silu": False}),
        ("cnnjax_layer_norm", [y], [x, jnp.zeros(4), jnp.zeros(4)], {"epsilon": np.float32(1e-6)}),
        ("cnnjax_layer_norm", [(x.shape, f32)], [x, x, jnp.zeros(4)], {"epsilon": np.float32(1e-6)}),
        ("cnnjax_layer_norm", [(x.shape, f32), *statistics], [x] * 3, {"epsilon": np.float32(1e-6)}),
        ("cnnjax_channel_sum", [((2, 6), f32)], [x], {}),
        ("cnnjax_channel_sum", [((2, 4), f32)], [jnp.zeros((2, 4))], {}),
        ("cnnjax_channel_sum", [((2, 4), f32)], [jnp.zeros((2, 9, 6))], {}),
        ("cnnjax_channel_sum", [((2, 6), f32)], [jnp.zeros((2, 9, 6)), jnp.zeros((2, 8, 6))], {}),
        ("cnnjax_response_norm", [(x.shape, f32)], [x], {"n": 4}),
        ("cnnjax_response_norm", [(x.shape, f32)], [x, jnp.zeros((2, 6, 6, 5))], {"n": 5}),
    ]
    for target, results, arrays, attributes in bad:
        if target.endswith("response_norm"):
            attributes = {"k": np.float32(2), "alpha": np.float32(1e-4), "n": np.int64(attributes["n"])}
        with pytest.raises(jax.errors.JaxRuntimeError, match="cnnjax kernel: .*[0-9]"):
            call(target, results, *arrays, **attributes)


def resident_megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def prepare(i: int) -> None:
    """One more convolution for the cache of primitives, of a size of its own."""
    # mode, bfloat16, groups, bias, x, kernel, y, strides, padding, dilation
    height, width = 5 + i % 60, 5 + i // 60
    numbers = [i % 3, 0, 1, 0, 1, height, width, 4, 3, 3, 4, 8, 1, height - 2, width - 2, 8]
    numbers += [1, 1, 0, 0, 0, 0, 1, 1]
    assert library().cnnjax_convolution_is_fast((ctypes.c_int64 * 24)(*numbers)) in (0, 1)


def test_changing_shapes_do_not_fill_the_memory():
    for i in range(700):  # more than the cache keeps
        prepare(i)
    before = resident_megabytes()
    for i in range(700, 1500):
        prepare(i)
    assert resident_megabytes() - before < 30


@pytest.mark.slow
def test_ten_thousand_steps_of_changing_shapes_leave_the_memory_alone():
    def loss(x, kernel, bias):
        y, *_ = ops.batch_norm_train(ops.conv2d(x, kernel, bias, padding=1), bias, bias, act=ops.relu)
        return ops.max_pool(ops.local_response_norm(y), 3, 2).sum()

    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    kernel, bias = jnp.ones((3, 3, 4, 8)), jnp.ones(8)
    images = [jnp.ones((2, 6 + i, 9 + i % 7, 4)) for i in range(40)]
    for i in range(10_000):
        prepare(i)
        jax.block_until_ready(step(images[i * 7 % 40], kernel, bias))
        if i == 2000:
            before = resident_megabytes()
    assert resident_megabytes() - before < 30
