"""Maximum pooling and its gradient."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from cnnjax.ops.cpu.primitive import make_primitive
from cnnjax.ops.shapes import Pair, Sides


def make_max_pool() -> Callable[..., Array]:
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


def max_windows_and_places(x: Array, *, window: Pair, strides: Pair, sides: Sides) -> tuple[Array, Array]:
    """Maxima, differentiable in every mode, and the place of each in its window, row-major, as a byte."""
    x = lax.pad(x, np.asarray(-np.inf, x.dtype), ((0, 0, 0), *((*side, 0) for side in sides), (0, 0, 0)))
    height, width = x.shape[1] - window[0] + 1, x.shape[2] - window[1] + 1
    taps = [x[:, i : i + height : strides[0], j : j + width : strides[1]] for i, j in np.ndindex(window)]
    best, place = taps[0], jnp.zeros(taps[0].shape, jnp.uint8)
    for i, value in enumerate(taps[1:], 1):
        better = (value > best) | (value != value)
        best, place = jnp.where(better, value, best), jnp.where(better, jnp.uint8(i), place)
    return best, place


def _gradient(
    dy: Array, places: Array, *, size: Pair, window: Pair, strides: Pair, sides: Sides
) -> tuple[Array]:
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
