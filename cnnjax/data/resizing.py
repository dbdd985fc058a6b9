"""The middle square of an image at another size: by `resize.c`, or by Pillow; the same bytes."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BITS = 22  # of a weight, as in Pillow for bytes
VOID = ctypes.c_void_p


def middle_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of uint8 [H, W, C] at uint8 [size, size, C], C 1 or 3 (bilinear, antialiased)."""
    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square.copy()
    kernel = _kernel()
    if kernel is None:
        return by_pillow(square, size)
    if square.strides[1:] != (channels, 1):
        square = np.ascontiguousarray(square)
    out = np.empty((size, size, channels), np.uint8)
    at = square.ctypes.data, square.strides[0], side, channels, out.ctypes.data, size
    if kernel(*at, *_pointers(side, size)):
        raise MemoryError(f"no memory to resize an image of {height}x{width}")
    return out


def by_pillow(square: np.ndarray, size: int) -> np.ndarray:
    """Pillow's BILINEAR of uint8 [side, side, C]."""
    from PIL import Image

    squeezed = np.ascontiguousarray(square[..., 0] if square.shape[2] == 1 else square)
    image = np.asarray(Image.fromarray(squeezed).resize((size, size), Image.Resampling.BILINEAR))
    return image if image.ndim == 3 else image[..., None]


@functools.lru_cache(maxsize=1024)
def _pointers(side: int, size: int) -> tuple[Any, int, Any, Any]:
    """What the kernel takes of `_weights`: asked of NumPy once, not for each image."""
    first, weights, packed = _weights(side, size)
    return (
        first.ctypes.data_as(VOID),
        weights.shape[1],
        weights.ctypes.data_as(VOID),
        packed.ctypes.data_as(VOID),
    )


def _weights(side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First input int32 [size] and weights int32 [size, taps] of the triangle filter.

    It widens with the shrinking. Also the weights as `resize.c` packs them: int16 [size, fours, 2, 2, 8].
    """
    scale = side / size
    support = max(scale, 1.0)
    centres = [(x + 0.5) * scale for x in range(size)]
    spans = [(max(int(c - support + 0.5), 0), min(int(c + support + 0.5), side)) for c in centres]
    taps = max(high - low for low, high in spans)
    first, weights = np.zeros(size, np.int32), np.zeros((size, taps), np.int32)
    for x, (centre, (low, high)) in enumerate(zip(centres, spans, strict=True)):
        part = np.maximum(1 - np.abs((np.arange(low, high) - centre + 0.5) / support), 0)
        first[x] = min(low, side - taps)
        start = low - first[x]
        weights[x, start : start + high - low] = np.floor(part / part.sum() * (1 << BITS) + 0.5)
    pairs = np.pad(weights, ((0, 0), (0, -taps % 4))).reshape(size, -1, 1, 2, 2)
    packed = np.concatenate([pairs & 0x7FFF, pairs >> 15], 2).astype(np.int16)
    return first, weights, np.ascontiguousarray(np.tile(packed, 4))


@functools.cache
def _kernel() -> Callable[..., int] | None:
    """The compiled function, or None where it was not built; calls let other threads run."""
    file = next(Path(__file__).parent.glob("_resize*.so"), None)
    if file is None:
        return None
    try:
        # Named anew when what it takes changes, so that a library built before is left out, not misread.
        function = ctypes.CDLL(str(file)).cnnjax_middle_square
    except (OSError, AttributeError):
        return None
    number = ctypes.c_int
    function.argtypes = [VOID, ctypes.c_int64, number, number, VOID, number, VOID, number, VOID, VOID]
    function.restype = number
    return function
