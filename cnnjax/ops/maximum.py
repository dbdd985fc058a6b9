"""The largest value of each window and its gradient, by XLA.

XLA:CPU needs tens of milliseconds for the gradient of `lax.reduce_window`. Here the forward pass notes which
place won (a byte an axis), and the backward pass compares that with the place of each pixel: element-wise
loops, 5 to 30 times faster, one contract on ties.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.ops.shapes import Pair

Places = tuple[jax.Array, jax.Array]  # row and column of each maximum in its window


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def window_maxima(x: jax.Array, size: Pair, window: Pair, strides: Pair) -> jax.Array:
    """Maximum of each window of images of that size; the gradient goes to the first maximum."""
    return _max_forward(x, size, window, strides)[0]


def _max_forward(x: jax.Array, size: Pair, window: Pair, strides: Pair) -> tuple[jax.Array, Places]:
    # First along the columns, then the rows: so the first maximum is the first in row-major order.
    best, column = _max_along(x, 2, window[1], strides[1])
    best, row = _max_along(best, 1, window[0], strides[0])
    return best, (row, column)


def _max_backward(
    size: Pair, window: Pair, strides: Pair, places: Places, grad: jax.Array
) -> tuple[jax.Array]:
    overlap = window[0] > strides[0] or window[1] > strides[1]
    total = widen(grad) if overlap else grad
    for axis in range(2):
        total = _send_back(total, places[axis], axis + 1, size[axis], window[axis], strides[axis])
    return (total.astype(grad.dtype),)


window_maxima.defvjp(_max_forward, _max_backward)


def _max_along(x: jax.Array, axis: int, window: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """Maximum of windows along one axis, and the first place in the window where it stands."""
    last = (x.shape[axis] - window) // stride * stride
    best = lax.slice_in_dim(x, 0, last + 1, stride, axis)
    place = jnp.zeros(best.shape, np.min_scalar_type(window + stride))
    for i in range(1, window):
        value = lax.slice_in_dim(x, i, i + last + 1, stride, axis)
        better = beats(value, best)
        best = jnp.where(better, value, best)
        place = jnp.where(better, jnp.asarray(i, place.dtype), place)
    return best, place


def _send_back(
    grad: jax.Array, place: jax.Array, axis: int, size: int, window: int, stride: int
) -> jax.Array:
    """Gradient of `_max_along`: each window's value at the place that won, summed, zeros elsewhere.

    Pixel stride * a + r is place r + stride * d of window a - d: for each d that is one
    comparison of all pixels, laid out as [.., a, r, ..].
    """
    starts, reach = -(-size // stride), -(-window // stride)
    around = [(0, 0, 0)] * grad.ndim
    around[axis] = (reach - 1, starts - grad.shape[axis], 0)
    place = lax.pad(place, np.zeros((), place.dtype), around)
    padded = lax.pad(grad, np.zeros((), grad.dtype), around)
    terms = []
    for d in range(reach):
        begin = reach - 1 - d
        winner, value = (lax.slice_in_dim(y, begin, begin + starts, axis=axis) for y in (place, padded))
        winner, value = jnp.expand_dims(winner, axis + 1), jnp.expand_dims(value, axis + 1)
        here = along(np.arange(stride) + stride * d, axis + 1, grad.ndim + 1)
        terms.append(jnp.where(winner == here.astype(place.dtype), value, 0))
    shape = (*grad.shape[:axis], starts * stride, *grad.shape[axis + 1 :])
    return lax.slice_in_dim(functools.reduce(jnp.add, terms).reshape(shape), 0, size, axis=axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def first_max(x: jax.Array, size: int) -> jax.Array:
    """Maximum over the pixels of [B, size, C]; the gradient goes to the first one among equals."""
    return x.max(1)


def _first_max_forward(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    best = x.max(1)
    place = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    equal = (x == best[:, None]) | (x != x)
    return best, jnp.where(equal, place, size).min(1)


def _first_max_backward(size: int, first: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    place = lax.broadcasted_iota(jnp.int32, (grad.shape[0], size, grad.shape[1]), 1)
    return (jnp.where(place == first[:, None], grad[:, None], 0),)


first_max.defvjp(_first_max_forward, _first_max_backward)


def widen(x: jax.Array) -> jax.Array:
    """x in float32, or in its own dtype where that is wider."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Values [N] as [1, .., N, .., 1] with N at this axis."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def beats(value: jax.Array, best: jax.Array) -> jax.Array:
    """Whether a value takes the place of the largest so far: NaN always does."""
    return (value > best) | (value != value)
