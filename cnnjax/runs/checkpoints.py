"""Saving and restoring the training state with orbax: complete or absent, the newest few and the best.

A save is written to `.STEP.part`, gets its manifest (see `manifests`) and is renamed to `STEP` at last; only
then are older ones removed. One that is damaged is set aside as `STEP.damaged`, never written over.
"""

import concurrent.futures
import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cnnjax.errors import UserError, unknown
from cnnjax.runs import manifest as manifests

SPARE_BYTES = 2**19  # what orbax and the manifest write beside the arrays, with some to spare


class Checkpoints:
    """The checkpoints of one run, `directory/STEP/`.

    A checkpoint holds a tree of arrays, the position of the data and the SHA-256 of each file, and becomes
    visible only when all are written. `keep` of the newest survive, and the one with the highest `accuracy`
    among those saved with metrics. Opening, reading and listing change nothing, so that a run under way can
    be read.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        self.directory, self.keep = Path(directory).absolute(), keep
        self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future | None = None

    def save(
        self,
        step: int,
        tree: Any,
        position: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts a save in the background, when the one before is complete.

        Raises:
          OSError: where this save, or the one before, could not be written; the older ones are still there.
        """
        self.wait()
        with self._disk_errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._check_space(tree)
            part = self.directory / f".{step}.part"
            if jax.process_index() == 0:
                shutil.rmtree(part, ignore_errors=True)
            part.mkdir(exist_ok=True)
            self._saver.save(part / "tree", args=ocp.args.StandardSave(tree))
        facts = {"step": step, "position": position, "metrics": metrics or {}}
        self._pending = self._thread.submit(self._complete, part, facts)

    def _check_space(self, tree: Any) -> None:
        """Raises an OSError where the disk is too full for a tree; orbax prints a stack for each array."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + SPARE_BYTES
        if shutil.disk_usage(self.directory).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds to a checkpoint what it is judged by, which was not known when it was saved.

        Raises:
          OSError: where that, or the save under way, could not be written.
        """
        self.wait()
        if jax.process_index() == 0:
            with self._disk_errors():
                manifests.add(self.directory / str(step), {"metrics": metrics})
                self._remove_old()

    def _complete(self, part: Path, facts: dict[str, Any]) -> None:
        """Waits for the arrays, adds the manifest, makes the checkpoint visible and removes older ones."""
        try:
            self._saver.wait_until_finished()
            if jax.process_index() == 0:
                manifests.write(part, facts)
                place = self.directory / str(facts["step"])
                if place.exists():
                    self._set_aside(place)
                part.rename(place)
                self._sync_directory()
                self._remove_old()
        except BaseException:
            if jax.process_index() == 0:
                shutil.rmtree(part, ignore_errors=True)  # a full disk needs the space
            raise

    def _sync_directory(self) -> None:
        handle = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _remove_old(self) -> None:
        kept = {*self.steps()[-self.keep :], self.best_metrics().get("step")}
        for step in self.steps():
            if step not in kept:
                self._remove(self.directory / str(step))

    def _remove(self, folder: Path) -> None:
        """Renames first: a killed process leaves it whole or gone."""
        gone = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)

    def _set_aside(self, folder: Path) -> Path:
        names = (folder.with_name(f"{folder.name}.damaged{n or ''}") for n in range(1000))
        return folder.rename(next(name for name in names if not name.exists()))

    def restore(self, like: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest sound checkpoint, or that of `step`, as (step, tree, position); None without any.

        Args:
          like: a tree of arrays or of `ShapeDtypeStruct`s whose shapes, dtypes and shardings are restored.
          step: a step of `steps()`; None is the newest, and where that is damaged the one before.

        Raises:
          UserError: where nothing that was saved can be read, naming what is wrong with each.
        """
        damaged = []
        for candidate in self.steps()[::-1] if step is None else [step]:
            folder = self.directory / str(candidate)
            try:
                manifest = manifests.verify(folder)
                like = jax.tree.map(ocp.tree.to_shape_dtype_struct, like)
                tree = self._saver.restore(folder / "tree", args=ocp.args.StandardRestore(like))
            except Exception as error:  # orbax raises many kinds for a folder that does not fit
                damaged.append(f"{candidate}: {_line(error)}")
                warnings.warn(f"checkpoint {damaged[-1]}; passed over", stacklevel=2)
                continue
            return candidate, tree, manifest["position"]
        if damaged:
            raise UserError(f"no checkpoint in {self.directory} can be read: {damaged}")
        return None

    def clear_unfinished(self) -> list[int]:
        """Removes what a killed process left half written and sets damaged ones aside; returns their steps.

        Only for the process that trains in the folder. Where none is sound, all stay where they are.
        """
        if jax.process_index() != 0:
            return []
        for part in self.directory.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        damaged = [step for step in self.steps() if self.problem(step)]
        if len(damaged) == len(self.steps()):
            return []
        for step in damaged:
            self._set_aside(self.directory / str(step))
        return damaged

    def problem(self, step: int) -> str:
        """What is wrong with a checkpoint, in one line; '' where each file is as it was saved."""
        try:
            manifests.verify(self.directory / str(step))
        except ValueError as error:
            return str(error)
        return ""

    def prune(self, keep: int) -> list[str]:
        """Removes all but the `keep` newest sound checkpoints and the best; returns the names removed.

        Damaged ones go too, unless no sound one is left.
        """
        sound = [step for step in self.steps() if not self.problem(step)]
        if not sound:
            return []
        kept = {*sound[-keep:], self.best_metrics().get("step")} & set(sound)
        gone = [self.directory / str(step) for step in self.steps() if step not in kept]
        gone += sorted(self.directory.glob("*.damaged*"))
        for folder in gone:
            self._remove(folder)
        return [folder.name for folder in gone]

    def read(self, step: int) -> dict[str, Any]:
        """The tree of one checkpoint as nested dicts of NumPy arrays, whatever devices it was saved on.

        Raises:
          UserError: where it is damaged.
        """
        folder = self.directory / str(step)
        try:
            manifests.verify(folder)
            reader = ocp.PyTreeCheckpointer()
            tree = reader.metadata(folder / "tree").item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return reader.restore(folder / "tree", restore_args=as_numpy)
        except Exception as error:  # orbax raises many kinds for a damaged folder
            reason = _line(error)
            raise UserError(f"checkpoint {step} in {self.directory} cannot be read: {reason}") from None

    def variables(self, checkpoint: str, weights: str) -> tuple[int, dict[str, Any]]:
        """The step that `find` names, and its params and batch_stats as NumPy arrays.

        Args:
          weights: "raw", or "ema" for the moving average.

        Raises:
          UserError: where it is damaged, or keeps no moving average.
        """
        if weights not in ("raw", "ema"):
            raise unknown("weights", weights, ["raw", "ema"])
        step = self.find(checkpoint)
        state = self.read(step)["state"]
        if weights == "ema" and not state.get("ema"):
            raise UserError(
                f"weights=ema: {self.directory.parent} keeps no moving average (config.ema_decay is 0)"
            )
        tree = state["ema"] if weights == "ema" else state
        return step, {"params": tree["params"], "batch_stats": tree.get("batch_stats") or {}}

    def find(self, checkpoint: str) -> int:
        """The step that "last" (the newest sound one), "best" (the highest accuracy) or a number means.

        Raises:
          UserError: naming the checkpoints there are.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.directory} holds no checkpoint yet; train it with `cnnjax train`")
        if checkpoint == "last":
            return self._newest_sound()
        named = {"best": self.best_metrics().get("step", steps[-1]), "last": steps[-1]}
        named |= {str(step): step for step in steps}
        if checkpoint not in named:
            raise unknown("checkpoint", checkpoint, named)
        return named[checkpoint]

    def _newest_sound(self) -> int:
        for step in self.steps()[::-1]:
            problem = self.problem(step)
            if not problem:
                return step
            warnings.warn(f"checkpoint {step}: {problem}; passed over", stacklevel=3)
        raise UserError(f"no checkpoint in {self.directory} can be read; the newest: {problem}")

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        folders = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(f.name) for f in folders if f.name.isascii() and f.name.isdigit())

    def metrics(self, step: int) -> dict[str, float]:
        """What a checkpoint was saved with; {} where that was nothing, or cannot be read."""
        try:
            return manifests.read(self.directory / str(step)).get("metrics", {})
        except ValueError:
            return {}

    def best_metrics(self) -> dict[str, float]:
        """{"step", "accuracy", ...} of the checkpoint with the highest accuracy; {} without any."""
        found = {step: self.metrics(step) for step in self.steps()}
        rows = [{"step": step, **metrics} for step, metrics in found.items() if "accuracy" in metrics]
        return max(rows, key=lambda row: (row["accuracy"], -row["step"]), default={})

    def check(self) -> None:
        """Raises the error of a save in the background, if there is one yet; costs nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all saves are complete; raises their errors."""
        if self._pending is not None:
            try:
                with self._disk_errors():
                    self._pending.result()
            finally:
                self._pending = None

    def settled(self) -> bool:
        """Waits too, but in another thread than that which saves; whether the last save is complete."""
        pending = self._pending
        return pending is None or pending.exception() is None

    def close(self) -> None:
        """Waits, and releases the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._saver.close()

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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
