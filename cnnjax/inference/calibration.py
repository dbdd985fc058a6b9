"""The images on which a network in 8-bit integers finds the ranges of its values."""

import numpy as np
from ml_collections import ConfigDict

from cnnjax.data.files import expanded
from cnnjax.data.recipe import Recipe
from cnnjax.data.sources.source import Shape, Source, evenly_spaced, read_some
from cnnjax.errors import UserError
from cnnjax.inference.images import AnyImage, Images, name_images
from cnnjax.runs.inputs import if_moved, max_bad_images, open_split
from cnnjax.runs.loaded import with_data

COUNT = 256  # images at most, evenly spaced among those that are given


def choose(
    given: Images | None, config: ConfigDict | None, image_shape: Shape, recipe: Recipe, name: str
) -> list[AnyImage]:
    """Up to `COUNT` of the images that are given: images as for `predict`, or a data set by name.

    None is the data set of the run. Of a data set they are from the validation split, or if it has none from
    train. UserError if nothing is given and the weights, called `name`, come without images.
    """
    if given is None or (isinstance(given, str) and not expanded(given).exists()):
        if (known := with_data(config, given, image_shape)) is None:
            wanted = "name a folder of images or a data set, as in --calibration=FOLDER (calibration=...)"
            raise UserError(f"dtype=int8 is calibrated on images, and weights {name} come without; {wanted}")
        with if_moved(known, "name images with --calibration", "calibration" if given else ""):
            source = _held_out(known, recipe)
        some = read_some(source, evenly_spaced(len(source), COUNT), max_bad_images(known), [])
        return [np.asarray(example["image"]) for _, example in some]
    images = [image for _, image in name_images(given)]
    if not images:
        raise UserError("calibration: no image")
    return [images[i] for i in evenly_spaced(len(images), COUNT)]


def _held_out(config: ConfigDict, recipe: Recipe) -> Source:
    try:
        return open_split(config, "validation", (), None, recipe)
    except UserError:  # nothing is held out; what else is wrong train tells
        return open_split(config, "train", (), None, recipe)
