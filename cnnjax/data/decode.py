"""Encoded images to pixels: every format and kind that is wanted, and a clear no to the others."""

import io
import struct
import threading
from typing import Any

import numpy as np
import simplejpeg

from cnnjax.data.resizing import middle_square
from cnnjax.errors import BadImage, UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
# What Pillow may try: formats that are nothing but pixels. It would give EPS to another program.
FORMATS = ("JPEG", "PNG", "BMP", "WebP", "PPM", "GIF", "TIFF")
ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 2**27  # of one image: 400 MB as RGB, more than any camera's
SCRATCH_BYTES = 2**22  # a thread's memory for an image that is resized next, so that its pages stay mapped
_thread = threading.local()


def decode_image(data: bytes, what: object, channels: int, size: int | None = None) -> np.ndarray:
    """Decodes an encoded image to uint8 [H, W, channels].

    JPEG goes through simplejpeg, decoded at 1/2, 1/4 or 1/8 where `size` is that much smaller; CMYK
    and other formats go through Pillow. EXIF rotations are undone, palettes become colours,
    16 bits of colour their upper 8, and transparent pixels what they are over black.

    Args:
      data: the encoded bytes.
      what: the file or record, for errors.
      channels: 1 (grey) or 3 (RGB).
      size: cut the middle square and resize it to this (bilinear, antialiased).
    Raises: BadImage naming `what` for bytes that are no image, empty, broken, of several frames, of more than
      MAX_PIXELS, or grey of more than 8 bits.
    """
    if not data:
        raise BadImage(f"{what}: an empty file; remove it or copy it again")
    if data.startswith(b"\xff\xd8\xff"):  # simplejpeg.is_jpeg says no to a truncated one
        image = _decode_jpeg(data, what, channels, size)
    else:
        image = _decode_other(data, what, channels)
    return image if size is None else middle_square(image, size)


def num_channels(data: bytes, what: object) -> int:
    """1 where an encoded image is grey, else 3; raises BadImage where its header cannot be read."""
    pillow = _pillow(what)
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as opened:  # reads the header alone
            return 1 if opened.mode in ("1", "L", "LA") or opened.mode.startswith("I") else 3
    except Exception as error:  # Pillow raises many kinds for bytes that are no image
        raise BadImage(f"{what}: no image that is known here ({error})") from None


def _decode_jpeg(data: bytes, what: object, channels: int, size: int | None) -> np.ndarray:
    smaller = {} if size is None else {"min_height": size, "min_width": size, "min_factor": 2}
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(what, width, height)
        if space in ("CMYK", "YCCK"):
            return _decode_other(data, what, channels)
        if size is not None and height * width * channels <= SCRATCH_BYTES:
            smaller["buffer"] = _scratch()
        image = simplejpeg.decode_jpeg(data, colorspace="rgb" if channels == 3 else "gray", **smaller)
        return _upright(image, data) if b"Exif\0\0" in data[:4096] else image
    except UserError:
        raise
    except ValueError as error:
        raise BadImage(f"{what}: JPEG that cannot be decoded ({error})") from None


def _scratch() -> np.ndarray:
    """uint8 [SCRATCH_BYTES] of this thread, written over by its next image."""
    if not hasattr(_thread, "scratch"):
        _thread.scratch = np.empty(SCRATCH_BYTES, np.uint8)
    return _thread.scratch


def _upright(image: np.ndarray, data: bytes) -> np.ndarray:
    """[H, W, C] turned and mirrored as the camera's EXIF orientation says."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as opened:  # reads the header alone
            orientation = opened.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"its EXIF is broken: {error}") from None
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def _check_pixels(what: object, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{what}: {width}x{height} pixels; allowed: at most {MAX_PIXELS} in all")


def _decode_other(data: bytes, what: object, channels: int) -> np.ndarray:
    pillow = _pillow(what)
    from PIL import ImageOps

    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_pixels(what, *opened.size)
            # The further frames of a camera's MPO are previews and depths of the first.
            if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
                raise BadImage(f"{what}: {opened.n_frames} frames; allowed: one image a file")
            if opened.mode.startswith(("I", "F")):
                raise BadImage(f"{what}: pixels of mode {opened.mode}; allowed: 8 bits a channel")
            image = ImageOps.exif_transpose(opened)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = pillow.alpha_composite(pillow.new("RGBA", image.size, (0, 0, 0, 255)), image)
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except UserError:
        raise
    except pillow.UnidentifiedImageError:
        raise BadImage(f"{what}: not an image of a known format; allowed: {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises many kinds for bytes that are no image
        raise BadImage(f"{what}: not an image that can be read ({error})") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _pillow(what: object) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UserError(
            f"{what}: only JPEG at its own size is read without Pillow; pip install pillow"
        ) from None
    return Image
