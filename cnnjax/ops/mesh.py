"""The mesh that a function is traced for: axis `data` shards examples, `model` the channels of an image."""

from jax.sharding import AxisType, get_abstract_mesh


def axis_size(axis: str) -> int:
    """Devices on an axis; 1 without a mesh, inside `shard_map`, and for axes of explicit sharding."""
    mesh = get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return mesh.shape[axis] if kinds.get(axis) == AxisType.Auto else 1


def is_manual() -> bool:
    """Whether it is traced inside `shard_map`, where JAX follows which values differ between devices.

    A primitive of this package would hide that.
    """
    return AxisType.Manual in get_abstract_mesh().axis_types
