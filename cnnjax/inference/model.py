"""A trained network, ready to use: `load_run(workdir).predict(images)`."""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import FlaxError
from ml_collections import ConfigDict

from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.augment import views as protocols
from cnnjax.data.augment.register import AUGMENTATIONS
from cnnjax.data.files import read_file
from cnnjax.errors import UserError, one_line
from cnnjax.inference import images as image_files
from cnnjax.inference.images import AnyImage, Batch, Failure, Images
from cnnjax.models import create_model
from cnnjax.models.weights.torch import Variables
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.folder import Run, naming
from cnnjax.runs.inputs import load_split, parse_augment


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The classes of one image."""

    name: str  # the file, or "image 3" for an array
    probabilities: np.ndarray  # float32 [K]
    top: tuple[tuple[str, float], ...]  # class names and probabilities, the most likely first


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """The network of a run folder with its preprocessing: `model.apply(variables, prepare(images))`."""

    path: Path
    config: ConfigDict
    step: int  # of the checkpoint
    model: nn.Module
    variables: Variables
    augment: augment_lib.Augmentation  # the preprocessing of evaluation, from uint8 images of `image_shape`
    protocol: protocols.Protocol  # how `predict` looks at an image: in the middle only, or from several views
    image_shape: tuple[int, int, int]  # [H, W, C] of the images that it was trained on, as they are stored
    class_names: tuple[str, ...]

    def predict(self, images: Images, *, top: int = 5, batch_size: int = 64) -> list[Prediction]:
        """Classifies images, `batch_size` at a time; `Prediction.top` lists so many classes.

        They are a path, an image uint8 [H, W, C], a batch of them, or a list of paths and images; a folder
        stands for the images in it. Any size: the short side is resized to the run's, the middle cut. The
        first image that cannot be read is a UserError.
        """
        predictions = []
        for item in self.stream(images, top=top, batch_size=batch_size):
            if isinstance(item, Failure):
                raise UserError(item.reason)
            predictions.append(item)
        return predictions

    def stream(self, images: Images, *, top: int = 5, batch_size: int = 64) -> Iterator[Prediction | Failure]:
        """`predict` as a stream in the order of the images, of any number; failures are passed on."""
        for batch in self.batches(images, batch_size):
            yield from self.classify(batch, top=top, batch_size=batch_size)

    def classify(self, batch: Batch, *, top: int = 5, batch_size: int = 64) -> list[Prediction | Failure]:
        """One batch of `batches`, each image in its place."""
        images = [image for _, image in batch if not isinstance(image, Failure)]
        rows = iter(self._probabilities(images, batch_size))
        return [x if isinstance(x, Failure) else self._prediction(name, next(rows), top) for name, x in batch]

    def batches(self, images: Images, batch_size: int) -> Iterator[Batch]:
        """(name, uint8 `image_shape` or Failure), `batch_size` at a time, decoded ahead by threads."""
        return image_files.read_batches(images, self.image_shape, batch_size)

    def fit(self, image: AnyImage, name: str = "image") -> np.ndarray:
        """One image, a path, encoded bytes or uint8 [H, W, C], as uint8 of `image_shape`."""
        return image_files.fit(image, self.image_shape, name)

    def prepare(self, images: jax.Array | np.ndarray) -> jax.Array:
        """uint8 [B, *image_shape] as the network takes it: float32 [B, H, W, C]."""
        return self.augment.preprocess(jnp.asarray(images))

    def picture(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, *image_shape] cut as the network sees it, before normalization: uint8 [B, H, W, C]."""
        steps = tuple(step for step in self.augment.steps if AUGMENTATIONS[step[0]].gives is None)
        cut = dataclasses.replace(self.augment, steps=steps)
        return np.asarray(cut.preprocess(jnp.asarray(images)))

    def with_class_names(self, file: str | Path) -> "TrainedModel":
        """The same with the class names of a text file, one a line."""
        try:
            lines = io.StringIO(read_file(file).decode("utf-8-sig"), newline=None)  # its ends of lines alone
        except UnicodeDecodeError as error:
            raise UserError(f"class_names={file} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        names = tuple(name for line in lines if (name := line.strip()))
        if len(names) != (count := len(self.class_names)):
            raise UserError(f"class_names={file} has {len(names)} names; allowed: {count}, one a line")
        return dataclasses.replace(self, class_names=names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of what the network takes."""
        return self.augment.output_shape

    @functools.cached_property
    def _apply(self) -> Callable[[Variables, np.ndarray], jax.Array]:
        def probabilities(variables: Variables, images: jax.Array) -> jax.Array:
            logits = self.protocol(lambda image: jnp.asarray(self.model.apply(variables, image)), images)
            return jax.nn.softmax(logits)

        return jax.jit(probabilities)

    def _probabilities(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """float32 [B, K]; a short batch is filled up, so that one size is compiled."""
        if not images:
            return np.zeros((0, len(self.class_names)), np.float32)
        full = [*images, *[images[0]] * (batch_size - len(images))]
        return np.asarray(self._apply(self.variables, np.stack(full)))[: len(images)]

    def _prediction(self, name: str, probabilities: np.ndarray, top: int) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")[:top]
        best = tuple((self.class_names[i], float(probabilities[i])) for i in order)
        return Prediction(name, probabilities, best)


def load_run(
    workdir: str | Path, *, checkpoint: str = "last", weights: str = "raw", protocol: str | None = None
) -> TrainedModel:
    """The trained network of a run folder, of `cnnjax train` or of `cnnjax weights import`.

    Args:
      checkpoint: "last", "best" (on validation), or a step.
      weights: "raw", or "ema" for the moving average.
      protocol: views of an image that `predict` averages, see `data.augment.views`; None is the run's own.
    """
    run = Run.open(workdir)
    config = run.config()
    step, variables = Checkpoints(run.path / "checkpoints").variables(checkpoint, weights)
    augment, shape, names = _preprocessing(run, config)
    model = create_model(config.model, num_classes=len(names), dtype=jnp.dtype(config.dtype))
    variables = jax.tree.map(jnp.asarray, variables)
    image = jax.ShapeDtypeStruct((1, *augment.output_shape), jnp.float32)
    try:
        jax.eval_shape(model.apply, variables, image)
    except (FlaxError, TypeError, ValueError) as error:
        problem = f"{run.path} holds a network that does not fit its data set {config.data.name!r}"
        advice = "name the data set when the weights are imported, as in --config.data.name=cifar10"
        raise UserError(f"{problem}: {one_line(error)}; {advice}") from None
    views = protocols.parse(protocol or config.eval_protocol, augment, shape)
    return TrainedModel(run.path, config, step, model, variables, augment, views, shape, names)


def _preprocessing(
    run: Run, config: ConfigDict
) -> tuple[augment_lib.Augmentation, tuple[int, int, int], tuple[str, ...]]:
    """A run's preprocessing of evaluation, the shape of its images, and its class names."""
    facts = run.read_json("record.json").get("data", {})
    if "image_shape" not in facts:  # a run from before these were recorded
        source = load_split(config, "train")
        return parse_augment(config, "eval", source), tuple(source.image_shape), tuple(source.class_names)
    file, shape = run.path / "record.json", tuple(facts["image_shape"])
    if len(shape) != 3 or min(shape) < 1 or not {"eval_augment", "class_names"} <= facts.keys():
        raise UserError(f"{file} is damaged: data has no whole image_shape, eval_augment, class_names")
    with naming(file):
        augment = augment_lib.parse(facts["eval_augment"], image_shape=shape)
    return augment, shape, tuple(facts["class_names"])
