"""The training state, arrays only, and the keys that every random draw is made from."""

import zlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnnjax.models import create_model, variant


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


def stream_key(key: jax.Array, stream: str, step: jax.Array | int) -> jax.Array:
    """The key of one named stream ("dropout", "augment", ...) at one step: a pure function of all three."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(stream.encode())), step)


def init_variables(model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> dict:
    """Fresh `params` and `batch_stats` for images of [H, W, C]; `batch_stats` is {} where there are none."""
    image = jnp.zeros((1, *image_shape), jnp.float32)
    variables = model.init(stream_key(key, "params", 0), image)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


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


def count_params(params: Any) -> int:
    """The number of trained scalars in a tree of arrays or of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def count_variant_params(spec: str) -> int:
    """The number of parameters of a model at its preset's input size; nothing is allocated."""
    model, size = create_model(spec), variant(spec).preset.input_size
    shapes = jax.eval_shape(lambda key: init_variables(model, key, size), jax.random.key(0))
    return count_params(shapes["params"])
