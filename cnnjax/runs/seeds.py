"""Several seeds of one config trained at once: one compiled step, their states side by side under `vmap`.

For small nets, of which one leaves an accelerator idle. Each seed has its run folder, as if it had been
trained alone, and may be resumed alone; the numbers agree but for rounding, since XLA adds in another
order. The CPU kernels take no mapped weights, so on a CPU everything goes through XLA.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.augment.chain import explicit_spec
from cnnjax.errors import UserError
from cnnjax.ops import cpu
from cnnjax.runs import processes
from cnnjax.runs.experiment import Experiment, build
from cnnjax.runs.folder import Run
from cnnjax.runs.log import NonFiniteLoss, Progress
from cnnjax.runs.signals import Interrupted, caught_signals
from cnnjax.runs.step import (
    Inputs,
    Outputs,
    abstract_inputs,
    accumulated_step,
    out_of_memory,
    record_compilation,
)
from cnnjax.runs.train import Life, Result, introduce, live, opened


def train_together(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[str | Path],
    progress: Progress | None = None,
    *,
    stop_seconds: float | None = None,
) -> list[Result | NonFiniteLoss]:
    """Trains configs that differ in `seed` alone to their ends, each in its folder; see `train`.

    Returns by config its result, or the error of a run whose loss was not finite; the others continue. After
    SIGINT or SIGTERM, all runs were saved when it raises Interrupted.
    """
    first = configs[0]
    differing = {d.partition(":")[0] for other in configs[1:] for d in config_lib.differing(first, other)}
    if differing - {"config.seed"}:
        fields = ", ".join(sorted(differing))
        raise UserError(f"runs trained together differ in {fields}; allowed: config.seed")
    pairs = zip(configs, workdirs, strict=True)
    experiments = [build(config, workdir=workdir) for config, workdir in pairs]
    if experiments[0].frozen_steps < experiments[0].total_steps:
        raise UserError(f"config.freeze={first.freeze!r} unfreezes midway; train such runs one by one")
    if experiments[0].mesh.size > 1:
        raise UserError(f"runs are trained together on one device, not on {experiments[0].mesh.size}")
    if len({explicit_spec(experiment.augment) for experiment in experiments}) > 1:
        problem = "need one normalization, but that of this data set is computed from the images of each seed"
        advice = "write mean and std into config.augment.train and config.augment.eval"
        raise UserError(f"runs trained together {problem}; {advice}")
    progress = progress or Progress()
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu.paused("for seeds trained together"))
        stack.enter_context(cpu.chosen(first.cpu_kernels))
        introduce(experiments[0], workdirs[0], progress)
        device = str(experiments[0].mesh.local_devices[0])
        stack.enter_context(out_of_memory(device, first.model, first.batch_size, runs=len(configs)))
        caught = stack.enter_context(caught_signals())
        stop = stack.enter_context(processes.Stop(caught, seconds=stop_seconds))
        lives: list[Life] = []
        runs: list[Run] = []
        for experiment, workdir in zip(experiments, workdirs, strict=True):
            shown = _Notes(progress, workdir) if lives else progress
            run, checkpoints = stack.enter_context(opened(experiment, workdir, shown))
            lives.append(live(experiment, run, checkpoints, shown, stop))
            runs.append(run)
        return _drive(lives, experiments[0], runs, stop)


class _Notes(Progress):
    """The notes of a run beside the first, with its folder's name; nothing else of it is shown."""

    def __init__(self, progress: Progress, workdir: str | Path):
        self.progress, self.workdir = progress, workdir

    def note(self, text: str) -> None:
        self.progress.note(f"{self.workdir}: {text}")


def _drive(
    lives: Sequence[Life], experiment: Experiment, runs: Sequence[Run], stop: processes.Stop
) -> list[Result | NonFiniteLoss]:
    """Takes every run to its end with one step for all that are under way; returns how each has ended."""
    ends: dict[int, Result | NonFiniteLoss] = {}
    inputs: dict[int, Inputs] = {}
    interrupted: list[Interrupted] = []

    def resume(i: int, outputs: Outputs | Interrupted | None = None) -> None:
        """To its next step, or to its end."""
        inputs.pop(i, None)
        life = lives[i]
        try:
            match outputs:
                case Interrupted():
                    inputs[i] = life.throw(outputs)
                case None:
                    inputs[i] = next(life)
                case _:
                    inputs[i] = life.send(outputs)
        except StopIteration as end:
            ends[i] = end.value
        except NonFiniteLoss as error:
            ends[i] = error
        except Interrupted as signal:
            interrupted.append(signal)
        if i in ends:
            stop.runs.pop(runs[i].path)

    for i in range(len(lives)):
        resume(i)
    if (together := list(inputs)) and not interrupted:  # not if all are finished already
        step = _compile(experiment, [runs[i] for i in together])
        for i in together:
            resume(i)
    while inputs and not interrupted:
        if together != list(inputs):  # some have ended
            together = list(inputs)
            step = _compile(experiment, [runs[i] for i in together])
        columns = zip(*(inputs[i] for i in together), strict=True)
        for i, outputs in zip(together, step(*columns), strict=True):
            resume(i, outputs)
    if interrupted:
        for i in list(inputs):  # those whose turn in this step was before the signal
            resume(i, interrupted[0])
        raise stop.interrupted(interrupted[0].signum)
    return [ends[i] for i in range(len(lives))]


def _compile(experiment: Experiment, runs: Sequence[Run]) -> Callable[..., list[Outputs]]:
    """The step of several runs: their inputs -> their outputs."""
    start = time.perf_counter()
    mapped = jax.vmap(functools.partial(accumulated_step, experiment))

    def step(*columns: Any) -> list[Outputs]:
        results = mapped(*(jax.tree.map(lambda *leaves: jnp.stack(leaves), *column) for column in columns))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(len(runs))]

    columns = zip(*[abstract_inputs(experiment)] * len(runs), strict=True)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*columns).compile()
    for run in runs:
        record_compilation(run, time.perf_counter() - start)
    return compiled
