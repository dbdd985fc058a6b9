"""Which pixels of the image a value of a jaxpr depends on: receptive fields by abstract interpretation.

A value that depends on the image has a `Field`: for its rows and its columns, the span that the element at
index 0 depends on and how far one step along each array axis moves it. Each primitive maps fields to a field.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from jax.extend.core import JaxprEqn

from cnnjax.models.forward import shape_of

Shape = tuple[int, ...]
# Primitives of one shape in which a value depends on more than the values at its own place.
ACCUMULATED = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
NOT_ELEMENTWISE = {*ACCUMULATED, "rev", "sort", "gather", "scatter"}


@dataclasses.dataclass(frozen=True)
class Span:
    """Pixels low..high of one axis of the image that the value at index 0 depends on."""

    low: float
    high: float
    steps: tuple[tuple[int, int], ...] = ()  # (array axis, pixels by which one step along it moves both)


Field = tuple[Span, Span]
EVERYWHERE: Final = (Span(-math.inf, math.inf), Span(-math.inf, math.inf))
IMAGE: Final = (Span(0, 0, ((1, 1),)), Span(0, 0, ((2, 1),)))  # an image [B, H, W, C] itself
# A value that depends on the image in a way that no rule here describes.
UNKNOWN: Final = (Span(math.nan, math.nan), Span(math.nan, math.nan))
Fields = Sequence[Field | None]  # None depends on no image


class Window(NamedTuple):
    """Values of one axis that are put together, with `before` values of padding."""

    size: int = 1
    stride: int = 1
    before: int = 0
    dilation: int = 1


def field_size(field: Field | None) -> tuple[float, float] | None:
    """Pixels (height, width) of a field; inf for one of unlike paths; None if unknown or not of the image."""
    if field is None or field is UNKNOWN:
        return None
    height, width = (span.high - span.low + 1 for span in field)
    return height, width


class Operation(NamedTuple):
    """An equation: fields and shapes of its inputs, the shape of its first output, and its parameters."""

    fields: Fields
    shapes: Sequence[Shape]
    out: Shape
    params: Mapping[str, Any]


def field_of(eqn: JaxprEqn, fields: Fields) -> Field | None:
    """The field of an equation's first output from those of its inputs."""
    if all(field is None for field in fields) or UNKNOWN in fields:
        return UNKNOWN if UNKNOWN in fields else None
    name, shapes, out = eqn.primitive.name, [*map(shape_of, eqn.invars)], shape_of(eqn.outvars[0])
    operation = Operation(fields, shapes, out, eqn.params)
    if name in FIELD_RULES:
        return FIELD_RULES[name](operation)
    if name.startswith(("reduce_", "arg")) and "axes" in eqn.params:
        return _reduced(operation, eqn.params["axes"])
    dependent = [shape for field, shape in zip(fields, shapes, strict=True) if field is not None]
    if name in NOT_ELEMENTWISE or not all(_spreads(shape, out) for shape in dependent):
        return UNKNOWN
    return _union(operation)


def _spreads(shape: Shape, out: Shape) -> bool:
    """Whether an operand of that shape is used place by place, axes of size 1 being repeated."""
    return len(shape) == len(out) and all(a in (1, b) for a, b in zip(shape, out, strict=True))


def _union(op: Operation) -> Field:
    """Values put together place by place."""
    rows, columns = zip(*(field for field in op.fields if field is not None), strict=True)
    return _union_span(rows), _union_span(columns)


def _union_span(spans: Sequence[Span]) -> Span:
    if any(set(span.steps) != set(spans[0].steps) for span in spans):
        return EVERYWHERE[0]
    return Span(min(span.low for span in spans), max(span.high for span in spans), spans[0].steps)


def _moved(
    op: Operation, axes: Mapping[int, Sequence[int]], windows: Sequence[Window] = (), operand: int = 0
) -> Field | None:
    """Each axis a, put together by its window, or wholly if not in `axes`, becomes the output's `axes[a]`."""
    field, shape = op.fields[operand], op.shapes[operand]
    if field is None:
        return None
    windows = windows or [Window(1 if axis in axes else size) for axis, size in enumerate(shape)]
    rows, columns = (_moved_span(span, op.out, axes, windows) for span in field)
    return rows, columns


def _moved_span(span: Span, out: Shape, axes: Mapping[int, Sequence[int]], windows: Sequence[Window]) -> Span:
    low, high, steps = span.low, span.high, []
    for axis, step in span.steps:
        window = windows[axis]
        low -= window.before * step
        high += ((window.size - 1) * window.dilation - window.before) * step
        step *= window.stride
        for part in reversed(axes.get(axis, ())):
            steps.append((part, step))
            step *= out[part]
    return Span(low, high, tuple(steps))


def _reduced(op: Operation, axes: Sequence[int]) -> Field | None:
    kept = (axis for axis in range(len(op.shapes[0])) if axis not in axes)
    return _renamed(op, ((axis, i) for i, axis in enumerate(kept)))


def _windowed(op: Operation, windows: Iterable[Window]) -> Field | None:
    """Each axis put together by its window; the axes stay where they are."""
    return _moved(op, {axis: (axis,) for axis in range(len(op.out))}, [*windows])


def _convolution(op: Operation) -> Field | None:
    if op.fields[1] is not None or set(op.params["lhs_dilation"]) != {1}:
        return UNKNOWN
    image, kernel, result = op.params["dimension_numbers"]
    windows = [Window()] * len(image)
    for i, axis in enumerate(image[2:]):
        stride, (before, _) = op.params["window_strides"][i], op.params["padding"][i]
        windows[axis] = Window(op.shapes[1][kernel[2 + i]], stride, before, op.params["rhs_dilation"][i])
    return _moved(op, {axis: (to,) for axis, to in zip(image, result, strict=True)}, windows)


def _dot(op: Operation) -> Field | None:
    if op.fields[0] is not None and op.fields[1] is not None:
        return EVERYWHERE
    side = int(op.fields[0] is None)
    contracted, batch = (dims[side] for dims in op.params["dimension_numbers"])
    free = [axis for axis in range(len(op.shapes[side])) if axis not in (*contracted, *batch)]
    first = len(batch) if side == 0 else len(op.out) - len(free)  # where the free axes of this side begin
    axes = {axis: (i,) for i, axis in enumerate(batch)} | {axis: (first + i,) for i, axis in enumerate(free)}
    return _moved(op, axes, operand=side)


def _dense(op: Operation) -> Field | None:
    """The last axis of the first operand by the first of the second."""
    return _dot(op._replace(params={"dimension_numbers": (((len(op.out) - 1,), (0,)), ((), ()))}))


def _reshape(op: Operation) -> Field | None:
    """Axes stay, or are split into several; those that are merged put their values together."""
    shape, out = op.shapes[0], op.out
    axes, i, j = {}, 0, 0
    while i < len(shape) and j < len(out):
        end = j + 1
        while math.prod(out[j:end]) < shape[i] and end < len(out):
            end += 1
        if math.prod(out[j:end]) != shape[i]:
            break
        axes[i], i, j = range(j, end), i + 1, end
    return _moved(op, axes)


def _window(op: Operation) -> Field | None:
    sizes, strides = op.params["window_dimensions"], op.params["window_strides"]
    before = [padding[0] for padding in op.params["padding"]]
    return _windowed(op, map(Window, sizes, strides, before, op.params["window_dilation"]))


def _slice(op: Operation) -> Field | None:
    starts, strides = op.params["start_indices"], op.params["strides"] or (1,) * len(op.out)
    return _windowed(op, (Window(1, stride, -start) for start, stride in zip(starts, strides, strict=True)))


def _pad(op: Operation) -> Field | None:
    padding = op.params["padding_config"]
    if any(between for _, _, between in padding):
        return UNKNOWN
    return _windowed(op, (Window(1, 1, before) for before, _, _ in padding))


def _renamed(op: Operation, axes: Iterable[tuple[int, int]]) -> Field | None:
    """Each pair of an axis and of its place in the output."""
    return _moved(op, {axis: (to,) for axis, to in axes})


def _concatenate(op: Operation) -> Field | None:
    axes = {axis for field in op.fields if field for span in field for axis, _ in span.steps}
    return UNKNOWN if op.params["dimension"] in axes else _union(op)


FIELD_RULES: dict[str, Callable[[Operation], Field | None]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "cnnjax_dense": _dense,
    "reshape": _reshape,
    "slice": _slice,
    "pad": _pad,
    "broadcast_in_dim": lambda op: _renamed(op, enumerate(op.params["broadcast_dimensions"])),
    "transpose": lambda op: _renamed(op, ((axis, i) for i, axis in enumerate(op.params["permutation"]))),
    "squeeze": lambda op: _reduced(op, op.params["dimensions"]),
    "concatenate": _concatenate,
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _window),
    "select_n": _union,
}
