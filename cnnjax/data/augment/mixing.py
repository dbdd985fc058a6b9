"""Augmentations that mix pairs of images and their labels.

Labels int [B] become rows of probabilities float [B, K] first, K being `num_classes` (omitted from a spec,
the data set's); rows that sum to one are mixed as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment.register import Batch, Key, operation


def _mixed_labels(batch: Batch, other: jax.Array, part: jax.Array, num_classes: int) -> jax.Array:
    """float32 [B, K]: part * label + (1 - part) * label of the other image."""
    label = batch["label"]
    rows = (jax.nn.one_hot(label, num_classes) if label.ndim == 1 else label).astype(jnp.float32)
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
    part = jax.random.beta(part_key, alpha, alpha, dtype=jnp.float32)
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
    inside = _rectangle(part_key, place_key, image.shape, alpha)
    other = jax.random.permutation(partner_key, len(image))
    part = 1 - inside.sum().astype(jnp.float32) / inside.size
    pasted = jnp.where(inside[None], image[other], image)
    return batch | {"image": pasted, "label": _mixed_labels(batch, other, part, num_classes)}


@operation(takes=("unit", "normalized"), needs=("label",))
def mixup_or_cutmix(
    key: Key, batch: Batch, alpha: float = 0.2, cutmix_alpha: float = 1.0, *, num_classes: int
) -> Batch:
    """Applies either `mixup(alpha)` or `cutmix(cutmix_alpha)` to the batch, each half of the time.

    Source: torchvision's reference training, which draws one of the two for each batch.
    """
    choice_key, part_key, area_key, place_key, partner_key = jax.random.split(key, 5)
    image = batch["image"]
    part = jax.random.beta(part_key, alpha, alpha, dtype=jnp.float32) if alpha else jnp.ones((), jnp.float32)
    inside = _rectangle(area_key, place_key, image.shape, cutmix_alpha) if cutmix_alpha else None
    kept = jnp.ones((1, 1, 1), jnp.float32) if inside is None else 1 - inside.astype(jnp.float32)
    # The share of a pixel's own image.
    own = jnp.where(jax.random.bernoulli(choice_key, np.float32(0.5)), part, kept)
    other = jax.random.permutation(partner_key, len(image))
    mixed = (own[None] * image + (1 - own[None]) * image[other]).astype(image.dtype)
    return batch | {"image": mixed, "label": _mixed_labels(batch, other, own.mean(), num_classes)}


def _rectangle(area_key: Key, place_key: Key, shape: tuple[int, ...], alpha: float) -> jax.Array:
    """bool [H, W, 1]: the pixels that CutMix pastes, of images [B, H, W, C]."""
    height, width = shape[1:3]
    left = jax.random.beta(area_key, alpha, alpha, dtype=jnp.float32)
    sides = jnp.asarray([height, width], jnp.int32)
    extent = (sides.astype(jnp.float32) * jnp.sqrt(1 - left)).astype(jnp.int32)
    corner = jax.random.randint(place_key, (2,), 0, sides, jnp.int32) - extent // 2
    start, end = jnp.clip(corner, 0, sides), jnp.clip(corner + extent, 0, sides)
    rows, columns = (jnp.arange(side, dtype=jnp.int32) for side in (height, width))
    row, column = rows[:, None, None], columns[None, :, None]
    return (row >= start[0]) & (row < end[0]) & (column >= start[1]) & (column < end[1])
