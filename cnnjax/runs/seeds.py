"""Several seeds of one config trained at once: one compiled step, their states side by side under `vmap`.

For small nets, of which one leaves an accelerator idle. Each seed has its run folder, as if it had been
trained alone, and may be gone on with alone; the numbers agree but for rounding, since XLA adds in another
order. The CPU kernels take no mapped weights, so on a CPU the step goes through XLA.
"""

import contextlib
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import batches
from cnnjax.data.augment.chain import explicit_spec
from cnnjax.errors import UserError
from cnnjax.ops import cpu
from cnnjax.runs import processes
from cnnjax.runs.experiment import build
from cnnjax.runs.progress import Silent
from cnnjax.runs.signals import caught_signals
from cnnjax.runs.step import accumulated_step
from cnnjax.runs.train import NonFiniteLoss, Result, Trainer, opened
from cnnjax.training import parallel


def train_together(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[str | Path],
    progress: Silent | None = None,
    *,
    stop_seconds: float | None = None,
) -> list[Result | NonFiniteLoss]:
    """Trains configs that differ in `seed` alone to their ends, each in its folder; see `loop.train`.

    Returns: by config its result, or the error of a run whose loss was not finite; the others go on.

    Raises:
      UserError: for configs that differ in more, several devices, or what `train` raises it for.
      Interrupted: SIGINT or SIGTERM came; all runs were saved.
    """
    first = configs[0]
    differing = {d.partition(":")[0] for other in configs[1:] for d in config_lib.differing(first, other)}
    if differing - {"config.seed"}:
        raise UserError(
            f"runs trained together differ in {', '.join(sorted(differing))}; allowed: config.seed"
        )
    experiments = [build(config) for config in configs]
    if experiments[0].mesh.size > 1:
        raise UserError(f"runs are trained together on one device, not on {experiments[0].mesh.size}")
    if len({explicit_spec(experiment.augment) for experiment in experiments}) > 1:
        raise UserError(
            "runs trained together need one normalization, but that of this data set is computed from the "
            "images of each seed; write mean and std into config.augment.train"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu.chosen(first.cpu_kernels))
        caught = stack.enter_context(caught_signals())
        stop = stack.enter_context(processes.Stop(caught, seconds=stop_seconds))
        shown = [progress or Silent(), *(Silent() for _ in configs[1:])]
        trainers = [
            stack.enter_context(opened(experiment, workdir, each, stop))
            for experiment, workdir, each in zip(experiments, workdirs, shown, strict=True)
        ]
        failed = _run_to_ends(trainers, stop)
        return [failed.get(id(trainer)) or trainer.result() for trainer in trainers]


def _run_to_ends(trainers: Sequence[Trainer], stop: processes.Stop) -> dict[int, NonFiniteLoss]:
    """Trains those that are furthest behind until they meet the next ones, and so on; returns who failed."""
    failed: dict[int, NonFiniteLoss] = {}
    total = trainers[0].experiment.total_steps
    for trainer in trainers:
        trainer.progress.start(trainer.step, total)
    while running := [t for t in trainers if t.step < total and id(t) not in failed]:
        least = min(trainer.step for trainer in running)
        group = [trainer for trainer in running if trainer.step == least]
        goal = min((trainer.step for trainer in running if trainer.step > least), default=total)
        step = _compile(group)
        while group[0].step < goal and not failed.keys() & {id(trainer) for trainer in group}:
            if stop.at():
                for trainer in group:
                    trainer.save()
                group[0].stop_if_told()
            arguments = [trainer.next_arguments() for trainer in group]
            for trainer, (state, interval) in zip(group, step(*zip(*arguments, strict=True)), strict=True):
                try:
                    trainer.take(state, interval)
                except NonFiniteLoss as error:
                    failed[id(trainer)] = error
    for trainer in trainers:
        trainer.saved.wait()
    return failed


def _compile(group: Sequence[Trainer]) -> Any:
    """The step of a group: (states, intervals, batches, keys) -> (state, interval) by run."""
    start = time.perf_counter()
    mapped = jax.vmap(functools.partial(accumulated_step, group[0].experiment))

    def step(*columns: Any) -> list[Any]:
        stacked = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *column) for column in columns)
        results = mapped(*stacked)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(len(group))]

    experiment = group[0].experiment
    batch = batches.abstract_batch(
        experiment.train_source, experiment.config.batch_size, parallel.split_batch(experiment.mesh)
    )
    arguments = [(trainer.state, trainer.interval, batch, trainer.key) for trainer in group]
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*zip(*arguments, strict=True)).compile()
    for trainer in group:
        trainer.compiled(time.perf_counter() - start)
    return compiled
