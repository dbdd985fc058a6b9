"""Which pixels of the image a value of a jaxpr depends on: receptive fields by abstract interpretation.

A value that depends on the image has a `Field`: for the image's rows and for its columns, the span that the
element at index 0 depends on and how far one step along each array axis moves it. Each primitive turns the
fields of its inputs into that of its output.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from jax.extend.core import JaxprEqn, Literal, Var

Shape = tuple[int, ...]
# Primitives of one shape in which a value depends on more than the values at its own place.
NOT_ELEMENTWISE = {
    *("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
    *("rev", "sort", "gather", "scatter"),
}


@dataclasses.dataclass(frozen=True)
class Span:
    """Pixels low..high of one axis of the image that the value at index 0 depends on.

    One step along array axis a moves both by `steps[a]` pixels.
    """

    low: float
    high: float
    steps: tuple[tuple[int, int], ...] = ()


Field = tuple[Span, Span]
EVERYWHERE: Final = (Span(-math.inf, math.inf), Span(-math.inf, math.inf))
# Of a value that depends on the image in a way that no rule here describes.
UNKNOWN: Final = (Span(math.nan, math.nan), Span(math.nan, math.nan))
Fields = Sequence[Field | None]  # None depends on no image
Shapes = Sequence[Shape]
Params = Mapping[str, Any]  # of an equation
Rule = Callable[[Fields, Shapes, Shape, Params], Field | None]


class Window(NamedTuple):
    """Values of one axis that are put together, with `before` values of padding."""

    size: int = 1
    stride: int = 1
    before: int = 0
    dilation: int = 1


def image_field() -> Field:
    """The field of an image [B, H, W, C] itself."""
    return Span(0, 0, ((1, 1),)), Span(0, 0, ((2, 1),))


def field_size(field: Field | None) -> tuple[float, float] | None:
    """Pixels (height, width) of a field; inf for one of unlike paths; None if unknown or not of the image."""
    if field is None or field is UNKNOWN:
        return None
    height, width = (span.high - span.low + 1 for span in field)
    return _whole(height), _whole(width)


def _whole(size: float) -> float:
    return size if math.isinf(size) else int(size)


def shape_of(variable: Var | Literal) -> Shape:
    """The shape of a variable of a jaxpr; () of one that is no array."""
    return getattr(variable.aval, "shape", ())


def output_field(eqn: JaxprEqn, fields: Fields) -> Field | None:
    """The field of an equation's first output from those of its inputs."""
    name, params = eqn.primitive.name, eqn.params
    if all(field is None for field in fields) or UNKNOWN in fields:
        return UNKNOWN if UNKNOWN in fields else None
    shapes, out = [shape_of(variable) for variable in eqn.invars], shape_of(eqn.outvars[0])
    if name in FIELD_RULES:
        return FIELD_RULES[name](fields, shapes, out, params)
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        return _reduced(fields[0], shapes[0], params["axes"])
    dependent = [shape for field, shape in zip(fields, shapes, strict=True) if field is not None]
    if name in NOT_ELEMENTWISE or not all(_spreads(shape, out) for shape in dependent):
        return UNKNOWN
    return _union(fields)


def _spreads(shape: Shape, out: Shape) -> bool:
    """Whether an operand of that shape is used place by place, axes of size 1 being repeated."""
    return len(shape) == len(out) and all(a in (1, b) for a, b in zip(shape, out, strict=True))


def _union(fields: Fields) -> Field:
    """Of values put together place by place."""
    rows, columns = zip(*(field for field in fields if field is not None), strict=True)
    return _union_span(rows), _union_span(columns)


def _union_span(spans: Sequence[Span]) -> Span:
    if any(set(span.steps) != set(spans[0].steps) for span in spans):
        return EVERYWHERE[0]
    return Span(min(span.low for span in spans), max(span.high for span in spans), spans[0].steps)


def _moved(
    field: Field | None, shape: Shape, axes: Mapping[int, int], windows: Mapping[int, Window] | None = None
) -> Field | None:
    """Once the windows of each axis are put together, and array axis a has become axes[a].

    The values along an axis that is not in `axes` are all put together.
    """
    if field is None:
        return None
    rows, columns = (_moved_span(span, shape, axes, windows or {}) for span in field)
    return rows, columns


def _moved_span(span: Span, shape: Shape, axes: Mapping[int, int], windows: Mapping[int, Window]) -> Span:
    low, high, steps = span.low, span.high, []
    for axis, step in span.steps:
        window = windows.get(axis, Window() if axis in axes else Window(shape[axis]))
        low -= window.before * step
        high += ((window.size - 1) * window.dilation - window.before) * step
        if axis in axes:
            steps.append((axes[axis], step * window.stride))
    return Span(low, high, tuple(steps))


def _reduced(field: Field | None, shape: Shape, axes: Sequence[int]) -> Field | None:
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    return _moved(field, shape, {axis: i for i, axis in enumerate(kept)})


def _windowed(field: Field | None, shape: Shape, windows: Sequence[Window]) -> Field | None:
    """Once each axis is put together by its window, and the axes stay where they are."""
    return _moved(field, shape, {axis: axis for axis in range(len(shape))}, dict(enumerate(windows)))


# The rules take the fields and shapes of the inputs, the shape of the output and the equation's parameters.


def _convolution(fields: Fields, shapes: Shapes, out: Shape, params: Params) -> Field | None:
    if fields[1] is not None or set(params["lhs_dilation"]) != {1}:
        return UNKNOWN
    image, kernel, result = params["dimension_numbers"]
    sizes = [shapes[1][axis] for axis in kernel[2:]]
    before = [padding[0] for padding in params["padding"]]
    windows = map(Window, sizes, params["window_strides"], before, params["rhs_dilation"])
    axes = dict(zip(image, result, strict=True))
    return _moved(fields[0], shapes[0], axes, dict(zip(image[2:], windows, strict=True)))


def _dot(fields: Fields, shapes: Shapes, out: Shape, params: Params) -> Field | None:
    if fields[0] is not None and fields[1] is not None:
        return EVERYWHERE
    side = 0 if fields[0] is not None else 1
    contracted, batch = (dims[side] for dims in params["dimension_numbers"])
    free = [axis for axis in range(len(shapes[side])) if axis not in (*contracted, *batch)]
    first = len(batch) if side == 0 else len(out) - len(free)  # where the free axes of this side begin
    axes = {axis: i for i, axis in enumerate(batch)} | {axis: first + i for i, axis in enumerate(free)}
    return _moved(fields[side], shapes[side], axes)


def _reshape(fields: Fields, shapes: Shapes, out: Shape, params: Params) -> Field | None:
    """Axes stay, or are split into several; those that are merged put their values together."""
    (shape,), (field,) = shapes, fields
    pairs, i, j = {}, 0, 0  # axis -> the axes that it is split into
    while i < len(shape) and j < len(out):
        split = [j]
        while math.prod(out[a] for a in split) < shape[i] and split[-1] + 1 < len(out):
            split.append(split[-1] + 1)
        if math.prod(out[a] for a in split) != shape[i]:
            break
        pairs[i], i, j = split, i + 1, split[-1] + 1
    # First as if each axis went to the last of its own, which moves on by one place; then the others.
    moved = _moved(field, shape, {axis: split[-1] for axis, split in pairs.items()})
    if moved is None:
        return None
    before = {split[-1]: split[:-1] for split in pairs.values()}
    rows, columns = (dataclasses.replace(span, steps=_split_steps(span, before, out)) for span in moved)
    return rows, columns


def _split_steps(span: Span, before: Mapping[int, Sequence[int]], out: Shape) -> tuple[tuple[int, int], ...]:
    """The steps of a span along an axis and along those `before` it that it was split from."""
    steps = []
    for axis, step in span.steps:
        for part in (axis, *reversed(before[axis])):
            steps.append((part, step))
            step *= out[part]
    return tuple(steps)


def _window(fields: Fields, shapes: Shapes, out: Shape, params: Params) -> Field | None:
    sizes, strides = params["window_dimensions"], params["window_strides"]
    before = [padding[0] for padding in params["padding"]]
    return _windowed(fields[0], shapes[0], [*map(Window, sizes, strides, before, params["window_dilation"])])


def _slice(fields: Fields, shapes: Shapes, out: Shape, params: Params) -> Field | None:
    strides = params["strides"] or (1,) * len(out)
    starts = zip(params["start_indices"], strides, strict=True)
    return _windowed(fields[0], shapes[0], [Window(1, stride, -start) for start, stride in starts])


def _pad(fields: Fields, shapes: Shapes, out: Shape, params: Params) -> Field | None:
    if any(between for _, _, between in params["padding_config"]):
        return UNKNOWN
    return _windowed(fields[0], shapes[0], [Window(1, 1, before) for before, *_ in params["padding_config"]])


def _concatenate(fields: Fields, shapes: Shapes, out: Shape, params: Params) -> Field | None:
    axes = {axis for field in fields if field for span in field for axis, _ in span.steps}
    return UNKNOWN if params["dimension"] in axes else _union(fields)


FIELD_RULES: dict[str, Rule] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reshape": _reshape,
    "slice": _slice,
    "pad": _pad,
    "broadcast_in_dim": lambda f, s, out, p: _moved(f[0], s[0], dict(enumerate(p["broadcast_dimensions"]))),
    "transpose": lambda f, s, out, p: _moved(f[0], s[0], {a: i for i, a in enumerate(p["permutation"])}),
    "squeeze": lambda f, s, out, p: _reduced(f[0], s[0], p["dimensions"]),
    "concatenate": _concatenate,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "select_n": lambda f, *_: _union(f),
}
