"""The page of operations: small pictures through a filter, ReLU and pooling, as the package computes them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from cnnjax import ops
from cnnjax.errors import UserError, unknown
from cnnjax.explore import pictures

MAX_SIDE = 64  # of a picture
PICTURES = (*pictures.PICTURES, *pictures.WORDS, "4x4 numbers")
FILTERS = (*pictures.FILTERS, "identity")
POOLS = {"max": ops.max_pool, "average": ops.avg_pool}
LEAST = {"padding": 0, "stride": 1, "window": 1, "pool_stride": 1}
Rows = list[list[float]]


def operation(request: Mapping[str, Any]) -> dict[str, Rows]:
    """The picture after convolution, after ReLU and, if it is large enough, after pooling.

    A request holds image and kernel, rows of numbers; padding, stride, window, pool_stride, whole numbers;
    padding_mode, zero or reflect; pooling, max or average.
    """
    image, kernel = _matrix(request, "image"), _matrix(request, "kernel")
    padding, stride, window, pool_stride = (_count(request, name, least) for name, least in LEAST.items())
    pooling = request.get("pooling")
    if pooling not in POOLS:
        raise unknown("pooling", pooling, POOLS)
    x, w = jnp.asarray(image)[None, :, :, None], jnp.asarray(kernel)[:, :, None, None]
    mode = str(request.get("padding_mode", "zero"))
    convolved = ops.conv2d(x, w, strides=stride, padding=padding, padding_mode=mode)
    rectified = ops.activation("relu")(convolved)
    stages = {"convolution": convolved, "relu": rectified}
    if min(rectified.shape[1:3]) >= window:
        stages["pooling"] = POOLS[pooling](rectified, window, pool_stride)
    return {name: np.asarray(value)[0, :, :, 0].round(4).tolist() for name, value in stages.items()}


def example(picture: str, kernel: str) -> dict[str, Rows | int]:
    """A picture and a filter by name; the filter's weights are to be divided by `divisor`."""
    if picture not in PICTURES:
        raise unknown("picture", picture, PICTURES)
    if kernel not in FILTERS:
        raise unknown("filter", kernel, FILTERS)
    image = pictures.POOLING if picture == PICTURES[-1] else pictures.picture(picture)
    divisor = 9 if kernel in pictures.FILTERS else 1
    weights = divisor * pictures.feature(kernel) if kernel in pictures.FILTERS else np.ones((1, 1))
    return {"image": image.tolist(), "kernel": weights.round().astype(int).tolist(), "divisor": divisor}


def _matrix(request: Mapping[str, Any], name: str) -> np.ndarray:
    try:
        matrix = np.asarray(request[name], np.float32)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{name} must be rows of numbers, all of one length") from None
    if matrix.ndim != 2 or not 0 < max(matrix.shape) <= MAX_SIDE or not np.isfinite(matrix).all():
        raise UserError(f"{name} must be rows of finite numbers, at most {MAX_SIDE} by {MAX_SIDE}")
    return matrix


def _count(request: Mapping[str, Any], name: str, least: int) -> int:
    value = request.get(name)
    if type(value) is not int or not least <= value <= MAX_SIDE:
        raise UserError(f"{name}={value!r}; allowed: a whole number from {least} to {MAX_SIDE}")
    return value
