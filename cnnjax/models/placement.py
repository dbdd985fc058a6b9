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
    """`mesh` is None on one device; there `norm_groups` parts of a batch have BatchNorm statistics of their
    own (0: all share those of the whole batch), and with `towers` the channels between layers are cut over
    the axis `model`."""

    mesh: Mesh | None = None
    norm_groups: int = 0
    towers: bool = False


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


def _tower_mesh() -> Mesh | None:
    placement = _current.get()
    return placement.mesh if placement.towers and placement.mesh.shape["model"] > 1 else None


def in_towers(
    convolve: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, bias: jax.Array | None, groups: int
) -> jax.Array:
    """`convolve(x, kernel, bias, groups=...)`, each group of channels on the device that holds it.

    XLA would bring all channels together for a convolution in groups; here nothing is sent.
    """
    mesh = _tower_mesh()
    if mesh is None or groups % mesh.shape["model"]:
        return convolve(x, kernel, bias, groups=groups)
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
    mesh = _tower_mesh()
    if mesh is None:
        return norm(x)
    last = mesh.shape["model"] - 1

    def local(x: jax.Array) -> jax.Array:
        from_left = jax.lax.ppermute(x[..., -reach:], "model", [(i, i + 1) for i in range(last)])
        from_right = jax.lax.ppermute(x[..., :reach], "model", [(i + 1, i) for i in range(last)])
        return norm(jnp.concatenate([from_left, x, from_right], -1))[..., reach:-reach]

    return jax.shard_map(local, mesh=mesh, in_specs=CHANNELS, out_specs=CHANNELS)(x)
