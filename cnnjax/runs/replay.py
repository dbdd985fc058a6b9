"""The command `cnnjax replay`: one step of a run again, from the checkpoint before it, layer by layer."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One step of a run as it was before its update.

    Attributes:
      step: batches seen before it.
      checkpoint: the step of the checkpoint that the replay began from; 0 is the initial state.
      indices: of the batch's examples, in the train split (without what is held out).
      loss: mean over the batch.
      layers: {path: (norm of the gradient, norm of the parameters)}.
    """

    step: int
    checkpoint: int
    indices: list[int]
    loss: float
    layers: dict[str, tuple[float, float]]


def replay_step(workdir: str | Path, step: int | None = None) -> Replayed:
    """Trains from the newest checkpoint before a step up to it, and differentiates its batch.

    Args:
      workdir: a run folder, which stays as it is.
      step: batches seen before; None is the last one that was not finite.

    Raises:
      UserError: where no step was given nor recorded, or the images are others than the run's.
    """
    from cnnjax.ops import cpu
    from cnnjax.runs.experiment import build
    from cnnjax.runs.folder import Run

    run = Run.open(workdir)
    recorded = run.read_json("nonfinite.json")
    if step is None and not recorded:
        raise UserError(f"{run.path} has no step whose loss was not finite; name one with --step=N")
    step = max(map(int, recorded)) if step is None else step
    config = run.config()
    experiment = build(config)
    if step >= experiment.total_steps:
        raise UserError(f"--step={step} must be less than the run's {experiment.total_steps} steps")
    trained_on = run.read_json("record.json").get("data", {}).get("fingerprint")
    if trained_on != experiment.train_source.fingerprint:
        raise UserError(f"{run.path} was trained on other images of {config.data.name}; restore them")
    with cpu.chosen(config.cpu_kernels):
        return _replay(run.path / "checkpoints", experiment, step)


def _replay(directory: Path, experiment: Any, step: int) -> Replayed:
    import jax

    from cnnjax.data import batches as pipeline
    from cnnjax.models.stages import unstack_blocks
    from cnnjax.runs.step import gradient_values, lower_step
    from cnnjax.training import parallel
    from cnnjax.training.steps import TrainMetrics, batch_gradient

    whole = parallel.replicated(experiment.mesh)
    batches = pipeline.make_batches(
        experiment.train_source,
        experiment.config.batch_size,
        seed=experiment.config.seed,
        sharding=parallel.split_batch(experiment.mesh),
        **experiment.reading,
    )
    start, state = _state_before(directory, experiment, step)
    blocks = experiment.stacked_blocks
    batches.set_state({"position": start})
    key = jax.jit(lambda: jax.random.key(experiment.config.seed), out_shardings=whole)()
    no_interval = jax.jit(TrainMetrics.empty, out_shardings=whole)
    if start < step:
        advance = lower_step(experiment).compile()
    for _ in range(start, step):
        state, _ = advance(state, no_interval(), next(batches), key)
    values = gradient_values(experiment)
    differentiate = jax.jit(lambda state, batch, key: batch_gradient(state, batch, key, **values))
    loss, _, _, grads = differentiate(state, next(batches), key)
    params, gradients = (_norms(unstack_blocks(jax.device_get(x), blocks)) for x in (state.params, grads))
    layers = {name: (norm, params[name]) for name, norm in gradients.items()}
    return Replayed(step, start, batches.indices(step), float(loss), layers)


def _state_before(directory: Path, experiment: Any, step: int) -> tuple[int, Any]:
    """The newest sound checkpoint of at most a step, or the initial state; as the step takes it."""
    from cnnjax.models.stages import stack_blocks
    from cnnjax.runs.checkpoints import Checkpoints

    saved = Checkpoints(directory)
    try:
        sound = [s for s in saved.steps() if s <= step and not saved.problem(s)]
        if sound:
            found = saved.restore(experiment.abstract_tree(), sound[-1])
            return sound[-1], stack_blocks(found[1]["state"], experiment.stacked_blocks)
    finally:
        saved.close()
    return 0, experiment.init_state()


def _norms(tree: Any) -> dict[str, float]:
    """{path of a layer: Euclidean norm of all its arrays}."""
    from flax import traverse_util

    squares: dict[str, float] = {}
    for path, leaf in traverse_util.flatten_dict(tree).items():
        name = "/".join(path[:-1])
        squares[name] = squares.get(name, 0.0) + float(np.square(leaf.astype(np.float64)).sum())
    return {name: float(np.sqrt(square)) for name, square in squares.items()}
