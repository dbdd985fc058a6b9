"""Metrics of variables on a whole split, each image counted once on any number of devices."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax.ops import cpu
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.experiment import Experiment, build
from cnnjax.runs.folder import Run, plain
from cnnjax.runs.inputs import load_split
from cnnjax.training import metrics, parallel
from cnnjax.training.steps import eval_step


class Evaluator:
    """Evaluates variables on one split, with one compiled step."""

    def __init__(self, experiment: Experiment, split: str):
        source = load_split(experiment.config, split)
        devices = experiment.mesh.shape["data"]
        # No more than the split has, rounded up to what the devices divide: padding counts for nothing.
        size = -(-min(experiment.config.eval_batch_size, len(source)) // devices) * devices
        self.batches = experiment.batches(source, size)
        self.mesh = experiment.mesh
        step = functools.partial(eval_step, model=experiment.model, protocol=experiment.protocol)
        self.step = jax.jit(step, out_shardings=experiment.replicated)
        self.num_classes = source.num_classes

    def __call__(
        self, variables: Any, after_each: Callable[[], None] = lambda: None
    ) -> tuple[metrics.Scores, dict[str, np.ndarray]]:
        """The scores and the predictions, one row an example in the source's order, in every process."""
        rows = []
        for batch in self.batches.one_epoch():
            with jax.set_mesh(self.mesh):  # layers read it
                rows.append(self.step(variables, batch))
            after_each()
        rows = jax.device_get(rows)
        joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        real = joined.pop("mask") > 0
        predictions = {name: values[real] for name, values in joined.items()}
        return metrics.compute(predictions, self.num_classes), predictions


def evaluate(
    workdir: str | Path,
    *,
    split: str = "test",
    checkpoint: str = "last",
    weights: str = "raw",
    data: str | None = None,
    protocol: str | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Evaluates a run on every image of a split, each counted once.

    Args:
      split: "test", "validation" or "train" (without what is held out).
      checkpoint: "last", "best" (on validation), or a step.
      weights: "raw", or "ema" for the moving average.
      data: another data set with the same classes, by name; None is the run's own.
      protocol: one of `data.augment.views`; None is the run's own.

    Returns the scores of `training.metrics.compute`, with the step and the protocol; and the predictions, one
    row an image in the order of the split.
    """
    run = Run.open(workdir)
    config = run.config()
    if data:
        config.data.name, config.data.num_validation = data, 0
    config.eval_protocol = protocol or config.eval_protocol
    config.init_from, config.mesh, config.sharding = "", "", "replicated"  # those of training are over
    experiment = build(config)
    step, variables = Checkpoints(run.path / "checkpoints").variables(checkpoint, weights)
    variables = parallel.put(variables, experiment.replicated)
    with cpu.chosen(config.cpu_kernels):
        scores, predictions = Evaluator(experiment, split)(variables)
    return {"step": step, "split": split, "protocol": config.eval_protocol, **scores}, predictions


def test_scores(
    experiment: Experiment, run: Run, step: int, weights: Mapping[str, Any], after_each: Callable[[], None]
) -> dict[str, Any]:
    """The scores of a finished run on the test split, evaluated once: they stay in test.json."""
    if (scores := run.read_json("test.json")).get("step") == step:
        return scores
    evaluator = Evaluator(experiment, "test")
    scores = {"step": step, "split": "test", "protocol": experiment.config.eval_protocol}
    for prefix, variables in weights.items():
        metrics_of, predictions = evaluator(variables, after_each)
        scores |= {f"{prefix}{name}": value for name, value in metrics_of.items()}
    run.write_arrays("predictions.npz", predictions)
    run.write_json("test.json", scores)
    return plain(scores)
