"""Contact sheets: what augmentations make of the same images."""

import contextlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from cnnjax.data.augment import chain as augment
from cnnjax.data.augment.register import AUGMENTATIONS, Batch
from cnnjax.data.sources.source import Source, evenly_spaced
from cnnjax.data.statistics import Statistics, moments
from cnnjax.errors import UserError
from cnnjax.explore import plots


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
        with contextlib.suppress(UserError):  # it is for colour, or needs an argument that is not known here
            _parse(spec, np.zeros((1, *image_shape), np.uint8))
            specs[name] = spec
    return specs


def _parse(spec: str, images: np.ndarray) -> augment.Augmentation:
    """The chain, with the statistics of uint8 images [B, H, W, C], each of a class of its own."""
    facts = moments(images).statistics()._asdict()
    return augment.parse(spec, image_shape=images.shape[1:], num_classes=len(images), **facts)


def _make_batch(key: jax.Array, images: np.ndarray, labels: Sequence[int]) -> Batch:
    """The batch that a training step would augment, of images in their first epoch."""
    index, label = jnp.arange(len(images)), jnp.asarray(labels, jnp.int32)
    facts = {"index": index, "epoch": jnp.zeros_like(index), "run_key": key}
    return {"image": jnp.asarray(images), "label": label, **facts}


def contact_sheet(images: np.ndarray, specs: dict[str, str] | None = None, *, seed: int = 0) -> Figure:
    """Images, uint8 [B, H, W, C], and a row for each spec by its title; None: for every augmentation."""
    key = jax.random.key(seed)
    batch = _make_batch(key, images, range(len(images)))
    rows = {"original": images}
    for title, spec in (examples_of_each(images.shape[1:]) if specs is None else specs).items():
        augmented = np.asarray(_parse(spec, images)(key, batch)["image"])
        # What stays inside 0..1 keeps its scale, and the images of a row share theirs.
        low, high = min(0.0, augmented.min()), max(1.0, augmented.max())
        rows[title] = np.round(255 * (augmented - low) / (high - low)).astype(np.uint8)
    pictures = [picture for row in rows.values() for picture in row]
    return plots.image_grid(pictures, columns=len(images), rows=list(rows), size=1.2)


def draw_sheet(source: Source, positions: Sequence[int], spec: str, statistics: Statistics) -> Figure:
    """Eight images of a source, evenly spaced over positions, before and after a spec; "each" shows all."""
    examples = [source[positions[i]] for i in evenly_spaced(len(positions), 8)]
    images = np.stack([example["image"] for example in examples])
    if spec == "each":
        return contact_sheet(images)
    facts = statistics._asdict()
    chain = augment.parse(spec, image_shape=source.image_shape, num_classes=source.num_classes, **facts)
    labels, key = [example["label"] for example in examples], jax.random.key(0)
    augmented = np.asarray(chain(key, _make_batch(key, images, labels))["image"])
    for arguments in (dict(arguments) for name, arguments in chain.steps if name == "normalize"):
        augmented = augmented * np.asarray(arguments["std"]) + np.asarray(arguments["mean"])
    pictures = [*images, *np.round(255 * np.clip(augmented, 0, 1)).astype(np.uint8)]
    titles = [source.class_names[label] for label in labels]
    return plots.image_grid(pictures, titles, columns=len(images), rows=["original", "augmented"], size=1.5)
