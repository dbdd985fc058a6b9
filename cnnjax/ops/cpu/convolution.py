"""Convolution by oneDNN or the code beside it, with its gradients to any order."""

import ctypes
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from cnnjax.ops.cpu.channels import channel_sums
from cnnjax.ops.cpu.library import library
from cnnjax.ops.cpu.primitive import Attributes, make_primitive, map_reference
from cnnjax.ops.shapes import Pair, Sides

FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = range(3)
Sizes = tuple[int, ...]


def make_convolution(reference: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`reference`, or the CPU kernels if they are faster.

    Convolution is linear in each of its arrays, and so are its two gradients: each of the three is the
    derivative of the others, so that the kernels serve gradients to any order, forward and reverse.
    `reference` is (x [B, H, W, C], kernel [kh, kw, C / groups, K], strides=, padding=, dilation=, groups=) ->
    y [B, H', W', K], linear in x and in kernel; the result also takes `bias` [K] or None after kernel.
    """

    def with_bias(x, kernel, bias, **parameters):
        return reference(x, kernel, **parameters) + bias[None, None, None]

    def input_gradient(dy, kernel, *, size, **parameters):
        x = jax.ShapeDtypeStruct((dy.shape[0], *size, kernel.shape[2] * parameters["groups"]), dy.dtype)
        return jax.linear_transpose(lambda x: reference(x, kernel, **parameters), x)(dy)[0]

    def kernel_gradient(x, dy, *, window, **parameters):
        shape = (*window, x.shape[3] // parameters["groups"], dy.shape[3])
        kernel = jax.ShapeDtypeStruct(shape, x.dtype)
        return jax.linear_transpose(lambda kernel: reference(x, kernel, **parameters), kernel)(dy)[0]

    def make(name, body, mode):
        return make_primitive(name, body, "cnnjax_convolution", functools.partial(_attributes, mode))

    forward, forward_bias = make("conv", reference, FORWARD), make("conv_bias", with_bias, FORWARD)
    to_input = make("conv_input_gradient", input_gradient, INPUT_GRADIENT)
    to_kernel = make("conv_kernel_gradient", kernel_gradient, KERNEL_GRADIENT)
    _set_gradients(forward, to_input, to_kernel)
    _set_bias_gradients(forward, forward_bias, to_kernel)
    _fold_batches(forward, reference)
    _fold_batches(forward_bias, with_bias)
    _fold_batches(to_input, input_gradient)

    def convolution(x, kernel, bias=None, **p):
        return forward.bind(x, kernel, **p) if bias is None else forward_bias.bind(x, kernel, bias, **p)

    return convolution


def _set_gradients(forward: Primitive, to_input: Primitive, to_kernel: Primitive) -> None:
    """Each of the three is bilinear, and its derivatives are the other two."""
    ad.defbilinear(
        forward,
        lambda dy, x, kernel, **p: to_input.bind(dy, kernel, size=_shape(x)[1:3], **p),
        lambda dy, x, kernel, **p: to_kernel.bind(x, dy, window=_shape(kernel)[:2], **p),
    )
    ad.defbilinear(
        to_input,
        lambda dx, dy, kernel, *, size, **p: forward.bind(dx, kernel, **p),
        lambda dx, dy, kernel, *, size, **p: to_kernel.bind(dx, dy, window=_shape(kernel)[:2], **p),
    )
    ad.defbilinear(
        to_kernel,
        lambda dkernel, x, dy, *, window, **p: to_input.bind(dy, dkernel, size=_shape(x)[1:3], **p),
        lambda dkernel, x, dy, *, window, **p: forward.bind(x, dkernel, **p),
    )


def _set_bias_gradients(forward: Primitive, forward_bias: Primitive, to_kernel: Primitive) -> None:
    """Linear in kernel and bias together, and in x."""

    def jvp(primals, tangents, **p):
        (x, kernel, _), (dx, dkernel, dbias) = primals, tangents
        y = forward_bias.bind(*primals, **p)
        terms = [] if type(dx) is ad.Zero else [forward.bind(dx, kernel, **p)]
        if type(dkernel) is not ad.Zero:
            terms.append(forward_bias.bind(x, dkernel, ad.instantiate_zeros(dbias), **p))
        elif type(dbias) is not ad.Zero:
            terms.append(jnp.broadcast_to(dbias, y.shape))
        return y, functools.reduce(jnp.add, terms)

    def transpose(dy, x, kernel, bias, **p):
        if type(dy) is ad.Zero:
            return None, ad.Zero(kernel.aval), ad.Zero(bias.aval)
        # oneDNN's own gradient of a bias is slow.
        dbias = channel_sums(dy.reshape(1, -1, dy.shape[-1]))[0].astype(dy.dtype)
        return None, to_kernel.bind(x, dy, window=_shape(kernel)[:2], **p), dbias

    ad.primitive_jvps[forward_bias] = jvp
    ad.primitive_transposes[forward_bias] = transpose


def _fold_batches(primitive: Primitive, reference: Callable[..., jax.Array]) -> None:
    """Takes a mapped axis of the images alone as more images; other mapped axes go to the reference."""

    def batch(arrays, axes, **parameters):
        if axes[0] is None or any(axis is not None for axis in axes[1:]):
            return map_reference(reference, arrays, axes, **parameters)
        images = jnp.moveaxis(arrays[0], axes[0], 0)
        y = primitive.bind(images.reshape(-1, *images.shape[2:]), *arrays[1:], **parameters)
        return y.reshape(*images.shape[:2], *y.shape[1:]), 0

    batching.primitive_batchers[primitive] = batch


def _shape(array: jax.Array) -> Sizes:
    return tuple(getattr(array, "aval", array).shape)  # what is being transposed has no shape of its own


def _attributes(
    mode: int,
    inputs: Sequence[ShapedArray],
    results: Sequence[ShapedArray],
    *,
    strides: Pair,
    padding: Sides,
    dilation: Pair,
    groups: int,
    **_: object,
) -> Attributes | None:
    """The call's attributes, or None where there is no fast code for this convolution."""
    first, second, result = (tuple(aval.shape) for aval in (*inputs[:2], results[0]))
    x, kernel, y = ((first, second, result), (result, second, first), (first, result, second))[mode]
    sides, is_bfloat16 = (*padding[0], *padding[1]), inputs[0].dtype == jnp.bfloat16
    numbers = (mode, is_bfloat16, groups, len(inputs) == 3, *x, *kernel, *y, *strides, *sides, *dilation)
    if not _is_fast(tuple(map(int, numbers))):
        return None
    call = {"strides": strides, "padding": sides, "dilation": dilation, "mode": mode, "groups": groups}
    return {name: np.asarray(value, np.int64)[()] for name, value in call.items()}


@functools.lru_cache(4096)
def _is_fast(numbers: Sizes) -> bool:
    array, loaded = (ctypes.c_int64 * len(numbers))(*numbers), library()
    return loaded is not None and bool(loaded.cnnjax_convolution_is_fast(array))
