"""Optimizers, weight decay by parameter role, and moving averages of the weights, over optax.

The chain is the same for all: clip the gradient, add coupled decay, find the direction, add decoupled decay,
multiply by the learning rate (and by a plateau's scale). Every state is a pytree of arrays.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers

from cnnjax.errors import UserError, by_name, check, check_count, check_fraction, own_values, unknown
from cnnjax.models.net import HEAD
from cnnjax.ops.pooling import widen
from cnnjax.training.parameter_groups import decay_mask, held, partitioned, path_name
from cnnjax.training.schedules import Schedule

Value = bool | int | float | str | None  # of a setting


def make_optimizer(
    name: str,
    schedule: Schedule | optax.Schedule,
    *,
    weight_decay: float = 0.0,
    decay: str = "kernels",
    decay_mode: str = "",
    gradient_clip: float = 0.0,
    freeze: str = "",
    until: float = math.inf,
    **values: Value,
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimizer `name` of `OPTIMIZERS` with a schedule, weight decay and clipping.

    Coupled decay adds weight_decay * w to the (clipped) gradient, before momentum and scaling: the L2 penalty
    of AlexNet, Caffe and torch.optim.SGD. Decoupled decay adds it to the update direction, so that w shrinks
    by learning_rate * weight_decay per step (Loshchilov, Hutter 2017, arXiv 1711.05101; here times the full
    learning rate, as in torch.optim.AdamW). `decay_mode` '' is the optimizer's default, see `OPTIMIZERS`;
    `decay` is as in `decay_mask`; `gradient_clip` is the maximum global L2 norm of the gradient, 0 for none;
    the averages of leaves that match `freeze` begin after `until` updates, if that is finite; `values` are
    keyword arguments of the optimizer's function below, None its default. `update` takes `params`,
    `value=loss`, which only the schedule `plateau` uses, and `step`, at which the schedule and `until` are;
    without it they count the updates.
    """
    rule = by_name("optimizer", name, OPTIMIZERS)
    check("weight_decay", weight_decay, "at least 0", lambda v: v >= 0)
    check("gradient_clip", gradient_clip, "at least 0 (0: off)", lambda v: v >= 0)
    if (decay_mode := decay_mode or rule.decay_mode) not in ("coupled", "decoupled"):
        raise unknown("decay_mode", decay_mode, ("coupled", "decoupled"))
    if name == "adamw" and decay_mode == "coupled":
        raise UserError("decay_mode='coupled' must be 'decoupled' with adamw; use adam for coupled decay")
    direction = rule.build(**own_values("optimizer", name, rule.build, values))
    if freeze and until < math.inf:
        direction = partitioned(freeze, direction, held(direction, until))
    if weight_decay:
        shrink = optax.add_decayed_weights(weight_decay, lambda params: decay_mask(params, decay, freeze))
        direction = optax.chain(*((shrink, direction) if decay_mode == "coupled" else (direction, shrink)))
    chain = [optax.clip_by_global_norm(gradient_clip)] if gradient_clip else []
    chain += [direction, rule.rescale(), _scheduled(schedule)]
    if isinstance(schedule, Schedule) and schedule.plateau is not None:
        chain.append(schedule.plateau)
    return _promoting(optax.chain(*chain))


def _scheduled(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate` at a given `step`: its own count leaves skipped steps out."""
    scale = optax.scale_by_learning_rate(schedule)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        step: Array | None = None,
        **_: Array,
    ) -> tuple[optax.Updates, optax.OptState]:
        return scale.update(updates, state if step is None else optax.ScaleByScheduleState(step), params)

    return optax.GradientTransformationExtraArgs(scale.init, update)


def _promoting(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same where JAX is told to refuse implicit promotion, which optax relies on (0.9 ** count)."""
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **more: Array
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return tx.update(updates, state, params, **more)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _sgd(*, momentum: float = 0.9) -> optax.GradientTransformation:
    """v <- momentum * v + g; w <- w - rate * v (torch; Sutskever et al. 2013 without Nesterov).

    AlexNet (2012, section 5) and Caffe keep the rate inside, v <- 0.9 v - rate * (g + decay * w); w <- w + v:
    the same weights while the rate is constant. After a cut of the rate, theirs still moves on by the old,
    longer steps for about 1 / (1 - momentum) updates, this one does not.
    """
    check_fraction("momentum", momentum)
    return optax.trace(momentum) if momentum else optax.identity()


def _nesterov(*, momentum: float = 0.9) -> optax.GradientTransformation:
    """v <- momentum * v + g; w <- w - rate * (g + momentum * v) (Sutskever et al. 2013; torch)."""
    check_fraction("momentum", momentum)
    return optax.trace(momentum, nesterov=True) if momentum else optax.identity()


def _adam(*, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma, Ba 2014, arXiv 1412.6980, algorithm 1); epsilon outside the square root."""
    check_fraction("beta1", beta1)
    check_fraction("beta2", beta2)
    check("epsilon", epsilon, "greater than 0", lambda v: v > 0)
    return optax.scale_by_adam(beta1, beta2, epsilon)


def _rmsprop(
    *,
    decay_rate: float = 0.9,
    epsilon: float = 1e-8,
    epsilon_in_sqrt: bool = True,
    initial_mean_square: float = 0.0,
    momentum: float = 0.0,
) -> optax.GradientTransformation:
    """RMSProp (Tieleman, Hinton 2012): g / sqrt(mean square + epsilon), then momentum.

    TensorFlow adds epsilon inside the square root and starts the mean square at 1, torch adds it outside
    (`epsilon_in_sqrt=False`) and starts at 0. Inception v3 (arXiv 1512.00567, section 8) took decay 0.9 and
    epsilon 1.0 with TensorFlow, whose rate is inside momentum (see `_sgd`); here it is after it, as in torch.
    """
    check_fraction("decay_rate", decay_rate)
    check("epsilon", epsilon, "greater than 0", lambda v: v > 0)
    check("initial_mean_square", initial_mean_square, "at least 0", lambda v: v >= 0)
    scaled = optax.scale_by_rms(decay_rate, epsilon, initial_mean_square, epsilon_in_sqrt)
    return optax.chain(scaled, _sgd(momentum=momentum))


# LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2): Adam, decay, then a trust ratio, by which each leaf's
# step is multiplied: |w| / |step|, 1 where either is 0; phi is the identity.
_lamb = functools.partial(_adam, epsilon=1e-6)


def _muon(
    *,
    momentum: float = 0.95,
    newton_schulz_steps: int = 5,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for kernels: the Nesterov momentum made orthogonal by Newton-Schulz.

    A convolution kernel HWIO is the matrix [H * W * I, O]. Biases, normalizations and the kernels of any
    `head` go to Adam. Steps are scaled by 0.2 * sqrt(the longer side), which gives them Adam's size, so that
    one learning rate serves both (Liu et al. 2025, arXiv 2502.16982, 2.2).
    """
    check_fraction("momentum", momentum)
    check_count("newton_schulz_steps", newton_schulz_steps, 1)

    def matrices(updates: optax.Updates) -> optax.Updates:
        return jax.tree.map(lambda x: MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1), updates)

    def rms_of_adam(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda x: 0.2 * math.sqrt(max(x.size // x.shape[-1], x.shape[-1])) * x, updates)

    def role(path: jax.tree_util.KeyPath, leaf: Array) -> str:
        names = path_name(path).split("/")
        return "muon" if leaf.ndim > 1 and names[-1] == "kernel" and HEAD not in names else "adam"

    steps = {"ns_steps": newton_schulz_steps, "beta": momentum}
    orthogonal = optax.contrib.scale_by_muon(weight_dimension_numbers=matrices, **steps)
    muon = optax.chain(orthogonal, optax.stateless(rms_of_adam))
    adam = _adam(beta1=beta1, beta2=beta2, epsilon=epsilon)
    return optax.partition({"muon": muon, "adam": adam}, lambda params: jax.tree.map_with_path(role, params))


@dataclasses.dataclass(frozen=True)
class Rule:
    """How an optimizer computes its direction, its default decay mode, and what it does to their sum."""

    build: Callable[..., optax.GradientTransformation]
    decay_mode: str
    rescale: Callable[[], optax.GradientTransformation] = optax.identity
    elementwise: bool = True  # each number moves by its own gradient alone: arrays may be stacked or cut


OPTIMIZERS = {
    "sgd": Rule(_sgd, "coupled"),
    "nesterov": Rule(_nesterov, "coupled"),
    "adam": Rule(_adam, "coupled"),
    "adamw": Rule(_adam, "decoupled"),
    "rmsprop": Rule(_rmsprop, "coupled"),
    "lamb": Rule(_lamb, "decoupled", optax.scale_by_trust_ratio, elementwise=False),
    "muon": Rule(_muon, "decoupled", elementwise=False),
}


def ema_update(ema: optax.Params, new: optax.Params, decay: float, step: int | Array) -> optax.Params:
    """The exponential moving average after one more value; both are float pytrees of one structure.

    0 <= decay < 1 is the share of the old average. It warms up as min(decay, (1 + step) / (10 + step)), as
    TensorFlow's ExponentialMovingAverage(num_updates); `step` counts the updates before this one.
    """
    count = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(functools.partial(_moved, 1 - warm), ema, new)


def _moved(share: Array, old: Array, now: Array) -> Array:
    """old + share * (now - old), of the dtype of old, computed in float32 or wider."""
    wide = widen(old)
    return (wide + share.astype(wide.dtype) * (now.astype(wide.dtype) - wide)).astype(old.dtype)


def swa_update(
    average: optax.Params, new: optax.Params, *, start: int, every: int, total: int, step: int | Array
) -> optax.Params:
    """The mean of the weights at every `every`-th step back from the last, `total`, down to step `start`.

    Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407, algorithm 1). Before the first of
    them it is `new`; `step` counts the updates before this one.
    """
    left, most = total - 1 - jnp.asarray(step, jnp.int32), (total - max(start, 1)) // every + 1
    share = jnp.where(left % every == 0, 1 / jnp.maximum(most - left // every, 1).astype(jnp.float32), 0.0)
    share = jnp.where(left >= (most - 1) * every, 1.0, share)
    return jax.tree.map(functools.partial(_moved, share), average, new)
