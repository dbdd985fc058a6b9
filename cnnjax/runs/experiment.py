"""A config made real: data, augmentation, model, optimizer and mesh, checked before anything compiles."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.errors import FlaxError
from flax.typing import VariableDict
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import batches as batches_lib
from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.augment import views
from cnnjax.data.augment.chain import explicit_spec
from cnnjax.data.sources.source import sample_images
from cnnjax.errors import UserError, parse_call
from cnnjax.models import count_params, create_model, variant
from cnnjax.models.stages import scanned_blocks, stack_blocks, unstack_blocks
from cnnjax.runs.initial import initial_variables
from cnnjax.runs.inputs import load_split, max_bad_images, parse_augment, statistics
from cnnjax.runs.optimizer import check_names, errors_name_fields, make_optimizer
from cnnjax.training import optimizers, parallel, parameter_groups, schedules
from cnnjax.training.state import TrainState, init_state, run_init
from cnnjax.training.steps import TrainMetrics

START_IMAGES = 5000  # that a model may see before its first step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that training and evaluation need, and nothing that changes."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    train_source: Any
    augment: augment_lib.Augmentation
    eval_augment: augment_lib.Augmentation
    protocol: views.Protocol
    model: nn.Module
    tx: Any
    schedule: schedules.Schedule
    steps_per_epoch: int
    total_steps: int
    initial: VariableDict | None  # variables of config.init_from, in place of drawn ones

    @property
    def steps_per_evaluation(self) -> int:
        """Evaluations end at whole steps, at least one apart."""
        return max(1, round(self.config.eval_every_epochs * self.steps_per_epoch))

    def source(self, split: str) -> Any:
        """One split of the data set, `validation` held out of `train`."""
        return load_split(self.config, split)

    @property
    def rules(self) -> tuple[parallel.Rule, ...]:
        """How the state is cut over the mesh."""
        return parallel.rules_of(self.config.sharding)

    @property
    def stacked_blocks(self) -> list[list[str]]:
        """The equal blocks that the loop keeps stacked, where no rule tells their arrays apart."""
        config = self.config
        name, *_ = parse_call(config.optimizer.name, "config.optimizer.name")
        by_name = config.freeze or config.optimizer.learning_rate_scales or self.rules
        alike = config.optimizer.decay in ("kernels", "all") and optimizers.OPTIMIZERS[name].elementwise
        return scanned_blocks(self.model) if alike and not by_name else []

    @property
    def device(self) -> str:
        """One device of this process, to name in errors."""
        return str(self.mesh.local_devices[0])

    def batches(self, source: Any, batch_size: int, seed: int | None = None) -> batches_lib.Batches:
        """Batches of a source on the mesh, shuffled by a seed, or one epoch in order without one."""
        return batches_lib.make_batches(
            source,
            batch_size,
            seed=seed,
            sharding=parallel.split_batch(self.mesh),
            num_workers=self.config.data.num_workers,
            max_bad=max_bad_images(self.config),
        )

    def train_batches(self) -> batches_lib.Batches:
        """The batches of training, from its first step on."""
        return self.batches(self.train_source, self.config.batch_size, self.config.seed)

    def key(self) -> jax.Array:
        """The run's key, on every device."""
        return jax.jit(lambda: jax.random.key(self.config.seed), out_shardings=self.replicated)()

    def no_sums(self) -> TrainMetrics:
        """What a log interval begins with."""
        return self._empty()

    @functools.cached_property
    def _empty(self) -> Callable[[], TrainMetrics]:
        return jax.jit(TrainMetrics.empty, out_shardings=self.replicated)

    @property
    def replicated(self) -> jax.sharding.NamedSharding:
        """One copy on every device."""
        return parallel.replicated(self.mesh)

    def stacked(self, state: TrainState) -> TrainState:
        """A state as the step takes it, equal blocks stacked."""
        return stack_blocks(state, self.stacked_blocks)

    def named(self, state: TrainState) -> TrainState:
        """A state of the step with a name for each layer, as checkpoints hold it."""
        return unstack_blocks(state, self.stacked_blocks)

    def init_state(self) -> TrainState:
        """The state before the first step as the step takes it, on the devices of the mesh."""
        place = jax.tree.map(lambda x: x.sharding, self.abstract_step_state)
        state = run_init(self._init_step_state, out_shardings=place)
        initial = self.initial or self._from_images()
        if not initial:
            return state
        state = self.named(state)
        flat = traverse_util.flatten_dict(state.variables) | traverse_util.flatten_dict(initial)
        start = {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)
        place = {name: getattr(self.abstract_state, name) for name in start}
        start = parallel.put(start, jax.tree.map(lambda x: x.sharding, place))
        ema = jax.tree.map(jnp.copy, start) if state.ema else {}
        return self.stacked(state.replace(**start, ema=ema))

    def _from_images(self) -> VariableDict:
        """Variables that the model computes from training images; most compute none."""
        from_images = variant(self.config.model).from_images
        if from_images is None:
            return {}
        images = jnp.asarray(sample_images(self.train_source, START_IMAGES))
        return from_images(self.eval_augment.preprocess(images))

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without computing it."""
        return self._placed(jax.eval_shape(self._init_state))

    @functools.cached_property
    def abstract_step_state(self) -> TrainState:
        """The same of the state as the step takes it, the blocks of `stacked_blocks` stacked."""
        return self._placed(jax.eval_shape(self._init_step_state))

    def _placed(self, shapes: Any) -> Any:
        places = parallel.shardings(shapes, self.mesh, self.rules)
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
        )

    def abstract_tree(self) -> dict[str, Any]:
        """What a checkpoint holds: the state, and the sums of the log interval it was taken in."""
        array = functools.partial(jax.ShapeDtypeStruct, sharding=self.replicated)
        interval = jax.tree.map(lambda x: array(x.shape, x.dtype), TrainMetrics.empty())
        return {"state": self.abstract_state, "interval": interval}

    def _init_step_state(self) -> TrainState:
        return self.stacked(self._init_state())

    def _init_state(self) -> TrainState:
        key = jax.random.key(self.config.seed)
        shape = self.eval_augment.output_shape
        return init_state(self.model, self.tx, key, shape, ema=self.config.ema_decay > 0)

    def facts(self) -> dict[str, Any]:
        """What the run record says of this experiment."""
        params = self.abstract_state.params
        return {
            "seed": self.config.seed,
            "data": {
                "name": self.train_source.name,
                "train_examples": len(self.train_source),
                "class_names": list(self.train_source.class_names),
                "image_shape": list(self.train_source.image_shape),
                "eval_augment": explicit_spec(self.eval_augment),
                "fingerprint": self.train_source.fingerprint,
            },
            "model": {
                "spec": self.config.model,
                "num_params": count_params(params),
                "frozen": parameter_groups.frozen_paths(params, self.config.freeze),
                "decayed": parameter_groups.decayed_paths(params, self.config.optimizer.decay),
            },
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
        }


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError where the batch cannot be cut over the devices, into parts and into groups."""
    parts = config.accumulate_steps
    if config.batch_size % parts:
        raise UserError(f"config.accumulate_steps={parts} must divide config.batch_size={config.batch_size}")
    field = f"config.batch_size / accumulate_steps={parts}" if parts > 1 else "config.batch_size"
    parallel.check_divides(field, config.batch_size // parts, mesh)
    with errors_name_fields("batch_norm"):
        parallel.norm_groups(config.batch_norm, config.batch_size // parts, mesh)


def build(
    config: ConfigDict, *, devices: Sequence[jax.Device] | None = None, source: Any = None
) -> Experiment:
    """Checks a config against its data, its model and the devices.

    Args:
      devices: those that the mesh is made of; None are all there are.
      source: images in place of those that the config names.

    Raises:
      UserError: naming the field and what is allowed.
    """
    config_lib.validate(config)
    with errors_name_fields("mesh"):
        mesh = parallel.make_mesh(config.mesh, devices)
    check_batch(config, mesh)
    check_names(config)
    source = source or load_split(config, "train")
    facts = statistics(config, source)
    augment, eval_augment = (parse_augment(config, split, source, facts) for split in ("train", "eval"))
    with errors_name_fields("eval_protocol"):
        protocol = views.parse(config.eval_protocol, eval_augment, source.image_shape)
    fields = {"num_classes": source.num_classes, "dtype": jnp.dtype(config.dtype)}
    groups = parallel.norm_groups(config.batch_norm, config.batch_size // config.accumulate_steps, mesh)
    model = create_model(config.model, **fields, **({"norm_groups": groups} if groups > 1 else {}))
    for augmentation in (augment, eval_augment):
        check_model(config.model, model, augmentation.output_shape)
    _check_protocol(config, model, protocol)
    per_epoch = batches_lib.steps_per_epoch(len(source), config.batch_size)
    total_steps = max(1, round(config.total_epochs * per_epoch))
    tx, schedule = make_optimizer(config, total_steps, per_epoch)
    initial = None
    if config.init_from:
        initial = initial_variables(config.init_from, model, eval_augment.output_shape, head=config.init_head)
    experiment = Experiment(
        config, mesh, source, augment, eval_augment, protocol, model, tx, schedule,
        per_epoch, total_steps, initial,
    )  # fmt: skip
    with errors_name_fields("optimizer.name"):
        params = experiment.abstract_state.params
        parameter_groups.decay_mask(params, config.optimizer.decay)
        parameter_groups.frozen_paths(params, config.freeze)
    return experiment


def check_model(spec: str, model: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Raises a UserError where a model cannot take images of [H, W, C]."""
    image = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    try:
        init = functools.partial(model.init, train=False)
        jax.eval_shape(init, jax.random.key(0), image)
    except UserError as error:
        raise UserError(f"config.model={spec!r}: {error}") from None
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"config.model={spec!r} cannot be built for images of {image_shape}: {reason}; "
            "`cnnjax models` shows the input size of each model"
        ) from None


def _check_protocol(config: ConfigDict, model: nn.Module, protocol: views.Protocol) -> None:
    """Raises a UserError where the weights of one image size cannot be used at the protocol's others."""
    own = protocol.augment.output_shape
    others = protocol.input_shapes - {own}
    if not others:
        return
    image = jax.ShapeDtypeStruct((2, *own), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    for shape in sorted(others):
        image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        try:
            jax.eval_shape(model.apply, variables, image)
        except (UserError, FlaxError, TypeError, ValueError, ZeroDivisionError):
            raise UserError(
                f"config.eval_protocol={config.eval_protocol!r}: {config.model} made for images of {own} "
                f"cannot take {shape}; allowed: networks that end in global average pooling, on images large "
                "enough"
            ) from None
