"""Every network by name. A new family is one file here with `VARIANTS`, see docs/extending.md."""

import fnmatch
import functools
import importlib
import inspect
import pkgutil
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError
from flax.typing import Collection, VariableDict

from cnnjax.errors import UserError, by_name, check_count, one_line, parse_call, unknown, unknown_model
from cnnjax.models.forward import image_struct
from cnnjax.models.variants import Preset, TorchNames, Variant

__all__ = ["Preset", "Variant", "create_model", "list_models", "variant", "variants"]

DTYPES = ("float32", "bfloat16")  # of computation


@functools.cache
def family_table(table: str) -> dict:
    """Merges the tables of this name in all family files; duplicate keys are an error."""
    merged: dict = {}
    for info in pkgutil.iter_modules(__path__):
        if info.ispkg:  # weights/ is no family
            continue
        family = importlib.import_module(f"{__name__}.{info.name}")
        for name, row in getattr(family, table, {}).items():
            if name in merged:
                raise RuntimeError(f"{name!r} is claimed twice in {table}, again by {info.name}")
            merged[name] = row
    return merged


def variants() -> dict[str, Variant]:
    """All variants of all families."""
    return family_table("VARIANTS")


def names_in_torch(model: nn.Module) -> tuple[TorchNames, ...]:
    """The `TORCH_NAMES` of a model's family; UserError if it has none."""
    families = {family.__name__: names for family, names in family_table("TORCH_NAMES").items()}
    names = by_name("family with torch names", type(model).__name__, families)
    return names if isinstance(names, tuple) else (names,)


def list_models(pattern: str = "*") -> list[str]:
    """The names of all networks that match a glob such as 'resnet*', sorted."""
    return sorted(fnmatch.filter(variants(), pattern))


def variant(spec: str) -> Variant:
    """The row of `variants()` that a model spec, `name` or `name(field=literal)`, refers to."""
    if (name := parse_call(spec, "model")[0]) not in variants():
        raise unknown_model(name, variants())
    return variants()[name]


def create_model(spec: str, **fields: object) -> nn.Module:
    """Builds a linen module from a name of `list_models()`, or a call of literals: 'lenet5(pooling="max")'.

    Fields in the spec override `fields` (num_classes, dtype, ...). UserError for an unknown name or field.
    """
    name, args, given = parse_call(spec, "model")
    if args:
        raise UserError(f"model={spec!r}: fields are given by name, as in {name}(num_classes=10)")
    build = variant(spec).build
    allowed = [field for field in inspect.signature(build).parameters if field not in ("parent", "name")]
    fields = {"num_classes": variant(spec).preset.num_classes} | fields | given
    if wrong := [field for field in fields if field not in allowed]:
        raise unknown(f"field of model {name}", wrong[0], allowed)
    check_count("num_classes", fields["num_classes"], 1)
    if (dtype := fields.get("dtype", jnp.float32)) not in [jnp.dtype(each) for each in DTYPES]:
        raise unknown(f"dtype of model {name}", dtype, DTYPES)
    return build(**fields)


def variable_shapes(model: nn.Module, image_shape: Sequence[int], name: str = "") -> VariableDict:
    """The variables of a model for images of [H, W, C], as shapes; nothing is computed.

    A UserError, which begins with `name`, if its fields fit neither each other nor these images.
    """
    name, shape = name or type(model).__name__, tuple(image_shape)
    try:
        return jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), image_struct(shape))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (ArithmeticError, AttributeError, FlaxError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be built for images of {shape}: {one_line(error)}") from None


def sized(
    model: nn.Module | str, image_shape: Sequence[int] | None
) -> tuple[nn.Module, Sequence[int], VariableDict]:
    """A model by its spec or itself, the shape [H, W, C] of its images, and `variable_shapes`.

    Without a shape it is that of the spec's preset; a module has none, which is a UserError.
    """
    name = ""
    if isinstance(model, str):
        image_shape = image_shape or variant(model).preset.input_size
        name, model = f"model={model!r}", create_model(model)
    if not image_shape:
        raise UserError(f"{type(model).__name__}: a module has no image size; pass image_shape=(H, W, C)")
    return model, image_shape, variable_shapes(model, image_shape, name)


def stream_key(key: jax.Array, stream: str, step: jax.Array | int) -> jax.Array:
    """The key of one named stream ("dropout", "augment", ...) at one step: a pure function of all three."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(stream.encode())), step)


def init_variables(model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> VariableDict:
    """Fresh `params` and `batch_stats` for images of [H, W, C]; `batch_stats` is {} if the model has none."""
    variables = model.init(stream_key(key, "params", 0), jnp.zeros((1, *image_shape), jnp.float32))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def count_params(params: Collection) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
