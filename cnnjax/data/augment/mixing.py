"""Augmentations that mix pairs of images and their labels.

Labels int [B] become rows of probabilities float [B, K] first, K being `num_classes` (omitted from a spec,
the data set's); rows that sum to one are mixed as they are.
"""

import jax
import jax.numpy as jnp

from cnnjax.data.augment.register import Batch, Key, operation


def _mixed_labels(batch: Batch, other: jax.Array, part: jax.Array, num_classes: int) -> jax.Array:
    """float [B, K]: part * label + (1 - part) * label of the other image."""
    label = batch["label"]
    rows = jax.nn.one_hot(label, num_classes) if label.ndim == 1 else label
    return part * rows + (1 - part) * rows[other]


@operation(takes=("unit", "normalized"), needs=("label",))
def mixup(key: Key, batch: Batch, alpha: float = 0.2, *, num_classes: int) -> Batch:
    """Mixes each image with another of the batch: part * image + (1 - part) * other, and the labels likewise.

    The batch has one part, from Beta(alpha, alpha); alpha 0 is the identity (Zhang et al. 2017, 1710.09412).
    """
    if not alpha:
        return batch
    part_key, partner_key = jax.random.split(key)
    image = batch["image"]
    part = jax.random.beta(part_key, alpha, alpha)
    other = jax.random.permutation(partner_key, len(image))
    mixed = (part * image + (1 - part) * image[other]).astype(image.dtype)
    return batch | {"image": mixed, "label": _mixed_labels(batch, other, part, num_classes)}


@operation(needs=("label",))
def cutmix(key: Key, batch: Batch, alpha: float = 1.0, *, num_classes: int) -> Batch:
    """Pastes a rectangle of another image of the batch into each, and mixes the labels by its area.

    The batch has one rectangle; the area left is drawn from Beta(alpha, alpha); alpha 0 is the identity.
    Source: Yun et al. 2019, arXiv:1905.04899, section 3.1; labels are weighted by the area inside the image.
    """
    if not alpha:
        return batch
    part_key, partner_key, place_key = jax.random.split(key, 3)
    image = batch["image"]
    height, width = image.shape[1:3]
    left = jax.random.beta(part_key, alpha, alpha)
    sides = jnp.asarray([height, width])
    extent = (sides.astype(jnp.float32) * jnp.sqrt(1 - left)).astype(jnp.int32)
    corner = jax.random.randint(place_key, (2,), 0, sides) - extent // 2
    start, end = jnp.clip(corner, 0, sides), jnp.clip(corner + extent, 0, sides)
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (row >= start[0]) & (row < end[0]) & (column >= start[1]) & (column < end[1])
    other = jax.random.permutation(partner_key, len(image))
    part = 1 - (end - start).prod() / (height * width)
    pasted = jnp.where(inside[None], image[other], image)
    return batch | {"image": pasted, "label": _mixed_labels(batch, other, part, num_classes)}
