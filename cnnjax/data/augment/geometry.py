"""Augmentations that move pixels: mirror, crops, resizes, and holes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.image import ResizeMethod, scale_and_translate

from cnnjax.data.augment.register import Examples, Shape, operation
from cnnjax.errors import UserError


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _crop_shape(shape: Shape, arguments: dict[str, Any]) -> Shape:
    """[H, W, C] after a crop; raises UserError where the crop or the reflection does not fit."""
    (height, width), padding = _pair(arguments["size"]), arguments.get("padding", 0)
    if arguments.get("padding_mode") == "reflect" and padding >= min(shape[:2]):
        raise UserError(
            f"padding = {padding} cannot reflect an image of {shape[0]}x{shape[1]};"
            f" allowed: at most {min(shape[:2]) - 1}"
        )
    rows, columns = shape[0] + 2 * padding, shape[1] + 2 * padding
    if height > rows or width > columns:
        padded = f" with padding {padding} on each side" if padding else ""
        raise UserError(
            f"size = {arguments['size']} is larger than the image of {shape[0]}x{shape[1]}{padded};"
            f" allowed: at most {rows}x{columns}"
        )
    return height, width, shape[2]


@operation()
def mirror(key: jax.Array, images: jax.Array, probability: float = 0.5) -> jax.Array:
    """Flips each image left to right with the given probability.

    Args:
      key: one key for the whole batch.
      images: [B, H, W, C] of any dtype.
      probability: in [0, 1]; 0 is the identity.
    Returns: [B, H, W, C], same dtype.
    Source: Krizhevsky, Sutskever, Hinton 2012, section 4.1 (horizontal reflections).
    """
    flip = jax.random.bernoulli(key, float(probability), images.shape[:1])
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1, :], images)


@operation(takes_examples=True)
def alternating_flip(key: jax.Array, images: jax.Array, examples: Examples) -> jax.Array:
    """Flips each image left to right in every other epoch; which of them in the first is drawn by example.

    So two epochs in a row show every image both ways, where `mirror` repeats half of the views.

    Args:
      key: not used; the draw is a pure function of `examples`.
      images: [B, H, W, C] of any dtype.
      examples: their places in the data set and their epochs.
    Returns: [B, H, W, C], same dtype.
    Source: Jordan 2024, arXiv:2404.00498, section 3.6 (there a hash of the index; here a draw by it).
    """
    del key
    first = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(examples.key, index)))
    flip = first(examples.index) ^ (examples.epoch % 2 == 1)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1, :], images)


@operation(_crop_shape)
def random_crop(
    key: jax.Array,
    images: jax.Array,
    size: int | tuple[int, int],
    padding: int = 0,
    padding_mode: str = "zero",
) -> jax.Array:
    """Cuts a window out of each image at a place of its own, all places equally likely.

    Args:
      key: one key for the whole batch.
      images: [B, H, W, C] of any dtype.
      size: height and width of the window in pixels.
      padding: pixels added on each side first.
      padding_mode: "zero", or "reflect" (the edge pixel is not repeated).
    Returns: [B, size, size, C], same dtype; the image itself where size is its own and padding 0.
    Source: Krizhevsky, Sutskever, Hinton 2012, section 4.1; with padding He, Zhang, Ren, Sun 2015,
      arXiv:1512.03385, section 4.2.
    """
    height, width, _ = _crop_shape(images.shape[1:], {"size": size, "padding": padding})
    if padding:
        mode = "constant" if padding_mode == "zero" else "reflect"
        images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode)
    batch, rows, columns, channels = images.shape
    last = jnp.array([rows - height, columns - width])
    corners = jax.random.randint(key, (batch, 2), 0, last + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(cut)(images, corners)


@operation(_crop_shape)
def center_crop(key: jax.Array, images: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Cuts the middle window out of each image; an odd pixel stays at the bottom and the right.

    Args:
      key: not used; every operation takes one.
      images: [B, H, W, C] of any dtype.
      size: height and width of the window in pixels.
    Returns: [B, size, size, C], same dtype.
    """
    del key
    height, width, _ = _crop_shape(images.shape[1:], {"size": size})
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width, :]


def _resized_shape(shape: Shape, arguments: dict[str, Any]) -> Shape:
    return (*_pair(arguments["size"]), shape[2])


def _windows(
    images: jax.Array, corner: jax.Array, extent: jax.Array, size: tuple[int, int], antialias: bool = True
) -> jax.Array:
    """The windows [corner, corner + extent) of images, in pixels [B, 2], resized to `size` (bilinear).

    uint8 is rounded. With `antialias` the filter widens with the shrinking, as in Pillow.
    """
    scale = jnp.asarray(size, jnp.float32) / extent

    def resize(image: jax.Array, scale: jax.Array, corner: jax.Array) -> jax.Array:
        shape = (*size, image.shape[-1])
        moved = -corner * scale
        image = image.astype(jnp.float32)
        return scale_and_translate(
            image, shape, (0, 1), scale, moved, ResizeMethod.LINEAR, antialias=antialias
        )

    out = jax.vmap(resize)(images, scale, corner)
    if images.dtype == jnp.uint8:
        out = jnp.clip(jnp.round(out), 0, 255)
    return out.astype(images.dtype)


def resize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Whole images [B, H, W, C] at another height and width (bilinear, antialiased), of the same dtype."""
    count = images.shape[0]
    whole = jnp.broadcast_to(jnp.asarray(images.shape[1:3], jnp.float32), (count, 2))
    return _windows(images, jnp.zeros((count, 2)), whole, size)


@operation(_resized_shape)
def random_resized_crop(
    key: jax.Array,
    images: jax.Array,
    size: int | tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    antialias: bool = True,
) -> jax.Array:
    """Cuts a window of random area and aspect ratio out of each image and resizes it (bilinear).

    Args:
      key: one key for the whole batch.
      images: [B, H, W, C] of any dtype; bytes are rounded.
      size: height and width that come out, in pixels.
      area: of the window, as parts of the image's, drawn evenly.
      aspect: width to height, drawn evenly in its logarithm; a window too long for the image is shortened.
      antialias: whether the filter widens where the window is shrunk.
    Returns: [B, size, size, C], same dtype.
    Source: Szegedy et al. 2014, arXiv:1409.4842, section 6. Windows have fractions of pixels, and one that
      does not fit is cut to fit rather than drawn again.
    """
    height, width = images.shape[1:3]
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    count = images.shape[:1]
    part = jax.random.uniform(area_key, count, minval=area[0], maxval=area[1]) * height * width
    ratio = jnp.exp(
        jax.random.uniform(aspect_key, count, minval=jnp.log(aspect[0]), maxval=jnp.log(aspect[1]))
    )
    extent = jnp.stack([jnp.sqrt(part / ratio), jnp.sqrt(part * ratio)], -1)
    extent = jnp.minimum(extent, jnp.asarray([height, width], jnp.float32))
    room = jnp.asarray([height, width], jnp.float32) - extent
    corner = jax.random.uniform(place_key, (*count, 2)) * room
    return _windows(images, corner, extent, _pair(size), antialias)


@operation(_resized_shape)
def scale_jitter(
    key: jax.Array,
    images: jax.Array,
    size: int | tuple[int, int],
    sides: tuple[float, float] = (256, 480),
) -> jax.Array:
    """A random crop of `size` from each image resized so that its short side is drawn from `sides`.

    Args:
      key: one key for the whole batch.
      images: [B, H, W, C] of any dtype; bytes are rounded.
      size: height and width of the crop, in pixels.
      sides: the least and the greatest short side, drawn evenly.
    Returns: [B, size, size, C], same dtype.
    Source: Simonyan, Zisserman 2014, arXiv:1409.1556, section 3.1; He et al. 2015,
      arXiv:1512.03385, section 3.4.
    """
    height, width = images.shape[1:3]
    side_key, place_key = jax.random.split(key)
    side = jax.random.uniform(side_key, images.shape[:1], minval=sides[0], maxval=sides[1])
    extent = jnp.asarray(_pair(size), jnp.float32) * (min(height, width) / side)[:, None]
    whole = jnp.asarray([height, width], jnp.float32)
    extent = jnp.minimum(extent, whole)
    corner = jax.random.uniform(place_key, (images.shape[0], 2)) * (whole - extent)
    return _windows(images, corner, extent, _pair(size))


@operation()
def random_erasing(
    key: jax.Array,
    images: jax.Array,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.33),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> jax.Array:
    """Blackens (or, after normalize, greys) one rectangle of each image with the given probability.

    Args:
      key: one key for the whole batch.
      images: [B, H, W, C] of any dtype.
      probability: in [0, 1]; 0 is the identity.
      area: of the rectangle, as parts of the image's.
      aspect: width to height, drawn evenly in its logarithm.
    Returns: [B, H, W, C], same dtype, 0 in the rectangle.
    Source: Zhong et al. 2017, arXiv:1708.04896, algorithm 1; filled with 0 rather than with noise.
    """
    count, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    part = jax.random.uniform(keys[0], (count,), minval=area[0], maxval=area[1]) * height * width
    ratio = jnp.exp(
        jax.random.uniform(keys[1], (count,), minval=jnp.log(aspect[0]), maxval=jnp.log(aspect[1]))
    )
    extent = jnp.round(jnp.stack([jnp.sqrt(part / ratio), jnp.sqrt(part * ratio)], -1)).astype(jnp.int32)
    extent = jnp.minimum(extent, jnp.asarray([height, width]))
    corner = jax.random.randint(keys[2], (count, 2), 0, jnp.asarray([height, width]) - extent + 1)
    chosen = jax.random.bernoulli(keys[3], float(probability), (count,))
    return jnp.where(_box(images.shape, corner, extent) & chosen[:, None, None, None], 0, images).astype(
        images.dtype
    )


@operation()
def cutout(key: jax.Array, images: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Blackens (or, after normalize, greys) one square of each image, whose centre is any pixel.

    Args:
      key: one key for the whole batch.
      images: [B, H, W, C] of any dtype.
      size: of the square in pixels; a part of it may lie outside the image.
    Returns: [B, H, W, C], same dtype, 0 in the square.
    Source: DeVries, Taylor 2017, arXiv:1708.04552, section 3.2.
    """
    extent = jnp.asarray(_pair(size))
    centre = jax.random.randint(key, (images.shape[0], 2), 0, jnp.asarray(images.shape[1:3]))
    corner = centre - extent // 2
    return jnp.where(_box(images.shape, corner, extent), 0, images).astype(images.dtype)


def _box(shape: tuple[int, ...], corner: jax.Array, extent: jax.Array) -> jax.Array:
    """bool [B, H, W, 1]: true inside [corner, corner + extent) of each image."""
    end = corner + extent
    row, column = jnp.arange(shape[1])[None, :, None], jnp.arange(shape[2])[None, None, :]
    inside = (row >= corner[:, 0, None, None]) & (row < end[:, 0, None, None])
    inside &= (column >= corner[:, 1, None, None]) & (column < end[:, 1, None, None])
    return inside[..., None]
