"""Output sizes, padding and receptive fields of windows, computed from numbers alone."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

from cnnjax.errors import UserError, check_count, unknown

Pair = tuple[int, int]
Size = int | Sequence[int]  # two of them
Sides = tuple[Pair, Pair]
Padding = str | int | Sequence[int | Sequence[int]]


def pair(value: Size, what: str, minimum: int = 1) -> Pair:
    """One int or (height, width) as two ints >= `minimum`; UserError, naming `what`, for anything else."""
    try:
        height, width = map(operator.index, value if isinstance(value, Sequence) else (value, value))
    except (TypeError, ValueError):
        height = width = minimum - 1
    if min(height, width) < minimum:
        allowed = f"an int of at least {minimum} or a pair (height, width) of them"
        raise UserError(f"{what} {value!r}: allowed are {allowed}")
    return height, width


def conv_output_size(
    size: int, window: int, stride: int = 1, padding: Size = (0, 0), dilation: int = 1
) -> int:
    """Length of one axis after a convolution: (W - F + 2P) / S + 1, rounded down.

    W is `size`, F `window` (with dilation D it covers (F - 1) D + 1 pixels), S `stride`, and P `padding`:
    (before, after), or the same on both sides. UserError if the window is larger than the padded axis.
    """
    _check_axis(size, window, stride, dilation)
    before, after = pair(padding, "padding", 0)
    covered = (window - 1) * dilation + 1
    if covered > size + before + after:
        given = f"window {window} with dilation {dilation} covers {covered} pixels, more than size {size}"
        raise UserError(f"{given} with padding {before} + {after}: use a smaller window or more padding")
    return (size + before + after - covered) // stride + 1


def pool_output_size(size: int, window: int, stride: int, padding: Size = (0, 0), ceil: bool = False) -> int:
    """Length of one axis after pooling: (W - F + 2P) / S + 1 as in `conv_output_size`, or rounded up.

    With `ceil`, as in Caffe and torch, the last window may extend beyond the end, but starts inside the image
    or the padding before it. UserError if no window fits, one sees only padding, or a number is out of range.
    """
    before, after = pair(padding, "padding", 0)
    if max(before, after) >= window:
        given = f"padding {before} + {after} of a pooling window {window}"
        raise UserError(f"{given}: each side must be smaller than the window, which otherwise sees no pixel")
    if not ceil:
        return conv_output_size(size, window, stride, (before, after))
    _check_axis(size, window, stride, 1)
    count = -(-(size + before + after - window) // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    if count < 1:
        given = f"pooling window {window} is larger than size {size} with padding {before} + {after}"
        raise UserError(f"{given} by a whole stride {stride}: use a smaller window or more padding")
    return count


def first_inside(count: int, stride: int, before: int) -> tuple[int, ...]:
    """The first place in each of `count` windows along an axis that is past the padding before the image."""
    return tuple(max(before - stride * i, 0) for i in range(count))


def resolve_padding(padding: Padding, window: Size, strides: Size, dilation: Size, size: Size) -> Sides:
    """A padding, however it is written, as ((top, bottom), (left, right)).

    It is "valid" (none), "same" (the output has ceil(size / stride) pixels; an odd pixel of padding goes to
    the bottom and right, as in XLA), an int for all sides, (height, width) ints, or a pair (before, after)
    for each axis; UserError for another word, shape or a negative number.
    """
    if isinstance(padding, str):
        if padding.lower() not in ("valid", "same"):
            raise unknown("padding", padding, ("valid", "same"))
        if padding.lower() == "valid":
            return (0, 0), (0, 0)
        given = {"window": window, "strides": strides, "dilation": dilation, "size": size}
        height, width = map(_same, *(pair(value, name) for name, value in given.items()))
        return height, width
    try:
        axes = tuple(padding) if isinstance(padding, Sequence) else (padding, padding)
        height, width = (pair(axis, "padding", 0) for axis in axes)  # type: ignore[arg-type]  # no str here
    except (UserError, ValueError) as error:
        allowed = "'valid', 'same', an int of at least 0, (height, width) or ((top, bottom), (left, right))"
        raise UserError(f"padding {padding!r}: allowed are {allowed}") from error
    return height, width


class ReceptiveField(NamedTuple):
    """What one output pixel of a stack of windows sees of the input, along one axis."""

    size: int  # pixels of the input that it sees
    jump: int  # pixels of the input between two neighbouring outputs
    start: int  # index of the first pixel that output 0 sees; negative inside the padding

    @property
    def center(self) -> float:
        """Position of the middle of output 0's field, in pixels from the middle of pixel 0."""
        return self.start + (self.size - 1) / 2


def receptive_field(layers: Sequence[Sequence[int]]) -> ReceptiveField:
    """The receptive field of a stack of convolutions and poolings along one axis.

    `layers` has (window, stride[, padding before[, dilation]]) for each layer, starting at the image.
    """
    size, jump, start = 1, 1, 0
    for index, layer in enumerate(layers):
        if not 2 <= len(layer) <= 4:
            allowed = "(window, stride), (window, stride, padding) and (window, stride, padding, dilation)"
            raise UserError(f"layers[{index}] {tuple(layer)!r}: allowed are {allowed}")
        window, stride, padding, dilation = (*layer, *(0, 1)[len(layer) - 2 :])
        _check_axis(1, window, stride, dilation)
        check_count(f"layers[{index}] {tuple(layer)!r}: padding", padding, 0)
        size += (window - 1) * dilation * jump
        start -= padding * jump
        jump *= stride
    return ReceptiveField(size, jump, start)


def _same(window: int, stride: int, dilation: int, size: int) -> tuple[int, int]:
    """Padding (before, after) that gives ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _check_axis(size: int, window: int, stride: int, dilation: int) -> None:
    given = f"size {size}, window {window}, stride {stride}, dilation {dilation}"
    if min(size, window, stride, dilation) < 1:
        raise UserError(f"{given}: each must be at least 1")
    if any(isinstance(number, float) for number in (size, window, stride, dilation)):
        raise UserError(f"{given}: each must be a whole number")
