"""The life of a training run, from top to bottom: restore, batch, step, log, save, evaluate, stop."""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.batches import Batches
from cnnjax.data.sources.source import Listed, Source
from cnnjax.ops import cpu
from cnnjax.runs import processes
from cnnjax.runs.checkpoints import Saver
from cnnjax.runs.evaluate import Evaluator, test_scores
from cnnjax.runs.experiment import Experiment, build
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import seen_before
from cnnjax.runs.log import Log, Progress
from cnnjax.runs.optimizer import after_the_end
from cnnjax.runs.record import make_record, resumed
from cnnjax.runs.signals import Interrupted, caught_signals
from cnnjax.runs.step import (
    Inputs,
    Outputs,
    abstract_inputs,
    average_statistics,
    check_norm_groups,
    compile_step,
    norm_groups,
    out_of_memory,
)
from cnnjax.runs.steptrace import check_ahead, parse_steps, traced
from cnnjax.runs.teacher import check_teacher
from cnnjax.training.steps import TrainMetrics, TrainState


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: its last state, its folder, and the metrics of the test split."""

    state: TrainState
    path: Path
    test: dict[str, Any]  # {} if the data set has no test split
    class_names: tuple[str, ...]


# What a run does without a split.
NEEDED = {
    "validation": "nothing is evaluated before the end and the last step counts as the best",
    "test": "there will be no test score",
}
Life = Generator[Inputs, Outputs, Result]


def train(
    config: ConfigDict,
    workdir: str | Path,
    progress: Progress | None = None,
    *,
    stop_seconds: float | None = None,
    hang_seconds: float | None = None,
    profile_steps: str = "",
    listed: Listed | None = None,
    again: str = "the same command",
) -> Result:
    """Trains as the config says, resuming from the newest checkpoint in the folder.

    Args:
      workdir: the run folder, created if missing.
      progress: shows rows and notes, such as skipped images; by default nothing does, see `Progress`.
      stop_seconds: seconds to shut down after a signal, then the process is ended; None waits for the end of
        the step, of the evaluation's batch or of the compilation.
      hang_seconds: seconds without a step until the process is ended (exit code 4); None sets no limit.
      profile_steps: "FIRST:END", the steps to write an xprof trace of into `profile/` in the folder.
      listed: folders that have been listed before, see `datasets.load`.
      again: what resumes the run, in the line that a signal ends it with.

    Raises:
      UserError: a mistake in the config, the data or the folder, if possible before anything compiles; later
        for too little memory, too many unreadable images, or test images that have changed.
      OSError: a checkpoint or a file of the folder cannot be written; earlier checkpoints are intact.
      NonFiniteLoss: the loss or gradient was not finite; the state before that step was kept.
      Interrupted: SIGINT or SIGTERM; the state was saved. A second signal ends the process at once.
    """
    config_lib.check_complete(config)
    progress, memory = progress or Progress(), 0
    progress.stage("loading data and network")
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu.chosen(config.cpu_kernels))
        caught = stack.enter_context(caught_signals())
        stop = processes.Stop(caught, again, seconds=stop_seconds, hang_seconds=hang_seconds)
        stack.enter_context(stop)
        experiment = build(config, workdir=workdir, listed=listed)
        window = parse_steps(profile_steps, experiment.total_steps)
        introduce(experiment, workdir, progress)
        run, checkpoints = stack.enter_context(opened(experiment, workdir, progress))
        device = str(experiment.mesh.local_devices[0])
        stack.enter_context(out_of_memory(device, config.model, config.batch_size, lambda: memory))
        check_ahead(profile_steps, window, checkpoints.steps())
        life = live(experiment, run, checkpoints, progress, stop)
        try:
            next(life)
            compiled, memory = compile_step(experiment, run)
            inputs = next(life)
            number = int(inputs.state.step)
            with traced(compiled, run.path / "profile", window) as step:
                while True:
                    inputs = life.send(step(number, *inputs))
                    number += 1
        except StopIteration as end:
            return end.value


def live(
    experiment: Experiment, run: Run, checkpoints: Saver, progress: Progress, stop: processes.Stop
) -> Life:
    """One run, from its newest checkpoint or from nothing to its test scores.

    A generator, so that several runs can share one compiled step: it first yields the shapes of what the step
    takes, so that it can be compiled, then before each step what it takes, and is sent what it returned.
    """
    config, total = experiment.config, experiment.total_steps
    per_evaluation = max(1, round(config.eval_every_epochs * experiment.steps_per_epoch))
    batches, key = experiment.train_batches(), experiment.key()
    step, state, sums, seconds = restore(experiment, run, checkpoints, batches, progress)
    saved = step  # what the newest checkpoint holds
    averages = config.swa_start and state.batch_stats
    log = Log(experiment, run, checkpoints, batches, progress, step, seconds)
    validated = "validation" in experiment.train_source.splits
    evaluator = Evaluator(experiment, "validation", run) if validated else None

    def due(every: int) -> bool:
        """Every n steps, or at the end; 0 is never."""
        return every > 0 and (step % every == 0 or step == total)

    def save() -> None:
        nonlocal saved
        if step != saved:
            log.check_finite(step, sums)
            tree = {"state": experiment.named(state), "interval": sums}
            run.check_there()
            checkpoints.save(step, tree, {**batches.get_state(), "seconds": log.seconds})
            saved = step
            log.lap("checkpoint")

    def kept() -> str:  # see `Stop.runs`
        told = f"saved step {step} of {total} in {run.path}" if step else processes.NO_STEP
        return told if step == saved and checkpoints.settled() else ""

    def stop_if_told() -> None:
        if signum := stop.at():
            save()
            checkpoints.wait()
            raise stop.interrupted(signum)

    def evaluate(evaluator: Evaluator) -> None:
        if step not in log.evaluated:
            scores = {name: evaluator(tree, stop_if_told)[0] for name, tree in state.weights().items()}
            log.evaluation(step, scores, evaluator.batches)
        checkpoints.add_metrics(step, log.evaluated[step])

    stop.runs[run.path] = kept
    begin(experiment, step, progress)
    if evaluator and step and due(per_evaluation) and not checkpoints.metrics(step):
        evaluate(evaluator)  # it was under way when the run was stopped
    if step < total:
        yield abstract_inputs(experiment)
    log.lap("compile")
    stop_if_told()
    while step < total:
        try:
            state, sums = yield Inputs(state, sums, log.next_batch(sums), key)
        except Interrupted:  # thrown in: a run that shares the step stops, and the step is not taken
            batches.set_state({"position": step})
            stop_if_told()
        step += 1
        progress.advance(step)
        checkpoints.check()
        if due(config.log_every_steps):
            sums = log.interval(step, sums, state)
        if averages and step == total:
            step = total - 1  # which is saved: a run that is stopped meanwhile repeats the last
            state = average_statistics(experiment, state, stop_if_told)
            step = total
            log.lap("evaluation")
        if due(per_evaluation) or due(config.checkpoint_every_steps) or (averages and step == total - 1):
            save()
        if evaluator and due(per_evaluation):
            evaluate(evaluator)
        stop_if_told()
    checkpoints.wait()
    test = test_scores(experiment, run, step, state.weights(), stop_if_told, log.skipped_images)
    return Result(experiment.named(state), run.path, test, experiment.facts.class_names)


def introduce(experiment: Experiment, workdir: str | Path, progress: Progress) -> None:
    """Tells what is trained, where, and which splits it lacks; the first of several seeds for all."""
    source = experiment.train_source
    progress.header([*experiment.header(), f"run folder {workdir}"])
    for line in filter(None, (experiment.unsplit(), *after_the_end(experiment.config))):
        progress.note(line)
    for split, meaning in NEEDED.items():
        if split not in source.splits:
            advice = hold_out_advice(source) if split == "validation" else ""
            progress.note(f"{source.name} has no labelled {split} split: {meaning}{advice}")


@contextlib.contextmanager
def opened(experiment: Experiment, workdir: str | Path, progress: Progress) -> Iterator[tuple[Run, Saver]]:
    """A new or resumed run in its folder, which is locked; with its checkpoints."""
    source = experiment.train_source
    progress.stage("initializing")
    run = processes.first_then_others(
        lambda: Run.create(workdir, experiment.config, source.fingerprint), lambda: Run(workdir)
    )
    checkpoints = Saver(run.path / "checkpoints", keep=experiment.config.keep_checkpoints)
    try:
        check_teacher(run, experiment.teacher)
        if not (record := run.read_json("record.json")):
            run.write_json(
                "record.json", make_record(norm_groups=norm_groups(experiment), **experiment.record_entries())
            )
        elif experiment.total_steps not in checkpoints.steps():
            check_norm_groups(run, experiment)
            longer, differences = resumed(record, cpu_kernels=experiment.kernels)
            run.write_json("record.json", longer)
            if differences:
                progress.note(f"resumed with {differences}: results may differ in the last bits")
        yield run, checkpoints
    finally:
        progress.stop()
        checkpoints.close()
        run.close()


def begin(experiment: Experiment, step: int, progress: Progress) -> None:
    """Tells what a run's start has seen of its splits, and that it begins after `step`."""
    source, total = experiment.train_source, experiment.total_steps
    validated = step == 0 and "validation" in source.splits
    if validated and (line := seen_before(experiment.config, experiment.facts.listed)):
        progress.note(line)
    if "test" in source.splits and step < total:
        experiment.open("test")  # so that what is wrong with it is told now, not after the last step
    progress.start(step, total)


def hold_out_advice(source: Source) -> str:
    """What makes a validation split; "" if it cannot be made, as each class has one image."""
    single = source.labels is not None and len(source) == len(np.unique(source.labels))
    return "" if single else "; config.data.num_validation holds one out of train"


def restore(
    experiment: Experiment, run: Run, checkpoints: Saver, batches: Batches, progress: Progress
) -> tuple[int, TrainState, TrainMetrics, float]:
    """(step, state, sums of the log interval, seconds) to begin with; sets the batches' position."""
    for damaged in processes.first_then_others(checkpoints.clear_unfinished, lambda: []):
        progress.note(f"checkpoint {damaged} is damaged; renamed to {damaged}.damaged")
    restored = checkpoints.restore(experiment.abstract_tree())
    if restored is None:
        return 0, experiment.init_state(), experiment.no_sums(), 0.0
    step, tree, position = restored
    seconds = position.pop("seconds")
    batches.set_state({name: int(value) for name, value in position.items()})
    progress.note(f"resuming {run.path} at step {step}")
    return step, experiment.stacked(tree["state"]), tree["interval"], seconds
