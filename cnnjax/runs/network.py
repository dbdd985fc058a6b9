"""A network with its preprocessing on a mesh: all that evaluation needs, and nothing of training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError
from ml_collections import ConfigDict

from cnnjax.data import batches as batches_lib
from cnnjax.data.augment import views
from cnnjax.data.augment.chain import Augmentation
from cnnjax.errors import UserError, one_line
from cnnjax.models import create_model
from cnnjax.models.forward import image_struct
from cnnjax.models.weights.torch import Variables
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.facts import Facts
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import max_bad_images, open_split
from cnnjax.training import parallel


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with its preprocessing on a mesh."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    facts: Facts
    protocol: views.Protocol
    model: nn.Module

    @property
    def eval_augment(self) -> Augmentation:
        """The preprocessing of evaluation."""
        return self.facts.eval_augment

    @property
    def replicated(self) -> jax.sharding.NamedSharding:
        """One copy on every device."""
        return parallel.replicated(self.mesh)

    def source(self, split: str) -> Any:
        """The images of a split as the run knows its own, in memory if they are few."""
        return self.facts.load(self.config, split)

    def open(self, split: str) -> Any:
        """The same, its images not read as long as they are in files."""
        return open_split(self.config, split, *self.facts.images, listed=self.facts.listed)

    def batches(self, source: Any, batch_size: int, seed: int | None = None) -> batches_lib.Batches:
        """Batches of a source on the mesh, shuffled by a seed, or one epoch in order without one."""
        reading = {"num_workers": self.config.data.num_workers, "max_bad": max_bad_images(self.config)}
        sharding = parallel.split_batch(self.mesh)
        return batches_lib.make_batches(source, batch_size, seed=seed, sharding=sharding, **reading)


def trained(
    run: Run, config: ConfigDict, facts: Facts, checkpoint: str | int, weights: str
) -> tuple[int, nn.Module, views.Protocol, Variables]:
    """(step, model, protocol, variables) of a checkpoint; a UserError if they do not fit each other."""
    step, variables = Checkpoints(run.path / "checkpoints").variables(checkpoint, weights)
    model = create_model(config.model, num_classes=len(facts.class_names), dtype=jnp.dtype(config.dtype))
    try:
        jax.eval_shape(model.apply, variables, image_struct(facts.eval_augment.output_shape))
    except (FlaxError, TypeError, ValueError) as error:
        problem = f"{run.path} contains a network that does not fit its data set {config.data.name!r}"
        advice = "name the data set when the weights are imported, as in --config.data.name=cifar10"
        raise UserError(f"{problem}: {one_line(error)}; {advice}") from None
    looks = views.parse(config.eval_protocol, facts.eval_augment, facts.image_shape)
    check_protocol(config.model, model, looks, variables)
    return step, model, looks, variables


def check_protocol(spec: str, model: nn.Module, protocol: views.Protocol, variables: Variables) -> None:
    """Raises a UserError if the weights of one image size cannot be used at the protocol's others."""
    own = protocol.augment.output_shape
    for shape in sorted(protocol.input_shapes - {own}):
        image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        try:
            jax.eval_shape(model.apply, variables, image)
        except (UserError, FlaxError, TypeError, ValueError, ZeroDivisionError):
            allowed = "networks that end in global average pooling, on images large enough"
            problem = f"{spec} made for images of {own} cannot take {shape}; allowed: {allowed}"
            raise UserError(f"config.eval_protocol={protocol.spec!r}: {problem}") from None
