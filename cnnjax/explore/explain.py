"""Grad-CAM of a trained network on a user's images, as pictures."""

import functools
import io
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from cnnjax.errors import UserError, unknown
from cnnjax.explore import attribution, plots
from cnnjax.inference.model import TrainedModel

SHORTEST_SIDE = 224  # of a picture, pixels


class Explainer:
    """Draws where a network looks for a class; compiled once for a size of batch.

    The mean weights of Grad-CAM suit networks that average their last map; for those with dense layers on it
    the map is often empty, and then that of HiResCAM stands in: `drawn` says which.
    """

    def __init__(self, trained: TrainedModel, layer: str | None = None, method: str = "grad_cam"):
        """`layer` is a map of the network, see `explore.layers`; None is its last one.

        Raises:
          UserError: for a method outside `attribution.METHODS`.
        """
        if method not in attribution.METHODS:
            raise unknown("--method", method, attribution.METHODS)
        self.trained, self.method = trained, method
        heat = functools.partial(self._heatmap, layer=layer)
        self._heat = {name: jax.jit(functools.partial(heat, method=name)) for name in attribution.METHODS}

    def _heatmap(
        self, variables: dict, images: jax.Array, label: jax.Array, *, layer: str | None, method: str
    ) -> jax.Array:
        image = self.trained.prepare(images)
        found = attribution.METHODS[method](self.trained.model, variables, image, label, layer=layer)
        return attribution.heatmap(found, image.shape[1:3])

    def drawn(
        self, images: Sequence[np.ndarray], labels: Sequence[int], batch_size: int
    ) -> list[tuple[str, np.ndarray]]:
        """(method, heat map of 0..1 float32 [H, W]) of uint8 images as `TrainedModel.fit` gives them.

        Raises:
          UserError: for a layer that is none, or has no places.
        """
        missing = batch_size - len(images)
        full = np.stack([*images, *[images[0]] * missing])
        label = np.asarray([*labels, *[labels[0]] * missing], np.int32)
        heat = np.asarray(self._heat[self.method](self.trained.variables, full, label))[: len(images)]
        found = [(self.method, one) for one in heat]
        empty = [i for i, one in enumerate(heat) if not one.any()]
        if empty and self.method == "grad_cam":
            other = np.asarray(self._heat["hires_cam"](self.trained.variables, full, label))
            for i in empty:
                found[i] = "hires_cam", other[i]
        return found

    def pictures(
        self, images: Sequence[np.ndarray], labels: Sequence[int], batch_size: int
    ) -> list[tuple[str, np.ndarray]]:
        """(method, the image as the network sees it beside itself with the heat map), uint8 [H, 2 W, 3]."""
        found = self.drawn(images, labels, batch_size)
        return [
            (method, beside(image, plots.blend(image, heat)))
            for image, (method, heat) in zip(self.trained.picture(np.stack(images)), found, strict=True)
        ]


def beside(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two uint8 images [H, W, 1 or 3] in one, enlarged by a whole number to `SHORTEST_SIDE` at least."""
    row = np.hstack([np.broadcast_to(image, other.shape), other])
    times = -(-SHORTEST_SIDE // other.shape[0])
    return row.repeat(times, 0).repeat(times, 1)


def save_beside(picture: np.ndarray, name: str, folder: str | None) -> Path:
    """Writes the picture of an image as NAME.gradcam.png, never over a file that is there; returns its path.

    Args:
      name: of the image, see `TrainedModel.batches`.
      folder: where to, made if missing; None is beside the image, or here for one that is no file.
    """
    source = Path(name)
    place = Path(folder) if folder else source.parent
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="png")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            file = place / f"{source.stem}.gradcam{'' if number == 1 else f'-{number}'}.png"
            try:
                handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                continue
            with open(handle, "wb") as opened:
                opened.write(data.getvalue())
            return file
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--out={folder} is not a folder ({error.strerror}); name another") from None
    raise UserError(f"{place} holds too many pictures of {source.name}; name another folder with --out")
