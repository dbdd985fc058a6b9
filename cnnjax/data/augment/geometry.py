"""Augmentations that move pixels: mirror, crops, resizes, and holes. Images keep their dtype."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.image import scale_and_translate

from cnnjax.data.augment.register import Arguments, Batch, Key, Shape, operation
from cnnjax.errors import UserError

Size = int | tuple[int, int]  # of a square, or (height, width), in pixels
Range = tuple[float, float]  # low, high


def pair(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return size if isinstance(size, tuple) else (size, size)


def _crop_shape(shape: tuple[int, ...], arguments: Arguments) -> Shape:
    """[H, W, C] after a crop; raises UserError if the crop or the reflection does not fit."""
    (height, width), padding = pair(arguments["size"]), arguments.get("padding", 0)
    if arguments.get("padding_mode") == "reflect" and padding >= min(shape[:2]):
        given = f"padding = {padding} cannot reflect an image of {shape[0]}x{shape[1]}"
        raise UserError(f"{given}; allowed: at most {min(shape[:2]) - 1}")
    rows, columns = shape[0] + 2 * padding, shape[1] + 2 * padding
    if height > rows or width > columns:
        padded = f" with padding {padding} on each side" if padding else ""
        given = f"size = {arguments['size']} is larger than the image of {shape[0]}x{shape[1]}{padded}"
        raise UserError(f"{given}; allowed: at most {rows}x{columns}")
    return height, width, shape[2]


def _flipped(images: jax.Array, flip: jax.Array) -> jax.Array:
    """Images [B, H, W, C], left to right where bool [B] `flip` says so."""
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1, :], images)


@operation()
def mirror(key: Key, batch: Batch, probability: float = 0.5) -> Batch:
    """Flips each image left to right with this probability (Krizhevsky, Sutskever, Hinton 2012, 4.1)."""
    flip = jax.random.bernoulli(key, np.float32(probability), batch["image"].shape[:1])
    return batch | {"image": _flipped(batch["image"], flip)}


@operation(needs=("index", "epoch", "run_key"))
def alternating_flip(key: Key, batch: Batch) -> Batch:
    """Flips each image left to right in every other epoch; a draw by example says which of them in the first.

    So two consecutive epochs show every image both ways, where `mirror` repeats half of the views.
    Source: Jordan 2024, arXiv:2404.00498, section 3.6 (there a hash of the index; here a draw by it).
    """
    run_key = batch["run_key"]
    first = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(run_key, index), np.float32(0.5)))
    return batch | {"image": _flipped(batch["image"], first(batch["index"]) ^ (batch["epoch"] % 2 == 1))}


@operation(_crop_shape)
def random_crop(key: Key, batch: Batch, size: Size, padding: int = 0, padding_mode: str = "zero") -> Batch:
    """Cuts a window out of each image at a place of its own, all places equally likely.

    First `padding` pixels are added on each side: "zero", or "reflect" (the edge pixel is not repeated).
    Source: Krizhevsky, Sutskever, Hinton 2012, section 4.1; padding: He et al. 2015, arXiv:1512.03385, 4.2.
    """
    images = batch["image"]
    height, width, _ = _crop_shape(images.shape[1:], {"size": size, "padding": padding})
    if padding:
        mode = "constant" if padding_mode == "zero" else "reflect"
        images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode)
    count, rows, columns, channels = images.shape
    ends = jnp.array([[rows - height + 1, columns - width + 1]], jnp.int32)
    corners = jax.random.randint(key, (count, 2), 0, ends, jnp.int32)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], jnp.int32(0)), (height, width, channels))

    return batch | {"image": jax.vmap(cut)(images, corners)}


@operation(_crop_shape, draws=False)
def center_crop(key: Key, batch: Batch, size: Size) -> Batch:
    """Cuts the middle window out of each image; an odd pixel stays at the bottom and the right."""
    images = batch["image"]
    height, width, _ = _crop_shape(images.shape[1:], {"size": size})
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return batch | {"image": images[:, top : top + height, left : left + width, :]}


def _resized_shape(shape: Shape, arguments: Arguments) -> Shape:
    return (*pair(arguments["size"]), shape[2])


def _jitter_shape(shape: Shape, arguments: Arguments) -> Shape:
    """[H, W, C]; raises UserError if the smallest of the resized images does not cover the crop."""
    size, (low, high) = pair(arguments["size"]), arguments["sides"]
    covered = [int(low * side / min(shape[:2])) for side in shape[:2]]
    if size[0] > covered[0] or size[1] > covered[1]:
        given = f"size = {arguments['size']} is larger than the smallest image of sides = {(low, high)}"
        raise UserError(f"{given}; allowed: at most {covered[0]}x{covered[1]}, or larger sides")
    return _resized_shape(shape, arguments)


def _windows(
    images: jax.Array, corner: jax.Array, extent: jax.Array, size: tuple[int, int], antialias: bool = True
) -> jax.Array:
    """Windows [corner, corner + extent) of images, in pixels [B, 2], resized to `size`; uint8 is rounded."""

    def resize(image: jax.Array, scale: jax.Array, corner: jax.Array) -> jax.Array:
        shape, moved = (*size, image.shape[-1]), -corner * scale
        return scale_and_translate(image, shape, (0, 1), scale, moved, "linear", antialias=antialias)

    scale = jnp.asarray(size, jnp.float32)[None] / extent
    out = jax.vmap(resize)(images.astype(jnp.float32), scale, corner)
    return (jnp.clip(jnp.round(out), 0, 255) if images.dtype == jnp.uint8 else out).astype(images.dtype)


def resize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Whole images [B, H, W, C] at another height and width (bilinear, antialiased)."""
    whole = jnp.broadcast_to(jnp.asarray(images.shape[1:3], jnp.float32), (len(images), 2))
    return _windows(images, jnp.zeros_like(whole), whole, size)


def _rectangles(
    area_key: jax.Array, aspect_key: jax.Array, shape: tuple[int, ...], area: Range, aspect: Range
) -> jax.Array:
    """float32 [B, 2], height and width of a rectangle for each image [B, H, W, C] of `shape`, in pixels."""
    count, height, width, _ = shape
    part = jax.random.uniform(area_key, (count,), jnp.float32, *area) * height * width
    low, high = (jnp.log(jnp.float32(end)) for end in aspect)
    ratio = jnp.exp(jax.random.uniform(aspect_key, (count,), jnp.float32, low, high))
    return jnp.stack([jnp.sqrt(part / ratio), jnp.sqrt(part * ratio)], -1)


@operation(_resized_shape)
def random_resized_crop(
    key: Key,
    batch: Batch,
    size: Size,
    area: Range = (0.08, 1.0),
    aspect: Range = (3 / 4, 4 / 3),
    antialias: bool = True,
) -> Batch:
    """Cuts a window of random area and aspect ratio out of each image and resizes it (bilinear).

    `area`, a fraction of the image's, is uniform; `aspect`, width / height, in its logarithm. `antialias`
    widens the filter as the window shrinks. Windows have fractions of pixels, and one that does not fit is
    cut to fit rather than drawn again. The filter takes in pixels beside the window; torchvision cuts first.
    Source: Szegedy et al. 2014, arXiv:1409.4842, section 6.
    """
    images = batch["image"]
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    sides = jnp.asarray(images.shape[1:3], jnp.float32)[None]
    extent = jnp.minimum(_rectangles(area_key, aspect_key, images.shape, area, aspect), sides)
    corner = jax.random.uniform(place_key, extent.shape, jnp.float32) * (sides - extent)
    return batch | {"image": _windows(images, corner, extent, pair(size), antialias)}


@operation(_jitter_shape)
def scale_jitter(key: Key, batch: Batch, size: Size, sides: Range = (256, 480)) -> Batch:
    """A random crop of each image, resized first so that its short side is uniform in `sides`, in pixels.

    The smallest of them must cover the crop.
    Source: Simonyan, Zisserman 2014, arXiv:1409.1556, 3.1; He et al. 2015, arXiv:1512.03385, section 3.4.
    """
    images = batch["image"]
    side_key, place_key = jax.random.split(key)
    side = jax.random.uniform(side_key, images.shape[:1], jnp.float32, *sides)
    whole = jnp.asarray(images.shape[1:3], jnp.float32)[None]
    shrinking = (min(images.shape[1:3]) / side)[:, None]
    extent = jnp.minimum(jnp.asarray(pair(size), jnp.float32)[None] * shrinking, whole)
    corner = jax.random.uniform(place_key, extent.shape, jnp.float32) * (whole - extent)
    return batch | {"image": _windows(images, corner, extent, pair(size))}


@operation()
def random_erasing(
    key: Key, batch: Batch, probability: float = 0.5, area: Range = (0.02, 0.33), aspect: Range = (0.3, 3.3)
) -> Batch:
    """Blackens (or, after normalize, greys) a rectangle, as in `random_resized_crop`, with that probability.

    Source: Zhong et al. 2017, arXiv:1708.04896, algorithm 1; filled with 0 rather than with noise.
    """
    images = batch["image"]
    area_key, aspect_key, place_key, chosen_key = jax.random.split(key, 4)
    sides = jnp.asarray(images.shape[1:3], jnp.int32)[None]
    drawn = jnp.round(_rectangles(area_key, aspect_key, images.shape, area, aspect))
    extent = jnp.minimum(drawn.astype(jnp.int32), sides)
    corner = jax.random.randint(place_key, extent.shape, 0, sides - extent + 1, jnp.int32)
    chosen = jax.random.bernoulli(chosen_key, np.float32(probability), images.shape[:1])
    hole = _box(images.shape, corner, extent) & chosen[:, None, None, None]
    return batch | {"image": jnp.where(hole, 0, images).astype(images.dtype)}


@operation()
def cutout(key: Key, batch: Batch, size: Size) -> Batch:
    """Sets a square centred on any pixel to 0, as far as it is inside (DeVries, Taylor 2017, 1708.04552)."""
    images = batch["image"]
    extent, sides = (jnp.asarray(each, jnp.int32)[None] for each in (pair(size), images.shape[1:3]))
    centre = jax.random.randint(key, (images.shape[0], 2), 0, sides, jnp.int32)
    hole = _box(images.shape, centre - extent // 2, extent)
    return batch | {"image": jnp.where(hole, 0, images).astype(images.dtype)}


def _box(shape: tuple[int, ...], corner: jax.Array, extent: jax.Array) -> jax.Array:
    """bool [B, H, W, 1]: true inside [corner, corner + extent) of each image."""
    end = corner + extent
    rows, columns = (jnp.arange(side, dtype=jnp.int32) for side in shape[1:3])
    row, column = rows[None, :, None], columns[None, None, :]
    inside = (row >= corner[:, 0, None, None]) & (row < end[:, 0, None, None])
    inside &= (column >= corner[:, 1, None, None]) & (column < end[:, 1, None, None])
    return inside[..., None]
