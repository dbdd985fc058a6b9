"""Grad-CAM of a trained network on a user's images, as pictures."""

import contextlib
import functools
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import Array
from PIL import Image

from cnnjax.errors import UserError, check_local, unknown
from cnnjax.explore import attribution, plots
from cnnjax.explore.layers import Variables
from cnnjax.inference.model import TrainedModel

SHORTEST_SIDE = 224  # of a picture, pixels
Explanation = tuple[str, np.ndarray]  # the method, and its heat map or picture
Explain = Callable[[Sequence[np.ndarray], Sequence[int], int], list[Explanation]]


def explainer(trained: TrainedModel, layer: str | None = None, method: str = "grad_cam") -> Explain:
    """Makes a function that finds what in an image speaks for a class; it compiles once per batch size.

    It takes uint8 images as `TrainedModel.fit` gives them, labels, and a batch size, and gives for each image
    the method, one of `attribution.METHODS`, and a heat map, float32 [H, W] of 0..1. UserError if the layer
    (see `explore.layers`; None is the last map) is none, or no map. Grad-CAM's mean weights suit networks
    that average their last map; if dense layers read it, its map is often empty and HiResCAM's replaces it.
    """
    if method not in attribution.METHODS:
        raise unknown("method", method, attribution.METHODS)

    @functools.partial(jax.jit, static_argnums=0)
    def heatmaps(name: str, variables: Variables, images: Array, label: Array) -> Array:
        image = trained.prepare(images)
        values = attribution.METHODS[name](trained.model, variables, image, label, layer=layer)
        return attribution.heatmap(values, (image.shape[1], image.shape[2]))

    def explain(images: Sequence[np.ndarray], labels: Sequence[int], batch_size: int) -> list[Explanation]:
        missing = batch_size - len(images)
        batch = np.stack([*images, *[images[0]] * missing])
        label = np.asarray([*labels, *[labels[0]] * missing], np.int32)
        heats = np.asarray(heatmaps(method, trained.variables, batch, label))[: len(images)]
        if method != "grad_cam" or heats.any((1, 2)).all():
            return [(method, heat) for heat in heats]
        others = np.asarray(heatmaps("hires_cam", trained.variables, batch, label))[: len(images)]
        pairs = zip(heats, others, strict=True)
        return [(method, heat) if heat.any() else ("hires_cam", other) for heat, other in pairs]

    return explain


def pictures(
    trained: TrainedModel, images: Sequence[np.ndarray], explanations: Sequence[Explanation]
) -> list[Explanation]:
    """(method, the image as the network sees it beside itself with the heat map), uint8 [H, 2 W, 3]."""
    shown = zip(trained.picture(np.stack(images)), explanations, strict=True)
    return [(method, beside(image, plots.blend(image, heat))) for image, (method, heat) in shown]


def beside(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two uint8 images [H, W, 1 or 3] in one, enlarged by a whole number to at least `SHORTEST_SIDE`."""
    row = np.hstack([np.broadcast_to(image, other.shape), other])
    times = -(-SHORTEST_SIDE // other.shape[0])
    return row.repeat(times, 0).repeat(times, 1)


def save_beside(picture: np.ndarray, name: str, out: str | None) -> Path:
    """Writes the picture of a named image as NAME.gradcam.png; existing files are never overwritten.

    It lies in the folder `out`, created if missing, or beside the image (here, if it is no file).
    """
    source = Path(name)
    check_local("out", out)
    folder = Path(out) if out else source.parent
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="png")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"out={out} is not a folder ({error.strerror}); name another") from None
    for number in itertools.count(1):
        file = folder / f"{source.stem}.gradcam{'' if number == 1 else f'-{number}'}.png"
        with contextlib.suppress(FileExistsError), open(file, "xb") as opened:
            opened.write(data.getvalue())
            break
    return file
