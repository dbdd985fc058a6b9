"""Encoded images to pixels, whole or by a recipe; what is no such image is refused by name."""

import contextlib
import ctypes
import functools
import io
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cnnjax.data.recipe import Recipe
from cnnjax.errors import BadImage, UserError, one_line

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff",
    ".jpe", ".jfif", ".mpo", ".apng", ".pnm", ".pgm", ".pbm", ".pfm",
)  # fmt: skip
# What Pillow may try: formats that are nothing but pixels. It would give EPS to another program.
FORMATS = ("JPEG", "PNG", "BMP", "WebP", "PPM", "GIF", "TIFF")
MAX_PIXELS = 2**27  # of one image: 400 MB as RGB, more than any camera's
MAX_SCANS = 500  # of a progressive JPEG; encoders write about ten
MOST_A_BYTE = 2**10  # pixels: each block of 8x8 takes a bit at least
JPEG = b"\xff\xd8\xff"  # simplejpeg.is_jpeg says no to a truncated one
ORIENTED = b"Exif\0\0", b"tiff:Orientation", b"eXIf", b"Raw profile"  # before an orientation of any format
SCRATCH_BYTES = 2**22
BITS = 22  # of a weight, as in Pillow for bytes
VOID = ctypes.c_void_p
# Pillow warns of fewer pixels than MAX_PIXELS. Not around each decode: threads share the filters.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class _Scratch(threading.local):
    """A thread's memory for an image that is resized next, so that its pages stay mapped."""

    def __init__(self) -> None:
        self.pixels = np.empty(SCRATCH_BYTES, np.uint8)


_scratch = _Scratch()


def decode_image(
    data: bytes, what: object, channels: int, recipe: Recipe | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Decodes an encoded image to uint8 [H, W, channels], 1 (grey) or 3 (RGB), brought to size by a recipe.

    The pixels are Pillow's, turned as EXIF or XMP says: palettes become colours, 16 bits of colour their
    upper 8, and transparent pixels are laid over black. JPEG goes through simplejpeg, which decodes the same.
    `out`, contiguous uint8, may hold what is returned, if that is of its shape.
    For a "square" it is decoded at 1/2, 1/4 or 1/8 as long as it stays twice that large: then the square is
    up to a quarter of a pixel beside Pillow's. BadImage names `what` for bytes that are no image, empty,
    broken, of several frames, of more than MAX_PIXELS or MAX_SCANS, or grey of more than 8 bits. Other
    `channels`, which only arrays have, are a UserError.
    """
    if channels not in (1, 3):
        allowed = "a network of 1 or 3 channels; others take arrays, in Python or as --data=npz:FILE"
        raise UserError(f"{what}: a file cannot be read as {channels} channels; allowed: {allowed}")
    if not data:
        raise BadImage(f"{what}: an empty file; remove it or copy it again")
    size = recipe.crop[0] if recipe and recipe.mode == "square" else None
    image = _plain_jpeg(data, what, channels, size, out) if data.startswith(JPEG) else None
    if image is None:
        image = _by_pillow(data, what, channels)
    if size is not None:
        fits = out is not None and out.shape == (size, size, channels)
        return middle_square(image, size, out if fits else None)
    return image if recipe is None else recipe.apply(image)


class Alike:
    """Decodes JPEGs one after the other; what all begin with, up to the first scan, is looked at once."""

    def __init__(self, channels: int):
        self.channels = channels
        self.space = "gray" if channels == 1 else "rgb"
        self._head = b""  # of the last that was decoded to `out` without another colour or orientation

    def __call__(self, record: bytes, start: int, what: object, out: np.ndarray | None) -> np.ndarray:
        """The JPEG from byte `start` of a record; see `decode_image`."""
        if out is not None and self._head and record.startswith(self._head, start):
            try:
                return simplejpeg.decode_jpeg(memoryview(record)[start:], self.space, buffer=out)
            except ValueError:
                pass  # `decode_image` says what is wrong
        image = decode_image(data := record[start:], what, self.channels, out=out)
        if out is not None and image.strides == out.strides and np.may_share_memory(image, out):
            end, only = _first_scan(data)
            self._head = data[: end + 5] if only else b""
        return image


def read_header(data: bytes, what: object) -> tuple[int, int, int]:
    """[H, W, C] of an encoded image, upright, C 1 if grey, else 3; BadImage if its header cannot be read."""
    turned = b"Exif\0\0" in data or b"tiff:Orientation" in data
    if data.startswith(JPEG) and not turned:
        with contextlib.suppress(ValueError):  # many times faster than Pillow, which takes more files
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            return height, width, 1 if space == "Gray" else 3
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:  # reads the header alone
            width, height = opened.size
            grey = opened.mode in ("1", "L", "LA") or opened.mode.startswith("I")
            # A TIFF's size is upright already; of a PNG Pillow decodes all to look for it.
            kind, told = opened.format, any(mark in data for mark in ORIENTED)
            exif = opened.getexif() if kind != "TIFF" and (told or kind != "PNG") else {}
            if exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
                width, height = height, width
    except Exception as error:  # Pillow raises many kinds for bytes that are no image
        raise BadImage(f"{what}: not an image of a known format ({error})") from None
    return height, width, 1 if grey else 3


def _plain_jpeg(
    data: bytes, what: object, channels: int, size: int | None, out: np.ndarray | None
) -> np.ndarray | None:
    """A JPEG that simplejpeg reads without a warning; None if it does not, or has four colours."""
    start, only = _first_scan(data)
    # Each may take as long as the whole image. To count them takes a tenth of the time to decode one.
    if not only and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise BadImage(f"{what}: JPEG of {scans} scans; allowed: at most {MAX_SCANS}")
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixels(what, width, height)
    if width * height > MOST_A_BYTE * len(data):
        raise BadImage(f"{what}: JPEG cut short: {width}x{height} pixels in {len(data)} bytes; copy it again")
    if space in ("CMYK", "YCCK"):
        return None
    colors = "gray" if channels == 1 and space == "Gray" else "rgb"
    side, factor = min(height, width), 1
    buffer = out if out is not None and out.size == height * width * (1 if colors == "gray" else 3) else None
    if size and not height == width == size:
        least = max(2 * size, 32)  # twice, as for Pillow's thumbnail
        factor = next((f for f in (8, 4, 2) if side // f >= least), 1)
        buffer = _scratch.pixels if height * width * 3 <= SCRATCH_BYTES else None
    small = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
    try:
        image = simplejpeg.decode_jpeg(data, colorspace=colors, buffer=buffer, **small)
        if factor > 1:  # the square of the whole image, without what pads its last blocks
            top, left = (round((length - side) / 2 / factor) for length in (height, width))
            image = image[top : top + side // factor, left : left + side // factor]
        image = _upright(image, data, start)
    except Exception:  # Pillow says what is wrong, or reads what simplejpeg only warns of
        return None
    return image if image.shape[2] == channels else np.asarray(Image.fromarray(image).convert("L"))[..., None]


def _first_scan(data: bytes) -> tuple[int, bool]:
    """Where a JPEG's first scan begins, and whether it is all: if not progressive and of all components."""
    at, components = 2, -1
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xDA:
            return at, data[at + 4] == components
        if kind in (0xC0, 0xC1):
            components = data[at + 9]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data), False


def _upright(image: np.ndarray, data: bytes, end: int) -> np.ndarray:
    """[H, W, C] turned and mirrored as EXIF or XMP says, wherever it stands before the first scan."""
    if all(data.find(mark, 0, end) < 0 for mark in ORIENTED[:2]):
        return image
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:  # reads the header alone
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def _check_pixels(what: object, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{what}: {width}x{height} pixels; allowed: at most {MAX_PIXELS} in all")


def _by_pillow(data: bytes, what: object, channels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_pixels(what, *opened.size)
            # The further frames of a camera's MPO are previews and depths of the first.
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            if frames > 1:
                raise BadImage(f"{what}: {frames} frames; allowed: one image per file")
            if opened.mode.startswith(("I", "F")):
                raise BadImage(f"{what}: pixels of mode {opened.mode}; allowed: 8 bits per channel")
            image: Image.Image = opened
            ImageOps.exif_transpose(image, in_place=True)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
            mode = "RGB" if channels == 3 else "L"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds for bytes that are no image
        kind, reason = "not an image that can be read", one_line(error)
        if isinstance(error, UnidentifiedImageError):
            kind, reason = (
                "not an image of a known format",
                f"allowed: {', '.join(FORMATS)}, of 8 bits per channel",
            )
        kind = "JPEG that cannot be decoded" if data.startswith(JPEG) else kind
        raise BadImage(f"{what}: {kind} ({reason})") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]


def middle_square(image: np.ndarray, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """The middle square of uint8 [H, W, C] as uint8 [size, size, C], C 1 or 3 (bilinear, antialiased).

    `out`, contiguous and of that shape, may hold what is returned; the image may already lie there.
    By `resize.c`, or by Pillow if that was not built; the bytes are the same. A photograph of 375x500 to 256
    takes 1.85 ms of a processor with its decoding, by Pillow 3.1 ms.
    """
    (height, width, channels), side = image.shape, min(image.shape[:2])
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        if out is None:
            return square.copy()
        if np.may_share_memory(square, out):
            return square
        out[...] = square
        return out
    if (kernel := _kernel()) is None:
        squeezed = np.ascontiguousarray(square[..., 0] if channels == 1 else square)
        small = Image.fromarray(squeezed).resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(small).reshape(size, size, channels)
    if square.strides[1:] != (channels, 1):
        square = np.ascontiguousarray(square)
    out = np.empty((size, size, channels), np.uint8) if out is None else out
    at = square.ctypes.data, square.strides[0], side, channels, out.ctypes.data, size
    if kernel(*at, *_weights(side, size)):
        raise MemoryError(f"not enough memory to resize an image of {height}x{width}")
    return out


@functools.lru_cache(maxsize=1024)  # so NumPy is asked for the pointers once, not for each image
def _weights(side: int, size: int) -> tuple[ctypes.c_void_p, int, ctypes.c_void_p, ctypes.c_void_p]:
    """The triangle filter, wider as the image shrinks: int32 first inputs [size], taps, weights [size, taps].

    And the weights as `resize.c` packs them: int16 [size, fours, 2, 2, 8].
    """
    support = max(side / size, 1.0)
    centres = [(x + 0.5) * (side / size) for x in range(size)]
    spans = [(max(int(c - support + 0.5), 0), min(int(c + support + 0.5), side)) for c in centres]
    taps = max(high - low for low, high in spans)
    first, weights = np.zeros(size, np.int32), np.zeros((size, taps), np.int32)
    for x, (centre, (low, high)) in enumerate(zip(centres, spans, strict=True)):
        part = np.maximum(1 - np.abs((np.arange(low, high) - centre + 0.5) / support), 0)
        first[x] = min(low, side - taps)
        start = low - first[x]
        weights[x, start : start + high - low] = np.floor(part / part.sum() * (1 << BITS) + 0.5)
    pairs = np.pad(weights, ((0, 0), (0, -taps % 4))).reshape(size, -1, 1, 2, 2)
    packed = np.tile(np.concatenate([pairs & 0x7FFF, pairs >> 15], 2).astype(np.int16), 4)
    pointers = [np.ascontiguousarray(array).ctypes.data_as(VOID) for array in (first, weights, packed)]
    return pointers[0], taps, pointers[1], pointers[2]


@functools.cache
def _kernel() -> Callable[..., int] | None:
    """The compiled function, or None if it was not built; calls release Python's lock."""
    try:
        # Named anew when its arguments change, so that a library built before is left out, not misread.
        function = ctypes.CDLL(str(next(Path(__file__).parent.glob("_resize*.so")))).cnnjax_middle_square
    except (StopIteration, OSError, AttributeError):
        return None
    function.restype = number = ctypes.c_int
    function.argtypes = [VOID, ctypes.c_int64, number, number, VOID, number, VOID, number, VOID, VOID]
    return function
