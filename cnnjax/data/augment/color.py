"""Augmentations that change colours, and the step from bytes to numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment.register import Shape, operation
from cnnjax.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L


def _channel_shape(shape: Shape, arguments: dict[str, Any]) -> Shape:
    """[H, W, C] unchanged; raises UserError where mean or std has another number of channels."""
    for name in ("mean", "std"):
        value = arguments[name]
        if isinstance(value, tuple) and len(value) not in (1, shape[2]):
            raise UserError(
                f"{name} = {value} has {len(value)} channels; allowed: {shape[2]}, as the image has"
            )
    return shape


@operation(takes=("uint8",), gives="unit")
def scale(key: jax.Array, images: jax.Array) -> jax.Array:
    """Brings bytes to float32 in [0, 1].

    Args:
      key: not used; every operation takes one.
      images: uint8 [B, H, W, C].
    Returns: float32 [B, H, W, C].
    """
    del key
    return images.astype(jnp.float32) / 255


@operation(_channel_shape, takes=("uint8", "unit"), gives="normalized")
def normalize(
    key: jax.Array,
    images: jax.Array,
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
) -> jax.Array:
    """Subtracts the channel means and divides by the channel standard deviations.

    Args:
      key: not used; every operation takes one.
      images: uint8, or float in [0, 1], [B, H, W, C].
      mean: of each channel on the scale 0..1; in a string left out, the data set's.
      std: of each channel on the scale 0..1; in a string left out, the data set's.
    Returns: float32 [B, H, W, C].
    """
    del key
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    unit = 1 / (255 * std) if images.dtype == jnp.uint8 else 1 / std
    return images.astype(jnp.float32) * unit - mean / std


def _factors(key: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """One factor an image, even in [max(0, 1 - strength), 1 + strength]: [B, 1, 1, 1]."""
    low = max(0.0, 1.0 - strength)
    return jax.random.uniform(key, (len(images), 1, 1, 1), minval=low, maxval=1.0 + strength)


def _back(values: jax.Array, images: jax.Array) -> jax.Array:
    """Colours kept in their range and dtype; bytes are rounded."""
    if images.dtype == jnp.uint8:
        return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)
    return jnp.clip(values, 0, 1).astype(images.dtype)


def _grey(images: jax.Array) -> jax.Array:
    """[B, H, W, 1]: the brightness that Pillow gives an RGB image."""
    values = images.astype(jnp.float32)
    return values if images.shape[-1] == 1 else (values @ jnp.asarray(LUMA))[..., None]


def _rgb_shape(shape: Shape, arguments: dict[str, Any]) -> Shape:
    if shape[2] != 3:
        raise UserError(f"images have {shape[2]} channels; allowed: 3 (RGB)")
    return shape


@operation(takes=("uint8", "unit"))
def brightness(key: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Multiplies each image by a factor even in [max(0, 1 - strength), 1 + strength].

    Args:
      key: one key for the whole batch.
      images: uint8, or float in [0, 1], [B, H, W, C].
      strength: 0 is the identity.
    Returns: [B, H, W, C], same dtype and range, as Pillow's ImageEnhance.Brightness.
    """
    return _back(images.astype(jnp.float32) * _factors(key, images, strength), images)


@operation(takes=("uint8", "unit"))
def contrast(key: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Moves each image away from, or towards, its mean grey; see `brightness`.

    Returns: [B, H, W, C], same dtype and range, as Pillow's ImageEnhance.Contrast.
    """
    mean = _grey(images).mean((1, 2, 3), keepdims=True)
    values = images.astype(jnp.float32)
    return _back(mean + (values - mean) * _factors(key, images, strength), images)


@operation(_rgb_shape, takes=("uint8", "unit"))
def saturation(key: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Moves each pixel away from, or towards, its grey; see `brightness`.

    Returns: [B, H, W, 3], same dtype and range, as Pillow's ImageEnhance.Color.
    """
    grey, values = _grey(images), images.astype(jnp.float32)
    return _back(grey + (values - grey) * _factors(key, images, strength), images)


@operation(_rgb_shape, takes=("uint8", "unit"))
def hue(key: jax.Array, images: jax.Array, hue: float) -> jax.Array:
    """Turns the colours of each image by an angle even in [-hue, hue] of the circle, in HSV.

    Args:
      key: one key for the whole batch.
      images: uint8, or float in [0, 1], [B, H, W, 3].
      hue: the greatest turn, in [0, 0.5]; 0 is the identity.
    Returns: [B, H, W, 3], same dtype and range.
    """
    turn = jax.random.uniform(key, (len(images), 1, 1), minval=-hue, maxval=hue)
    values = images.astype(jnp.float32)
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    high, low = values.max(-1), values.min(-1)
    spread = high - low
    safe = jnp.where(spread > 0, spread, 1)
    angle = jnp.where(
        high == red,
        (green - blue) / safe % 6,
        jnp.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    angle = angle + 6 * turn
    place = (jnp.asarray([5.0, 3.0, 1.0]) + angle[..., None]) % 6
    ramp = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    turned = high[..., None] - spread[..., None] * ramp
    return _back(jnp.where(turn[..., None] == 0, values, turned), images)


def _covariance_shape(shape: Shape, arguments: dict[str, Any]) -> Shape:
    if len(arguments["covariance"]) != shape[2]:
        raise UserError(f"covariance is of {len(arguments['covariance'])} channels; allowed: {shape[2]}")
    return shape


@operation(_covariance_shape, takes=("uint8", "unit"), gives="unit")
def pca_color(
    key: jax.Array, images: jax.Array, strength: float, covariance: tuple[tuple[float, ...], ...]
) -> jax.Array:
    """Adds to each image one colour along the principal components of the data set's colours.

    Args:
      key: one key for the whole batch.
      images: uint8, or float in [0, 1], [B, H, W, C].
      strength: standard deviation of the draws alpha; 0.1 in the paper.
      covariance: [C][C] of the channels over the pixels of `train` on the scale 0..1; in a string left out,
        the data set's.
    Returns: float32 [B, H, W, C] on the scale 0..1; not clipped, as the paper does not say that it is.
    Source: Krizhevsky, Sutskever, Hinton 2012, section 4.1: sum_i alpha_i lambda_i p_i, with the eigenvalues
      of colours on the scale 0..1.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    alpha = strength * jax.random.normal(key, (len(images), len(values)))
    shift = (alpha * values.astype(np.float32)) @ vectors.T.astype(np.float32)
    unit = images.astype(jnp.float32)
    return (unit / 255 if images.dtype == jnp.uint8 else unit) + shift[:, None, None, :]
