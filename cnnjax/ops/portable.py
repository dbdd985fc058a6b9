"""Pooling as one operation, for exports: converters would write out every slice that `pooling` takes."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cnnjax.ops.cpu import paused
from cnnjax.ops.shapes import Pair, Sides

_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Functions traced inside use operations that converters know, and none of this package's kernels."""
    token = _portable.set(True)
    try:
        with paused("for export"):
            yield
    finally:
        _portable.reset(token)


def is_portable() -> bool:
    """Whether the current trace is for an export."""
    return _portable.get()


def pad(x: jax.Array, sides: Sides, value: float) -> jax.Array:
    """Pads [B, H, W, C] with one value; negative padding crops."""
    for axis, (before, after) in enumerate(sides, 1):
        if min(before, after) < 0:
            x = lax.slice_in_dim(x, max(0, -before), x.shape[axis] - max(0, -after), axis=axis)
    border = [(max(0, before), max(0, after)) for before, after in sides]
    # Not `lax.pad`, which jax2onnx 0.13 to 0.17 cannot convert for batches of any size.
    return jnp.pad(x, ((0, 0), *border, (0, 0)), constant_values=value) if np.any(border) else x


def max_windows(x: jax.Array, window: Pair, strides: Pair, sides: Sides) -> jax.Array:
    """The largest value of each window: float [B, H, W, C] -> [B, H', W', C]."""
    return nn.max_pool(pad(x, sides, -np.inf), window_shape=window, strides=strides, padding="VALID")


def sum_windows(x: jax.Array, weights: np.ndarray, strides: Pair, sides: Sides) -> jax.Array:
    """The sum of weight times value of each window, zeros around the image: a convolution of each channel."""
    channels = x.shape[3]
    kernel = jnp.broadcast_to(jnp.asarray(weights, x.dtype)[:, :, None, None], (*weights.shape, 1, channels))
    convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return convolve(pad(x, sides, 0.0), kernel, strides, "VALID", feature_group_count=channels)
