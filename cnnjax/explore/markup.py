"""HTML of the reports: elements, tables, pictures and figures, whole pages.

A report is one file without scripts or links to anything outside, readable in light and dark.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cnnjax.errors import visible

GREY = "#888"  # of lines and words in figures, which suits light and dark


class Markup(str):
    """Text that is HTML already. Any other text is escaped by `join`, and nowhere else."""


BREAK = Markup("<br>")


def join(*content: object) -> Markup:
    """The content one after the other, as HTML."""
    texts = (x if isinstance(x, Markup) else html.escape(visible(x, lines=True)) for x in content)
    return Markup("".join(texts))


def element(name: str, *content: object, **attributes: str) -> Markup:
    """<name attribute="value">content</name>; `class_` is the attribute class."""
    given = "".join(f' {key.rstrip("_")}="{join(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{join(*content)}</{name}>")


def page(title: str, *content: Markup) -> str:
    """A whole page."""
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = element("head", Markup(head), element("title", title), element("style", Markup(style)))
    body = element("body", element("h1", title), *content)
    return f"<!doctype html>{element('html', head, body, lang='en')}\n"


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], shares: np.ndarray | None = None
) -> Markup:
    """A table whose first column names its rows; `shares` of 0..1 shade the cells beside it, row by row."""
    lines = [element("tr", *(element("th", cell) for cell in head))]
    for i, (name, *cells) in enumerate(rows):
        shades: list[dict[str, str]] = [{}] * len(cells)
        if shares is not None:
            shades = [{"style": f"background: rgb(var(--cell) / {0.7 * share:.2f})"} for share in shares[i]]
        row = (element("td", cell, **shade) for cell, shade in zip(cells, shades, strict=True))
        lines.append(element("tr", element("th", name), *row))
    return element("div", element("table", *lines), class_="scroll")


def image(pixels: np.ndarray, alt: str = "") -> Markup:
    """An image, uint8 [H, W, C], see `grey_or_rgb`."""
    return Markup(f'<img alt="{join(alt)}" src="{png(pixels)}">')


def grey_or_rgb(image: np.ndarray) -> np.ndarray:
    """An image [..., C] as [..., 1 or 3]: as it is, or the mean over channels that are no colours."""
    if image.shape[-1] in (1, 3):
        return image
    return image.mean(-1, keepdims=True).astype(image.dtype)


def png(pixels: np.ndarray) -> str:
    """An image, uint8 [H, W, C], as a data URL, see `grey_or_rgb`."""
    data, pixels = io.BytesIO(), grey_or_rgb(pixels)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(data, format="png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def svg(figure: Figure) -> Markup:
    """A figure as SVG, in greys that suit light and dark."""
    for axes in figure.axes:
        axes.tick_params(colors=GREY)
        axes.spines[:].set_color(GREY)
        if legend := axes.get_legend():
            legend.get_frame().set_alpha(0)
        for text in axes.findobj(Text):
            text.set_color(GREY)
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return Markup(written.getvalue()[written.getvalue().index("<svg") :])
