"""A network as a graph of arrays: its jaxpr with what only depends on constants worked out."""

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from cnnjax.ops.portable import portable

BATCH = 3  # images of the trace; the first axis of all that depends on them
# Those that most constants of a network go through: numpy does not compile them for each shape.
_NUMPY: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: np.float32(1) / np.sqrt(x),
    "copy": np.asarray,
}


class Unknown(Exception):
    """A network with something that no step computes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An array that depends on the images: an operation of JAX on nodes and constants."""

    op: str
    inputs: tuple["Node | np.ndarray", ...]
    params: SimpleNamespace
    shape: tuple[int, ...]  # with BATCH images
    place: int  # in the order of the program
    index: int = 0  # of its operation's results


Known = Node | np.ndarray


def trace(apply: Callable[[jax.Array], jax.Array], shape: Sequence[int]) -> Node:
    """The graph of `apply`, images float32 [B, H, W, C] of that shape [H, W, C] -> logits; its result."""
    images = jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32)
    with portable():
        closed = jax.make_jaxpr(apply)(images)
    order: list[Node] = [Node("images", (), SimpleNamespace(), images.shape, 0)]
    (result,) = _evaluate(closed, order[:1], order)
    if not isinstance(result, Node):
        raise Unknown("logits that do not depend on the images")
    return result


def _evaluate(closed: ClosedJaxpr, arguments: Sequence[Known], order: list[Node]) -> list[Known]:
    jaxpr: Jaxpr = closed.jaxpr
    known: dict[Var, Known] = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True)

    def read(atom: Var | Literal) -> Known:
        return np.asarray(atom.val, _array(atom).dtype) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        inputs, op = [read(atom) for atom in eqn.invars], eqn.primitive.name
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        results: Sequence[Known]
        if isinstance(inner, ClosedJaxpr) and op in ("jit", "pjit", "custom_jvp_call", "custom_vjp_call"):
            results = _evaluate(inner, inputs, order)
        elif not any(isinstance(x, Node) for x in inputs):
            results = _constant(eqn, [x for x in inputs if not isinstance(x, Node)])
        else:
            shapes, params = [_array(var).shape for var in eqn.outvars], SimpleNamespace(**eqn.params)
            nodes = [Node(op, tuple(inputs), params, s, len(order), i) for i, s in enumerate(shapes)]
            order += nodes
            results = nodes
        known |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _array(atom: Var | Literal) -> ShapedArray:
    assert isinstance(atom.aval, ShapedArray)
    return atom.aval


def _constant(eqn: JaxprEqn, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    result = _array(eqn.outvars[0])
    if (name := eqn.primitive.name) in _NUMPY:
        return [np.asarray(_NUMPY[name](*inputs), result.dtype)]
    if name in ("reshape", "broadcast_in_dim"):
        shape, (x, *_) = result.shape, inputs
        if name == "broadcast_in_dim":
            kept = dict(zip(eqn.params["broadcast_dimensions"], x.shape, strict=True))
            return [np.broadcast_to(x.reshape([kept.get(axis, 1) for axis in range(len(shape))]), shape)]
        return [x.reshape(shape)]
    results = eqn.primitive.bind(*map(jnp.asarray, inputs), **eqn.params)
    return list(map(np.asarray, results if eqn.primitive.multiple_results else [results]))
