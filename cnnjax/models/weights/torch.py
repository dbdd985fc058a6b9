"""Torchvision's state dicts as linen variables, and back: strict, with NumPy alone, by `TorchNames`."""

import contextlib
import dataclasses
import functools
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from flax import linen as nn
from flax import traverse_util
from flax.typing import VariableDict as Variables

from cnnjax.errors import UserError, parse_call, visible
from cnnjax.models import create_model, family_table, names_in_torch, variable_shapes, variant
from cnnjax.models.net import HEAD
from cnnjax.models.variants import TorchNames
from cnnjax.models.weights.fit import Fit, Shape, first, fit

Leaves = Mapping[tuple[str, ...], Shape]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# Fields that change what a network does in training at most, or how it computes, and those of linen.
SAME_MEANING = {
    *("num_classes", "dtype", "norm_groups", "scan_blocks", "remat", "parent", "name"),
    *("dropout_rate", "drop_path_rate", "dropout"),
    *("zero_init", "std", "stds", "bias", "layer_scale_init"),  # initial values
}


def convert(state_dict: Mapping[str, npt.ArrayLike], model: str) -> Variables:
    """`create_model(model)`'s {"params", "batch_stats"}, float32 NumPy arrays, of torchvision's state dict.

    There convolutions are OIHW, dense layers OI; `num_classes` must be the same. Wrappers and prefixes of all
    names and another name of the head make no difference. A warning names the entries that are left out:
    counters, auxiliary heads that the model is built without, other networks. UserError names the first few
    that are missing, unexpected or misshapen; nothing is converted then.
    """
    return convert_into(state_dict, create_model(model), variant(model).preset.input_size)


def convert_into(
    state_dict: Mapping[str, npt.ArrayLike], model: nn.Module, image_shape: Shape, *, head: bool = True
) -> Variables:
    """`convert` for a module that is already built, by the spelling of its family that fits best.

    Without `head` the last layer, auxiliary ones too, is left out and may be of any size there, or missing.
    """
    return match(state_dict, model, image_shape, head=head).variables()


def num_classes(state_dict: Mapping[str, npt.ArrayLike], model: nn.Module, image_shape: Shape) -> int | None:
    """The classes of a state dict, the rows of its head; None if it has none that is surely one."""
    return match(state_dict, model, image_shape).num_classes


class Match(NamedTuple):
    """A state dict and the leaves of a model."""

    model: nn.Module
    entries: list["Entry"]
    fit: Fit
    num_classes: int | None  # there

    def variables(self) -> Variables:
        """The leaves; see `convert`."""
        if problems := self.fit.problems:
            misfit = f"does not fit {type(self.model).__name__} ({len(problems)} entries)"
            raise UserError(f"the state dict {misfit}: {first(problems, '; ')}")
        if left_out := self.fit.left_out:
            warnings.warn(visible(f"left out of the state dict: {first(left_out)}"), stacklevel=3)
        arrays = self.fit.arrays
        flat = {e.path: e.to_linen(arrays[e.name].astype(np.float32)) for e in self.entries}
        return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)


def match(
    state_dict: Mapping[str, npt.ArrayLike], model: nn.Module, image_shape: Shape, *, head: bool = True
) -> Match:
    """The entries of a state dict that are the leaves of a model, as far as there are."""
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    leaves = _leaves(model, image_shape)
    found = [_match_by(arrays, model, leaves, family, head) for family in names_in_torch(model)]
    return min(found, key=lambda each: len(each.fit.problems))  # the first of equally good ones


def _match_by(
    arrays: Mapping[str, np.ndarray], model: nn.Module, leaves: Leaves, family: TorchNames, head: bool
) -> Match:
    old, new = family.old_names or ("$^", "")
    renamed = {re.sub(old, new, name): array for name, array in arrays.items()}
    entries, extra = _entries(leaves, model, family), family.extra
    wanted = {entry.name: entry.shape for entry in entries}
    last = [entry.name for entry in entries if entry.path[1] == HEAD]
    optional = [] if head else [entry.name for entry in entries if HEAD in entry.path]
    if not head:  # several layers may stand in the place of it
        extra += tuple(re.escape(name.rpartition(".")[0]) + r"\." for name in last)
        entries = [entry for entry in entries if HEAD not in entry.path]
    found = fit(renamed, wanted, last, extra, optional)
    classes = next((found.arrays[name].shape[0] for name in last if name in found.arrays), None)
    return Match(model, entries, found, classes)


def require_told(spec: str) -> None:
    """A UserError that asks for the fields of a model which weights cannot tell and its spec leaves open."""
    model, (name, _, given) = create_model(spec), parse_call(spec, "model")
    for field, values in names_in_torch(model)[0].untold.items():
        if field in given or getattr(model, field) != next(iter(values)):
            continue
        others = "".join(f", {key}={value!r}" for key, value in given.items())
        choices = [f"{name}({field}={value!r}{others}), {meaning}" for value, meaning in values.items()]
        raise UserError(f"weights do not tell the {field} of {spec}; choose {'; or '.join(choices)}")


def require_same(spec: str, model: nn.Module) -> None:
    """A UserError if weights of the model `spec` fit `model` by fields that weights cannot tell apart.

    Other fields that differ and leave the shapes as they are, such as padding, are named in a warning.
    """
    there, known = create_model(spec), family_table("TORCH_NAMES")
    if type(there) is not type(model):
        return
    for field in names_in_torch(model)[0].untold if type(model) in known else ():
        if (theirs := getattr(there, field)) != (here := getattr(model, field)):
            raise UserError(f"its weights are of {spec}, {field}={theirs!r}, not {field}={here!r}")
    differing = []
    for field in (each.name for each in dataclasses.fields(model) if each.name not in SAME_MEANING):
        theirs, here = getattr(there, field), getattr(model, field)
        if _parts(theirs) != _parts(here):
            differing.append(field if callable(here) else f"{field}={theirs!r}, not {field}={here!r}")
    if differing and len({*map(repr, _body_shapes(variant(spec).preset.input_size, there, model))}) == 1:
        warnings.warn(
            visible(f"the weights are of {spec}, which differs in {'; '.join(differing)}"), stacklevel=3
        )


def _parts(field: object) -> object:
    """What partials are compared by; they are equal only to themselves."""
    return (field.func, field.args, field.keywords) if isinstance(field, functools.partial) else field


def _body_shapes(image_shape: Shape, *models: nn.Module) -> Iterator[dict[tuple[str, ...], Shape]]:
    """The shapes of each model's leaves but those of the head; none of one that takes other images."""
    for model in models:
        with contextlib.suppress(UserError):
            yield {path: shape for path, shape in _leaves(model, image_shape).items() if HEAD not in path}


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
    shapes = variable_shapes(model, image_shape)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}


def _entries(leaves: Leaves, model: nn.Module, family: TorchNames) -> list[Entry]:
    entries = [torch_entry(path, shape, model, family) for path, shape in leaves.items()]
    named: dict[str, Entry] = {}
    for entry in entries:
        if (other := named.setdefault(entry.name, entry)) is not entry:
            both = " and ".join("/".join(each.path[1:]) for each in (other, entry))
            problem = f"this {type(model).__name__}: torch has one name, {entry.name}, for {both}"
            raise UserError(f"{problem}; `cnnjax export` writes it under its own names")
    return entries


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
