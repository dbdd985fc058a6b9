"""How the layers of a network lie on devices while it is traced: what cannot be told from its arrays.

Outside of `placed` a layer computes as on one device, and XLA cuts it as the arrays are cut.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CHANNELS = PartitionSpec("data", None, None, "model")


@dataclasses.dataclass(frozen=True)
class Placement:
    """`mesh` is None on one device; else the batch is cut over its axis `data`, and channels between layers
    over its axis `model`. `norm_groups` parts of a batch have BatchNorm statistics of their own (0: all share
    those of the whole batch)."""

    mesh: Mesh | None = None
    norm_groups: int = 0


ONE_DEVICE = Placement()
_current = contextvars.ContextVar("placement", default=ONE_DEVICE)


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Networks traced inside lie on devices as given."""
    token = _current.set(placement)
    try:
        yield
    finally:
        _current.reset(token)


def norm_fields() -> dict[str, Any]:
    """What `ops.batch_norm_train` is told of groups and devices."""
    placement = _current.get()
    if placement.norm_groups or placement.mesh is None or placement.mesh.shape["data"] == 1:
        return {"groups": max(1, placement.norm_groups)}
    whole = NamedSharding(placement.mesh, PartitionSpec())
    gather = functools.partial(jax.lax.with_sharding_constraint, shardings=whole)
    return {"groups": placement.mesh.shape["data"], "gather": gather}


def _cut_mesh() -> Mesh | None:
    mesh = _current.get().mesh
    return mesh if mesh is not None and mesh.shape["model"] > 1 else None


def in_towers(
    convolve: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, bias: jax.Array | None, groups: int
) -> jax.Array:
    """`convolve(x, kernel, bias, groups=...)`, each group of channels on the device that holds it.

    XLA would bring all channels together for a convolution in groups; here nothing is sent, as long as the
    devices divide the groups.
    """
    mesh = _cut_mesh()
    if mesh is None or groups == 1:
        return convolve(x, kernel, bias, groups=groups)
    if groups % mesh.shape["model"]:  # XLA fails where a device holds half of a group
        kernel = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, PartitionSpec()))
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data")))
        y = convolve(x, kernel, bias, groups=groups)
        return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, PartitionSpec("data")))
    local = functools.partial(convolve, groups=groups // mesh.shape["model"])
    specs = (CHANNELS, PartitionSpec(None, None, None, "model"))
    if bias is None:
        return jax.shard_map(
            lambda x, kernel: local(x, kernel, None), mesh=mesh, in_specs=specs, out_specs=CHANNELS
        )(x, kernel)
    specs = (*specs, PartitionSpec("model"))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=CHANNELS)(x, kernel, bias)


def across_channels(norm: Callable[[jax.Array], jax.Array], x: jax.Array, reach: int) -> jax.Array:
    """`norm(x)` that looks at most `reach` channels far, zeros beyond the first and the last.

    Where channels are cut, a device sends `reach` of its own to each neighbour, and nothing else.
    """
    mesh = _cut_mesh()
    if mesh is None or x.shape[-1] % mesh.shape["model"] or x.shape[-1] // mesh.shape["model"] < reach:
        return norm(x)
    last = mesh.shape["model"] - 1

    def local(x: jax.Array) -> jax.Array:
        from_left = jax.lax.ppermute(x[..., -reach:], "model", [(i, i + 1) for i in range(last)])
        from_right = jax.lax.ppermute(x[..., :reach], "model", [(i + 1, i) for i in range(last)])
        return norm(jnp.concatenate([from_left, x, from_right], -1))[..., reach:-reach]

    return jax.shard_map(local, mesh=mesh, in_specs=CHANNELS, out_specs=CHANNELS)(x)
