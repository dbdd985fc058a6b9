"""Activations by name: what a neuron makes of its sum."""

from collections.abc import Callable

import jax

from cnnjax.errors import by_name


def identity(x: jax.Array) -> jax.Array:
    """x itself: a linear layer."""
    return x


def softmax(x: jax.Array) -> jax.Array:
    """Probabilities over the last (channel or class) axis, float [..., C]."""
    return jax.nn.softmax(x, axis=-1)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,  # the tanh approximation (Hendrycks, Gimpel 2016, arXiv:1606.08415, section 2)
    "identity": identity,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softmax": softmax,
    "tanh": jax.numpy.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of that name, float [...] -> float [...] of the same shape and dtype."""
    return by_name("activation", name, ACTIVATIONS)
