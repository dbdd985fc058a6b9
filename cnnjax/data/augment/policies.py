"""RandAugment and TrivialAugment: one of fourteen operations an image, all in one pass over the batch.

Every operation is a move of pixels, a table of 256 values a channel, or a blend with a blurred or grey image:
each image goes through one gather, one table and one blend, whose parameters its own operation sets.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment.color import away_from, grey, grey_or_rgb_shape, mean_grey
from cnnjax.data.augment.register import Batch, Key, operation


class _Range(NamedTuple):
    """The amount at magnitude 1 of RandAugment and, `wide`, of TrivialAugment, and whether it has a sign."""

    narrow: float
    wide: float
    signed: bool = True


# Amounts: shear as a slope, translations in pixels (narrow: parts of the side), rotations in degrees
# counter-clockwise; of the enhancements the factor less 1; posterize in bits lost; solarize in levels.
OPERATIONS = {
    "identity": _Range(0, 0),
    **dict.fromkeys(("shear_x", "shear_y"), _Range(0.3, 0.99)),
    **dict.fromkeys(("translate_x", "translate_y"), _Range(150 / 331, 32)),
    "rotate": _Range(30, 135),
    **dict.fromkeys(("brightness", "saturation", "contrast", "sharpness"), _Range(0.9, 0.99)),
    "posterize": _Range(4, 6, signed=False),
    "solarize": _Range(256, 256, signed=False),
    **dict.fromkeys(("autocontrast", "equalize"), _Range(0, 0)),
}
NAMES = tuple(OPERATIONS)
PerName = dict[str, jax.Array]  # a number or a flag for each operation, of one image


@operation(grey_or_rgb_shape, takes=("uint8",))
def rand_augment(key: Key, batch: Batch, magnitude: float = 0.3, count: int = 2) -> Batch:
    """Applies to each image `count` (the paper's N) of fourteen operations, at one magnitude, any sign.

    Uncovered pixels become 0. The paper's M = 9 of 30 is a magnitude of 0.3; 0 is the identity. Autocontrast
    and equalize have none. Source: Cubuk et al. 2019, arXiv:1909.13719, figure 2; ranges of torchvision's.
    """
    if not magnitude:
        return batch
    images, size = batch["image"], len(batch["image"])
    for one in jax.random.split(key, count):
        name_key, sign_key = jax.random.split(one)
        chosen = jax.random.randint(name_key, (size,), 0, len(NAMES), jnp.int32)
        positive = jax.random.bernoulli(sign_key, np.float32(0.5), (size,))
        alike = jnp.full(size, magnitude, jnp.float32)
        images = apply(images, chosen, _amounts(images.shape, chosen, alike, positive, "narrow"))
    return batch | {"image": images}


@operation(grey_or_rgb_shape, takes=("uint8",))
def trivial_augment(key: Key, batch: Batch, magnitude: float = 1.0) -> Batch:
    """Applies to each image one of fourteen operations, with a sign and a magnitude of its own.

    The magnitude is uniform from 0 to the given one; 0 is the identity. Uncovered pixels become 0.
    Source: Mueller, Hutter 2021, arXiv:2103.10158, table 1 (the wide space).
    """
    if not magnitude:
        return batch
    images, size = batch["image"], len(batch["image"])
    name_key, sign_key, amount_key = jax.random.split(key, 3)
    chosen = jax.random.randint(name_key, (size,), 0, len(NAMES), jnp.int32)
    drawn = jax.random.uniform(amount_key, (size,), jnp.float32, 0.0, float(magnitude))
    positive = jax.random.bernoulli(sign_key, np.float32(0.5), (size,))
    return batch | {"image": apply(images, chosen, _amounts(images.shape, chosen, drawn, positive, "wide"))}


def _amounts(
    shape: tuple[int, ...], chosen: jax.Array, magnitude: jax.Array, positive: jax.Array, space: str
) -> jax.Array:
    """float32 [B]: the signed amount of each image's operation; `space` is "narrow" or "wide"."""
    sides = {"translate_x": shape[2], "translate_y": shape[1]}
    narrow = [r.narrow * sides.get(name, 1) for name, r in OPERATIONS.items()]
    most = narrow if space == "narrow" else [r.wide for r in OPERATIONS.values()]
    signed = jnp.asarray([r.signed for r in OPERATIONS.values()])[chosen]
    return magnitude * jnp.asarray(most, jnp.float32)[chosen] * jnp.where(signed & ~positive, -1.0, 1.0)


def apply(images: jax.Array, chosen: jax.Array, amount: jax.Array) -> jax.Array:
    """Applies to each of uint8 [B, H, W, C], C 1 or 3, its operation as Pillow does (nearest pixels).

    `chosen`, int [B], are positions in `NAMES`; `amount`, float32 [B], is in the units of `OPERATIONS`.
    """

    def one(image: jax.Array, chosen: jax.Array, amount: jax.Array) -> jax.Array:
        is_one = {name: chosen == i for i, name in enumerate(NAMES)}
        amounts = {name: jnp.where(is_one[name], amount, 0.0) for name in NAMES}
        return _blended(_through_tables(_moved(image, amounts), amounts, is_one), amounts)

    return jax.vmap(one)(images, chosen, amount)


def _moved(image: jax.Array, amounts: PerName) -> jax.Array:
    """Output pixel (x, y) is the one nearest to where shear, translation and rotation take it, or 0."""
    height, width, _ = image.shape
    rows, columns = (jnp.arange(side, dtype=jnp.float32) + 0.5 for side in (height, width))
    y, x = jnp.meshgrid(rows, columns, indexing="ij")
    angle = -jnp.deg2rad(amounts["rotate"])
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    turned_x = cosine * (x - width / 2) + sine * (y - height / 2) + width / 2
    turned_y = -sine * (x - width / 2) + cosine * (y - height / 2) + height / 2
    from_x = turned_x + amounts["shear_x"] * y + amounts["translate_x"]
    from_y = turned_y + amounts["shear_y"] * x + amounts["translate_y"]
    column, row = jnp.floor(from_x).astype(jnp.int32), jnp.floor(from_y).astype(jnp.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    nearest = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], nearest, 0).astype(image.dtype)


def _through_tables(image: jax.Array, amounts: PerName, is_one: PerName) -> jax.Array:
    """What turns each level of a channel into another, by table."""
    channels = image.shape[-1]
    level, exact = jnp.arange(256, dtype=jnp.int32), jnp.arange(256, dtype=jnp.float32)
    pixels = image.reshape(-1, channels)
    counts = jax.vmap(lambda values: jnp.zeros(256, jnp.int32).at[values].add(1), -1)(pixels)  # [C, 256]
    bright = exact * (1 + amounts["brightness"])
    contrasted = away_from(mean_grey(image).ravel(), exact, 1 + amounts["contrast"])
    lost = jnp.round(amounts["posterize"]).astype(jnp.int32)
    tables = {
        "brightness": jnp.clip(bright, 0, 255).astype(jnp.int32),
        "contrast": jnp.clip(contrasted, 0, 255).astype(jnp.int32),
        "posterize": level >> lost << lost,
        "solarize": jnp.where(exact < 256 - amounts["solarize"], level, 255 - level),
        "autocontrast": jax.vmap(_autocontrast)(counts),
        "equalize": jax.vmap(_equalize)(counts),
    }
    table = jnp.broadcast_to(level, (channels, 256))
    for name, changed in tables.items():
        table = jnp.where(is_one[name], jnp.broadcast_to(changed, table.shape), table)
    through = jax.vmap(lambda row, values: row[values], (0, -1), -1)(table, image.astype(jnp.int32))
    return through.astype(image.dtype)


def _autocontrast(counts: jax.Array) -> jax.Array:
    """int32 [256]: the levels that occur, stretched to 0..255.

    Of whole numbers, where Pillow's floating ones make about 1 level in 230 one lower.
    """
    level = jnp.arange(256, dtype=jnp.int32)
    first, last = (jnp.argmax(each > 0).astype(jnp.int32) for each in (counts, counts[::-1]))
    low, high = first, 255 - last
    stretched = (level - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), level)


def _equalize(counts: jax.Array) -> jax.Array:
    """int32 [256]: the levels so that about as many pixels have each, with Pillow's whole numbers."""
    last = counts[255 - jnp.argmax(counts[::-1] > 0)]
    step = (counts.sum(dtype=jnp.int32) - last) // 255
    below = jnp.cumsum(counts, dtype=jnp.int32) - counts
    spread = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where((step > 0) & ((counts > 0).sum() > 1), spread, jnp.arange(256, dtype=jnp.int32))


def _blended(image: jax.Array, amounts: PerName) -> jax.Array:
    """Away from, or towards, the grey image (saturation) or the smoothed one (sharpness)."""
    values = image.astype(jnp.float32)
    height, width, _ = image.shape
    padded = jnp.pad(values, ((1, 1), (1, 1), (0, 0)), "edge")
    around = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    smooth = jnp.floor((around + 4 * values) / 13 + 0.5)
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    low = jnp.where(amounts["sharpness"] == 0, grey(image), jnp.where(edge, values, smooth))
    out = away_from(low, image, 1 + amounts["saturation"] + amounts["sharpness"])
    return jnp.clip(out, 0, 255).astype(image.dtype)
