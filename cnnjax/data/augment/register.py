"""The register of augmentations, and what their arguments may be."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

Shape = tuple[int, int, int]  # [H, W, C]
Batch = dict[str, jax.Array]
Key = jax.Array  # of random numbers
Arguments = Mapping[str, Any]  # literals by name
MOST_PIXELS = 2**14  # of a side
PADDING_MODES = ("zero", "reflect")


def _is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and low <= value <= high


def _is_count(value: Any, least: int, most: int = MOST_PIXELS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_size(value: object) -> bool:
    pair = value if isinstance(value, tuple) else (value, value)
    return len(pair) == 2 and all(_is_count(side, 1) for side in pair)


def _is_channels(value: object, positive: bool) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(_is_number(v) and (v > 0 or not positive) for v in values)


def _is_range(value: Any, high: float = math.inf) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    return pair and 0 < value[0] <= value[1] <= high


def _is_matrix(value: Any) -> bool:
    rows = isinstance(value, tuple) and all(isinstance(row, tuple | list) for row in value)
    return rows and all(len(row) == len(value) and all(map(_is_number, row)) for row in value)


# An argument name means the same thing in every augmentation: a check, and what it allows in words.
ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("probability", "magnitude"), (lambda v: _is_number(v, 0, 1), "a number in [0, 1]")),
    **dict.fromkeys(("strength", "alpha", "cutmix_alpha"), (lambda v: _is_number(v, 0), "a number >= 0")),
    "num_classes": (lambda v: _is_count(v, 1, 2**20), "a whole number >= 1 and <= 2**20"),
    "count": (lambda v: _is_count(v, 1, 64), "a whole number >= 1 and <= 64"),
    "size": (_is_size, "a whole number of pixels >= 1 and <= 2**14, or (height, width)"),
    "padding": (lambda v: _is_count(v, 0), "a whole number of pixels >= 0 and <= 2**14"),
    "padding_mode": (lambda v: v in PADDING_MODES, " or ".join(map(repr, PADDING_MODES))),
    "mean": (lambda v: _is_channels(v, False), "a number, or a tuple with one for each channel"),
    "std": (lambda v: _is_channels(v, True), "a number > 0, or a tuple with one for each channel"),
    "covariance": (_is_matrix, "C tuples of C numbers"),
    "hue": (lambda v: _is_number(v, 0, 0.5), "a number in [0, 0.5], of the colour circle"),
    "area": (lambda v: _is_range(v, 1), "(low, high) with 0 < low <= high <= 1"),
    "aspect": (_is_range, "(low, high) with 0 < low <= high"),
    "sides": (lambda v: _is_range(v, MOST_PIXELS), "(low, high) with 0 < low <= high <= 2**14, in pixels"),
    "antialias": (lambda v: isinstance(v, bool), "True or False"),
}


Apply = Callable[..., Batch]  # (key, batch, **literals) -> batch
OutputShape = Callable[[Shape, Arguments], Shape]
Names = tuple[str, ...]
ANY = ("uint8", "unit", "normalized")


def same_shape(shape: Shape, arguments: Arguments) -> Shape:
    """The output shape of an augmentation that keeps it."""
    return shape


@dataclasses.dataclass(frozen=True)
class Operation:
    """One augmentation, and what must be known about it before anything compiles."""

    apply: Apply
    output_shape: OutputShape = same_shape  # raises UserError for arguments that do not fit the image
    takes: Names = ANY  # kinds of pixel: "uint8", "unit" (float in [0, 1]), "normalized"
    gives: str | None = None  # the kind it leaves behind; None keeps the kind
    needs: Names = ()  # entries of the batch that it reads beside "image"
    draws: bool = True  # at random, so that evaluation must not have it

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its literal arguments, in order: what follows key and batch."""
        return dict(list(inspect.signature(self.apply).parameters.items())[2:])


AUGMENTATIONS: dict[str, Operation] = {}


def operation(
    output_shape: OutputShape = same_shape,
    *,
    takes: Names = ANY,
    gives: str | None = None,
    needs: Names = (),
    draws: bool = True,
) -> Callable[[Apply], Apply]:
    """Registers a function under its own name in `AUGMENTATIONS`; see `Operation`.

    Raises RuntimeError if another function has the name, or if an argument has no row in `ARGUMENTS`.
    """

    def register(apply: Apply) -> Apply:
        name, made = apply.__name__, Operation(apply, output_shape, takes, gives, needs, draws)
        before = AUGMENTATIONS.get(name, made).apply  # the same one if its module is loaded again
        if (before.__module__, before.__qualname__) != (apply.__module__, apply.__qualname__):
            where = f"by {before.__module__} and {apply.__module__}"
            raise RuntimeError(f"augmentation {name!r} is claimed twice, {where}; rename one")
        if new := [argument for argument in made.parameters if argument not in ARGUMENTS]:
            problem = f"its argument {new[0]} has no row in `ARGUMENTS`"
            raise RuntimeError(f"augmentation {name}: {problem}; add one in {__name__}")
        AUGMENTATIONS[name] = made
        return apply

    return register
