"""The variables that a training starts from: of another run, or of a weights file."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cnnjax.errors import UserError
from cnnjax.models import init_variables
from cnnjax.models.weights import files, torch
from cnnjax.runs.checkpoints import Checkpoints

HEAD = "head"


def initial_variables(
    source: str | Path, model: nn.Module, image_shape: tuple[int, ...], *, head: str = "keep"
) -> dict[str, Any]:
    """The params and batch_stats of a run folder, or of a file with torch's names, for a model.

    Args:
      source: a run folder (its best checkpoint), or a .safetensors, .pth or .pt file.
      model: what they must fit, leaf by leaf.
      image_shape: [H, W, C].
      head: "keep", or "new": the leaves of `head` are left out, for another number of classes.

    Returns:
      {"params", "batch_stats"} of float32 NumPy arrays; without `head` where it is new.

    Raises:
      UserError: where there is nothing at `source`, or naming every leaf that does not fit.
    """
    path = Path(source)
    if (path / "checkpoints").is_dir():
        variables = _of_run(path)
    elif path.is_file():
        variables = _of_file(path, model, image_shape, head)
    else:
        raise UserError(f"{source} is neither a run folder nor a weights file")
    found = traverse_util.flatten_dict(variables)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), image_shape))
    wanted = traverse_util.flatten_dict(shapes)
    if head == "new":
        found, wanted = ({p: x for p, x in flat.items() if HEAD not in p} for flat in (found, wanted))
    problems = [f"missing {'/'.join(p[1:])}" for p in wanted if p not in found]
    problems += [f"unexpected {'/'.join(p[1:])}" for p in found if p not in wanted]
    problems += [
        f"{'/'.join(p[1:])} is {list(found[p].shape)}, here {list(wanted[p].shape)}"
        for p in wanted
        if p in found and found[p].shape != wanted[p].shape
    ]
    if problems:
        hint = "; for other classes draw the head anew with config.init_head=new"
        only_head = all(HEAD in problem for problem in problems)
        raise UserError(f"{source} does not fit the model: {'; '.join(problems)}{hint if only_head else ''}")
    empty = {"params": {}, "batch_stats": {}}
    return empty | traverse_util.unflatten_dict({p: np.asarray(x) for p, x in found.items()})


def _of_run(path: Path) -> dict[str, Any]:
    saved = Checkpoints(path / "checkpoints")
    try:
        state = saved.read(saved.find("best"))["state"]
    finally:
        saved.close()
    return {"params": state["params"], "batch_stats": state.get("batch_stats") or {}}


def _of_file(path: Path, model: nn.Module, image_shape: tuple[int, ...], head: str) -> dict[str, Any]:
    state_dict = files.read(path)
    if head == "new":  # read it with the file's own classes, then leave the head out
        entries = torch.torch_entries(model, image_shape)
        bias = next(e.name for e in entries if e.path[-2:] == (HEAD, "bias"))
        if bias in state_dict:
            model = model.clone(num_classes=len(state_dict[bias]))
    return torch.convert_into(state_dict, model, image_shape)
