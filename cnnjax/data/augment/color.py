"""Augmentations that change colours, and the step from bytes to numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment.register import Arguments, Batch, Key, Shape, operation
from cnnjax.errors import UserError

PerChannel = float | tuple[float, ...]  # one for all channels, or one each


def _channel_shape(shape: Shape, arguments: Arguments) -> Shape:
    """[H, W, C] unchanged; raises UserError if mean or std has another number of channels."""
    for name in ("mean", "std"):
        value = arguments[name]
        if isinstance(value, tuple) and len(value) not in (1, shape[2]):
            raise UserError(f"{name} = {value} has {len(value)} channels; allowed: {shape[2]}, as the image")
    return shape


def _unit(images: jax.Array) -> jax.Array:
    """float32 on the scale 0..1 of uint8 images, or of floating ones that have it already."""
    values = images.astype(jnp.float32)
    return values / 255 if images.dtype == jnp.uint8 else values


@operation(takes=("uint8",), gives="unit", draws=False)
def scale(key: Key, batch: Batch) -> Batch:
    """Converts bytes to float32 in [0, 1]."""
    return batch | {"image": _unit(batch["image"])}


@operation(_channel_shape, takes=("uint8", "unit"), gives="normalized", draws=False)
def normalize(key: Key, batch: Batch, mean: PerChannel, std: PerChannel) -> Batch:
    """(image - mean) / std in float32 on the scale 0..1; omitted from a spec, the data set's mean and std."""
    images = batch["image"]
    mean_row, std_row = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
    factor = 1 / (255 * std_row) if images.dtype == jnp.uint8 else 1 / std_row
    return batch | {"image": images.astype(jnp.float32) * factor - mean_row / std_row}


def _factors(key: Key, images: jax.Array, strength: float) -> jax.Array:
    """One factor an image, uniform in [max(0, 1 - strength), 1 + strength]: [B, 1, 1, 1]."""
    low = max(0.0, 1.0 - strength)
    return jax.random.uniform(key, (len(images), 1, 1, 1), jnp.float32, low, 1.0 + strength)


def _recoloured(batch: Batch, values: jax.Array) -> Batch:
    """The batch with new colours, in the range and dtype of its images; bytes are cut off, as by Pillow."""
    images = batch["image"]
    clipped = jnp.clip(values, 0, 255) if images.dtype == jnp.uint8 else jnp.clip(values, 0, 1)
    return batch | {"image": clipped.astype(images.dtype)}


def grey(images: jax.Array) -> jax.Array:
    """float32 [..., 1]: ITU-R BT.601; of bytes Pillow's mode L, whole numbers."""
    if images.shape[-1] == 1:
        return images.astype(jnp.float32)
    if images.dtype != jnp.uint8:
        return (images.astype(jnp.float32) @ jnp.asarray([0.299, 0.587, 0.114], jnp.float32))[..., None]
    weights = jnp.asarray([19595, 38470, 7471], jnp.int32)  # in parts of 65536
    return ((images.astype(jnp.int32) @ weights + 32768) >> 16).astype(jnp.float32)[..., None]


def mean_grey(images: jax.Array) -> jax.Array:
    """float32 [..., 1, 1, 1]: the mean of `grey`; of bytes Pillow's, a whole number."""
    values, axes = grey(images), (-3, -2, -1)
    if images.dtype != jnp.uint8:
        return values.mean(axes, keepdims=True)
    count = values.shape[-3] * values.shape[-2]
    total = values.astype(jnp.uint32).sum(axes, keepdims=True)
    return ((2 * total + count) // (2 * count)).astype(jnp.float32)


def away_from(low: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    """float32 low + factor * (images - low), rounded as Pillow's Image.blend."""
    moved = factor * (images.astype(jnp.float32) - low)
    return low + jnp.maximum(moved, -1e9)  # so that no multiply-add rounds once where Pillow rounds twice


def grey_or_rgb_shape(shape: Shape, arguments: Arguments) -> Shape:
    """[H, W, C] unchanged; raises UserError if it is neither grey nor RGB."""
    if shape[2] not in (1, 3):
        raise UserError(f"images have {shape[2]} channels; allowed: 1 (grey) or 3 (RGB)")
    return shape


def _rgb_shape(shape: Shape, arguments: Arguments) -> Shape:
    if shape[2] != 3:
        raise UserError(f"images have {shape[2]} channels; allowed: 3 (RGB)")
    return shape


@operation(takes=("uint8", "unit"))
def brightness(key: Key, batch: Batch, strength: float) -> Batch:
    """Multiplies each image by a factor uniform in [max(0, 1 - strength), 1 + strength], as Pillow does."""
    images = batch["image"]
    return _recoloured(batch, images.astype(jnp.float32) * _factors(key, images, strength))


@operation(grey_or_rgb_shape, takes=("uint8", "unit"))
def contrast(key: Key, batch: Batch, strength: float) -> Batch:
    """Moves each image away from, or towards, its mean grey, as Pillow's ImageEnhance.Contrast."""
    images = batch["image"]
    return _recoloured(batch, away_from(mean_grey(images), images, _factors(key, images, strength)))


@operation(_rgb_shape, takes=("uint8", "unit"))
def saturation(key: Key, batch: Batch, strength: float) -> Batch:
    """Moves each pixel away from, or towards, its grey, as Pillow's ImageEnhance.Color."""
    images = batch["image"]
    return _recoloured(batch, away_from(grey(images), images, _factors(key, images, strength)))


@operation(_rgb_shape, takes=("uint8", "unit"))
def hue(key: Key, batch: Batch, hue: float) -> Batch:
    """Turns the colours of each image by an angle uniform in [-hue, hue] of the circle, in HSV."""
    images = batch["image"]
    turn = jax.random.uniform(key, (len(images), 1, 1), jnp.float32, -hue, hue)
    values = images.astype(jnp.float32)
    red, green, blue = jnp.moveaxis(values, -1, 0)
    high, spread = values.max(-1), values.max(-1) - values.min(-1)
    safe = jnp.where(spread > 0, spread, 1)
    from_green = jnp.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    angle = jnp.where(high == red, (green - blue) / safe % 6, from_green) + 6 * turn
    place = (jnp.asarray([[[[5.0, 3.0, 1.0]]]], jnp.float32) + angle[..., None]) % 6
    ramp = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    turned = high[..., None] - spread[..., None] * ramp
    nearest = jnp.round(turned) if images.dtype == jnp.uint8 else turned
    return _recoloured(batch, jnp.where(turn[..., None] == 0, values, nearest))


def _covariance_shape(shape: Shape, arguments: Arguments) -> Shape:
    if len(arguments["covariance"]) != shape[2]:
        raise UserError(f"covariance has {len(arguments['covariance'])} channels; allowed: {shape[2]}")
    return shape


@operation(_covariance_shape, takes=("uint8", "unit"), gives="unit")
def pca_color(key: Key, batch: Batch, strength: float, covariance: tuple[tuple[float, ...], ...]) -> Batch:
    """Adds to each image one colour along the principal components of the data set's colours.

    `strength` is the standard deviation of the draws alpha, 0.1 in the paper; `covariance`, C rows of C, is
    that of the channels over the pixels of `train` on the scale 0..1; by default the data set's. Returns
    float32 on that scale, unclipped: the paper does not mention clipping.
    Source: Krizhevsky, Sutskever, Hinton 2012, section 4.1: sum_i alpha_i lambda_i p_i, on the scale 0..1.
    """
    images = batch["image"]
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    alpha = strength * jax.random.normal(key, (len(images), len(values)), jnp.float32)
    shift = (alpha * values.astype(np.float32)[None]) @ vectors.T.astype(np.float32)
    return batch | {"image": _unit(images) + shift[:, None, None, :]}
