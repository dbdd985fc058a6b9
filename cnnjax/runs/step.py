"""The training step of an experiment, compiled for this run or for devices that are not here; its memory."""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cnnjax.config import skip_limit
from cnnjax.data.augment.register import Batch
from cnnjax.data.batches import abstract_batch
from cnnjax.errors import UserError, counted
from cnnjax.models import stream_key
from cnnjax.models.weights.torch import Variables
from cnnjax.ops import cpu
from cnnjax.runs.experiment import Experiment
from cnnjax.runs.folder import Run
from cnnjax.training import parallel
from cnnjax.training.optimizers import ema_update, swa_update
from cnnjax.training.steps import (
    NEVER,
    Gradient,
    TrainMetrics,
    TrainState,
    batch_gradient,
    batch_statistics,
    sharpness_aware,
    train_step,
)


class Outputs(NamedTuple):
    """What a step returns."""

    state: TrainState
    sums: TrainMetrics  # of the log interval so far


class Inputs(NamedTuple):
    """What a step takes: what the step before returned, a batch, and the run's key."""

    state: TrainState
    sums: TrainMetrics
    batch: Mapping[str, jax.Array | jax.ShapeDtypeStruct]
    key: jax.Array | jax.ShapeDtypeStruct


def gradient_of(
    experiment: Experiment, step: int = 0, taught: Variables | None = None
) -> Callable[[TrainState, Batch, jax.Array], Gradient]:
    """The gradient of a batch in an experiment at a step; `taught` are the teacher's variables, if traced."""
    config, teacher = experiment.config, experiment.teacher
    gradient = functools.partial(
        batch_gradient,
        model=experiment.model,
        augment=experiment.augment,
        label_smoothing=config.loss.label_smoothing,
        aux_weight=config.loss.aux_weight,
        freeze=experiment.frozen_at(step),
        microbatches=config.accumulate_steps,
        teach=teacher.teaching(taught or teacher.variables) if teacher else None,
        gather=parallel.gatherer(experiment.mesh, experiment.rules),
    )
    if rho := config.optimizer.sam_rho:
        return functools.partial(sharpness_aware, gradient=gradient, rho=rho)
    return gradient


def accumulated_step(
    experiment: Experiment,
    state: TrainState,
    sums: TrainMetrics,
    batch: dict[str, jax.Array],
    key: jax.Array,
    taught: Variables | None = None,
    step: int = 0,
) -> Outputs:
    """`train_step` of an experiment, at a step, its metrics added to the sums of the interval.

    If no step may be skipped, no weights change after the first non-finite one of the interval.
    """
    config, every, total = experiment.config, experiment.steps_per_epoch, experiment.total_steps
    halted = skip_limit(config.on_nonfinite) == 0 and sums.nonfinite_step != NEVER
    average = functools.partial(ema_update, decay=config.ema_decay) if config.ema_decay else None
    fields = {"tx": experiment.tx, "gradient": gradient_of(experiment, step, taught), "average": average}
    new, metrics = train_step(state, batch, key, halted=halted, **fields)
    if config.swa_start:  # a sample is of the weights, also those that a skipped step leaves
        at = {"start": round(config.swa_start * total), "every": every, "total": total, "step": state.step}
        new = new.replace(ema=swa_update(state.ema, new.variables, **at))
    return Outputs(new, sums.merge(metrics))


def abstract_inputs(experiment: Experiment) -> Inputs:
    """Shapes, dtypes and shardings of what the step takes."""
    place = parallel.split_batch(experiment.mesh)
    batch = abstract_batch(experiment.train_source, experiment.config.batch_size, place)
    key = jax.eval_shape(jax.random.key, 0)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=experiment.replicated)
    return Inputs(experiment.abstract_step_state, experiment.abstract_tree()["interval"], batch, key)


def lower_step(experiment: Experiment, step: int = 0) -> jax.stages.Lowered:
    """The training step at a step, lowered for the devices of the experiment; nothing is computed.

    It takes `Inputs`, and after them the variables of the teacher if there is one.
    """
    inputs = abstract_inputs(experiment)
    places = Outputs(*jax.tree.map(lambda x: x.sharding, (inputs.state, inputs.sums)))
    function = functools.partial(accumulated_step, experiment, step=step)
    taught = [experiment.teacher.variables] if experiment.teacher else []
    with jax.set_mesh(experiment.mesh):  # layers read it
        return jax.jit(function, donate_argnums=(0, 1), out_shardings=places).lower(*inputs, *taught)


def compiled_step(experiment: Experiment) -> tuple[Callable[..., Outputs], int]:
    """The compiled step, and the bytes that it holds on a device; two programs if some of it thaws midway.

    It takes its number, from 0, and `Inputs`.
    """
    thaw = experiment.frozen_steps
    begins = [0, int(thaw)] if thaw < experiment.total_steps else [0]
    programs = [lower_step(experiment, step).compile() for step in begins]
    memory = max(map(cpu.device_memory, programs))
    steps = [cpu.settled(each) for each in programs]
    taught = [experiment.teacher.variables] if experiment.teacher else []

    def step(number: int, *inputs: object) -> Outputs:
        return steps[number >= thaw](*inputs, *taught)

    return step, memory


def compile_step(experiment: Experiment, run: Run) -> tuple[Callable[..., Outputs], int]:
    """`compiled_step`; the run's record tells how long it took."""
    start = time.perf_counter()
    compiled = compiled_step(experiment)
    record_compilation(run, time.perf_counter() - start)
    return compiled


def average_statistics(
    experiment: Experiment, state: TrainState, after_each: Callable[[], None]
) -> TrainState:
    """The state after its last step: an average of stochastic weight averaging with statistics of its own.

    They are those of one epoch of batches; `after_each` is called after each of them.
    """
    bound = functools.partial(
        batch_statistics,
        model=experiment.model,
        augment=experiment.augment,
        freeze=experiment.frozen_at(experiment.total_steps - 1),
        microbatches=experiment.config.accumulate_steps,
    )
    find = jax.jit(bound, out_shardings=experiment.replicated)
    average = experiment.named(state).ema
    batches, key, count = experiment.train_batches(), experiment.key(), experiment.steps_per_epoch
    mean = jax.tree.map(jnp.zeros_like, average["batch_stats"])
    for index in range(count):
        with jax.set_mesh(experiment.mesh):  # layers read it
            found = find(average, next(batches), stream_key(key, "average", index))
        mean = jax.block_until_ready(jax.tree.map(lambda total, x: total + x / count, mean, found))
        after_each()
    return experiment.stacked(experiment.named(state).replace(ema={**average, "batch_stats": mean}))


def norm_groups(experiment: Experiment) -> int:
    """Groups of a microbatch with BatchNorm statistics of their own; 1 for a network without BatchNorm."""
    return experiment.model.norm_groups if experiment.abstract_state.batch_stats else 1


def check_norm_groups(run: Run, experiment: Experiment) -> None:
    """Raises a UserError if a run has another number of them than now, as far as it is recorded."""
    config, now = experiment.config, norm_groups(experiment)
    if (before := run.read_json("record.json").get("norm_groups", now)) != now:
        size = config.batch_size // config.accumulate_steps // max(before, 1)
        given = f"config.batch_norm={config.batch_norm!r}"
        problem = f"{given} is now {counted(now, 'group')}, in {run.path} {before}"
        hint = (
            f"resume it on {before} devices, or take config.batch_norm='groups({size})' in another --workdir"
        )
        raise UserError(f"{problem}; {hint}, the same on any number")


def record_compilation(run: Run, seconds: float) -> None:
    """Adds `compile_seconds` to the record of a run, whose own seconds leave them out."""
    run.write_json("record.json", {**run.read_json("record.json"), "compile_seconds": round(seconds, 2)})


@contextlib.contextmanager
def out_of_memory(
    where: str, model: str, batch_size: int, needed: Callable[[], int] = int, runs: int = 1
) -> Iterator[None]:
    """Turns XLA's error for too little memory into a UserError that names the remedies.

    `needed` returns the bytes of the compiled step on a device, 0 if they are not known, for so many `runs`.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
            raise
        reported = re.search(r"[Uu]sed [\d.]+\w* of [\d.]+\w*|allocating [\d.]+ ?\w*", str(error))
        size = f" ({reported[0]})" if reported else ""
        step = f"; the compiled step needs {needed() / 2**30:.1f} GiB per device" if needed() else ""
    else:
        return
    several, fewer = (f", {runs} seeds at once", "train fewer seeds at once, ") if runs > 1 else ("", "")
    raise UserError(
        f"out of memory on {where}{size}: config.model={model!r}, batch_size={batch_size}{several}{step}; "
        f"{fewer}lower the batch, raise config.accumulate_steps, take config.dtype='bfloat16', "
        "config.sharding='fsdp' on more devices, or remat=True in a residual net; "
        "`cnnjax models NAME --memory` predicts it"
    )
