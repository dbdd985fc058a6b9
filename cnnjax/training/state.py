"""The training state, arrays only, and the keys that every random draw is made from."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnnjax.models import init_variables


@flax.struct.dataclass
class TrainState:
    """All that a training step changes.

    `step` is int32 [], the number of batches seen; `batch_stats` is {} for nets without BatchNorm;
    `ema` is {} where no moving average is kept, else {"params": ..., "batch_stats": ...}.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, ...],
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step. Pure: run it under `jit`, or `eval_shape` for its shapes alone."""
    variables = init_variables(model, key, image_shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        # Copied, since a donated state must not hold one buffer twice.
        ema=jax.tree.map(jnp.copy, variables) if ema else {},
    )


def run_init(init: Callable[[], TrainState], **placement: Any) -> TrainState:
    """What `init` returns, compiled for this one run: a CPU would take minutes to optimize it."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, compiler_options=options, **placement)()
