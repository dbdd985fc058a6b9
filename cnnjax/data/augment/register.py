"""The register of augmentations, and what their arguments may be."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

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


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(map(_is_number, value))
        and 0 < value[0] <= value[1]
    )


def _is_matrix(value: Any) -> bool:
    rows = isinstance(value, tuple) and all(isinstance(row, tuple | list) for row in value)
    return rows and all(len(row) == len(value) and all(map(_is_number, row)) for row in value)


# An argument name means the same thing in every operation: what it may be, and that in words.
ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "probability": (lambda v: _is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
    "size": (_is_size, "a whole number of pixels >= 1, or (height, width)"),
    "padding": (lambda v: _is_count(v, 0), "a whole number of pixels >= 0"),
    "padding_mode": (lambda v: v in PADDING_MODES, " or ".join(map(repr, PADDING_MODES))),
    "mean": (lambda v: _is_channels(v, False), "a number, or a tuple of one for each channel"),
    "std": (lambda v: _is_channels(v, True), "a number > 0, or a tuple of one for each channel"),
    "covariance": (_is_matrix, "C tuples of C numbers"),
    "strength": (lambda v: _is_number(v) and v >= 0, "a number >= 0"),
    "magnitude": (lambda v: _is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
    "count": (lambda v: _is_count(v, 1), "a whole number >= 1"),
    "hue": (lambda v: _is_number(v) and 0 <= v <= 0.5, "a number in [0, 0.5], of the colour circle"),
    "alpha": (lambda v: _is_number(v) and v >= 0, "a number >= 0"),
    "area": (lambda v: _is_range(v) and v[1] <= 1, "(low, high) with 0 < low <= high <= 1"),
    "aspect": (_is_range, "(low, high) with 0 < low <= high"),
    "sides": (_is_range, "(low, high) with 0 < low <= high, in pixels"),
    "antialias": (lambda v: isinstance(v, bool), "True or False"),
}


class Examples(NamedTuple):
    """Which examples a batch holds: what a draw that belongs to an example rather than to a step is made of.

    `key` is the same at every step of a run; `index` (place in the source) and `epoch` are int32 [B].
    """

    key: jax.Array
    index: jax.Array
    epoch: jax.Array


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
      takes_examples: whether it takes `Examples` after the images, and what it draws is theirs.
    """

    apply: Callable
    output_shape: Callable[[Shape, dict[str, Any]], Shape]
    takes: tuple[str, ...] = ("uint8", "unit", "normalized")
    gives: str | None = None
    mixes_labels: bool = False
    takes_examples: bool = False

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its literal arguments, in order: what follows key, images (and labels, or examples)."""
        every = list(inspect.signature(self.apply).parameters.items())
        return dict(every[3 if self.mixes_labels or self.takes_examples else 2 :])


AUGMENTATIONS: dict[str, Operation] = {}


def operation(output_shape: Callable | None = None, **facts: Any) -> Callable:
    """Registers a function under its own name in `AUGMENTATIONS`; `facts` as in `Operation`."""

    def register(apply: Callable) -> Callable:
        keep = output_shape or (lambda shape, arguments: shape)
        AUGMENTATIONS[apply.__name__] = Operation(apply, keep, **facts)
        return apply

    return register
