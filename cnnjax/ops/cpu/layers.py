"""Batch normalization in training, local response normalization and maximum pooling, with their gradients."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad

from cnnjax.ops.cpu.primitive import make_primitive, set_gradient
from cnnjax.ops.shapes import Pair, Sides, first_inside

ACTS = ("identity", "relu", "relu6", "silu", "hard_swish")  # batch_norm.cc ends with one, by its place


def make_batch_norm(
    reference: Callable[..., tuple[jax.Array, ...]],
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """`reference`, or the kernels where they run.

    `reference` is (x [..., C], scale [C], bias [C], epsilon=, act=, pool=) -> y of the dtype of x, mean and
    biased variance; all but x and y float32. `act` is one of `ACTS`; `pool` is 1, or, after one of the first
    two, 2 for x [B, H, W, C] with H, W even and 16 | C.
    """

    def gradient_reference(x, dy, mean, var, scale, bias, **parameters):
        return jax.vjp(lambda *arrays: reference(*arrays, **parameters)[0], x, scale, bias)[1](dy)

    def attributes(inputs, results, *, epsilon, act, pool):
        return {"epsilon": np.float32(epsilon), "act": np.int64(ACTS.index(act)), "pool": np.int64(pool)}

    def alike(x, dy, mean, var, scale, bias, **_):
        return x, scale, bias

    target = "cnnjax_batch_norm"
    forward = make_primitive("batch_norm", reference, target, attributes, True)
    backward = make_primitive("batch_norm_gradient", gradient_reference, target, attributes, True, alike)

    def gradient(arrays, results, cotangents, **parameters):
        (x, scale, bias), (_, mean, var), (dy, dmean, dvar) = arrays, results, cotangents
        dy = ad.instantiate_zeros(dy)
        dx, dscale, dbias = backward.bind(x, dy, mean, var, scale, bias, **parameters)
        count = x.size // x.shape[-1]
        if type(dmean) is not ad.Zero:
            dx += jnp.broadcast_to(dmean / count, x.shape).astype(x.dtype)
        if type(dvar) is not ad.Zero:
            dvar, mean = (jnp.broadcast_to(vector, x.shape) for vector in (dvar, mean))
            dx += ((2 / count) * dvar * (x.astype(jnp.float32) - mean)).astype(x.dtype)
        return dx, dscale, dbias

    set_gradient(forward, reference, gradient)

    def batch_norm(x, scale, bias, *, epsilon, act, pool):
        return tuple(forward.bind(x, scale, bias, epsilon=float(epsilon), act=act, pool=pool))

    return batch_norm


def make_response_norm(reference: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`reference`, (x, n=, k=, alpha=) -> x / (k + alpha * sum of n squares) ** 0.75, or the kernels."""

    def forward_reference(x, **parameters):
        return (reference(x, **parameters),)

    def gradient_reference(x, dy, **parameters):
        return jax.vjp(functools.partial(reference, **parameters), x)[1](dy)

    def attributes(inputs, results, *, n, k, alpha):
        return {"n": np.int64(n), "k": np.float32(k), "alpha": np.float32(alpha)}

    target = "cnnjax_response_norm"
    forward = make_primitive("response_norm", forward_reference, target, attributes, True)
    backward = make_primitive("response_norm_gradient", gradient_reference, target, attributes, True)
    set_gradient(forward, forward_reference, lambda arrays, _, dy, **p: backward.bind(arrays[0], dy[0], **p))

    def response_norm(x, *, n, k, alpha):
        return forward.bind(x, n=n, k=float(k), alpha=float(alpha))[0]

    return response_norm


def make_max_pool() -> Callable[..., jax.Array]:
    """Maximum pooling (x [B, H, W, C], window, strides, sides) -> [B, H', W', C]; gradient in reverse mode.

    Windows have at most 255 pixels, padding is less than the window; the last of `sides` may be negative.
    """

    def attributes(inputs, results, *, window, strides, sides, **_):
        numbers = {"window": window, "strides": strides, "padding": (*sides[0], *sides[1])}
        return {name: np.array(value, np.int64) for name, value in numbers.items()}

    forward = make_primitive("max_pool", max_windows_and_places, "cnnjax_max_pool", attributes, True)
    backward = make_primitive("max_pool_gradient", _gradient, "cnnjax_max_pool", attributes, True)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
    def pool(x, size, window, strides, sides):
        return forward.bind(x, window=window, strides=strides, sides=sides)[0]

    def pool_forward(x, size, window, strides, sides):
        return tuple(forward.bind(x, window=window, strides=strides, sides=sides))

    def pool_backward(size, window, strides, sides, places, dy):
        return tuple(backward.bind(dy, places, size=size, window=window, strides=strides, sides=sides))

    pool.defvjp(pool_forward, pool_backward)
    return lambda x, window, strides, sides: pool(x, x.shape[1:3], window, strides, sides)


def max_windows_and_places(
    x: jax.Array, *, window: Pair, strides: Pair, sides: Sides
) -> tuple[jax.Array, jax.Array]:
    """Maxima, differentiable in every mode, and the place of each in its window, row-major, as a byte."""
    x = lax.pad(x, np.asarray(-np.inf, x.dtype), ((0, 0, 0), *((*side, 0) for side in sides), (0, 0, 0)))
    height, width = x.shape[1] - window[0] + 1, x.shape[2] - window[1] + 1
    taps = [x[:, i : i + height : strides[0], j : j + width : strides[1]] for i, j in np.ndindex(window)]
    rows, columns = (first_inside(taps[0].shape[1 + i], strides[i], sides[i][0]) for i in range(2))
    first = np.add.outer(np.multiply(rows, window[1]), columns).astype(np.uint8)  # no pixel of the padding
    best, place = taps[0], jnp.broadcast_to(first[None, :, :, None], taps[0].shape)
    for i, value in enumerate(taps[1:], 1):
        better = (value > best) | (value != value)
        best, place = jnp.where(better, value, best), jnp.where(better, jnp.uint8(i), place)
    return best, place


def _gradient(
    dy: jax.Array, places: jax.Array, *, size: Pair, window: Pair, strides: Pair, sides: Sides
) -> tuple[jax.Array]:
    """Each window's gradient at the place of its maximum, summed in float32."""
    wide, zero = dy.astype(jnp.float32), np.float32(0)
    total = jnp.zeros((dy.shape[0], *size, dy.shape[3]), jnp.float32)
    for i, offsets in enumerate(np.ndindex(window)):
        here = jnp.where(places == i, wide, zero)
        spread = [(0, 0, 0)]
        for axis, offset in enumerate(offsets):
            before = offset - sides[axis][0]
            covered = (dy.shape[1 + axis] - 1) * strides[axis] + 1
            spread.append((before, size[axis] - before - covered, strides[axis] - 1))
        total += lax.pad(here, zero, (*spread, (0, 0, 0)))
    return (total.astype(dy.dtype),)
