"""A contact sheet: what each augmentation makes of the same images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from matplotlib.figure import Figure

from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.augment.register import AUGMENTATIONS, Batch
from cnnjax.errors import UserError


def examples_of_each(image_shape: Sequence[int]) -> dict[str, str]:
    """By name of an augmentation: a spec that shows it on images of [H, W, C], where it can be used."""
    side = min(image_shape[:2])
    arguments = {
        "brightness": "0.6",
        "center_crop": f"{side * 7 // 8}",
        "contrast": "0.6",
        "cutout": f"{max(1, side // 3)}",
        "hue": "0.3",
        "mixup": "1.0",
        "normalize": "0.5, 0.25",
        "pca_color": "1.0",
        "random_crop": f"{side}, padding={side // 8}",
        "random_resized_crop": f"{side}",
        "saturation": "0.9",
        "scale_jitter": f"{side}, sides=({side}, {2 * side})",
    }
    specs = {}
    for name, operation in AUGMENTATIONS.items():
        call = f"{name}({arguments[name]})" if name in arguments else name
        before = "" if "uint8" in operation.takes else "scale|"
        spec = f"{before}{call}" if operation.gives or before else f"{call}|scale"
        try:
            parse(spec, image_shape)
        except UserError:  # it is for colour images, or needs an argument that is not known here
            continue
        specs[name] = spec
    return specs


def parse(
    spec: str, image_shape: Sequence[int], images: np.ndarray | None = None
) -> augment_lib.Augmentation:
    """The chain, with the statistics of uint8 images [B, H, W, C], each of a class of its own."""
    channels = image_shape[2]
    pixels = np.zeros((2, channels)) if images is None else images.reshape(-1, channels) / 255
    covariance = np.cov(pixels.T, bias=True).reshape(channels, channels)
    std = np.where(pixels.std(0) > 0, pixels.std(0), 1.0)
    facts = {"mean": pixels.mean(0), "std": std, "covariance": covariance}
    return augment_lib.parse(
        spec, image_shape=image_shape, num_classes=1 if images is None else len(images), **facts
    )


def make_batch(key: jax.Array, images: np.ndarray, labels: Sequence[int]) -> Batch:
    """The batch that a training step would augment, of images in their first epoch."""
    index, label = jnp.arange(len(images)), jnp.asarray(labels, jnp.int32)
    first = {"index": index, "epoch": jnp.zeros_like(index), "run_key": key}
    return {"image": jnp.asarray(images), "label": label, **first}


def contact_sheet(images: np.ndarray, specs: dict[str, str] | None = None, *, seed: int = 0) -> Figure:
    """Draws the images, and under them a row for each augmentation.

    Args:
      images: uint8 [B, H, W, C], C 1 or 3.
      specs: title of a row -> spec; None shows every augmentation that there is, once.
      seed: of the draws.
    """
    count, shape = len(images), images.shape[1:]
    specs = examples_of_each(shape) if specs is None else specs
    rows = {"as they are": images / np.float32(255)}
    key = jax.random.key(seed)
    batch = make_batch(key, images, range(count))
    for title, spec in specs.items():
        chain = parse(spec, shape, images)
        rows[title] = np.asarray(chain(key, batch)["image"])
    figure = Figure(figsize=(1.2 * count + 1.4, 1.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes, (title, pictures) in zip(grid, rows.items(), strict=True):
        low, high = min(0.0, pictures.min()), max(1.0, pictures.max())
        for axis, picture in zip(axes, pictures, strict=True):
            axis.imshow((picture - low) / (high - low), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def draw_sheet(
    source: Any, augment: augment_lib.Augmentation, examples: list[dict[str, Any]], out: Path
) -> None:
    """A PNG of examples: above as they are, below augmented."""
    images = np.stack([example["image"] for example in examples])
    key = jax.random.key(0)
    augmented = augment(key, make_batch(key, images, [example["label"] for example in examples]))["image"]
    facts = [dict(arguments) for name, arguments in augment.steps if name == "normalize"]
    for fact in facts:
        augmented = augmented * np.asarray(fact["std"]) + np.asarray(fact["mean"])
    figure = matplotlib.figure.Figure(figsize=(1.5 * len(examples), 3.4), layout="constrained")
    axes = figure.subplots(2, len(examples), squeeze=False)
    for row, pictures in zip(axes, (images / 255, np.clip(augmented, 0, 1)), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    for axis, example in zip(axes[0], examples, strict=True):
        axis.set_title(source.class_names[example["label"]], fontsize=8)
    figure.savefig(out, dpi=120)
