"""Maps as small coloured pictures: data URLs of images with a palette of 256 colours."""

import base64
import functools
import io

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image

# Values from zero up, and values of both signs: indigo, paper, orange.
RISING, SIGNED = "magma", ("#312e81", "#6366f1", "#f5f3ff", "#fb923c", "#9a3412")


@functools.cache
def _palette(signed: bool) -> bytes:
    colours = LinearSegmentedColormap.from_list("signed", SIGNED) if signed else matplotlib.colormaps[RISING]
    return (colours(np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()


def limits(values: np.ndarray) -> tuple[float, float]:
    """The scale of a layer: from zero, or the same on both sides of it; a few extreme values are cut off."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    if finite.min() >= 0:
        return 0.0, max(float(np.percentile(finite, 99.8)), 1e-9)
    high = max(float(np.percentile(np.abs(finite), 99.8)), 1e-9)
    return -high, high


def tile(values: np.ndarray, scale: tuple[float, float]) -> str:
    """A map [H, W] as a picture, one pixel a value."""
    low, high = scale
    share = (np.nan_to_num(values).clip(low, high) - low) / (high - low)
    picture = Image.fromarray((255 * share).round().astype(np.uint8), "P")
    picture.putpalette(_palette(low < 0))
    data = io.BytesIO()
    picture.save(data, format="png", compress_level=3)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def strip(values: np.ndarray, width: int = 16) -> np.ndarray:
    """A vector [C] as rows of a map, filled up with zeros."""
    width = min(width, max(1, round(len(values) ** 0.5)))
    filled = np.zeros(-(-len(values) // width) * width, np.float32)
    filled[: len(values)] = values
    return filled.reshape(-1, width)


def shrunk(values: np.ndarray, most: int = 56) -> np.ndarray:
    """A map [H, W] whose sides are at most that, by means of equal blocks."""
    step = -(-max(values.shape) // most)
    if step == 1:
        return values
    height, width = (max(size // step, 1) for size in values.shape)
    cut = values[: height * step, : width * step]
    return cut.reshape(height, cut.shape[0] // height, width, cut.shape[1] // width).mean((1, 3))
