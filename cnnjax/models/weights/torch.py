"""Torchvision's state dicts as linen variables, and back: strict, with NumPy alone, by `TorchNames`."""

import dataclasses
import itertools
import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple

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
    """`convert` for a module that is already built, by the spelling of its family that fits best."""
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    leaves = _leaves(model, image_shape)
    fits = [Fit.of(arrays, family, _entries(leaves, model, family)) for family in names_in_torch(model)]
    fit = min(fits, key=lambda fit: len(fit.problems))  # the first of equally good ones
    if fit.problems:
        misfit = f"does not fit {type(model).__name__} ({len(fit.problems)} entries)"
        raise UserError(f"the state dict {misfit}: {listed(fit.problems, separator='; ')}")
    if fit.extra:
        warnings.warn(visible(f"dropped, the model is built without: {listed(fit.extra)}"), stacklevel=3)
    flat = {e.path: e.to_linen(fit.arrays[e.name].astype(np.float32)) for e in fit.entries}
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)


class Fit(NamedTuple):
    """A state dict read by one spelling."""

    arrays: Mapping[str, np.ndarray]
    entries: list["Entry"]
    extra: list[str]  # names that a model may be built without
    problems: list[str]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], family: TorchNames, entries: list["Entry"]) -> "Fit":
        old, new = family.old_names or ("$^", "")
        arrays = {re.sub(old, new, name): array for name, array in arrays.items()}
        shapes = {entry.name: entry.shape for entry in entries}
        for name in arrays.keys() & shapes.keys():
            if _whole(arrays[name].shape) == _whole(shapes[name]):
                arrays[name] = arrays[name].reshape(shapes[name])
        extra = [k for k in arrays if k not in shapes and any(re.match(p, k) for p in family.extra)]
        problems = misfits({k: array.shape for k, array in arrays.items() if k not in extra}, shapes)
        return cls(arrays, entries, extra, problems)


def misfits(given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    """What is missing, unexpected or of another shape, an entry each; some of each kind come first."""
    both = [name for name in wanted if name in given and given[name] != wanted[name]]
    kinds = (
        [f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in given],
        [f"unexpected {name}" for name in given if name not in wanted],
        [f"{name} is {list(given[name])}, here {list(wanted[name])}" for name in both],
    )
    return [problem for row in itertools.zip_longest(*kinds) for problem in row if problem]


def _whole(shape: Shape) -> Shape:
    """A shape without ones at its end: a 1x1 convolution is a dense layer, a scale [C, 1, 1] one of [C]."""
    while shape[-1:] == (1,):
        shape = shape[:-1]
    return shape


def to_torch(variables: Variables, model: nn.Module) -> dict[str, np.ndarray]:
    """The torch state dict of linen variables; `convert` gives the same variables back, bit for bit."""
    flat = traverse_util.flatten_dict(variables)
    shapes = {path: np.shape(leaf) for path, leaf in flat.items()}
    entries = _entries(shapes, model, names_in_torch(model)[0])
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
    """The entries of every leaf of a model, in the first spelling of its family."""
    return _entries(_leaves(model, image_shape), model, names_in_torch(model)[0])


def _leaves(model: nn.Module, image_shape: Shape) -> dict[tuple[str, ...], Shape]:
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), image_shape))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}


def _entries(leaves: Mapping[tuple[str, ...], Shape], model: nn.Module, family: TorchNames) -> list[Entry]:
    return [torch_entry(path, shape, model, family) for path, shape in leaves.items()]


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
    convolved = any(re.fullmatch(pattern, module) for pattern in family.convolved)
    there = tuple(split[axis] for axis in axes) if split == shape or convolved else shape[::-1]
    return Entry(path, shape, split, axes, name, (*there, 1, 1) if convolved and split == shape else there)
