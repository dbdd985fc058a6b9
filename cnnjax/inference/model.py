"""A trained network, ready to use: `load_model("resnet50").predict(images)`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.augment import views as protocols
from cnnjax.data.augment.register import AUGMENTATIONS
from cnnjax.data.recipe import Recipe, covering
from cnnjax.data.sources.source import numbered_names
from cnnjax.errors import UserError, check_count, unknown
from cnnjax.inference import calibration as calibration_lib
from cnnjax.inference import images as image_files
from cnnjax.inference import int8
from cnnjax.inference.direct import Direct, direct
from cnnjax.inference.fused import Fused, fuse
from cnnjax.inference.images import AnyImage, Batch, Failure, Images, filled, size_of
from cnnjax.models import create_model, variable_shapes, variant
from cnnjax.models.forward import unrolled
from cnnjax.models.pyramid import layer_values
from cnnjax.models.weights.torch import Variables
from cnnjax.ops.cpu import takes
from cnnjax.runs import loaded
from cnnjax.runs.facts import Facts, read_names
from cnnjax.runs.loaded import Loaded
from cnnjax.training.steps import run_init

Weights = TypeVar("Weights")
DTYPES = ("float32", "bfloat16", "int8")  # that a network computes in


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The classes of one image."""

    name: str  # the file, or "image 3" for an array
    probabilities: np.ndarray  # float32 [K]
    top: tuple[tuple[str, float], ...]  # class names and probabilities, the most likely first


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with its preprocessing: `model.apply(variables, prepare(images))`.

    Other weights make another one, `dataclasses.replace(trained, variables=...)`; `predict` keeps its first.
    """

    name: str  # the run folder, or the source of the weights
    spec: str  # of `create_model`
    config: ConfigDict | None  # of the run; None of weights from elsewhere
    step: int  # of the checkpoint
    model: nn.Module
    variables: Variables
    augment: augment_lib.Augmentation  # the preprocessing of evaluation, from uint8 images of `image_shape`
    protocol: protocols.Protocol  # how `predict` looks at an image: in the middle only, or from several views
    image_shape: tuple[int, int, int]  # [H, W, C] of the images that it was trained on, as they are stored
    class_names: tuple[str, ...]
    recipe: Recipe  # how image files are brought to that shape

    def predict(self, images: Images, *, top: int = 5, batch_size: int = 64) -> list[Prediction]:
        """Classifies images, `batch_size` at a time; `Prediction.top` has the `top` most likely classes.

        `images` is a path, an image of Pillow or uint8 [H, W, C], a batch, or a list of paths and images; a
        folder means all images in it. Images of any size are resized as recorded with the network; arrays of
        its size are used unchanged. The first unreadable image raises UserError.
        """
        check_count("top", top, 1)
        check_count("batch_size", batch_size, 1)
        predictions: list[Prediction] = []
        if (arrays := image_files.ready(images, self.recipe, self.image_shape[2])) is not None:
            for start in range(0, len(arrays), batch_size):
                batch = arrays[start : start + batch_size]
                names = [f"image {start + i}" for i in range(len(batch))]
                predictions += self._predictions(names, self._probabilities(batch, batch_size), top)
            return predictions
        for item in self.stream(images, top=top, batch_size=batch_size):
            if isinstance(item, Failure):
                raise UserError(item.reason)
            predictions.append(item)
        return predictions

    def stream(self, images: Images, *, top: int = 5, batch_size: int = 64) -> Iterator[Prediction | Failure]:
        """Yields the prediction of each image in order, a `Failure` for an unreadable one."""
        check_count("top", top, 1)
        for batch in self.batches(images, batch_size):
            yield from self.classify(batch, top=top, batch_size=batch_size)

    def classify(self, batch: Batch, *, top: int = 5, batch_size: int = 64) -> list[Prediction | Failure]:
        """Classifies one batch of `batches`, in order."""
        good = [(name, image) for name, image in batch if not isinstance(image, Failure)]
        if not good:
            return [image for _, image in batch if isinstance(image, Failure)]
        rows = self._probabilities(np.stack([image for _, image in good]), batch_size)
        found = iter(self._predictions([name for name, _ in good], rows, top))
        return [image if isinstance(image, Failure) else next(found) for _, image in batch]

    def _predictions(self, names: Sequence[str], rows: np.ndarray, top: int) -> list[Prediction]:
        """Of probabilities [B, K]."""
        order, classes = (-rows).argsort(1, "stable")[:, :top], self.class_names
        best = rows[np.arange(len(rows))[:, None], order].tolist()
        return [
            Prediction(name, row, tuple(zip([classes[place] for place in places], values, strict=True)))
            for name, row, places, values in zip(names, rows, order.tolist(), best, strict=True)
        ]

    def features(self, images: Images, layer: str | None = None, *, batch_size: int = 64) -> np.ndarray:
        """The output of a layer for images, given as in `predict`: float32 [B, H, W, C] or [B, C].

        `layer` is a stage ("stage4") or any other name that `models.pyramid.layer_values` knows; None is the
        input of the head, [B, C]. Images are cropped at the centre, whatever the protocol.
        """
        if isinstance(self.model, int8.Int8):
            raise UserError("dtype=int8 gives classes, not features; use float32")
        if (compiled := self._values.get(layer)) is None:
            values = functools.partial(layer_values, self.model, layer=layer)
            compiled = self._values[layer] = jax.jit(lambda v, x: values(v, self.augment.preprocess(x)))
        shape = jax.eval_shape(compiled, self.variables, np.zeros((1, *self.image_shape), np.uint8))
        rows = [np.zeros((0, *shape.shape[1:]), np.float32)]
        for batch in self.batches(images, batch_size):
            if failures := [image for _, image in batch if isinstance(image, Failure)]:
                raise UserError(failures[0].reason)
            stacked = np.stack([np.asarray(image) for _, image in batch])
            stacked = filled(stacked, size_of(len(batch), batch_size))
            rows.append(np.asarray(compiled(self.variables, stacked))[: len(batch)])
        return np.concatenate(rows)

    def batches(self, images: Images, batch_size: int) -> Iterator[Batch]:
        """Yields lists of (name, uint8 `image_shape` or Failure); threads decode ahead."""
        check_count("batch_size", batch_size, 1)
        return image_files.read_batches(images, self.recipe, self.image_shape[2], batch_size)

    def fit(self, image: AnyImage, name: str = "image") -> np.ndarray:
        """Resizes a path, encoded bytes, an image of Pillow or uint8 [H, W, C] to uint8 of `image_shape`."""
        return image_files.fit(image, self.recipe, self.image_shape[2], name)

    def prepare(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Crops and normalizes uint8 [B, *image_shape] for the network: float32 [B, H, W, C]."""
        return self.augment.preprocess(image_files.as_batch(images, self.image_shape))

    def picture(self, images: np.ndarray) -> np.ndarray:
        """Crops uint8 [B, *image_shape] as `prepare` does, without normalization: uint8 [B, H, W, C]."""
        steps = tuple(step for step in self.augment.steps if AUGMENTATIONS[step[0]].gives is None)
        cut = dataclasses.replace(self.augment, steps=steps)
        return np.asarray(cut.preprocess(image_files.as_batch(images, self.image_shape)))

    def with_class_names(self, file: str | Path) -> "TrainedModel":
        """A copy with the class names of a text file, one per line."""
        return dataclasses.replace(self, class_names=read_names(file, len(self.class_names)))

    def with_dtype(self, dtype: DTypeLike | None, calibration: Images | None = None) -> "TrainedModel":
        """A copy that computes in float32, bfloat16 or int8, or None as it does; probabilities stay float32.

        int8 is calibrated on images, see `calibration.choose`; it gives classes only, no features.
        """
        dtype = next((name for name in DTYPES if jnp.dtype(name) == dtype), dtype)
        if dtype not in (*DTYPES, None):
            raise unknown("dtype", dtype, DTYPES)
        if calibration is not None and dtype != "int8":
            instead = f", not {dtype}; leave it out" if dtype else "; add it, or leave calibration out"
            raise UserError(f"calibration needs dtype=int8{instead}")
        if dtype is None:
            return self
        if isinstance(self.model, int8.Int8):
            raise UserError(f"dtype={dtype}: this network computes in int8 already; load it again")
        if dtype == "int8":
            return self._in_integers(calibration)
        return dataclasses.replace(self, model=self.model.clone(dtype=jnp.dtype(dtype)))

    def agreement(self) -> str:
        """How often int8 gives the class of float32, in words; of an int8 network."""
        assert isinstance(self.model, int8.Int8)
        share, count = 100 * self.model.agreement, self.model.count
        return f"int8 and float32 agree on {share:.1f} % of {count} calibration images"

    def calibration_images(self, given: Images | None = None) -> np.ndarray:
        """Those of `calibration.choose` as the network takes them: float32 [N, H, W, C]."""
        chosen = calibration_lib.choose(given, self.config, self.image_shape, self.recipe, self.name)
        batches = []
        for batch in self.batches(chosen, 32):
            if failures := [image for _, image in batch if isinstance(image, Failure)]:
                raise UserError(f"calibration: {failures[0].reason}")
            batches.append(np.asarray(self.prepare(np.stack([np.asarray(image) for _, image in batch]))))
        return np.concatenate(batches)

    def _in_integers(self, calibration: Images | None) -> "TrainedModel":
        int8.check()
        if self.protocol.input_shapes != {self.input_shape}:
            problem = f"protocol {self.protocol.spec} looks at several sizes of image"
            raise UserError(f"dtype=int8: {problem}; allowed: those of one size, as center")
        model, variables = int8.calibrated(self._in_float32(), self.calibration_images(calibration))
        return dataclasses.replace(self, model=model, variables=variables)

    def _in_float32(self) -> Callable[[jax.Array], jax.Array]:
        model, dtype = unrolled(self.model), jnp.dtype(jnp.float32)
        model = model if getattr(model, "dtype", dtype) == dtype else model.clone(dtype=dtype)
        return lambda image: jnp.asarray(model.apply(self.variables, image))

    def __getstate__(self) -> dict[str, object]:
        """The fields alone, for pickle and copy: what is compiled stays in this process."""
        if isinstance(self.model, int8.Int8):
            raise UserError("dtype=int8: not to be pickled or copied; do so in float32, then call with_dtype")
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of the network's input."""
        return self.augment.output_shape

    @property
    def facts(self) -> Facts:
        """What it knows of its images, but for their statistics."""
        return Facts(self.class_names, self.image_shape, self.augment, self.recipe, None)

    @functools.cached_property
    def _values(self) -> dict[str | None, Callable[[Variables, np.ndarray], jax.Array]]:
        """The compiled functions of `features` by layer."""
        return {}

    @functools.cached_property
    def _apply(self) -> Callable[[Variables, np.ndarray], jax.Array]:
        return self._classifier(lambda variables, image: jnp.asarray(self.model.apply(variables, image)))

    @functools.cached_property
    def _fused(self) -> Fused | None:
        """The network as one call of the CPU kernels, if it can be that; in the model's dtype."""
        if isinstance(self.model, int8.Int8):
            return self.model.fused
        if jax.device_count() > 1 or self.protocol.input_shapes != {self.input_shape}:
            return None
        return fuse(self._in_float32(), self.input_shape, getattr(self.model, "dtype", jnp.float32))

    @functools.cached_property
    def _direct(self) -> Direct | None:
        return direct(self._fused.program, self.protocol, self.image_shape) if self._fused else None

    @functools.cached_property
    def _apply_fused(self) -> Callable[[jax.Array, np.ndarray], jax.Array]:
        assert self._fused is not None
        return self._classifier(self._fused)

    def _classifier(
        self, network: Callable[[Weights, jax.Array], jax.Array]
    ) -> Callable[[Weights, np.ndarray], jax.Array]:
        def probabilities(weights: Weights, images: jax.Array) -> jax.Array:
            return jax.nn.softmax(self.protocol(lambda image: network(weights, image), images))

        return jax.jit(probabilities)

    def _probabilities(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """float32 [B, K] of uint8 [B, H, W, C], at least one."""
        fused = self._fused if takes() else None
        if fused and (whole := self._direct):
            return whole(images)
        if fused:
            found = self._apply_fused(fused.number, filled(images, size_of(len(images), batch_size)))
        else:
            self._sizes.add(size := size_of(len(images), batch_size, self._sizes))
            found = self._apply(self.variables, filled(images, size))
        return np.asarray(found)[: len(images)]

    @functools.cached_property
    def _sizes(self) -> set[int]:
        """The sizes of batches that `_apply` is compiled for."""
        return set()


def load_run(
    workdir: str | Path,
    *,
    checkpoint: str | int = "last",
    weights: str = "raw",
    protocol: str | None = None,
    dtype: DTypeLike | None = None,
    calibration: Images | None = None,
) -> TrainedModel:
    """Loads the trained network of a run folder, written by `cnnjax train` or `cnnjax weights import`.

    Args:
      checkpoint: "last", "best" (on validation), or a step.
      weights: "raw", or "ema" for the moving average.
      protocol: the views of an image that `predict` averages, see `data.augment.views` (default: the run's).
      dtype: "float32", "bfloat16" or "int8" to compute in (default: the run's).
      calibration: for int8: images as `predict` takes them, or the name of a data set, to calibrate on
        (default: the validation split of the run), see `calibration.choose`.
    """
    found = usable(loaded.load(workdir, checkpoint=checkpoint, weights=weights, protocol=protocol))
    return found.with_dtype(dtype, calibration)


def load_model(
    model: str | Path = "",
    weights: str | Path = "torchvision",
    *,
    protocol: str | None = None,
    class_names: str | Path | None = None,
    dtype: DTypeLike | None = None,
    calibration: Images | None = None,
) -> TrainedModel:
    """Loads a trained network by name, with the preprocessing of its weights: `load_model("resnet50")`.

    Args:
      model: a name in `list_models()` or a spec; "" if the weights name the network.
      weights: "torchvision", "timm" or "hf:USER/NAME", each also with a tag or revision, an https address, a
        file, or a run folder; see docs/pretrained.md.
      protocol: the views of an image that `predict` averages, see `data.augment.views`.
      class_names: a text file with one class name per line, for weights without class names.
      dtype: "float32", "bfloat16" or "int8" to compute in (default: float32, or the run's).
      calibration: for int8: images as `predict` takes them, or the name of a data set, to calibrate on, see
        `calibration.choose`.
    """
    found = usable(loaded.load(model=model, weights=weights, protocol=protocol, class_names=class_names))
    return found.with_dtype(dtype, calibration)


def untrained(spec: str, dtype: DTypeLike = jnp.float32) -> TrainedModel:
    """A network with random weights, for images of its preset's size."""
    preset = variant(spec).preset
    network = create_model(spec)
    shape, names = preset.input_size, numbered_names(network.num_classes)
    variable_shapes(network, shape, f"model={spec!r}")
    augment = augment_lib.parse("normalize(mean=0.5, std=0.25)", image_shape=shape)
    variables = run_init(functools.partial(network.init, jax.random.key(0), jnp.zeros((1, *shape))))
    facts = Facts(names, shape, augment, covering(*shape[:2]), None)
    looks = protocols.parse("center", augment, shape)
    made = usable(Loaded(spec, spec, 0, None, facts, network, looks, variables))
    noise = np.random.default_rng(0).integers(0, 256, (int8.BATCH, *shape), np.uint8)
    return made.with_dtype(dtype, noise if jnp.dtype(jnp.int8) == dtype else None)


def usable(it: Loaded) -> TrainedModel:
    """A loaded network, its variables as JAX arrays."""
    variables, facts = jax.tree.map(jnp.asarray, it.variables), it.facts
    images = facts.eval_augment, it.protocol, facts.image_shape, facts.class_names, facts.recipe
    return TrainedModel(it.name, it.spec, it.config, it.step, it.model, variables, *images)
