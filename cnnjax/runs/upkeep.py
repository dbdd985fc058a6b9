"""The checkpoints of a run folder as a user sees them: listed, verified, pruned."""

import contextlib
from pathlib import Path

from cnnjax.runs import manifest as manifests
from cnnjax.runs.checkpoints import Checkpoints, Saver
from cnnjax.runs.folder import Run


def describe(workdir: str | Path, *, verify: bool = False) -> list[dict[str, int | str]]:
    """One row a checkpoint: step, files, bytes, accuracy in per cent, state.

    Args:
      workdir: a run folder; another process may be training in it.
      verify: whether every file is read and its SHA-256 compared, or the manifest alone is read.
    """
    saved = Checkpoints(Run.open(workdir).path / "checkpoints")
    return [_row(step, saved.folder(step), verify) for step in saved.steps()]


def _row(step: int, folder: Path, verify: bool) -> dict[str, int | str]:
    try:
        manifest = (manifests.verify if verify else manifests.read)(folder)
    except ValueError as error:
        return {"step": step, "files": "", "bytes": "", "accuracy": "", "state": f"damaged: {error}"}
    accuracy = manifest["metrics"].get("accuracy")
    return {
        "step": step,
        "files": len(manifest["files"]),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "accuracy": "" if accuracy is None else f"{100 * accuracy:.2f}",
        "state": "sound" if verify else "not checked",
    }


def prune(workdir: str | Path, keep: int) -> list[str]:
    """Removes old and damaged checkpoints of a run, see `Saver.prune`; returns their names.

    Raises:
      UserError: if the folder is no run's, or another process trains in it.
    """
    run = Run.open(workdir)
    with contextlib.closing(run), contextlib.closing(Saver(run.path / "checkpoints")) as saved:
        run.lock()
        return saved.prune(keep)
