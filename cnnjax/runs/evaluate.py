"""Metrics of variables on a whole split, each image counted once on any number of devices."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax import config as config_lib
from cnnjax.data.batches import Batches
from cnnjax.errors import UserError
from cnnjax.ops import cpu
from cnnjax.runs.experiment import Experiment
from cnnjax.runs.folder import Run, plain
from cnnjax.runs.inputs import NAME_IT, if_moved, load_split
from cnnjax.runs.loaded import Loaded, labelled, load, with_data
from cnnjax.runs.network import Network
from cnnjax.training import metrics, parallel
from cnnjax.training.steps import eval_step


class Evaluator:
    """Evaluates variables on one split, with one compiled step."""

    def __init__(self, network: Network, split: str, run: Run | None = None):
        source = network.source(split)
        if run:
            # Those of train were recorded as training reads them, which is not how evaluation does.
            same = load_split(network.config, split) if split == "train" else source
            run.check_images(split, same.fingerprint, "or name the new ones with --data")
        devices = network.mesh.shape["data"]
        # No more than the split has, rounded up to what the devices divide: padding counts for nothing.
        size = -(-min(network.config.eval_batch_size, len(source)) // devices) * devices
        self.batches = network.batches(source, size)
        self.num_images = len(source) + len(self.batches.skipped)  # the latter are no longer in memory
        self.mesh = network.mesh
        step = functools.partial(eval_step, model=network.model, protocol=network.protocol)
        self.step = jax.jit(step, out_shardings=network.replicated)
        self.num_classes = source.num_classes

    def __call__(
        self, variables: Any, after_each: Callable[[], None] = lambda: None
    ) -> tuple[metrics.Scores, dict[str, np.ndarray]]:
        """The scores and the predictions, one row an example in the source's order, in every process.

        The scores have `skipped` if images could not be read; `batches` then has this process's messages.
        """
        rows = []
        for batch in self.batches.one_epoch():
            with jax.set_mesh(self.mesh):  # layers read it
                rows.append(self.step(variables, batch))
            after_each()
        rows = jax.device_get(rows)
        joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        real = joined.pop("mask") > 0
        predictions = {name: values[real] for name, values in joined.items()}
        scores = metrics.compute(predictions, self.num_classes)
        skipped = self.num_images - scores["count"]
        return scores | ({"skipped": skipped} if skipped else {}), predictions


def evaluate(
    workdir: str | Path | None = None,
    *,
    split: str = "test",
    model: str | Path = "",
    weights: str | Path = "raw",
    checkpoint: str | int = "last",
    data: str | Path | None = None,
    protocol: str | None = None,
    class_names: str | Path | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Evaluates a trained network on every image of a split, each counted once.

    Args:
      split: "test", "validation" or "train" (without held-out images).
      data: another data set by name, prepared in the same way, with labels matched by class name; it may lack
        classes and splits. By default the run's own, which is refused if its images have changed.

    The other arguments are those of `loaded.load`. Returns the scores of `training.metrics.compute` with
    step and protocol, and `skipped` if images could not be read; and the predictions, one row per image in
    the order of the split.
    """
    network = load(
        workdir,
        model=model,
        weights=weights,
        checkpoint=checkpoint,
        protocol=protocol,
        class_names=class_names,
    )
    return evaluate_loaded(network, split=split, data=data)


def evaluate_loaded(
    trained: Loaded, *, split: str = "test", data: str | Path | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """As `evaluate`, for a loaded network."""
    facts = trained.facts
    run = Run.open(trained.name) if trained.config else None
    # An official test split needs no look at train.
    splits = run if split != "test" or (run and run.config().data.test_split != "test") else None
    config = with_data(trained.config, data, facts.image_shape, splits)
    if not config:
        hint = "name a data set, as in --data=folder:PATH"
        raise UserError(f"weights {trained.name} come without images; {hint}")
    config = config_lib.assign(config, {"eval_protocol": trained.protocol.spec})
    facts = labelled(facts, run, config, split)
    network = Network(config, parallel.make_mesh("", None), facts, trained.protocol, trained.model)
    variables = parallel.put(trained.variables, network.replicated)
    with cpu.chosen(config.cpu_kernels):
        with if_moved(config, NAME_IT, "data" if data else ""):
            evaluator = Evaluator(network, split, None if data else run)
        scores, predictions = evaluator(variables)
    return {"step": trained.step, "split": split, "protocol": config.eval_protocol, **scores}, predictions


def test_scores(
    experiment: Experiment,
    run: Run,
    step: int,
    weights: Mapping[str, Any],
    after_each: Callable[[], None],
    tell_skipped: Callable[[str, Batches], object],
) -> dict[str, Any]:
    """The test scores of a finished run, evaluated once and kept in test.json; {} without a test split."""
    if "test" not in experiment.train_source.splits:
        return {}
    if (scores := run.read_json("test.json")).get("step") == step:
        return scores
    evaluator = Evaluator(experiment, "test", run)
    scores = {"step": step, "split": "test", "protocol": experiment.config.eval_protocol}
    evaluated = {prefix: evaluator(variables, after_each) for prefix, variables in weights.items()}
    for prefix, (metrics_of, _) in evaluated.items():
        scores |= {f"{prefix}{name}": value for name, value in metrics_of.items()}
    tell_skipped("test", evaluator.batches)
    run.write_arrays("predictions.npz", evaluated[""][1])  # of the raw weights, as what reports show beside
    run.write_json("test.json", scores)
    run.track({"step": step, **{f"test_{name}": scores[name] for name in ("accuracy", "loss")}})
    return plain(scores)
