"""Figures of the arrays that this room computes: each function returns a matplotlib figure."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from cnnjax.errors import visible
from cnnjax.explore.layers import Box, crop
from cnnjax.explore.markup import grey_or_rgb
from cnnjax.training.metrics import Calibration

FEW = 40  # points of a line that are still marked one by one
Words = Sequence[str]
Inches = tuple[float, float]  # width and height of a figure
LONGEST = 40  # characters of a name in a figure
Line = tuple[ArrayLike, ArrayLike]  # x [N], and y [N] or, of several runs, [runs, N]


def to_unit(image: ArrayLike) -> np.ndarray:
    """Pixels of any range as 0..1: uint8 on its own scale, others from their lowest to highest value."""
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image / 255
    low, high = float(image.min()), float(image.max())
    return (image - low) / (high - low if high > low else 1.0)


def to_bytes(image: ArrayLike) -> np.ndarray:
    """Pixels of any range as uint8, see `to_unit`."""
    return np.round(255 * to_unit(image)).astype(np.uint8)


def words(text: str) -> str:
    """A name as matplotlib shows it: no formula between two $, and in a legend even if it begins with _."""
    shown = visible(text, most=LONGEST).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _show(axes: Axes, image: np.ndarray) -> None:
    image = grey_or_rgb(image if image.ndim == 3 else image[..., None])
    cmap = "gray" if image.shape[-1] == 1 else None
    axes.imshow(np.squeeze(image), interpolation="nearest", cmap=cmap, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def image_grid(
    images: Sequence[ArrayLike], titles: Words = (), *, columns: int = 8, size: float = 1.1, rows: Words = ()
) -> Figure:
    """Images [H, W, C] or [H, W] side by side, each on its own scale, see `to_unit`, and `size` inches wide.

    There are at most `columns` in a row, with titles above the images and words to the left of the rows.
    """
    columns = max(1, min(columns, len(images)))
    lines = math.ceil(len(images) / columns)
    width, height = size * columns + (1.4 if rows else 0), size * lines * (1.25 if titles else 1.0)
    figure = Figure(figsize=(width, height), layout="constrained")
    for i, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        if i >= len(images):
            axes.set_axis_off()
            continue
        _show(axes, to_unit(images[i]))
        if i < len(titles):
            axes.set_title(words(titles[i]), fontsize=8)
        if i % columns == 0 and i // columns < len(rows):
            axes.set_ylabel(words(rows[i // columns]), rotation=0, ha="right", va="center", fontsize=8)
    return figure


def map_grid(maps: np.ndarray, *, columns: int = 8, most: int = 64) -> Figure:
    """The first `most` channels of feature maps [H, W, C] of one image, all on one scale."""
    maps = to_bytes(np.asarray(maps)[..., :most])
    return image_grid(list(np.moveaxis(maps, -1, 0)), columns=columns)


def filter_grid(filters: np.ndarray, *, columns: int = 8, most: int = 64) -> Figure:
    """The first `most` filters [F, kh, kw, C]: in colour if C is 3, else the mean over channels."""
    return image_grid(list(grey_or_rgb(np.asarray(filters)[:most])), columns=columns)


def blend(image: np.ndarray, heat: np.ndarray, *, strength: float = 0.5) -> np.ndarray:
    """A heat map [H, W] of 0..1 laid over an image uint8 [H, W, C]: uint8 [H, W, 3]."""
    colour = matplotlib.colormaps["viridis"](np.asarray(heat))[..., :3]
    base = np.broadcast_to(to_unit(grey_or_rgb(image)), (*image.shape[:2], 3))
    share = strength * np.asarray(heat)[..., None]
    return np.round(255 * ((1 - share) * base + share * colour)).astype(np.uint8)


def heat_row(image: np.ndarray, heats: Mapping[str, np.ndarray]) -> Figure:
    """An image and, by title, heat maps [H, W] laid over it."""
    pictures = [image, *(blend(image, heat) for heat in heats.values())]
    return image_grid(pictures, ["image", *heats], columns=len(pictures), size=1.9)


def boxes(image: np.ndarray, outlines: Sequence[Box], *, size: float = 3.0) -> Figure:
    """An image with boxes drawn, such as receptive fields."""
    figure, axes = _figure(size, size)
    _show(axes, to_unit(image))
    for i, (top, left, bottom, right) in enumerate(outlines, 1):
        corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=f"C{i}", linewidth=2))
    return figure


def patch_row(images: Sequence[np.ndarray], patches: Sequence[Box], titles: Sequence[str] = ()) -> Figure:
    """The part of each image inside its box."""
    return image_grid(list(map(crop, images, patches)), titles, columns=9)


def curves(
    series: Mapping[str, Line],
    x: str,
    y: str = "",
    *,
    title: str = "",
    size: Inches = (4.6, 3.0),
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Lines by name; of several runs their mean, and a band from the lowest to the highest.

    Lines with colours of their own have no legend in the figure.
    """
    figure, axes = _figure(*size)
    for name, (xs, ys) in series.items():
        runs = np.atleast_2d(np.asarray(ys))
        mark, colour = "." if runs.shape[1] < FEW else "", (colours or {}).get(name)
        (line,) = axes.plot(xs, runs.mean(0), label=words(name), marker=mark, color=colour)
        if len(runs) > 1:
            axes.fill_between(xs, runs.min(0), runs.max(0), alpha=0.25, color=line.get_color())
    axes.set(xlabel=x, ylabel=y, title=words(title))
    axes.grid(alpha=0.25)
    if len(series) > 1 and not colours:
        axes.legend()
    return figure


def points(plane: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Embedded images [N, 2], coloured by class."""
    figure, axes = _figure(5.6, 3.8)
    few = len(class_names) <= 10
    colours = matplotlib.colormaps["tab10" if few else "turbo"]
    for label, name in enumerate(class_names):
        colour = colours(label if few else label / len(class_names))
        x, y = plane[labels == label].T
        axes.scatter(x, y, s=9, color=colour, label=words(name))
    axes.set(xticks=[], yticks=[])
    if len(class_names) <= 20:
        figure.legend(loc="outside right upper", fontsize=8, markerscale=2)
    return figure


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Images by label (row) and prediction (column), shaded by the share of the row."""
    shares, side = row_shares(matrix), 0.42 * len(matrix) + 1.6
    figure, axes = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix if len(matrix) <= 20 else np.zeros((0, 0))):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    names = [words(name) for name in class_names]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="prediction", ylabel="label")
    return figure


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """Each count as its share of the row: float64 [K, K]."""
    return matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def reliability(calibration: Calibration) -> Figure:
    """Accuracy against confidence, with the diagonal of a perfectly calibrated network."""
    figure, axes = _figure(3.6, 3.4)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    axes.plot(calibration.confidence, calibration.accuracy, marker="o")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"expected calibration error {calibration.error:.3f}", fontsize=9)
    axes.grid(alpha=0.25)
    return figure


def plane(losses: np.ndarray, shares: np.ndarray) -> Figure:
    """The loss over two directions, as level lines."""
    figure, axes = _figure(4.2, 3.4)
    levels = axes.contourf(shares, shares, losses, levels=20)
    figure.colorbar(levels, label="loss")
    axes.set(xlabel="direction 1", ylabel="direction 2")
    return figure
