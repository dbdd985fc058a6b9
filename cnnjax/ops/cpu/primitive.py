"""A JAX primitive with two bodies: an XLA reference everywhere, a call of the kernels on one CPU."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

Arrays = jax.Array | tuple[jax.Array, ...]
Reference = Callable[..., Arrays]
Attributes = dict[str, np.generic | np.ndarray]


def make_primitive(
    name: str,
    reference: Reference,
    target: str = "",
    attributes: Callable[..., Attributes | None] = lambda *_, **__: None,
    multiple_results: bool = False,
    alike: Callable[..., Sequence[ShapedArray]] | None = None,
    aliases: Mapping[int, int] | None = None,
) -> Primitive:
    """A primitive that computes `reference`, and on a CPU through the FFI call `target`.

    Its shapes, derivative (`jax.jvp`), batching (`jax.vmap`) and lowering are those of the reference, except
    that where one CPU device runs the program it lowers to the call. Exported programs and those for several
    devices keep the reference, which is portable and which the partitioner understands.
    `reference` is (*arrays, **hashable parameters) -> array, or a tuple of them with `multiple_results`;
    `attributes` (avals of arrays, avals of results, **parameters) -> those of the call, or None for XLA;
    `alike` (*avals of arrays, **parameters) -> those that the results are like, if known without tracing;
    `aliases` are the arrays, by number, whose memory a result of the call may take.
    """
    primitive = Primitive(f"cnnjax_{name}")
    primitive.multiple_results = multiple_results
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(_abstract_eval(reference, multiple_results, alike))
    mlir.register_lowering(primitive, mlir.lower_fun(reference, multiple_results=multiple_results))
    on_cpu = _on_cpu(primitive, reference, target, attributes, aliases or {})
    mlir.register_lowering(primitive, on_cpu, platform="cpu")

    def jvp(primals, tangents, **parameters):
        tangents = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
        results, tangents = jax.jvp(functools.partial(reference, **parameters), tuple(primals), tangents)
        return results, jax.tree.map(_symbolic, tangents)

    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = functools.partial(map_reference, reference)
    return primitive


def _abstract_eval(
    reference: Reference, multiple_results: bool, alike: Callable[..., Sequence[ShapedArray]] | None
) -> Callable[..., ShapedArray | list[ShapedArray]]:
    # A deep net asks for the same shapes again and again, and JAX would trace the reference each time.
    @functools.lru_cache(4096)
    def shapes_and_dtypes(inputs, parameters):
        arrays = [jax.ShapeDtypeStruct(*each) for each in inputs]
        results = jax.eval_shape(functools.partial(reference, **dict(parameters)), *arrays)
        return [(result.shape, result.dtype) for result in jax.tree.leaves(results)]

    def abstract(*avals, **parameters):
        if alike:
            return [ShapedArray(aval.shape, aval.dtype) for aval in alike(*avals, **parameters)]
        inputs = tuple((aval.shape, aval.dtype) for aval in avals)
        results = [ShapedArray(*each) for each in shapes_and_dtypes(inputs, tuple(parameters.items()))]
        return results if multiple_results else results[0]

    return abstract


def _on_cpu(
    primitive: Primitive,
    reference: Reference,
    target: str,
    attributes: Callable[..., Attributes | None],
    aliases: Mapping[int, int],
) -> mlir.LoweringRule:
    def widened(*arrays, **parameters):
        results = primitive.bind(*(array.astype(jnp.float32) for array in arrays), **parameters)
        return jax.tree.map(lambda result: result.astype(jnp.bfloat16), results)

    lowered = functools.partial(mlir.lower_fun, multiple_results=primitive.multiple_results)
    in_xla, in_float32 = map(lowered, (reference, widened))

    def lower(context, *arrays, **parameters):
        inputs, results = context.avals_in, context.avals_out
        if not runs_on_one_device(context):
            return in_xla(context, *arrays, **parameters)
        if (call := attributes(inputs, results, **parameters)) is not None:
            return jax.ffi.ffi_lowering(target, operand_output_aliases=aliases)(context, *arrays, **call)
        # Processors without bfloat16 of their own: the call in float32 is several times as fast as XLA.
        if all(aval.dtype == jnp.bfloat16 for aval in (*inputs, *results)):
            wide = ([aval.update(dtype=jnp.float32) for aval in avals] for avals in (inputs, results))
            if attributes(*wide, **parameters) is not None:
                return in_float32(context, *arrays, **parameters)
        return in_xla(context, *arrays, **parameters)

    return lower


def set_gradient(
    primitive: Primitive, reference: Reference, gradient: Callable[..., Sequence[jax.Array]]
) -> None:
    """Makes reverse mode take `gradient`; forward mode and higher orders stay the reference's.

    The primitive has multiple_results, all floating point; `gradient` is (arrays, results, cotangents of the
    results or `ad.Zero`, **parameters) -> cotangents of the arrays.
    """

    # The derivative is a primitive of its own, linear in its last inputs; transposed, it is the gradient.
    def tangents_of(*inputs, count, **parameters):
        return jax.jvp(functools.partial(reference, **parameters), inputs[:count], inputs[-count:])[1]

    def tangents(*inputs, count, **_):
        return inputs[count:-count]

    name = f"{primitive.name}_derivative"
    derivative = make_primitive(name, tangents_of, multiple_results=True, alike=tangents)

    def jvp(primals, tangents, **parameters):
        results = primitive.bind(*primals, **parameters)
        inputs = (*primals, *results, *map(ad.instantiate_zeros, tangents))
        return results, derivative.bind(*inputs, count=len(primals), **parameters)

    def transpose(cotangents, *inputs, count, **parameters):
        known, linear = inputs[:-count], inputs[-count:]
        if all(type(cotangent) is ad.Zero for cotangent in cotangents):
            return [None] * len(inputs)
        results = gradient(known[:count], known[count:], cotangents, **parameters)
        pairs = zip(results, map(ad.is_undefined_primal, linear), strict=True)
        return [None] * len(known) + [value if wanted else None for value, wanted in pairs]

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[derivative] = transpose


def _symbolic(tangent: jax.Array) -> jax.Array | ad.Zero:
    """Tangents of integers as JAX wants them from a rule."""
    is_none = tangent.dtype == jax.dtypes.float0
    return ad.Zero(ShapedArray(tangent.shape, tangent.dtype)) if is_none else tangent


def map_reference(
    reference: Reference, arrays: Sequence[jax.Array], axes: Sequence[int | None], **parameters: object
) -> tuple[Arrays, int | tuple[int, ...]]:
    """The batching rule of a primitive that goes through its reference."""
    results = jax.vmap(functools.partial(reference, **parameters), in_axes=tuple(axes))(*arrays)
    return results, jax.tree.map(lambda _: 0, results)


def runs_on_one_device(context: mlir.LoweringRuleContext) -> bool:
    """Whether this lowering is of a program that runs here, on one device."""
    axes = (module := context.module_context).axis_context
    if module.lowering_parameters.for_export or len(module.platforms) > 1:
        return False
    if isinstance(axes, mlir.ShardingContext):
        return axes.num_devices == 1
    return isinstance(axes, mlir.SPMDAxisContext) and axes.manual_axes == frozenset(axes.mesh.axis_names)
