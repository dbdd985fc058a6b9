"""The training state (arrays only), the losses, and the training and evaluation steps: pure functions."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import traverse_util
from flax.typing import Collection, VariableDict
from jax.sharding import Sharding

from cnnjax.data.augment.register import Batch
from cnnjax.errors import UserError
from cnnjax.models import init_variables, stream_key
from cnnjax.ops import cpu
from cnnjax.training.metrics import of_logits
from cnnjax.training.parameter_groups import frozen_collection, stop_frozen

Augment = Callable[[jax.Array, Batch], Batch]
LossAndAux = tuple[jax.Array, tuple[jax.Array, Collection]]  # number of hits, batch statistics
Loss = Callable[[optax.Params, Collection, Batch, jax.Array], LossAndAux]
Teach = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # see `distilled`
Average = Callable[..., VariableDict]  # (average, new variables, step=) -> average
Results = TypeVar("Results")
NEVER = jnp.iinfo(jnp.int32).max


class TrainState(flax.struct.PyTreeNode):
    """Everything that a training step changes."""

    step: jax.Array  # int32 [], the number of batches seen
    params: Collection
    batch_stats: Collection  # {} for nets without BatchNorm
    opt_state: optax.OptState
    ema: VariableDict  # {} if no moving average is kept, else {"params": ..., "batch_stats": ...}

    @property
    def variables(self) -> VariableDict:
        """The variables for `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def weights(self) -> dict[str, VariableDict]:
        """The variables to evaluate, by the prefix of their scores: the raw ones and any moving average."""
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
    average = jax.tree.map(jnp.copy, variables) if ema else {}  # a donated state holds no buffer twice
    opt_state = tx.init(variables["params"])
    return TrainState(step=jnp.zeros((), jnp.int32), opt_state=opt_state, ema=average, **variables)


def run_init(init: Callable[[], Results], out_shardings: Sharding | Results | None = None) -> Results:
    """What `init` returns, compiled for this one run: a CPU would take minutes to optimize it."""
    options: dict[str, bool | int] = {}
    if cpu.traced_for() == "cpu":
        options["xla_backend_optimization_level"] = 0
        if jax.__version_info__ < (0, 12):  # which has no other emitters; these take half as long
            options["xla_cpu_use_fusion_emitters"] = False
    return jax.jit(init, compiler_options=options, out_shardings=out_shardings)()


class Gradient(NamedTuple):
    """The result of one batch: mean loss, number of hits, new batch statistics, and gradient."""

    loss: jax.Array
    correct: jax.Array
    batch_stats: Collection
    grads: optax.Updates


class TrainMetrics(flax.struct.PyTreeNode):
    """Sums over the steps of one log interval; they merge and leave the device together.

    `weight`, `loss`, `correct` are sums over examples, `gradient_norm` and `num_steps` over steps, except
    steps with a non-finite loss or gradient; `nonfinite_step` is the first of them, or `NEVER`.
    """

    weight: jax.Array
    loss: jax.Array
    correct: jax.Array
    gradient_norm: jax.Array
    num_steps: jax.Array
    nonfinite_step: jax.Array

    @classmethod
    def empty(cls) -> "TrainMetrics":
        zero = functools.partial(jnp.zeros, (), jnp.float32)  # five arrays: each is donated
        return cls(zero(), zero(), zero(), zero(), zero(), jnp.asarray(NEVER, jnp.int32))

    def merge(self, other: "TrainMetrics") -> "TrainMetrics":
        first = jnp.minimum(self.nonfinite_step, other.nonfinite_step)
        return jax.tree.map(jnp.add, self, other).replace(nonfinite_step=first)


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    tx: optax.GradientTransformationExtraArgs,
    gradient: Callable[[TrainState, Batch, jax.Array], Gradient],
    average: Average | None = None,
    halted: jax.Array | bool = False,
) -> tuple[TrainState, TrainMetrics]:
    """Updates the state with the gradient of one batch; returns the new state and its metrics.

    If the loss or the gradient is not finite, or `halted` (bool []) is True, only `step` changes, and the
    metrics hold only the number of the step. `gradient` is `batch_gradient` with the model and its other
    arguments bound; `tx` sees the loss as `value` and `state.step` as `step`; `average` is `ema_update` with
    its decay bound, for a state that holds one.
    """
    loss, correct, batch_stats, grads = gradient(state, batch, key)
    gradient_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss, step=state.step)
    params = optax.apply_updates(state.params, updates)
    new = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
    if average and state.ema:
        new = new.replace(ema=average(state.ema, new.variables, step=state.step))
    weight, one, never = batch["mask"].sum(), jnp.ones((), jnp.float32), jnp.asarray(NEVER, jnp.int32)
    metrics = TrainMetrics(weight, loss * weight, correct, gradient_norm, one, never)
    nothing = TrainMetrics.empty().replace(nonfinite_step=state.step)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm) & ~jnp.asarray(halted)
    new, metrics = jax.tree.map(lambda a, b: jnp.where(finite, a, b), (new, metrics), (state, nothing))
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
    microbatches: int = 1,
    teach: Teach | None = None,
    gather: Callable[[optax.Params], optax.Params] | None = None,
) -> Gradient:
    """The gradient of the masked mean of the loss over a batch, which is augmented first.

    The batch is image uint8 [B, H, W, C], label int32 [B], mask float32 [B]; index and epoch int32 [B] for
    augmentations that draw by example. Every draw is folded from the run's key by stream and step. `augment`
    gives image float [B, H', W', C], see `data.augment.chain`; `aux_weight` is the loss weight of each sown
    `aux_logits`; `freeze` matches the frozen paths, see `parameter_groups`; `teach` changes the losses [B],
    given image and logits, see `distilled`; `gather` is a `parallel.gatherer`. `microbatches` is the number
    of equal parts of the batch that pass through the model one after another, to save memory. The gradient is
    that of the whole batch, except that BatchNorm sees (and updates its averages by) one microbatch at a
    time, and dropout draws other masks.
    """
    run_key = stream_key(key, "augment by example", 0)
    augmented = augment(stream_key(key, "augment", state.step), batch | {"run_key": run_key})
    batch = {name: augmented[name] for name in ("image", "label", "mask")}
    frozen = frozen_collection(state.batch_stats, freeze)

    def loss_fn(params: optax.Params, batch_stats: Collection, batch: Batch, key: jax.Array) -> LossAndAux:
        params = stop_frozen(gather(params) if gather else params, freeze)
        variables = {"params": params, "batch_stats": batch_stats, "frozen": frozen}
        mutable, rngs = ["batch_stats", "intermediates"], {"dropout": key}
        logits, updates = model.apply(variables, batch["image"], train=True, rngs=rngs, mutable=mutable)
        label, mask = batch["label"], batch["mask"]
        losses = cross_entropy(logits, label, label_smoothing)
        for aux in aux_logits(updates.get("intermediates", {})):
            losses += aux_weight * cross_entropy(aux, label, label_smoothing)
        losses = teach(batch["image"], logits, losses) if teach else losses
        hard = label if label.ndim == 1 else label.argmax(-1)  # of a mixed label the largest entry counts
        correct = jnp.where(logits.argmax(-1).astype(jnp.int32) == hard.astype(jnp.int32), mask, 0.0).sum()
        return masked_mean(losses, mask), (correct, updates.get("batch_stats", {}))

    return _accumulated(loss_fn, state, batch, stream_key(key, "dropout", state.step), microbatches)


def sharpness_aware(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    gradient: Callable[[TrainState, Batch, jax.Array], Gradient],
    rho: float,
) -> Gradient:
    """The gradient at about the highest loss of the batch within `rho` of the parameters.

    SAM (Foret et al. 2020, arXiv 2010.01412, algorithm 1, p = 2): at w + rho * g / |g|, with the same
    augmentation and dropout; loss, hits and batch statistics are those at w. Of the whole batch, not of each
    device's share.
    """
    here = gradient(state, batch, key)
    scale = rho / jnp.maximum(optax.tree.norm(here.grads), 1e-12)
    there = jax.tree.map(lambda x, g: x + scale * g, state.params, here.grads)
    return here._replace(grads=gradient(state.replace(params=there), batch, key).grads)


def batch_statistics(
    variables: VariableDict,
    batch: Batch,
    key: jax.Array,
    *,
    model: nn.Module,
    augment: Augment,
    freeze: str = "",
    microbatches: int = 1,
) -> Collection:
    """The statistics of one batch, augmented as in training, in place of running ones.

    Of several microbatches, which pass through the model one after another, it is the mean. A normalization
    updates its running value to m * old + (1 - m) * new: new follows from old = 0, m is the derivative with
    respect to old. Normalizations that `freeze` matches keep theirs and normalize by them.
    """
    batch = augment(stream_key(key, "augment", 0), batch | {"run_key": stream_key(key, "example", 0)})
    frozen = frozen_collection(variables["batch_stats"], freeze)
    marks = traverse_util.flatten_dict(frozen, sep="/")
    old = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    moving = {path: x for path, x in old.items() if f"{path.rpartition('/')[0]}/statistics" not in marks}
    zeros, ones = (jax.tree.map(like, moving) for like in (jnp.zeros_like, jnp.ones_like))
    key = stream_key(key, "dropout", 0)

    def moved(some: Collection, image: jax.Array, key: jax.Array) -> Collection:
        batch_stats = traverse_util.unflatten_dict({**old, **some}, sep="/")
        given = {"params": variables["params"], "batch_stats": batch_stats, "frozen": frozen}
        mutable, rngs = ["batch_stats", "intermediates"], {"dropout": key}
        new = model.apply(given, image, train=True, rngs=rngs, mutable=mutable)[1]["batch_stats"]
        return {path: x for path, x in traverse_util.flatten_dict(new, sep="/").items() if path in some}

    def of_microbatch(each: tuple[jax.Array, jax.Array]) -> tuple[Collection, Collection]:
        move = functools.partial(moved, image=each[0], key=jax.random.fold_in(key, each[1]))
        return jax.jvp(move, (zeros,), (ones,))

    split = _split(batch["image"], microbatches), jnp.arange(microbatches)
    found, momentum = jax.tree.map(lambda x: x.mean(0), jax.lax.map(of_microbatch, split))
    found = jax.tree.map(lambda x, m, own: jnp.where(m == 1, own, x / (1 - m)), found, momentum, moving)
    return traverse_util.unflatten_dict({**old, **found}, sep="/")


def _split(x: jax.Array, microbatches: int) -> jax.Array:
    """[B, ...] as microbatches of every so many examples: each device keeps its own."""
    return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)


def _accumulated(
    loss_fn: Loss, state: TrainState, batch: Batch, key: jax.Array, microbatches: int
) -> Gradient:
    """The gradient of a batch, summed over microbatches by their share of its examples."""
    differentiate = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        (loss, (correct, batch_stats)), grads = differentiate(state.params, state.batch_stats, batch, key)
        return Gradient(loss, correct, batch_stats, grads)
    split = jax.tree.map(lambda x: _split(x, microbatches), batch)
    weight = jnp.maximum(batch["mask"].sum(), 1.0)

    def add(sums: Gradient, each: tuple[Batch, jax.Array]) -> tuple[Gradient, None]:
        microbatch, index = each
        share, folded = microbatch["mask"].sum() / weight, jax.random.fold_in(key, index)
        (loss, (correct, batch_stats)), grads = differentiate(
            state.params, sums.batch_stats, microbatch, folded
        )
        grads = jax.tree.map(lambda total, x: total + share * x, sums.grads, grads)
        return Gradient(sums.loss + share * loss, sums.correct + correct, batch_stats, grads), None

    zero = jnp.zeros((), jnp.float32)
    start = Gradient(zero, zero, state.batch_stats, jax.tree.map(jnp.zeros_like, state.params))
    return jax.lax.scan(add, start, (split, jnp.arange(microbatches)))[0]


def aux_logits(intermediates: Collection) -> list[jax.Array]:
    """The logits [B, K] that auxiliary heads have sown, in the order of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(intermediates)
    return [leaf for path, leaf in leaves if "aux_logits" in jax.tree_util.keystr(path)]


def eval_step(
    variables: VariableDict, batch: Batch, *, model: nn.Module, protocol: Callable[..., jax.Array]
) -> Batch:
    """The rows of `metrics.of_logits`, mask and index of a batch; `protocol` is of `data.augment.views`."""
    logits = protocol(functools.partial(model.apply, variables), batch["image"])
    loss = cross_entropy(logits, batch["label"])
    return {**of_logits(logits, batch["label"], loss), "mask": batch["mask"], "index": batch["index"]}


def cross_entropy(logits: jax.Array, label: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross entropy of the softmax of `logits`, any float [B, K], against `label`: float32 [B], in nats.

    `label` is int [B], or float [B, K] whose rows sum to one (mixed or soft labels); an integer outside
    0..K-1 gives NaN, so that wrong data are noticed and not learned. Label smoothing spreads epsilon / K over
    all K classes, the true one included (Szegedy et al. 2015, arXiv 1512.00567, section 7): the target is
    (1 - epsilon) * label + epsilon / K, 0 <= epsilon < 1. Raises UserError for labels of another shape.
    """
    if label.shape not in (logits.shape, logits.shape[:-1]):
        given = f"labels of shape {label.shape} do not fit logits of shape {logits.shape}"
        raise UserError(f"{given}; allowed: whole numbers {logits.shape[:-1]}, or rows {logits.shape}")
    logits = logits.astype(jnp.float32)
    if label.ndim == logits.ndim:
        of_label = optax.softmax_cross_entropy(logits, label.astype(jnp.float32))
    else:  # a negative index would count from the end; an int8 one may not hold the number of classes
        index = jnp.where(label < 0, logits.shape[-1], label.astype(jnp.int32))
        of_label = optax.softmax_cross_entropy_with_integer_labels(logits, index)
    if not label_smoothing:
        return of_label
    of_all = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * of_label + label_smoothing * of_all


def distilled(
    losses: jax.Array, logits: jax.Array, teacher: jax.Array, *, alpha: float, temperature: float
) -> jax.Array:
    """Losses [B] mixed with the Kullback-Leibler divergence of softened softmaxes: float32 [B], in nats.

    (1 - alpha) * losses + alpha * T**2 * KL(softmax(teacher / T), softmax(logits / T)), logits and teacher
    float [B, K] (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2: T**2 keeps the gradient's size).
    No gradient reaches the teacher.
    """
    soft = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature)
    own = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    divergence = (jnp.exp(soft) * (soft - own)).sum(-1)
    return (1 - alpha) * losses + alpha * temperature**2 * divergence


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of `values` [B] weighted by `mask` [B], 0 for padding: float32 [].

    Values under a mask of 0 do not count even if they are NaN or infinite; the gradient is 0 there, but NaN
    again behind what computed such values: pad with finite examples. Without any example it is 0.0.
    """
    mask = mask.astype(jnp.float32)
    total, weight = jnp.sum(jnp.where(mask > 0, values.astype(jnp.float32) * mask, 0.0)), jnp.sum(mask)
    return total / jnp.where(weight > 0, weight, 1.0)
