"""What speaks for a class in a user's images, as heat maps and pictures."""

import contextlib
import functools
import io
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import Module
from jax import Array
from PIL import Image

from cnnjax.data.sources.source import as_labels
from cnnjax.errors import UserError, check_count, check_local, unknown
from cnnjax.explore import attribution, plots
from cnnjax.explore.faithfulness import Method
from cnnjax.explore.markup import grey_or_rgb
from cnnjax.inference.images import filled, size_of
from cnnjax.inference.model import TrainedModel
from cnnjax.models.forward import Variables

SHORTEST_SIDE = 224  # of a picture, pixels
MOST_NAME = 255  # bytes of a file's name, as systems allow
Explanation = tuple[str, np.ndarray]  # the method, and its heat map or picture
Explain = Callable[[Sequence[np.ndarray], Sequence[int], int], list[Explanation]]
Heat = Callable[[Variables, np.ndarray, np.ndarray], Array]
SCORED = 64  # channels that ScoreCAM tries


def _occlusion(model: Module, variables: Variables, image: Array, label: Array) -> Array:
    """Squares of a sixth of the side, a tenth apart."""
    side = min(image.shape[1:3])
    sizes = {"window": max(side // 6, 1), "stride": max(side // 10, 1)}
    return jax.nn.relu(attribution.occlusion(model, variables, image, label, **sizes))


def _integrated_gradients(model: Module, variables: Variables, image: Array, label: Array) -> Array:
    """What speaks for the class, over all channels; the hottest hundredth of the pixels is one colour."""
    values = attribution.integrated_gradients(model, variables, image, label, steps=24).sum(-1)
    return jnp.clip(values, 0, jnp.percentile(values, 99, axis=(1, 2), keepdims=True).clip(1e-12))


# Methods without a layer, then all: each takes (model, variables, image, label), and gives [B, h, w].
OF_PIXELS: dict[str, Method] = {
    "occlusion": _occlusion,
    "integrated_gradients": _integrated_gradients,
    "saliency": attribution.saliency,
}
METHODS: dict[str, Method] = {
    **attribution.METHODS,
    "score_cam": functools.partial(attribution.score_cam, channels=SCORED),
    **OF_PIXELS,
}


def heat_function(trained: TrainedModel, method: str, layer: str | None = None) -> Heat:
    """A compiled function (variables, images, label) -> heat maps float32 [B, H, W] of 0..1.

    Images are uint8 as `TrainedModel.fit` gives them. UserError for an unknown method, or for a layer (see
    `explore.layers`; None is the last map) that is none, or no map, or that the method does not ask for.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if layer is not None and method in OF_PIXELS:
        raise UserError(
            f"layer={layer}: {method} has no layer; allowed with {', '.join(attribution.METHODS)}"
        )
    options = {} if method in OF_PIXELS else {"layer": layer}

    @jax.jit
    def heat(variables: Variables, images: Array, label: Array) -> Array:
        image = trained.prepare(images)
        values = METHODS[method](trained.model, variables, image, label, **options)
        return attribution.heatmap(values, (image.shape[1], image.shape[2]))

    return heat


def explainer(trained: TrainedModel, layer: str | None = None, method: str = "grad_cam") -> Explain:
    """Makes a function that finds what in an image speaks for a class; it compiles for few sizes of batches.

    It takes uint8 images as `TrainedModel.fit` gives them, labels, and a batch size, and gives for each image
    the method, one of `METHODS`, and a heat map, float32 [H, W] of 0..1. Errors are those of `heat_function`.
    Grad-CAM's mean weights suit networks that average their last map; if dense layers read it, its map is
    often empty and HiResCAM's replaces it.
    """
    own, other = heat_function(trained, method, layer), heat_function(trained, "hires_cam")
    sizes: set[int] = set()  # of batches that they are compiled for
    if method == "grad_cam" and layer is not None:
        other = heat_function(trained, "hires_cam", layer)

    def explain(images: Sequence[np.ndarray], labels: Sequence[int], batch_size: int) -> list[Explanation]:
        if not len(images) == len(labels) >= 1:
            problem = f"{len(images)} images and {len(labels)} labels"
            raise UserError(f"explain: {problem}; allowed: one image at least, with a label each")
        check_count("batch_size", batch_size, 1)
        classes = as_labels(np.asarray(labels), "explain", len(trained.class_names))
        sizes.add(size := size_of(len(images), batch_size, sizes))
        batch, label = filled(np.stack(images), size), filled(classes, size)
        heats = np.asarray(own(trained.variables, batch, label))[: len(images)]
        if method != "grad_cam" or heats.any((1, 2)).all():
            return [(method, heat) for heat in heats]
        others = np.asarray(other(trained.variables, batch, label))[: len(images)]
        pairs = zip(heats, others, strict=True)
        return [(method, heat) if heat.any() else ("hires_cam", other) for heat, other in pairs]

    return explain


def pictures(
    trained: TrainedModel, images: Sequence[np.ndarray], explanations: Sequence[Explanation]
) -> list[Explanation]:
    """(method, the image as the network sees it beside itself with the heat map), uint8 [H, 2 W, 3]."""
    shown = zip(trained.picture(np.stack(images)), explanations, strict=True)
    return [(method, beside(grey_or_rgb(image), plots.blend(image, heat))) for image, (method, heat) in shown]


def beside(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two uint8 images [H, W, 1 or 3] in one, enlarged by a whole number to at least `SHORTEST_SIDE`."""
    row = np.hstack([np.broadcast_to(image, other.shape), other])
    times = -(-SHORTEST_SIDE // other.shape[0])
    return row.repeat(times, 0).repeat(times, 1)


def save_beside(picture: np.ndarray, name: str, out: str | None) -> Path:
    """Writes the picture of a named image as NAME.gradcam.png; existing files are never overwritten.

    It lies in the folder `out`, created if missing, or beside the image (here, if it is no file). The end of
    a long NAME is left out. A UserError names a picture that cannot be written.
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
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}); name another as out") from None
    for number in itertools.count(1):
        stem, ending = source.stem, f".gradcam{'' if number == 1 else f'-{number}'}.png"
        while len(os.fsencode(stem + ending)) > MOST_NAME:
            stem = stem[:-1]
        file = folder / f"{stem}{ending}"
        try:
            with contextlib.suppress(FileExistsError), open(file, "xb") as opened:
                opened.write(data.getvalue())
                break
        except OSError as error:
            with contextlib.suppress(OSError):  # what was begun
                file.unlink()
            given = f"{file} cannot be written ({error.strerror})"
            raise UserError(f"{given}; name another folder as out") from None
    return file
