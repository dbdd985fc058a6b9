"""Torchvision's state dicts as linen variables, and back: strict, with NumPy alone.

A family says how the path of a module here is spelled there; kernels are transposed by their rank, and the
leaves `kernel`, `scale`, `bias`, `mean`, `var` are torch's weight, weight, bias, running_mean, running_var.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from flax import linen as nn
from flax import traverse_util

from cnnjax.errors import UserError, unknown
from cnnjax.models import create_model, init_variables, variant

Variables = dict[str, Any]  # {"params", "batch_stats"}, nested by module
Shape = tuple[int, ...]

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How torch spells a family.

    Attributes:
      rename: (module path here such as 'stage1_block2/conv1', the model) -> 'layer1.1.conv2', or the
        whole entry where a leaf has a name of its own ('features.1.0.layer_scale').
      flattened: dense layers that read a flattened [C, H, W] map there and [H, W, C] here: path -> (H, W).
      extra: patterns of entries that a model here may be built without: auxiliary heads.
      convolved: dense layers here that are 1x1 convolutions there, by path pattern.
      old_names: (pattern, replacement) that turns the entries of torchvision's older files into today's.
    """

    rename: Callable[[str, nn.Module], str]
    flattened: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    extra: tuple[str, ...] = ()
    convolved: tuple[str, ...] = ()
    old_names: tuple[str, str] | None = None


def substitute(*rules: tuple[str, str]) -> Callable[[str, nn.Module], str]:
    """A `rename` that applies regular expressions in order, each to the whole path."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(path: str, model: nn.Module) -> str:
        for pattern, replacement in compiled:
            path = pattern.sub(replacement, path)
        return path.replace("/", ".")

    return rename


# --- Families: one entry for each module class of `cnnjax.models` that torchvision has too. --------

FAMILIES: dict[str, Family] = {}


def vgg_names(path: str, model: nn.Module) -> str:
    """'stage2_conv1/norm' -> 'features.5': torch counts convolutions, norms, activations and poolings."""
    if not path.startswith("stage"):
        return {"dense1": "classifier.0", "dense2": "classifier.3", "head": "classifier.6"}[path]
    stage, conv = map(int, re.findall(r"\d+", path))
    before = sum(model.depths[: stage - 1]) + conv - 1
    return f"features.{(3 if model.batch_norm else 2) * before + stage - 1 + path.endswith('norm')}"


def squeezenet_names(path: str, model: nn.Module) -> str:
    """'stage2_fire1/squeeze' -> 'features.7.squeeze': torch counts fire modules and poolings."""
    if not path.startswith("stage"):
        return {"stem/conv": "features.0", "head": "classifier.1"}[path]
    block, _, layer = path.partition("/")
    stage, fire = map(int, re.findall(r"\d+", block))
    return f"features.{2 + sum(map(len, model.squeezes[: stage - 1])) + fire + stage - 1}.{layer}"


def mobilenet_v2_names(path: str, model: nn.Module) -> str:
    """'stage2_block1/project/conv' -> 'features.2.conv.2'; without expansion one index less."""
    if path == "head":
        return "classifier.1"
    *block, layer = path.split("/")
    index, depths = int(layer == "norm"), [blocks for _, _, blocks, _ in model.stages]
    if block in (["stem"], ["last"]):
        return f"features.{0 if block == ['stem'] else sum(depths) + 1}.{index}"
    stage, i = map(int, re.findall(r"\d+", block[0]))
    unit = ("expand", "depthwise", "project").index(block[1]) - (model.stages[stage - 1][0] == 1)
    place = f"{unit + index}" if block[1] == "project" else f"{unit}.{index}"
    return f"features.{sum(depths[: stage - 1]) + i}.conv.{place}"


ALEXNET = substitute(
    ("conv1", "features.0"),
    ("conv2", "features.3"),
    ("conv3", "features.6"),
    ("conv4", "features.8"),
    ("conv5", "features.10"),
    ("dense1", "classifier.1"),
    ("dense2", "classifier.4"),
    ("head", "classifier.6"),
)
FAMILIES |= {
    "AlexNetTorchvision": Family(ALEXNET, flattened={"dense1": (6, 6)}),
    "VGG": Family(vgg_names, flattened={"dense1": (7, 7)}),
    "SqueezeNet": Family(squeezenet_names),
    "MobileNetV2": Family(mobilenet_v2_names),
}
FAMILIES["GoogLeNet"] = Family(
    substitute(
        (r"norm$", "bn"),
        (r"^stem/", ""),
        (r"^cell", "inception"),
        (r"branch1x1", "branch1"),
        (r"branch3x3_reduce", "branch2.0"),
        (r"branch3x3", "branch2.1"),
        (r"branch5x5_reduce", "branch3.0"),
        (r"branch5x5", "branch3.1"),
        (r"branch_pool", "branch4.1"),
        (r"^(aux\d)/dense$", r"\1.fc1"),
        (r"^(aux\d)/head$", r"\1.fc2"),
        (r"^head$", "fc"),
    ),
    flattened={"aux1/dense": (4, 4), "aux2/dense": (4, 4)},
    extra=(r"aux\d\.",),
)
FAMILIES["InceptionV3"] = Family(
    substitute(
        (r"norm$", "bn"),
        (r"^stem/conv", "Conv2d_"),
        (r"^mixed", "Mixed_"),
        (r"^aux/", "AuxLogits/"),
        (r"head$", "fc"),
    ),
    extra=(r"AuxLogits\.",),
)


def resnet_names(path: str, model: nn.Module) -> str:
    """'stage1_block2/norm1' -> 'layer1.1.bn1'."""
    path = re.sub(r"^stage(\d+)_block(\d+)", lambda m: f"layer{m[1]}/{int(m[2]) - 1}", path)
    return RESNET(path, model)


RESNET = substitute(
    (r"^stem/conv$", "conv1"),
    (r"^stem/norm$", "bn1"),
    (r"norm(\d)$", r"bn\1"),
    (r"shortcut/conv$", "downsample.0"),
    (r"shortcut/norm$", "downsample.1"),
    (r"^head$", "fc"),
)
# `se.fc1` and `se.fc2` are timm's.
FAMILIES["ResNet"] = Family(resnet_names, convolved=(r".*/se/fc\d",))


def densenet_names(path: str, model: nn.Module) -> str:
    """'stage1_block2/norm1' -> 'features.denseblock1.denselayer2.norm1'."""
    return "classifier" if path == "head" else f"features.{DENSENET(path, model)}"


DENSENET = substitute(
    (r"^stem/(\w+)$", r"\g<1>0"),
    (r"^stage(\d+)_block(\d+)/", r"denseblock\1.denselayer\2."),
    (r"^norm$", "norm5"),
)
FAMILIES["DenseNet"] = Family(densenet_names, old_names=(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2"))


def efficientnet_names(path: str, model: nn.Module) -> str:
    """'stage2_block1/project/conv' -> 'features.2.0.block.3.0'; without expansion one index less."""
    if path == "head":
        return "classifier.1"
    block, *unit, layer = path.split("/")
    index = {"conv": "0", "norm": "1"}.get(layer, layer)
    if not unit:
        return f"features.{0 if block == 'stem' else len(model.stages) + 1}.{index}"
    stage, i = map(int, re.findall(r"\d+", block))
    place = ("expand", "depthwise", "se", "project").index(unit[0]) - (model.stages[stage - 1][0] == 1)
    return f"features.{stage}.{i - 1}.block.{place}.{index}"


FAMILIES["EfficientNet"] = Family(efficientnet_names, convolved=(r".*/se/fc\d",))


def convnext_names(path: str, model: nn.Module) -> str:
    """'stage2_block3/dense1' -> 'features.3.2.block.3', 'downsample1/conv' -> 'features.2.1'."""
    if path in ("norm", "head"):
        return "classifier.0" if path == "norm" else "classifier.2"
    block, layer = path.split("/")
    if block == "stem":
        return f"features.0.{('conv', 'norm').index(layer)}"
    if block.startswith("downsample"):
        return f"features.{2 * int(block[-1])}.{('norm', 'conv').index(layer)}"
    stage, i = map(int, re.findall(r"\d+", block))
    place = {"conv": "block.0", "norm": "block.2", "dense1": "block.3", "dense2": "block.5"}.get(layer, layer)
    return f"features.{2 * stage - 1}.{i - 1}.{place}"


FAMILIES["ConvNeXt"] = Family(convnext_names)


# --- Conversion -----------------------------------------------------------------------------------


def convert(state_dict: Mapping[str, npt.ArrayLike], model: str) -> Variables:
    """The linen variables of `create_model(model)` from a torchvision state dict.

    Args:
      state_dict: torch's names to arrays; convolutions OIHW, dense layers OI.
      model: a name or spec, see `create_model`; its `num_classes` must be that of the state dict.

    Returns:
      {"params", "batch_stats"} of float32 NumPy arrays. Entries of auxiliary heads that the model is
      built without are named in a warning.

    Raises:
      UserError: listing every missing, unexpected and misshapen entry; nothing is converted then.
    """
    return convert_into(state_dict, create_model(model), variant(model).preset.input_size)


def convert_into(
    state_dict: Mapping[str, npt.ArrayLike], model: nn.Module, image_shape: tuple[int, ...]
) -> Variables:
    """`convert` for a module that is already built."""
    family = family_of(model)
    old, new = family.old_names or ("$^", "")
    arrays = {re.sub(old, new, name): np.asarray(value) for name, value in state_dict.items()}
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    entries = torch_entries(model, image_shape)
    shapes = {entry.name: entry.shape for entry in entries}
    extra = [k for k in arrays if k not in shapes and any(re.match(p, k) for p in family.extra)]
    problems = misfits({k: array.shape for k, array in arrays.items() if k not in extra}, shapes)
    if problems:
        raise UserError(
            f"the state dict does not fit {type(model).__name__} ({len(problems)} entries): "
            f"{'; '.join(problems)}"
        )
    if extra:
        warnings.warn(f"dropped, the model is built without: {', '.join(extra)}", stacklevel=3)
    flat = {e.path: e.to_linen(arrays[e.name].astype(np.float32)) for e in entries}
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)


def misfits(given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    """What is missing, unexpected or of another shape, an entry each."""
    return [
        *(f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in given),
        *(f"unexpected {name}" for name in given if name not in wanted),
        *(
            f"{name} is {list(given[name])}, here {list(shape)}"
            for name, shape in wanted.items()
            if name in given and given[name] != shape
        ),
    ]


def to_torch(variables: Variables, model: nn.Module) -> dict[str, np.ndarray]:
    """The torch state dict of linen variables; `convert` gives the same variables back, bit for bit."""
    flat, family = traverse_util.flatten_dict(variables), family_of(model)
    entries = (torch_entry(path, np.shape(leaf), model, family) for path, leaf in flat.items())
    return {e.name: e.to_torch(np.asarray(flat[e.path])) for e in entries}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf: its path and shape here, its name and shape there.

    There is `here.reshape(split).transpose(axes).reshape(shape)`.
    """

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


def family_of(model: nn.Module) -> Family:
    """The torch spelling of a model's class."""
    name = type(model).__name__
    if name not in FAMILIES:
        raise unknown("family with torch names", name, FAMILIES)
    return FAMILIES[name]


def torch_entries(model: nn.Module, image_shape: tuple[int, ...]) -> list[Entry]:
    """The entries of every leaf of a model."""
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), image_shape))
    flat, family = traverse_util.flatten_dict(shapes), family_of(model)
    return [torch_entry(path, leaf.shape, model, family) for path, leaf in flat.items()]


def torch_entry(path: tuple[str, ...], shape: Shape, model: nn.Module, family: Family) -> Entry:
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
    axes = tuple(range(len(split)))
    axes = (axes[-1], axes[-2], *axes[:-2])  # HWIO to OIHW, IO to OI
    there = tuple(split[axis] for axis in axes) if split == shape else shape[::-1]
    if any(re.fullmatch(pattern, module) for pattern in family.convolved):
        there = (*there, 1, 1)
    return Entry(path, shape, split, axes, name, there)
