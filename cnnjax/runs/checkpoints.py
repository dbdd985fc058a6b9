"""Saving and restoring the training state with orbax: complete or absent, the newest few and the best ones.

A save is written to `.STEP.part`, gets its manifest (see `manifest`) and is renamed to `STEP` at last; only
then are older ones removed. A damaged one is renamed to `STEP.damaged`, never overwritten.
"""

import concurrent.futures
import contextlib
import errno
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from cnnjax.errors import UserError, by_name, one_line, unknown
from cnnjax.runs import devices
from cnnjax.runs import manifest as manifests
from cnnjax.runs.folder import Run
from cnnjax.runs.manifest import Manifest, Numbers

ACCURACY = {"raw": "accuracy", "ema": "ema_accuracy"}  # by weights, what a checkpoint of them is judged by
SPARE_BYTES = 2**19  # what orbax and the manifest write beside the arrays, with some to spare
Tree = Any  # arrays, or their `ShapeDtypeStruct`s, in dicts and data classes
_T = TypeVar("_T")


class Checkpoints:
    """The checkpoints of one run, to read: `directory/STEP/` holds a tree of arrays and its manifest."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).absolute()

    def folder(self, step: int) -> Path:
        """The folder of a step."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        if not os.path.lexists(self.directory):
            return []
        if not self.directory.is_dir():
            raise UserError(f"{self.directory} is not a folder; restore it, or train in another run folder")
        names = os.listdir(self.directory)
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,17}", name))

    def metrics(self, step: int) -> Numbers:
        """What a checkpoint was saved with; {} if that was nothing, or cannot be read."""
        try:
            return manifests.read(self.folder(step))["metrics"]
        except ValueError:
            return {}

    def accuracy(self, step: int, weights: str = "raw") -> float | None:
        """The accuracy on validation of a checkpoint's "raw" weights or their "ema"; None if it has none."""
        metrics = self.metrics(step)
        # Before each kind of weights had its own, a manifest held the higher one alone.
        return metrics.get(ACCURACY[weights], metrics.get("accuracy"))

    def best(self, weights: str = "raw") -> int | None:
        """The step of the checkpoint whose weights have the highest accuracy; None without any."""
        scores = [
            (score, -step) for step in self.steps() if (score := self.accuracy(step, weights)) is not None
        ]
        return -max(scores)[1] if scores else None

    def unreadable(self) -> dict[int, str]:
        """By step what is wrong with its manifest, of those that cannot be read."""
        problems: dict[int, str] = {}
        for step in self.steps():
            try:
                manifests.read(self.folder(step))
            except ValueError as error:
                if os.path.lexists(self.folder(step)):  # else it was pruned meanwhile
                    problems[step] = one_line(error)
        return problems

    def problem(self, step: int) -> str:
        """What is wrong with a checkpoint, in one line; '' if each file is as it was saved."""
        try:
            manifests.verify(self.folder(step))
        except ValueError as error:
            return str(error)
        return ""

    def find(self, checkpoint: str | int, weights: str = "raw") -> int:
        """The step that "last" (the newest sound one), "best" (the highest accuracy) or a number means.

        Without any accuracy the best is the last.
        """
        checkpoint = str(checkpoint)
        if not (steps := self.steps()):
            raise UserError(f"{self.directory} contains no checkpoint yet; run `cnnjax train`")
        if checkpoint == "best" and (best := self.best(weights)) is not None:
            for step, problem in self.unreadable().items():
                warnings.warn(f"checkpoint {step}: {problem}; skipped", stacklevel=3)
            return best
        if checkpoint in ("best", "last"):
            return self._newest(lambda step: manifests.verify(self.folder(step)))[0]
        named = {"best": steps[-1], "last": steps[-1], **{str(step): step for step in steps}}
        return by_name("checkpoint", checkpoint, named)

    def _newest(self, read: Callable[[int], _T], most: float = math.inf) -> tuple[int, _T]:
        """The newest step up to `most` that can be read, and what was read; warns of damaged ones."""
        problems: dict[int, str] = {}
        while steps := [step for step in self.steps() if step <= most and step not in problems]:
            try:
                return steps[-1], read(steps[-1])
            except Exception as error:  # orbax raises many kinds for a folder that does not fit
                if os.path.lexists(self.folder(steps[-1])):  # else it was pruned meanwhile: looks again
                    problems[steps[-1]] = one_line(error)
                    warnings.warn(f"checkpoint {steps[-1]}: {one_line(error)}; skipped", stacklevel=4)
        raise UserError(f"no checkpoint in {self.directory} can be read: {problems}")

    def restore(self, like: Tree, most: float = math.inf) -> tuple[int, Tree, dict[str, int | float]] | None:
        """The newest sound checkpoint, of at most step `most`, as (step, tree, position); None without any.

        `like` is a tree of arrays or of `ShapeDtypeStruct`s with the shapes, dtypes and shardings to restore.
        If nothing that was saved can be read, a UserError names what is wrong with each.
        """

        def read(step: int) -> tuple[Manifest, Tree]:
            manifest = manifests.verify(self.folder(step))
            target = ocp.args.StandardRestore(jax.tree.map(ocp.tree.to_shape_dtype_struct, like))
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
                return manifest, reader.restore(self.folder(step) / "tree", args=target)

        if not any(step <= most for step in self.steps()):
            return None
        step, (manifest, tree) = self._newest(read, most)
        return step, tree, dict(manifest["position"])

    def read(self, step: int) -> dict[str, Tree]:
        """The tree of one checkpoint as nested dicts of NumPy arrays, whatever devices it was saved on."""
        devices.check()  # orbax starts them
        try:
            manifests.verify(self.folder(step))
            with ocp.PyTreeCheckpointer() as reader:
                tree = reader.metadata(self.folder(step) / "tree").item_metadata.tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                return reader.restore(self.folder(step) / "tree", restore_args=as_numpy)
        except Exception as error:  # orbax raises many kinds for a damaged folder
            line = f"checkpoint {step} in {self.directory} cannot be read: {one_line(error)}"
            raise UserError(line) from None

    def variables(self, checkpoint: str | int, weights: str) -> tuple[int, dict[str, Tree]]:
        """The step that `find` names, and its "raw" params and batch_stats, or their "ema", in NumPy."""
        if weights not in ACCURACY:
            raise unknown("weights", weights, ACCURACY)
        while True:
            step = self.find(checkpoint, weights)
            try:
                state = self.read(step)["state"]
                break
            except UserError:
                if os.path.lexists(self.folder(step)):
                    raise
                # It was pruned meanwhile by the process that trains: there is a newer one, or a better.
        if weights == "ema" and not state.get("ema"):
            run = self.directory.parent
            raise UserError(f"weights=ema: {run} has no average (config.ema_decay and swa_start are 0)")
        tree = state["ema"] if weights == "ema" else state
        return step, {"params": tree["params"], "batch_stats": tree.get("batch_stats") or {}}


class Saver(Checkpoints):
    """The checkpoints of the run that this process trains; the `keep` newest and the best ones survive."""

    def __init__(self, directory: str | Path, *, keep: int = 2):
        super().__init__(directory)
        self.keep = keep
        self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, step: int, tree: Tree, position: Numbers) -> None:
        """Starts a save in the background, when the one before is complete; `add_metrics` judges it later.

        An OSError if this save, or the one before, could not be written; the older ones are still there.
        """
        self.wait()
        with self._disk_errors():
            self.directory.mkdir(exist_ok=True)  # not its parents: a run folder that is gone stays gone
            needed = SPARE_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
            if shutil.disk_usage(self.directory).free < needed:  # orbax would print a stack for each array
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            part = self.directory / f".{step}.part"
            if jax.process_index() == 0:
                shutil.rmtree(part, ignore_errors=True)
            part.mkdir(exist_ok=True)
            self._saver.save(part / "tree", args=ocp.args.StandardSave(tree))
        self._pending = self._thread.submit(self._complete, part, step, position)

    def _complete(self, part: Path, step: int, position: Numbers) -> None:
        """Waits for the arrays, adds the manifest, makes the checkpoint visible and removes older ones."""
        try:
            self._saver.wait_until_finished()
            if jax.process_index() == 0:
                manifests.write(part, step, position)
                if self.folder(step).exists():
                    self._set_aside(step)
                part.rename(self.folder(step))
                _sync(self.directory)
                self._remove_old()
        except BaseException:
            if jax.process_index() == 0:
                shutil.rmtree(part, ignore_errors=True)  # a full disk needs the space
            raise

    def add_metrics(self, step: int, metrics: Numbers) -> None:
        """Adds to a checkpoint what it is judged by, which was not known when it was saved."""
        self.wait()
        if jax.process_index() == 0:
            with self._disk_errors():
                manifests.set_metrics(self.folder(step), metrics)
                self._remove_old()

    def _remove_old(self) -> None:
        # The one that cannot be read may be the best.
        kept = {*self.steps()[-self.keep :], *map(self.best, ACCURACY), *self.unreadable()}
        for step in self.steps():
            if step not in kept:
                _remove(self.folder(step))

    def _set_aside(self, step: int) -> None:
        names = (self.directory / f"{step}.damaged{n or ''}" for n in range(1000))
        self.folder(step).rename(next(name for name in names if not name.exists()))

    def clear_unfinished(self) -> list[int]:
        """Removes half-written checkpoints, sets damaged ones aside unless all are; returns their steps."""
        if jax.process_index() != 0:
            return []
        for part in self.directory.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        damaged = [step for step in self.steps() if self.problem(step)]
        if len(damaged) == len(self.steps()):
            return []
        for step in damaged:
            self._set_aside(step)
        return damaged

    def prune(self, keep: int) -> list[str]:
        """Removes all but the `keep` newest sound checkpoints and the best ones of these; says which."""
        if not (sound := [step for step in self.steps() if not self.problem(step)]):
            return []
        kept = {*sound[-keep:], *map(self.best, ACCURACY)} & set(sound)
        gone = [self.folder(step) for step in self.steps() if step not in kept]
        gone += sorted(self.directory.glob("*.damaged*"))
        for folder in gone:
            _remove(folder)
        return [folder.name for folder in gone]

    def check(self) -> None:
        """Raises the error of a save in the background, if there is one yet; costs nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all saves are complete; raises their errors."""
        try:
            with self._disk_errors():
                if self._pending is not None:
                    self._pending.result()
        finally:
            self._pending = None  # at last, as another thread asks for `settled`

    def settled(self) -> bool:
        """Whether the last save is complete, for another thread than that which saves; it waits too."""
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
        """Turns whatever orbax raises for a failed write into an OSError that names the folder."""
        try:
            yield
        except Exception as error:
            code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            reason = one_line(error, 300)
            if re.search("RESOURCE_EXHAUSTED|No space left", one_line(error, None)):
                code, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
            raise OSError(code, reason, str(self.directory)) from error


def describe(workdir: str | Path, *, verify: bool = False) -> list[dict[str, int | str]]:
    """One row a checkpoint of a run: step, files, bytes, accuracy in per cent also of the average, state.

    Another process may be training in the folder. Unless `verify`, the manifests alone are read.
    """
    saved = Checkpoints(Run.open(workdir).path / "checkpoints")
    rows = [_row(step, saved.folder(step), verify) for step in saved.steps()]
    return [row for row in rows if os.path.lexists(saved.folder(int(row["step"])))]  # not pruned meanwhile


def _row(step: int, folder: Path, verify: bool) -> dict[str, int | str]:
    try:
        manifest = (manifests.verify if verify else manifests.read)(folder)
    except ValueError as error:
        blank = dict.fromkeys(("files", "bytes", *ACCURACY.values()), "")
        return {"step": step, **blank, "state": f"damaged: {error}"}
    scores = {name: manifest["metrics"].get(name) for name in ACCURACY.values()}
    return {
        "step": step,
        "files": len(manifest["files"]),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        **{name: "" if score is None else f"{100 * score:.2f}" for name, score in scores.items()},
        "state": "sound" if verify else "not checked",
    }


def prune(workdir: str | Path, keep: int) -> list[str]:
    """`Saver.prune` of a run folder that no process trains in."""
    run = Run.open(workdir)
    with contextlib.closing(run), contextlib.closing(Saver(run.path / "checkpoints")) as saved:
        run.lock()
        return saved.prune(keep)


def _remove(folder: Path) -> None:
    """Renames first: a killed process leaves it whole or gone."""
    gone = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    if gone.is_symlink() or not gone.is_dir():
        gone.unlink()
    else:
        shutil.rmtree(gone)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
