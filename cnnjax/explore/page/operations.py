"""Operations by hand: small pictures through a filter, ReLU and pooling, as the package computes them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from cnnjax import ops
from cnnjax.data.files import check_kind
from cnnjax.errors import UserError, by_name, unknown
from cnnjax.explore import pictures

MAX_SIDE = 64  # of a picture
PICTURES = (*pictures.PICTURES, *pictures.WORDS, "4x4 numbers")
FILTERS = (*pictures.FILTERS, "identity")
POOLS = {"max": ops.max_pool, "average": ops.avg_pool}
LEAST = {"padding": 0, "stride": 1, "window": 1, "pool_stride": 1}
LARGEST = 1_000_000  # number of a picture or a filter
Rows = list[list[float]]
Answer = dict[str, Any]  # becomes JSON, or was


def operation(request: Answer) -> dict[str, Rows]:
    """The picture after convolution, after ReLU and, if it is large enough, after pooling.

    A request holds image and kernel, rows of numbers; padding, stride, window, pool_stride, whole numbers;
    padding_mode, zero or reflect; pooling, max or average.
    """
    names = ("image", "kernel", *LEAST, "padding_mode", "pooling")
    if request.keys() - {"divisor"} != set(names):  # which an example has too
        raise UserError(f"a value is missing or unknown: {sorted(request)}; allowed: {', '.join(names)}")
    image, kernel = _matrix(request, "image"), _matrix(request, "kernel")
    padding, stride, window, pool_stride = (_count(request, name, least) for name, least in LEAST.items())
    pool, mode = by_name("pooling", str(request["pooling"]), POOLS), str(request["padding_mode"])
    x, w = jnp.asarray(image)[None, :, :, None], jnp.asarray(kernel)[:, :, None, None]
    convolved = ops.conv2d(x, w, strides=stride, padding=padding, padding_mode=mode)
    rectified = ops.activation("relu")(convolved)
    stages = {"convolution": convolved, "relu": rectified}
    if min(rectified.shape[1:3]) >= window:
        stages["pooling"] = pool(rectified, window, pool_stride)
    return {name: np.asarray(value)[0, :, :, 0].round(4).tolist() for name, value in stages.items()}


def example(picture: str, kernel: str) -> dict[str, Rows | int]:
    """A picture and a filter by name; the filter's weights are to be divided by `divisor`."""
    if picture not in PICTURES:
        raise unknown("picture", picture, PICTURES)
    if kernel not in FILTERS:
        raise unknown("filter", kernel, FILTERS)
    image = pictures.POOLING if picture == PICTURES[-1] else pictures.picture(picture)
    weights, divisor = (np.ones((1, 1)), 1) if kernel == "identity" else (9 * pictures.feature(kernel), 9)
    return {"image": image.tolist(), "kernel": weights.round().astype(int).tolist(), "divisor": divisor}


def _matrix(request: Answer, name: str) -> np.ndarray:
    try:
        check_kind(request[name], list[list[float]])
        matrix = np.asarray(request[name], np.float64)
        if matrix.size > 0 and max(matrix.shape) <= MAX_SIDE and np.abs(matrix).max() <= LARGEST:
            return matrix.astype(np.float32)
    except (ValueError, OverflowError):  # also for rows of several lengths
        pass
    allowed = f"finite numbers up to {LARGEST}, all of one length, at most {MAX_SIDE} by {MAX_SIDE}"
    raise UserError(f"{name} must be rows of numbers: {allowed}")


def _count(request: Answer, name: str, least: int) -> int:
    value = request[name]
    if type(value) is not int or not least <= value <= MAX_SIDE:
        raise UserError(f"{name}={value!r}; allowed: a whole number from {least} to {MAX_SIDE}")
    return value
