"""The training step of an experiment, compiled for this run or for devices that are not here; its memory."""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from cnnjax.config import skip_limit
from cnnjax.data.batches import abstract_batch
from cnnjax.errors import UserError
from cnnjax.ops import cpu
from cnnjax.runs.experiment import Experiment
from cnnjax.runs.folder import Run
from cnnjax.training import parallel
from cnnjax.training.steps import NEVER, TrainMetrics, TrainState, batch_gradient, train_step


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


def gradient_values(experiment: Experiment) -> dict[str, Any]:
    """What `steps.batch_gradient` takes of an experiment."""
    config = experiment.config
    return {
        "model": experiment.model,
        "augment": experiment.augment,
        "label_smoothing": config.loss.label_smoothing,
        "aux_weight": config.loss.aux_weight,
        "freeze": config.freeze,
        "microbatches": config.accumulate_steps,
        "gather": parallel.gatherer(experiment.mesh, experiment.rules),
    }


def accumulated_step(
    experiment: Experiment, state: TrainState, sums: TrainMetrics, batch: dict[str, jax.Array], key: jax.Array
) -> Outputs:
    """`train_step` of an experiment, its metrics added to the sums of the interval.

    If no step may be skipped, nothing changes after the first non-finite one of the interval.
    """
    config = experiment.config
    halted = skip_limit(config.on_nonfinite) == 0 and sums.nonfinite_step != NEVER
    gradient = functools.partial(batch_gradient, **gradient_values(experiment))
    fields = {"tx": experiment.tx, "gradient": gradient, "ema_decay": config.ema_decay, "halted": halted}
    state, metrics = train_step(state, batch, key, **fields)
    return Outputs(state, sums.merge(metrics))


def abstract_inputs(experiment: Experiment) -> Inputs:
    """Shapes, dtypes and shardings of what the step takes."""
    place = parallel.split_batch(experiment.mesh)
    batch = abstract_batch(experiment.train_source, experiment.config.batch_size, place)
    key = jax.eval_shape(jax.random.key, 0)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=experiment.replicated)
    return Inputs(experiment.abstract_step_state, experiment.abstract_tree()["interval"], batch, key)


def lower_step(experiment: Experiment) -> jax.stages.Lowered:
    """The training step, lowered for the devices of the experiment; nothing is computed."""
    inputs = abstract_inputs(experiment)
    places = Outputs(*jax.tree.map(lambda x: x.sharding, (inputs.state, inputs.sums)))
    step = functools.partial(accumulated_step, experiment)
    with jax.set_mesh(experiment.mesh):  # layers read it
        return jax.jit(step, donate_argnums=(0, 1), out_shardings=places).lower(*inputs)


def compile_step(experiment: Experiment, run: Run) -> tuple[Callable[..., Outputs], int]:
    """The compiled step, and the bytes that it holds on a device; the run's record tells how long it took."""
    start = time.perf_counter()
    compiled = lower_step(experiment).compile()
    record_compilation(run, time.perf_counter() - start)
    return cpu.settled(compiled), device_memory(compiled)


def record_compilation(run: Run, seconds: float) -> None:
    """Adds `compile_seconds` to the record of a run, whose own seconds leave them out."""
    run.write_json("record.json", {**run.read_json("record.json"), "compile_seconds": round(seconds, 2)})


def device_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes that a device holds while a compiled program runs; 0 if they are not known."""
    if (memory := compiled.memory_analysis()) is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes


@contextlib.contextmanager
def out_of_memory(where: str, model: str, batch_size: int, needed: Callable[[], int] = int) -> Iterator[None]:
    """Turns XLA's error for too little memory into a UserError that names the remedies.

    `needed` returns the bytes of the compiled step on a device, 0 if they are not known.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
            raise
        reported = re.search(r"[Uu]sed [\d.]+\w* of [\d.]+\w*|allocating [\d.]+ ?\w*", str(error))
        size = f" ({reported[0]})" if reported else ""
        step = f"; the compiled step needs {needed() / 2**30:.1f} GiB a device" if needed() else ""
    else:
        return
    raise UserError(
        f"out of memory on {where}{size}: config.model={model!r}, batch_size={batch_size}{step}; lower "
        "the batch, raise config.accumulate_steps, take config.dtype='bfloat16', config.sharding='fsdp' on "
        "more devices, or remat=True of a residual net; `cnnjax models NAME --memory` tells beforehand"
    )
