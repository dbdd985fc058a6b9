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


@pytest.mark.parametrize("total", [3, 4, 10, 37, 1000])
@pytest.mark.parametrize(("rise", "divisor", "end_divisor"), [(0.3, 25.0, 1e4), (0.5, 10.0, 100.0)])
def test_one_cycle_is_torchs(total, rise, divisor, end_divisor):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total, pct_start=rise, div_factor=divisor, final_div_factor=end_divisor
    )
    expected = []
    for step in range(total):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        if step + 1 < total:
            reference.step()
    values = {"rise_fraction": rise, "start_divisor": divisor, "end_divisor": end_divisor}
    ours = rates_of("one_cycle", range(total), learning_rate=0.1, total_steps=total, **values)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-9)


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
