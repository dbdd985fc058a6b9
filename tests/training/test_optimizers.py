"""Optimizers against NumPy, weight decay by role, moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.errors import UserError
from cnnjax.training.optimizers import OPTIMIZERS, ema_update, make_optimizer, swa_update
from cnnjax.training.parameter_groups import decay_mask, decayed_paths
from cnnjax.training.schedules import make_schedule

RATES = (0.1, 0.1, 0.02)  # cut after the second step


def schedule(step):
    return jnp.asarray(RATES)[step]


def tree(seed):
    """Parameters, or gradients, of a small net: a convolution, a normalization, a head."""
    rng = np.random.default_rng(seed)
    shapes = {
        "stem": {"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "norm": {"scale": (4,)}},
        "head": {"kernel": (4, 3), "bias": (3,)},
    }
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS, GRADS = tree(0), [tree(seed) for seed in (1, 2, 3)]


def descend(tx, params=PARAMS, grads=GRADS, value=1.0):
    """The parameters after one jitted step for each gradient, and the last state."""

    @jax.jit
    def step(params, opt_state, grad):
        updates, opt_state = tx.update(grad, opt_state, params, value=jnp.float32(value))
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for grad in grads:
        params, opt_state = step(params, opt_state, grad)
    return params, opt_state


# Each reference takes (state, gradient, weight, number of the step from 1) of one leaf to the
# direction, before the learning rate.


def momentum_reference(state, g, w, t, momentum=0.9, nesterov=False):
    state["v"] = momentum * state.get("v", 0) + g
    return g + momentum * state["v"] if nesterov else state["v"]


def adam_reference(state, g, w, t, beta1=0.9, beta2=0.999, epsilon=1e-8):
    state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    return state["m"] / (1 - beta1**t) / (np.sqrt(state["v"] / (1 - beta2**t)) + epsilon)


def rmsprop_reference(state, g, w, t, epsilon, inside, start, momentum):
    state["s"] = 0.9 * state.get("s", start) + 0.1 * g**2
    root = np.sqrt(state["s"] + epsilon) if inside else np.sqrt(state["s"]) + epsilon
    state["v"] = momentum * state.get("v", 0) + g / root
    return state["v"]


def trust_reference(direction, w):
    return direction * np.linalg.norm(w) / np.linalg.norm(direction)


def descend_reference(reference, weight_decay, coupled, rescale=lambda d, w: d, grads=GRADS):
    """The same descent leaf by leaf in float64; kernels decay."""

    def leaf(path, weight, *gradients):
        decay = weight_decay if path[-1].key == "kernel" else 0.0
        weight, state = weight.astype(np.float64), {}
        for t, (g, rate) in enumerate(zip(gradients, RATES, strict=True), start=1):
            g = g + coupled * decay * weight
            direction = reference(state, g, weight, t) + (not coupled) * decay * weight
            weight = weight - rate * rescale(direction, weight)
        return weight

    return jax.tree_util.tree_map_with_path(leaf, PARAMS, *grads)


def assert_close(ours, expected, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, expected)


def partial(reference, **values):
    return lambda *args: reference(*args, **values)


TENSORFLOW = {"epsilon": 1.0, "epsilon_in_sqrt": True, "initial_mean_square": 1.0, "momentum": 0.9}
TORCH = {"epsilon": 0.5, "epsilon_in_sqrt": False}
CASES = {
    "sgd": ("sgd", {}, "", True, momentum_reference),
    "sgd_decoupled": ("sgd", {}, "decoupled", False, momentum_reference),
    "sgd_without_momentum": (
        *("sgd", {"momentum": 0.0}, "", True),
        partial(momentum_reference, momentum=0.0),
    ),
    "nesterov": ("nesterov", {}, "", True, partial(momentum_reference, nesterov=True)),
    "adam": ("adam", {}, "", True, adam_reference),
    "adam_decoupled": ("adam", {}, "decoupled", False, adam_reference),
    "adamw": (
        *("adamw", {"beta1": 0.8, "beta2": 0.9, "epsilon": 0.1}, "", False),
        partial(adam_reference, beta1=0.8, beta2=0.9, epsilon=0.1),
    ),
    "rmsprop_tensorflow": (
        *("rmsprop", TENSORFLOW, "", True),
        partial(rmsprop_reference, epsilon=1.0, inside=True, start=1.0, momentum=0.9),
    ),
    "rmsprop_torch": (
        *("rmsprop", TORCH, "", True),
        partial(rmsprop_reference, epsilon=0.5, inside=False, start=0.0, momentum=0.0),
    ),
    "lamb": ("lamb", {}, "", False, partial(adam_reference, epsilon=1e-6)),
}


@pytest.mark.parametrize("case", CASES)
def test_three_steps_equal_numpy(case):
    name, values, decay_mode, coupled, reference = CASES[case]
    tx = make_optimizer(name, schedule, weight_decay=0.3, decay_mode=decay_mode, **values)
    rescale = trust_reference if name == "lamb" else lambda d, w: d
    assert_close(descend(tx)[0], descend_reference(reference, 0.3, coupled, rescale))


def test_muon_orthogonalizes_kernels_as_matrices_and_leaves_the_rest_to_adam():
    tx = make_optimizer("muon", lambda step: 1.0)
    updates, _ = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    gradient = GRADS[0]["stem"]["conv"]["kernel"].reshape(18, 4)
    update = -np.asarray(updates["stem"]["conv"]["kernel"]).reshape(18, 4) / (0.2 * 18**0.5)
    # Newton-Schulz in five steps leaves singular values near 1, between about 0.7 and 1.2.
    values = np.linalg.svd(update)[1]
    assert np.all((values > 0.6) & (values < 1.3))
    assert np.ptp(np.linalg.svd(gradient)[1]) > np.ptp(values)
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    assert np.sum(update * (u @ vt)) / np.linalg.norm(update) / np.linalg.norm(u @ vt) > 0.97
    for path in (("stem", "conv", "bias"), ("stem", "norm", "scale"), ("head", "kernel")):
        ours, g = updates, GRADS[0]
        for key in path:
            ours, g = ours[key], g[key]
        np.testing.assert_allclose(ours, -np.sign(g), rtol=1e-4)


def test_muon_decay_is_decoupled():
    with_decay, without = (
        descend(make_optimizer("muon", lambda s: 0.1, weight_decay=w), grads=GRADS[:1])[0] for w in (0.5, 0.0)
    )
    shrink = jax.tree.map(lambda w, decays: 0.1 * 0.5 * w * decays, PARAMS, decay_mask(PARAMS, "kernels"))
    assert_close(with_decay, jax.tree.map(np.subtract, without, shrink))


def test_rate_inside_momentum_is_the_same_until_the_rate_changes():
    """AlexNet's v <- 0.9 v - rate (decay w + g), w <- w + v against ours."""

    def alexnet(steps):
        w, v = PARAMS["head"]["kernel"].astype(np.float64), 0.0
        for grad, rate in zip(GRADS[:steps], RATES, strict=False):
            v = 0.9 * v - rate * (0.3 * w + grad["head"]["kernel"])
            w = w + v
        return w

    tx = make_optimizer("sgd", schedule, weight_decay=0.3)
    ours = [descend(tx, grads=GRADS[:steps])[0]["head"]["kernel"] for steps in (2, 3)]
    np.testing.assert_allclose(ours[0], alexnet(2), rtol=1e-4, atol=1e-5)
    assert np.abs(ours[1] - alexnet(3)).max() > 0.01


def test_gradient_clip_bounds_the_global_norm_and_comes_before_decay():
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(GRADS[0])))
    short = [jax.tree.map(lambda g: g / norm, GRADS[0])]
    one = {"momentum": 0.0, "weight_decay": 0.3}
    clipped = make_optimizer("sgd", schedule, gradient_clip=1.0, **one)
    plain = make_optimizer("sgd", schedule, **one)
    assert_close(descend(clipped, grads=GRADS[:1])[0], descend(plain, grads=short)[0])
    half = [jax.tree.map(lambda g: 0.5 * g, short[0])]
    assert_close(descend(clipped, grads=half)[0], descend(plain, grads=half)[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_quadratic_with_a_state_of_arrays_traced_once(name):
    rates = make_schedule("cosine", learning_rate=0.15, total_steps=60, warmup_steps=5)
    tx = make_optimizer(name, rates, weight_decay=1e-4, gradient_clip=10.0)
    target, traces = GRADS[0], []

    def loss_fn(params):
        squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), params, target)
        return sum(jax.tree.leaves(squares))

    @jax.jit
    def step(params, opt_state):
        traces.append(None)
        loss, grad = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grad, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, loss

    params, opt_state, losses = jax.tree.map(jnp.asarray, PARAMS), tx.init(PARAMS), []
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(opt_state))
    structure = jax.tree.structure(opt_state)
    for _ in range(60):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert len(traces) == 1 and jax.tree.structure(opt_state) == structure


def test_kernels_decay_unless_told_otherwise():
    kernels = ["head/kernel", "stem/conv/kernel"]
    paths = ["head/bias", "head/kernel", "stem/conv/bias", "stem/conv/kernel", "stem/norm/scale"]
    assert decayed_paths(PARAMS) == decayed_paths(PARAMS, "kernels") == kernels
    assert decayed_paths(PARAMS, "all") == paths
    assert decayed_paths(PARAMS, "^stem/.*(kernel|scale)$") == ["stem/conv/kernel", "stem/norm/scale"]
    assert decayed_paths({"kernel_norm": {"scale": 1.0}}) == []


@pytest.mark.parametrize("decay", ["kernels", "all", "^head"])
def test_exactly_the_listed_leaves_shrink(decay):
    tx = make_optimizer("adamw", lambda s: 0.1, weight_decay=0.5, decay=decay)
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    after, _ = descend(tx, grads=[zeros])
    listed = decayed_paths(PARAMS, decay)
    flat = lambda t: {  # noqa: E731
        "/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(t)
    }
    for path, before in flat(PARAMS).items():
        factor = 0.95 if path in listed else 1.0
        np.testing.assert_allclose(flat(after)[path], factor * before, rtol=1e-6, err_msg=path)


def test_ema_warms_up_and_then_keeps_its_decay():
    ema, new = tree(4), tree(5)
    for step, decay in ((0, 0.1), (5, 0.4), (10**6, 0.99)):
        result = jax.jit(ema_update)(ema, new, 0.99, step)
        assert_close(result, jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, new))  # noqa: B023
    assert ema_update({}, {}, 0.9, 0) == {}


def test_ema_of_a_constant_is_that_constant():
    new = tree(6)
    jax.tree.map(np.testing.assert_array_equal, ema_update(new, new, 0.999, 3), new)


@pytest.mark.parametrize("update", ["ema", "swa"])
@pytest.mark.parametrize("others", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_averages_keep_their_dtype_and_are_rounded_once(dtype, others, update):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        old = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(4))
        new = jax.tree.map(lambda x: jnp.asarray(x, others), tree(5))
        if update == "ema":
            found, share = ema_update(old, new, 0.99, 5), 0.6
        else:
            found, share = swa_update(old, new, start=1, every=1, total=9, step=2), 1 / 3
        for a, b, c in zip(*map(jax.tree.leaves, (found, old, new)), strict=True):
            assert a.dtype == dtype
            exact = np.float64(b) + share * (np.float64(c) - np.float64(b))
            half = float(jnp.finfo(dtype).eps) / 2 + 1e-6
            np.testing.assert_allclose(np.float64(a), exact, rtol=half, atol=1e-6)


MISTAKES = [
    ("admaw", {}, r"^unknown optimizer 'admaw' \(did you mean 'adamw'\?\)"),
    ("sgd", {"weight_decay": -1.0}, "^weight_decay=-1.0 "),
    ("sgd", {"gradient_clip": -1.0}, "^gradient_clip=-1.0 "),
    ("sgd", {"momentum": 1.0}, "^momentum=1.0 "),
    ("adam", {"beta1": -0.1}, "^beta1=-0.1 "),
    ("adam", {"epsilon": 0.0}, "^epsilon=0.0 "),
    ("adam", {"momentum": 0.9}, "optimizer: adam takes no momentum"),
    ("adam", {"decay_mode": "couple"}, "^unknown decay_mode 'couple'"),
    ("adamw", {"decay_mode": "coupled"}, "^decay_mode='coupled'"),
]


@pytest.mark.parametrize(("name", "values", "message"), MISTAKES)
def test_mistakes_name_the_field_in_one_line(name, values, message):
    with pytest.raises(UserError, match=message) as caught:
        make_optimizer(name, lambda step: 0.1, **values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decay", ["(", "kernal"])
def test_a_decay_pattern_that_is_wrong_or_matches_nothing_is_an_error(decay):
    tx = make_optimizer("sgd", schedule, weight_decay=0.1, decay=decay)
    for act in (lambda: decayed_paths(PARAMS, decay), lambda: tx.init(PARAMS)):
        with pytest.raises(UserError, match="^decay="):
            act()


def test_none_means_the_default():
    none, others = {"momentum": None, "beta1": None, "epsilon": None}, {"beta1": 0.5, "epsilon": 0.1}
    same, default, other = (descend(make_optimizer("adamw", schedule, **o))[0] for o in (none, {}, others))
    jax.tree.map(np.testing.assert_array_equal, same, default)
    assert not np.allclose(other["head"]["kernel"], default["head"]["kernel"])


@pytest.mark.parametrize(("start", "samples"), [(5, (6, 9, 12)), (10, (12,)), (1, (3, 6, 9, 12))])
def test_stochastic_weight_averaging_takes_the_mean_of_the_last_epochs(start, samples):
    """Of 12 steps, every third counted back from the last; before them it follows the weights."""
    average = {"w": jnp.zeros(())}
    for step in range(12):
        now = {"w": jnp.asarray(float((step + 1) ** 2))}
        average = swa_update(average, now, start=start, every=3, total=12, step=jnp.asarray(step))
        taken = [n**2 for n in samples if n <= step + 1]
        np.testing.assert_allclose(average["w"], np.mean(taken) if taken else now["w"], rtol=1e-6)
