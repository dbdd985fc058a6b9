"""Saving and restoring the training state with orbax: complete or absent, the newest few and the best."""

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from cnnjax.errors import UserError, unknown


class Checkpoints:
    """The checkpoints of one run, `directory/STEP/`.

    A checkpoint holds a tree of arrays and the position of the data, and becomes visible only when both
    are written. `keep` of the newest survive, and the one with the highest `accuracy` among those saved
    with metrics.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        self.directory = Path(directory).absolute()
        best = checkpoint_managers.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False)
        kept = [checkpoint_managers.LatestN(n=keep), best]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=_accuracy,  # without it orbax does not write the metrics down
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
        """Starts a save in the background.

        Raises:
          OSError: where this save, or the one before, could not be written; the older ones are still there.
        """
        with self._disk_errors():
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
                        tree=ocp.args.StandardRestore(jax.tree.map(ocp.tree.to_shape_dtype_struct, like)),
                        position=ocp.args.JsonRestore(),
                    ),
                )
            except Exception as error:  # orbax raises many kinds for a damaged folder
                damaged.append(f"{candidate}: {' '.join(str(error).split())[:200]}")
                warnings.warn(f"checkpoint {damaged[-1]}; passed over", stacklevel=2)
                continue
            return candidate, saved["tree"], saved["position"]
        if damaged:
            raise UserError(f"no checkpoint in {self.directory} can be read: {damaged}")
        return None

    def read(self, step: int) -> dict[str, Any]:
        """The tree of one checkpoint as nested dicts of NumPy arrays, whatever devices it was saved on.

        Raises:
          UserError: where it is damaged.
        """
        folder = self.directory / str(step) / "tree"
        try:
            reader = ocp.PyTreeCheckpointer()
            tree = reader.metadata(folder).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return reader.restore(folder, restore_args=as_numpy)
        except Exception as error:  # orbax raises many kinds for a damaged folder
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"checkpoint {step} in {self.directory} cannot be read: {reason}") from None

    def find(self, checkpoint: str) -> int:
        """The step that "last", "best" (the highest accuracy) or a number means.

        Raises:
          UserError: naming the checkpoints there are.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.directory} holds no checkpoint yet; train it with `cnnjax train`")
        named = {"last": steps[-1], "best": self.best_metrics().get("step", steps[-1])}
        named |= {str(step): step for step in steps}
        if checkpoint not in named:
            raise unknown("checkpoint", checkpoint, named)
        return named[checkpoint]

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
        with self._disk_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits, and releases the threads."""
        with self._disk_errors():
            self._manager.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Whatever orbax raises for a failed write, as an OSError that names the folder."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())
            full = "RESOURCE_EXHAUSTED" in reason or "No space left" in reason
            code = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
            reason = os.strerror(code) if full else reason[:300]
            raise OSError(code, reason, str(self.directory)) from error


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]
