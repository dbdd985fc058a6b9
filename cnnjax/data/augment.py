"""Augmentation on the device: keyed functions of a batch, and the string that chains them.

Every operation is `(key, images [B, H, W, C], **literals) -> images`; one that mixes labels is
`(key, images, labels, **literals) -> (images, labels)`. A new one is a function under
`@operation(...)`, and a row in `ARGUMENTS` for each argument name that is not there yet: it is then
legal in the string that `parse` checks, as in `"random_crop(28, padding=2)|mirror|normalize"`.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.errors import UserError, unknown
from cnnjax.spec import parse_call

Shape = tuple[int, int, int]
PADDING_MODES = ("zero", "reflect")


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_size(value: Any) -> bool:
    pair = value if isinstance(value, tuple) else (value, value)
    return len(pair) == 2 and all(_is_count(side, 1) for side in pair)


def _is_channels(value: Any, positive: bool) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(_is_number(v) and (v > 0 or not positive) for v in values)


# An argument name means the same thing in every operation: what it may be, and that in words.
ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "probability": (lambda v: _is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
    "size": (_is_size, "a whole number of pixels >= 1, or (height, width)"),
    "padding": (lambda v: _is_count(v, 0), "a whole number of pixels >= 0"),
    "padding_mode": (lambda v: v in PADDING_MODES, " or ".join(map(repr, PADDING_MODES))),
    "mean": (lambda v: _is_channels(v, False), "a number, or a tuple of one for each channel"),
    "std": (lambda v: _is_channels(v, True), "a number > 0, or a tuple of one for each channel"),
}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One augmentation and what `parse` must know about it before anything compiles.

    Attributes:
      apply: the function of a batch.
      output_shape: (image_shape, arguments) -> the shape [H, W, C] of an image after it; raises
        UserError where the arguments do not fit the image.
      takes: the kinds of pixel it works on: "uint8", "unit" (float in [0, 1]), "normalized".
      gives: the kind it leaves behind; None where it keeps what it was given.
      mixes_labels: whether it takes and returns labels too.
    """

    apply: Callable
    output_shape: Callable[[Shape, dict[str, Any]], Shape]
    takes: tuple[str, ...] = ("uint8", "unit", "normalized")
    gives: str | None = None
    mixes_labels: bool = False

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its literal arguments, in order: what follows key, images (and labels)."""
        every = list(inspect.signature(self.apply).parameters.items())
        return dict(every[3 if self.mixes_labels else 2 :])


AUGMENTATIONS: dict[str, Operation] = {}


def operation(output_shape: Callable | None = None, **facts: Any) -> Callable:
    """Registers a function under its own name in `AUGMENTATIONS`; `facts` as in `Operation`."""

    def register(apply: Callable) -> Callable:
        keep = output_shape or (lambda shape, arguments: shape)
        AUGMENTATIONS[apply.__name__] = Operation(apply, keep, **facts)
        return apply

    return register


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


def _channel_shape(shape: Shape, arguments: dict[str, Any]) -> Shape:
    """[H, W, C] unchanged; raises UserError where mean or std has another number of channels."""
    for name in ("mean", "std"):
        value = arguments[name]
        if isinstance(value, tuple) and len(value) not in (1, shape[2]):
            raise UserError(
                f"{name} = {value} has {len(value)} channels; allowed: {shape[2]}, as the image has"
            )
    return shape


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


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A checked chain of operations: `augmentation(key, images) -> images`.

    Given labels too, it returns `(images, labels)`. Operation i draws from `fold_in(key, i)`, so
    the same key gives the same images. `str()` is the normalised spec.

    Attributes:
      steps: (name, arguments) in order, data set's mean and std filled in.
      spec: the normalised spec.
      output_shape: [H, W, C] of an image after the chain.
    """

    steps: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    spec: str
    output_shape: Shape

    def __call__(self, key: jax.Array, images: jax.Array, labels: jax.Array | None = None) -> Any:
        images, given = jnp.asarray(images), labels is not None
        for position, (name, arguments) in enumerate(self.steps):
            op = AUGMENTATIONS[name]
            step_key = jax.random.fold_in(key, position)
            if not op.mixes_labels:
                images = op.apply(step_key, images, **dict(arguments))
            elif given:
                images, labels = op.apply(step_key, images, labels, **dict(arguments))
            else:
                raise UserError(f"augmentation {name} mixes labels; pass them with the images")
        return (images, labels) if given else images

    def __str__(self) -> str:
        return self.spec


def _read_call(text: str) -> tuple[str, dict[str, Any]]:
    """The operation's name and its checked arguments as written: `mirror` or `mirror(0.5)`."""
    name, values, named = parse_call(text, "augmentation")
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    parameters = list(AUGMENTATIONS[name].parameters)
    if len(values) > len(parameters):
        takes = ", ".join(parameters) or "none"
        raise UserError(f"augmentation {name}: {len(values)} values; its arguments: {takes}")
    arguments = dict(zip(parameters, values, strict=False))
    for argument, value in named.items():
        if argument not in parameters:
            raise unknown(f"argument of augmentation {name}", argument, parameters)
        if argument in arguments:
            raise UserError(f"augmentation {name}: {argument} is given twice; give it once")
        arguments[argument] = value
    for argument, value in arguments.items():
        arguments[argument] = value = tuple(value) if isinstance(value, list) else value
        test, words = ARGUMENTS[argument]
        if not test(value):
            raise UserError(f"augmentation {name}: {argument} = {value!r}; allowed: {words}")
    return name, arguments


def _write_call(name: str, arguments: dict[str, Any]) -> str:
    """The call with leading required arguments by position, others by name, no defaults."""
    words, by_position = [], True
    for argument, parameter in AUGMENTATIONS[name].parameters.items():
        by_position = by_position and argument in arguments and parameter.default is parameter.empty
        if argument in arguments and arguments[argument] != parameter.default:
            value = repr(arguments[argument])
            words.append(value if by_position else f"{argument}={value}")
    return f"{name}({', '.join(words)})" if words else name


def _complete(name: str, arguments: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """The arguments with defaults and the data set's mean and std filled in."""
    full = {}
    for argument, parameter in AUGMENTATIONS[name].parameters.items():
        value = arguments.get(argument, parameter.default)
        if value is parameter.empty and argument not in dataset:
            words = ARGUMENTS[argument][1]
            raise UserError(f"augmentation {name}: {argument} is missing; allowed: {words}")
        full[argument] = dataset[argument] if value is parameter.empty else value
    return full


def parse(
    spec: str,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Augmentation:
    """Reads a chain such as "random_crop(28, padding=2)|mirror|normalize" and checks all of it.

    Args:
      spec: operations of `AUGMENTATIONS` joined by |; arguments are literals, nothing is evaluated.
      image_shape: [H, W, C] of the images that go in, which are uint8.
      mean: the data set's channel means on the scale 0..1, for a `normalize` without them.
      std: the data set's channel standard deviations, likewise.
    Raises: UserError naming the operation, the argument, the value and what is allowed; also where
      the chain does not end in floating pixels.
    """
    calls = spec.split("|") if spec.strip() else []
    dataset = {k: tuple(map(float, v)) for k, v in (("mean", mean), ("std", std)) if v is not None}
    shape, kind, steps, words = tuple(map(int, image_shape)), "uint8", [], []
    for name, arguments in map(_read_call, calls):
        op = AUGMENTATIONS[name]
        if kind not in op.takes:
            raise UserError(
                f"augmentation {name} in {spec!r} works on {' or '.join(op.takes)} pixels,"
                f" and here they are {kind} already; put it earlier or leave it out"
            )
        full = _complete(name, arguments, dataset)
        try:
            shape = op.output_shape(shape, full)
        except UserError as error:
            raise UserError(f"augmentation {name}: {error}") from None
        kind = op.gives or kind
        steps.append((name, tuple(full.items())))
        words.append(_write_call(name, arguments))
    if kind == "uint8":
        raise UserError(
            f"augmentation {spec!r} leaves uint8 pixels, and a model needs floating ones;"
            " end it with normalize or scale"
        )
    return Augmentation(tuple(steps), "|".join(words), shape)
