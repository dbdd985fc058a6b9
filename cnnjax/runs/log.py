"""What a run writes while it trains: rows of metrics.jsonl, with the time, and steps that were not finite."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cnnjax.config import skip_limit
from cnnjax.data.batches import Batches
from cnnjax.runs import processes
from cnnjax.runs.checkpoints import ACCURACY, Saver
from cnnjax.runs.experiment import Experiment
from cnnjax.runs.folder import SKIPPED, Run
from cnnjax.training import schedules
from cnnjax.training.chips import chip_of, memory_peak
from cnnjax.training.metrics import Scores, has_top5
from cnnjax.training.steps import TrainMetrics, TrainState

CAUSES = ("compile", "data", "evaluation", "checkpoint")  # of time that is not in steps
# What differs between the rows of equal runs.
MEASURED = {
    *("seconds", "images_per_second", "images_per_second_per_device", "data_wait_seconds"),
    *("mfu", "memory_bytes", "goodput", *(f"{cause}_share" for cause in CAUSES)),
}
EVALUATED = ("loss", "accuracy", "top5_accuracy")  # what an evaluation adds to metrics.jsonl


class Progress:
    """What a run reports while it trains, here nothing: each method may be overridden."""

    def stage(self, text: str) -> None:
        """What a run does before its first step, "loading data"."""

    def header(self, lines: Sequence[str]) -> None:
        """What the run is: data, network, steps, folder; a note a line."""
        for line in lines:
            self.note(line)

    def start(self, step: int, total_steps: int) -> None:
        """A run begins, or resumes after `step` of `total_steps`."""

    def advance(self, step: int) -> None:
        """A step has been handed to the device."""

    def row(self, row: dict[str, Any]) -> None:
        """A row has been added to the metrics."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def stop(self) -> None:
        """The run has ended, well or not."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient was not finite; the state before that step was kept."""


class Log:
    """The rows of one run, and its clock.

    `seconds` counts training with its saves and evaluations, not compilation. A row of training covers the
    interval since the row before, a whole number of `log_every_steps`; but its `goodput`, the share of time
    in steps, and the shares of the other causes are of all time since this process began the run.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        checkpoints: Saver,
        batches: Batches,
        progress: Progress,
        step: int,
        seconds: float,
    ):
        self.experiment, self.run, self.checkpoints = experiment, run, checkpoints
        self.batches, self.progress = batches, progress
        rest = step % experiment.config.log_every_steps if step < experiment.total_steps else 0
        self.since = step - rest  # where the interval began
        rows = run.start_metrics(step)
        if step < experiment.total_steps:
            run.remove_scores()
        for line in run.trackers.where if run.trackers else ():
            progress.note(line)
        self.skipped_before = sum(row.get("skipped_steps", 0) for row in rows)
        # Evaluations whose row was written, though the run was stopped before the checkpoint knew of it.
        self.evaluated = {row["step"]: scores for row in rows if (scores := _accuracies(row))}
        # Messages of the images of each split that the user has been told of; those of train are "skipped".
        # They are of process 0: other images count towards the limit of another.
        self.skipped: dict[str, list[str]] = run.read_json(SKIPPED) if step and processes.is_first() else {}
        batches.restore_skipped(self.skipped.get("skipped", []))
        self.seconds, self.clock = seconds, time.perf_counter()
        self.training, self.waiting, self.steps = 0.0, 0.0, 0  # seconds and steps of the interval
        self.spent = dict.fromkeys(("steps", *CAUSES), 0.0)  # seconds, since the process began

    def lap(self, cause: str) -> float:
        """Seconds since the last lap, spent on a cause; they become part of the run's, except compilation."""
        now = time.perf_counter()
        elapsed, self.clock = now - self.clock, now
        self.spent[cause] += elapsed
        self.seconds += elapsed if cause != "compile" else 0.0
        return elapsed

    def next_batch(self, sums: TrainMetrics) -> dict[str, jax.Array]:
        """The next batch; the wait for it is reported if devices had ended the last step, that of `sums`."""
        start = time.perf_counter()
        batch = next(self.batches)
        waited = (time.perf_counter() - start) * sums.num_steps.is_ready()  # type: ignore[attr-defined]
        self.waiting += waited
        self.spent["data"] += waited
        self.spent["steps"] -= waited  # a lap will count it as a step's
        self.steps += 1
        # Now, as a run that resumes after this step does not meet them again.
        self.skipped_images("skipped", self.batches)
        return batch

    def check_finite(self, step: int, sums: TrainMetrics) -> TrainMetrics:
        """The interval's sums on the host; nonfinite.json gets its first non-finite step and the examples."""
        sums = jax.device_get(sums)
        self.training += self.lap("steps")  # the device has done all steps that it was given
        skipped = step - self.since - int(sums.num_steps)
        if not skipped:
            return sums
        bad = int(sums.nonfinite_step)
        recorded = self.run.read_json("nonfinite.json")
        recorded[str(bad)] = {"step": bad, "indices": self.batches.indices(bad)}
        self.run.write_json("nonfinite.json", recorded)
        limit, count = skip_limit(self.experiment.config.on_nonfinite), self.skipped_before + skipped
        if count <= limit:
            return sums
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        kept = f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint"
        more = f" ({count} such steps, {limit} may be skipped)" if limit else ""
        raise NonFiniteLoss(
            f"the loss or its gradient was not finite at step {bad}{more}; training stopped before that "
            f"update, and {kept} in {self.run.path}; inspect it with `cnnjax replay`, lower "
            "config.optimizer.learning_rate, or set config.optimizer.gradient_clip"
        )

    def interval(self, step: int, sums: TrainMetrics, state: TrainState) -> TrainMetrics:
        """Writes the row of an interval; returns the sums that the next one begins with."""
        sums = self.check_finite(step, sums)
        rate = schedules.learning_rate_at(self.experiment.schedule, step - 1, state.opt_state)
        row = {"learning_rate": float(rate)}
        if sums.num_steps:
            row["loss"] = float(sums.loss / sums.weight)
            row["accuracy"] = float(sums.correct / sums.weight)
            row["gradient_norm"] = float(sums.gradient_norm / sums.num_steps)
        if skipped := step - self.since - int(sums.num_steps):
            row["skipped_steps"] = skipped
            self.skipped_before += skipped
            self.progress.note(f"skipped {skipped} non-finite steps, {self.skipped_before} in all")
        row |= self._speed(self.steps * self.experiment.config.batch_size / self.training)
        row["data_wait_seconds"] = self.waiting
        self._write(step, row | self.skipped_images("skipped", self.batches))
        self.since, self.training, self.waiting, self.steps = step, 0.0, 0.0, 0
        return self.experiment.no_sums()

    def _speed(self, rate: float) -> dict[str, float]:
        """How fast the interval was, and where the time of this process has gone."""
        mesh, whole = self.experiment.mesh, sum(self.spent.values())
        row = {"images_per_second": rate, "images_per_second_per_device": rate / mesh.size}
        chip, flops = chip_of(mesh.devices.flat[0].device_kind), self.experiment.flops(self.since)
        if chip and flops is not None:
            row["mfu"] = rate * flops / (mesh.size * chip.flops)
        row["memory_bytes"] = memory_peak(mesh.local_devices[0])
        row["goodput"] = self.spent["steps"] / whole
        return row | {f"{cause}_share": self.spent[cause] / whole for cause in CAUSES}

    def evaluation(self, step: int, scores: Mapping[str, Scores], batches: Batches) -> None:
        """Writes the row of the scores of the raw weights, "", and of their moving average, "ema_"."""
        self.lap("evaluation")
        self.skipped_images("validation", batches)
        kept = [name for name in EVALUATED if name != "top5_accuracy" or has_top5(scores[""])]
        names = {f"validation_{prefix}{name}": (prefix, name) for prefix in scores for name in kept}
        row = {key: scores[prefix][name] for key, (prefix, name) in names.items()}
        self._write(step, row)
        self.evaluated[step] = _accuracies(row)

    def skipped_images(self, split: str, batches: Batches) -> dict[str, int]:
        """How many images were skipped so far; the run folder lists them, and the user is told."""
        if not (skipped := batches.skipped):
            return {}
        told = self.skipped.get(split, [])
        if len(skipped) > len(told):
            for message in skipped[len(told) :]:
                self.progress.note(f"skipped: {message}")
            if batches.lost:
                self.progress.note(batches.lost)
            self.skipped[split] = list(skipped)
            self.run.write_json(SKIPPED, self.skipped)
        return {"skipped_images": len(skipped)}

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        epoch = round(step / self.experiment.steps_per_epoch, 4)
        row = {"step": step, "epoch": epoch, "seconds": self.seconds, **values}
        self.run.append_metrics(row)
        self.progress.row(row)


def _accuracies(row: Mapping[str, float]) -> dict[str, float]:
    """{"accuracy", of an average "ema_accuracy"} in the row of an evaluation; {} in other rows."""
    names = {name: f"validation_{name}" for name in ACCURACY.values()}
    return {name: row[column] for name, column in names.items() if column in row}
