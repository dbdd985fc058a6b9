"""What the page shows, as plain data: predictions, feature maps, best patches, heat maps, operations."""

import base64
import collections
import functools
import io
import secrets
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from cnnjax import ops
from cnnjax.data.decode import FORMATS
from cnnjax.errors import UserError, unknown
from cnnjax.explore import layers, plots, units
from cnnjax.explore import pictures as examples
from cnnjax.explore.explain import Explainer
from cnnjax.inference.model import TrainedModel
from cnnjax.runs.inputs import load_split

MAX_BYTES = 20_000_000  # of an uploaded image
MAX_PIXELS = 40_000_000
MAX_SIDE = 64  # of a picture on the page of operations
MAPS_SHOWN = 64
PATCH_IMAGES = 512  # of the test split, in which a unit's best patches are looked for
KEPT_IMAGES = 16
PICTURES = (*examples.PICTURES, *examples.WORDS, "4x4 numbers")  # of the page of operations
FILTERS = (*examples.FILTERS, "identity")


class Views:
    """The answers of the page for one network; uploads stay in memory, the newest few of them."""

    def __init__(self, trained: TrainedModel):
        self.trained = trained
        self.explainer = Explainer(trained)
        self.images: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self.lock = threading.Lock()  # one computation at a time
        shapes = layers.layer_shapes(trained.model, trained.variables, trained.input_shape)
        self.maps = {name: shape for name, shape in shapes.items() if len(shape) == 3}

    def model(self) -> dict[str, Any]:
        """What the page is about."""
        return {
            "model": self.trained.config.model,
            "run": str(self.trained.path),
            "data": self.trained.config.data.name,
            "classes": list(self.trained.class_names),
            "layers": [{"name": name, "shape": list(shape)} for name, shape in self.maps.items()],
            "pictures": list(PICTURES),
            "filters": list(FILTERS),
        }

    def upload(self, data: bytes) -> dict[str, Any]:
        """Classifies an encoded image and keeps it under an id.

        Raises:
          UserError: for one that is too large, or none.
        """
        check_size(data)
        with self.lock:
            image = self.trained.fit(data, "the image")
            (found,) = self.trained.predict(image, batch_size=1)
            token = secrets.token_hex(8)
            self.images[token] = image
            while len(self.images) > KEPT_IMAGES:
                self.images.popitem(last=False)
            top = [{"class": name, "probability": share} for name, share in found.top]
            picture = self.trained.picture(image[None])[0]
            return {"id": token, "image": png(picture), "predictions": top}

    def feature_maps(self, token: str, layer: str) -> dict[str, Any]:
        """The first maps of a layer, each on the layer's own scale."""
        self._known(layer)
        with self.lock:
            image = self.trained.prepare(self._image(token)[None])
            model, variables = self.trained.model, self.trained.variables
            value = layers.feature_maps(model, variables, image, [layer])[layer][0]
        scaled = np.uint8(np.round(255 * plots.to_unit(np.asarray(value)[..., :MAPS_SHOWN])))
        return {
            "shape": list(value.shape),
            "maps": [png(scaled[..., i, None]) for i in range(scaled.shape[-1])],
        }

    def heat(self, token: str, label: int) -> dict[str, Any]:
        """The image with the heat map of a class over it."""
        if not 0 <= label < len(self.trained.class_names):
            raise UserError(f"class {label}; allowed: 0 to {len(self.trained.class_names) - 1}")
        with self.lock:
            image = self._image(token)
            ((method, heat),) = self.explainer.drawn([image], [label], 1)
            return {
                "image": png(plots.blend(self.trained.picture(image[None])[0], heat)),
                "method": method,
            }

    def patches(self, layer: str, unit: int) -> dict[str, Any]:
        """The patches of the test split that excite a unit most."""
        self._known(layer)
        with self.lock:
            pictures, found = self._peaks(layer)
            trained = self.trained
            best = units.best_patches(
                trained.model, trained.variables, trained.input_shape, found, unit, count=9
            )
        cut = []
        for patch in best:
            top, left, bottom, right = patch.box
            data = png(pictures[patch.index][top:bottom, left:right])
            cut.append({"image": data, "value": patch.value})
        return {"patches": cut}

    def _known(self, layer: str) -> None:
        if layer not in self.maps:
            raise unknown("layer", layer, self.maps)

    def _image(self, token: str) -> np.ndarray:
        if token not in self.images:
            raise UserError("that image is no longer kept; choose it again")
        return self.images[token]

    @functools.cached_property
    def _source(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Pictures of the test split as the network sees them, and batches of images before that."""
        source = load_split(self.trained.config, "test")
        if tuple(source.image_shape) != tuple(self.trained.image_shape):
            raise UserError("the run has no data set of its own here to take patches from")
        raw = np.stack([source[i]["image"] for i in range(min(PATCH_IMAGES, len(source)))])
        batches = [raw[i : i + 64] for i in range(0, len(raw) - 63, 64)] or [raw]
        return self.trained.picture(np.concatenate(batches)), batches

    @functools.lru_cache(maxsize=32)  # noqa: B019, one Views lives as long as its process
    def _peaks(self, layer: str) -> tuple[np.ndarray, units.Peaks]:
        pictures, batches = self._source
        prepared = (self.trained.prepare(batch) for batch in batches)
        return pictures, units.peaks(self.trained.model, self.trained.variables, prepared, layer)


def check_size(data: bytes) -> None:
    """Raises a UserError for an encoded image of too many bytes or pixels, before it is decoded."""
    if len(data) > MAX_BYTES:
        raise UserError(f"the image has more than {MAX_BYTES // 1_000_000} MB; take a smaller one")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
    except Exception:  # Pillow raises many kinds for bytes that are no image
        raise UserError(f"not an image that can be read; allowed: {', '.join(FORMATS)}") from None
    if width * height > MAX_PIXELS:
        raise UserError(
            f"the image has {width}x{height} pixels; allowed: {MAX_PIXELS // 1_000_000} million in all"
        )


def operation(asked: dict[str, Any]) -> dict[str, Any]:
    """The page of operations: an image through a filter, ReLU and pooling, by the package's own functions.

    Args:
      asked: image and kernel, lists of rows of numbers; padding, stride, window, pool_stride: whole numbers;
        padding_mode: zero or reflect; pooling: max or average.

    Raises:
      UserError: naming what does not fit.
    """
    image = _matrix(asked, "image")
    kernel = _matrix(asked, "kernel")
    padding, stride, window, pool_stride = (
        _count(asked, name, least)
        for name, least in (("padding", 0), ("stride", 1), ("window", 1), ("pool_stride", 1))
    )
    pools = {"max": ops.max_pool, "average": ops.avg_pool}
    if asked.get("pooling") not in pools:
        raise unknown("pooling", asked.get("pooling"), pools)
    found = ops.conv2d(
        jnp.asarray(image)[None, :, :, None],
        jnp.asarray(kernel)[:, :, None, None],
        strides=stride,
        padding=padding,
        padding_mode=str(asked.get("padding_mode", "zero")),
    )
    rectified = ops.activation("relu")(found)
    answer = {"convolution": found, "relu": rectified}
    if min(rectified.shape[1:3]) >= window:
        answer["pooling"] = pools[asked["pooling"]](rectified, window, pool_stride)
    return {name: np.asarray(value)[0, :, :, 0].round(4).tolist() for name, value in answer.items()}


def example(picture: str, kernel: str) -> dict[str, Any]:
    """A picture and a filter of the page of operations by name; the weights are over `divisor`."""
    if picture not in PICTURES:
        raise unknown("picture", picture, PICTURES)
    if kernel not in FILTERS:
        raise unknown("filter", kernel, FILTERS)
    image = examples.POOLING if picture == PICTURES[-1] else examples.picture(picture)
    weights = 9 * examples.feature(kernel) if kernel in examples.FILTERS else np.ones((1, 1))
    return {
        "image": image.tolist(),
        "kernel": weights.round().astype(int).tolist(),
        "divisor": 9 if kernel in examples.FILTERS else 1,
    }


def _matrix(asked: dict[str, Any], name: str) -> np.ndarray:
    try:
        found = np.asarray(asked[name], np.float32)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{name} must be rows of numbers, all of one length") from None
    if found.ndim != 2 or not 0 < max(found.shape) <= MAX_SIDE or not np.isfinite(found).all():
        raise UserError(f"{name} must be rows of finite numbers, at most {MAX_SIDE} by {MAX_SIDE}")
    return found


def _count(asked: dict[str, Any], name: str, least: int) -> int:
    value = asked.get(name)
    if type(value) is not int or not least <= value <= MAX_SIDE:
        raise UserError(f"{name}={value!r}; allowed: a whole number from {least} to {MAX_SIDE}")
    return value


def png(image: np.ndarray) -> str:
    """uint8 [H, W, 1 or 3] as a data address of a PNG."""
    data = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(data, format="png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
