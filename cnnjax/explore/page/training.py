"""The checkpoints of a run as the network learned: filters, maps and predictions of each."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.sources.source import evenly_spaced
from cnnjax.errors import UserError, by_name
from cnnjax.explore.page.operations import Answer
from cnnjax.explore.page.views import Views, filters_of
from cnnjax.models import init_variables, variant
from cnnjax.models.forward import Variables
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.folder import Run
from cnnjax.runs.pretrained import IN_A_RUN
from cnnjax.training.steps import run_init

CURVE_POINTS = 400  # of each curve that are drawn
CURVES = ("loss", "accuracy", "validation_loss", "validation_accuracy")


class Training:
    """The answers about the run that the network comes from; without one they are a UserError."""

    def __init__(self, views: Views, weights: str = "raw"):
        self.views, self.trained, self._lock = views, views.trained, threading.Lock()
        self.weights = weights if weights in IN_A_RUN else "raw"  # of a source, or a run's folder

    @functools.cached_property
    def _run(self) -> Run:
        if self.trained.config is None or not self.trained.step:
            raise UserError("these weights come without checkpoints; start with --workdir=DIR of a run")
        return Run.open(self.trained.name)

    def _steps(self) -> dict[str, int]:
        """The steps of the checkpoints, and 0 if the start can be drawn again."""
        steps = Checkpoints(self._run.path / "checkpoints").steps()
        config = self.trained.config
        drawn = config and not config.init_from and not variant(config.model).from_images and 0 not in steps
        return {str(step): step for step in ([0] if drawn else []) + steps}

    def run(self) -> Answer:
        """The checkpoints, and the curves of the run."""
        checkpoints = Checkpoints(self._run.path / "checkpoints")
        rows, curves = self._run.metrics(), {}
        for name in CURVES:
            points = [[row["step"], row[name]] for row in rows if np.isfinite(row.get(name, np.nan))]
            if points:
                curves[name] = [points[i] for i in evenly_spaced(len(points), CURVE_POINTS)]
        scores = {step: checkpoints.accuracy(step, self.weights) for step in self._steps().values()}
        metrics = [{} if score is None else {"accuracy": score} for score in scores.values()]
        steps = [{"step": step, "metrics": each} for step, each in zip(scores, metrics, strict=True)]
        return {"steps": steps, "curves": curves}

    @functools.lru_cache(maxsize=3)  # noqa: B019, one object lives as long as its process
    def _variables(self, step: int) -> Variables:
        """Those of a checkpoint, raw or averaged as the page was asked for, or of the seed for the start."""
        if step == 0 and (config := self.trained.config) is not None:
            key, shape = jax.random.key(config.seed), self.trained.input_shape
            return run_init(functools.partial(init_variables, self.trained.model, key, shape))
        _, tree = Checkpoints(self._run.path / "checkpoints").variables(str(step), self.weights)
        return jax.tree.map(jnp.asarray, tree)

    def step(self, step: int, token: str, stage: int) -> Answer:
        """At a checkpoint: the first filters, the maps of a stage, and the prediction for an image."""
        by_name("step", str(step), self._steps())
        network, views = self.views.network, self.views
        network.stage(stage)
        with self._lock:
            variables = self._variables(step)
        with network.lock:
            seen = network.pass_forward(network.image(token), variables)
        answer = {
            "step": step,
            "predictions": views.top(seen.probabilities),
            "maps": views.maps_of(seen, stage),
        }
        first = next((row for row in network.rows if row.kernel is not None and row.window), None)
        kernel = first and network.stages.kernel(first, variables)
        return answer | {"filters": None if kernel is None else filters_of(np.asarray(kernel), 0, 0)}
