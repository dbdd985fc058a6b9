"""Augmentations that mix two images and their labels."""

import jax
import jax.numpy as jnp

from cnnjax.data.augment.register import operation


def _partner(key: jax.Array, count: int) -> jax.Array:
    return jax.random.permutation(key, count)


@operation(takes=("unit", "normalized"), mixes_labels=True)
def mixup(key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float = 0.2) -> tuple:
    """Mixes each image with another of the batch: part * image + (1 - part) * other, and the labels likewise.

    Args:
      key: one key for the whole batch, which has one part.
      images: float [B, H, W, C].
      labels: float [B, K], rows that sum to one.
      alpha: part is drawn from Beta(alpha, alpha); 0 is the identity.
    Returns: images and labels, same shapes and dtypes.
    Source: Zhang et al. 2017, arXiv:1710.09412, section 2.
    """
    if not alpha:
        return images, labels
    part_key, partner_key = jax.random.split(key)
    part = jax.random.beta(part_key, alpha, alpha)
    other = _partner(partner_key, len(images))
    mixed = part * images + (1 - part) * images[other]
    return mixed.astype(images.dtype), part * labels + (1 - part) * labels[other]


@operation(mixes_labels=True)
def cutmix(key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float = 1.0) -> tuple:
    """Puts a rectangle of another image of the batch into each, and mixes the labels by its area.

    Args:
      key: one key for the whole batch, which has one rectangle.
      images: [B, H, W, C] of any dtype.
      labels: float [B, K], rows that sum to one.
      alpha: the area left is drawn from Beta(alpha, alpha); 0 is the identity.
    Returns: images and labels, same shapes and dtypes.
    Source: Yun et al. 2019, arXiv:1905.04899, section 3.1; the labels go by the area inside the image.
    """
    if not alpha:
        return images, labels
    part_key, partner_key, place_key = jax.random.split(key, 3)
    height, width = images.shape[1:3]
    left = jax.random.beta(part_key, alpha, alpha)
    sides = jnp.asarray([height, width])
    extent = (sides * jnp.sqrt(1 - left)).astype(jnp.int32)
    centre = jax.random.randint(place_key, (2,), 0, sides)
    start = jnp.clip(centre - extent // 2, 0, sides)
    end = jnp.clip(centre - extent // 2 + extent, 0, sides)
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (row >= start[0]) & (row < end[0]) & (column >= start[1]) & (column < end[1])
    other = _partner(partner_key, len(images))
    part = 1 - (end - start).prod() / (height * width)
    return jnp.where(inside, images[other], images), part * labels + (1 - part) * labels[other]
