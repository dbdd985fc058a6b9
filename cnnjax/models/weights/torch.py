"""Torchvision's state dicts as linen variables, and back: strict, with NumPy alone, by `TorchNames`."""

import dataclasses
import itertools
import re
import warnings
from collections.abc import Mapping

import jax
import numpy as np
import numpy.typing as npt
from flax import linen as nn
from flax import traverse_util
from flax.typing import VariableDict as Variables

from cnnjax.errors import UserError, listed, visible
from cnnjax.models import create_model, init_variables, names_in_torch, variant
from cnnjax.models.variants import TorchNames

Shape = tuple[int, ...]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def convert(state_dict: Mapping[str, npt.ArrayLike], model: str) -> Variables:
    """`create_model(model)`'s {"params", "batch_stats"}, float32 NumPy arrays, of torchvision's state dict.

    There convolutions are OIHW, dense layers OI; `num_classes` must be the same. Entries of auxiliary heads
    that the model is built without are named in a warning. UserError lists every missing, unexpected and
    misshapen entry; nothing is converted then.
    """
    return convert_into(state_dict, create_model(model), variant(model).preset.input_size)


def convert_into(state_dict: Mapping[str, npt.ArrayLike], model: nn.Module, image_shape: Shape) -> Variables:
    """`convert` for a module that is already built."""
    family = names_in_torch(model)
    old, new = family.old_names or ("$^", "")
    arrays = {re.sub(old, new, name): np.asarray(value) for name, value in state_dict.items()}
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    entries = torch_entries(model, image_shape)
    shapes = {entry.name: entry.shape for entry in entries}
    extra = [k for k in arrays if k not in shapes and any(re.match(p, k) for p in family.extra)]
    if problems := misfits({k: array.shape for k, array in arrays.items() if k not in extra}, shapes):
        misfit = f"does not fit {type(model).__name__} ({len(problems)} entries)"
        raise UserError(f"the state dict {misfit}: {listed(problems, separator='; ')}")
    if extra:
        warnings.warn(visible(f"dropped, the model is built without: {listed(extra)}"), stacklevel=3)
    flat = {e.path: e.to_linen(arrays[e.name].astype(np.float32)) for e in entries}
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)


def misfits(given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    """What is missing, unexpected or of another shape, an entry each; some of each kind come first."""
    both = [name for name in wanted if name in given and given[name] != wanted[name]]
    kinds = (
        [f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in given],
        [f"unexpected {name}" for name in given if name not in wanted],
        [f"{name} is {list(given[name])}, here {list(wanted[name])}" for name in both],
    )
    return [problem for row in itertools.zip_longest(*kinds) for problem in row if problem]


def to_torch(variables: Variables, model: nn.Module) -> dict[str, np.ndarray]:
    """The torch state dict of linen variables; `convert` gives the same variables back, bit for bit."""
    flat, family = traverse_util.flatten_dict(variables), names_in_torch(model)
    entries = (torch_entry(path, np.shape(leaf), model, family) for path, leaf in flat.items())
    return {e.name: e.to_torch(np.asarray(flat[e.path])) for e in entries}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf here, and its name and `here.reshape(split).transpose(axes).reshape(shape)` there."""

    path: tuple[str, ...]
    here: Shape
    split: Shape
    axes: tuple[int, ...]
    name: str
    shape: Shape

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(leaf.reshape(self.split).transpose(self.axes)).reshape(self.shape)

    def to_linen(self, array: np.ndarray) -> np.ndarray:
        turned = array.reshape([self.split[axis] for axis in self.axes])
        return np.ascontiguousarray(turned.transpose(np.argsort(self.axes))).reshape(self.here)


def torch_entries(model: nn.Module, image_shape: Shape) -> list[Entry]:
    """The entries of every leaf of a model."""
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), image_shape))
    flat, family = traverse_util.flatten_dict(shapes), names_in_torch(model)
    return [torch_entry(path, leaf.shape, model, family) for path, leaf in flat.items()]


def torch_entry(path: tuple[str, ...], shape: Shape, model: nn.Module, family: TorchNames) -> Entry:
    """The entry of the leaf at ('params', 'stem', 'conv', 'kernel')."""
    module, leaf = "/".join(path[1:-1]), path[-1]
    if leaf not in LEAVES:  # a scale [C] of a name of its own, [C, 1, 1] there: ConvNeXt's layer_scale
        return Entry(path, shape, shape, (0,), family.rename(f"{module}/{leaf}", model), (*shape, 1, 1))
    name = f"{family.rename(module, model)}.{LEAVES[leaf]}"
    if leaf != "kernel":
        return Entry(path, shape, shape, (0,), name, shape)
    split = shape
    if module in family.flattened:  # [H * W * C, O]
        height, width = family.flattened[module]
        split = (height, width, shape[0] // (height * width), shape[1])
    *rest, inputs, outputs = range(len(split))
    axes = (outputs, inputs, *rest)  # HWIO to OIHW, IO to OI
    there = tuple(split[axis] for axis in axes) if split == shape else shape[::-1]
    convolved = any(re.fullmatch(pattern, module) for pattern in family.convolved)
    return Entry(path, shape, split, axes, name, (*there, 1, 1) if convolved else there)
