"""Learning rate schedules over optax: functions of the step, with an optional linear warm-up."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from optax.contrib import ReduceLROnPlateauState

from cnnjax.errors import UserError, by_name, check, check_count, own_values

Value = bool | int | float | str | Sequence[float] | None  # of a setting
Boundaries = float | Sequence[float]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of each step (int or int32 []), except for a plateau's scale."""

    learning_rate: optax.Schedule
    # Of the schedule `plateau` alone: its state holds the scale; `make_optimizer` puts it last in the chain.
    plateau: optax.GradientTransformationExtraArgs | None = None

    def __call__(self, step: ArrayLike) -> ArrayLike:
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix types
            return self.learning_rate(step)


class Length(NamedTuple):
    """How long a run is, in updates; warm-up is a part of the total."""

    total_steps: int
    warmup_steps: int
    steps_per_epoch: float


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    steps_per_epoch: float = 1,
    **values: Value,
) -> Schedule:
    """The schedule `name` of `SCHEDULES`, after a linear warm-up.

    In warm-up, step t has (t + 1) / (warmup_steps + 1) of the rate at step `warmup_steps` (after
    Goyal et al. 2017, arXiv 1706.02677, section 2.2), so that no update is spent at 0. Cosine and polynomial
    run from the end of warm-up to `total_steps`; step, exponential and one-cycle count from step 0.
    `learning_rate` is the highest value; `steps_per_epoch` the unit of values in epochs, 1 makes them steps;
    `values` are keyword arguments of the schedule's function below, None its default.
    """
    build = by_name("schedule", name, SCHEDULES)
    check("learning_rate", learning_rate, "at least 0", lambda v: v >= 0)
    check_count("total_steps", total_steps, 1)
    check("steps_per_epoch", steps_per_epoch, "greater than 0", lambda v: v > 0)
    check_count("warmup_steps", warmup_steps, 0)
    if warmup_steps >= total_steps:
        raise UserError(f"warmup_steps={warmup_steps} must be less than the run's {total_steps} steps")
    if name == "one_cycle" and warmup_steps:
        reason = "which has its own warm-up, rise_fraction"
        raise UserError(f"warmup_steps={warmup_steps} must be 0 with one_cycle, {reason}")
    length = Length(total_steps, warmup_steps, steps_per_epoch)
    schedule = build(learning_rate, length, **own_values("schedule", name, build, values))
    if not warmup_steps:
        return schedule

    def warmed_up(step: ArrayLike) -> Array:
        return jnp.minimum(1.0, (step + 1) / (warmup_steps + 1)) * schedule(jnp.maximum(step, warmup_steps))

    return dataclasses.replace(schedule, learning_rate=warmed_up)


def learning_rate_at(
    schedule: Schedule | optax.Schedule, step: ArrayLike, opt_state: optax.OptState
) -> Array:
    """The learning rate of the update after `step` others, with the plateau's scale it left: float32 []."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ReduceLROnPlateauState))
    scales = (node.scale for node in nodes if isinstance(node, ReduceLROnPlateauState))
    return math.prod(scales, start=jnp.asarray(schedule(step), jnp.float32))


def _step(
    learning_rate: float, length: Length, *, boundaries: Boundaries = (0.5, 0.75), factor: float = 0.1
) -> Schedule:
    """Multiplied by `factor` from each boundary on: an epoch if int, a share of the run if float."""
    check("factor", factor, "greater than 0", lambda v: v > 0)
    points = tuple(boundaries) if isinstance(boundaries, (tuple, list)) else (boundaries,)
    for point in points:
        allowed = "an epoch (int) or a share of the run (float below 1)"
        check("boundary", point, allowed, lambda v: v > 0 and (isinstance(v, int) or v < 1))
    at = [p * (length.total_steps if isinstance(p, float) else length.steps_per_epoch) for p in points]
    if at != sorted(set(at)):
        raise UserError(f"boundaries={boundaries!r} must rise")
    # In a run of a few steps two boundaries may fall on one step, which then has both factors.
    scales = {round(a): factor ** sum(round(b) == round(a) for b in at) for a in at}
    return Schedule(optax.piecewise_constant_schedule(learning_rate, scales))


def _exponential(
    learning_rate: float,
    length: Length,
    *,
    decay_rate: float = 0.94,
    decay_epochs: float = 2,
    staircase: bool = True,
    end_learning_rate: float = 0.0,
) -> Schedule:
    """Times `decay_rate` every `decay_epochs`, at once if `staircase`; defaults: Inception v3, 1512.00567."""
    check("decay_rate", decay_rate, "in (0, 1]", lambda v: 0 < v <= 1)
    check("decay_epochs", decay_epochs, "greater than 0", lambda v: v > 0)
    _check_end(end_learning_rate, learning_rate)
    steps = max(1, round(decay_epochs * length.steps_per_epoch))
    end = end_learning_rate if decay_rate < 1 else None  # else it would be the highest rate, not the lowest
    return Schedule(optax.exponential_decay(learning_rate, steps, decay_rate, 0, staircase, end))


def _polynomial(
    learning_rate: float, length: Length, *, power: float = 1.0, end_learning_rate: float = 0.0
) -> Schedule:
    """Down to `end_learning_rate` as (1 - progress) ** power; power 1 is a straight line."""
    check("power", power, "greater than 0", lambda v: v > 0)
    _check_end(end_learning_rate, learning_rate)
    fall = (length.total_steps - length.warmup_steps, length.warmup_steps)  # its length and its start
    return Schedule(optax.polynomial_schedule(learning_rate, end_learning_rate, power, *fall))


def _cosine(learning_rate: float, length: Length, *, end_learning_rate: float = 0.0) -> Schedule:
    """Half a cosine down to `end_learning_rate` (Loshchilov, Hutter 2016, arXiv 1608.03983)."""
    _check_end(end_learning_rate, learning_rate)
    half = optax.cosine_decay_schedule(1.0, length.total_steps - length.warmup_steps)
    span = learning_rate - end_learning_rate
    return Schedule(lambda step: end_learning_rate + span * half(step - length.warmup_steps))


def _one_cycle(
    learning_rate: float,
    length: Length,
    *,
    rise_fraction: float = 0.3,
    start_divisor: float = 25.0,
    end_divisor: float = 1e4,
) -> Schedule:
    """Up from rate / start_divisor in half a cosine, then down to that / end_divisor at the last step.

    After Smith, Topin 2017, arXiv 1708.07120; the rates of torch's OneCycleLR, without its cycled momentum:
    the peak is at step rise_fraction * total_steps - 1.
    """
    check("rise_fraction", rise_fraction, "in (0, 1)", lambda v: 0 < v < 1)
    check("start_divisor", start_divisor, "at least 1", lambda v: v >= 1)
    check("end_divisor", end_divisor, "at least 1", lambda v: v >= 1)
    peak, start = rise_fraction * length.total_steps - 1, learning_rate / start_divisor
    fall = length.total_steps - 1 - peak

    def rate(step: ArrayLike) -> Array:
        rises = (now := jnp.asarray(step)) < peak
        part = jnp.where(rises, now / (abs(peak) or 1), (now - peak) / fall)
        begin = jnp.where(rises, start, learning_rate)
        end = jnp.where(rises, learning_rate, start / end_divisor)
        return end + (begin - end) / 2 * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0, 1)))

    return Schedule(rate)


def _plateau(
    learning_rate: float,
    length: Length,
    *,
    factor: float = 0.1,
    patience: int = 5,
    window_epochs: float = 1,
    cooldown: int = 0,
    minimum_scale: float = 0.0,
    tolerance: float = 1e-4,
) -> Schedule:
    """Multiplied by `factor` when the loss has not fallen by `tolerance` for `patience` windows.

    The loss is the `value` of `tx.update`, averaged over windows of `window_epochs`: the training loss, where
    He et al. 2015 (arXiv 1512.03385) watched the validation error, so that a step stays a pure function and
    resumes exactly. After a cut `cooldown` windows do not count; the rate stays above minimum_scale * rate.
    """
    check("factor", factor, "in (0, 1)", lambda v: 0 < v < 1)
    check_count("patience", patience, 1)
    check("window_epochs", window_epochs, "greater than 0", lambda v: v > 0)
    check_count("cooldown", cooldown, 0)
    check("minimum_scale", minimum_scale, "in [0, 1)", lambda v: 0 <= v < 1)
    check("tolerance", tolerance, "in (0, 1)", lambda v: 0 < v < 1)
    window = max(1, round(window_epochs * length.steps_per_epoch))
    more = {"cooldown": cooldown, "accumulation_size": window, "min_scale": minimum_scale}
    plateau = optax.contrib.reduce_on_plateau(factor, patience, tolerance, **more)
    return Schedule(optax.constant_schedule(learning_rate), plateau)


def _check_end(end_learning_rate: float, learning_rate: float) -> None:
    allowed = f"in [0, {learning_rate}], the learning rate"
    check("end_learning_rate", end_learning_rate, allowed, lambda v: 0 <= v <= learning_rate)


SCHEDULES = {
    "constant": lambda learning_rate, length: Schedule(optax.constant_schedule(learning_rate)),
    "step": _step,
    "exponential": _exponential,
    "polynomial": _polynomial,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "plateau": _plateau,
}
