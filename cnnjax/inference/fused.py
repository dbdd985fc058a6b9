"""A trained network as one call of the CPU kernels: BatchNorm folded, activations and additions fused.

Its graph becomes layers, a layer that scales or activates what only one other writes becomes part of that,
and the rest are the steps of a program. A network with something that no step computes has none.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.inference.layers import Finder, Layer
from cnnjax.inference.trace import Unknown, trace
from cnnjax.ops.cpu import Program, Unsupported, run_program, takes

PRODUCTS = ("conv", "dense")


@dataclasses.dataclass(frozen=True, eq=False)
class Fused:
    """A program that holds a network's weights: `fused(fused.number, images)` gives logits, in a `jit` too.

    There the number has to be an argument, see `ops.cpu.run_program`.
    """

    program: Program
    number: jax.Array
    features: int
    steps: tuple[Layer, ...] = dataclasses.field(
        repr=False
    )  # of the program; jit asks for the name of all else

    def __call__(self, number: jax.Array, images: jax.Array) -> jax.Array:
        """Logits float32 [B, K] of images [B, H, W, C]."""
        return run_program(number, images.astype(self.program.dtype), self.features)


def fuse(
    apply: Callable[[jax.Array], jax.Array], shape: Sequence[int], dtype: jax.typing.DTypeLike
) -> Fused | None:
    """The network `apply`, images float32 [B, H, W, C] -> logits, on values of `dtype`; None if it has none.

    `shape` is [H, W, C]. Logits are those of `apply` within 1e-5 of the largest in float32.
    """
    if not takes() or jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        return None
    try:
        return build(layers_of(apply, shape), dtype)
    except (Unknown, Unsupported):
        return None


@np.errstate(all="ignore")  # what becomes of weights that are not finite, programs refuse
def layers_of(apply: Callable[[jax.Array], jax.Array], shape: Sequence[int]) -> list[Layer]:
    """The layers of a network in order, as few as possible; Unknown if something is no layer."""
    result = trace(apply, shape)
    last = Finder(result).find(result)
    layers = _order(last)
    uses = Counter(id(x) for layer in layers for x in layer.inputs)
    uses[id(last)] += 1
    now: dict[int, Layer] = {}
    for layer in layers:
        inputs = [now[id(x)] for x in layer.inputs]
        now[id(layer)] = _into(layer, inputs, [uses[id(x)] == 1 for x in layer.inputs])
    return _order(now[id(last)])


def _order(last: Layer) -> list[Layer]:
    seen: dict[int, Layer] = {}
    stack = [last]
    while stack:
        layer = stack.pop()
        if id(layer) not in seen:
            seen[id(layer)] = layer
            stack += layer.inputs
    return sorted(seen.values(), key=lambda layer: layer.place)


def _into(layer: Layer, inputs: list[Layer], single: list[bool]) -> Layer:
    """The layer, as part of the one that it reads where that is possible."""
    x = inputs[0] if inputs else None
    if layer.kind == "flat":
        assert x is not None
        return Layer("flat", [x], layer.shape, layer.place)
    if layer.kind == "affine" and x is not None:
        return _scale(layer, x, single[0])
    if layer.kind == "act" and x is not None:
        if single[0] and not x.act[0] and x.kind in (*PRODUCTS, "pointwise"):
            return dataclasses.replace(x, act=layer.act, place=layer.place)
        return _pointwise(x, layer, 0, act=layer.act)
    if layer.kind in ("add", "mul"):
        return _join(layer, inputs, single)
    return dataclasses.replace(layer, inputs=inputs)


def _scale(layer: Layer, x: Layer, single: bool) -> Layer:
    a, b = layer.weights, layer.bias
    assert a is not None and b is not None
    if single and x.kind in PRODUCTS and not x.act[0] and len(x.inputs) == 1:
        bias = b if x.bias is None else x.bias * a + b
        return dataclasses.replace(x, weights=x.weights * a, bias=bias, place=layer.place)
    if single and x.kind == "sum_pool" and not b.any() and (a == a[0]).all():
        assert x.weights is not None
        return dataclasses.replace(x, weights=x.weights * a[0], place=layer.place)
    if single and x.kind == "pointwise" and not x.act[0] and len(x.inputs) == 1 and x.weights is not None:
        assert x.bias is not None
        return dataclasses.replace(x, weights=x.weights * a, bias=x.bias * a + b, place=layer.place)
    return _pointwise(x, layer, 0, weights=a, bias=b)


def _pointwise(x: Layer, layer: Layer, times: int, **fields: object) -> Layer:
    made = Layer("pointwise", [x], layer.shape, layer.place, (times,))
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def _join(layer: Layer, inputs: list[Layer], single: list[bool]) -> Layer:
    if layer.kind == "add" and inputs[0].shape == inputs[1].shape:
        for i in sorted((0, 1), key=lambda i: -inputs[i].place):
            x, other = inputs[i], inputs[1 - i]
            fits = x.kind in PRODUCTS and not x.act[0] and len(x.inputs) == 1
            if single[i] and fits and other.kind not in ("flat", "images"):
                return dataclasses.replace(x, inputs=[*x.inputs, other], place=layer.place)
    x, other = inputs
    if single[0] and x.kind == "pointwise" and not x.act[0] and len(x.inputs) == 1:
        numbers = (int(layer.kind == "mul"),)
        return dataclasses.replace(x, inputs=[*x.inputs, other], numbers=numbers, place=layer.place)
    return _pointwise(x, layer, int(layer.kind == "mul"), inputs=[x, other])


def build(layers: Sequence[Layer], dtype: jax.typing.DTypeLike) -> Fused:
    """The program of those layers."""
    if any(x.kind == "flat" and layer.kind != "dense" for layer in layers for x in layer.inputs):
        raise Unknown("a map that something else than a dense layer takes as a vector")
    program, last, steps = Program(dtype), layers[-1], list[Layer]()
    uses = {id(x): i for i, layer in enumerate(layers) for x in layer.inputs}  # the last one
    values: dict[int, int] = {}
    for i, layer in enumerate(layers):
        ends = layer is last and _ends(layer)
        if layer.kind == "images":
            values[id(layer)] = program.value(layer.shape)
            continue
        inputs = [values[id(x)] for x in layer.inputs]
        if layer.kind == "flat":
            values[id(layer)] = inputs[0]
            continue
        if layer.kind in PRODUCTS and len(inputs) == 2 and _dies(layer, i, layers, uses):
            values[id(layer)] = y = inputs[1]  # adds to what is there
        else:
            values[id(layer)] = y = program.value(layer.shape, wide=ends, coded=layer.code is not None)
        if layer.kind == "concat":
            _concatenate(program, layer, inputs, y)
            steps += [layer] * len(inputs)
            continue
        act = ("", layer.act[1], 0.0) if layer.kind == "layer_norm" else layer.act
        other = inputs[1] if len(inputs) == 2 else -1
        arrays = {"weights": layer.weights, "bias": layer.bias, "scales": layer.scales}
        codes = (layer.inputs[0].code, layer.inputs[1].code if len(inputs) == 2 else None, layer.code)
        numbers = layer.numbers
        program.step(layer.kind, inputs[0], y, other=other, act=act, numbers=numbers, codes=codes, **arrays)
        steps.append(layer)
    if not _ends(last):
        y = program.value(last.shape, wide=True)
        program.step("pointwise", values[id(last)], y, numbers=(0,), codes=(last.code, None, None))
        steps.append(last)
    return Fused(program, program.finish(), int(np.prod(last.shape)), tuple(steps))


def _ends(last: Layer) -> bool:
    """Whether the step itself writes the result, which is float32."""
    return last.kind == "dense" and len(last.inputs) == 1


def _dies(layer: Layer, at: int, layers: Sequence[Layer], uses: dict[int, int]) -> bool:
    """Whether nothing reads a layer's second input after it, under any name, and it has as many bytes."""
    other = layer.inputs[1]
    if (other.code is None) != (layer.code is None):
        return False
    same = [x for x in layers if x.kind == "flat" and x.inputs[0] is other]
    return uses[id(other)] == at and not same and layer is not layers[-1] and layer.inputs[0] is not other


def _concatenate(program: Program, layer: Layer, inputs: list[int], y: int) -> None:
    begin = 0
    for x, value in zip(layer.inputs, inputs, strict=True):
        numbers = (0, 0, 0, 1, 1, *x.shape, 0, 0, begin, 0)
        program.step("copy", value, y, numbers=numbers, codes=(x.code, None, layer.code))
        begin += x.shape[2]
