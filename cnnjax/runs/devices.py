"""Whether JAX has a device to compute on; asking starts its devices."""

import os

import jax

from cnnjax.errors import UserError, extra, one_line

VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")


def check() -> None:
    """Raises a UserError if JAX cannot start the devices that the environment asks for, or any."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # the former, without words, for a missing GPU
        words = one_line(error).partition(" (")[0]  # without what JAX advises
        reason = f" ({words})" if str(error) else ""
        asked = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
        if not asked:
            raise UserError(f"JAX cannot start its devices{reason}; JAX_PLATFORMS=cpu uses the CPU") from None
        problem = f"{', '.join(asked)}: no such device here{reason}; allowed: cpu, or leave it out"
        raise UserError(f"{problem}; for a GPU: {extra('cuda')}") from None
