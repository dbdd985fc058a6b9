"""A recipe of images in JAX: uint8 [H, W, C] of any size to the uint8 pixels of a network, for export.

Columns are resized before rows and rounded in between, as Pillow does it if that is less work: pixels differ
by a level here and there, and by more in noise that is squashed.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cnnjax.data.recipe import Recipe

Kernel = Callable[[jax.Array], jax.Array]


def _keys(x: jax.Array) -> jax.Array:
    """Keys 1981 with a = -1/2."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


# Of the distance from the middle in pixels, as Pillow has them.
KERNELS: Mapping[str, Kernel] = {
    "bilinear": lambda x: jnp.maximum(1 - x, 0),
    "bicubic": _keys,
    "lanczos": lambda x: jnp.where(x < 3, jnp.sinc(x) * jnp.sinc(x / 3), 0.0),
    "hamming": lambda x: jnp.where(x < 1, jnp.sinc(x) * (0.54 + 0.46 * jnp.cos(jnp.pi * x)), 0.0),
}


def cut(recipe: Recipe, image: jax.Array) -> jax.Array:
    """uint8 [H, W, C] as uint8 [*recipe.shape, C]; H and W may be symbols of `jax.export`."""
    lengths = [jnp.asarray(length, jnp.int32) for length in image.shape[:2]]
    firsts, sides = [jnp.zeros((), jnp.int32)] * 2, _resized(recipe, *lengths)
    if recipe.mode == "square":
        side = jnp.minimum(*lengths)
        firsts, lengths = [(length - side) // 2 for length in lengths], [side, side]
    pixels, inside = image.astype(jnp.float32), jnp.ones((1, 1, 1), bool)
    for axis in (1, 0):
        spare = sides[axis] - recipe.crop[axis]
        half = spare // 2
        up = jnp.where(spare >= 0, half % 2, 1) * (spare % 2)  # half to even, or below 0 to 0
        places = jnp.arange(recipe.shape[axis]) + half + up - recipe.margin
        matrix = _weights(recipe, image.shape[axis], firsts[axis], lengths[axis], sides[axis], places)
        moved = jnp.moveaxis(pixels, axis, -1)
        moved = jnp.matmul(moved, matrix, precision=jax.lax.Precision.HIGHEST)
        pixels = jnp.clip(jnp.floor(jnp.moveaxis(moved, -1, axis) + 0.5), 0, 255)
        within = (places >= 0) & (places < sides[axis])
        inside = inside & (within[:, None, None] if axis == 0 else within[None, :, None])
    fill = jnp.asarray(recipe.filled(image.shape[2]), jnp.float32)
    return jnp.where(inside, pixels, fill[None, None]).astype(jnp.uint8)


def _resized(recipe: Recipe, height: jax.Array, width: jax.Array) -> list[jax.Array]:
    """`Recipe.resized`."""
    if recipe.mode in ("squash", "square"):
        return [jnp.asarray(side, jnp.int32) for side in (recipe.resize[0], recipe.resize[-1])]
    if len(recipe.resize) == 1:
        side = jnp.asarray(recipe.resize[0], jnp.int32)
        long = side * jnp.maximum(height, width) // jnp.minimum(height, width)
        return [jnp.where(height <= width, side, long), jnp.where(height <= width, long, side)]
    rows, columns = recipe.resize
    taller = height * columns >= width * rows
    by_height = taller if recipe.mode == "border" else ~taller
    other = jnp.where(by_height, _divided(width * rows, height), _divided(height * columns, width))
    return [jnp.where(by_height, rows, other), jnp.where(by_height, other, columns)]


def _divided(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, half to even, at least 1."""
    whole, rest = a // b, 2 * (a % b)
    return jnp.maximum(1, whole + ((rest > b) | ((rest == b) & (whole % 2 == 1))).astype(a.dtype))


def _weights(
    recipe: Recipe, count: int, first: jax.Array, length: jax.Array, side: jax.Array, places: jax.Array
) -> jax.Array:
    """float32 [count, n]: what each of `count` inputs adds to `places` of the resized axis."""
    scale = length.astype(jnp.float32) / side.astype(jnp.float32)
    middle = (places.astype(jnp.float32) + 0.5) * scale
    inputs = jnp.arange(count, dtype=jnp.int32) - first
    distance = jnp.abs(inputs.astype(jnp.float32)[:, None] + 0.5 - middle[None]) / jnp.maximum(scale, 1.0)
    weights = KERNELS[recipe.interpolation](distance)
    weights = jnp.where(((inputs >= 0) & (inputs < length))[:, None], weights, 0.0)
    total = weights.sum(0, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)
