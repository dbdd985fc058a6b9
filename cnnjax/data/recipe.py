"""How an image file of any shape becomes the uint8 pixels of a network: resized whole, its middle cut."""

import dataclasses
from typing import TypedDict

import numpy as np
from PIL import Image

from cnnjax.errors import UserError, by_name

# Pillow's filters, which widen as an image shrinks (antialiasing); nearest alone does not.
NAMES = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in NAMES}
MODES = {"center": (1, 2), "squash": (2,), "border": (2,), "square": (1,)}  # and how many sides `resize` has
MOST_RESIZED = 2**24  # pixels of an image that is resized whole; of a larger one only what is cut out


class Fields(TypedDict, total=False):
    """A recipe as JSON."""

    resize: list[int]
    crop: list[int]
    interpolation: str
    mode: str
    fill: list[int]
    margin: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sides and offsets are rounded as torchvision rounds them ("center", "squash"), or timm ("border").

    A side halfway between two numbers becomes the even one, where timm's quotients may miss the half.

    `mode` is "center": the aspect is kept and `resize` covered; "squash": it is not kept; "border": the
    aspect is kept, all of the image fits into `resize`, and `fill` lies around it; or "square", fast but not
    exact: the middle square is cut first, of a JPEG decoded at 1/2, 1/4 or 1/8 if that leaves twice the size.
    """

    resize: tuple[int, ...]  # pixels: the short side, or height and width
    crop: tuple[int, int]  # height and width of the middle that the network sees
    interpolation: str = "bilinear"  # of INTERPOLATIONS
    mode: str = "center"
    fill: tuple[int, ...] = (0,)  # 0..255 by channel or of all, where the image is smaller than the crop
    margin: int = 0  # pixels kept on each side of the crop, for views of other places

    def __post_init__(self) -> None:
        by_name("interpolation", self.interpolation, INTERPOLATIONS)
        counts = by_name("crop mode", self.mode, MODES)
        sides = *self.resize, *self.crop
        fits = len(self.crop) == 2 and len(self.resize) in counts
        fits = fits and bool(self.fill) and all(0 <= value <= 255 for value in self.fill)
        if not fits or not all(0 < side <= 2**14 for side in sides) or not 0 <= self.margin <= 2**14:
            given = f"resize={self.resize}, crop={self.crop}, margin={self.margin}, fill={self.fill}"
            raise UserError(f"recipe of images: {given}, mode={self.mode}; allowed: 1 to {2**14} pixels")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pixels that come out."""
        return self.crop[0] + 2 * self.margin, self.crop[1] + 2 * self.margin

    def record(self) -> Fields:
        """As JSON; `read` reads it."""
        lists = {name: list(getattr(self, name)) for name in ("resize", "crop", "fill")}
        return Fields(**dataclasses.asdict(self) | lists)

    def words(self) -> dict[str, object]:
        """For a reader who has to do the same in another program."""
        kinds = {"squash": "size", "border": "fit_into", "center": "cover", "square": "size"}
        kind = kinds[self.mode] if len(self.resize) == 2 or self.mode == "square" else "short_side"
        orders = "the whole image is resized, then cut", "the middle square is cut, then resized"
        return {
            "order": orders[self.mode == "square"],
            "resize": {kind: self.resize[0] if kind == "short_side" else [self.resize[0], self.resize[-1]]},
            "interpolation": self.interpolation,
            "antialias": self.interpolation != "nearest",
            "crop": list(self.crop),
            "crop_offset": "(side - crop) / 2, rounded half to even",
            "margin": self.margin,
            "fill": list(self.fill),
        }

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the whole image once it is resized."""
        if self.mode == "squash":
            return self.resize[0], self.resize[-1]
        if len(self.resize) == 1:
            short, long = self.resize[0], int(self.resize[0] * max(height, width) / min(height, width))
            return (short, long) if height <= width else (long, short)
        rows, columns = self.resize  # products first: exported graphs have no exact quotients of quotients
        if (height * columns >= width * rows) == (self.mode == "border"):
            return rows, max(1, round(width * rows / height))
        return max(1, round(height * columns / width)), columns

    def offset(self, length: int, axis: int) -> int:
        """Where what is cut begins on an axis of a resized image, in pixels; below 0 what lies outside."""
        spare = length - self.crop[axis]
        return (round(spare / 2) if spare >= 0 else -(-spare // 2)) - self.margin

    def filled(self, channels: int) -> tuple[int, ...]:
        """`fill` of so many channels; its mean for another number of them."""
        mean = round(sum(self.fill) / len(self.fill))
        return self.fill if len(self.fill) == channels else (mean,) * channels

    def apply(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C], C 1 or 3, as uint8 [*shape, C], by Pillow; not for "square", see `decode`."""
        height, width, channels = image.shape
        sides, shape = self.resized(height, width), self.shape
        starts = [self.offset(length, axis) for axis, length in enumerate(sides)]
        low = [max(0, start) for start in starts]
        high = [min(s, start + n) for s, start, n in zip(sides, starts, shape, strict=True)]
        whole = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
        how = INTERPOLATIONS[self.interpolation]
        if sides[0] * sides[1] > MOST_RESIZED:
            at = [width / sides[1], height / sides[0]] * 2
            box = [place * scale for place, scale in zip((low[1], low[0], high[1], high[0]), at, strict=True)]
            cut = whole.resize((high[1] - low[1], high[0] - low[0]), how, tuple(box))
        else:
            cut = whole.resize(sides[::-1], how).crop((low[1], low[0], high[1], high[0]))
        pixels = np.asarray(cut).reshape(high[0] - low[0], high[1] - low[1], channels)
        if pixels.shape[:2] == shape:
            return pixels
        out = np.empty((*shape, channels), np.uint8)
        out[:] = self.filled(channels)
        top, left = (place - start for place, start in zip(low, starts, strict=True))
        out[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return out


def read(fields: Fields) -> Recipe:
    """A recipe of `record`; UserError if it is none."""
    try:
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return Recipe(**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"recipe of images: {error}") from None


def covering(height: int, width: int, interpolation: str = "bilinear") -> Recipe:
    """The largest middle of an image that has this shape."""
    resize = (height,) if height == width else (height, width)
    return Recipe(resize, (height, width), interpolation)


def fast(size: int) -> Recipe:
    """The middle square, for the train split, and for all images of runs that recorded no recipe."""
    return Recipe((size,), (size, size), mode="square")
