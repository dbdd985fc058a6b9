"""Which pixels of the image a value of a jaxpr depends on: receptive fields by abstract interpretation.

A value that depends on the image has a `Field`: for the image's rows and for its columns, the span that the
element at index 0 depends on and how far one step along each array axis moves it. Each primitive turns the
fields of its inputs into that of its output.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

# Primitives of one shape in which a value depends on more than the values at its own place.
NOT_ELEMENTWISE = {
    "cumsum",
    "cumprod",
    "cummax",
    "cummin",
    "cumlogsumexp",
    "rev",
    "sort",
    "gather",
    "scatter",
}


@dataclasses.dataclass(frozen=True)
class Span:
    """Pixels low..high of one axis of the image that the value at index 0 depends on.

    One step along array axis a moves both by `steps[a]` pixels.
    """

    low: float
    high: float
    steps: tuple[tuple[int, int], ...] = ()

    def reduced(self, axis: int, size: int, **more: Any) -> "Span":
        """Once the values along an axis are put together."""
        steps = dict(self.steps)
        return Span(self.low, self.high + (size - 1) * steps.pop(axis, 0), tuple(steps.items()))

    def windowed(self, axis: int, window: int, stride: int, before: int, dilation: int = 1) -> "Span":
        """Once each window of an axis, with `before` values of padding, is put together."""
        step = dict(self.steps).get(axis, 0)
        low = self.low - before * step
        high = self.high + ((window - 1) * dilation - before) * step
        return Span(low, high, tuple((a, s * stride if a == axis else s) for a, s in self.steps))

    def moved(self, axes: dict[int, int]) -> "Span":
        """Once array axis a has become axes[a]."""
        return Span(self.low, self.high, tuple((axes[a], s) for a, s in self.steps))


EVERYWHERE = Span(-math.inf, math.inf)
Field = tuple[Span, Span]
UNKNOWN = "unknown"  # a value that depends on the image in a way that no rule here describes


def image_field() -> Field:
    """The field of an image [B, H, W, C] itself."""
    return Span(0, 0, ((1, 1),)), Span(0, 0, ((2, 1),))


def field_size(field: Any) -> tuple[float, float] | None:
    """Pixels (height, width) of a field; inf for one of unlike paths; None if unknown or not of the image."""
    if field is None or field is UNKNOWN:
        return None
    sizes = (span.high - span.low + 1 for span in field)
    return tuple(size if math.isinf(size) else int(size) for size in sizes)


def _union(fields: list[Any]) -> Any:
    """Of values put together place by place; None depends on no image."""
    fields = [field for field in fields if field is not None]
    if not fields or UNKNOWN in fields:
        return UNKNOWN if fields else None
    return tuple(_union_spans([field[i] for field in fields]) for i in range(2))


def _union_spans(spans: list[Span]) -> Span:
    if any(set(span.steps) != set(spans[0].steps) for span in spans):
        return EVERYWHERE
    low, high = min(span.low for span in spans), max(span.high for span in spans)
    return Span(low, high, spans[0].steps)


def _each(field: Any, change: Callable[[Span], Span]) -> Any:
    return field if field is None or field is UNKNOWN else tuple(map(change, field))


def output_field(eqn: Any, fields: list[Any]) -> Any:
    """The field of an equation's first output from those of its inputs."""
    name, params = eqn.primitive.name, eqn.params
    if all(field is None for field in fields):
        return None
    shapes = [getattr(v.aval, "shape", ()) for v in eqn.invars]
    out = eqn.outvars[0].aval.shape
    if name in FIELD_RULES:
        return FIELD_RULES[name](fields, shapes, out, params)
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        return _reduce(fields[0], shapes[0], params["axes"])
    dependent = [shape for field, shape in zip(fields, shapes, strict=True) if field is not None]
    if name in NOT_ELEMENTWISE or not all(_spreads(shape, out) for shape in dependent):
        return UNKNOWN
    return _union(fields)


def _spreads(shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Whether an operand of that shape is used place by place, axes of size 1 being repeated."""
    return len(shape) == len(out) and all(a in (1, b) for a, b in zip(shape, out, strict=True))


def _reduce(field: Any, shape: tuple[int, ...], axes: Sequence[int]) -> Any:
    kept = [axis for axis in range(len(shape)) if axis not in axes]

    def change(span: Span) -> Span:
        for axis in axes:
            span = span.reduced(axis, shape[axis])
        return span.moved({axis: i for i, axis in enumerate(kept)})

    return _each(field, change)


def _convolution(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    if fields[1] is not None or set(params["lhs_dilation"]) != {1}:
        return UNKNOWN
    lhs, rhs, result = params["dimension_numbers"]

    def change(span: Span) -> Span:
        for i, axis in enumerate(lhs[2:]):
            span = span.windowed(
                axis,
                shapes[1][rhs[2 + i]],
                params["window_strides"][i],
                params["padding"][i][0],
                params["rhs_dilation"][i],
            )
        return span.moved(dict(zip(lhs, result, strict=True)))

    return _each(fields[0], change)


def _dot(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    if fields[0] is not None and fields[1] is not None:
        return (EVERYWHERE, EVERYWHERE)
    side = 0 if fields[0] is not None else 1
    contracted, batch = (dims[side] for dims in params["dimension_numbers"])
    others = 0 if side == 0 else len(shapes[0]) - len(contracted) - len(batch)
    before = len(batch) + others
    free = [axis for axis in range(len(shapes[side])) if axis not in (*contracted, *batch)]
    places = {axis: i for i, axis in enumerate(batch)} | {axis: before + i for i, axis in enumerate(free)}

    def change(span: Span) -> Span:
        for axis in contracted:
            span = span.reduced(axis, shapes[side][axis])
        return span.moved(places)

    return _each(fields[side], change)


def _reshape(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    """Axes stay, or are cut into several; those that are merged put their values together."""
    shape = shapes[0]
    pairs, i, j = {}, 0, 0  # axis -> the axes that it is cut into
    while i < len(shape) and j < len(out):
        cut = [j]
        while math.prod(out[a] for a in cut) < shape[i] and cut[-1] + 1 < len(out):
            cut.append(cut[-1] + 1)
        if math.prod(out[a] for a in cut) != shape[i]:
            break
        pairs[i], i, j = cut, i + 1, cut[-1] + 1

    def change(span: Span) -> Span:
        steps = []
        for axis, step in span.steps:
            if axis not in pairs:
                span = span.reduced(axis, shape[axis])
                continue
            for part in reversed(pairs[axis]):
                steps.append((part, step))
                step *= out[part]
        return Span(span.low, span.high, tuple(steps))

    return _each(fields[0], change)


def _window(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    def change(span: Span) -> Span:
        for axis, window in enumerate(params["window_dimensions"]):
            before, dilation = params["padding"][axis][0], params["window_dilation"][axis]
            span = span.windowed(axis, window, params["window_strides"][axis], before, dilation)
        return span

    return _each(fields[0], change)


def _slice(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    strides = params["strides"] or (1,) * len(out)

    def change(span: Span) -> Span:
        for axis, (start, stride) in enumerate(zip(params["start_indices"], strides, strict=True)):
            span = span.windowed(axis, 1, stride, -start)
        return span

    return _each(fields[0], change)


def _pad(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    if any(between for _, _, between in params["padding_config"]):
        return UNKNOWN

    def change(span: Span) -> Span:
        for axis, (before, _, _) in enumerate(params["padding_config"]):
            span = span.windowed(axis, 1, 1, before)
        return span

    return _each(fields[0], change)


def _broadcast(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    return _each(fields[0], lambda span: span.moved(dict(enumerate(params["broadcast_dimensions"]))))


def _transpose(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    return _each(fields[0], lambda span: span.moved({a: i for i, a in enumerate(params["permutation"])}))


def _squeeze(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    return _reduce(fields[0], shapes[0], params["dimensions"])


def _concatenate(fields: list[Any], shapes: list, out: tuple, params: dict) -> Any:
    found = [field for field in fields if field is not None and field is not UNKNOWN]
    along = any(axis == params["dimension"] for field in found for span in field for axis, _ in span.steps)
    return UNKNOWN if along else _union(fields)


FIELD_RULES = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reshape": _reshape,
    "slice": _slice,
    "pad": _pad,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "concatenate": _concatenate,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "select_n": lambda fields, *_: _union(fields),
}
