"""What the page shows, as plain data.

Of a network: predictions, feature maps, best patches, heat maps. Of operations: small pictures through a
filter, ReLU and pooling, as the package computes them.
"""

import collections
import functools
import io
import secrets
import threading
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from cnnjax import ops
from cnnjax.data.datasets import official_splits
from cnnjax.data.decode import FORMATS
from cnnjax.data.files import check_kind
from cnnjax.errors import UserError, by_name, unknown, visible
from cnnjax.explore import layers, pictures, plots, units
from cnnjax.explore.explain import explainer
from cnnjax.explore.markup import png
from cnnjax.inference.model import TrainedModel
from cnnjax.runs.inputs import load_split

MAX_PIXELS, MAX_SIDE = 40_000_000, 64  # of an uploaded image; of a picture
MAPS_SHOWN, KEPT_IMAGES = 64, 16
PATCH_IMAGES, PATCH_BATCH = 512, 64  # of the test split, among which the best patches of a unit are searched
PICTURES = (*pictures.PICTURES, *pictures.WORDS, "4x4 numbers")
FILTERS = (*pictures.FILTERS, "identity")
POOLS = {"max": ops.max_pool, "average": ops.avg_pool}
LEAST = {"padding": 0, "stride": 1, "window": 1, "pool_stride": 1}
LARGEST = 1_000_000  # number of a picture or a filter
Rows = list[list[float]]
Answer = Mapping[str, Any]  # becomes JSON


class Views:
    """The answers of the page for one network; the newest uploads are kept in memory."""

    def __init__(self, trained: TrainedModel):
        self.trained = trained
        self.explain = explainer(trained)
        self.images: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self.lock = threading.Lock()  # one computation at a time
        shapes = layers.layer_shapes(trained.model, trained.variables, trained.input_shape)
        self.maps = {name: shape for name, shape in shapes.items() if len(shape) == 3}

    def model(self) -> Answer:
        """The network, and the choices of the page."""
        config = self.trained.config
        return {
            "model": self.trained.spec,
            "run": visible(self.trained.name),
            "data": visible(config.data.name if config else "no data set"),
            "classes": list(map(visible, self.trained.class_names)),
            "layers": [{"name": name, "shape": list(shape)} for name, shape in self.maps.items()],
            "pictures": list(PICTURES),
            "filters": list(FILTERS),
        }

    def upload(self, data: bytes) -> Answer:
        """Classifies an encoded image and keeps it under an id."""
        check_size(data)
        with self.lock:
            image = self.trained.fit(data, "the image")
            (prediction,) = self.trained.predict(image, batch_size=1)
            token = secrets.token_hex(8)
            self.images[token] = image
            while len(self.images) > KEPT_IMAGES:
                self.images.popitem(last=False)
            picture = self.trained.picture(image[None])[0]
        labels = np.argsort(-prediction.probabilities, kind="stable").tolist()
        top = [
            {"class": visible(name), "label": label, "probability": share}
            for (name, share), label in zip(prediction.top, labels, strict=False)
        ]
        return {"id": token, "image": png(picture), "predictions": top}

    def feature_maps(self, token: str, layer: str) -> Answer:
        """The first maps of a layer, all on one scale."""
        by_name("layer", layer, self.maps)
        with self.lock:
            image = self.trained.prepare(self._image(token)[None])
            model, variables = self.trained.model, self.trained.variables
            value = np.asarray(layers.feature_maps(model, variables, image, [layer])[layer][0])
        maps = np.moveaxis(plots.to_bytes(value[..., :MAPS_SHOWN]), -1, 0)
        return {"shape": list(value.shape), "maps": [png(each[..., None]) for each in maps]}

    def heat(self, token: str, label: int) -> Answer:
        """The image with the heat map of a class over it."""
        if not 0 <= label < len(self.trained.class_names):
            raise UserError(f"class {label}; allowed: 0 to {len(self.trained.class_names) - 1}")
        with self.lock:
            image = self._image(token)
            ((method, heat),) = self.explain([image], [label], 1)
            picture = self.trained.picture(image[None])[0]
        return {"image": png(plots.blend(picture, heat)), "method": method}

    def patches(self, layer: str, unit: int) -> Answer:
        """The patches of the test split that excite a unit most."""
        by_name("layer", layer, self.maps)
        model, variables, shape = self.trained.model, self.trained.variables, self.trained.input_shape
        with self.lock:
            seen, peaks = self._peaks(layer)
            best = units.best_patches(model, variables, shape, peaks, unit)
        crops = (png(layers.crop(seen[patch.index], patch.box)) for patch in best)
        return {"patches": [{"image": next(crops), "value": patch.value} for patch in best]}

    def _image(self, token: str) -> np.ndarray:
        if token not in self.images:
            raise UserError("that image is no longer kept; choose it again")
        return self.images[token]

    @functools.cached_property
    def _test_images(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Images of the test split as the network sees them, and in batches as the data set has them."""
        known = self.trained.class_names, self.trained.image_shape, self.trained.recipe
        if not (config := self.trained.config):
            raise UserError(f"weights {self.trained.name} come without images; start with --data=folder:PATH")
        splits = official_splits(config.data.name, config.data.dir or None)
        source = load_split(config, "test" if "test" in splits else splits[0], *known)
        raw = np.stack([source[i]["image"] for i in range(min(PATCH_IMAGES, len(source)))])
        whole = len(raw) - PATCH_BATCH + 1  # a last batch that is not full is left out
        batches = [raw[i : i + PATCH_BATCH] for i in range(0, whole, PATCH_BATCH)] or [raw]
        return self.trained.picture(np.concatenate(batches)), batches

    @functools.lru_cache(maxsize=32)  # noqa: B019, one Views lives as long as its process
    def _peaks(self, layer: str) -> tuple[np.ndarray, units.Peaks]:
        seen, batches = self._test_images
        prepared = (self.trained.prepare(batch) for batch in batches)
        return seen, units.peaks(self.trained.model, self.trained.variables, prepared, layer)


def check_size(data: bytes) -> None:
    """Raises a UserError if an encoded image has too many pixels, before it is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
    except Exception:  # Pillow raises many kinds for bytes that are no image
        raise UserError(f"not a readable image; allowed: {', '.join(FORMATS)}") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"the image has {width}x{height} pixels; allowed: {MAX_PIXELS // 1_000_000} million")


def operation(request: Mapping[str, Any]) -> dict[str, Rows]:
    """The picture after convolution, after ReLU and, if it is large enough, after pooling.

    A request holds image and kernel, rows of numbers; padding, stride, window, pool_stride, whole numbers;
    padding_mode, zero or reflect; pooling, max or average.
    """
    names = ("image", "kernel", *LEAST, "padding_mode", "pooling")
    if request.keys() - {"divisor"} != set(names):  # which an example has too
        raise UserError(f"a value is missing or unknown: {sorted(request)}; allowed: {', '.join(names)}")
    image, kernel = _matrix(request, "image"), _matrix(request, "kernel")
    padding, stride, window, pool_stride = (_count(request, name, least) for name, least in LEAST.items())
    pool, mode = by_name("pooling", str(request["pooling"]), POOLS), str(request["padding_mode"])
    x, w = jnp.asarray(image)[None, :, :, None], jnp.asarray(kernel)[:, :, None, None]
    convolved = ops.conv2d(x, w, strides=stride, padding=padding, padding_mode=mode)
    rectified = ops.activation("relu")(convolved)
    stages = {"convolution": convolved, "relu": rectified}
    if min(rectified.shape[1:3]) >= window:
        stages["pooling"] = pool(rectified, window, pool_stride)
    return {name: np.asarray(value)[0, :, :, 0].round(4).tolist() for name, value in stages.items()}


def example(picture: str, kernel: str) -> dict[str, Rows | int]:
    """A picture and a filter by name; the filter's weights are to be divided by `divisor`."""
    if picture not in PICTURES:
        raise unknown("picture", picture, PICTURES)
    if kernel not in FILTERS:
        raise unknown("filter", kernel, FILTERS)
    image = pictures.POOLING if picture == PICTURES[-1] else pictures.picture(picture)
    weights, divisor = (np.ones((1, 1)), 1) if kernel == "identity" else (9 * pictures.feature(kernel), 9)
    return {"image": image.tolist(), "kernel": weights.round().astype(int).tolist(), "divisor": divisor}


def _matrix(request: Mapping[str, Any], name: str) -> np.ndarray:
    try:
        check_kind(request[name], list[list[float]])
        matrix = np.asarray(request[name], np.float64)
        if matrix.size > 0 and max(matrix.shape) <= MAX_SIDE and np.abs(matrix).max() <= LARGEST:
            return matrix.astype(np.float32)
    except (ValueError, OverflowError):  # also for rows of several lengths
        pass
    allowed = f"finite numbers up to {LARGEST}, all of one length, at most {MAX_SIDE} by {MAX_SIDE}"
    raise UserError(f"{name} must be rows of numbers: {allowed}")


def _count(request: Mapping[str, Any], name: str, least: int) -> int:
    value = request[name]
    if type(value) is not int or not least <= value <= MAX_SIDE:
        raise UserError(f"{name}={value!r}; allowed: a whole number from {least} to {MAX_SIDE}")
    return value
