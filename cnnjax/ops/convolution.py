"""Convolution in two dimensions: features matched at every place of an image."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from cnnjax.errors import UserError, unknown
from cnnjax.ops.cpu import make_convolution, takes
from cnnjax.ops.mesh import axis_size
from cnnjax.ops.shapes import Padding, Pair, Sides, Size, conv_output_size, pair, resolve_padding

PADDING_MODES = ("zero", "reflect")


def conv2d(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    strides: Size = 1,
    padding: Padding = "valid",
    padding_mode: str = "zero",
    groups: int = 1,
    dilation: Size = 1,
) -> Array:
    """Cross-correlates images with a bank of filters (the kernel is not flipped).

    On CPUs with AVX2 or AVX-512, float32 windows of 3x3 and 5x5 and their gradients use Winograd's method if
    it is faster. Results are within 1e-5 of direct sums, as with all CPU kernels, but an exact zero (the
    gradient of a pixel that an output does not see) may be about 1e-7 instead. A NaN or infinity in x
    spreads over whole tiles of up to 4x4 outputs, beyond those that see its pixel.

    x is float [B, H, W, C], kernel [kh, kw, C / groups, K] of its dtype, bias [K]; the result is [B, H', W',
    K] of that dtype, summed in float32. strides and dilation (pixels between two taps of a filter) are an int
    or (height, width); padding is as in `shapes.resolve_padding`; padding_mode is "zero" or "reflect"
    (mirrored at the border pixel, which is not repeated; needs less padding on a side than the axis has
    pixels). Each of the groups of channels has its own K / groups filters.
    Raises: UserError if ranks, dtypes, channels, groups or sizes do not fit.
    """
    if padding_mode not in PADDING_MODES:
        raise unknown("padding_mode", padding_mode, PADDING_MODES)
    steps, spread = pair(strides, "strides"), pair(dilation, "dilation")
    _check_arrays(x, kernel, bias, groups)
    sides = resolve_padding(padding, kernel.shape[:2], steps, spread, x.shape[1:3])
    for axis in range(2):
        conv_output_size(x.shape[1 + axis], kernel.shape[axis], steps[axis], sides[axis], spread[axis])
    if padding_mode == "reflect":
        x, sides = _reflect(x, sides), ((0, 0), (0, 0))
    convolve = functools.partial(_in_xla, strides=steps, padding=sides, dilation=spread)
    if groups > 1 and max(axis_size("data"), axis_size("model")) > 1:
        y = _groups_on_mesh(convolve, x, kernel, groups)
    elif takes(x, kernel):
        bias = None if bias is None else bias.astype(x.dtype)
        return _on_cpu(x, kernel, bias, strides=steps, padding=sides, dilation=spread, groups=groups)
    else:
        y = convolve(x, kernel, groups=groups)
    return y if bias is None else y + bias.astype(y.dtype)[None, None, None]


def _groups_on_mesh(convolve: Callable[..., Array], x: Array, kernel: Array, groups: int) -> Array:
    """Each device convolves its own examples, and its own groups if the devices on `model` divide them.

    XLA's partitioner would compute depthwise convolutions on every device, and where a device holds part of
    a group the kernel's gradient wrongly (too large by the devices on that axis, in jaxlib 0.10 and 0.12).
    """
    data, model = axis_size("data"), axis_size("model")
    examples = "data" if data > 1 and x.shape[0] % data == 0 else None
    channels = "model" if model > 1 and groups % model == 0 else None
    local = functools.partial(convolve, groups=groups // model if channels else groups)
    images, kernels = P(examples, None, None, channels), P(None, None, None, channels)
    return jax.shard_map(local, in_specs=(images, kernels), out_specs=images)(x, kernel)


def _in_xla(x: Array, kernel: Array, *, strides: Pair, padding: Sides, dilation: Pair, groups: int) -> Array:
    # XLA sums bfloat16 products in float32 on every platform and rounds the result once. Asking
    # for it with preferred_element_type would only turn the gradient's convolutions to float32.
    convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return convolve(x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups)


_on_cpu = make_convolution(_in_xla)


def _reflect(x: Array, sides: Sides) -> Array:
    for name, size, (before, after) in zip("HW", x.shape[1:3], sides, strict=True):
        if max(before, after) >= size:
            given = f"reflect padding {before} + {after} of axis {name} with {size} pixels"
            raise UserError(f"{given}: each side must be smaller than the axis")
    return jnp.pad(x, ((0, 0), *sides, (0, 0)), mode="reflect")


def _check_arrays(x: Array, kernel: Array, bias: Array | None, groups: int) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        given = f"conv2d of x {x.shape} with kernel {kernel.shape}"
        raise UserError(f"{given}: allowed are x [B, H, W, C] and kernel [kh, kw, C / groups, K]")
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        given = f"conv2d of x {x.dtype} with kernel {kernel.dtype}"
        raise UserError(f"{given}: both must have one float dtype; convert one with astype")
    channels, features = x.shape[3], kernel.shape[3]
    if groups < 1 or channels % groups or features % groups:
        raise UserError(f"groups {groups}: must divide x's {channels} channels and the {features} filters")
    if (read := kernel.shape[2] * groups) != channels:
        given = f"kernel {kernel.shape} with groups {groups} reads {read} channels, x has {channels}"
        raise UserError(f"{given}: its third size must be {channels // groups}")
    if bias is not None and bias.shape != (features,):
        raise UserError(f"bias {bias.shape}: must be ({features},), one for each filter")
