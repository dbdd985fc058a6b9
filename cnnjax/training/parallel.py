"""Devices: the mesh, and how batches and states are sharded over it.

A mesh has the axes `data` (over which the batch is sharded) and `model`. The rules in `SHARDINGS` place each
parameter; its moving average and optimizer state are placed with it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from cnnjax.data import batches
from cnnjax.errors import UserError, by_name, unknown
from cnnjax.training.parameter_groups import path_name

AXES = ("data", "model")
Tree = Any  # a pytree of arrays, of their shapes, or of their shardings


@dataclasses.dataclass(frozen=True)
class Rule:
    """Leaves whose path matches `pattern` are sharded over the mesh axis `axis`.

    `dim` is the sharded dimension, -1 the last one; None is the largest that the devices divide. Leaves
    smaller than `at_least` scalars, or with a dimension that they do not divide, are replicated.
    """

    pattern: str
    axis: str
    dim: int | None
    at_least: int = 1


# The first rule that matches a path decides; what none matches is whole on each device.
SHARDINGS: dict[str, tuple[Rule, ...]] = {
    "replicated": (),
    # Fully sharded data parallel (ZeRO stage 3; Rajbhandari et al. 2019, 1910.02054): each device keeps a
    # part of every large array, and gathers the parameters when a step needs them.
    "fsdp": (Rule(r"", "data", None, at_least=1024),),
    # Each device computes a part of the output channels of every layer.
    "model": (Rule(r"/(kernel|bias)$", "model", -1),),
    # AlexNet's two towers (Krizhevsky et al. 2012, section 3.5): each device has half of the kernels of a
    # layer, the first half of its channels on the first; the last layer is sharded by its inputs.
    "towers": (Rule(r"/(conv\d|dense\d)/(kernel|bias)$", "model", -1), Rule(r"/head/kernel$", "model", 0)),
}


def make_mesh(mesh: str = "", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of 'data:4,model:2' over the first of the devices, or of all; '' is all of them on `data`."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": 1 if mesh.strip() else len(devices), "model": 1}
    seen = set()
    for part in filter(None, (part.strip() for part in mesh.split(","))):
        axis, _, size = (word.strip() for word in part.partition(":"))
        if axis not in AXES:
            raise unknown("mesh axis", axis, AXES)
        if axis in seen or not size.isdecimal() or int(size) < 1:
            raise UserError(f"mesh={mesh!r}: {part!r} must be an axis and a number, as in 'data:4,model:2'")
        seen.add(axis)
        sizes[axis] = int(size)
    if (count := math.prod(sizes.values())) > len(devices):
        raise UserError(f"mesh={mesh!r} takes {count} devices, but there are {len(devices)}; '' uses all")
    if count < len(devices) and len({device.process_index for device in devices}) > 1:
        raise UserError(f"mesh={mesh!r} takes {count} of {len(devices)} devices; several processes use all")
    return Mesh(np.asarray(devices[:count]).reshape([sizes[axis] for axis in AXES]), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that keeps a full copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of the leading axis over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_divides(argument: str, batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raises a UserError if the devices, times the microbatches, do not divide the global batch."""
    counts = {f"accumulate_steps={microbatches}": microbatches}
    counts |= {f"the {mesh.shape['data']} devices on 'data'": mesh.shape["data"]}
    if rest := batch_size % (parts := math.prod(counts.values())):
        lower = batch_size - rest
        by = " times ".join(name for name, count in counts.items() if count > 1)
        raise UserError(
            f"{argument}={batch_size} is not divisible by {by}; use {lower or parts} or {lower + parts}"
        )


def rules_of(sharding: str) -> tuple[Rule, ...]:
    """The rules of a name in `SHARDINGS`, or a UserError that lists the names."""
    return by_name("sharding", sharding, SHARDINGS)


def shardings(tree: Tree, mesh: Mesh, rules: Sequence[Rule]) -> Tree:
    """The sharding of each leaf of a tree of arrays or of shapes, by its path and shape."""
    return jax.tree.map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(f"/{path_name(path)}", leaf.shape, mesh, rules)), tree
    )


def spec(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[Rule]) -> PartitionSpec:
    """How one array is sharded, its path written as '/params/stem/conv/kernel'."""
    if not (rule := next((rule for rule in rules if re.search(rule.pattern, path)), None)):
        return PartitionSpec()
    size = mesh.shape[rule.axis]
    given = [dim for dim in range(len(shape)) if rule.dim in (None, dim, dim - len(shape))]
    dims = [dim for dim in given if shape[dim] and shape[dim] % size == 0]
    if not dims or math.prod(shape) < rule.at_least or size == 1:
        return PartitionSpec()
    chosen = max(dims, key=lambda dim: shape[dim])
    return PartitionSpec(*(rule.axis if dim == chosen else None for dim in range(chosen + 1)))


def put(tree: Tree, places: Tree) -> Tree:
    """Puts a tree of host arrays, equal in all processes, on devices; `places` is a sharding or a tree."""
    if isinstance(places, Sharding):
        return jax.tree.map(lambda x: batches.put(x, places), tree)
    return jax.tree.map(batches.put, tree, places)


def gatherer(mesh: Mesh, rules: Sequence[Rule]) -> Callable[[optax.Params], optax.Params] | None:
    """A function that gathers parameters sharded over `data` for a step; None if there are none.

    Its gradient is a reduce-scatter: each device receives the sum of its own part. Shards over `model` stay.
    """
    if not any(rule.axis == "data" for rule in rules):
        return None

    @jax.custom_vjp
    def gather(params: optax.Params) -> optax.Params:
        whole = shardings(params, mesh, [rule for rule in rules if rule.axis != "data"])
        return jax.lax.with_sharding_constraint(params, whole)

    def scatter(_: None, grads: optax.Updates) -> tuple[optax.Updates]:
        return (jax.lax.with_sharding_constraint(grads, shardings(grads, mesh, rules)),)

    gather.defvjp(lambda params: (gather(params), None), scatter)
    return gather


def norm_groups(batch_norm: str, batch_size: int, mesh: Mesh) -> int:
    """How many groups of a batch have separate BatchNorm statistics; 1 if the whole batch shares them.

    `batch_norm` is 'global', 'device', or a number of examples that divides the batch: 'groups(32)';
    `batch_size` is the number of examples in one forward pass, over all devices.
    """
    if batch_norm in ("global", "device"):
        return mesh.shape["data"] if batch_norm == "device" else 1
    if not (groups := re.fullmatch(r"groups\((\d+)\)", batch_norm.replace(" ", ""))):
        raise UserError(f"batch_norm={batch_norm!r} must be 'global', 'device' or 'groups(32)'")
    if (size := int(groups[1])) < 1 or batch_size % size:
        problem = f"batch_norm={batch_norm!r}: groups must divide the {batch_size} examples of a microbatch"
        raise UserError(f"{problem}, batch_size / accumulate_steps")
    return batch_size // size
