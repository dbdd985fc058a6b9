"""One step of a run again, from the checkpoint before it, layer by layer."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from cnnjax.errors import UserError
from cnnjax.ops import cpu
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.experiment import Experiment, build
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import if_moved
from cnnjax.runs.step import check_norm_groups, compiled_step, gradient_of


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One step of a run as it was before its update."""

    step: int  # batches seen before it
    checkpoint: int  # the step that the replay began from; 0 is the initial state
    indices: list[int]  # of the batch's examples, in the train split (without what is held out)
    loss: float  # mean over the batch
    layers: dict[str, tuple[float, float]]  # {path: (norm of the gradient, norm of the parameters)}


def replay_step(workdir: str | Path, step: int | None = None) -> Replayed:
    """Trains from the newest checkpoint before a step up to it, and differentiates its batch.

    The run folder stays as it is. `step` counts the batches before; None is the last one that was not finite.
    """
    run = Run.open(workdir)
    recorded = run.read_json("nonfinite.json")
    if step is None and not recorded:
        raise UserError(f"{run.path} has no step with a non-finite loss; name one with --step=N")
    step = max(each["step"] for each in recorded.values()) if step is None else step
    config = run.config()
    with if_moved(config, "move it back, or make a link there"):
        experiment = build(config, workdir=run.path)
    if not 0 <= step < experiment.total_steps:
        raise UserError(f"--step={step} must be less than the run's {experiment.total_steps} steps, from 0")
    run.check_images("train", experiment.train_source.fingerprint, "and replay again")
    check_norm_groups(run, experiment)
    with cpu.chosen(config.cpu_kernels):
        return _replay(run.path / "checkpoints", experiment, step)


def _replay(directory: Path, experiment: Experiment, step: int) -> Replayed:
    checkpoints, start = Checkpoints(directory), 0
    if restored := checkpoints.restore(experiment.abstract_tree(), step):
        start, state = restored[0], experiment.stacked(restored[1]["state"])
    else:
        state = experiment.init_state()
    batches, key = experiment.train_batches(), experiment.key()
    batches.set_state({"position": start})
    if start < step:
        advance, _ = compiled_step(experiment)
    for number in range(start, step):
        state, _ = advance(number, state, experiment.no_sums(), next(batches), key)
    differentiate = jax.jit(gradient_of(experiment, step))
    with jax.set_mesh(experiment.mesh):  # layers read it
        loss, _, _, gradient = differentiate(state, next(batches), key)
    params, gradients = (_norms(experiment.named(jax.device_get(x))) for x in (state.params, gradient))
    layers = {name: (norm, params[name]) for name, norm in gradients.items()}
    return Replayed(step, start, batches.indices(step), float(loss), layers)


def _norms(tree: Any) -> dict[str, float]:
    """{path of a layer: Euclidean norm of all its arrays}."""
    squares: dict[str, float] = {}
    for path, leaf in traverse_util.flatten_dict(tree).items():
        name = "/".join(path[:-1])
        squares[name] = squares.get(name, 0.0) + float(np.square(leaf.astype(np.float64)).sum())
    return {name: float(np.sqrt(square)) for name, square in squares.items()}
