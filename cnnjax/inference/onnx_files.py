"""ONNX: networks converted and run, and a recipe of images as nodes before them (`Resize` with antialias)."""

import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cnnjax.data.recipe import Recipe
from cnnjax.errors import UserError, extra, one_line
from cnnjax.ops.portable import portable

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

UINT8, INT64, BOOL, DOUBLE = 2, 7, 9, 11  # of onnx.TensorProto
MODES: Mapping[str, Mapping[str, str | float]] = {
    "bilinear": {"mode": "linear"},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
}
OPSET = 18  # the first that has antialias


def convert(function: Callable[..., jax.Array], inputs: Sequence[object], advice: str) -> "ModelProto":
    """A function of arrays as an ONNX model; `inputs` are shapes, whose dimensions may have names."""
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(f"format onnx needs {error.name}; {extra('onnx')}") from None
    try:
        with portable(), quiet():  # the converter reports each of its plugins
            return to_onnx(function, inputs, model_name="cnnjax")
    except Exception as error:  # whatever an operation that it lacks makes it raise
        versions = f"jax2onnx {importlib.metadata.version('jax2onnx')} with jax {jax.__version__}"
        raise UserError(
            f"format onnx: {versions} cannot convert this network ({one_line(error, 160)}); {advice}"
            f"or compatible versions: {extra('onnx')}"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of loggers; afterwards those are off that were before."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def load(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The function of one input and one output in a file."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"format onnx is checked with onnxruntime; {extra('onnx')}") from None
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


class _Graph:
    """Nodes of ONNX, each with one output; a list or an array is a constant."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.nodes: list[NodeProto] = []
        self.node, self.tensor = helper.make_node, numpy_helper.from_array

    def __call__(self, kind: str, *inputs: object, **attributes: Any) -> str:
        names = [x if isinstance(x, str) else self.constant(np.asarray(x)) for x in inputs]
        name = f"pixels_{len(self.nodes)}"
        self.nodes.append(self.node(kind, names, [name], **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"pixels_{len(self.nodes)}"
        self.nodes.append(self.node("Constant", [], [name], value=self.tensor(value)))
        return name

    def slice(self, x: str, starts: object, ends: object, axes: list[int]) -> str:
        return self("Slice", x, starts, ends, axes)

    def sides(self, recipe: Recipe, height: str, width: str) -> tuple[str, str]:
        """`Recipe.resized`, of int64 [1]."""
        if recipe.mode in ("squash", "square"):
            rows, columns = recipe.resize[0], recipe.resize[-1]
            return self.constant(np.asarray([rows])), self.constant(np.asarray([columns]))
        if len(recipe.resize) == 1:
            short, long = self("Min", height, width), self("Max", height, width)
            longer = self("Div", self("Mul", long, [recipe.resize[0]]), short)
            upright = self("LessOrEqual", height, width)
            side = self.constant(np.asarray([recipe.resize[0]]))
            return self("Where", upright, side, longer), self("Where", upright, longer, side)
        lengths = [self("Cast", x, to=DOUBLE) for x in (height, width)]
        down, across = (self("Mul", x, [float(n)]) for x, n in zip(lengths, recipe.resize[::-1], strict=True))
        by_height = self("GreaterOrEqual" if recipe.mode == "border" else "Less", down, across)
        others = self("Div", down, lengths[1]), self("Div", across, lengths[0])
        free = [self("Max", self("Cast", self("Round", x), to=INT64), [1]) for x in others]
        fixed = [self.constant(np.asarray([side])) for side in recipe.resize]
        return self("Where", by_height, fixed[0], free[0]), self("Where", by_height, free[1], fixed[1])

    def start(self, recipe: Recipe, side: str, axis: int) -> str:
        """`Recipe.offset`, of int64 [1]."""
        half = self("Div", self("Cast", self("Sub", side, [recipe.crop[axis]]), to=DOUBLE), [2.0])
        whole = self("Where", self("Less", half, [0.0]), self("Ceil", half), self("Round", half))
        return self("Sub", self("Cast", whole, to=INT64), [recipe.margin])


def recipe_model(recipe: Recipe, channels: int) -> "ModelProto":
    """`pixels.cut` as a model: `image`, uint8 [H, W, C], to `pixels`, uint8 [1, *recipe.shape, C]."""
    from onnx import helper

    graph = _Graph()
    shape = graph("Shape", "image")
    lengths = [graph.slice(shape, [axis], [axis + 1], [0]) for axis in (0, 1)]
    planes = graph("Unsqueeze", graph("Transpose", "image", perm=[2, 0, 1]), [0])
    if recipe.mode == "square":
        side = graph("Min", *lengths)
        firsts = [graph("Div", graph("Sub", length, side), [2]) for length in lengths]
        ends = [graph("Add", first, side) for first in firsts]
        planes = graph.slice(planes, graph("Concat", *firsts, axis=0), graph("Concat", *ends, axis=0), [2, 3])
    sides = graph.sides(recipe, *lengths)
    how = {"antialias": 1, "exclude_outside": 1, **MODES[recipe.interpolation]}  # by default of half pixels
    sizes = graph("Concat", [1, channels], *sides, axis=0)
    resized = graph("Resize", planes, "", "", sizes, **how)
    starts = [graph.start(recipe, side, axis) for axis, side in enumerate(sides)]
    low = [graph("Max", start, [0]) for start in starts]
    behind = [graph("Add", start, [n]) for start, n in zip(starts, recipe.shape, strict=True)]
    high = [graph("Min", end, side) for end, side in zip(behind, sides, strict=True)]
    pixels = graph.slice(resized, graph("Concat", *low, axis=0), graph("Concat", *high, axis=0), [2, 3])
    before = [graph("Sub", a, b) for a, b in zip(low, starts, strict=True)]
    after = [graph("Sub", a, b) for a, b in zip(behind, high, strict=True)]
    pads = graph("Concat", [0, 0], *before, [0, 0], *after, axis=0)
    inside = graph("Expand", np.ones((1, 1, 1, 1), np.uint8), graph("Shape", pixels))
    inside = graph("Cast", graph("Pad", inside, pads), to=BOOL)
    fill = np.asarray(recipe.filled(channels), np.uint8).reshape(1, channels, 1, 1)
    pixels = graph("Where", inside, graph("Pad", pixels, pads), fill)
    graph.nodes.append(graph.node("Transpose", [pixels], ["pixels"], perm=[0, 2, 3, 1]))
    given = helper.make_tensor_value_info("image", UINT8, ["height", "width", channels])
    made = helper.make_tensor_value_info("pixels", UINT8, [1, *recipe.shape, channels])
    whole = helper.make_graph(graph.nodes, "pixels", [given], [made])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)])


def with_recipe(network: "ModelProto", recipe: Recipe, channels: int) -> "ModelProto":
    """A model of images uint8 [1, *recipe.shape, C] with the recipe before it."""
    import onnx
    from onnx import compose, version_converter

    before = recipe_model(recipe, channels)
    opset = next(each.version for each in network.opset_import if each.domain in ("", "ai.onnx"))
    if opset < OPSET:
        network = version_converter.convert_version(network, OPSET)
    elif opset > OPSET:
        before = version_converter.convert_version(before, opset)
    before.ir_version = network.ir_version
    whole = compose.merge_models(before, network, io_map=[("pixels", network.graph.input[0].name)])
    onnx.checker.check_model(whole)
    return whole
