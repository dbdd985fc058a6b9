"""Thin pictures of the arrays that this room computes: each function returns a matplotlib figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnjax.training.metrics import Calibration

Box = tuple[int, int, int, int]


def to_unit(image: Any) -> np.ndarray:
    """Pixels of any range as 0..1; uint8 by its own scale, others from the lowest to the highest value."""
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image / 255
    low, high = float(image.min()), float(image.max())
    return (image - low) / (high - low if high > low else 1.0)


def _show(axes: Any, image: np.ndarray, **options: Any) -> None:
    grey = {"cmap": "gray"} if image.ndim == 2 or image.shape[-1] == 1 else {}
    axes.imshow(np.squeeze(image), **{"interpolation": "nearest", **grey, **options})
    axes.set_axis_off()


def image_grid(
    images: Sequence[np.ndarray], titles: Sequence[str] = (), *, columns: int = 8, size: float = 1.1
) -> Figure:
    """Images [H, W, C] or [H, W] side by side, each on its own scale."""
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    height = size * (1.25 if titles else 1.0)
    figure = Figure(figsize=(size * columns, height * rows), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i < len(images):
            _show(axes, to_unit(images[i]))
            if titles:
                axes.set_title(titles[i], fontsize=8)
    return figure


def map_grid(maps: np.ndarray, *, columns: int = 8, most: int = 64) -> Figure:
    """The first `most` channels of feature maps [H, W, C] of one image, on one scale for all."""
    maps = np.asarray(maps)[..., :most]
    return image_grid(list(np.moveaxis(to_unit(maps), -1, 0)), columns=columns)


def filter_grid(filters: np.ndarray, *, columns: int = 8, most: int = 64) -> Figure:
    """The first `most` filters [F, kh, kw, C]: in colour where C is 3, else the mean over channels."""
    filters = np.asarray(filters)[:most]
    filters = filters if filters.shape[-1] == 3 else filters.mean(-1, keepdims=True)
    return image_grid(list(filters), columns=columns)


def blend(image: np.ndarray, heat: np.ndarray, *, strength: float = 0.5) -> np.ndarray:
    """A heat map [H, W] of 0..1 laid over an image uint8 [H, W, C]: uint8 [H, W, 3]."""
    colour = matplotlib.colormaps["viridis"](np.asarray(heat))[..., :3]
    base = np.broadcast_to(to_unit(image), (*image.shape[:2], 3))
    share = strength * np.asarray(heat)[..., None]
    return np.uint8(np.round(255 * ((1 - share) * base + share * colour)))


def heat_row(image: np.ndarray, heats: Mapping[str, np.ndarray]) -> Figure:
    """An image and, by title, heat maps [H, W] laid over it."""
    pictures = [image, *(blend(image, heat) for heat in heats.values())]
    return image_grid(pictures, ["image", *heats], columns=len(pictures), size=1.9)


def boxes(image: np.ndarray, found: Sequence[Box], *, size: float = 3.0) -> Figure:
    """An image with boxes (top, left, bottom, right) drawn, such as receptive fields."""
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    _show(axes, to_unit(image))
    for i, (top, left, bottom, right) in enumerate(found):
        place = (left - 0.5, top - 0.5)
        axes.add_patch(
            Rectangle(place, right - left, bottom - top, fill=False, edgecolor=f"C{i + 1}", linewidth=2)
        )
    return figure


def patch_row(images: Sequence[np.ndarray], found: Sequence[Box], titles: Sequence[str] = ()) -> Figure:
    """The patch of each image that its box (top, left, bottom, right) cuts out."""
    cut = [image[t:b, left:right] for image, (t, left, b, right) in zip(images, found, strict=True)]
    return image_grid(cut, titles, columns=9)


def numbers(values: np.ndarray, title: str = "", *, digits: int = 2) -> Figure:
    """A small matrix [H, W] as a picture with its numbers written in."""
    values = np.asarray(values)
    height, width = values.shape
    figure = Figure(figsize=(0.55 * width + 0.3, 0.5 * height + 0.6), layout="constrained")
    axes = figure.add_subplot()
    limit = max(abs(float(values.min())), abs(float(values.max())), 1e-9)
    axes.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * limit else "black"
        text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
        axes.text(column, row, "0" if text == "-0" else text, ha="center", va="center", color=colour)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    return figure


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> Figure:
    """Lines by name, each (x values, y values)."""
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for name, (xs, ys) in series.items():
        axes.plot(xs, ys, label=name, marker="." if len(xs) < 40 else "")
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    if len(series) > 1:
        axes.legend()
    return figure


def points(plane: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Embedded images [N, 2], coloured by class."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["tab10" if len(class_names) <= 10 else "turbo"]
    for label, name in enumerate(class_names):
        chosen = plane[labels == label]
        colour = colours(label if len(class_names) <= 10 else label / len(class_names))
        axes.scatter(chosen[:, 0], chosen[:, 1], s=9, color=colour, label=name)
    axes.set(xticks=[], yticks=[])
    if len(class_names) <= 20:
        figure.legend(loc="outside right upper", fontsize=8, markerscale=2)
    return figure


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Images by label (row) and prediction (column), shaded by the share of the row."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 0.42 * len(matrix) + 1.6
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix if len(matrix) <= 20 else np.zeros((0, 0))):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    places = range(len(class_names))
    axes.set_xticks(places, class_names, rotation=90, fontsize=8)
    axes.set_yticks(places, class_names, fontsize=8)
    axes.set(xlabel="prediction", ylabel="label")
    return figure


def reliability(found: Calibration) -> Figure:
    """Accuracy against confidence, with the diagonal of a network that knows how sure it is."""
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    axes.plot(found.confidence, found.accuracy, marker="o")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"expected calibration error {found.error:.3f}", fontsize=9)
    axes.grid(alpha=0.25)
    return figure


def plane(losses: np.ndarray, shares: np.ndarray) -> Figure:
    """The loss over two directions, as level lines."""
    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    levels = axes.contourf(shares, shares, losses, levels=20)
    figure.colorbar(levels, label="loss")
    axes.set(xlabel="direction 1", ylabel="direction 2")
    return figure
