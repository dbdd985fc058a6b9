"""Metrics of variables on a whole split, each image counted once on any number of devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cnnjax import processes
from cnnjax.data import pipeline
from cnnjax.experiment import Experiment
from cnnjax.training import metrics, parallel
from cnnjax.training.steps import eval_step


class Evaluator:
    """Evaluates variables on one split, with one compiled step."""

    def __init__(self, experiment: Experiment, split: str):
        source = experiment.source(split)
        mesh, devices = experiment.mesh, experiment.mesh.shape["data"]
        self.whole = parallel.replicated(mesh)
        # No more than the split has, rounded up to what the devices divide: padding counts for nothing.
        size = -(-min(experiment.config.eval_batch_size, len(source)) // devices) * devices
        self.batches = pipeline.make_batches(
            source, size, sharding=parallel.split_batch(mesh), **experiment.reading
        )
        step = functools.partial(
            eval_step,
            model=experiment.model,
            protocol=experiment.protocol,
            placement=experiment.placement,
        )
        self.step = jax.jit(step, donate_argnums=1, out_shardings=self.whole)
        self.no_sums = jax.jit(lambda: metrics.empty(source.num_classes), out_shardings=self.whole)

    def __call__(
        self, variables: Any, after_each: Callable[[], None] = processes.beat
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The metrics and the predictions, one row an example in the source's order.

        `after_each` is called after each batch.
        """
        sums = self.no_sums()
        rows = []
        for batch in self.batches.one_epoch():
            sums, predictions = self.step(variables, sums, batch)
            rows.append(predictions)
            after_each()
        rows = jax.device_get(rows)
        joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        real = joined.pop("mask") > 0
        return metrics.compute(sums), {name: values[real] for name, values in joined.items()}
