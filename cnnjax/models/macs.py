"""Multiply-adds of a network, counted in its traced forward pass."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Jaxpr, JaxprEqn

from cnnjax.models import variable_shapes
from cnnjax.models.forward import image_struct, inner_jaxpr, shape_of, trace

OPAQUE = {"while", "cond", "fft", "cholesky", "eigh", "qr", "svd", "triangular_solve", "ragged_dot_general"}


def count_macs(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Those of one image [H, W, C] in evaluation, without what has no count (`equation_macs`)."""
    model = model.clone(dtype=jnp.float32)
    variables = variable_shapes(model, image_shape)
    return _of_jaxpr(trace(model, variables, image_struct(image_shape)).jaxpr.jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if inner := inner_jaxpr(eqn):
            total += _of_jaxpr(inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
        else:
            total += equation_macs(eqn) or 0
    return total


def equation_macs(eqn: JaxprEqn) -> int | None:
    """Multiply-adds of one equation without a jaxpr in it; None if they cannot be told."""
    name, size = eqn.primitive.name, math.prod(shape_of(eqn.outvars[0]))
    if name == "conv_general_dilated":
        kernel = shape_of(eqn.invars[1])
        return size * math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    if name == "dot_general":
        left, ((contracted, _), _) = shape_of(eqn.invars[0]), eqn.params["dimension_numbers"]
        return size * math.prod(left[axis] for axis in contracted)
    if name == "cnnjax_dense":  # of bfloat16, see `ops.dense`
        return size * shape_of(eqn.invars[1])[0]
    return None if name in OPAQUE or "call" in name or name.startswith("cnnjax_") else 0
