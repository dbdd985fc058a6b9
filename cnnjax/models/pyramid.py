"""The stages of any network: their names, strides and parameters.

One rule for all families. A stage is a sequence of top-level modules whose names differ only in the
block ('stage2_block1', 'stage2_block2'), or a module with a name of its own ('mixed6e', 'conv5'); one
without kernels, a normalization, belongs to the module before it. Its value is the last map before the next
stage that is not smaller: after an activation, before a pooling. The pyramid has one stage at each
stride: the last that has a number ('stage5'), or else the last.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.typing import VariableDict
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from cnnjax.errors import UserError, listed, unknown
from cnnjax.models import sized
from cnnjax.models.forward import (
    Layer,
    Trace,
    Variables,
    called_name,
    image_struct,
    inner_jaxpr,
    module_path,
    penultimate,
    run,
    shape_of,
    trace,
    unrolled,
)
from cnnjax.models.net import HEAD

Strides = dict[Var, int | None]  # of values that depend on the image; None of those that are no maps
NUMBERED = re.compile(r"stage\d+(?=_|$)")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage and the shape of its output [H, W, width]; one step on it is `stride` pixels of the image."""

    name: str
    stride: int
    width: int
    layer: Layer


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A network up to some of its stages: `features(variables, image)` -> {name: float32 [B, H, W, C]}."""

    model: nn.Module
    stages: dict[str, Stage]

    @property
    def strides(self) -> dict[str, int]:
        """The vertical stride of each map in pixels of the image."""
        return {name: stage.stride for name, stage in self.stages.items()}

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each map."""
        return {name: stage.width for name, stage in self.stages.items()}

    def __call__(self, variables: Variables, image: jax.Array) -> dict[str, jax.Array]:
        """The maps of images float [B, H, W, C] of any size that the network takes, in evaluation.

        UserError if the network has other stages at that size.
        """
        traced = trace(unrolled(self.model), variables, image)
        found = {stage.name: stage.layer for stage in stages_of(traced, variables)}
        if missing := [name for name in self.stages if name not in found]:
            size = "x".join(map(str, image.shape[1:3]))
            problem = f"stage {missing[0]!r} is missing in images of {size}; allowed there: {listed(found)}"
            raise UserError(f"{problem}; name those, or take images of another size")
        _, values = run(traced, variables, image, keep=[found[name] for name in self.stages])
        return {name: value.astype(jnp.float32) for name, value in zip(self.stages, values, strict=True)}


def model_features(
    model: nn.Module | str, names: Sequence[str] | None = None, image_shape: Sequence[int] | None = None
) -> Features:
    """The feature pyramid of a network, or the stages of it with these names (or one); nothing is computed.

    `model` is a name or spec as in `create_model`, or a module, which needs `image_shape` [H, W, C]; the
    default is the preset's. UserError for an unknown stage, with the names of all.
    """
    model, image_shape, variables = sized(model, image_shape)
    found = stages_of(trace(unrolled(model), variables, image_struct(image_shape)), variables)
    if names is None:
        by_stride: dict[int, Stage] = {}
        for stage in found:
            before = by_stride.get(stage.stride)
            if not before or NUMBERED.match(stage.name) or not NUMBERED.match(before.name):
                by_stride[stage.stride] = stage
        chosen = [stage for stage in found if stage in by_stride.values()]
    else:
        names, known = (
            [names] if isinstance(names, str) else names,
            dict.fromkeys(stage.name for stage in found),
        )
        if wrong := [name for name in names if name not in known]:
            raise unknown("stage", wrong[0], known)
        chosen = [stage for stage in found if stage.name in names]
    return Features(model, {stage.name: stage for stage in chosen})


def layer_values(model: nn.Module, variables: Variables, image: jax.Array, layer: str | None) -> jax.Array:
    """One value of images float [B, H, W, C]: float32 [B, H, W, C] or [B, C].

    `layer` is a stage, or a name of `forward.layer_shapes`; None is the mean of what the head reads.
    """
    if layer is None:
        return penultimate(model, variables, image)
    traced = trace(unrolled(model), variables, image)
    stages = {stage.name: stage.layer for stage in stages_of(traced, variables)}
    if layer not in stages and layer not in traced.layers:
        raise unknown("layer", layer, [*stages, *traced.layers])
    _, (value,) = run(traced, variables, image, keep=[stages.get(layer) or traced.layer(layer)])
    return value.astype(jnp.float32)


def stages_of(traced: Trace, variables: Variables) -> list[Stage]:
    """The stages of a forward pass in order; none of a network without maps."""
    jaxpr = traced.jaxpr.jaxpr
    strides = _strides(jaxpr, {jaxpr.invars[-1]: 1})
    paths = [module_path(eqn) for eqn in jaxpr.eqns]
    last = {path[0]: index for index, path in enumerate(paths) if path}
    names = stage_names([*dict.fromkeys(path[0] for path in paths if path)], variables["params"])
    stages: dict[str, Stage] = {}
    name, own = "", None  # the stage so far, and the stride of what its last module with kernels returned
    for index, (eqn, path) in enumerate(zip(jaxpr.eqns, paths, strict=True)):
        value = eqn.outvars[0]
        if path[:1] == [HEAD]:
            break
        if value not in strides or (path and index != last[path[0]]):  # inside a module
            continue
        if not path and called_name(eqn) == "pad":  # before a pooling
            continue
        if path and names[path[0]] == stage_name(path[0]):
            name, own = names[path[0]], strides[value]
        if name and own and strides[value] == own and len(shape := shape_of(value)) == 4:
            stages.pop(name, None)
            stages[name] = Stage(name, own, shape[-1], Layer(name, shape[1:], index))
    return [*stages.values()]


def module_layers(model: nn.Module, image_shape: Sequence[int]) -> dict[str, str]:
    """`layer_names` of a model for images [H, W, C], auxiliary heads among them; nothing is computed."""
    modules: list[str] = []

    def init(key: jax.Array, image: jax.Array) -> VariableDict:
        variables = model.init(key, image, train=False)
        modules.extend(variables["params"])  # in the order of the forward pass; what leaves a trace is sorted
        return variables

    shapes = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), image_struct(image_shape))
    return layer_names(modules, shapes["params"])


def stage_names(modules: Sequence[str], params: Mapping[str, Mapping]) -> dict[str, str]:
    """The stage of each module at the top of a model, given in the order of the forward pass."""
    return {module: stage_name(layer) for module, layer in layer_names(modules, params).items()}


def stage_name(module: str) -> str:
    """'stage2' of 'stage2_block1'; another name as it is."""
    return found[0] if (found := NUMBERED.match(module)) else module


def layer_names(modules: Sequence[str], params: Mapping[str, Mapping]) -> dict[str, str]:
    """The module with kernels that each module is, or comes after."""
    names, name = {}, ""
    for module in modules:
        leaves = {path[-1] for path in traverse_util.flatten_dict(dict(params.get(module, {})))}
        name = module if not name or "kernel" in leaves else name
        names[module] = name
    return names


def _strides(jaxpr: Jaxpr, known: Strides) -> Strides:
    """`known`, the strides of variables of a jaxpr, with those of all that it computes from them."""
    for eqn in jaxpr.eqns:
        inputs = [known[v] for v in eqn.invars if not isinstance(v, Literal) and v in known]
        if not inputs:
            continue
        # Of two that are put together, the other may come from a smaller map that was enlarged.
        stride = min((value for value in inputs if value is not None), default=None)
        if inner := inner_jaxpr(eqn):
            pairs = zip(inner.invars, eqn.invars, strict=False)
            given = {v: known[x] for v, x in pairs if not isinstance(x, Literal) and x in known}
            inside = _strides(inner, given)
            pairs = zip(eqn.outvars, inner.outvars, strict=False)
            known |= {v: inside.get(x, stride) if isinstance(x, Var) else None for v, x in pairs}
            continue
        if stride is not None:
            stride = stride * _step(eqn) if len(shape_of(eqn.outvars[0])) >= 3 else None
        known |= dict.fromkeys(eqn.outvars, stride)
    return known


def _step(eqn: JaxprEqn) -> int:
    """Rows of its input [B, H, W, ...] that a primitive moves by from one row of its output to the next."""
    if eqn.primitive.name == "reshape":  # [B, H / 2, 2, W / 2, 2, C], for a pooling
        rows, split = (shape_of(value)[1] for value in (eqn.invars[0], eqn.outvars[0]))
        return max(rows // split, 1)
    steps = eqn.params.get("window_strides") or (1,)
    if eqn.primitive.name == "slice":
        steps = eqn.params["strides"] or (1,)
    row = 0 if eqn.primitive.name == "conv_general_dilated" else 1  # its windows have no axis for the batch
    return steps[row] if len(steps) > row else 1
