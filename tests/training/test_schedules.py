"""Schedules at known points, on the host and on the device, and the plateau's state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.training.optimizers import make_optimizer
from cnnjax.training.schedules import SCHEDULES, learning_rate_at, make_schedule


def rates_of(name, steps, **values):
    values = {"learning_rate": 1.0, "total_steps": 100, **values}
    schedule = make_schedule(name, **values)
    on_device = jax.jit(jax.vmap(schedule))(jnp.asarray(steps))
    on_host = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(np.broadcast_to(on_device, len(steps)), on_host, rtol=1e-5, atol=1e-7)
    return on_host


SCHEDULE_CASES = [
    ("constant", {}, {0: 1, 50: 1, 200: 1}),
    ("step", {"boundaries": (0.3, 0.6)}, {0: 1, 29: 1, 30: 0.1, 59: 0.1, 60: 0.01, 99: 0.01}),
    ("step", {"boundaries": (20, 40), "factor": 0.5}, {19: 1, 20: 0.5, 39: 0.5, 40: 0.25}),
    ("step", {"boundaries": (3,), "steps_per_epoch": 10}, {29: 1, 30: 0.1}),
    ("step", {"boundaries": (0.7, 0.8), "total_steps": 2}, {0: 1, 1: 0.1, 2: 0.01}),
    ("step", {"boundaries": (0.8, 0.9), "total_steps": 2}, {0: 1, 1: 1, 2: 0.01}),
    (
        "exponential",
        {"decay_rate": 0.5, "decay_epochs": 2, "steps_per_epoch": 5},
        {0: 1, 9: 1, 10: 0.5, 19: 0.5, 20: 0.25},
    ),
    (
        "exponential",
        {"decay_rate": 0.25, "decay_epochs": 10, "staircase": False, "end_learning_rate": 0.1},
        {0: 1, 5: 0.5, 10: 0.25, 99: 0.1},
    ),
    ("exponential", {"decay_rate": 1.0, "steps_per_epoch": 5}, {0: 1, 99: 1}),
    ("polynomial", {}, {0: 1, 25: 0.75, 100: 0, 150: 0}),
    ("polynomial", {"power": 2.0, "end_learning_rate": 0.2}, {0: 1, 50: 0.4, 100: 0.2}),
    ("cosine", {}, {0: 1, 50: 0.5, 25: 0.5 + 0.125**0.5, 100: 0, 150: 0}),
    ("cosine", {"end_learning_rate": 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
    ("one_cycle", {}, {0: 0.04, 14.5: 0.52, 29: 1, 64: 0.5 + 2e-6, 99: 4e-6, 150: 4e-6}),
    ("plateau", {}, {0: 1, 99: 1}),
    ("cosine", {"warmup_steps": 19}, {0: 0.05, 9: 0.5, 18: 0.95, 19: 1, 100: 0}),
    ("polynomial", {"warmup_steps": 20}, {0: 1 / 21, 20: 1, 60: 0.5, 100: 0}),
    ("step", {"warmup_steps": 9, "boundaries": (0.5,)}, {0: 0.1, 9: 1, 49: 1, 50: 0.1}),
    ("plateau", {"warmup_steps": 9}, {0: 0.1, 8: 0.9, 9: 1}),
]


@pytest.mark.parametrize(("name", "values", "points"), SCHEDULE_CASES)
def test_schedules_at_known_points(name, values, points):
    np.testing.assert_allclose(
        rates_of(name, list(points), **values), list(points.values()), rtol=1e-5, atol=1e-7
    )


# `get_last_lr` in torch 2.13.0 at some steps of OneCycleLR(optimizer, 0.1, total, pct_start, div_factor=...,
# final_div_factor=...), by these three values and the total.
EARLY, LATE = (0.3, 25.0, 1e4), (0.5, 10.0, 100.0)
TORCHS = [
    (EARLY, 3, {0: 0.09944154, 1: 0.04626371, 2: 4e-07}),
    (EARLY, 4, {0: 0.004, 1: 0.08117457, 2: 0.0283061, 3: 4e-07}),
    (EARLY, 10, {0: 0.004, 1: 0.052, 2: 0.1, 3: 0.09504846, 6: 0.0388742, 8: 0.004951937, 9: 4e-07}),
    (EARLY, 37, {1: 0.006303371, 5: 0.05125351, 10: 0.09997678, 11: 0.09970236, 23: 0.05030344, 36: 4e-07}),
    (
        EARLY,
        1000,
        {1: 0.00400265, 149: 0.05174783, 299: 0.1, 300: 0.0999995, 649: 0.0500002, 998: 9.035484e-07},
    ),
    (LATE, 3, {0: 0.01, 1: 0.075025, 2: 0.0001}),
    (LATE, 4, {0: 0.01, 1: 0.1, 2: 0.05005, 3: 0.0001}),
    (
        LATE,
        10,
        {0: 0.01, 1: 0.02318019, 2: 0.055, 4: 0.1, 5: 0.0904604, 7: 0.0346146, 8: 0.009639601, 9: 1e-4},
    ),
    (
        LATE,
        37,
        {1: 0.01072317, 9: 0.05701892, 18: 0.09982005, 19: 0.09838826, 27: 0.04793006, 35: 0.0008184853},
    ),
    (LATE, 1000, {1: 0.01000089, 249: 0.05485835, 499: 0.1, 500: 0.09999901, 749: 0.05005, 998: 0.000100986}),
]


@pytest.mark.parametrize(("shape", "total", "points"), TORCHS)
def test_one_cycle_is_torchs(shape, total, points):
    values = dict(zip(("rise_fraction", "start_divisor", "end_divisor"), shape, strict=True))
    ours = rates_of("one_cycle", [*points], learning_rate=0.1, total_steps=total, **values)
    np.testing.assert_allclose(ours, [*points.values()], rtol=1e-5, atol=2e-9)


@pytest.mark.parametrize("total", [1, 3])
def test_one_cycle_of_a_few_steps_is_finite_and_ends_at_its_lowest(total):
    ours = rates_of("one_cycle", range(total), total_steps=total, rise_fraction=1 / 3)
    assert max(ours) <= 1 and ours[-1] == pytest.approx(4e-6)


def test_every_schedule_has_a_case():
    assert {name for name, _, _ in SCHEDULE_CASES} == set(SCHEDULES)


def plateau_rates(tx, schedule, losses, opt_state=None):
    """The learning rate that each update used, by its size and as read for the log."""
    params = {"kernel": jnp.ones(1)}
    opt_state = tx.init(params) if opt_state is None else opt_state
    update = jax.jit(tx.update)
    used, logged = [], []
    for step, loss in enumerate(losses):
        updates, opt_state = update(params, opt_state, params, value=jnp.float32(loss))
        used.append(-float(updates["kernel"][0]))
        logged.append(float(learning_rate_at(schedule, step, opt_state)))
    np.testing.assert_allclose(used, logged, rtol=1e-6)
    return used, opt_state


def make_plateau(**values):
    schedule = make_schedule("plateau", learning_rate=1.0, total_steps=99, patience=2, **values)
    return schedule, make_optimizer("sgd", schedule, momentum=0.0)


def test_plateau_cuts_the_rate_after_patience_windows_without_progress():
    schedule, tx = make_plateau(steps_per_epoch=2)
    # Windows of two steps: 5, 3 (better), 3, 3 (two without progress: cut), 2 (better), 2, 2: cut.
    losses = np.repeat([5, 3, 3, 3, 2, 2, 2, 2], 2) + np.tile([0.5, -0.5], 8)
    used, _ = plateau_rates(tx, schedule, losses)
    np.testing.assert_allclose(used, [1.0] * 7 + [0.1] * 6 + [0.01] * 3, rtol=1e-5)


def test_plateau_cooldown_and_minimum():
    schedule, tx = make_plateau(factor=0.5, cooldown=3, minimum_scale=0.2)
    used, _ = plateau_rates(tx, schedule, [1.0] * 14)
    np.testing.assert_allclose(used, [1, 1] + [0.5] * 5 + [0.25] * 5 + [0.2] * 2, rtol=1e-6)


def test_plateau_resumes_from_a_saved_state():
    schedule, tx = make_plateau(steps_per_epoch=2)
    losses = [5, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3]
    whole, end = plateau_rates(tx, schedule, losses)
    for cut in (1, 5, 6):
        _, state = plateau_rates(tx, schedule, losses[:cut])
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        restored = jax.tree.unflatten(
            jax.tree.structure(tx.init({"kernel": jnp.ones(1)})), map(jnp.asarray, leaves)
        )
        rest, resumed_end = plateau_rates(tx, schedule, losses[cut:], restored)
        assert rest == whole[cut:]
        jax.tree.map(np.testing.assert_array_equal, resumed_end, end)


def test_learning_rate_of_other_schedules_needs_no_state():
    rates = make_schedule("cosine", learning_rate=0.4, total_steps=10)
    assert float(learning_rate_at(rates, 5, ())) == pytest.approx(0.2)


RUN = {"learning_rate": 0.1, "total_steps": 100}
MISTAKES = [
    ("cosin", RUN, r"^unknown schedule 'cosin' \(did you mean 'cosine'\?\)"),
    ("cosine", RUN | {"learning_rate": -0.1}, "^learning_rate=-0.1 "),
    ("cosine", RUN | {"learning_rate": float("nan")}, "learning_rate=nan"),
    ("cosine", RUN | {"learning_rate": "0.1"}, "learning_rate='0.1'"),
    ("cosine", RUN | {"warmup_steps": 100}, "^warmup_steps=100 "),
    ("cosine", RUN | {"warmup_steps": -1}, "^warmup_steps=-1 "),
    ("cosine", RUN | {"total_steps": 2**31}, r"^total_steps=2147483648 must .* below 2\*\*31"),
    ("step", RUN | {"boundaries": (10**400,)}, "boundary=1000"),
    ("one_cycle", RUN | {"warmup_steps": 1}, "^warmup_steps=1 "),
    ("cosine", RUN | {"end_learning_rate": 0.2}, "end_learning_rate=0.2"),
    ("cosine", RUN | {"factor": 0.1}, "schedule: cosine takes no factor"),
    ("step", RUN | {"boundaries": (0.6, 0.3)}, r"boundaries=\(0.6, 0.3\)"),
    ("step", RUN | {"boundaries": (0, 0.3)}, "boundary=0"),
    ("step", RUN | {"boundaries": (1.5,)}, "boundary=1.5"),
    ("step", RUN | {"factor": 0}, "factor=0"),
    ("exponential", RUN | {"decay_rate": 1.5}, "decay_rate=1.5"),
    ("polynomial", RUN | {"power": -1}, "power=-1"),
    ("plateau", RUN | {"factor": 2.0}, "factor=2.0"),
    ("plateau", RUN | {"patience": 1.5}, "patience=1.5"),
]


@pytest.mark.parametrize(("name", "values", "message"), MISTAKES)
def test_mistakes_name_the_field_in_one_line(name, values, message):
    with pytest.raises(UserError, match=message) as caught:
        make_schedule(name, **values)
    assert "\n" not in str(caught.value)


def test_none_means_the_default():
    assert rates_of("cosine", [100], factor=None, end_learning_rate=None) == [0.0]
