"""The training step of an experiment, as the loop runs it and as it is compiled for devices not here."""

import functools
from typing import Any

import jax

from cnnjax import config as config_lib
from cnnjax.data import batches
from cnnjax.runs.experiment import Experiment
from cnnjax.training import parallel
from cnnjax.training.state import TrainState
from cnnjax.training.steps import NEVER, TrainMetrics, batch_gradient, train_step


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
        "placement": experiment.placement,
        "gather": parallel.gatherer(experiment.mesh, experiment.rules),
    }


def accumulated_step(
    experiment: Experiment,
    state: TrainState,
    interval: TrainMetrics,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[TrainState, TrainMetrics]:
    """`train_step` of an experiment, its metrics added to those of the interval.

    Where no step may be skipped, nothing moves after the first of the interval that was not finite.
    """
    config = experiment.config
    halted = config_lib.skip_limit(config.on_nonfinite) == 0 and interval.nonfinite_step != NEVER
    state, found = train_step(
        state,
        batch,
        key,
        tx=experiment.tx,
        gradient=functools.partial(batch_gradient, **gradient_values(experiment)),
        ema_decay=config.ema_decay,
        halted=halted,
    )
    return state, interval.merge(found)


def lower_step(experiment: Experiment) -> jax.stages.Lowered:
    """The training step of the loop, lowered for the devices of the experiment; nothing is computed."""
    whole = parallel.replicated(experiment.mesh)
    state, interval = experiment.abstract_step_state, experiment.abstract_tree()["interval"]
    batch = batches.abstract_batch(
        experiment.train_source, experiment.config.batch_size, parallel.split_batch(experiment.mesh)
    )
    key = jax.eval_shape(jax.random.key, 0)
    step = jax.jit(
        functools.partial(accumulated_step, experiment),
        donate_argnums=(0, 1),
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), whole),
    )
    return step.lower(state, interval, batch, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole))
