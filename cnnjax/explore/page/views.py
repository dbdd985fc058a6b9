"""What the page shows of a network, as plain data: predictions, feature maps, best patches, heat maps."""

import collections
import functools
import io
import secrets
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from cnnjax.data.decode import FORMATS
from cnnjax.errors import UserError, unknown
from cnnjax.explore import layers, plots, units
from cnnjax.explore.explain import explainer
from cnnjax.explore.markup import png
from cnnjax.explore.page import operations
from cnnjax.inference.model import TrainedModel
from cnnjax.runs.inputs import load_split

MAX_PIXELS = 40_000_000  # of an uploaded image
MAPS_SHOWN = 64
PATCH_IMAGES = 512  # of the test split, among which the best patches of a unit are searched
PATCH_BATCH = 64
KEPT_IMAGES = 16
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
        return {
            "model": self.trained.config.model,
            "run": str(self.trained.path),
            "data": self.trained.config.data.name,
            "classes": list(self.trained.class_names),
            "layers": [{"name": name, "shape": list(shape)} for name, shape in self.maps.items()],
            "pictures": list(operations.PICTURES),
            "filters": list(operations.FILTERS),
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
        top = [{"class": name, "probability": share} for name, share in prediction.top]
        return {"id": token, "image": png(picture), "predictions": top}

    def feature_maps(self, token: str, layer: str) -> Answer:
        """The first maps of a layer, all on one scale."""
        self._check_layer(layer)
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
        self._check_layer(layer)
        model, variables, shape = self.trained.model, self.trained.variables, self.trained.input_shape
        with self.lock:
            pictures, peaks = self._peaks(layer)
            best = units.best_patches(model, variables, shape, peaks, unit)
        crops = [layers.crop(pictures[patch.index], patch.box) for patch in best]
        pairs = zip(crops, best, strict=True)
        return {"patches": [{"image": png(crop), "value": patch.value} for crop, patch in pairs]}

    def _check_layer(self, layer: str) -> None:
        if layer not in self.maps:
            raise unknown("layer", layer, self.maps)

    def _image(self, token: str) -> np.ndarray:
        if token not in self.images:
            raise UserError("that image is no longer kept; choose it again")
        return self.images[token]

    @functools.cached_property
    def _test_images(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Images of the test split as the network sees them, and in batches as the data set has them."""
        source = load_split(self.trained.config, "test")
        if tuple(source.image_shape) != tuple(self.trained.image_shape):
            raise UserError("no test images available, so no patches")
        raw = np.stack([source[i]["image"] for i in range(min(PATCH_IMAGES, len(source)))])
        whole = len(raw) - PATCH_BATCH + 1  # a last batch that is not full is left out
        batches = [raw[i : i + PATCH_BATCH] for i in range(0, whole, PATCH_BATCH)] or [raw]
        return self.trained.picture(np.concatenate(batches)), batches

    @functools.lru_cache(maxsize=32)  # noqa: B019, one Views lives as long as its process
    def _peaks(self, layer: str) -> tuple[np.ndarray, units.Peaks]:
        pictures, batches = self._test_images
        prepared = (self.trained.prepare(batch) for batch in batches)
        return pictures, units.peaks(self.trained.model, self.trained.variables, prepared, layer)


def check_size(data: bytes) -> None:
    """Raises a UserError if an encoded image has too many pixels, before it is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
    except Exception:  # Pillow raises many kinds for bytes that are no image
        raise UserError(f"not a readable image; allowed: {', '.join(FORMATS)}") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"the image has {width}x{height} pixels; allowed: {MAX_PIXELS // 1_000_000} million")
