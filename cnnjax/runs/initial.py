"""The variables that a training starts from: those of another run, or of a weights file."""

from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cnnjax.errors import UserError
from cnnjax.models import init_variables
from cnnjax.models.weights import files
from cnnjax.models.weights.torch import Variables, convert_into, misfits, torch_entries
from cnnjax.runs.checkpoints import Checkpoints

HEAD = "head"


def initial_variables(
    source: str | Path, model: nn.Module, image_shape: tuple[int, ...], *, head: str = "keep"
) -> Variables:
    """The params and batch_stats of a run folder, or of a file with torch's names, for a model.

    Args:
      source: a run folder (its best checkpoint), or a weights file, see `files.read`.
      model: what they must fit, leaf by leaf.
      image_shape: [H, W, C].
      head: "keep", or "new": the leaves of `head` are left out, for another number of classes.

    Returns:
      {"params", "batch_stats"} of float32 NumPy arrays; without `head` where it is new.

    Raises:
      UserError: if nothing is at `source`, or naming every leaf that does not fit.
    """
    path = Path(source)
    variables: Variables
    if (path / "checkpoints").is_dir():
        _, variables = Checkpoints(path / "checkpoints").variables("best", "raw")
    elif path.is_file():
        variables = _read_file(path, model, image_shape, head)
    else:
        raise UserError(f"{source} is neither a run folder nor a weights file")
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), image_shape))
    given, wanted = (traverse_util.flatten_dict(tree) for tree in (variables, shapes))
    if head == "new":
        given, wanted = ({p: x for p, x in flat.items() if HEAD not in p} for flat in (given, wanted))
    problems = misfits(*({"/".join(p[1:]): x.shape for p, x in flat.items()} for flat in (given, wanted)))
    if problems:
        hint = "; for other classes draw the head anew with config.init_head=new"
        only_head = all(HEAD in problem for problem in problems)
        raise UserError(f"{source} does not fit the model: {'; '.join(problems)}{hint if only_head else ''}")
    given = {p: np.asarray(x) for p, x in given.items()}
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(given)


def _read_file(path: Path, model: nn.Module, image_shape: tuple[int, ...], head: str) -> Variables:
    state_dict = files.read(path)
    if head == "new":  # read it with the file's own classes, then leave the head out
        entries = torch_entries(model, image_shape)
        bias = next(e.name for e in entries if e.path[-2:] == (HEAD, "bias"))
        if bias in state_dict:
            model = model.clone(num_classes=len(state_dict[bias]))
    return convert_into(state_dict, model, image_shape)
