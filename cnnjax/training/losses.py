"""Losses, one value an example; the step masks, weighs and averages them."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits: Array, label: Array, label_smoothing: float = 0.0) -> Array:
    """Cross entropy of the softmax of `logits` against `label`, not reduced.

    Label smoothing spreads epsilon / K over all K classes, the true one included (Szegedy et al.
    2015, arXiv 1512.00567, section 7): the target is (1 - epsilon) * label + epsilon / K.

    Args:
      logits: float [B, K], any float type; computed in float32.
      label: int [B], or float [B, K] whose rows sum to one (mixed or soft labels). An integer
        outside 0..K-1 gives NaN, so that wrong data are seen and not learned.
      label_smoothing: epsilon, 0 <= epsilon < 1.

    Returns:
      float32 [B], in nats.
    """
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32))
    num_classes = logits.shape[-1]
    if label.ndim == logits.ndim:
        of_label = jnp.sum(label.astype(jnp.float32) * log_probability, axis=-1)
    else:
        of_label = jnp.take_along_axis(
            log_probability, jnp.where(label < 0, num_classes, label)[:, None], axis=-1, mode="fill"
        )[:, 0]
    if not label_smoothing:
        return -of_label
    of_all = jnp.mean(log_probability, axis=-1)
    return -((1 - label_smoothing) * of_label + label_smoothing * of_all)


def masked_mean(values: Array, mask: Array) -> Array:
    """The mean of `values` where `mask` is not 0, weighted by it; 0.0 if the mask is all zero.

    A masked value counts for nothing even if it is NaN or infinite. No example gives 0.0 and not
    NaN, because such a batch has no gradient either.

    Args:
      values: float [B].
      mask: float or int [B]: 1 for a real example, 0 for padding.

    Returns:
      float32 scalar.
    """
    mask = mask.astype(jnp.float32)
    total = jnp.sum(jnp.where(mask > 0, values.astype(jnp.float32) * mask, 0.0))
    weight = jnp.sum(mask)
    return total / jnp.where(weight > 0, weight, 1.0)
