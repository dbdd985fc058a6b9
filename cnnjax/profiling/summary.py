"""What a network is made of: shape, parameters, multiply-adds and receptive field of every layer.

All of it is read from the jaxpr of one forward pass, in which nothing is computed: an interpreter walks the
equations, counts the multiply-adds of convolutions and dot products under the module that they belong to, and
carries along which pixels of the image a value depends on.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import Literal

from cnnjax.data.files import cache_folder, make_cache_folder
from cnnjax.models import create_model, variant
from cnnjax.ops import cpu
from cnnjax.profiling.receptive_fields import UNKNOWN, field_size, image_field, output_field

# Primitives whose multiply-adds cannot be read off their shapes; so are calls into foreign code.
OPAQUE = {"while", "cond", "fft", "cholesky", "eigh", "qr", "svd", "triangular_solve", "ragged_dot_general"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the table.

    Attributes:
      name: the module's path, 'stage1_block2/conv1'.
      output: the shape of its output without the batch: [H, W, C] or [C].
      params: trained scalars of its own.
      macs: multiply-adds for one image; None where a primitive cannot be counted.
      receptive_field: pixels (height, width) of the image that one output depends on, those in the padding
        included; inf for a value that depends on the whole image through unlike paths, as a channel's gate
        does; None where it cannot be told.
    """

    name: str
    output: tuple[int, ...]
    params: int
    macs: int | None
    receptive_field: tuple[float, float] | None


def count_macs(model: nn.Module | str, image_shape: Sequence[int] | None = None) -> int | None:
    """Multiply-adds of one image's forward pass in evaluation mode, auxiliary heads left out.

    Args:
      model: a linen module, or the spec of one, see `create_model`.
      image_shape: [H, W, C]; the preset's input size where a spec is given.

    Returns: their number (FLOPs are twice that), or None where a primitive cannot be counted.
    """
    return _walk(model, image_shape, scan=True).total_macs()


def layer_table(model: nn.Module | str, image_shape: Sequence[int] | None = None) -> list[Layer]:
    """Every layer that has parameters or multiplies, in the order of the forward pass; see `count_macs`."""
    return summarize(model, image_shape).layers


@dataclasses.dataclass(frozen=True)
class Summary:
    """The table and its sums; `params` counts auxiliary heads too, which are in no row."""

    layers: list[Layer]
    params: int
    macs: int | None


def summarize(model: nn.Module | str, image_shape: Sequence[int] | None = None) -> Summary:
    """The table of a model with its sums; arguments as for `count_macs`."""
    walk = _walk(model, image_shape, scan=False)
    sizes = walk.params
    layers = [
        Layer(name, shape[1:], sizes.get(name, 0), walk.macs.get(name, 0), field_size(field))
        for name, (shape, field) in walk.outputs.items()
        if name in sizes or walk.macs.get(name, 0) != 0
    ]
    return Summary(layers, sum(sizes.values()), walk.total_macs())


def totals(names: Iterable[str]) -> Iterator[tuple[int, int | None]]:
    """(parameters, multiply-adds) of variants by name, each as soon as it is known.

    A deep net takes seconds to trace, so they are kept in the user's cache folder, in a file named after a
    hash of the sources that they follow from; where that cannot be written they are counted anew.
    """
    file = cache_folder("models") / f"{_sources_hash()}.json"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    counted = len(known)
    try:
        for name in names:
            if name not in known:
                walk = _walk(name, None, scan=True)
                known[name] = sum(walk.params.values()), walk.total_macs()
            yield tuple(known[name])
    finally:  # also of what was counted before an interrupt
        if len(known) > counted:
            with contextlib.suppress(OSError):
                _replace_cache(make_cache_folder("models") / file.name, json.dumps(known))


def _sources_hash() -> str:
    package = Path(__file__).parents[1]
    files = [*sorted(package.glob("models/*.py")), *sorted(package.glob("ops/**/*.py"))]
    files += [Path(__file__), Path(__file__).with_name("receptive_fields.py")]
    parts = [jax.__version__.encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _replace_cache(file: Path, text: str) -> None:
    """Writes a file as a whole or not at all, and removes those of other sources."""
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(file)
    for old in file.parent.glob("*.json"):
        if old != file:
            old.unlink(missing_ok=True)


def trace_forward(model: nn.Module, image_shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The jaxpr of the forward pass of one image, its last input, and the shapes of the parameters.

    The one place that decides what is traced: plain `lax` convolutions, whatever kernels a platform has.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), image)
    with cpu.paused():
        jaxpr = jax.make_jaxpr(model.apply)(variables, image).jaxpr
    return jaxpr, variables.get("params", {})


def image_fields(jaxpr: Any) -> dict[Any, Any]:
    """The field of each variable of a jaxpr whose last input is an image [B, H, W, C].

    See `receptive_fields`; variables that do not depend on the image are left out.
    """
    return _Walk({}).fill(jaxpr, {jaxpr.invars[-1]: image_field()}, "")


def _walk(model: nn.Module | str, image_shape: Sequence[int] | None, *, scan: bool) -> "_Walk":
    """Walks a model; with `scan` equal blocks are one, which is quicker but gives them no names."""
    if isinstance(model, str):
        image_shape = image_shape or variant(model).preset.input_size
        model = create_model(model)
    fields = {"scan_blocks": scan, "remat": False}
    model = model.clone(**{name: value for name, value in fields.items() if hasattr(model, name)})
    jaxpr, params = trace_forward(model, tuple(image_shape))
    walk = _Walk(_own_params(params))
    walk.run(jaxpr, [*[None] * (len(jaxpr.invars) - 1), image_field()], "")
    return walk


def _own_params(params: Any) -> dict[str, int]:
    """Module path -> scalars of the module itself."""
    sizes: dict[str, int] = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        module = "/".join(path[:-1])
        sizes[module] = sizes.get(module, 0) + leaf.size
    return sizes


class _Walk:
    """Interprets a jaxpr: fills `macs` and `outputs` (shape and field) by module path.

    `params` are the scalars of each module. Equations that do not depend on the image are passed over.
    """

    def __init__(self, params: Mapping[str, int]):
        self.params = params
        self.macs: dict[str, int | None] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], Any]] = {}

    def run(self, jaxpr: Any, fields: list[Any], scope: str) -> list[Any]:
        """The fields of the outputs; `scope` is the name stack of the equation that holds the jaxpr."""
        known = self.fill(jaxpr, dict(zip(jaxpr.invars, fields, strict=True)), scope)
        return [None if isinstance(v, Literal) else known.get(v) for v in jaxpr.outvars]

    def fill(self, jaxpr: Any, known: dict[Any, Any], scope: str) -> dict[Any, Any]:
        """`known`, the field of each variable, with those of all that the jaxpr computes."""
        for eqn in jaxpr.eqns:
            inputs = [None if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
            if all(field is None for field in inputs):
                continue
            names = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
            found = self._equation(eqn, inputs, names)
            known |= dict(zip(eqn.outvars, found, strict=True))
            self.outputs[self._module(names)] = (eqn.outvars[0].aval.shape, found[0])
        return known

    def total_macs(self) -> int | None:
        """The sum, or None if a part of it could not be told."""
        counts = self.macs.values()
        return None if None in counts else sum(counts)

    def _equation(self, eqn: Any, fields: list[Any], names: str) -> list[Any]:
        name, inner = eqn.primitive.name, _inner_jaxpr(eqn)
        if name == "scan":
            return self._scan(eqn, inner, fields, names)
        if inner is not None and len(inner.invars) == len(fields):
            return self.run(inner, fields, names)
        macs = _equation_macs(eqn)
        module = self._module(names)
        if macs is None or self.macs.get(module, 0) is None:
            self.macs[module] = None
            return [UNKNOWN] * len(eqn.outvars)
        if macs:
            self.macs[module] = self.macs.get(module, 0) + macs
        return [output_field(eqn, fields)] * len(eqn.outvars)

    def _scan(self, eqn: Any, body: Any, fields: list[Any], names: str) -> list[Any]:
        """Every turn is walked, so each adds its multiply-adds and widens the field."""
        end = _whole(eqn.invars, body.invars)  # jax's own counts are kept under other names from 0.12 on
        count = end - _whole(eqn.outvars, body.outvars)
        consts, carry, rows = fields[:count], fields[count:end], fields[end:]
        rows = [None if field is None else UNKNOWN for field in rows]
        for _ in range(eqn.params["length"]):
            outputs = self.run(body, [*consts, *carry, *rows], names)
            carry = outputs[: len(carry)]
        return [*carry, *(None if field is None else UNKNOWN for field in outputs[len(carry) :])]

    def _module(self, names: str) -> str:
        """The path of the module that a name stack 'ResNet/stem/conv/...' lies in.

        Names with a dot are methods ('stem.extra'), and what no parameter stands under is left as it is.
        """
        parts = [name for name in names.split("/")[1:] if "." not in name]
        known = (end for end in range(len(parts), 0, -1) if "/".join(parts[:end]) in self.params)
        return "/".join(parts[: next(known, len(parts))])


def _whole(outside: list[Any], inside: list[Any]) -> int:
    """How many of a loop's arrays its body sees whole; it sees a row of the others, which come after them."""
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outside, inside, strict=True))


def _inner_jaxpr(eqn: Any) -> Any:
    """The jaxpr that an equation calls (jit, remat, scan, custom_vjp, ...), or None."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return getattr(eqn.params[name], "jaxpr", eqn.params[name])
    return None


def _equation_macs(eqn: Any) -> int | None:
    """Multiply-adds of one equation without a jaxpr in it; None if they cannot be told."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        return out.size * kernel.size // kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    if name == "dot_general":
        left, ((contracted, _), _) = eqn.invars[0].aval, eqn.params["dimension_numbers"]
        return out.size * math.prod(left.shape[axis] for axis in contracted)
    if name in OPAQUE or "call" in name:
        return None
    return 0
