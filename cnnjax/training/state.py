"""The training state, arrays only."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.typing import Collection, VariableDict
from jax.sharding import Sharding

from cnnjax.models import init_variables


class TrainState(flax.struct.PyTreeNode):
    """All that a training step changes."""

    step: jax.Array  # int32 [], the number of batches seen
    params: Collection
    batch_stats: Collection  # {} for nets without BatchNorm
    opt_state: optax.OptState
    ema: VariableDict  # {} if no moving average is kept, else {"params": ..., "batch_stats": ...}

    @property
    def variables(self) -> VariableDict:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def weights(self) -> dict[str, VariableDict]:
        """What is evaluated, by the prefix of its scores: the raw variables and any moving average."""
        return {"": self.variables, **({"ema_": self.ema} if self.ema else {})}


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
    # Copied, since a donated state must not hold one buffer twice.
    average = jax.tree.map(jnp.copy, variables) if ema else {}
    opt_state = tx.init(variables["params"])
    return TrainState(step=jnp.zeros((), jnp.int32), opt_state=opt_state, ema=average, **variables)


def run_init(
    init: Callable[[], TrainState], out_shardings: Sharding | TrainState | None = None
) -> TrainState:
    """What `init` returns, compiled for this one run: a CPU would take minutes to optimize it."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, compiler_options=options, out_shardings=out_shardings)()
