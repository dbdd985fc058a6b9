"""A config made real: data, augmentation, model, optimizer and mesh, checked before anything compiles."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.typing import VariableDict
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import batches as batches_lib
from cnnjax.data.augment import views
from cnnjax.data.augment.chain import Augmentation
from cnnjax.data.recipe import fast
from cnnjax.data.sources.sets import in_words
from cnnjax.data.sources.source import Listed, describe, sample_images
from cnnjax.errors import UserError, counted, parse_call
from cnnjax.models import count_params, create_model, variable_shapes, variant
from cnnjax.models.macs import count_macs
from cnnjax.models.pyramid import module_layers
from cnnjax.models.stages import scanned_blocks, stack_blocks, unstack_blocks
from cnnjax.ops import cpu
from cnnjax.runs.facts import (
    Facts,
    Start,
    begun,
    check_eval,
    check_head,
    of_images,
    of_resumed,
    open_train,
    parse_augment,
    start_of,
    statistics,
    warn_unless_alike,
)
from cnnjax.runs.inputs import initial_variables
from cnnjax.runs.network import Network, check_protocol
from cnnjax.runs.optimizer import check_names, errors_name_fields, make_optimizer
from cnnjax.runs.teacher import Teacher, make_teacher
from cnnjax.training import optimizers, parallel, parameter_groups, schedules
from cnnjax.training.steps import TrainMetrics, TrainState, init_state, run_init

START_IMAGES = 5000  # that a model may see before its first step


@dataclasses.dataclass(frozen=True)
class Experiment(Network):
    """Everything that training and evaluation need, and nothing that changes."""

    train_source: Any
    augment: Augmentation
    tx: Any
    schedule: schedules.Schedule
    steps_per_epoch: int
    total_steps: int
    initial: Callable[[], VariableDict | None]  # variables of config.init_from, in place of drawn ones
    teacher: Teacher | None

    @property
    def rules(self) -> tuple[parallel.Rule, ...]:
        """How the state is sharded over the mesh."""
        return parallel.rules_of(self.config.sharding)

    @property
    def stacked_blocks(self) -> list[list[str]]:
        """The equal blocks that the loop keeps stacked, if no rule tells their arrays apart."""
        fields = self.config.optimizer
        name, *_ = parse_call(fields.name, "config.optimizer.name")
        by_name = self.config.freeze or fields.learning_rate_scales or self.rules
        alike = fields.decay in ("kernels", "all") and optimizers.OPTIMIZERS[name].elementwise
        return scanned_blocks(self.model) if alike and not by_name else []

    @property
    def freeze(self) -> parameter_groups.Freeze:
        """What does not move, and for how long."""
        return parameter_groups.parse_freeze(self.config.freeze)

    @property
    def frozen_steps(self) -> float:
        """The first step before which nothing that is frozen moves; infinity if it never does."""
        return self.freeze.steps(self.steps_per_epoch)

    def frozen_at(self, step: int) -> str:
        """The pattern of the paths that do not move in a step, or ""."""
        return self.freeze.pattern if step < self.frozen_steps else ""

    def train_batches(self) -> batches_lib.Batches:
        """The batches of training, from its first step on."""
        return self.batches(self.train_source, self.config.batch_size, self.config.seed)

    def key(self) -> jax.Array:
        """The run's key, on every device."""
        return jax.jit(lambda: jax.random.key(self.config.seed), out_shardings=self.replicated)()

    @functools.cached_property
    def no_sums(self) -> Callable[[], TrainMetrics]:
        """A function of nothing: what a log interval begins with."""
        return jax.jit(TrainMetrics.empty, out_shardings=self.replicated)

    def stacked(self, state: TrainState) -> TrainState:
        """A state as the step takes it, equal blocks stacked."""
        return stack_blocks(state, self.stacked_blocks)

    def named(self, state: TrainState) -> TrainState:
        """A state of the step with a name for each layer, as checkpoints hold it."""
        return unstack_blocks(state, self.stacked_blocks)

    def init_state(self) -> TrainState:
        """The state before the first step as the step takes it, on the devices of the mesh."""
        place = jax.tree.map(lambda x: x.sharding, self.abstract_step_state)
        state, initial = run_init(self._init_step_state, out_shardings=place), self.initial()
        if not initial and (from_images := variant(self.config.model).from_images):
            images = jnp.asarray(sample_images(self.train_source, START_IMAGES))
            initial = from_images(self.eval_augment.preprocess(images))
        if not initial:
            return state
        state = self.named(state)
        flat, given, places = (
            traverse_util.flatten_dict(tree)
            for tree in (state.variables, initial, self.abstract_state.variables)
        )
        # The others are on the devices of all processes already, and no process has the whole of them.
        flat |= parallel.put(given, {path: places[path].sharding for path in given})
        start = {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)
        ema = jax.tree.map(jnp.copy, start) if state.ema else {}
        return self.stacked(state.replace(**start, ema=ema))

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
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, places)

    def abstract_tree(self) -> dict[str, Any]:
        """What a checkpoint holds: the state, and the sums of the log interval it was taken in."""
        array = functools.partial(jax.ShapeDtypeStruct, sharding=self.replicated)
        interval = jax.tree.map(lambda x: array(x.shape, x.dtype), TrainMetrics.empty())
        return {"state": self.abstract_state, "interval": interval}

    def flops(self, step: int = 0) -> float | None:
        """FLOPs of a step on an image; None while a part is frozen, whose gradients are not computed."""
        return None if self.frozen_at(step) else self._flops

    @functools.cached_property
    def _flops(self) -> float:
        """2 a multiply-add, forward once and backward twice; with SAM all twice, a teacher's forward once."""
        shape, teacher = self.augment.output_shape, self.teacher
        flops = (12.0 if self.config.optimizer.sam_rho else 6.0) * count_macs(self.model, shape)
        if teacher:  # once, as XLA sees that both gradients take the same
            flops += 2.0 * count_macs(teacher.model, (*teacher.size, shape[-1]))
        return flops

    @property
    def kernels(self) -> str:
        """Which CPU kernels its programs have, or why none, if they are compiled now."""
        return cpu.status(self.mesh.size)

    @property
    def averages(self) -> bool:
        """Whether the state holds an average of the weights."""
        return max(self.config.ema_decay, self.config.swa_start) > 0

    def _init_step_state(self) -> TrainState:
        return self.stacked(self._init_state())

    def _init_state(self) -> TrainState:
        key, shape = jax.random.key(self.config.seed), self.eval_augment.output_shape
        return init_state(self.model, self.tx, key, shape, ema=self.averages)

    def header(self) -> list[str]:
        """What a run tells of itself as it begins: data, model, optimizer, devices, steps."""
        config, source = self.config, self.train_source
        fields, warmup = config.optimizer, config_lib.warmup_epochs(config)
        short = (
            f" (a tenth of the run, not {fields.warmup_epochs:g})" if warmup < fields.warmup_epochs else ""
        )
        kinds = Counter(device.device_kind for device in self.mesh.devices.flat)
        names = {kind: "CPU" if kind == "cpu" else kind for kind in kinds}
        devices = ", ".join(f"{f'{kinds[kind]} x ' * (kinds[kind] > 1)}{names[kind]}" for kind in kinds)
        kernels = f", kernels: {self.kernels}" if "cpu" in kinds else ""
        mesh = ",".join(f"{axis}:{size}" for axis, size in self.mesh.shape.items())
        sharding = f", sharding {config.sharding} over {mesh}" if self.rules else ""
        return [
            f"{describe(source)}; images {'x'.join(map(str, source.image_shape))}",
            f"{config.model}: {count_params(self.abstract_state.params):,} parameters, {config.dtype}; "
            f"{fields.name}, learning rate {fields.learning_rate:g}, "
            f"warm-up {counted(warmup, 'epoch')}{short}",
            f"{counted(self.total_steps, 'step')} of {counted(config.batch_size, 'image')}, "
            f"{counted(config.total_epochs, 'epoch')}, on "
            f"{devices}{kernels}{sharding}",
        ]

    def unsplit(self) -> str:
        """That `config.sharding` over `model` splits no parameter, as it is asked to; else ''."""
        places = [leaf.sharding for leaf in jax.tree.leaves(self.abstract_state.params)]
        if not any(rule.axis == "model" for rule in self.rules) or any(
            not place.is_fully_replicated for place in places
        ):
            return ""
        what = f"config.sharding={self.config.sharding!r} splits no parameter of {self.config.model}"
        if self.mesh.shape["model"] > 1:
            return f"{what} over {self.mesh.shape['model']} devices"
        return f"{what}: the mesh has one device on 'model'; with config.mesh='model:2' it has two"

    def record_entries(self) -> dict[str, Any]:
        """What the run record says of this experiment."""
        params, source = self.abstract_state.params, self.train_source
        fields = self.config.optimizer
        return {
            "seed": self.config.seed,
            "cpu_kernels": self.kernels,
            "data": {
                "name": source.name,
                "train_examples": len(source),
                **self.facts.record(),
                **({"train_recipe": fast(size).record()} if (size := self.config.data.size) else {}),
                "fingerprint": source.fingerprint,
            },
            "model": {
                "spec": self.config.model,
                "num_params": count_params(params),
                "frozen": parameter_groups.frozen_paths(params, self.freeze.pattern),
                "decayed": parameter_groups.decayed_paths(params, fields.decay)
                if fields.weight_decay
                else [],
            },
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
            **({"teacher": self.teacher.record} if self.teacher else {}),
        }


def _norm_groups(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """Groups of a microbatch with their own statistics, if the batch divides by microbatches and devices."""
    count, size = config.accumulate_steps, config.batch_size
    parallel.check_divides("config.batch_size", size, mesh, count)
    with errors_name_fields("batch_norm"):
        return parallel.norm_groups(config.batch_norm, size // count, mesh)


def build(
    config: ConfigDict,
    *,
    devices: Sequence[jax.Device] | None = None,
    source: Any = None,
    workdir: str | Path | None = None,
    listed: Listed | None = None,
) -> Experiment:
    """Checks a config against its data, its model and the devices, all there are by default.

    Errors name the field and what is allowed. `source` stands in place of the images that the config names;
    the facts of a run that is resumed in the folder `workdir` are loaded from there, and the weights that it
    began with are not read. `listed` is of `datasets.load`: a folder is listed once for all splits.
    """
    config_lib.validate(config)
    with errors_name_fields("mesh"):
        mesh = parallel.make_mesh(config.mesh, devices)
    groups = _norm_groups(config, mesh)
    check_names(config)
    recipe, listed = None, {} if listed is None else listed
    start, resumed = functools.cache(functools.partial(start_of, config)), begun(config, workdir)
    if source is None:
        source, config, recipe = open_train(config, listed, resumed, start)
    before = of_resumed(config, workdir, source.fingerprint) if workdir else None
    facts = dataclasses.replace(before or of_images(config, source, start(), recipe), listed=listed)
    shape, classes, eval_augment = facts.image_shape, len(facts.class_names), facts.eval_augment
    known = statistics(config, source) if facts.statistics is None else facts.statistics
    augment = parse_augment(config, "train", shape, classes, known)
    if not before:  # a run of an earlier version ends as it began
        check_eval(eval_augment)
    warn_unless_alike(augment, eval_augment)
    with errors_name_fields("eval_protocol"):
        protocol = views.parse(config.eval_protocol, eval_augment, shape)
    model = _model(config, classes, groups)
    trained, variables = (
        _shapes_of(config.model, model, each.output_shape) for each in (augment, eval_augment)
    )
    if jax.tree.map(jnp.shape, trained) != jax.tree.map(jnp.shape, variables):
        given = f"config.augment.train gives images of {in_words(augment.output_shape)}"
        others = f"config.augment.eval of {in_words(eval_augment.output_shape)}"
        raise UserError(f"{given}, {others}; config.model={config.model!r} takes one size: crop both to it")
    check_protocol(config.model, model, protocol, variables)
    per_epoch = batches_lib.steps_per_epoch(len(source), config.batch_size)
    total_steps = max(1, round(config.total_epochs * per_epoch))
    by_depth = "_decay(" in config.optimizer.learning_rate_scales
    layers = module_layers(model, eval_augment.output_shape) if by_depth else {}
    tx, schedule = make_optimizer(config, total_steps, per_epoch, layers)
    spec = "" if before else config.model
    initial = functools.cache(lambda: _initial(config, model, facts, start(), spec))
    if not resumed:
        initial()
    learned = tx, schedule, per_epoch, total_steps, initial, make_teacher(config, augment, facts, mesh)
    experiment = Experiment(config, mesh, facts, protocol, model, source, augment, *learned)
    with errors_name_fields("optimizer.name"):
        params = experiment.abstract_state.params
        parameter_groups.decay_mask(params, config.optimizer.decay)
        parameter_groups.check_scales(params, config.optimizer.learning_rate_scales)
        parameter_groups.frozen_paths(params, experiment.freeze.pattern)
    return experiment


def _model(config: ConfigDict, classes: int, norm_groups: int) -> nn.Module:
    """The network of a config; a UserError if its spec has another number of classes than the data."""
    fields = {"norm_groups": norm_groups} if norm_groups > 1 else {}
    model = create_model(config.model, num_classes=classes, dtype=jnp.dtype(config.dtype), **fields)
    if model.num_classes != classes:
        given = f"config.model={config.model!r}: num_classes={model.num_classes!r}"
        raise UserError(f"{given}, the data has {classes} classes; leave it out")
    return model


def _initial(
    config: ConfigDict, model: nn.Module, facts: Facts, start: Start | None, spec: str
) -> VariableDict | None:
    """The variables of the weights that training starts from, if any; `spec` is of `initial_variables`."""
    if not start:
        return None
    check_head(config, start, facts)
    shape = facts.eval_augment.output_shape
    return initial_variables(start.place, model, shape, head=config.init_head, spec=spec)


def _shapes_of(spec: str, model: nn.Module, image_shape: tuple[int, ...]) -> VariableDict:
    """The variables of a model, as shapes; a UserError if it cannot take images of [H, W, C]."""
    try:
        return variable_shapes(model, image_shape, f"config.model={spec!r}")
    except UserError as error:
        hint = "`cnnjax models` shows the input size of each model, config.data.size resizes image folders"
        raise UserError(f"{error}; {hint}") from None
