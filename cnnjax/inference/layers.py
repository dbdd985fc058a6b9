"""The layers of a network, found in its graph: what each node stands for."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cnnjax.inference.trace import Known, Node, Unknown
from cnnjax.ops.cpu import Code

Act = tuple[str, float, float]  # name and its two numbers
Shape = tuple[int, int, int]  # [H, W, C] of one image; a vector is [1, 1, C]


@dataclasses.dataclass(eq=False)
class Layer:
    """One step to be; `kind` is one of the kernels', or "affine", "act", "add", "mul", "concat", "images"."""

    kind: str
    inputs: list["Layer"]
    shape: Shape
    place: int
    numbers: tuple[int, ...] = ()
    weights: np.ndarray | None = None
    bias: np.ndarray | None = None
    act: Act = ("", 0.0, 0.0)
    code: Code | None = None  # of its values, if they are 8-bit integers
    scales: np.ndarray | None = None  # of integer weights, for each channel


class Finder:
    """Finds the layers of a graph, given its last node."""

    def __init__(self, last: Node) -> None:
        self._found: dict[Node, Layer | None] = {}
        nodes, stack = {last}, [last]
        while stack:
            inputs = {x for x in stack.pop().inputs if isinstance(x, Node)} - nodes
            nodes |= inputs
            stack += inputs
        for node in sorted(nodes, key=lambda node: (node.place, node.index)):  # so that no search goes deep
            self._found[node] = self._search(node)

    def find(self, node: Known) -> Layer:
        """The layer that computes a node, always the same one; Unknown if none does."""
        layer = self._found[node] if isinstance(node, Node) else None
        if layer is None:
            raise Unknown(f"{node.op} {node.shape}" if isinstance(node, Node) else "a constant")
        return layer

    def _search(self, node: Node) -> Layer | None:
        rules = (_gelu, _gelu_tanh, _swish, _hard, _norm, _windows, _affine, _simple, _moved, _product)
        try:
            return next((layer for rule in rules if (layer := rule(node, self.find))), None)
        except Unknown:
            return None


Find = Callable[[Known], Layer]


def _shape(node: Node) -> Shape:
    sizes = node.shape[1:]
    if len(sizes) == 1 or (len(sizes) == 3 and sizes[:2] == (1, 1)):
        return 1, 1, sizes[-1]
    if len(sizes) != 3:
        raise Unknown(f"{node.op} {node.shape}")
    return sizes[0], sizes[1], sizes[2]


def _plain(node: Known) -> Known:
    """The node behind changes of shape that move no number."""
    while isinstance(node, Node) and (
        node.op in ("reshape", "copy", "copy_p", "stop_gradient", "squeeze", "expand_dims")
        or (node.op == "convert_element_type" and node.params.new_dtype == np.float32)
        or (node.op == "broadcast_in_dim" and np.prod(node.shape) == np.prod(_sizes(node.inputs[0])))
    ):
        node = node.inputs[0]
    return node


def _sizes(x: Known) -> tuple[int, ...]:
    return tuple(x.shape)


def _parts(node: Known, op: str) -> tuple[Known, ...]:
    """A node's inputs if it is of that operation, nodes before constants; else nothing."""
    if not isinstance(node, Node) or node.op != op:
        return ()
    if op in ("add", "mul", "max", "min"):
        return tuple(sorted(node.inputs, key=lambda x: not isinstance(x, Node)))
    return node.inputs


def _scaled(node: Known, op: str, number: float) -> Known | None:
    """x if the node is x op number."""
    parts = _parts(node, op)
    if len(parts) == 2 and isinstance(parts[1], np.ndarray) and parts[1].size == 1:
        return parts[0] if np.isclose(float(parts[1].reshape(())), number, rtol=1e-5) else None
    return None


def _pairs(node: Node, op: str) -> Sequence[tuple[Known, Known]]:
    """Both orders of a node's two inputs, if it is of that operation."""
    parts = _parts(node, op)
    return [(parts[0], parts[1]), (parts[1], parts[0])] if len(parts) == 2 else []


def _acted(name: str, x: Known, node: Node, find: Find, alpha: float = 0.0, beta: float = 0.0) -> Layer:
    return Layer("act", [find(x)], _shape(node), node.place, act=(name, alpha, beta))


def _gelu(node: Node, find: Find) -> Layer | None:
    for a, b in _pairs(node, "mul"):
        x, inner = _scaled(a, "mul", 0.5), _parts(b, "erfc")
        negative = _scaled(inner[0], "mul", 0.5**0.5) if inner else None
        if x is not None and negative is not None and _parts(negative, "neg") == (x,):
            return _acted("gelu", x, node, find)
    return None


def _gelu_tanh(node: Node, find: Find) -> Layer | None:
    for x, b in _pairs(node, "mul"):
        tanh = _parts(_scaled(_scaled(b, "mul", 0.5), "add", 1.0), "tanh")  # type: ignore[arg-type]
        inner = _scaled(tanh[0], "mul", (2 / np.pi) ** 0.5) if tanh else None
        for same, cubed in _pairs(inner, "add") if isinstance(inner, Node) else ():
            cube = _scaled(cubed, "mul", 0.044715)
            if same is x and _parts(cube, "integer_pow") == (x,) and cube.params.y == 3:  # type: ignore
                return _acted("gelu_tanh", x, node, find)
    return None


def _swish(node: Node, find: Find) -> Layer | None:
    for x, gate in _pairs(node, "mul"):
        if _parts(gate, "logistic") == (x,):
            return _acted("swish", x, node, find)
        if (inner := _hard_sigmoid(gate)) is not None and inner is x:
            return _acted("hard_swish", x, node, find)
    return None


def _hard_sigmoid(node: Known) -> Known | None:
    low = _scaled(_scaled(node, "div", 6.0), "min", 6.0)  # type: ignore[arg-type]
    return _scaled(_scaled(low, "max", 0.0), "add", 3.0)  # type: ignore[arg-type]


def _hard(node: Node, find: Find) -> Layer | None:
    if (x := _hard_sigmoid(node)) is not None:
        return _acted("hard_sigmoid", x, node, find)
    if (x := _scaled(node, "max", 0.0)) is not None:
        return _acted("relu", x, node, find)
    low, high = _parts(node, "min") or (None, None)
    x = _scaled(low, "max", 0.0) if isinstance(low, Node) else None
    if x is not None and isinstance(high, np.ndarray) and high.size == 1:
        return _acted("clip", x, node, find, 0.0, float(high.reshape(())))
    if node.op in ("logistic", "tanh"):
        return _acted(node.op, node.inputs[0], node, find)
    return None


def _norm(node: Node, find: Find) -> Layer | None:
    """Layer normalization over channels: (x - mean) * (rsqrt(var + epsilon) * scale) + bias."""
    product, bias = _parts(node, "add") or (None, None)
    centered, factor = _parts(product, "mul") or (None, None)  # type: ignore[arg-type]
    root, scale = _parts(factor, "mul") or (None, None)  # type: ignore[arg-type]
    x, mean = _parts(centered, "sub") or (None, None)  # type: ignore[arg-type]
    inner = _parts(root, "rsqrt")  # type: ignore[arg-type]
    if not isinstance(bias, np.ndarray) or not isinstance(scale, np.ndarray) or not inner or x is None:
        return None
    var, epsilon = _parts(inner[0], "add") or (None, None)
    if not isinstance(epsilon, np.ndarray) or epsilon.size != 1 or _mean(mean) is not x:  # type: ignore
        return None
    squares = _parts(_mean(var), "square")  # type: ignore[arg-type]
    same, average = _parts(squares[0], "sub") if squares else (None, None)
    shape = _shape(node)
    if same is not x or _mean(average) is not x or scale.size != shape[2] or bias.size != shape[2]:  # type: ignore
        return None
    weights, after = scale.reshape(-1), bias.reshape(-1)
    act = ("", float(epsilon.reshape(())), 0.0)
    return Layer("layer_norm", [find(x)], shape, node.place, weights=weights, bias=after, act=act)


def _mean(node: Known) -> Known | None:
    """x if the node is its mean over channels."""
    divided = _parts(_plain(node), "div")
    total = _plain(divided[0]) if divided else None
    if isinstance(total, Node) and total.op == "reduce_sum" and isinstance(x := total.inputs[0], Node):
        count = x.shape[-1]
        same = total.params.axes == (len(x.shape) - 1,) and _scaled(_plain(node), "div", count) is divided[0]
        return x if same else None
    return None


def _windows(node: Node, find: Find) -> Layer | None:
    """Maxima and sums of windows."""
    if node.op in ("reduce_sum", "reduce_max") and len(_sizes(node.inputs[0])) == 4:
        x = find(node.inputs[0])
        if node.params.axes != (1, 2):
            return None
        kind = "sum_pool" if node.op == "reduce_sum" else "max_pool"
        weights = np.ones(1, np.float32) if kind == "sum_pool" else None
        return Layer(kind, [x], _shape(node), node.place, (*x.shape[:2], 1, 1, 0, 0), weights)
    if node.op == "reduce_window_max":
        p = node.params
        if set(p.base_dilation) | set(p.window_dilation) != {1}:
            return None
        (_, *window, one), (_, *strides, _) = p.window_dimensions, p.window_strides
        source, sides = _padded(node.inputs[0], -np.inf, p.padding[1:3])
        if (
            one != 1
            or p.window_dimensions[0] != 1
            or any(side[0] >= w for side, w in zip(sides, window, strict=True))
        ):
            return None
        numbers = (*window, *strides, sides[0][0], sides[1][0])
        return Layer("max_pool", [find(source)], _shape(node), node.place, numbers)
    if node.op in ("div", "mul") and isinstance(divisor := _parts(node, node.op)[1], np.ndarray):
        total = _parts(node, node.op)[0]
        if not isinstance(total, Node) or divisor.shape != (1, *node.shape[1:3], 1):
            return None
        if (layer := find(total)).kind == "sum_pool" and layer.weights is not None:
            factor = divisor.reshape(-1) if node.op == "mul" else 1 / divisor.reshape(-1)
            return dataclasses.replace(layer, weights=layer.weights * factor, place=node.place)
    return None


def _padded(x: Known, value: float, sides: Sequence[Sequence[int]]) -> tuple[Known, list[tuple[int, int]]]:
    """What is padded with that value, and the sides together with those given."""
    given = [(int(before), int(after)) for before, after in sides]
    if isinstance(x, Node) and x.op == "pad" and isinstance(x.inputs[1], np.ndarray):
        (images, *rows, channels), filler = x.params.padding_config, float(x.inputs[1].reshape(()))
        plain = all(tuple(axis) == (0, 0, 0) for axis in (images, channels))
        if filler == value and plain and all(b >= 0 and a >= 0 and i == 0 for b, a, i in rows):
            both = zip(given, rows, strict=True)
            return x.inputs[0], [(side[0] + row[0], side[1] + row[1]) for side, row in both]
    return x, given


def _affine(node: Node, find: Find) -> Layer | None:
    """x * weights + bias by constants of the channels."""
    shape, one = _shape(node) if len(node.shape) in (2, 4) else (0, 0, 0), np.ones(1, np.float32)
    if node.op == "neg":
        x, pair = node.inputs[0], (-one, 0 * one)
    elif node.op in ("add", "sub", "mul", "div") and any(isinstance(v, np.ndarray) for v in node.inputs):
        first = isinstance(node.inputs[0], np.ndarray)
        x, c = node.inputs[first], node.inputs[not first]
        if (
            not isinstance(c, np.ndarray)
            or (c.size != 1 and c.size != c.shape[-1])
            or (first and node.op == "div")
        ):
            return None
        c = c.reshape(-1).astype(np.float32)
        scale = np.reciprocal(c) if node.op == "div" else c
        pairs = {"add": (one, c), "mul": (scale, 0 * one), "div": (scale, 0 * one), "sub": (one, -c)}
        pair = (-one, c) if first and node.op == "sub" else pairs[node.op]
    else:
        return None
    weights, bias = (np.broadcast_to(value, shape[2]).astype(np.float32) for value in pair)
    return Layer("affine", [find(x)], shape, node.place, weights=weights, bias=bias)


def _simple(node: Node, find: Find) -> Layer | None:
    """What is one layer: images, additions, products with a gate, concatenations, changes of shape."""
    if node.op == "images":
        return Layer("images", [], _shape(node), 0)
    if (x := _plain(node)) is not node and isinstance(x, Node):
        found = find(x)
        flat = np.prod(found.shape) == _shape(node)[2]
        if found.shape != _shape(node) and not flat:
            return None
        return found if found.shape == _shape(node) else Layer("flat", [found], _shape(node), node.place)
    if node.op in ("add", "mul"):
        layers = sorted(map(find, node.inputs), key=lambda layer: -int(np.prod(layer.shape)))
        if layers[0].shape != _shape(node) or layers[1].shape not in (_shape(node), (1, 1, _shape(node)[2])):
            return None
        return Layer(node.op, layers, _shape(node), node.place)
    if node.op == "concatenate" and node.params.dimension == len(node.shape) - 1:
        return Layer("concat", list(map(find, node.inputs)), _shape(node), node.place)
    return None


def _moved(node: Node, find: Find) -> Layer | None:
    """Pieces of an array, every so many pixels, and more channels of zeros."""
    if node.op == "slice" and node.shape == _sizes(node.inputs[0]):
        return find(node.inputs[0])
    if node.op == "pad" and not any(map(any, node.params.padding_config)):
        return find(node.inputs[0])
    if node.op == "slice" and len(node.shape) == 4:
        begin, steps = node.params.start_indices, node.params.strides or (1,) * 4
        if begin[0] or node.shape[0] != _sizes(node.inputs[0])[0] or steps[0] != 1 or steps[3] != 1:
            return None
        numbers = (*begin[1:], *steps[1:3], *node.shape[1:], 0, 0, 0, 0)
        return Layer("copy", [find(node.inputs[0])], _shape(node), node.place, numbers)
    if node.op == "split" and node.params.axis == len(node.shape) - 1 and len(node.shape) == 4:
        begin = sum(node.params.sizes[: node.index])
        numbers = (0, 0, begin, 1, 1, *node.shape[1:], 0, 0, 0, 0)
        return Layer("copy", [find(node.inputs[0])], _shape(node), node.place, numbers)
    if node.op == "pad" and len(node.shape) == 4 and isinstance(node.inputs[1], np.ndarray):
        config = node.params.padding_config
        if (
            node.inputs[1].any()
            or any(low < 0 or high < 0 or inner for low, high, inner in config)
            or any(config[0])
        ):
            return None
        sizes = _sizes(node.inputs[0])[1:]
        numbers = (0, 0, 0, 1, 1, *sizes, *(low for low, _, _ in config[1:]), 1)
        return Layer("copy", [find(node.inputs[0])], _shape(node), node.place, numbers)
    return None


def _product(node: Node, find: Find) -> Layer | None:
    """Convolutions, those of ones alone being sums of windows, and dense layers."""
    if node.op == "dot_general":
        x, kernel = node.inputs
        last = (len(_sizes(x)) - 1,)
        if node.params.dimension_numbers != ((last, (0,)), ((), ())) or not isinstance(kernel, np.ndarray):
            return None
        return Layer("dense", [find(x)], _shape(node), node.place, weights=kernel)
    if node.op != "conv_general_dilated" or not isinstance(kernel := node.inputs[1], np.ndarray):
        return None
    p = node.params
    layout = p.dimension_numbers
    specs = tuple(map(tuple, (layout.lhs_spec, layout.rhs_spec, layout.out_spec)))
    if specs != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) or tuple(p.lhs_dilation) != (1, 1):
        return None
    x, sides = _padded(node.inputs[0], 0.0, p.padding)
    if min(map(min, sides)) < 0 or p.batch_group_count != 1:
        return None
    groups, strides, dilation = p.feature_group_count, p.window_strides, p.rhs_dilation
    window, channels = kernel.shape[:2], kernel.shape[3]
    sums = (
        kernel.shape[2] == 1 and groups == channels > 1 and tuple(dilation) == (1, 1) and (kernel == 1).all()
    )
    if sums and all(side[0] < w for side, w in zip(sides, window, strict=True)):
        ones = np.ones(_shape(node)[0] * _shape(node)[1], np.float32)
        numbers = (*window, *strides, sides[0][0], sides[1][0])
        return Layer("sum_pool", [find(x)], _shape(node), node.place, numbers, ones)
    numbers = (*window, *strides, *sides[0], *sides[1], *dilation, groups)
    return Layer("conv", [find(x)], _shape(node), node.place, numbers, kernel)
