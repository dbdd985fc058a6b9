"""Saving and restoring the training state with orbax: complete or absent, the newest few and the best."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from cnnjax.errors import UserError


class Checkpoints:
    """The checkpoints of one run, `directory/STEP/`.

    A checkpoint holds a tree of arrays and the position of the data, and becomes visible only when both
    are written. `keep` of the newest survive, and the one with the highest `accuracy` among those saved
    with metrics.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        best = checkpoint_managers.BestN(get_metric_fn=lambda m: m["accuracy"], n=1)
        kept = [checkpoint_managers.LatestN(n=keep), best]
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,  # what a killed process left half written
            ),
        )

    def save(
        self,
        step: int,
        tree: Any,
        position: dict[str, int],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts a save in the background; an error of the save before is raised here."""
        self._manager.check_for_errors()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardSave(tree), position=ocp.args.JsonSave(position)
            ),
            metrics=metrics,
            force=True,
        )

    def restore(self, like: Any, step: int | None = None) -> tuple[int, Any, dict[str, int]] | None:
        """The newest readable checkpoint, or that of `step`, as (step, tree, position); None without any.

        Args:
          like: a tree of arrays or of `ShapeDtypeStruct`s whose shapes, dtypes and shardings are restored.
          step: a step of `steps()`; None is the newest, and where that is damaged the one before.

        Raises:
          UserError: where nothing that was saved can be read, naming what is wrong with each.
        """
        steps = self.steps()[::-1] if step is None else [step]
        damaged = []
        for candidate in steps:
            try:
                saved = self._manager.restore(
                    candidate,
                    args=ocp.args.Composite(
                        tree=ocp.args.StandardRestore(
                            jax.tree.map(ocp.tree.to_shape_dtype_struct, like)
                        ),
                        position=ocp.args.JsonRestore(),
                    ),
                )
            except Exception as error:  # orbax raises many kinds for a damaged folder
                damaged.append(f"{candidate}: {' '.join(str(error).split())[:200]}")
                continue
            return candidate, saved["tree"], saved["position"]
        if damaged:
            raise UserError(f"no checkpoint in {self._manager.directory} can be read: {damaged}")
        return None

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_metrics(self) -> dict[str, float]:
        """{"step", "accuracy", ...} of the checkpoint with the highest accuracy; {} without any."""
        rows = [(self._manager.metrics(step), step) for step in self.steps()]
        rows = [{"step": step, **metrics} for metrics, step in rows if metrics]
        return max(rows, key=lambda row: (row["accuracy"], -row["step"]), default={})

    def wait(self) -> None:
        """Returns when all saves are complete; raises their errors."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self._manager.close()
