"""Metrics of variables on a whole split, each image counted once on any number of devices."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax.errors import UserError
from cnnjax.ops import cpu
from cnnjax.runs.facts import of_run
from cnnjax.runs.folder import Run, plain
from cnnjax.runs.network import Network, trained
from cnnjax.training import metrics, parallel
from cnnjax.training.steps import eval_step


class Evaluator:
    """Evaluates variables on one split, with one compiled step."""

    def __init__(self, network: Network, split: str, run: Run | None = None):
        source = network.source(split)
        if run:
            run.check_images(split, source.fingerprint, "or name the new ones with --data")
        devices = network.mesh.shape["data"]
        # No more than the split has, rounded up to what the devices divide: padding counts for nothing.
        size = -(-min(network.config.eval_batch_size, len(source)) // devices) * devices
        self.batches = network.batches(source, size)
        self.mesh = network.mesh
        step = functools.partial(eval_step, model=network.model, protocol=network.protocol)
        self.step = jax.jit(step, out_shardings=network.replicated)
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
    class_names: str | Path | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Evaluates a run on every image of a split, each counted once.

    Args:
      split: "test", "validation" or "train" (without what is held out).
      checkpoint: "last", "best" (on validation), or a step.
      weights: "raw", or "ema" for the moving average.
      data: another data set, by name, prepared as the run's own was, its labels matched by class name; it may
        lack classes and other splits. None is the run's own, refused if its images have changed.
      protocol: one of `data.augment.views`; None is the run's own.
      class_names: a file that names the run's classes, one a line; None are the recorded names.

    Returns the scores of `training.metrics.compute`, with the step and the protocol; and the predictions, one
    row an image in the order of the split.
    """
    run = Run.open(workdir)
    config, facts = run.config(), of_run(run).named(class_names)
    config.eval_protocol = protocol or config.eval_protocol
    if data:
        config.data.update(name=data, num_validation=0, size=facts.image_shape[0], test_split="test")
    step, model, views, variables = trained(run, config, facts, checkpoint, weights)
    network = Network(config, parallel.make_mesh("", None), facts, views, model)
    variables = parallel.put(variables, network.replicated)
    with cpu.chosen(config.cpu_kernels):
        try:
            evaluator = Evaluator(network, split, None if data else run)
        except UserError as error:
            raise UserError(str(error).replace("config.data.name", "data", bool(data))) from None
        scores, predictions = evaluator(variables)
    return {"step": step, "split": split, "protocol": config.eval_protocol, **scores}, predictions


def test_scores(
    experiment: Network, run: Run, step: int, weights: Mapping[str, Any], after_each: Callable[[], None]
) -> dict[str, Any]:
    """The scores of a finished run on the test split, evaluated once: they stay in test.json."""
    if (scores := run.read_json("test.json")).get("step") == step:
        return scores
    evaluator = Evaluator(experiment, "test", run)
    scores = {"step": step, "split": "test", "protocol": experiment.config.eval_protocol}
    for prefix, variables in weights.items():
        metrics_of, predictions = evaluator(variables, after_each)
        scores |= {f"{prefix}{name}": value for name, value in metrics_of.items()}
    run.write_arrays("predictions.npz", predictions)
    run.write_json("test.json", scores)
    return plain(scores)
