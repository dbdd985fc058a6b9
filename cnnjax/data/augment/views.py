"""Test protocols: the views of an image whose class probabilities are averaged.

A protocol is a call of literals: `center`, `mirror`, `mirror_translate(pixels=1)`, or `ten_crop` and
`multi_scale(sides=(224, 256, 384))`, whose views replace the `center_crop` of evaluation's augmentation.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cnnjax.data.augment.chain import Augmentation
from cnnjax.data.augment.geometry import pair, resize
from cnnjax.data.augment.register import AUGMENTATIONS, Shape
from cnnjax.errors import UserError, by_name, parse_call
from cnnjax.ops.activations import identity

Images = Callable[[jax.Array], jax.Array]
Place = tuple[int, int, bool]  # top, left, mirrored


@dataclasses.dataclass(frozen=True)
class Views:
    """Windows of one size out of images that are prepared once."""

    prepare: Images  # images uint8 [B, H, W, C] -> the images that the windows are cut from
    finish: Images  # a window -> the network's input
    size: tuple[int, int]  # height and width of the windows
    input_shape: Shape  # [H, W, C] of the network's input
    places: tuple[Place, ...]  # of each window
    weights: tuple[float, ...]  # of each window in the average; those of a protocol sum to 1

    def log_softmax(self, apply: Images, images: jax.Array) -> jax.Array:
        """[V, B, K]: log of weight times softmax of each window; a scan, so the network compiles once."""
        prepared = self.prepare(images)
        window = (prepared.shape[0], *self.size, prepared.shape[3])

        def look(view: tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]) -> jax.Array:
            (top, left, mirrored), weight = view
            cut = jax.lax.dynamic_slice(prepared, (0, top, left, 0), window)
            cut = jnp.where(mirrored, cut[:, :, ::-1], cut)
            return jnp.log(weight) + jax.nn.log_softmax(apply(self.finish(cut)).astype(jnp.float32))

        top, left, mirrored = map(jnp.asarray, zip(*self.places, strict=True))
        return jax.lax.map(look, ((top, left, mirrored), jnp.asarray(self.weights, jnp.float32)))


@dataclasses.dataclass(frozen=True)
class Protocol:
    """`protocol(apply, images)`: the logits [B, K] that `apply` gives, averaged over the views."""

    spec: str  # the call as it was written
    augment: Augmentation  # of the view in the middle
    views: tuple[Views, ...] = ()  # none for `center`, whose logits are the network's own

    def __call__(self, apply: Images, images: jax.Array) -> jax.Array:
        """Float32 [B, K]: the logarithm of the weighted mean of the softmax, or `center`'s logits."""
        if not self.views:
            return apply(self.augment.preprocess(images))
        weighed = [views.log_softmax(apply, images) for views in self.views]
        return jax.nn.logsumexp(jnp.concatenate(weighed), axis=0)

    @property
    def input_shapes(self) -> set[Shape]:
        """[H, W, C] of all that the network is given."""
        return {views.input_shape for views in self.views} or {self.augment.output_shape}


def _both_ways(*corners: tuple[int, int]) -> tuple[Place, ...]:
    return tuple((top, left, mirrored) for mirrored in (False, True) for top, left in corners)


def _at_crop(
    augment: Augmentation, image_shape: Shape, name: str
) -> tuple[Augmentation, Augmentation, tuple[int, int]]:
    """The part of an augmentation before its first center_crop, the part after it, and the crop's size."""
    names = [step for step, _ in augment.steps]
    if "center_crop" not in names:
        allowed = "one with center_crop(SIZE), which the views replace"
        raise UserError(f"protocol={name}: augmentation {augment.spec!r} has no crop; allowed: {allowed}")
    at = names.index("center_crop")
    parts = augment.steps[:at], augment.steps[at + 1 :]
    before, after = (dataclasses.replace(augment, steps=steps) for steps in parts)
    before = dataclasses.replace(before, output_shape=_shape_after(before, image_shape, name))
    kinds = [augment.takes, *(AUGMENTATIONS[step].gives for step, _ in before.steps)]
    after = dataclasses.replace(after, takes=[kind for kind in kinds if kind][-1])
    return before, after, pair(dict(augment.steps[at][1])["size"])


def _shape_after(augment: Augmentation, shape: Shape, name: str) -> Shape:
    """[H, W, C] of an image of another shape after its steps; UserError if one of them does not fit."""
    for step, arguments in augment.steps:
        try:
            shape = AUGMENTATIONS[step].output_shape(shape, dict(arguments))
        except UserError as error:
            raise UserError(f"protocol={name}: augmentation {step}: {error}") from None
    return shape


def center(augment: Augmentation, image_shape: Shape) -> tuple[Views, ...]:
    """One view: what `augment` gives."""
    return ()


def mirror(augment: Augmentation, image_shape: Shape) -> tuple[Views, ...]:
    """Two views: what `augment` gives, and its mirror image."""
    shape = augment.output_shape
    return (Views(augment.preprocess, identity, shape[:2], shape, _both_ways((0, 0)), (0.5, 0.5)),)


def mirror_translate(augment: Augmentation, image_shape: Shape, pixels: int = 1) -> tuple[Views, ...]:
    """Six views: the image and its mirror image weigh half, both moved up-left and down-right the other half.

    Source: Jordan 2024, airbench94 (edges reflected, the same weights); it averages logits, not softmax.
    """
    shape = augment.output_shape
    most = min(shape[:2]) - 1
    if type(pixels) is not int or not 0 < pixels <= most:
        raise UserError(f"protocol=mirror_translate: pixels={pixels!r}; allowed: 1 to {most}")
    prepare = functools.partial(_with_margin, augment, pixels)
    places = _both_ways((pixels, pixels), (0, 0), (2 * pixels, 2 * pixels))
    return (Views(prepare, identity, shape[:2], shape, places, (0.25, 0.125, 0.125) * 2),)


def _with_margin(augment: Augmentation, pixels: int, images: jax.Array) -> jax.Array:
    margin = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    return jnp.pad(augment.preprocess(images), margin, "reflect")


def ten_crop(augment: Augmentation, image_shape: Shape) -> tuple[Views, ...]:
    """The corners, the middle, and their mirror images (Krizhevsky, Sutskever, Hinton 2012, section 4.1)."""
    before, after, size = _at_crop(augment, image_shape, "ten_crop")
    bottom, right = before.output_shape[0] - size[0], before.output_shape[1] - size[1]
    places = _both_ways((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    return (Views(before.preprocess, after.preprocess, size, after.output_shape, places, (0.1,) * 10),)


def multi_scale(
    augment: Augmentation, image_shape: Shape, sides: tuple[int, ...] = (224, 256, 384, 480, 640)
) -> tuple[Views, ...]:
    """The whole image and its mirror image at several short sides; the network must take images of any size.

    Source: He et al. 2015, arXiv:1512.03385, section 3.4 (the same sides); scores are averaged as softmax.
    """
    if not isinstance(sides, tuple | list) or not sides or not all(type(s) is int and s > 0 for s in sides):
        allowed = "whole numbers of pixels, as in (224, 256)"
        raise UserError(f"protocol=multi_scale: sides={sides!r}; allowed: {allowed}")
    before, after, _ = _at_crop(augment, image_shape, "multi_scale")
    height, width, channels = before.output_shape

    def at(side: int) -> Views:
        ratio, weights = side / min(height, width), (0.5 / len(sides),) * 2
        size = (round(height * ratio), round(width * ratio))
        shape = _shape_after(after, (*size, channels), "multi_scale")
        prepare = functools.partial(_at_size, before, size)
        return Views(prepare, after.preprocess, size, shape, _both_ways((0, 0)), weights)

    return tuple(map(at, sides))


def _at_size(augment: Augmentation, size: tuple[int, int], images: jax.Array) -> jax.Array:
    return resize(augment.preprocess(images), size)


PROTOCOLS: dict[str, Callable[..., tuple[Views, ...]]] = {
    each.__name__: each for each in (center, mirror, mirror_translate, ten_crop, multi_scale)
}


def parse(spec: str, augment: Augmentation, image_shape: Sequence[int]) -> Protocol:
    """Reads and checks a call of `PROTOCOLS`; `augment` is that of evaluation, parsed for `image_shape`."""
    name, values, named = parse_call(spec, "protocol")
    views = by_name("protocol", name, PROTOCOLS)
    own = list(inspect.signature(views).parameters)[2:]
    if len(values) > len(own) or set(named) - set(own[len(values) :]):
        raise UserError(f"protocol={spec!r}: its values are: {', '.join(own) or 'none'}")
    return Protocol(spec.strip(), augment, views(augment, image_shape, *values, **named))
