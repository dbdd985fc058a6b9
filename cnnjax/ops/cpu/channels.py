"""Activations, LayerNorm, sums and products of channels, with their gradients, and arrays computed once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad

from cnnjax.ops.cpu.library import takes
from cnnjax.ops.cpu.primitive import make_primitive, set_gradient


def make_activation(name: str, reference: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """`reference`, "gelu" (exact) or "silu" of x [...], or the kernels."""

    def forward_reference(x):
        return (reference(x),)

    def gradient_reference(x, dy):
        return jax.vjp(reference, x)[1](dy)

    def attributes(inputs, results):
        return {"silu": np.bool_(name == "silu")} if inputs[0].ndim else None

    target = "cnnjax_activation"
    forward = make_primitive(name, forward_reference, target, attributes, True, lambda x: (x,))
    backward = make_primitive(
        f"{name}_gradient", gradient_reference, target, attributes, True, lambda x, _: (x,)
    )
    set_gradient(forward, forward_reference, lambda arrays, _, dy: backward.bind(arrays[0], dy[0]))
    return lambda x: forward.bind(x)[0]


def make_layer_norm(reference: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`reference`, or the kernels: (x [..., C], float32 scale [C], bias [C], epsilon=) -> y like x."""

    def forward_reference(x, scale, bias, **parameters):
        return (reference(x, scale, bias, **parameters),)

    def gradient_reference(x, dy, scale, *, epsilon):
        bias = jnp.zeros_like(scale)  # has no part in the gradient
        return jax.vjp(lambda *arrays: reference(*arrays, epsilon=epsilon), x, scale, bias)[1](dy)

    def attributes(inputs, results, *, epsilon):
        return {"epsilon": np.float32(epsilon)}

    def alike(x, dy, scale, **_):
        return x, scale, scale

    def gradient(arrays, results, cotangents, **parameters):
        return backward.bind(arrays[0], cotangents[0], arrays[1], **parameters)

    target = "cnnjax_layer_norm"
    forward = make_primitive("layer_norm", forward_reference, target, attributes, True)
    backward = make_primitive("layer_norm_gradient", gradient_reference, target, attributes, True, alike)
    set_gradient(forward, forward_reference, gradient)
    return lambda x, scale, bias, *, epsilon: forward.bind(x, scale, bias, epsilon=float(epsilon))[0]


def _rows(x: jax.Array | ShapedArray) -> range:
    """The axes of the rows: if a kernel read them as one, XLA would copy bfloat16 images for it."""
    return range(1, x.ndim - 1)


def _sum(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).sum(_rows(x))


def _dot(x: jax.Array, by: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) * by.astype(jnp.float32)).sum(_rows(x))


def _scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) * jnp.expand_dims(factor, _rows(x))).astype(x.dtype)


def _spread(total: jax.Array, x: ad.UndefinedPrimal) -> list[jax.Array]:
    return [jnp.broadcast_to(jnp.expand_dims(total, _rows(x.aval)), x.aval.shape).astype(x.aval.dtype)]


def _make(name: str, reference: Callable[..., jax.Array]) -> Primitive:
    return make_primitive(name, reference, "cnnjax_channel_sum", lambda *_: {})


_sums, _dots, _scales = (
    _make("channel_sum", _sum),
    _make("channel_dot", _dot),
    make_primitive("scale", _scale),
)
ad.deflinear2(_sums, _spread)
# Products and their sums are bilinear, and each is the derivative of the other.
ad.defbilinear(_dots, lambda dy, x, by: _scales.bind(by, dy), lambda dy, x, by: _scales.bind(x, dy))
ad.defbilinear(
    _scales, lambda dy, x, factor: _scales.bind(dy, factor), lambda dy, x, factor: _dots.bind(x, dy)
)


_materialized = make_primitive(
    "materialized",
    lambda x: x,
    "cnnjax_materialized",
    lambda inputs, _: {} if inputs[0].ndim else None,
    aliases={0: 0},
)
ad.deflinear2(_materialized, lambda dx, x: [dx])


def materialized(x: jax.Array) -> jax.Array:
    """x, computed once and kept in memory for all that read it.

    XLA:CPU computes a sum again in whatever reads it: in a chain of residual blocks each block, and each
    gradient, adds up all branches before it, and all of them stay in memory.
    """
    return _materialized.bind(x) if takes(x) else x


def channel_sums(x: jax.Array) -> jax.Array:
    """The sum over rows in float32: float [G, R..., C] -> [G, C]."""
    return _sums.bind(x)


def scale_rows(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x [G, R..., C] times a float32 factor [G, C], of the dtype of x; the factor's gradient in one pass."""
    return _scales.bind(x, factor)
