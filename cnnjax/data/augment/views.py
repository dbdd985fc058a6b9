"""Test protocols: the views of an image whose class probabilities are averaged.

A protocol is written as a call of literals: `center`, `mirror`, `mirror_translate(pixels=1)`, `ten_crop` or
`multi_scale(sides=(224, 256, 384))`. `ten_crop` and `multi_scale` look at the image before the `center_crop`
of the evaluation's augmentation, and put their own views in its place.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.data.augment.chain import Augmentation
from cnnjax.data.augment.geometry import resize
from cnnjax.errors import UserError, parse_call, unknown

Chain = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Views:
    """Windows of one size out of images that are prepared once.

    Attributes:
      prepare: images uint8 [B, H, W, C] -> what the windows are cut from.
      finish: a window -> what the network takes.
      size: height and width of the windows.
      places: (top, left, mirrored) of each window.
      weights: of each window in the average; those of a protocol sum to 1.
    """

    prepare: Chain
    finish: Chain
    size: tuple[int, int]
    places: tuple[tuple[int, int, bool], ...]
    weights: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """`protocol(apply, images)`: the logits [B, K] that `apply` gives, averaged over the views.

    Attributes:
      spec: the call as it was written.
      augment: of the view in the middle.
      views: none for `center`, whose logits are the network's own.
    """

    spec: str
    augment: Augmentation
    views: tuple[Views, ...] = ()

    def __call__(self, apply: Chain, images: jax.Array) -> jax.Array:
        """Float32 [B, K]: the logarithm of the weighted mean of the softmax, or `center`'s logits."""
        if not self.views:
            return apply(self.augment.preprocess(images))
        weighed = [_log_softmax(apply, views, images) for views in self.views]
        return jax.nn.logsumexp(jnp.concatenate(weighed), axis=0)

    @property
    def input_shapes(self) -> set[tuple[int, int, int]]:
        """[H, W, C] of all that the network is given."""
        channels = self.augment.output_shape[2]
        return {(*views.size, channels) for views in self.views} or {self.augment.output_shape}


def _log_softmax(apply: Chain, views: Views, images: jax.Array) -> jax.Array:
    """[V, B, K]: the logarithm of weight times softmax of each window; a scan: the network compiles once."""
    prepared = views.prepare(images)
    window = (prepared.shape[0], *views.size, prepared.shape[3])

    def look(view: Sequence[Any]) -> jax.Array:
        (top, left, mirrored), weight = view
        cut = jax.lax.dynamic_slice(prepared, (0, top, left, 0), window)
        cut = jnp.where(mirrored, cut[:, :, ::-1], cut)
        return jnp.log(weight) + jax.nn.log_softmax(apply(views.finish(cut)).astype(jnp.float32))

    places = tuple(map(jnp.asarray, zip(*views.places, strict=True)))
    return jax.lax.map(look, (places, jnp.asarray(views.weights, jnp.float32)))


def _both_ways(*places: tuple[int, int]) -> tuple[tuple[int, int, bool], ...]:
    return tuple((*place, mirrored) for mirrored in (False, True) for place in places)


def _chain(augment: Augmentation, start: int, end: int | None = None) -> Chain:
    return dataclasses.replace(augment, steps=augment.steps[start:end]).preprocess


def _at_crop(augment: Augmentation, name: str) -> tuple[Chain, Chain, tuple[int, int]]:
    """What an augmentation does before and after its center_crop, and the size of that."""
    names = [step for step, _ in augment.steps]
    if "center_crop" not in names:
        raise UserError(
            f"config.eval_protocol={name}: config.augment.eval={augment.spec!r} cuts no window; allowed: one "
            "with center_crop(SIZE), in whose place the views are put"
        )
    at = names.index("center_crop")
    size = dict(augment.steps[at][1])["size"]
    size = size if isinstance(size, tuple) else (size, size)
    return _chain(augment, 0, at), _chain(augment, at + 1), size


def _same(images: jax.Array) -> jax.Array:
    return images


def center(augment: Augmentation, image_shape: Sequence[int]) -> tuple[Views, ...]:
    """One view: what `augment` gives."""
    return ()


def mirror(augment: Augmentation, image_shape: Sequence[int]) -> tuple[Views, ...]:
    """Two views: what `augment` gives, and its mirror image."""
    places, size = _both_ways((0, 0)), augment.output_shape[:2]
    return (Views(_chain(augment, 0), _same, size, places, (0.5, 0.5)),)


def mirror_translate(augment: Augmentation, image_shape: Sequence[int], pixels: int = 1) -> tuple[Views, ...]:
    """Six views: the image and its mirror image weigh half, both moved up-left and down-right the other half.

    Source: Jordan 2024, airbench94 (edges reflected, the same weights); it averages logits, not softmax.
    """
    whole, size = _chain(augment, 0), augment.output_shape[:2]
    if type(pixels) is not int or not 0 < pixels < min(size):
        raise UserError(
            f"config.eval_protocol: mirror_translate: pixels={pixels!r}; allowed: 1 to {min(size) - 1}"
        )

    def prepare(images: jax.Array) -> jax.Array:
        return jnp.pad(whole(images), ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), "reflect")

    places = _both_ways((pixels, pixels), (0, 0), (2 * pixels, 2 * pixels))
    return (Views(prepare, _same, size, places, (0.25, 0.125, 0.125) * 2),)


def ten_crop(augment: Augmentation, image_shape: Sequence[int]) -> tuple[Views, ...]:
    """Ten views: the four corners and the middle of the image, and their mirror images.

    Source: Krizhevsky, Sutskever, Hinton 2012, section 4.1.
    """
    before, after, (height, width) = _at_crop(augment, "ten_crop")
    bottom, right = image_shape[0] - height, image_shape[1] - width
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    return (Views(before, after, (height, width), _both_ways(*corners), (0.1,) * 10),)


def multi_scale(
    augment: Augmentation,
    image_shape: Sequence[int],
    sides: tuple[int, ...] = (224, 256, 384, 480, 640),
) -> tuple[Views, ...]:
    """The whole image and its mirror image, at each of several short sides, without a crop.

    The network must take images of any size, as those that end in global average pooling do.
    Source: He et al. 2015, arXiv:1512.03385, section 3.4 (the same sides); scores are averaged as softmax.
    """
    if not isinstance(sides, tuple | list) or not sides or not all(type(s) is int and s > 0 for s in sides):
        raise UserError(
            f"config.eval_protocol: multi_scale: sides={sides!r}; allowed: whole numbers of pixels, as in "
            "(224, 256)"
        )
    before, after, _ = _at_crop(augment, "multi_scale")

    def at(side: int) -> Views:
        ratio = side / min(image_shape[:2])
        size = (round(image_shape[0] * ratio), round(image_shape[1] * ratio))
        weights = (0.5 / len(sides),) * 2
        return Views(lambda x: resize(before(x), size), after, size, _both_ways((0, 0)), weights)

    return tuple(map(at, sides))


PROTOCOLS = {each.__name__: each for each in (center, mirror, mirror_translate, ten_crop, multi_scale)}
_OWN = {"mirror_translate": ["pixels"], "multi_scale": ["sides"]}


def parse(spec: str, augment: Augmentation, image_shape: Sequence[int]) -> Protocol:
    """Reads a protocol and checks it.

    Args:
      spec: a call of `PROTOCOLS`.
      augment: of evaluation; parsed for images of
      image_shape: [H, W, C].
    Raises: UserError naming the field, what it holds and what is allowed.
    """
    name, values, named = parse_call(spec, "config.eval_protocol")
    if name not in PROTOCOLS:
        raise unknown("config.eval_protocol", name, PROTOCOLS)
    own = _OWN.get(name, [])
    if len(values) > len(own) or set(named) - set(own[len(values) :]):
        raise UserError(f"config.eval_protocol={spec!r}: its values are: {', '.join(own) or 'none'}")
    given = dict(zip(own, values, strict=False)) | named
    return Protocol(spec.strip(), augment, PROTOCOLS[name](augment, image_shape, **given))
