"""A forward pass as a row of stages: convolutions, ReLUs, poolings and additions, each with its output.

They are read from the traced equations (see `models.forward`), so that what a module does in one go, such as
BatchNorm with its ReLU and pooling, comes apart.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen import Module
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from cnnjax.models.forward import (
    Layer,
    Shape,
    Trace,
    Variables,
    called_name,
    image_struct,
    inner_jaxpr,
    module_path,
    shape_of,
    trace,
    unrolled,
)
from cnnjax.models.macs import equation_macs
from cnnjax.ops.portable import portable
from cnnjax.profiling.receptive_fields import Field
from cnnjax.profiling.summary import image_fields

IMAGE = -1  # as the number of a stage
ACTIVATIONS = {
    **{"relu": "ReLU", "relu6": "ReLU6", "tanh": "tanh", "logistic": "sigmoid", "silu": "SiLU"},
    **{"gelu": "GELU", "hard_silu": "hard SiLU", "hard_sigmoid": "hard sigmoid", "elu": "ELU"},
    **{"sigmoid": "sigmoid", "softmax": "softmax", "leaky_relu": "leaky ReLU"},
}
POOLS = {"reduce_window_max": "max pooling", "reduce_window_min": "min pooling"}
# Equations that leave values as they are, only with other borders, types or repetitions.
PLAIN = {"pad", "convert_element_type", "copy", "broadcast_in_dim", "squeeze", "stop_gradient", "copy_p"}
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Window:
    """The windows of a convolution or a pooling, by height and width."""

    size: Pair
    stride: Pair
    padding: tuple[Pair, Pair]  # (top, bottom), (left, right)
    dilation: Pair = (1, 1)
    groups: int = 1
    value: float = 0.0  # of the padding


@dataclasses.dataclass(frozen=True, eq=False)
class Mean:
    """How an average pooling weighs the pixels of a window, and what each place divides their sum by."""

    weights: np.ndarray  # [kh, kw]
    divisors: np.ndarray | None = None  # [H, W]; None if the sum is not divided

    def at(self, place: Pair) -> np.ndarray:
        """The weights of a place, the division in them: [kh, kw]."""
        return self.weights if self.divisors is None else self.weights / self.divisors[place]


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One step of the forward pass; `layer` is its output, `sources` are the stages that it reads."""

    kind: str
    module: str
    layer: Layer
    sources: tuple[int, ...]  # numbers of stages; IMAGE is the image
    field: Field | None
    params: int = 0
    macs: int = 0
    window: Window | None = None
    kernel: Var | None = None  # of a convolution or a dense layer
    mean: "Mean | None" = None  # of an average pooling


@dataclasses.dataclass(frozen=True)
class Stages:
    """A traced forward pass and its stages in order."""

    traced: Trace
    rows: list[Stage]

    def kernel(self, stage: Stage, variables: Variables) -> jax.Array | None:
        """The weights [kh, kw, C, F] or [C, F] that a stage multiplies by; None if they are computed."""
        leaves = jax.tree.leaves(variables)
        given = dict(zip(self.traced.jaxpr.jaxpr.invars[: len(leaves)], leaves, strict=True))
        return None if stage.kernel is None else given.get(stage.kernel)


def stages(model: Module, variables: Variables, image_shape: Shape) -> Stages:
    """The stages of the forward pass of one image [H, W, C] in evaluation."""
    with portable():  # in which a pooling is one equation
        traced = trace(unrolled(model), variables, image_struct(image_shape))
    return Stages(traced, _Reader(traced.jaxpr, variables).read())


@dataclasses.dataclass
class _Value:
    """What is known of a variable: the stages it comes from, and what was done to them since."""

    sources: frozenset[int]
    done: frozenset[str] = frozenset()
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    index: int = -1  # of the equation that gives it

    @property
    def plain(self) -> bool:
        return self.done <= PLAIN and len(self.sources) == 1


class _Reader:
    def __init__(self, closed: ClosedJaxpr, variables: Variables):
        jaxpr = closed.jaxpr
        self.jaxpr, self.fields = jaxpr, image_fields(jaxpr)
        self.constants = dict(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
        self.values: dict[Var, _Value] = {jaxpr.invars[-1]: _Value(frozenset([IMAGE]))}
        self.rows: list[Stage] = []
        self.uses = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal))
        names = traverse_util.flatten_dict(variables.get("params", {}))
        self.norms = {"/".join(path[:-1]) for path in names if path[-1] == "scale"}
        self.origin: dict[Var, Var] = {}  # of weights that were only converted
        # The params that a variable is made of, and of each the equation that brings it to the image.
        params = [kind[0].key == "params" for kind, _ in jax.tree_util.tree_leaves_with_path(variables)]
        own = zip(jaxpr.invars, params, strict=False)
        self.params = {v: frozenset([v] if is_param else []) for v, is_param in own}
        self.used: dict[Var, int] = {}

    def read(self) -> list[Stage]:
        for index, eqn in enumerate(self.jaxpr.eqns):
            inputs = [v for v in eqn.invars if not isinstance(v, Literal) and v in self.values]
            made_of = [self.params.get(v, frozenset()) for v in eqn.invars if not isinstance(v, Literal)]
            if inputs:
                self.used = dict.fromkeys(frozenset().union(*made_of), index) | self.used
                self._take(index, eqn, inputs)
                continue
            self.params |= dict.fromkeys(eqn.outvars, frozenset().union(*made_of))
            first = eqn.invars[0] if eqn.invars else None
            if eqn.primitive.name == "convert_element_type" and isinstance(first, Var):
                self.origin[eqn.outvars[0]] = self.origin.get(first, first)
            if eqn.primitive.name == "broadcast_in_dim" and first in self.constants:
                self.constants[eqn.outvars[0]] = self.constants[first]
        (out,) = [v for v in self.jaxpr.outvars[:1] if not isinstance(v, Literal)]
        if self.values[out].done - PLAIN:
            self._settle(out, "")
        return self._with_params()

    def _with_params(self) -> list[Stage]:
        """The stages with the numbers of their parameters: those that come in by their last equation."""
        ends = sorted((row.layer.index, number) for number, row in enumerate(self.rows))
        sizes: Counter[int] = Counter()
        for variable, index in self.used.items():
            number = next(number for end, number in ends if end >= index)
            sizes[number] += math.prod(shape_of(variable))
        return [dataclasses.replace(row, params=sizes[number]) for number, row in enumerate(self.rows)]

    def _take(self, index: int, eqn: JaxprEqn, inputs: Sequence[Var]) -> None:
        module, name = "/".join(module_path(eqn)), called_name(eqn)
        kind = self._kind(eqn, name, inputs)
        last = self.rows[-1] if self.rows else None
        own = next(iter(self.values[inputs[0]].sources), IMAGE)
        if kind:
            self._add(index, eqn, inputs, kind, module)
        elif module in self.norms and last and last.module == module and last.kind == "normalization":
            self._extend(len(self.rows) - 1, index, eqn)
        elif module in self.norms and (last is None or last.module != module):
            self._add(index, eqn, inputs, "normalization", module)
        elif self._continues(inputs, own, module, name):
            self._extend(own, index, eqn)
        else:
            known = [self.values[v] for v in inputs]
            sources = frozenset().union(*(value.sources for value in known))
            vector = name == "reshape" and set(shape_of(eqn.outvars[0])[1:-1]) == {1}  # as 1 x 1 places
            name = "squeeze" if vector else name.strip("_")
            done = frozenset([name]).union(*(value.done for value in known))
            padding = _padding(eqn) if name == "pad" else None
            for out in eqn.outvars:
                self.values[out] = _Value(sources, done, padding or known[0].padding, index)

    def _continues(self, inputs: Sequence[Var], own: int, module: str, name: str) -> bool:
        """Whether an equation adds a bias, divides a sum and the like, and so belongs to the stage before."""
        value = self.values[inputs[0]]
        if own == IMAGE or value.done or len(inputs) != 1 or self.uses[inputs[0]] != 1:
            return False
        stage, elementwise = self.rows[own], name in ("add", "sub", "mul", "div", "convert_element_type")
        sums = ("convolution", "dense layer", "average pooling", "global average pooling")
        return elementwise and stage.kind in sums and stage.module == module

    def _kind(self, eqn: JaxprEqn, name: str, inputs: Sequence[Var]) -> str:
        """The stage that an equation makes by itself, or '' for one of several."""
        known, out = [self.values[v] for v in inputs], shape_of(eqn.outvars[0])
        if name == "conv_general_dilated":
            return "convolution" if self._weights(eqn) in self.jaxpr.invars else "average pooling"
        if name in ("dot_general", "cnnjax_dense") and len(inputs) == 1:
            return "dense layer"
        if name in POOLS or name in ACTIVATIONS:
            return POOLS.get(name) or ACTIVATIONS[name]
        if name == "concatenate" and len(inputs) > 1 and len(out) == 4:
            same = len({value.sources for value in known}) == 1
            return "" if same else "concatenation"
        if name in ("reduce_sum", "reduce_max") and len(shape_of(inputs[0])) == 4:
            kinds = {"reduce_sum": "global average pooling", "reduce_max": "global max pooling"}
            return kinds[name] if tuple(eqn.params["axes"]) == (1, 2) else ""
        if name == "reshape" and len(shape_of(inputs[0])) == 4 and len(out) == 2:
            return "flattening" if max(shape_of(inputs[0])[1:3]) > 1 else ""
        if name in ("add", "add_any", "mul") and len(inputs) == 2 and known[0].sources != known[1].sources:
            return "scaling" if name == "mul" else "addition"
        return ""

    def _add(self, index: int, eqn: JaxprEqn, inputs: Sequence[Var], kind: str, module: str) -> None:
        for variable in inputs:
            if not self.values[variable].plain:
                self._settle(variable, module)
        known = [self.values[v] for v in inputs]
        out = eqn.outvars[0]
        weighted = kind in ("convolution", "dense layer")
        stage = Stage(
            kind,
            module,
            Layer(module or kind, shape_of(out)[1:], index),
            tuple(dict.fromkeys(next(iter(value.sources)) for value in known)),
            self.fields.get(out),
            macs=(equation_macs(eqn) or 0) if weighted else 0,
            window=_window(eqn, kind, known[0].padding),
            kernel=self._weights(eqn) if weighted else None,
            mean=self._mean(eqn) if kind == "average pooling" else None,
        )
        self.rows.append(stage)
        self._outputs(eqn, len(self.rows) - 1, index)

    def _weights(self, eqn: JaxprEqn) -> Var | None:
        """The parameter behind the second operand, if it is one as it was given."""
        weights = eqn.invars[1]
        return None if isinstance(weights, Literal) else self.origin.get(weights, weights)

    def _mean(self, eqn: JaxprEqn) -> Mean | None:
        weights = self._constant(eqn)
        return None if weights is None or weights.ndim != 2 else Mean(weights)

    def _constant(self, eqn: JaxprEqn) -> np.ndarray | None:
        """The second operand, if it is an array that the program holds."""
        operand = eqn.invars[1] if len(eqn.invars) > 1 else None
        return self.constants.get(operand) if isinstance(operand, Var) else None

    def _extend(self, number: int, index: int, eqn: JaxprEqn) -> None:
        """The stage ends with this equation."""
        if len(shape := shape_of(eqn.outvars[0])) > len(self.rows[number].layer.shape):
            layer = dataclasses.replace(self.rows[number].layer, shape=shape[1:], index=index)
            field = self.fields.get(eqn.outvars[0])
            self.rows[number] = dataclasses.replace(self.rows[number], layer=layer, field=field)
        mean, divisors = self.rows[number].mean, self._constant(eqn)
        if mean and divisors is not None and eqn.primitive.name == "div":
            mean = dataclasses.replace(mean, divisors=divisors.reshape(divisors.shape[1:3]))
            self.rows[number] = dataclasses.replace(self.rows[number], mean=mean)
        self._outputs(eqn, number, index)

    def _outputs(self, eqn: JaxprEqn, number: int, index: int) -> None:
        for out in eqn.outvars:
            self.values[out] = _Value(frozenset([number]), index=index)

    def _settle(self, variable: Var, module: str) -> None:
        """Makes a stage of what several equations gave, such as response normalization."""
        value = self.values[variable]
        layer = Layer(_composed(value.done), shape_of(variable)[1:], value.index)
        sources = tuple(sorted(value.sources))
        self.rows.append(Stage(layer.name, module, layer, sources, self.fields.get(variable)))
        self.values[variable] = _Value(frozenset([len(self.rows) - 1]), index=value.index)


def _composed(done: frozenset[str]) -> str:
    """What a chain of equations is called."""
    signs = {"erfc": "GELU", "erf": "GELU", "rsqrt": "response normalization", "logistic": "SiLU"}
    signs |= {"stack": "channel shuffle", "split": "channel split", "slice": "cut", "max": "maximum"}
    return next((word for name, word in signs.items() if name in done), "rearrangement")


def _padding(eqn: JaxprEqn) -> tuple[Pair, Pair] | None:
    """The borders that an equation, or the function it calls, puts around the rows and columns."""
    inner = inner_jaxpr(eqn)
    for each in inner.eqns if inner else ():
        if found := _padding(each):
            return found
    if eqn.primitive.name != "pad":
        return None
    _, (top, bottom, _), (left, right, _), *_ = eqn.params["padding_config"]
    return (int(top), int(bottom)), (int(left), int(right))


def _window(eqn: JaxprEqn, kind: str, around: tuple[Pair, Pair]) -> Window | None:
    """The windows of an equation of images [B, H, W, C], the borders of its operand counted as padding."""
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        if numbers.lhs_spec != (0, 3, 1, 2) or numbers.rhs_spec != (3, 2, 0, 1):
            return None
        size = shape_of(eqn.invars[1])[:2]
        stride, own, dilation = (eqn.params[x] for x in ("window_strides", "padding", "rhs_dilation"))
        groups = eqn.params["feature_group_count"]
    elif kind in POOLS.values():
        size, stride, dilation = (
            eqn.params[x][1:3] for x in ("window_dimensions", "window_strides", "window_dilation")
        )
        own, groups = eqn.params["padding"][1:3], 1
    else:
        return None
    (top, bottom), (left, right) = around
    padding = ((top + own[0][0], bottom + own[0][1]), (left + own[1][0], right + own[1][1]))
    empty = {"max pooling": -jnp.inf, "min pooling": jnp.inf}.get(kind, 0.0)
    return Window((size[0], size[1]), tuple(stride), padding, tuple(dilation), groups, float(empty))


def counts(rows: Sequence[Stage]) -> Mapping[str, int]:
    """Parameters and multiply-adds of all stages."""
    return {"params": sum(row.params for row in rows), "macs": sum(row.macs for row in rows)}
