"""Activation functions by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cnnjax.errors import by_name
from cnnjax.ops.cpu import make_activation, materialized, takes

Activation = Callable[[jax.Array], jax.Array]


def identity(x: jax.Array) -> jax.Array:
    """Returns x, for a linear layer."""
    return x


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), float [...] (Nair, Hinton 2010).

    The derivative, 0 at 0, reads the result, which the next layer keeps for its own: x is kept by nobody.
    """
    return materialized(jax.nn.relu(x))


@relu.defjvp
def _relu_tangent(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = relu(*primals)
    return y, jnp.where(y > 0, *tangents, jnp.zeros((), y.dtype))


def softmax(x: jax.Array) -> jax.Array:
    """Probabilities over the last (channel or class) axis, float [..., C]."""
    return jax.nn.softmax(x, axis=-1)


def _gelu_in_xla(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


_gelu_on_cpu, _silu_on_cpu = make_activation("gelu", _gelu_in_xla), make_activation("silu", jax.nn.silu)


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's probability of less than x, float [...], in its exact form.

    Hendrycks, Gimpel 2016, 1606.08415. On a CPU the probability is within 2e-7.
    """
    return _gelu_on_cpu(x) if takes(x) else _gelu_in_xla(x)


def silu(x: jax.Array) -> jax.Array:
    """x times its sigmoid, float [...] (Elfwing, Uchibe, Doya 2017, 1702.03118)."""
    return _silu_on_cpu(x) if takes(x) else jax.nn.silu(x)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_tanh": jax.nn.gelu,  # its approximation by tanh (Hendrycks, Gimpel 2016, 1606.08415, section 2)
    "identity": identity,
    "relu": relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": silu,
    "softmax": softmax,
    "tanh": jax.numpy.tanh,
}


def activation(name: str) -> Activation:
    """The activation function of a name, float [...] -> float [...] of the same shape and dtype."""
    return by_name("activation", name, ACTIVATIONS)
