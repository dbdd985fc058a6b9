"""One step of training and one of evaluation: pure functions of (state, batch, key)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnnjax.data.augment.register import Examples
from cnnjax.models import stream_key
from cnnjax.models.placement import ONE_DEVICE, Placement, placed
from cnnjax.training import metrics as metrics_lib
from cnnjax.training.losses import cross_entropy, masked_mean
from cnnjax.training.optimizers import ema_update
from cnnjax.training.parameter_groups import frozen_collection, stop_frozen
from cnnjax.training.state import TrainState

Batch = dict[str, jax.Array]
Augment = Callable[..., Any]
NEVER = jnp.iinfo(jnp.int32).max


@flax.struct.dataclass
class TrainMetrics:
    """Sums over the steps of one log interval; they merge and leave the device together.

    `weight`, `loss`, `correct` are sums over examples, `gradient_norm` and `num_steps` over steps, without
    those steps whose loss or gradient was not finite; `nonfinite_step` is the first of them, or `NEVER`.
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


def in_turn_on_cpu(results: Any, memory: int) -> Any:
    """`results` of a step that holds so many bytes; on a CPU those of a large one once they are there.

    So the next step takes the memory of this one, see ops/cpu/reuse.c, and the two never hold theirs at once.
    """
    device = next(iter(jax.tree.leaves(results)[0].devices()))
    return jax.block_until_ready(results) if device.platform == "cpu" and memory > 2**30 else results


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
    accumulate: int = 1,
    placement: Placement = ONE_DEVICE,
    gather: Callable[[Any], Any] | None = None,
    halted: jax.Array | bool = False,
) -> tuple[TrainState, TrainMetrics]:
    """Augments a batch, descends once along its gradient and returns the new state with its metrics.

    Where the loss or the gradient is not finite nothing but `step` changes, and the metrics hold nothing but
    the number of the step.

    Args:
      batch: image uint8 [B, H, W, C], label int32 [B], mask float32 [B]; the loss is the masked mean;
        where `augment.takes_examples` also index and epoch int32 [B].
      key: the run's key; every draw is folded from it by stream and step.
      tx: as `optimizers.make_optimizer` returns it; sees the loss as `value`.
      augment: (key, images, labels) -> (images float [B, H', W', C], labels), see `data.augment.parse`.
      aux_weight: of each sown `aux_logits` in the loss.
      ema_decay: of the moving average in `state.ema`, which is {} where there is none.
      freeze: pattern of the paths that `tx` does not move, see `groups`.
      accumulate: parts that the batch is worked off in, one after the other, so that memory holds one. The
        gradient is that of the whole batch, but for BatchNorm, which sees (and moves its averages by) one
        part at a time, and for dropout, which draws other masks.
      placement: how the layers lie on devices, BatchNorm's groups of such a part among it.
      gather: brings parameters that are stored in parts together, see `parallel.gatherer`.
      halted: bool []; True leaves the state alone as if the loss were not finite.
    """
    loss, correct, batch_stats, grads = batch_gradient(
        state,
        batch,
        key,
        model=model,
        augment=augment,
        label_smoothing=label_smoothing,
        aux_weight=aux_weight,
        freeze=freeze,
        accumulate=accumulate,
        placement=placement,
        gather=gather,
    )
    gradient_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
    new = state.replace(
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if state.ema:
        new = new.replace(ema=ema_update(state.ema, new.variables, ema_decay, state.step))
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm) & ~jnp.asarray(halted)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    weight = batch["mask"].sum()
    metrics = TrainMetrics(
        weight=weight,
        loss=loss * weight,
        correct=correct,
        gradient_norm=gradient_norm,
        num_steps=jnp.ones((), jnp.float32),
        nonfinite_step=jnp.asarray(NEVER, jnp.int32),
    )
    nothing = TrainMetrics.empty().replace(nonfinite_step=state.step)
    metrics = jax.tree.map(lambda a, b: jnp.where(finite, a, b), metrics, nothing)
    return new.replace(step=state.step + 1), metrics


def batch_gradient(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: nn.Module,
    augment: Augment,
    label_smoothing: float = 0.0,
    aux_weight: float = 0.0,
    freeze: str = "",
    accumulate: int = 1,
    placement: Placement = ONE_DEVICE,
    gather: Callable[[Any], Any] | None = None,
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """(loss, number of hits, batch statistics, gradient) of the augmented batch, for `train_step`."""
    label = batch["label"]
    if getattr(augment, "mixes_labels", False):
        label = jax.nn.one_hot(label, model.num_classes)
    by_example = {}
    if getattr(augment, "takes_examples", False):
        every = stream_key(key, "augment by example", 0)
        by_example["examples"] = Examples(every, batch["index"], batch["epoch"])
    image, label = augment(stream_key(key, "augment", state.step), batch["image"], label, **by_example)
    example = {"image": image, "label": label, "mask": batch["mask"]}
    frozen = frozen_collection(state.batch_stats, freeze)

    def loss_fn(params: Any, batch_stats: Any, part: Batch, key: jax.Array, share: jax.Array | float) -> Any:
        params = stop_frozen(gather(params) if gather else params, freeze)
        with placed(placement):
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats, "frozen": frozen},
                part["image"],
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats", "intermediates"],
            )
        losses = cross_entropy(logits, part["label"], label_smoothing)
        for aux in aux_logits(updates.get("intermediates", {})):
            losses += aux_weight * cross_entropy(aux, part["label"], label_smoothing)
        loss = masked_mean(losses, part["mask"]) * share
        return loss, (num_correct(logits, part), updates.get("batch_stats", {}))

    return _gradients(loss_fn, state, example, stream_key(key, "dropout", state.step), accumulate)


def _gradients(
    loss_fn: Callable[..., Any], state: TrainState, batch: Batch, key: jax.Array, accumulate: int
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """(loss, number of hits, batch statistics, gradient) of a batch, worked off in `accumulate` parts.

    A part takes every `accumulate`-th example, so that each device works on its own examples in each part.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (loss, (correct, batch_stats)), grads = gradient(state.params, state.batch_stats, batch, key, 1.0)
        return loss, correct, batch_stats, grads
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    weight = jnp.maximum(batch["mask"].sum(), 1.0)

    def add(sums: Any, each: Any) -> tuple[Any, None]:
        (loss, correct, batch_stats, grads), (part, index) = sums, each
        share = part["mask"].sum() / weight
        (part_loss, (hits, batch_stats)), part_grads = gradient(
            state.params, batch_stats, part, jax.random.fold_in(key, index), share
        )
        return (loss + part_loss, correct + hits, batch_stats, jax.tree.map(jnp.add, grads, part_grads)), None

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, state.batch_stats, jax.tree.map(jnp.zeros_like, state.params))
    sums, _ = jax.lax.scan(add, start, (parts, jnp.arange(accumulate)))
    return sums


def num_correct(logits: jax.Array, batch: Batch) -> jax.Array:
    """How many examples, by mask, are classified rightly; of a label [B, K] the largest entry counts."""
    label = batch["label"]
    hard = label if label.ndim == 1 else label.argmax(-1)
    return ((logits.argmax(-1) == hard) * batch["mask"]).sum()


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
    protocol: Callable[..., jax.Array],
    placement: Placement = ONE_DEVICE,
) -> tuple[metrics_lib.Metrics, Batch]:
    """Adds one batch to the metrics; also returns what was predicted for each of its examples.

    `protocol` is (apply, images uint8) -> logits [B, K], see `data.protocols`.

    The predictions are label and prediction int32 [B], confidence (the highest probability), loss (nats)
    and mask float32 [B].
    """
    label = batch["label"]
    with placed(placement):
        logits = protocol(functools.partial(model.apply, variables), batch["image"])
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
