"""Losses, one value an example; the step masks, weighs and averages them."""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def cross_entropy(logits: Array, label: Array, label_smoothing: float = 0.0) -> Array:
    """Cross entropy of the softmax of `logits`, any float [B, K], against `label`: float32 [B], in nats.

    `label` is int [B], or float [B, K] whose rows sum to one (mixed or soft labels); an integer outside
    0..K-1 gives NaN, so that wrong data are noticed and not learned. Label smoothing spreads epsilon / K over
    all K classes, the true one included (Szegedy et al. 2015, arXiv 1512.00567, section 7): the target is
    (1 - epsilon) * label + epsilon / K, 0 <= epsilon < 1.
    """
    logits = logits.astype(jnp.float32)
    if label.ndim == logits.ndim:
        of_label = optax.softmax_cross_entropy(logits, label.astype(jnp.float32))
    else:  # a negative index would count from the end
        index = jnp.where(label < 0, logits.shape[-1], label)
        of_label = optax.softmax_cross_entropy_with_integer_labels(logits, index)
    if not label_smoothing:
        return of_label
    of_all = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * of_label + label_smoothing * of_all


def masked_mean(values: Array, mask: Array) -> Array:
    """The mean of `values` [B] weighted by `mask` [B], 0 for padding: float32 [].

    Values under a mask of 0 do not count even if they are NaN or infinite. Without any example it is 0.0.
    """
    mask = mask.astype(jnp.float32)
    total, weight = jnp.sum(jnp.where(mask > 0, values.astype(jnp.float32) * mask, 0.0)), jnp.sum(mask)
    return total / jnp.where(weight > 0, weight, 1.0)
