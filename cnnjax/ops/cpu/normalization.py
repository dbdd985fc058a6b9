"""Batch normalization in training and local response normalization, with their gradients."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from cnnjax.ops.cpu.primitive import make_primitive, set_gradient


def make_batch_norm(
    reference: Callable[..., tuple[jax.Array, ...]],
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """`reference`, or the kernels where they run.

    `reference` is (x [..., C], scale [C], bias [C], epsilon=, relu=, pool=) -> y of the dtype of x, mean and
    biased variance; all but x and y float32. `pool` is 1, or 2 for x [B, H, W, C] with H, W even and 16 | C.
    """

    def gradient_reference(x, dy, mean, var, scale, bias, **parameters):
        function = functools.partial(reference, **parameters)
        return jax.vjp(lambda *arrays: function(*arrays)[0], x, scale, bias)[1](dy)

    def attributes(inputs, results, *, epsilon, relu, pool):
        return {"epsilon": np.float32(epsilon), "relu": np.bool_(relu), "pool": np.int64(pool)}

    def alike(x, dy, mean, var, scale, bias, **_):
        return x, scale, bias

    target = "cnnjax_batch_norm"
    forward = make_primitive("batch_norm", reference, target, attributes, True)
    backward = make_primitive("batch_norm_gradient", gradient_reference, target, attributes, True, alike)

    def gradient(arrays, results, cotangents, **parameters):
        (x, scale, bias), (_, mean, var), (dy, dmean, dvar) = arrays, results, cotangents
        dy = ad.instantiate_zeros(dy)
        dx, dscale, dbias = backward.bind(x, dy, mean, var, scale, bias, **parameters)
        count = x.size // x.shape[-1]
        if type(dmean) is not ad.Zero:
            dx += jnp.broadcast_to(dmean / count, x.shape).astype(x.dtype)
        if type(dvar) is not ad.Zero:
            dvar, mean = (jnp.broadcast_to(vector, x.shape) for vector in (dvar, mean))
            dx += ((2 / count) * dvar * (x.astype(jnp.float32) - mean)).astype(x.dtype)
        return dx, dscale, dbias

    set_gradient(forward, reference, gradient)

    def batch_norm(x, scale, bias, *, epsilon, relu, pool):
        return tuple(forward.bind(x, scale, bias, epsilon=float(epsilon), relu=bool(relu), pool=pool))

    return batch_norm


def make_response_norm(reference: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`reference`, (x, n=, k=, alpha=) -> x / (k + alpha * sum of n squares) ** 0.75, or the kernels."""

    def forward_reference(x, **parameters):
        return (reference(x, **parameters),)

    def gradient_reference(x, dy, **parameters):
        return jax.vjp(functools.partial(reference, **parameters), x)[1](dy)

    def attributes(inputs, results, *, n, k, alpha):
        return {"n": np.int64(n), "k": np.float32(k), "alpha": np.float32(alpha)}

    target = "cnnjax_response_norm"
    forward = make_primitive("response_norm", forward_reference, target, attributes, True)
    backward = make_primitive("response_norm_gradient", gradient_reference, target, attributes, True)
    set_gradient(forward, forward_reference, lambda arrays, _, dy, **p: backward.bind(arrays[0], dy[0], **p))

    def response_norm(x, *, n, k, alpha):
        return forward.bind(x, n=n, k=float(k), alpha=float(alpha))[0]

    return response_norm
