"""Figures of the course in notebooks/: one style, matrices with their numbers, cells drawn as boxes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnjax.explore.layers import Box

# Okabe, Ito 2008, "Color universal design": told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#D55E00", "#56B4E9", "#000000")
KINDS = {"conv": BLUE, "pool": ORANGE, "relu": GREEN, "tanh": GREEN, "softmax": GREEN, "norm": PINK}
TALL, WIDE = 0.5, 1.25  # inches from box to box in a cell


class Cell(NamedTuple):
    """Branches side by side between an input and a join; an empty branch is a bare line, a shortcut."""

    branches: Sequence[Sequence[str]]  # the words of each branch's boxes, those next to the input first
    join: str = "concatenate"
    after: str = ""  # a last box, below the join


def style() -> None:
    """Sets matplotlib's defaults for all figures to come: the course's colours and sizes."""
    matplotlib.rc("axes", prop_cycle=cycler(color=COLOURS), titlesize=9)
    matplotlib.rc("axes.spines", top=False, right=False)
    matplotlib.rc("figure", dpi=100)
    matplotlib.rc("figure.constrained_layout", use=True)
    matplotlib.rc("font", size=9)


def matrices(
    named: Mapping[str, np.ndarray], outlines: Mapping[str, Box] | None = None, *, digits: int = 2
) -> Figure:
    """Small matrices [H, W] in a row, by title, with their numbers; `outlines` are boxes drawn by title.

    Colours share one scale from -1 to 1 times the largest size of a number in each matrix.
    """
    shapes = [values.shape for values in named.values()]
    widths, height = [max(shape[1], 2.2) for shape in shapes], max(shape[0] for shape in shapes)
    size = (0.4 * sum(widths) + 0.35 * len(shapes), 0.4 * height + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    row = figure.subplots(1, len(named), squeeze=False, width_ratios=widths)[0]
    for axes, (title, values) in zip(row, named.items(), strict=True):
        _matrix(axes, np.asarray(values), digits)
        axes.set_title(title)
        if outlines and title in outlines:
            top, left, bottom, right = outlines[title]
            corner, sides = (left - 0.5, top - 0.5), (right - left, bottom - top)
            axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor="black", linewidth=2.5, zorder=3))
    return figure


def _matrix(axes: Axes, values: np.ndarray, digits: int) -> None:
    limit = max(1.3 * float(np.abs(values).max()), 1e-9)  # the last third of the colours is dark
    axes.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit)
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, "0" if text == "-0" else text, ha="center", va="center", color=colour)
    axes.set_axis_off()


def cells(named: Mapping[str, Cell]) -> Figure:
    """Cells of a network side by side, by title: the input on top, then the branches, then their join."""
    tall = max(max(map(len, cell.branches)) + 2 + bool(cell.after) for cell in named.values())
    widths = [max(len(cell.branches), 1.6) for cell in named.values()]
    figure = Figure(figsize=(WIDE * sum(widths), TALL * tall + 0.4), layout="constrained")
    row = figure.subplots(1, len(named), squeeze=False, width_ratios=widths)[0]
    for axes, width, (title, cell) in zip(row, widths, named.items(), strict=True):
        middle, joined = (len(cell.branches) - 1) / 2, max(map(len, cell.branches)) + 1
        axes.set(xlim=(middle - width / 2, middle + width / 2), ylim=(tall - 0.4, -0.5), title=title)
        axes.set_axis_off()
        for column, branch in enumerate(cell.branches):
            stops = [(middle, 0.0), (column, 0.75), (column, joined - 0.75)]
            axes.plot(*zip(*stops, (middle, joined), strict=True), color="0.45", linewidth=1.2, zorder=1)
            for place, words in enumerate(branch, 1):
                _box(axes, column, place, words)
        _box(axes, middle, 0, "input")
        if cell.after:
            axes.plot([middle, middle], [joined, joined + 1], color="0.45", linewidth=1.2, zorder=1)
            _box(axes, middle, joined + 1, cell.after)
        _box(axes, middle, joined, cell.join)
    return figure


def _box(axes: Axes, x: float, y: float, words: str) -> None:
    kind = next((colour for kind, colour in KINDS.items() if kind in words.lower()), "0.6")
    pale = tuple(0.3 * part + 0.7 for part in to_rgb(kind))
    look = {"boxstyle": "round,pad=0.35", "facecolor": pale, "edgecolor": kind}
    axes.text(x, y, words, ha="center", va="center", fontsize=8, bbox=look, zorder=2)
