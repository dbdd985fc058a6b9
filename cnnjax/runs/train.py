"""The only loops: `train` and `evaluate`, used alike by the command line, tests and notebooks."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import batches
from cnnjax.models.stages import stack_blocks, unstack_blocks
from cnnjax.ops import cpu
from cnnjax.runs import processes
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.evaluate import Evaluator
from cnnjax.runs.experiment import Experiment, build, check_batch
from cnnjax.runs.folder import Follower, Run, make_record, plain
from cnnjax.runs.memory import device_memory, out_of_memory
from cnnjax.runs.progress import Silent
from cnnjax.runs.signals import Interrupted, caught_signals
from cnnjax.runs.step import lower_step
from cnnjax.training import parallel, schedules
from cnnjax.training.state import TrainState
from cnnjax.training.steps import TrainMetrics, in_turn_on_cpu

_ACCURACIES = ("validation_accuracy", "validation_ema_accuracy")
EVALUATED = ("loss", "accuracy", "top5_accuracy")  # what an evaluation adds to metrics.jsonl


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient was not finite; the state before that step was kept."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves: its last state, the folder, and the metrics of the test split."""

    state: TrainState
    path: Path
    test: dict[str, Any]
    class_names: tuple[str, ...]


def train(
    config: ConfigDict,
    workdir: str | Path,
    progress: Silent | None = None,
    *,
    stop_seconds: float | None = None,
) -> Result:
    """Trains to the end of the config, from the newest checkpoint of the folder where there is one.

    Args:
      config: see `config.default()`.
      workdir: the run folder, made where it is missing.
      progress: what the user sees; nothing by default.
      stop_seconds: the most from a signal to the end of the process, which is ended by force then; None
        waits for the end of the step, of the evaluation's batch or of the compilation.

    Raises:
      UserError: before anything compiles, for a mistake in the config, the data or the folder.
      NonFiniteLoss: training stopped before an update that was not finite; nothing was saved over.
      Interrupted: SIGINT or SIGTERM came; the state was saved. A second signal ends the process at once.
    """
    config_lib.validate(config)
    check_batch(config, parallel.make_mesh(config.mesh))
    with cpu.chosen(config.cpu_kernels):
        return _train(build(config), workdir, progress or Silent(), stop_seconds)


def _train(
    experiment: Experiment, workdir: str | Path, progress: Silent, stop_seconds: float | None
) -> Result:
    config = experiment.config
    explained = out_of_memory(str(experiment.mesh.local_devices[0]), config.model, config.batch_size)
    with (
        explained,
        caught_signals() as caught,
        processes.Stop(caught, seconds=stop_seconds) as stop,
        opened(experiment, workdir, progress, stop) as trainer,
    ):
        trainer.run_to_end()
        return trainer.result()


@contextlib.contextmanager
def opened(
    experiment: Experiment, workdir: str | Path, progress: Silent, stop: processes.Stop
) -> Iterator["Trainer"]:
    """A run in its folder, new or to be gone on with; nobody else trains there meanwhile."""
    fingerprint = experiment.train_source.fingerprint
    run = processes.first_then_others(
        lambda: Run.create(workdir, experiment.config, fingerprint), lambda: Follower(Path(workdir))
    )
    if not run.read_json("record.json"):
        run.write_json("record.json", make_record(**experiment.facts()))
    saved = Checkpoints(run.path / "checkpoints", keep=experiment.config.keep_checkpoints)
    try:
        yield Trainer(experiment, run, saved, progress, stop)
    finally:
        progress.stop()
        saved.close()
        run.close()


class Trainer:
    """One run under way: the state, the sums of the current log interval, the position of the data."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        saved: Checkpoints,
        progress: Silent,
        stop: processes.Stop | None = None,
    ):
        self.stop = stop or processes.Stop([])
        self.experiment, self.config = experiment, experiment.config
        self.run_folder, self.saved, self.progress = run, saved, progress
        self.batches = batches.make_batches(
            experiment.train_source,
            self.config.batch_size,
            seed=self.config.seed,
            sharding=parallel.split_batch(experiment.mesh),
            **experiment.reading,
        )
        self.evaluator = None
        if self.config.data.num_validation:
            self.evaluator = Evaluator(experiment, "validation")
        whole = parallel.replicated(experiment.mesh)
        self.key = jax.jit(lambda: jax.random.key(self.config.seed), out_shardings=whole)()
        self.no_interval = jax.jit(TrainMetrics.empty, out_shardings=whole)
        self.step, self.seconds, self.saved_step, self.told_skipped = 0, 0.0, -1, 0
        self.memory = 0  # bytes that the compiled step holds on a device
        self._restore_or_start()
        self.stop.kept = self._kept
        self.clock = time.perf_counter()
        self.trained_seconds, self.wait_seconds, self.timed_steps = 0.0, 0.0, 0

    def _restore_or_start(self) -> None:
        for step in processes.first_then_others(self.saved.clear_unfinished, list):
            self.progress.note(f"checkpoint {step} is damaged; set aside as {step}.damaged")
        restored = self.saved.restore(self.experiment.abstract_tree())
        if restored is None:
            self.state, self.interval = self.experiment.init_state(), self.no_interval()
        else:
            self.step, tree, position = restored
            self.saved_step, self.seconds = self.step, position.pop("seconds")
            self.state = stack_blocks(tree["state"], self.experiment.stacked_blocks)
            self.interval = tree["interval"]
            self.batches.set_state(position)
            self.progress.note(f"resuming {self.run_folder.path} at step {self.step}")
        self.logged = self.step - self.step % self.config.log_every_steps  # where the interval began
        rows = [row for row in self.run_folder.metrics() if row["step"] <= self.step]
        self.skipped_steps = sum(row.get("skipped_steps", 0) for row in rows)  # of the intervals before
        self.run_folder.start_metrics(self.step)

    def run_to_end(self) -> None:
        """Trains until the last step, a signal, or a loss that is not finite."""
        total = self.experiment.total_steps
        where = str(self.experiment.mesh.local_devices[0])
        with out_of_memory(where, self.config.model, self.config.batch_size, lambda: self.memory):
            self.progress.start(self.step, total)
            self._make_up_evaluation()
            step_fn = self._compile() if self.step < total else None
            self.stop_if_told()
            while self.step < total:
                state, interval = step_fn(*self.next_arguments())
                self.take(state, interval)
                self.stop_if_told()
        self.saved.wait()

    def next_arguments(self) -> tuple[TrainState, TrainMetrics, dict[str, jax.Array], jax.Array]:
        """What the step takes next."""
        start = time.perf_counter()
        batch = next(self.batches)
        self.wait_seconds += time.perf_counter() - start
        return self.state, self.interval, batch, self.key

    def take(self, state: TrainState, interval: TrainMetrics) -> None:
        """What the step has returned: logs, saves and evaluates what is due."""
        self.state, self.interval = in_turn_on_cpu((state, interval), self.memory)
        self.step += 1
        self.timed_steps += 1
        self.progress.advance(self.step)
        processes.beat()
        self._report_and_save()

    def _report_and_save(self) -> None:
        """What is due after a step; a save that failed in the background ends the run."""
        self.saved.check()
        if self._due(self.config.log_every_steps):
            self._log()
        evaluated = self._due(self.experiment.steps_per_evaluation)
        if evaluated or self._due(self.config.checkpoint_every_steps):
            self.save()
        if evaluated and self.evaluator:
            self._evaluate()

    def _make_up_evaluation(self) -> None:
        """The evaluation that was under way when the run ended."""
        due = self.evaluator and self.step and self._due(self.experiment.steps_per_evaluation)
        if not due or self.saved.metrics(self.step):
            return
        rows = [row for row in self.run_folder.metrics() if row["step"] == self.step]
        accuracies = [row[name] for row in rows for name in _ACCURACIES if name in row]
        if accuracies:
            self.saved.add_metrics(self.step, {"accuracy": max(accuracies)})
        else:
            self._evaluate()

    def _due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.experiment.total_steps)

    def _compile(self) -> Any:
        """Compiles the one step of this run, and records how long that took."""
        start = time.perf_counter()
        compiled = lower_step(self.experiment).compile()
        self.memory = device_memory(compiled)
        self.compiled(time.perf_counter() - start)
        return compiled

    def compiled(self, seconds: float) -> None:
        """Records how long compilation took, which is no part of the run's seconds."""
        record = self.run_folder.read_json("record.json")
        record["compile_seconds"] = round(seconds, 2)
        self.run_folder.write_json("record.json", record)
        self.clock = time.perf_counter()

    def _log(self) -> None:
        """Brings the interval's sums to the host, writes them as a row and starts the next interval."""
        sums = self._finite_interval()
        rate = schedules.learning_rate_at(self.experiment.schedule, self.step - 1, self.state.opt_state)
        row = {"learning_rate": float(rate)}
        if sums.num_steps:
            row["loss"] = float(sums.loss / sums.weight)
            row["accuracy"] = float(sums.correct / sums.weight)
            row["gradient_norm"] = float(sums.gradient_norm / sums.num_steps)
        if skipped := self.step - self.logged - int(sums.num_steps):
            row["skipped_steps"] = skipped
            self.skipped_steps += skipped
            self.progress.note(f"skipped {skipped} steps that were not finite, {self.skipped_steps} in all")
        row["images_per_second"] = self.timed_steps * self.config.batch_size / self.trained_seconds
        row["data_wait_seconds"] = self.wait_seconds
        self._write({**row, **self._skipped()})
        self.interval, self.logged = self.no_interval(), self.step
        self.trained_seconds, self.wait_seconds, self.timed_steps = 0.0, 0.0, 0

    def _skipped(self) -> dict[str, int]:
        """How many images were left out so far, which the run folder lists and the user is told."""
        skipped = self.batches.skipped
        if not skipped:
            return {}
        for message in skipped[self.told_skipped :]:
            self.progress.note(f"left out: {message}")
        if len(skipped) > self.told_skipped:
            self.run_folder.write_json("skipped_images.json", {"skipped": list(skipped)})
        self.told_skipped = len(skipped)
        return {"skipped_images": len(skipped)}

    def _elapsed(self) -> float:
        """Seconds since the last call, which become part of the run's."""
        now = time.perf_counter()
        elapsed, self.clock = now - self.clock, now
        self.seconds += elapsed
        return elapsed

    def _finite_interval(self) -> TrainMetrics:
        """The interval's sums on the host; raises where more of its steps than allowed were not finite.

        nonfinite.json gets the first of those steps, with the places of its examples in the train split.
        """
        sums = jax.device_get(self.interval)
        self.trained_seconds += self._elapsed()  # the device has done all steps that it was given
        skipped = self.step - self.logged - int(sums.num_steps)
        if not skipped:
            return sums
        bad = int(sums.nonfinite_step)
        found = self.run_folder.read_json("nonfinite.json")
        found[str(bad)] = {"step": bad, "indices": self.batches.indices(bad)}
        self.run_folder.write_json("nonfinite.json", found)
        limit = config_lib.skip_limit(self.config.on_nonfinite)
        if self.skipped_steps + skipped <= limit:
            return sums
        self.saved.wait()
        steps = self.saved.steps()
        kept = f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint"
        more = f" ({self.skipped_steps + skipped} such steps, {limit} may be skipped)" if limit else ""
        raise NonFiniteLoss(
            f"the loss or its gradient was not finite at step {bad}{more}; training stopped before that "
            f"update, and {kept} in {self.run_folder.path}; look with `cnnjax replay`, lower "
            "config.optimizer.learning_rate, or set config.optimizer.gradient_clip"
        )

    def _evaluate(self) -> None:
        """Evaluates on the validation split, writes a row and what the checkpoint is judged by."""
        self._finite_interval()
        row = {}
        for prefix, tree in self._weights().items():
            scores, _ = self.evaluator(tree, self.stop_if_told)
            row |= {f"validation_{prefix}{name}": scores[name] for name in EVALUATED}
        self._elapsed()
        self._write(row)
        self.saved.add_metrics(self.step, {"accuracy": max(row[name] for name in _ACCURACIES if name in row)})

    def _weights(self) -> dict[str, dict[str, Any]]:
        """The raw variables and, where there are any, their moving averages."""
        averaged = {"ema_": self.state.ema} if self.state.ema else {}
        return {"": self.state.variables, **averaged}

    def _write(self, values: dict[str, float]) -> None:
        epoch = self.step / self.experiment.steps_per_epoch
        row = {"step": self.step, "epoch": round(epoch, 4), "seconds": self.seconds, **values}
        self.run_folder.append_metrics(row)
        self.progress.row(row)

    def save(self) -> None:
        """Saves a state that is known to be finite, once a step."""
        self._finite_interval()
        if self.step == self.saved_step:
            return
        position = {**self.batches.get_state(), "seconds": self.seconds}
        self.saved.save(self.step, {"state": self.named_state(), "interval": self.interval}, position)
        self.saved_step = self.step
        self._elapsed()

    def named_state(self) -> TrainState:
        """The state with a name for each layer; the step holds equal blocks stacked."""
        return unstack_blocks(self.state, self.experiment.stacked_blocks)

    def stop_if_told(self) -> None:
        """Where a signal has come: saves and ends the run."""
        processes.beat()
        if signum := self.stop.at():
            if self.step:
                self.save()
            self.saved.wait()
            raise Interrupted(signum, f"{signal.Signals(signum).name}: {self._kept()}")

    def _kept(self) -> str:
        """What of the run is kept where it ends now; '' where a step would be lost."""
        if self.step == 0:
            return "no step was done yet; the same command begins again"
        if self.step != self.saved_step or not self.saved.settled():
            return ""
        return (
            f"saved step {self.step} of {self.experiment.total_steps} in {self.run_folder.path}; the same "
            "command goes on from there"
        )

    def result(self) -> Result:
        """What the finished run leaves, with its test split evaluated."""
        return Result(
            self.named_state(), self.run_folder.path, self.test(), self.experiment.train_source.class_names
        )

    def test(self) -> dict[str, Any]:
        """Evaluates the finished run on the test split, once: the result stays in test.json."""
        found = self.run_folder.read_json("test.json")
        if found.get("step") == self.step:
            return found
        evaluator = Evaluator(self.experiment, "test")
        found = {"step": self.step, "split": "test", "protocol": self.config.eval_protocol}
        for prefix, variables in self._weights().items():
            scores, predictions = evaluator(variables, self.stop_if_told)
            found |= {f"{prefix}{name}": value for name, value in scores.items()}
        self.run_folder.write_arrays("predictions.npz", predictions)
        self.run_folder.write_json("test.json", found)
        return plain(found)
