"""The network that the page shows: its stages, compiled once, the images it has seen, and test images."""

import collections
import dataclasses
import functools
import io
import secrets
import threading
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from PIL import Image

from cnnjax.data import datasets
from cnnjax.data.decode import FORMATS
from cnnjax.data.sources.source import Source, evenly_spaced, read_some
from cnnjax.errors import UserError
from cnnjax.explore.stages import Stage, stages
from cnnjax.explore.units import Peaks
from cnnjax.inference.model import TrainedModel
from cnnjax.models.forward import Variables, run
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import NAME_IT, if_moved, max_bad_images
from cnnjax.runs.loaded import labelled

MAX_PIXELS = 40_000_000  # of an uploaded image
KEPT_IMAGES, KEPT_VALUES = 16, 3  # uploads, and images of which all values are kept
SAMPLES, BATCH = 24, 32  # test images to click; images in a batch of `peaks`
PEAK_IMAGES, PEAK_MACS = 512, 2e11  # test images among which a unit's best are searched, fewer of large nets
STAND_IN = "fashion_mnist_mini"  # whose images are shown if the network names no data set


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the network makes of one image."""

    picture: np.ndarray  # uint8 [H, W, C], cut as the network sees it
    inputs: np.ndarray  # float32 [H, W, C], normalized
    probabilities: np.ndarray  # float32 [K]
    values: list[np.ndarray]  # float32 [H, W, C] or [C] of each stage


class Network:
    """The network that the page shows and the images it has seen; safe to use from several threads."""

    def __init__(self, trained: TrainedModel, images: ConfigDict | None = None):
        self.trained, self._images = trained, images or trained.config
        self.stages = stages(trained.model, trained.variables, trained.input_shape)
        self.uploads: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self.last = ""  # the image that was looked at last
        self.lock, self.slow = threading.Lock(), threading.Lock()  # of a forward pass; of what takes seconds
        self._searching = threading.Lock()
        self._seen: collections.OrderedDict[str, Seen] = collections.OrderedDict()
        self._forward, self._looks = jax.jit(self._values), jax.jit(self._averaged)

    @property
    def rows(self) -> list[Stage]:
        """The stages in order."""
        return self.stages.rows

    def stage(self, number: int) -> Stage:
        """A stage by its number."""
        if not 0 <= number < len(self.rows):
            raise UserError(f"stage={number}; allowed: 0 to {len(self.rows) - 1}")
        return self.rows[number]

    def add(self, data: bytes) -> str:
        """Keeps an encoded image in memory, under the id that it gives."""
        check_size(data)
        image, token = self.trained.fit(data, "the image"), secrets.token_hex(8)
        with self.lock:
            self.uploads[token] = image
            while len(self.uploads) > KEPT_IMAGES:
                self._seen.pop(self.uploads.popitem(last=False)[0], None)
        return token

    def image(self, token: str) -> np.ndarray:
        """An upload, or the test image "s3", as `TrainedModel.fit` gives it."""
        if token in self.uploads:
            return self.uploads[token]
        number = token.removeprefix("s")
        if token.startswith("s") and number.isascii() and number.isdigit() and len(number) < 4:
            samples = self.tests.samples
            if int(number) < len(samples):
                return self.tests.images[samples[int(number)]]
        raise UserError("that image is no longer kept; choose it again")

    def seen(self, token: str) -> Seen:
        """All values of an image; the newest few are kept."""
        image = self.image(token)
        with self.lock:
            if token not in self._seen:
                self._seen[token] = self.pass_forward(image, self.trained.variables)
                while len(self._seen) > KEPT_VALUES:
                    self._seen.popitem(last=False)
            self._seen.move_to_end(token)
            return self._seen[token]

    def pass_forward(self, image: np.ndarray, variables: Variables) -> Seen:
        """What the network makes of an image with these variables, one program for all."""
        picture = self.trained.picture(image[None])[0]
        inputs, probabilities, values = jax.device_get(self._forward(variables, image[None]))
        if self.trained.protocol.views:  # averages several looks at the image
            probabilities = np.asarray(self._looks(variables, image[None]))[0]
        return Seen(picture, inputs, probabilities, values)

    def _compile(self) -> None:
        """Passes a black image forward, so that the first upload waits for no test image to be read."""
        with self.lock:
            self.pass_forward(np.zeros(self.trained.image_shape, np.uint8), self.trained.variables)

    def _values(self, variables: Variables, images: Array) -> tuple[Array, Array, list[Array]]:
        inputs = self.trained.prepare(images)
        keep = [stage.layer for stage in self.rows]
        logits, values = run(self.stages.traced, variables, inputs, keep=keep)
        floats = [value[0].astype(jnp.float32) for value in values]
        return inputs[0].astype(jnp.float32), jax.nn.softmax(logits)[0], floats

    def _averaged(self, variables: Variables, images: Array) -> Array:
        """Probabilities as `TrainedModel.predict` gives them, with these variables."""
        apply = functools.partial(self.trained.model.apply, variables)
        return jax.nn.softmax(self.trained.protocol(lambda image: jnp.asarray(apply(image)), images))

    @functools.cached_property
    def tests(self) -> "Tests":
        """Test images of the data set that was asked for, of the network's own, or of a stand-in."""
        macs = max(sum(stage.macs for stage in self.rows), 1)
        most = int(min(PEAK_IMAGES, max(BATCH, PEAK_MACS / macs // BATCH * BATCH)))
        return Tests.of(self.trained, self._images, most)

    @functools.cached_property
    def _peaks(self) -> list[Peaks]:
        """Of each stage; over whole batches of the test images, or all if they are fewer than one."""

        def peaks(variables: Variables, image: Array) -> list[tuple[Array, Array]]:
            _, _, values = self._values(variables, image[None])
            flat = [value.reshape(-1, value.shape[-1]) for value in values]
            return [(value.max(0), value.argmax(0)) for value in flat]

        find = jax.jit(jax.vmap(peaks, in_axes=(None, 0)))
        images = self.tests.images
        whole = max(len(images) // BATCH, 1) * BATCH
        found = []
        for i in range(0, min(whole, len(images)), BATCH):
            with self.slow:  # between batches others have their turn
                found.append(jax.device_get(find(self.trained.variables, images[i : i + BATCH])))
        rows = []
        for number, stage in enumerate(self.rows):
            value, place = (np.concatenate([batch[number][i] for batch in found]) for i in range(2))
            width = stage.layer.shape[1] if len(stage.layer.shape) == 3 else 1
            places = np.stack(np.divmod(place, width), -1).astype(np.int32)
            rows.append(Peaks(stage.layer.name, value, places))
        return rows

    def peaks(self, number: int) -> Peaks:
        """Where each unit of a stage is highest on each test image."""
        with self._searching:
            return self._peaks[number]

    def warm(self, then: Sequence[Callable[[], object]] = ()) -> threading.Thread:
        """Compiles in the background what the first clicks need, most wanted first."""

        def work() -> None:
            for step in (self._compile, lambda: self.seen("s0"), *then, lambda: self.peaks(0)):
                try:
                    step()
                except UserError:  # which the page tells beside the click that meets it
                    continue

        thread = threading.Thread(target=work, name="warm", daemon=True)
        thread.start()
        return thread


@dataclasses.dataclass(frozen=True)
class Tests:
    """Images uint8 as `TrainedModel.fit` gives them, what they show, and which of them are samples."""

    name: str
    images: np.ndarray  # uint8 [N, H, W, C]
    labels: list[int]
    class_names: tuple[str, ...]
    own: bool  # whether the labels are the network's

    @classmethod
    def of(cls, trained: TrainedModel, images: ConfigDict | None, most: int) -> "Tests":
        """At most so many of a data set's test split; UserError if it cannot be read.

        They are evenly spaced: the images of a folder are sorted by class.
        """
        source = _own_images(trained, images)
        stand_in = source or datasets.load(STAND_IN, "test")
        max_bad = max_bad_images(images) if images else None
        rows = [row for _, row in read_some(stand_in, evenly_spaced(len(stand_in), most), max_bad, [])]
        fitted = np.stack([trained.fit(row["image"], f"test image {i}") for i, row in enumerate(rows)])
        labels = [int(row["label"]) for row in rows]
        names = trained.class_names if source else tuple(stand_in.class_names)
        return cls(stand_in.name, fitted, labels, names, source is not None)

    @functools.cached_property
    def samples(self) -> list[int]:
        """Numbers of the images to click: one of each class, then a second, and so on.

        Of more classes than samples, some that are evenly spaced.
        """
        counts: collections.Counter[int] = collections.Counter()
        order = []
        for number, label in enumerate(self.labels):
            order.append((counts[label], label, number))
            counts[label] += 1
        order = sorted(order)[: max(SAMPLES, len(counts))]
        return [order[i][2] for i in evenly_spaced(len(order), SAMPLES)]

    def truth(self, token: str) -> str:
        """The class of the test image "s3"; "" of an upload."""
        number = token.removeprefix("s")
        if not token.startswith("s") or not number.isdigit():
            return ""
        return self.class_names[self.labels[self.samples[int(number)]]]


def _own_images(trained: TrainedModel, config: ConfigDict | None) -> Source | None:
    """The test split of the data set that a config names, or its first; None without a data set."""
    if not config:
        return None
    run = Run(trained.name) if trained.config else None
    with if_moved(config, NAME_IT, "" if config is trained.config else "data"):
        splits = datasets.official_splits(config.data.name, config.data.dir or None)
        split = "test" if "test" in splits else splits[0]
        return labelled(trained.facts, run, config, split).load(config, split)


def check_size(data: bytes) -> None:
    """Raises a UserError if an encoded image has too many pixels, before it is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
    except Exception:  # Pillow raises many kinds for bytes that are no image
        raise UserError(f"not a readable image; allowed: {', '.join(FORMATS)}") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"the image has {width}x{height} pixels; allowed: {MAX_PIXELS // 1_000_000} million")
