"""The checkpoints of a run folder as a user sees them: listed, verified, pruned."""

from pathlib import Path
from typing import Any

from cnnjax.runs import manifest
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.folder import Run


def describe(workdir: str | Path, *, verify: bool = False) -> list[dict[str, Any]]:
    """One row a checkpoint: step, files, bytes, accuracy in per cent, state.

    Args:
      workdir: a run folder; another process may be training in it.
      verify: whether every file is read and its SHA-256 compared, or the manifest alone is read.
    """
    saved = Checkpoints(Run.open(workdir).path / "checkpoints")
    try:
        return [_row(saved, step, verify) for step in saved.steps()]
    finally:
        saved.close()


def _row(saved: Checkpoints, step: int, verify: bool) -> dict[str, Any]:
    try:
        found = (manifest.verify if verify else manifest.read)(saved.directory / str(step))
    except ValueError as error:
        return {"step": step, "files": "", "bytes": "", "accuracy": "", "state": f"damaged: {error}"}
    accuracy = found["metrics"].get("accuracy")
    return {
        "step": step,
        "files": len(found["files"]),
        "bytes": sum(file["bytes"] for file in found["files"].values()),
        "accuracy": "" if accuracy is None else f"{100 * accuracy:.2f}",
        "state": "sound" if verify else "not checked",
    }


def prune(workdir: str | Path, keep: int) -> list[str]:
    """Removes old and damaged checkpoints of a run, see `Checkpoints.prune`; returns their names.

    Raises:
      UserError: where the folder is no run's, or another process trains in it.
    """
    run = Run.open(workdir)
    run.lock()
    saved = Checkpoints(run.path / "checkpoints")
    try:
        return saved.prune(keep)
    finally:
        saved.close()
        run.close()
