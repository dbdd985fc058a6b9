"""A network in 8-bit integers: the ranges of its values on some images, and its layers with what follows.

Weights are signed, with a scale for each output channel; values have one scale each, signed if any of them is
negative. Convolutions and dense layers multiply integers and round what they write once; what reads a global
mean, as the last dense layer and gates do, stays in float32.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnnjax.errors import UserError, one_line
from cnnjax.inference.fused import PRODUCTS, Fused, build, layers_of
from cnnjax.inference.layers import Layer
from cnnjax.inference.trace import Unknown
from cnnjax.models.weights.torch import Variables
from cnnjax.ops import cpu
from cnnjax.ops.cpu import Code, Unsupported

BATCH = 8  # images; ranges are means over batches, so that a single image does not widen them
_MOVE = ("max_pool", "copy", "concat", "flat")  # write numbers that they read: the same integers
Ranges = Mapping[Layer, tuple[float, float]]


class Int8(nn.Module):
    """A network as a program of integers: float32 [B, H, W, C] -> logits; its variables are a number."""

    fused: Fused
    agreement: float  # with float32 in the likeliest class, on the images of the calibration
    count: int  # of them

    def __call__(self, image: jax.Array) -> jax.Array:
        number: jax.Array = self.get_variable("program", "number")
        return self.fused(number, image)


def calibrated(apply: Callable[[jax.Array], jax.Array], images: np.ndarray) -> tuple[Int8, Variables]:
    """The network `apply` in integers, with scales from images float32 [N, H, W, C]."""
    check()
    try:
        layers = layers_of(apply, images.shape[1:])
        wide = build(layers, jnp.float32)
        wide.program.ranges()
        found: list[np.ndarray] = []
        own = _run(wide, images, lambda: found.append(wide.program.ranges()))
        ranges = {layer: (low, high) for layer, low, high in zip(wide.steps, *np.mean(found, 0), strict=True)}
        ranges[layers[0]] = images.min(), images.max()  # of the images
        fused = build(quantized(layers, ranges), jnp.float32)
    except (Unknown, Unsupported) as error:
        raise UserError(f"dtype=int8: no kernels for this network ({one_line(error)}); use float32") from None
    same = _run(fused, images) == own
    return Int8(fused, float(same.mean()), len(images)), {"program": {"number": fused.number}}


def check() -> None:
    """Raises a UserError where nothing computes in integers."""
    advice = "use bfloat16 or float32"
    if lack := cpu.lacks_int8():
        raise UserError(f"dtype=int8: {lack}; {advice}")
    if not cpu.takes() or jax.device_count() > 1:
        raise UserError(f"dtype=int8 runs on one CPU device with the CPU kernels on; {advice}")


def _run(fused: Fused, images: np.ndarray, after_each: Callable[[], None] = lambda: None) -> np.ndarray:
    """The likeliest classes [N], `BATCH` images at a time."""
    run, classes = jax.jit(fused), []
    for start in range(0, len(images), BATCH):
        classes.append(np.asarray(run(fused.number, images[start : start + BATCH])).argmax(1))
        after_each()
    return np.concatenate(classes)


def quantized(layers: Sequence[Layer], ranges: Ranges) -> list[Layer]:
    """The same layers, those that can on integers, and conversions where others read them."""
    products = _products(layers)
    coded = _coded(layers, products)
    codes = _codes(layers, coded, ranges)
    wide, short, done = dict[Layer, Layer](), dict[Layer, Layer](), list[Layer]()

    def read(x: Layer, as_code: bool) -> Layer:
        have, other = (short, wide) if as_code else (wide, short)
        if x not in have:
            code = codes[x] if as_code else None
            have[x] = Layer("pointwise", [other[x]], x.shape, x.place, (0,), code=code)
            done.append(have[x])
        return have[x]

    for layer in layers:
        here, inputs = layer in coded, layer.inputs
        if layer in products:
            x, *others = inputs
            new = [read(x, True), *(read(other, here) for other in others)]
        elif layer.kind in ("pointwise", "sum_pool"):
            new = [read(x, x in short) for x in inputs]
        else:
            new = [read(x, here) for x in inputs]
        made = dataclasses.replace(layer, inputs=new, code=codes[layer] if here else None)
        if layer in products:
            made = _integers(made)
        done.append(made)
        (short if here else wide)[layer] = made
    return done


def _products(layers: Sequence[Layer]) -> set[Layer]:
    """The layers that multiply integers."""
    found, of_means = [layer for layer in layers if layer.kind in PRODUCTS], set[Layer]()
    for layer in layers:
        vector = layer.shape[:2] == (1, 1)
        if vector and (layer.kind == "sum_pool" or any(x in of_means for x in layer.inputs)):
            of_means.add(layer)
    return {x for x in found if x not in of_means and not (x is found[-1] and x.kind == "dense")}


def _coded(layers: Sequence[Layer], products: set[Layer]) -> set[Layer]:
    """The layers that write integers: those whose readers want them and that can."""
    wanted = set[Layer]()
    for layer in reversed(layers):
        x, *others = layer.inputs or [layer]
        if layer in products:
            wanted |= {x, *others} if layer in wanted else {x}
        elif layer in wanted and layer.kind in _MOVE:
            wanted |= set(layer.inputs)
        elif layer in wanted and layer.kind == "pointwise":
            wanted |= {each for each in layer.inputs if each.shape == layer.shape}  # gates are few numbers
    coded = {layer for layer in wanted if layer in products or layer.kind in (*_MOVE, "pointwise")}
    for layer in layers:
        if layer in products and any(other in coded for other in layer.inputs[1:]):
            coded.add(layer)
    return coded


def _codes(layers: Sequence[Layer], coded: set[Layer], ranges: Ranges) -> dict[Layer, Code]:
    """The code of each layer's values; what is moved keeps its own."""
    above: dict[Layer, Layer] = {}

    def top(layer: Layer) -> Layer:
        while layer in above:
            layer = above[layer]
        return layer

    for layer in layers:
        for x in layer.inputs if layer in coded and layer.kind in _MOVE else ():
            if top(x) is not top(layer):
                above[top(x)] = top(layer)
    low, high = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for layer, (least, most) in ranges.items():
        if layer.kind in ("copy", "concat"):  # not recorded: in the range of what they read
            continue
        low[top(layer)] = min(low[top(layer)], least)
        high[top(layer)] = max(high[top(layer)], most)

    def code(layer: Layer) -> Code:
        least, most = low[top(layer)], high[top(layer)]
        signed = least < 0
        scale = (max(-least, most) / 127 if signed else most / 255) or 1.0
        if not np.isfinite(scale):
            raise Unsupported("values that are not finite")
        return Code(scale, signed)

    return {layer: code(layer) for layer in layers}


def _integers(layer: Layer) -> Layer:
    """The layer with weights rounded to integers, and what a sum of products counts for each channel."""
    weights, code = layer.weights, layer.inputs[0].code
    assert weights is not None and code is not None
    scales = abs(weights).max(tuple(range(weights.ndim - 1))) / np.float32(127)
    scales[scales == 0] = 1
    return dataclasses.replace(
        layer, weights=np.rint(weights / scales), scales=scales * np.float32(code.scale)
    )
