"""The shape, parameters, multiply-adds and receptive field of every layer of a network.

All are read from the jaxpr of one forward pass without computing it: an interpreter counts the multiply-adds
of convolutions and dot products by module, and tracks the pixels that each value depends on.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from flax import linen as nn
from flax import traverse_util
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from cnnjax.models import sized
from cnnjax.models.forward import image_struct, inner_jaxpr, shape_of, trace
from cnnjax.models.macs import equation_macs
from cnnjax.models.stages import StagedNet
from cnnjax.profiling.receptive_fields import IMAGE, UNKNOWN, Field, Fields, field_of, field_size


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the table: the module `name`, the shape of its output [H, W, C] or [C], and its scalars.

    `macs` are the multiply-adds for one image; None where a primitive cannot be counted. `receptive_field` is
    the pixels (height, width) of the image that one output depends on, including padding; inf for
    one that depends on the whole image through unlike paths, as a channel's gate does; None if unknown.
    """

    name: str
    output: tuple[int, ...]
    params: int
    macs: int | None
    receptive_field: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """Every layer that has parameters or multiplies, in the order of the forward pass, and their sums."""

    layers: list[Layer]
    params: int  # those of auxiliary heads too, which are in no row
    macs: int | None  # None where a primitive cannot be counted; FLOPs are twice the multiply-adds


def summarize(model: nn.Module | str, image_shape: Sequence[int] | None = None) -> Summary:
    """The layers of the forward pass of one image [H, W, C] (the preset's size of a spec) in evaluation."""
    walk = _walk(model, image_shape, scan=False)
    sizes, macs = walk.params, walk.macs
    layers = [
        Layer(name, shape[1:], sizes.get(name, 0), macs.get(name, 0), field_size(field))
        for name, (shape, field) in walk.outputs.items()
        if name in sizes or macs.get(name, 0) != 0
    ]
    return Summary(layers, sum(sizes.values()), walk.total_macs())


def totals(model: str, image_shape: Sequence[int] | None = None) -> tuple[int, int | None]:
    """(parameters, multiply-adds) as of `summarize`, quicker: equal blocks are traced once."""
    walk = _walk(model, image_shape, scan=True)
    return sum(walk.params.values()), walk.total_macs()


def image_fields(jaxpr: Jaxpr) -> dict[Var, Field]:
    """The field of each variable of a jaxpr that depends on its last input, an image [B, H, W, C]."""
    fields = _Walk({}).fill(jaxpr, {jaxpr.invars[-1]: IMAGE}, "")
    return {variable: field for variable, field in fields.items() if field is not None}


def _walk(model: nn.Module | str, image_shape: Sequence[int] | None, *, scan: bool) -> "_Walk":
    """Walks one image's forward pass of plain `lax` operations; with `scan` equal blocks are one, unnamed."""
    model, image_shape, variables = sized(model, image_shape)
    if isinstance(model, StagedNet):
        model = model.clone(scan_blocks=scan, remat=False)
    jaxpr = trace(model, variables, image_struct(image_shape)).jaxpr.jaxpr
    sizes: Counter[str] = Counter()
    for path, leaf in traverse_util.flatten_dict(variables.get("params", {})).items():
        sizes["/".join(path[:-1])] += leaf.size
    walk = _Walk(sizes)
    walk.run(jaxpr, [*[None] * (len(jaxpr.invars) - 1), IMAGE], "")
    return walk


class _Walk:
    """Interprets what in a jaxpr depends on the image; fills `macs` and `outputs` by module."""

    def __init__(self, params: Mapping[str, int]):
        self.params = params
        self.macs: dict[str, int | None] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], Field | None]] = {}

    def run(self, jaxpr: Jaxpr, fields: Fields, scope: str) -> Fields:
        """The fields of the outputs; `scope` is the name stack of the equation that holds the jaxpr."""
        known = self.fill(jaxpr, dict(zip(jaxpr.invars, fields, strict=True)), scope)
        return _fields_of(jaxpr.outvars, known)

    def fill(self, jaxpr: Jaxpr, known: dict[Var, Field | None], scope: str) -> dict[Var, Field | None]:
        """`known`, the field of each variable, with those of all that the jaxpr computes."""
        for eqn in jaxpr.eqns:
            inputs = _fields_of(eqn.invars, known)
            if all(field is None for field in inputs):
                continue
            names = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
            found = self._equation(eqn, inputs, names)
            known |= dict(zip(eqn.outvars, found, strict=True))
            self.outputs[self._module(names)] = (shape_of(eqn.outvars[0]), found[0])
        return known

    def total_macs(self) -> int | None:
        """The sum, or None if a part of it could not be told."""
        counts = [count for count in self.macs.values() if count is not None]
        return sum(counts) if len(counts) == len(self.macs) else None

    def _equation(self, eqn: JaxprEqn, fields: Fields, names: str) -> Fields:
        inner = inner_jaxpr(eqn)
        if inner and eqn.primitive.name == "scan":
            return self._scan(eqn, inner, fields, names)
        if inner and len(inner.invars) == len(fields):
            return self.run(inner, fields, names)
        macs, module = equation_macs(eqn), self._module(names)
        before = self.macs.get(module, 0)
        if macs is None or before is None:
            self.macs[module] = None
            return [UNKNOWN] * len(eqn.outvars)
        if macs:
            self.macs[module] = before + macs
        return [field_of(eqn, fields)] * len(eqn.outvars)

    def _scan(self, eqn: JaxprEqn, body: Jaxpr, fields: Fields, names: str) -> Fields:
        """Every turn is walked, so each adds its multiply-adds and widens the field."""
        end = _whole(eqn.invars, body.invars)  # jax's own counts are kept under other names from 0.12 on
        count = end - _whole(eqn.outvars, body.outvars)
        consts, outputs = fields[:count], fields[count:]  # the carry, then what comes in and goes out in rows
        for _ in range(eqn.params["length"]):
            rows = [field and UNKNOWN for field in fields[end:]]
            outputs = self.run(body, [*consts, *outputs[: end - count], *rows], names)
        return [*outputs[: end - count], *(field and UNKNOWN for field in outputs[end - count :])]

    def _module(self, names: str) -> str:
        """The path of the module that 'ResNet/stem/conv/...' lies in; names with a dot are methods."""
        parts = [name for name in names.split("/")[1:] if "." not in name]
        known = (end for end in range(len(parts), 0, -1) if "/".join(parts[:end]) in self.params)
        return "/".join(parts[: next(known, len(parts))])


def _fields_of(variables: Sequence[Var | Literal], known: Mapping[Var, Field | None]) -> Fields:
    return [None if isinstance(variable, Literal) else known.get(variable) for variable in variables]


def _whole(outside: Sequence[Var | Literal], inside: Sequence[Var | Literal]) -> int:
    """How many of a loop's arrays its body sees whole; it sees a row of the others, which come after them."""
    return sum(len(shape_of(a)) == len(shape_of(b)) for a, b in zip(outside, inside, strict=True))
