"""How one value of a map came about: its window of the map before, the products and their sum."""

import dataclasses

import numpy as np

from cnnjax.explore.stages import Stage, Window

Place = tuple[int, int]  # row and column of a map


@dataclasses.dataclass(frozen=True)
class Looked:
    """The window that one place of a convolution or pooling looks at, before anything is summed."""

    corner: Place  # of the window in the map before; negative in the padding
    values: np.ndarray  # float32 [kh, kw, C], NaN in the padding
    weights: np.ndarray | None  # of a convolution, the same shape
    first: int  # the number of the first of these channels in the map before


def look(window: Window, before: np.ndarray, kernel: np.ndarray | None, unit: int, place: Place) -> Looked:
    """The window of a unit at a place: `before` is the map [H, W, C], `kernel` [kh, kw, C / groups, F].

    Without a kernel it is a pooling, whose units see the channel of their own number.
    """
    corner = tuple(
        at * step - sides[0] for at, step, sides in zip(place, window.stride, window.padding, strict=True)
    )
    rows, columns = (
        np.arange(size) * apart + start
        for size, apart, start in zip(window.size, window.dilation, corner, strict=True)
    )
    inside = ((rows >= 0) & (rows < before.shape[0]))[:, None] & (columns >= 0) & (columns < before.shape[1])
    seen = before[rows.clip(0, before.shape[0] - 1)][:, columns.clip(0, before.shape[1] - 1)]
    first, count = unit, 1
    if kernel is not None:
        first, count = first_channel(kernel, window.groups, unit), kernel.shape[2]
    values = np.where(inside[..., None], seen[..., first : first + count], np.nan).astype(np.float32)
    return Looked((corner[0], corner[1]), values, None if kernel is None else kernel[..., unit], first)


def first_channel(kernel: np.ndarray, groups: int, unit: int) -> int:
    """The first channel of the map before that a unit's filter reads, of a kernel [kh, kw, C / groups, F]."""
    return unit // (kernel.shape[3] // groups) * kernel.shape[2]


def products(looked: Looked) -> np.ndarray:
    """Value times weight at each place and channel, 0 in the padding: float32 [kh, kw, C]."""
    assert looked.weights is not None, "a pooling has no weights"
    return np.nan_to_num(looked.values) * looked.weights


def pooled(stage: Stage, looked: Looked) -> float:
    """What a pooling makes of the window: its largest or smallest value, or the mean over the image."""
    reduce = {"max pooling": np.nanmax, "min pooling": np.nanmin}.get(stage.kind, np.nanmean)
    return float(reduce(looked.values))


def kernel_of_mean(stage: Stage, looked: Looked, place: Place) -> np.ndarray | None:
    """The kernel [kh, kw, 1, C] of an average pooling at a place; None of a plain mean without padding."""
    if stage.mean is None:
        return None
    weights, inside = stage.mean.at(place), ~np.isnan(looked.values[..., 0])
    if np.allclose(weights, 1 / inside.sum()):
        return None
    return np.repeat(weights[:, :, None, None], stage.layer.shape[-1], axis=3)


def size_rule(stage: Stage, before: tuple[int, ...]) -> str:
    """How the height and width of the output follow from those of the map before, with the numbers put in."""
    if (window := stage.window) is None:
        return ""
    sides = []
    for axis, size in enumerate(before[:2]):
        reach = window.dilation[axis] * (window.size[axis] - 1) + 1
        around, step = sum(window.padding[axis]), window.stride[axis]
        sides.append(
            f"\u230a({size} + {around} \u2212 {reach}) / {step}\u230b + 1 = {stage.layer.shape[axis]}"
        )
    return " and ".join(dict.fromkeys(sides))
