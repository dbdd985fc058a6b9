import contextlib
import functools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cnnjax.errors import UserError
from cnnjax.ops import cpu, pooling
from tests.conftest import simulated

POOLS = [
    pooling.max_pool,
    pooling.min_pool,
    pooling.avg_pool,
    functools.partial(pooling.avg_pool, count_padding=True),
    pooling.l2_pool,
    pooling.center_weighted_pool,
]
NAMES = ["max", "min", "avg", "avg_counted", "l2", "center"]
# window, strides, ((top, bottom), (left, right)), ceil: for images of 7 x 8.
GEOMETRIES = [
    ((2, 2), (2, 2), ((0, 0), (0, 0)), False),
    ((2, 2), (2, 2), ((1, 0), (0, 0)), True),
    ((3, 3), (2, 2), ((1, 1), (0, 1)), True),
    ((3, 2), (1, 3), ((2, 1), (0, 1)), False),
    ((5, 4), (3, 1), ((0, 0), (0, 0)), False),
    ((7, 8), (7, 8), ((0, 0), (0, 0)), False),
]


def ties(shape, seed=0):
    """Floats with many equal values and zeros, as after a ReLU."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.integers(-3, 4, size=shape), 0).astype(np.float32)


def run(pool, x, make_gradient):
    """The pooled image, the gradient given to it and what comes back, compiled once."""
    shape = jax.eval_shape(pool, x)
    g = np.asarray(make_gradient(shape.shape), shape.dtype)

    def both(x, g):
        y, back = jax.vjp(pool, x)
        return y, back(g)[0]

    y, slope = jax.jit(both)(x, g)
    return y, g, slope


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def windows(size, window, strides, sides, ceil):
    """Start of each window on each axis, from torch's rule."""
    starts = []
    for n, w, s, (a, b) in zip(size, window, strides, sides, strict=True):
        count = (math.ceil if ceil else math.floor)((n + a + b - w) / s) + 1
        if ceil and (count - 1) * s >= n + a:
            count -= 1
        starts.append([i * s - a for i in range(count)])
    return starts


def reference(name, x, window, strides, sides, ceil):
    """The pooled image in float64 and a function that sends a gradient back, by loops."""
    x = np.float64(x)
    rows, columns = windows(x.shape[1:3], window, strides, sides, ceil)
    y = np.zeros((x.shape[0], len(rows), len(columns), x.shape[3]))
    slopes = np.zeros((*y.shape, *x.shape[1:3]))
    for p, top in enumerate(rows):
        for q, left in enumerate(columns):
            i = slice(max(top, 0), min(top + window[0], x.shape[1]))
            j = slice(max(left, 0), min(left + window[1], x.shape[2]))
            for b, c in np.ndindex(x.shape[0], x.shape[3]):
                patch = x[b, i, j, c]
                at = slopes[b, p, q, c, i, j]
                if name in ("max", "min"):
                    find = np.argmax if name == "max" else np.argmin
                    first = np.unravel_index(find(patch), patch.shape)
                    y[b, p, q, c], at[first] = patch[first], 1
                elif name == "l2":
                    y[b, p, q, c] = norm = np.sqrt((patch**2).sum())
                    at[:] = patch / norm if norm else 0
                else:
                    weight = np.ones(patch.shape)
                    if name == "center":
                        di = (np.arange(x.shape[1])[i] - top - (window[0] - 1) / 2) / window[0]
                        dj = (np.arange(x.shape[2])[j] - left - (window[1] - 1) / 2) / window[1]
                        weight = np.exp(-8 * (di[:, None] ** 2 + dj[None] ** 2))
                    total = weight.sum()
                    if name == "avg_counted":
                        ends = [
                            min(start + w, n + after) - start
                            for start, w, n, (_, after) in zip(
                                (top, left), window, x.shape[1:3], sides, strict=True
                            )
                        ]
                        total = ends[0] * ends[1]
                    y[b, p, q, c] = (patch * weight).sum() / total
                    at[:] = weight / total
    return y, lambda g: np.einsum("bpqc,bpqchw->bhwc", np.float64(g), slopes)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("name", "pool"), list(zip(NAMES, POOLS, strict=True)), ids=NAMES)
def test_forward_and_gradient_equal_loops_over_the_windows(name, pool, geometry):
    x = ties((2, 7, 8, 2))
    expected, back = reference(name, x, *geometry)
    y, g, slope = run(lambda x: pool(x, *geometry), x, normal)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, back(g), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "pool"), list(zip(NAMES, POOLS, strict=True)), ids=NAMES)
def test_float64_stays_float64(name, pool):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8, 2)))
        expected, back = reference(name, x, *GEOMETRIES[2])
        y, g, slope = run(lambda x: pool(x, *GEOMETRIES[2]), x, normal)
        assert y.dtype == slope.dtype == jnp.float64
        np.testing.assert_allclose(y, expected, rtol=1e-13)
        np.testing.assert_allclose(slope, back(g), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("window", "strides"), [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 2), (2, 3)), ((9, 9), (1, 1))]
)
def test_max_pool_has_the_gradient_of_reduce_window_on_ties(window, strides, dtype):
    x = jnp.asarray(ties((2, 9, 9, 3), 3), dtype)

    def theirs(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), "VALID")

    def small_whole_numbers(shape):  # whose bfloat16 sums are exact
        return np.random.default_rng(1).integers(-4, 5, size=shape)

    y, _, slope = run(theirs, x, small_whole_numbers)
    ours, _, our_slope = run(lambda x: pooling.max_pool(x, window, strides), x, small_whole_numbers)
    assert ours.dtype == our_slope.dtype == dtype
    np.testing.assert_array_equal(ours, y)
    np.testing.assert_array_equal(our_slope, slope)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("channels", [2, 32])  # 32 with overlapping windows are those of the kernels
@pytest.mark.parametrize("name", ["max", "min"])
def test_no_gradient_is_lost_in_the_padding_of_infinite_images(name, channels, kernels):
    pool, worst = {"max": (pooling.max_pool, -np.inf), "min": (pooling.min_pool, np.inf)}[name]
    one = ((7, 8), (7, 8), ((2, 3), (1, 4)), False)  # window over all; below, one that leaves pixels out
    for geometry in [*GEOMETRIES, one, ((7, 7), (7, 7), ((2, 0), (1, 0)), False)]:
        size = (5, 7) if geometry == one else (7, 8)
        x = np.where(ties((1, *size, channels), 1) > 1, 1, worst).astype(np.float32)
        expected, back = reference(name, x, *geometry)
        with contextlib.nullcontext() if kernels else cpu.paused():
            y, g, slope = run(lambda x, pool=pool, geometry=geometry: pool(x, *geometry), x, normal)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_allclose(slope, back(g), rtol=1e-5, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_max_pool_of_any_geometry(data):
    size = [data.draw(st.integers(1, 9)) for _ in range(2)]
    window = [data.draw(st.integers(1, n)) for n in size]
    strides = [data.draw(st.integers(1, 4)) for _ in range(2)]
    sides = [[data.draw(st.integers(0, w - 1)) for _ in range(2)] for w in window]
    ceil = data.draw(st.booleans())
    x = ties((1, *size, 1), data.draw(st.integers(0, 99)))
    expected, back = reference("max", x, window, strides, sides, ceil)
    y, g, slope = run(lambda x: pooling.max_pool(x, window, strides, sides, ceil), x, normal)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(slope, back(g), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_overlapping_windows_is_rounded_once():
    x = jnp.zeros((1, 4, 4, 1), jnp.bfloat16).at[0, 1, 1].set(1).at[0, 2, 2].set(2)
    parts = np.array([[1.0, 2**-9], [2**-9, 2**-8]])
    slope = run(lambda x: pooling.max_pool(x, 3, 1), x, parts.reshape)[2]
    assert slope[0, 2, 2, 0] == jnp.asarray(1 + 2**-7, jnp.bfloat16)


def test_padding_and_negative_images():
    x = -jnp.ones((1, 4, 4, 1))
    assert (pooling.max_pool(x, 3, 2, 1) == -1).all()
    assert (pooling.min_pool(-x, 3, 2, 1) == 1).all()
    assert (pooling.avg_pool(x, 3, 2, 1) == -1).all()
    assert pooling.avg_pool(x, 3, 2, 1, count_padding=True)[0, 0, 0, 0] == pytest.approx(-4 / 9)
    assert pooling.max_pool(x, 3, 2, "same").shape == (1, 2, 2, 1)


def test_nan_wins_and_infinity_stays_in_its_windows():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 1, 0].set(jnp.nan).at[0, 3, 3, 0].set(-jnp.inf)
    y = pooling.max_pool(x, 2)[0, :, :, 0]
    assert jnp.isnan(y[0, 0])
    assert (y.ravel()[1:] == 0).all()
    assert jnp.isnan(pooling.global_max_pool(x)).all()
    assert jnp.isnan(pooling.adaptive_max_pool(x, 3)[0, 0, 0, 0])
    assert jnp.isfinite(pooling.adaptive_avg_pool(x, 3)[0, 0, 2, 0])


@pytest.mark.parametrize("output", [(1, 1), (4, 7), (3, 2), (2, 4), (7, 3), (9, 13)], ids=str)
@pytest.mark.parametrize("name", ["max", "avg"])
def test_adaptive_pools_follow_torch(name, output):
    x = ties((2, 6, 8, 2))
    edges = [
        [(math.floor(i * n / o), math.ceil((i + 1) * n / o)) for i in range(o)]
        for n, o in zip(x.shape[1:3], output, strict=True)
    ]
    pool = {"max": pooling.adaptive_max_pool, "avg": pooling.adaptive_avg_pool}[name]
    y, g, our_slope = run(lambda x: pool(x, output), x, normal)
    expected, slope = np.zeros(g.shape), np.zeros(x.shape)
    for p, (a, b) in enumerate(edges[0]):
        for q, (c, d) in enumerate(edges[1]):
            for i, k in np.ndindex(2, 2):
                patch, back = x[i, a:b, c:d, k], slope[i, a:b, c:d, k]
                if name == "max":
                    first = np.unravel_index(np.argmax(patch), patch.shape)
                    expected[i, p, q, k] = patch[first]
                    back[first] += g[i, p, q, k]
                else:
                    expected[i, p, q, k] = patch.mean()
                    back += g[i, p, q, k] / patch.size
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(our_slope, slope, rtol=1e-5, atol=1e-5)


def test_global_pools():
    x = ties((3, 5, 4, 2))
    g = jnp.asarray(normal((3, 2)))
    y, back = jax.vjp(pooling.global_avg_pool, jnp.asarray(x))
    np.testing.assert_allclose(y, x.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(back(g)[0], np.broadcast_to(g[:, None, None] / 20, x.shape), 1e-5)
    y, back = jax.vjp(pooling.global_max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(y, x.max((1, 2)))
    flat = np.asarray(back(g)[0]).reshape(3, 20, 2)
    np.testing.assert_array_equal(np.abs(flat).argmax(1), x.reshape(3, 20, 2).argmax(1))
    np.testing.assert_allclose(flat.sum(1), g, rtol=1e-6)


@pytest.mark.parametrize("pool", [*POOLS[2:], lambda x, _: pooling.global_avg_pool(x)])
def test_sums_of_bfloat16_are_float32(pool):
    # 1024 equal values: a bfloat16 sum would stop growing long before the end.
    y = pool(jnp.ones((1, 32, 32, 1), jnp.bfloat16), 32)
    assert y.dtype == jnp.bfloat16
    assert y.item() == (32 if pool is pooling.l2_pool else 1)


def test_center_weights_fall_with_the_distance():
    x = jnp.eye(9).reshape(9, 3, 3, 1)
    weight = pooling.center_weighted_pool(x, 3).reshape(3, 3)
    assert weight[1, 1] > weight[0, 1] > weight[0, 0] > 0
    np.testing.assert_allclose(weight, weight[::-1].T, rtol=1e-6)
    assert weight.sum() == pytest.approx(1)


@pytest.mark.parametrize("pool", [*POOLS, lambda x, *_: pooling.adaptive_max_pool(x, 4)])
def test_jit_vmap_and_second_derivatives(pool):
    x = jnp.asarray(normal((2, 2, 6, 6, 2)) + 2)
    many = jax.jit(jax.vmap(lambda x: pool(x, 3, 2)))(x)
    np.testing.assert_allclose(many[1], jax.jit(lambda x: pool(x, 3, 2))(x[1]), rtol=1e-5)

    @jax.jit
    def slope(x):
        return (jax.grad(lambda x: (pool(x, 3, 2) ** 3).sum())(x) ** 2).sum() / 2

    direction = jnp.asarray(normal(x[0].shape, 1))
    second = (jax.jit(jax.grad(slope))(x[0]) * direction).sum()
    # The tolerance is for the float32 rounding of a central difference.
    step = 1e-3
    estimate = (slope(x[0] + step * direction) - slope(x[0] - step * direction)) / (2 * step)
    np.testing.assert_allclose(second, estimate, rtol=5e-2, atol=0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: pooling.max_pool(x[0], 2), r"\[B, H, W, C\]"),
        (lambda x: pooling.max_pool(x.astype(jnp.int32), 2), "int32"),
        (lambda x: pooling.avg_pool(x, 5), "window 5"),
        (lambda x: pooling.avg_pool(x, 0), "window 0"),
        (lambda x: pooling.max_pool(x, 2, 0), "strides 0"),
        (lambda x: pooling.max_pool(x, 2, 2, 2), "padding 2"),
        (lambda x: pooling.max_pool(x, 2, 2, "full"), "padding 'full'"),
        (lambda x: pooling.adaptive_avg_pool(x, 0), "output_size 0"),
        (lambda x: pooling.adaptive_max_pool(x[..., 0], 1), "pooling"),
        (lambda x: pooling.global_max_pool(x[0]), "pooling"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call(jnp.ones((1, 4, 4, 1)))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cnnjax.ops.normalization import batch_norm_train
from cnnjax.ops.pooling import max_pool
sharding = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec("data"))
x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3)) + 2.0 * jnp.arange(4.0).reshape(4, 1, 1, 1)
def f(x):
    y, mean, var = batch_norm_train(x, jnp.ones(3), jnp.zeros(3))
    return (max_pool(y, 3, 2) ** 2).sum() + (mean * var).sum()
f = jax.jit(jax.value_and_grad(f))
assert len(jax.devices()) == 2
for a, b in zip(f(x), f(jax.device_put(x, sharding))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
"""


def test_two_devices_give_the_result_of_one():
    done = subprocess.run([sys.executable, "-c", SHARDED], env=simulated(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
