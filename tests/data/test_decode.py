"""Every decode is Pillow's with EXIF applied, pixel by pixel, or a refusal in one line."""

import io
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps, PngImagePlugin

from cnnjax.data.datasets import load
from cnnjax.data.decode import FORMATS, Alike, decode_image, read_header
from cnnjax.data.recipe import fast
from cnnjax.data.sources.source import to_memory
from cnnjax.errors import BadImage, UserError

RNG = np.random.default_rng(0)
LARGE = 10_000, 9_000  # pixels of which Pillow warns
ORIENTATIONS = range(10)  # 0 and 9 mean nothing


def photo(height: int, width: int) -> np.ndarray:
    """Smooth colours with a little noise, uint8 [H, W, 3]."""
    row, column = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(column / 7 + k) * np.cos(row / 5 - k) for k in range(3)]
    return np.clip(np.stack(waves, -1) + RNG.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, mode: str = "", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def pillows(data: bytes, channels: int) -> np.ndarray:
    """The reference: Pillow's pixels, turned as EXIF says, transparent ones over black."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        image = ImageOps.exif_transpose(opened)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def assert_is_pillows(data: bytes, name: str) -> None:
    for channels in (3, 1):
        expected = pillows(data, channels)
        np.testing.assert_array_equal(decode_image(data, name, channels), expected, name)
        out = np.empty(expected.shape, np.uint8)
        np.testing.assert_array_equal(decode_image(data, name, channels, out=out), expected, name)


PHOTO = photo(24, 37)
PLAIN = encoded(PHOTO, "JPEG", quality=90)
TABLES, FRAME, SCAN, END = (PLAIN.index(b"\xff" + m) for m in (b"\xdb", b"\xc0", b"\xda", b"\xd9"))


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def exif(orientation: int, order: str = ">") -> bytes:
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, 1)
    return b"Exif\0\0" + head + struct.pack(f"{order}HHIHHI", 0x112, 3, 1, orientation, 0, 0)


def xmp(text: str) -> bytes:
    meta = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{text}</rdf:RDF></x:xmpmeta>'
    return b"http://ns.adobe.com/xap/1.0/\0" + meta.encode()


def profile_of(data: bytes) -> str:
    """EXIF as ImageMagick writes it into a PNG."""
    return f"\nexif\n{len(data):8}\n{data.hex()}\n"


def inserted(at: int, *parts: bytes, data: bytes = PLAIN) -> bytes:
    return data[:at] + b"".join(parts) + data[at:]


def test_jpegs_of_every_sampling_and_size():
    for height, width in [(1, 1), (1, 9), (9, 1), (7, 5), (16, 16), (17, 33), (40, 31)]:
        pixels = photo(height, width)
        for quality in (30, 95):
            for sampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
                for progressive in (False, True):
                    options = {"quality": quality, "subsampling": sampling, "progressive": progressive}
                    assert_is_pillows(encoded(pixels, "JPEG", **options), f"{height}x{width} {options}")
            assert_is_pillows(encoded(pixels, "JPEG", "L", quality=quality), "grey")
            assert_is_pillows(encoded(pixels, "JPEG", "CMYK", quality=quality), "CMYK")
            for sampling in ("440", "411"):
                data = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling=sampling)
                assert_is_pillows(data, f"{height}x{width} {sampling}")


def turned(orientation: int) -> Iterator[tuple[str, bytes]]:
    """An image that is to be turned, said in every place where it can be said."""
    own, profile = segment(0xE1, exif(orientation)), segment(0xE2, b"ICC_PROFILE\0\1\1" + RNG.bytes(9000))
    yield "first", inserted(2, own)
    yield "little-endian", inserted(2, segment(0xE1, exif(orientation, "<")))
    yield "after a profile", inserted(2, profile, own)
    yield "after 300 kB", inserted(2, *[segment(0xE5, RNG.bytes(60_000))] * 5, own)
    yield "before the scan", inserted(SCAN, own)
    yield "as the second", inserted(2, segment(0xE1, exif(1)), own)
    yield "XMP", inserted(2, segment(0xE1, xmp(f'<rdf:Description tiff:Orientation="{orientation}"/>')))
    element = xmp(f"<tiff:Orientation>{orientation}</tiff:Orientation>")
    yield "late XMP", inserted(2, profile, segment(0xE1, element))
    meta, raw = element[29:].decode(), profile_of(own[4:])
    for key, text in (("XML:com.adobe.xmp", meta), ("Raw profile type exif", raw)):
        said = PngImagePlugin.PngInfo()
        said.add_itxt(key, text) if key.startswith("XML") else said.add_text(key, text, zip=True)
        yield f"PNG {key}", encoded(PHOTO, "PNG", pnginfo=said)
    for kind in ("PNG", "WEBP", "TIFF"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        yield kind, encoded(PHOTO, kind, exif=exif(orientation), **lossless)
    for mode in ("CMYK", "L"):
        yield mode, encoded(PHOTO, "JPEG", mode, exif=exif(orientation))
    second = Image.fromarray(PHOTO[::-1])
    yield "MPO", encoded(PHOTO, "MPO", exif=exif(orientation), save_all=True, append_images=[second])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_orientation_is_found_wherever_it_is_said(orientation):
    for place, data in turned(orientation):
        assert_is_pillows(data, f"{orientation} {place}")
        assert read_header(data, place)[:2] == decode_image(data, place, 3).shape[:2], place
    if orientation == 6:
        upright = decode_image(inserted(2, segment(0xE5, bytes(9000)), segment(0xE1, exif(6))), "x", 3)
        assert upright.shape == (37, 24, 3)


def jpegs_with_a_warning() -> Iterator[tuple[str, bytes]]:
    for count in (5, 65, 226):
        yield f"{count} bytes before the end", inserted(END, bytes(range(1, count)))
    yield "bytes before a table", inserted(TABLES, b"abc")
    yield "bytes before the scan", inserted(SCAN, b"abc")
    yield "an unknown JFIF version", PLAIN.replace(b"JFIF\0\1\1", b"JFIF\0\0\0")
    yield "no JFIF", PLAIN[:2] + PLAIN[20:]
    yield "bytes after the end", PLAIN + b"more bytes" * 9
    yield "two images", PLAIN + PLAIN[::-1]
    for rows in (1, 3):
        yield f"restart markers {rows}", encoded(PHOTO, "JPEG", restart_marker_blocks=rows)
    for transform in range(4):
        adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes((transform,)))
        yield f"Adobe transform {transform}", PLAIN[:2] + adobe + PLAIN[20:]
        ink = bytearray(encoded(PHOTO, "JPEG", "CMYK"))
        ink[ink.index(b"Adobe") + 11] = transform
        yield f"CMYK, transform {transform}", bytes(ink)
    yield "CMYK without Adobe", ink[: ink.index(b"Adobe") - 4] + ink[ink.index(b"Adobe") + 12 :]
    extended = bytearray(PLAIN)
    extended[FRAME + 1] = 0xC1
    yield "extended sequential", bytes(extended)


def test_jpegs_that_pillow_reads_with_a_warning():
    for name, data in jpegs_with_a_warning():
        assert_is_pillows(bytes(data), name)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, color: int, channels: int, interlaced: bool, size: tuple[int, int] = (13, 11)) -> bytes:
    """Random pixels of any depth and kind, as no library writes them."""
    width, height = size
    first = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
    passes = [*first, (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    lines = b""
    for x, y, across, down in passes:
        columns, rows = -((x - width) // across), -((y - height) // down)
        line = (columns * channels * depth + 7) // 8
        lines += b"".join(b"\0" + RNG.bytes(line) for _ in range(rows if columns > 0 else 0))
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_pngs_of_every_depth_and_kind():
    for interlaced in (False, True):
        for depth, color, channels in [(1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1)]:
            assert_is_pillows(png(depth, color, channels, interlaced), f"grey {depth}")
        for color, channels in ((2, 3), (4, 2), (6, 4)):
            for depth in (8, 16):
                assert_is_pillows(png(depth, color, channels, interlaced), f"kind {color} of {depth} bits")
        with pytest.raises(BadImage, match="x: pixels of mode I;16; allowed: 8 bits per channel"):
            decode_image(png(16, 0, 1, interlaced), "x", 3)


def other_kinds() -> Iterator[tuple[str, bytes]]:
    palette = Image.fromarray(PHOTO).quantize(17)
    yield "palette", encoded(palette, "PNG")
    for transparency in (0, 3, bytes(range(0, 255, 15))):
        yield "palette with transparency", encoded(palette, "PNG", transparency=transparency)
    yield "GIF", encoded(palette, "GIF")
    yield "GIF with transparency", encoded(palette, "GIF", transparency=3)
    colour = tuple(PHOTO[0, 0].tolist())
    yield "a transparent colour", encoded(PHOTO, "PNG", transparency=colour)
    alpha = np.dstack([PHOTO, photo(24, 37)[..., :1]])
    for kind in ("PNG", "TIFF", "WEBP"):
        yield f"{kind} with alpha", encoded(alpha, kind, **({"lossless": True} if kind == "WEBP" else {}))
    for kind in ("PNG", "BMP", "TIFF", "PPM", "WEBP"):
        for mode in ("1", "L", "RGB"):
            yield f"{kind} {mode}", encoded(PHOTO, kind, mode)
    for mode, packed in (("CMYK", "tiff_lzw"), ("YCbCr", "raw"), ("LAB", "raw"), ("1", "group4")):
        yield f"TIFF {mode} {packed}", encoded(PHOTO, "TIFF", mode, compression=packed)


def test_other_formats_and_modes():
    for name, data in other_kinds():
        assert_is_pillows(data, name)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [None, 8])
def test_damaged_jpegs_are_read_as_pillow_reads_them_or_refused(channels, size):
    read = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        data = bytearray(encoded(PHOTO, "JPEG", quality=80, restart_marker_blocks=3 if seed % 2 else 0))
        if seed < 30:
            data[draw.integers(SCAN + 20, len(data))] ^= draw.integers(1, 256)
        else:
            del data[draw.integers(2, len(data) - 1) :]
        try:
            expected = pillows(bytes(data), channels)
        except (OSError, SyntaxError):
            expected = None
        if expected is None:
            with pytest.raises(BadImage, match="^x: JPEG that cannot be decoded"):
                decode_image(bytes(data), "x", channels, size and fast(size))
        elif size is None:
            np.testing.assert_array_equal(decode_image(bytes(data), "x", channels), expected, f"{seed}")
            read += 1
        else:
            assert decode_image(bytes(data), "x", channels, fast(size)).shape == (size, size, channels)
            read += 1
    assert 10 < read < 40


@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_that_begin_alike_are_read_as_each_alone(channels):
    mode = "L" if channels == 1 else "RGB"
    first, second = (encoded(photo(24, 37), "JPEG", mode, quality=90) for _ in range(2))
    turned = first[:2] + segment(0xE1, exif(3)) + first[2:]
    others = {
        "other": second,
        "turned": turned,
        "turned too": second[:2] + segment(0xE1, exif(3)) + second[2:],
        "progressive": encoded(PHOTO, "JPEG", mode, progressive=True),
        "other colours": encoded(PHOTO, "JPEG", "RGB" if channels == 1 else "L", quality=90),
        "larger": encoded(photo(25, 37), "JPEG", mode, quality=90),
        "cut short": second[:-200],
        "of bytes": second[: second.index(b"\xff\xda") + 14] + bytes(range(256)) * 4,
        "empty": b"",
    }
    decode = Alike(channels)
    for name, data in others.items():
        for each in (first, first, data, data, second):
            out = np.empty((24, 37, channels), np.uint8)
            try:
                expected = decode_image(each, name, channels)
            except BadImage as error:
                with pytest.raises(BadImage, match=re.escape(str(error))):
                    decode(b"1234" + each, 4, name, out)
            else:
                np.testing.assert_array_equal(decode(b"1234" + each, 4, name, out), expected, name)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("shape", [(24, 24), (24, 32), (32, 18), (16, 36), (48, 48), (10, 10)])
def test_a_square_is_the_same_decoded_to_given_memory(shape, channels):
    kinds = {
        "plain": encoded(photo(*shape), "JPEG"),
        "grey": encoded(photo(*shape), "JPEG", "L"),
        "progressive": encoded(photo(*shape), "JPEG", progressive=True),
        "png": encoded(photo(*shape), "PNG"),
        **{
            f"turned {n}": inserted(2, segment(0xE1, exif(n)), data=encoded(photo(*shape), "JPEG"))
            for n in (3, 6, 7)
        },
    }
    for name, data in kinds.items():
        expected = decode_image(data, name, channels, fast(24))
        out = np.zeros((24, 24, channels), np.uint8)
        found = decode_image(data, name, channels, fast(24), out)
        np.testing.assert_array_equal(found, expected, name)
        for other in ((12, 48, channels), (24, 24, 4 - channels), (24, 24)):  # which do not fit
            found = decode_image(data, name, channels, fast(24), np.zeros(other, np.uint8))
            np.testing.assert_array_equal(found, expected, name)
        if name == "plain" and channels == 3 and shape[0] >= 24:  # not copied
            assert np.may_share_memory(decode_image(data, name, channels, fast(24), out), out)


@pytest.mark.parametrize(
    "shape", [(1, 500), (500, 1), (2, 60), (9, 300), (15, 15), (17, 33), (64, 50), (300, 400), (601, 420)]
)
@pytest.mark.parametrize("size", [1, 8, 31])
def test_a_square_of_one_size_is_that_of_pillow(shape, size):
    """A JPEG of four times the size or more is decoded at a fraction, which changes its levels a little."""
    row, column = np.mgrid[0 : shape[0], 0 : shape[1]]
    side = min(shape)
    period = 1 if side < 64 else side / 6  # pixels a radian
    waves = [127 + 100 * np.sin((row + k * column / 2) / period) for k in range(3)]
    pixels = np.stack(waves, -1).astype(np.uint8)
    data = encoded(pixels, "JPEG", quality=95, subsampling=0)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = Image.fromarray(pillows(data, 3)[top : top + side, left : left + side])
    expected = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    ours = decode_image(data, "x", 3, size and fast(size)).astype(int)
    if side < max(64, 4 * size):
        np.testing.assert_array_equal(ours, expected)
    assert np.abs(ours - expected).max() <= 24 and np.abs(ours - expected).mean() < 6


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_a_few_bytes_that_claims_many_pixels_is_refused_before_it_is_decoded(progressive, size):
    data = bytearray(encoded(np.zeros((16, 16, 3), np.uint8), "JPEG", progressive=progressive))
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 11_000, 11_000)
    with pytest.raises(BadImage, match=r"x: JPEG cut short: 11000x11000 pixels in \d+ bytes"):
        decode_image(bytes(data), "x", 3, size and fast(size))
    smallest = encoded(Image.new("L", (4096, 4096)), "JPEG", progressive=True, optimize=True)
    assert not decode_image(smallest, "x", 1, size and fast(size)).any()


def test_a_jpeg_of_12_bits_is_refused_in_words():
    data = bytearray(PLAIN)
    data[FRAME + 4] = 12
    with pytest.raises(BadImage, match=r"^x: JPEG that cannot be decoded \(.*of 8 bits per channel\)$"):
        decode_image(bytes(data), "x", 3)


def test_scans_after_one_of_all_colours_are_refused():
    scan = PLAIN[SCAN:-2]
    with pytest.raises(BadImage, match="x: JPEG that cannot be decoded"):
        decode_image(PLAIN[:-2] + scan * 20_000 + PLAIN[-2:], "x", 3)


def test_a_jpeg_of_endless_scans_is_refused_at_once():
    scans = encoded(PHOTO, "JPEG", progressive=True)
    last = scans.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match="x: JPEG of 1[0-9]{3} scans; allowed: at most 500"):
        decode_image(scans[:last] + scans[last:-2] * 1000 + b"\xff\xd9", "x", 3)


@pytest.mark.parametrize("channels", [2, 4, 10])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_file_has_no_other_channels_than_grey_or_colour(tmp_path, kind, channels):
    """They came as one grey channel; a network of arrays of others cannot read files, so none is skipped."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"0.{kind}")
    known = {"class_names": ("a", "b"), "image_shape": (8, 8, channels)}
    source = load(f"folder:{tmp_path}", "train", size=8, **known)
    with pytest.raises(UserError, match=rf"0.{kind}: a file cannot be read as {channels} channels") as error:
        to_memory(source, max_bad=5)
    assert not isinstance(error.value, BadImage)


def test_images_that_are_allowed_raise_no_warning_of_their_size():
    """Pillow warns from 89 million pixels on; in a process of its own, as pytest forgets filters."""
    code = f"""
import io, warnings
from PIL import Image
from cnnjax.data.decode import MAX_PIXELS, decode_image, read_header
assert {LARGE[0]} * {LARGE[1]} <= MAX_PIXELS
file = io.BytesIO()
Image.new("1", {LARGE}).save(file, "PNG")
warnings.filterwarnings("error", category=UserWarning)
assert read_header(file.getvalue(), "x") == {(*LARGE[::-1], 1)}
assert decode_image(file.getvalue(), "x", 1).shape == {(*LARGE[::-1], 1)}
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
