"""Every value of a forward pass by name: to look at it, to differentiate by it, to change it.

A model is traced to its jaxpr, whose equations carry the names of their modules and are run one by one.
So no model needs hooks, and values between modules have names too:

- `stage1_block2/conv1`: the output of a module
- `norm:relu`: what an activation made of the value after module norm, outside any module
- `norm2:out`: the last such map before the next module (after pooling, say)
- `norm2:vector`: the last such vector (flattened, or averaged over places)

Blocks that a model runs in a scan have names only after `unrolled(model)`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import Module
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from cnnjax.errors import UserError, unknown
from cnnjax.models.net import HEAD
from cnnjax.ops import cpu

Variables = Mapping[str, Any]  # params and batch_stats of a linen module
Shape = Sequence[int]  # [H, W, C] of images as the network takes them
ImageLike = Array | jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Layer:
    """One named value: `shape` is [H, W, C] or [C], `index` the equation that gives it."""

    name: str
    shape: tuple[int, ...]
    index: int

    @property
    def is_map(self) -> bool:
        """Whether it has more than one place."""
        return len(self.shape) == 3 and self.shape[0] * self.shape[1] > 1


@dataclasses.dataclass(frozen=True)
class Trace:
    """A forward pass taken apart: `run` computes it, `layers` are its values in order."""

    jaxpr: ClosedJaxpr
    layers: dict[str, Layer]
    last_map: Layer | None  # the last map of several places that the head sees

    def layer(self, name: str | None) -> Layer:
        """The layer of that name; None is the last map that the classifier sees."""
        if name is None:
            if self.last_map is None:
                size = "x".join(map(str, self.jaxpr.in_avals[-1].shape[1:3]))
                raise UserError(f"images of {size} are too small: no map of this network has several places")
            return self.last_map
        if name not in self.layers:
            raise unknown("layer", name, self.layers)
        return self.layers[name]


def unrolled(model: Module) -> Module:
    """The same model, for the same variables, whose blocks are run one by one and therefore have names."""
    own = {field.name for field in dataclasses.fields(model)}
    options: dict[str, Any] = {name: False for name in ("scan_blocks", "remat") if name in own}
    return model.clone(**options)


def trace(model: Module, variables: Variables, image: ImageLike) -> Trace:
    """The forward pass of images [B, H, W, C], or of shapes alone."""
    with cpu.paused():  # plain lax convolutions, which have names and second derivatives on every platform
        jaxpr = jax.make_jaxpr(lambda variables, image: model.apply(variables, image))(variables, image)
    return Trace(jaxpr, *_named_layers(jaxpr.jaxpr, image.shape[0]))


def run(
    traced: Trace,
    variables: Variables,
    image: Array,
    *,
    keep: Sequence[Layer] = (),
    add: Mapping[int, Array] = MappingProxyType({}),
    rules: Mapping[str, Callable[..., Array]] = MappingProxyType({}),
) -> tuple[Array, list[Array]]:
    """Computes the logits [B, K] and the values of the layers to keep, each float [B, ...].

    `add` maps the index of an equation to what is added to its value: the gradient by added zeros is that by
    the value. `rules` maps the name of a function ("relu") to what is called instead of it.
    """
    inner = traced.jaxpr.jaxpr
    arrays = [*traced.jaxpr.consts, *jax.tree.leaves((variables, image))]
    values = dict(zip([*inner.constvars, *inner.invars], arrays, strict=True))
    kept: dict[int, Array] = {}
    for index, eqn in enumerate(inner.eqns):
        operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        if function := rules.get(called_name(eqn)):
            results = [function(*operands)]
        else:
            bound = eqn.primitive.get_bind_params(eqn.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)  # as jax before 0.10.2
            results = eqn.primitive.bind(*functions, *operands, **params)
            results = results if eqn.primitive.multiple_results else [results]
        if index in add:
            results = [results[0] + add[index].astype(results[0].dtype), *results[1:]]
        kept[index] = results[0]
        values |= zip(eqn.outvars, results, strict=True)
    return values[inner.outvars[0]], [kept[layer.index] for layer in keep]


def called_name(eqn: JaxprEqn) -> str:
    """The function that an equation calls, such as "relu"; the primitive if it calls none."""
    if inner := inner_jaxpr(eqn):
        return eqn.params.get("name") or inner.debug_info.func_name.strip("_")
    return eqn.primitive.name


def inner_jaxpr(eqn: JaxprEqn) -> Jaxpr | None:
    """The jaxpr that an equation calls (jit, remat, scan, custom_vjp, ...), or None."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return getattr(eqn.params[name], "jaxpr", eqn.params[name])
    return None


def shape_of(variable: Var | Literal) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr; () of one that is no array."""
    return getattr(variable.aval, "shape", ())


def image_struct(image_shape: Shape) -> jax.ShapeDtypeStruct:
    """One image of [H, W, C] as the network takes it, by its shape alone."""
    return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def layer_shapes(model: Module, variables: Variables, image_shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape, [H, W, C] or [C], of every layer for images of [H, W, C], in order."""
    traced = trace(unrolled(model), variables, image_struct(image_shape))
    return {layer.name: layer.shape for layer in traced.layers.values()}


def feature_maps(
    model: Module, variables: Variables, image: Array, names: Sequence[str] | None = None
) -> dict[str, Array]:
    """The values of layers named as in `layer_shapes`, or of all: float32 [B, H, W, C] or [B, C]."""
    traced = trace(unrolled(model), variables, image)
    keep = [traced.layer(name) for name in (traced.layers if names is None else names)]
    _, values = run(traced, variables, image, keep=keep)
    return {layer.name: value.astype(jnp.float32) for layer, value in zip(keep, values, strict=True)}


def penultimate(model: Module, variables: Variables, image: Array) -> Array:
    """What the last layer of the classifier takes, averaged over places: float32 [B, D]."""
    eqns = (traced := trace(model, variables, image)).jaxpr.jaxpr.eqns
    products = ("dot_general", "conv_general_dilated", "cnnjax_dense")
    index = max(i for i, e in enumerate(eqns) if e.primitive.name in products)
    source = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
    before = Layer("", (), source[eqns[index].invars[0]])
    _, (value,) = run(traced, variables, image, keep=[before])
    return value.reshape(value.shape[0], -1, value.shape[-1]).mean(1).astype(jnp.float32)


def first_convolution(model: Module, variables: Variables, image: ImageLike) -> tuple[str, ...]:
    """The path of the module that holds the first convolution of the forward pass; () without any."""
    eqns = trace(model, variables, image).jaxpr.jaxpr.eqns
    return next((tuple(module_path(e)) for e in eqns if e.primitive.name == "conv_general_dilated"), ())


def _named_layers(jaxpr: Jaxpr, batch: int) -> tuple[dict[str, Layer], Layer | None]:
    """The layers in order, and the last map that the head sees."""
    dependent = {jaxpr.invars[-1]}
    layers: dict[str, Layer] = {}
    last_map, last_module, in_head = None, "image", False
    for index, eqn in enumerate(jaxpr.eqns):
        if not any(not isinstance(v, Literal) and v in dependent for v in eqn.invars):
            continue
        dependent |= set(eqn.outvars)
        aval, scope = eqn.outvars[0].aval, module_path(eqn)
        in_head = in_head or scope[:1] == [HEAD]
        if not isinstance(aval, ShapedArray) or not jnp.issubdtype(aval.dtype, jnp.floating):
            continue
        if aval.ndim not in (2, 4) or aval.shape[0] != batch:
            continue
        shape = aval.shape[1:]
        place = f"{last_module}:{'out' if len(shape) == 3 else 'vector'}"
        for name in _names(scope, place, called_name(eqn)):
            layers.pop(name, None)  # so that it comes where its last equation does
            layers[name] = Layer(name, shape, index)
        last_module = scope[0] if scope else last_module
        layer = Layer("/".join(scope) or place, shape, index)
        if layer.is_map and not in_head and eqn.primitive.name not in ("transpose", "reshape", "pad"):
            last_map = layer
    return layers, last_map


def _names(scope: list[str], place: str, function: str) -> list[str]:
    """What the value of an equation is called: by its modules, or by the module before it."""
    if scope:
        return ["/".join(scope[:end]) for end in range(1, len(scope) + 1)]
    activations = ("relu", "gelu", "silu", "sigmoid", "tanh", "relu6")
    return [place, *([f"{place.partition(':')[0]}:{function}"] if function in activations else [])]


def module_path(eqn: JaxprEqn) -> list[str]:
    """The modules that an equation belongs to, outermost first, without the model itself and its methods."""
    return [name for name in str(eqn.source_info.name_stack).split("/")[1:] if "." not in name]
