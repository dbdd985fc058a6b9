"""Encoded images and folders of them: root/split/class/*.jpg."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from cnnjax.data.sources import FileSource, digest
from cnnjax.errors import UserError

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
MAX_PIXELS = 2**27  # of one image: 400 MB as RGB, more than any camera's
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")


def decode_image(data: bytes, what: object, channels: int, size: int | None = None) -> np.ndarray:
    """Decodes an encoded image to uint8 [H, W, channels].

    JPEG goes through simplejpeg, any other format (and every resize) through Pillow.

    Args:
      data: the encoded bytes.
      what: the file or record, for errors.
      channels: 1 (grey) or 3 (RGB).
      size: resize the short side to it (bilinear, antialiased) and cut the middle square.
    Raises: UserError naming `what` for bytes that are no image, broken, or of 16 bits a channel.
    """
    if data.startswith(b"\xff\xd8\xff"):  # simplejpeg.is_jpeg says no to a truncated one
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            _check_pixels(what, width, height)
            image = simplejpeg.decode_jpeg(data, colorspace="rgb" if channels == 3 else "gray")
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{what}: JPEG that cannot be decoded ({error})") from None
        return image if size is None else _resize(image, what, size)
    pillow = _pillow(what)
    try:
        with pillow.open(io.BytesIO(data)) as opened:
            _check_pixels(what, *opened.size)
            if opened.mode.startswith(("I", "F")):
                raise UserError(f"{what}: pixels of mode {opened.mode}; allowed: 8 bits a channel")
            image = np.asarray(opened.convert("RGB" if channels == 3 else "L"))
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what}: not an image that can be read ({error})") from None
    image = image if image.ndim == 3 else image[..., None]
    return image if size is None else _resize(image, what, size)


def _check_pixels(what: object, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{what}: {width}x{height} pixels; allowed: at most {MAX_PIXELS} in all")


def _pillow(what: object) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UserError(
            f"{what}: only JPEG at its own size is read without Pillow; pip install pillow"
        ) from None
    return Image


def _resize(image: np.ndarray, what: object, size: int) -> np.ndarray:
    """Short side to `size`, then the middle square: uint8 [size, size, C]."""
    pillow = _pillow(what)
    height, width = image.shape[:2]
    ratio = size / min(height, width)
    target = (max(size, round(width * ratio)), max(size, round(height * ratio)))
    if target != (width, height):
        squeezed = image[..., 0] if image.shape[2] == 1 else image
        image = np.asarray(pillow.fromarray(squeezed).resize(target, pillow.Resampling.BILINEAR))
        image = image if image.ndim == 3 else image[..., None]
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def folder_splits(root: Path) -> dict[str, Path]:
    """Split -> folder of an image folder: its split folders, or the root itself as `train`."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; allowed: a folder of split/class/image files")
    named = {
        SPLIT_FOLDERS[p.name]: p for p in sorted(root.iterdir()) if p.is_dir() and p.name in SPLIT_FOLDERS
    }
    return named or {"train": root}


def _class_names(folder: Path) -> tuple[str, ...]:
    names = (p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return tuple(sorted(names))


def read_folder(root: Path, split: str, name: str, size: int | None = None) -> FileSource:
    """The images of root/split/class/*.jpg|png as RGB, read when asked for.

    Class names are the folder names of `train`, sorted; labels are their positions. The fingerprint
    is over the files' names and sizes, not their bytes: it is quick for a million of them.

    Args:
      root: holds split folders of class folders, or class folders alone (then all is `train`).
      split: one of `folder_splits(root)`.
      name: what the source is called.
      size: resize the short side to it and cut the middle square.
    Raises: UserError for a class of its own in another split or a class without images; when read,
      naming the file, for one that is broken or of another size than the first.
    """
    splits = folder_splits(root)
    folder = splits[split]
    class_names = _class_names(splits.get("train", folder))
    if strange := sorted(set(_class_names(folder)) - set(class_names)):
        raise UserError(f"{folder / strange[0]}: not a class of train; allowed: {class_names}")
    files, labels = [], []
    for label, class_name in enumerate(class_names):
        found = sorted(p for p in (folder / class_name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found and split == "train":
            raise UserError(f"{folder / class_name}: a class without images; fill or remove it")
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(f"{folder}: no images; allowed: class/*{', class/*'.join(IMAGE_SUFFIXES)}")
    listing = [(str(p.relative_to(folder)), p.stat().st_size) for p in files]
    labels = np.asarray(labels, np.int32)
    reader = _FolderReader(files, labels, size)
    order = np.arange(len(files))
    return FileSource(reader, order, digest(listing, size), labels, class_names, name, split)


class _FolderReader:
    """Position -> example; every image must have the first one's shape."""

    def __init__(self, files: list[Path], labels: np.ndarray, size: int | None):
        self.files, self.labels, self.size, self.shape = files, labels, size, None

    def _decode(self, position: int) -> np.ndarray:
        path = self.files[position]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        return decode_image(data, path, 3, self.size)

    def __call__(self, position: int) -> dict[str, Any]:
        image = self._decode(position)
        if self.shape is None:
            self.shape = image.shape if position == 0 else self._decode(0).shape
        if image.shape != self.shape:
            raise UserError(
                f"{self.files[position]}: {image.shape[0]}x{image.shape[1]} pixels, the first image"
                f" has {self.shape[0]}x{self.shape[1]}; give size= to bring all to one"
            )
        return {"image": image, "label": int(self.labels[position])}
