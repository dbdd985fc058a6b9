"""One step of training and one of evaluation: pure functions of (state, batch, key)."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnnjax.training import metrics as metrics_lib
from cnnjax.training.groups import frozen_collection, stop_frozen
from cnnjax.training.losses import cross_entropy, masked_mean
from cnnjax.training.optimizers import ema_update
from cnnjax.training.state import TrainState, stream_key

Batch = dict[str, jax.Array]
Augment = Callable[..., Any]
NEVER = jnp.iinfo(jnp.int32).max


@flax.struct.dataclass
class TrainMetrics:
    """Sums over the steps of one log interval; they merge and leave the device together.

    `weight`, `loss`, `correct` are sums over examples, `gradient_norm` and `num_steps` over steps;
    `nonfinite_step` is the first step whose loss or gradient was not finite, `NEVER` where all were.
    """

    weight: jax.Array
    loss: jax.Array
    correct: jax.Array
    gradient_norm: jax.Array
    num_steps: jax.Array
    nonfinite_step: jax.Array

    @classmethod
    def empty(cls) -> "TrainMetrics":
        zeros = [jnp.zeros((), jnp.float32) for _ in range(5)]
        return cls(*zeros, nonfinite_step=jnp.asarray(NEVER, jnp.int32))

    def merge(self, other: "TrainMetrics") -> "TrainMetrics":
        total = jax.tree.map(jnp.add, self, other)
        first = jnp.minimum(self.nonfinite_step, other.nonfinite_step)
        return total.replace(nonfinite_step=first)


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    augment: Augment,
    label_smoothing: float = 0.0,
    aux_weight: float = 0.0,
    ema_decay: float = 0.0,
    freeze: str = "",
) -> tuple[TrainState, TrainMetrics]:
    """Augments a batch, descends once along its gradient and returns the new state with its metrics.

    Where the loss or the gradient is not finite nothing but `step` changes, and the metrics name the step.

    Args:
      batch: image uint8 [B, H, W, C], label int32 [B], mask float32 [B]; the loss is the masked mean.
      key: the run's key; every draw is folded from it by stream and step.
      tx: as `optimizers.make_optimizer` returns it; sees the loss as `value`.
      augment: (key, images, labels) -> (images float [B, H', W', C], labels), see `data.augment.parse`.
      aux_weight: of each sown `aux_logits` in the loss.
      ema_decay: of the moving average in `state.ema`, which is {} where there is none.
      freeze: pattern of the paths that `tx` does not move, see `groups`.
    """
    image, label = augment(stream_key(key, "augment", state.step), batch["image"], batch["label"])
    rngs = {"dropout": stream_key(key, "dropout", state.step)}

    frozen = frozen_collection(state.batch_stats, freeze)

    def loss_fn(params):
        logits, updates = model.apply(
            {"params": stop_frozen(params, freeze), "batch_stats": state.batch_stats, "frozen": frozen},
            image,
            train=True,
            rngs=rngs,
            mutable=["batch_stats", "intermediates"],
        )
        losses = cross_entropy(logits, label, label_smoothing)
        for aux in aux_logits(updates.get("intermediates", {})):
            losses += aux_weight * cross_entropy(aux, label, label_smoothing)
        return masked_mean(losses, batch["mask"]), (logits, updates.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    gradient_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
    new = state.replace(
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if state.ema:
        new = new.replace(ema=ema_update(state.ema, new.variables, ema_decay, state.step))
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    weight = batch["mask"].sum()
    hard_label = label if label.ndim == 1 else label.argmax(-1)
    metrics = TrainMetrics(
        weight=weight,
        loss=loss * weight,
        correct=((logits.argmax(-1) == hard_label) * batch["mask"]).sum(),
        gradient_norm=gradient_norm,
        num_steps=jnp.ones((), jnp.float32),
        nonfinite_step=jnp.where(finite, NEVER, state.step),
    )
    return new.replace(step=state.step + 1), metrics


def aux_logits(intermediates: Any) -> list[jax.Array]:
    """The logits [B, K] that auxiliary heads have sown, in the order of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(intermediates)
    return [leaf for path, leaf in leaves if "aux_logits" in jax.tree_util.keystr(path)]


def eval_step(
    variables: dict[str, Any],
    metrics: metrics_lib.Metrics,
    batch: Batch,
    *,
    model: nn.Module,
    augment: Augment,
) -> tuple[metrics_lib.Metrics, Batch]:
    """Adds one batch to the metrics; also returns what was predicted for each of its examples.

    The predictions are label and prediction int32 [B], confidence (the highest probability), loss (nats)
    and mask float32 [B].
    """
    label = batch["label"]
    image, _ = augment(jax.random.key(0), batch["image"], label)
    logits = model.apply(variables, image)
    losses = cross_entropy(logits, label)
    metrics = metrics_lib.update(metrics, logits, label, batch["mask"], losses)
    predictions = {
        "label": label,
        "prediction": logits.argmax(-1).astype(jnp.int32),
        "confidence": jax.nn.softmax(logits).max(-1),
        "loss": losses,
        "mask": batch["mask"],
    }
    return metrics, predictions
