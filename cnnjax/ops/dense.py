"""A matrix product whose gradient uses products of the same dtype."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from cnnjax.ops.convolution import conv2d
from cnnjax.ops.cpu import takes
from cnnjax.ops.cpu.primitive import make_primitive, set_gradient
from cnnjax.ops.mesh import is_manual
from cnnjax.ops.portable import is_portable


def dense(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, dtype: DTypeLike | None = None
) -> jax.Array:
    """A fully connected layer on the last axis, summed in float32: [..., K] of `dtype`, by default that of x.

    x is float [..., C], kernel float32 [C, K], rounded to the dtype of x, bias float32 [K]. Products are of
    the dtype of x and sums float32, in the gradient too, for which that of the result is rounded to the dtype
    of x; that of the kernel is not rounded again. Forward mode, further derivatives, and inside `shard_map`
    the gradient, are the product's.
    """
    if dtype is None and x.ndim == 4 and not is_portable() and takes(x, kernel):
        return conv2d(x, kernel.astype(x.dtype)[None, None], bias)
    narrow = x.dtype == jnp.bfloat16 and not is_portable() and not is_manual()
    y = _dense.bind(x, kernel)[0] if narrow else _product(x, kernel)[0]
    if bias is not None:
        y = y + lax.expand_dims(bias, range(y.ndim - 1))
    return y.astype(dtype or x.dtype)


def _product(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array]:
    return (jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32),)


def _gradient(
    arrays: Sequence[jax.Array], _: Sequence[jax.Array], cotangents: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), dy = arrays, cotangents[0].astype(arrays[0].dtype)
    rows = tuple(range(x.ndim - 1))
    sums = jnp.float32
    dx = lax.dot_general(dy, kernel.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())), None, sums)
    dkernel = lax.dot_general(x, dy, ((rows, rows), ((), ())), None, sums)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_dense = make_primitive("dense", _product, multiple_results=True)
set_gradient(_dense, _product, _gradient)
