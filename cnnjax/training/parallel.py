"""Devices: the mesh, and how batches and states lie on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnjax.errors import UserError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) along the axis `data`."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis cut over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_divides(field: str, batch_size: int, mesh: Mesh) -> None:
    """Raises a UserError where the devices do not divide the global batch."""
    devices = mesh.shape["data"]
    if batch_size % devices:
        lower = batch_size - batch_size % devices
        raise UserError(
            f"{field}={batch_size} is not divisible by the {devices} devices on 'data'; "
            f"take {lower or devices} or {lower + devices}"
        )
