"""Pooling: one number for each window of each channel.

XLA:CPU needs tens of milliseconds for the gradient of `lax.reduce_window`. Here the forward pass of max
pooling records the position of each maximum (one byte per axis), and the backward pass compares it with the
position of each pixel: element-wise loops, 5 to 30 times faster, with one rule for ties.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from cnnjax.errors import UserError
from cnnjax.ops.cpu import channel_sums, make_max_pool, takes
from cnnjax.ops.portable import is_portable, max_windows, sum_windows
from cnnjax.ops.shapes import (
    Padding,
    Pair,
    Sides,
    Size,
    first_inside,
    pair,
    pool_output_size,
    resolve_padding,
)

Places = tuple[Array, Array]  # row and column of each maximum in its window


def max_pool(
    x: Array, window: Size, strides: Size | None = None, padding: Padding = 0, ceil: bool = False
) -> Array:
    """The largest value of each window.

    float [B, H, W, C] -> [B, H', W', C] of the dtype of x. `window` and `strides` (None: the window) are an
    int or (height, width); `padding` (see `shapes.resolve_padding`), less than the window on each side, is
    never counted; `ceil` rounds the output size up (see `shapes.pool_output_size`). The gradient (reverse
    mode only) goes to the first maximum of a window in row-major order, also on ties, as
    `lax.reduce_window`'s and torch's do. NaN wins over any number.
    Raises: UserError if x is not float [B, H, W, C] or sizes do not fit.
    """
    shape, steps, sides, _ = _windows(x, window, strides, padding, ceil)
    if is_portable():
        return max_windows(x, shape, steps, sides)
    # With few channels, or windows that do not overlap, XLA is as fast, as it fuses what is around.
    overlap = shape[0] > steps[0] or shape[1] > steps[1]
    if overlap and x.shape[3] >= 32 and shape[0] * shape[1] <= 255 and takes(x):
        return _max_pool_on_cpu(x, shape, steps, sides)
    padded, before = _pad(x, sides, -np.inf), (sides[0][0], sides[1][0])
    if shape == padded.shape[1:3]:  # one window, over these pixels
        return _one_window(x[:, : shape[0] - before[0], : shape[1] - before[1]], steps)
    return _window_maxima(padded, padded.shape[1:3], shape, steps, before)


_max_pool_on_cpu = make_max_pool()


def min_pool(
    x: Array, window: Size, strides: Size | None = None, padding: Padding = 0, ceil: bool = False
) -> Array:
    """The smallest value of each window; arguments, gradient and errors as for `max_pool`."""
    return -max_pool(-x, window, strides, padding, ceil)


def avg_pool(
    x: Array,
    window: Size,
    strides: Size | None = None,
    padding: Padding = 0,
    ceil: bool = False,
    *,
    count_padding: bool = False,
) -> Array:
    """The mean of each window, over the pixels of the image that it covers; arguments as for `max_pool`.

    `count_padding` divides by the pixels of image and padding together (never pixels beyond them because of
    `ceil`), as torch and Caffe do by default. Sums are in float32.
    """
    shape, steps, sides, asked = _windows(x, window, strides, padding, ceil)
    counted = asked if count_padding else ((0, 0), (0, 0))
    return _weighted_mean(x, np.ones(shape), steps, sides, counted)


def l2_pool(
    x: Array, window: Size, strides: Size | None = None, padding: Padding = 0, ceil: bool = False
) -> Array:
    """The root of the sum (not the mean) of a window's squares, in float32; gradient 0 if all are zeros."""
    shape, steps, sides, _ = _windows(x, window, strides, padding, ceil)
    total = _weighted_sum(jnp.square(widen(x)), np.ones(shape), steps, sides)
    return jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total))).astype(x.dtype)


def center_weighted_pool(
    x: Array, window: Size, strides: Size | None = None, padding: Padding = 0, ceil: bool = False
) -> Array:
    """The average of each window, weighted by the distance d from the window's centre.

    The weight of a pixel is the Gaussian exp(-(dy / sy)^2 / 2 - (dx / sx)^2 / 2) with standard deviations
    sy, sx of a quarter of the window's height and width; the weights of the pixels inside the image are
    scaled to sum to 1. Arguments and errors as for `max_pool`; sums are in float32.
    """
    shape, steps, sides, _ = _windows(x, window, strides, padding, ceil)
    rows, columns = (np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in shape)
    return _weighted_mean(x, np.outer(rows, columns), steps, sides, ((0, 0), (0, 0)))


def subsample(
    x: Array, window: Size, strides: Size | None = None, padding: Padding = 0, ceil: bool = False
) -> Array:
    """The first pixel of each window, 0 in the padding: a convolution before it becomes a strided one."""
    shape, steps, sides, _ = _windows(x, window, strides, padding, ceil)
    x = _pad(x, sides, 0.0)
    return x[:, : x.shape[1] - shape[0] + 1 : steps[0], : x.shape[2] - shape[1] + 1 : steps[1]]


def adaptive_windows(size: int, output_size: int) -> tuple[tuple[int, int], ...]:
    """The windows [start, end) of an adaptive pooling: floor(i W / O) to ceil((i + 1) W / O).

    They cover the W = `size` pixels evenly, overlap where O = `output_size` does not divide W, and repeat
    pixels where O > W; this is torch's definition (`torch.nn.AdaptiveAvgPool2d`).
    """
    if size < 1 or output_size < 1:
        given = f"adaptive pooling of size {size} to output_size {output_size}"
        raise UserError(f"{given}: both must be at least 1")
    return tuple((i * size // output_size, -(-(i + 1) * size // output_size)) for i in range(output_size))


def adaptive_max_pool(x: Array, output_size: Size) -> Array:
    """The largest value of each of `adaptive_windows`: [B, H, W, C] -> [B, *output_size, C]."""
    _check_image(x)
    height, width = pair(output_size, "output_size")
    if x.shape[1] % height == 0 and x.shape[2] % width == 0:
        return max_pool(x, (x.shape[1] // height, x.shape[2] // width))
    return _adaptive_max(_adaptive_max(x, 2, width), 1, height)


def adaptive_avg_pool(x: Array, output_size: Size) -> Array:
    """The mean of each of the windows of `adaptive_max_pool`, summed in float32."""
    _check_image(x)
    height, width = pair(output_size, "output_size")
    if x.shape[1] % height == 0 and x.shape[2] % width == 0:
        return avg_pool(x, (x.shape[1] // height, x.shape[2] // width))
    return _adaptive_mean(_adaptive_mean(widen(x), 2, width), 1, height).astype(x.dtype)


def global_avg_pool(x: Array) -> Array:
    """The mean of each channel: float [B, H, W, C] -> [B, C] of the dtype of x, summed in float32."""
    _check_image(x)
    if takes(x) and (size := x.shape[1] * x.shape[2]) > 1:
        return (channel_sums(x) / size).astype(x.dtype)
    return widen(x).mean((1, 2)).astype(x.dtype)


def global_max_pool(x: Array) -> Array:
    """The largest value of each channel: float [B, H, W, C] -> [B, C], gradient as for `max_pool`."""
    _check_image(x)
    size = x.shape[1] * x.shape[2]
    return x.max((1, 2)) if is_portable() else _first_max(x.reshape(x.shape[0], size, x.shape[3]), size)


def _one_window(x: Array, strides: Pair) -> Array:
    """The largest value of each channel, [B, 1, 1, C]; a trace sees maps alone, and the strides."""
    size = x.shape[1] * x.shape[2]
    best = _first_max(x.reshape(x.shape[0], size, 1, x.shape[3]), size)[:, None]
    return lax.slice(best, (0, 0, 0, 0), best.shape, (1, *strides, 1))


def _adaptive_max(x: Array, axis: int, output_size: int) -> Array:
    # A window shorter than the longest one repeats its last pixel, which changes no maximum and,
    # as only a larger value replaces an earlier one, no gradient.
    start, end = np.array(adaptive_windows(x.shape[axis], output_size)).T
    best = jnp.take(x, start, axis=axis)
    for i in range(1, (end - start).max()):
        value = jnp.take(x, np.minimum(start + i, end - 1), axis=axis)
        best = jnp.where(_beats(value, best), value, best)
    return best


def _adaptive_mean(x: Array, axis: int, output_size: int) -> Array:
    start, end = np.array(adaptive_windows(x.shape[axis], output_size)).T
    total = jnp.take(x, start, axis=axis)
    for i in range(1, (end - start).max()):
        inside = _along(start + i < end, axis, x.ndim)
        total += jnp.where(inside, jnp.take(x, np.minimum(start + i, end - 1), axis=axis), 0)
    return total / _along(end - start, axis, x.ndim).astype(x.dtype)


def _weighted_sum(x: Array, weights: np.ndarray, strides: Pair, sides: Sides) -> Array:
    """Sum of weight times value over each window, zeros around the image."""
    if is_portable():
        return sum_windows(x, weights, strides, sides)
    x, weights = _pad(x, sides, 0), weights.astype(x.dtype)
    if weights.shape == strides:
        height, width = (size // s for size, s in zip(x.shape[1:3], strides, strict=True))
        cut = x.reshape(x.shape[0], height, strides[0], width, strides[1], x.shape[3])
        return (cut * weights[None, None, :, None, :, None]).sum((2, 4))
    height, width = x.shape[1] - weights.shape[0] + 1, x.shape[2] - weights.shape[1] + 1
    places = np.ndindex(weights.shape)
    taps = (x[:, i : i + height : strides[0], j : j + width : strides[1]] for i, j in places)
    return functools.reduce(jnp.add, map(operator.mul, weights.flat, taps))


def _pad(x: Array, sides: Sides, value: float) -> Array:
    return lax.pad(x, np.asarray(value, x.dtype), ((0, 0, 0), *((*side, 0) for side in sides), (0, 0, 0)))


def _weighted_mean(x: Array, weights: np.ndarray, strides: Pair, sides: Sides, counted: Sides) -> Array:
    """The weighted sum of each window over the weight that lies on the image and the counted padding."""
    ones = np.ones((x.shape[1] + sum(counted[0]), x.shape[2] + sum(counted[1])))
    uncounted = [(max(a - c, 0), max(b - d, 0)) for (a, b), (c, d) in zip(sides, counted, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(np.pad(ones, uncounted), weights.shape)
    coverage = np.einsum("hwij,ij->hw", views[:: strides[0], :: strides[1]], weights)
    total = _weighted_sum(widen(x), weights, strides, sides)
    return (total / coverage[None, :, :, None].astype(total.dtype)).astype(x.dtype)


def _windows(
    x: Array, window: Size, strides: Size | None, padding: Padding, ceil: bool
) -> tuple[Pair, Pair, Sides, Sides]:
    """Window, strides, the padding that the windows fill (< 0 if they leave pixels out), the one asked."""
    _check_image(x)
    shape = pair(window, "window")
    steps = shape if strides is None else pair(strides, "strides")
    asked = resolve_padding(padding, shape, steps, 1, x.shape[1:3])

    def filled(axis: int) -> tuple[int, int]:
        size, before = x.shape[1 + axis], asked[axis][0]
        count = pool_output_size(size, shape[axis], steps[axis], asked[axis], ceil)
        return before, (count - 1) * steps[axis] + shape[axis] - size - before

    return shape, steps, (filled(0), filled(1)), asked


def _check_image(x: Array) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"pooling of x {x.dtype} {x.shape}: allowed is float [B, H, W, C]")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _window_maxima(x: Array, size: Pair, window: Pair, strides: Pair, before: Pair) -> Array:
    """Maximum of each window of images of that size; the gradient goes to the first maximum.

    `before` is how much of -inf stands above and left, to which no gradient goes.
    """
    return _max_forward(x, size, window, strides, before)[0]


def _max_forward(x: Array, size: Pair, window: Pair, strides: Pair, before: Pair) -> tuple[Array, Places]:
    # First along the columns, then the rows: so the first maximum is the first in row-major order.
    best, column = _max_along(x, 2, window[1], strides[1], before[1])
    best, row = _max_along(best, 1, window[0], strides[0], before[0])
    return best, (row, column)


def _max_backward(
    size: Pair, window: Pair, strides: Pair, before: Pair, places: Places, grad: Array
) -> tuple[Array]:
    total = widen(grad) if window[0] > strides[0] or window[1] > strides[1] else grad
    for axis in range(2):
        total = _send_back(total, places[axis], axis + 1, size[axis], window[axis], strides[axis])
    return (total.astype(grad.dtype),)


_window_maxima.defvjp(_max_forward, _max_backward)


def _max_along(x: Array, axis: int, window: int, stride: int, before: int) -> tuple[Array, Array]:
    """Maximum of windows along one axis, and its first place in the window that lies past `before`."""
    last = (x.shape[axis] - window) // stride * stride
    best = lax.slice_in_dim(x, 0, last + 1, stride, axis)
    first = np.array(first_inside(best.shape[axis], stride, before), np.min_scalar_type(window + stride))
    place = jnp.broadcast_to(_along(first, axis, x.ndim), best.shape)
    for i in range(1, window):
        value = lax.slice_in_dim(x, i, i + last + 1, stride, axis)
        better = _beats(value, best)
        best, place = jnp.where(better, value, best), jnp.where(better, jnp.asarray(i, place.dtype), place)
    return best, place


def _send_back(grad: Array, place: Array, axis: int, size: int, window: int, stride: int) -> Array:
    """Gradient of `_max_along`: each window's value at the place that won, summed, zeros elsewhere.

    Pixel stride * a + r is place r + stride * d of window a - d: for each d one comparison of all pixels,
    laid out as [.., a, r, ..].
    """
    starts, reach = -(-size // stride), -(-window // stride)
    around = [(0, 0, 0)] * grad.ndim
    around[axis] = (reach - 1, starts - grad.shape[axis], 0)
    padded = [lax.pad(y, np.zeros((), y.dtype), around) for y in (place, grad)]
    terms = []
    for d in range(reach):
        begin = reach - 1 - d
        slices = (lax.slice_in_dim(y, begin, begin + starts, axis=axis) for y in padded)
        winner, value = (jnp.expand_dims(y, axis + 1) for y in slices)
        here = _along(np.arange(stride) + stride * d, axis + 1, grad.ndim + 1)
        terms.append(jnp.where(winner == here.astype(place.dtype), value, 0))
    shape = (*grad.shape[:axis], starts * stride, *grad.shape[axis + 1 :])
    return lax.slice_in_dim(functools.reduce(jnp.add, terms).reshape(shape), 0, size, axis=axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _first_max(x: Array, size: int) -> Array:
    """Maximum over the pixels of [B, size, ..., C]; the gradient goes to the first one among equals."""
    return x.max(1)


def _first_max_forward(x: Array, size: int) -> tuple[Array, Array]:
    best, place = x.max(1), lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return best, jnp.where((x == best[:, None]) | (x != x), place, size).min(1)


def _first_max_backward(size: int, first: Array, grad: Array) -> tuple[Array]:
    place = lax.broadcasted_iota(jnp.int32, (grad.shape[0], size, *grad.shape[1:]), 1)
    return (jnp.where(place == first[:, None], grad[:, None], 0),)


_first_max.defvjp(_first_max_forward, _first_max_backward)


def widen(x: Array) -> Array:
    """x in float32, or in its own dtype where that is wider."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Values [N] as [1, .., N, .., 1] with N at this axis."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _beats(value: Array, best: Array) -> Array:
    """Whether a value takes the place of the largest so far: NaN always does."""
    return (value > best) | (value != value)
