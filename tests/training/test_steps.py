"""One step: the gradient of a batch in microbatches is that of the whole, and padding has no part in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cnnjax import ops
from cnnjax.models import create_model, init_variables
from cnnjax.ops import cpu
from cnnjax.training.optimizers import OPTIMIZERS, ema_update, make_optimizer
from cnnjax.training.parameter_groups import with_groups
from cnnjax.training.schedules import learning_rate_at, make_schedule
from cnnjax.training.steps import (
    NEVER,
    batch_gradient,
    batch_statistics,
    distilled,
    eval_step,
    init_state,
    run_init,
    sharpness_aware,
    train_step,
)

KEY = jax.random.key(0)


class Linear(nn.Module):
    """Logits of three classes."""

    @nn.compact
    def __call__(self, image, *, train=False):
        return nn.Dense(3, name="head")(image.reshape(len(image), -1))


def as_float(key, batch):
    return batch | {"image": batch["image"].astype(jnp.float32) / 255}


def make_batch(real):
    """Twelve examples, of which those at `real` count."""
    draw = np.random.default_rng(0)
    return {
        "image": jnp.asarray(draw.integers(0, 256, (12, 4, 4, 1), np.uint8)),
        "label": jnp.asarray(draw.integers(0, 3, 12), jnp.int32),
        "mask": jnp.zeros(12).at[jnp.asarray(real)].set(1.0),
        "index": jnp.arange(12),
    }


def make_state(**fields):
    schedule = make_schedule("constant", learning_rate=0.1, total_steps=9)
    tx = make_optimizer("sgd", schedule)
    return init_state(Linear(), tx, KEY, (4, 4, 1), **fields), tx


def gradient_of(state, batch, **values):
    gradient = functools.partial(batch_gradient, model=Linear(), augment=as_float, **values)
    return jax.jit(gradient)(state, batch, KEY)


@pytest.mark.parametrize("microbatches", [2, 3, 12])
@pytest.mark.parametrize("real", [range(12), (0, 1, 2, 5, 11), (4,)])
def test_microbatches_have_the_gradient_of_the_whole_batch(microbatches, real):
    """Though each holds another number of examples, some none."""
    state, _ = make_state()
    whole = gradient_of(state, make_batch([*real]), label_smoothing=0.1)
    parts = gradient_of(state, make_batch([*real]), label_smoothing=0.1, microbatches=microbatches)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, parts, whole)
    assert float(whole.loss) > 0.5


def test_what_is_masked_has_no_part_in_a_step():
    state, tx = make_state()
    gradient = functools.partial(batch_gradient, model=Linear(), augment=as_float)
    step = jax.jit(functools.partial(train_step, tx=tx, gradient=gradient))
    batch = make_batch([0, 3, 4])
    other = batch | {"image": batch["image"].at[1].set(255), "label": batch["label"].at[2].set(7)}
    (after, metrics), (same, _) = step(state, batch, KEY), step(state, other, KEY)
    jax.tree.map(np.testing.assert_array_equal, after, same)
    assert float(metrics.weight) == 3 and int(metrics.nonfinite_step) == NEVER


def test_a_step_that_is_not_finite_moves_nothing_but_the_count():
    state, tx = make_state(ema=True)
    gradient = functools.partial(batch_gradient, model=Linear(), augment=as_float)
    average = functools.partial(ema_update, decay=0.9)
    step = jax.jit(functools.partial(train_step, tx=tx, gradient=gradient, average=average))
    batch = make_batch(range(12))
    after, metrics = step(state, batch | {"label": batch["label"].at[0].set(7)}, KEY)
    assert int(after.step) == 1 and int(metrics.nonfinite_step) == 0 and float(metrics.num_steps) == 0
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=state.step), state)
    moved, _ = step(after, batch, KEY)
    assert np.any(moved.params["head"]["kernel"] != state.params["head"]["kernel"])
    assert np.any(moved.ema["params"]["head"]["kernel"] != state.ema["params"]["head"]["kernel"])


@pytest.mark.parametrize("skipped", [(), (1, 4)], ids=["none", "some"])
@pytest.mark.parametrize("case", ["plain", "microbatches", "sharpness", "scales", "until"])
def test_the_applied_rate_and_the_thaw_are_those_of_the_step_also_after_skipped_ones(case, skipped):
    schedule = make_schedule("cosine", learning_rate=0.1, total_steps=8, warmup_steps=3)
    groups = {"freeze": "bias", "until": 3} if case == "until" else {}
    tx = make_optimizer("sgd", schedule, momentum=0.0, **groups)
    tx = with_groups(tx, scales=[("kernel", 2.0)] if case == "scales" else (), **groups)
    values = {"microbatches": 2} if case == "microbatches" else {}
    gradient = functools.partial(batch_gradient, model=Linear(), augment=as_float, **values)
    if case == "sharpness":
        gradient = functools.partial(sharpness_aware, gradient=gradient, rho=0.1)
    state, batch = init_state(Linear(), tx, KEY, (4, 4, 1)), make_batch(range(12))
    step, bad = jax.jit(functools.partial(train_step, tx=tx, gradient=gradient)), batch["label"].at[0].set(7)
    for i in range(8):
        after, _ = step(state, batch | {"label": bad} if i in skipped else batch, KEY)
        head, new = state.params["head"], after.params["head"]
        grads, rate = (
            gradient(state, batch, KEY).grads["head"],
            learning_rate_at(schedule, i, after.opt_state),
        )
        for name in head:
            factor = 2.0 if (case, name) == ("scales", "kernel") else 1.0
            moves = i not in skipped and not (case == "until" and name == "bias" and i < 3)
            moved = head[name] - factor * rate * grads[name] if moves else head[name]
            np.testing.assert_allclose(new[name], moved, rtol=1e-5, atol=1e-7)
        state = after
    counts = [s.count for s in jax.tree.leaves(state.opt_state, is_leaf=is_scheduled) if is_scheduled(s)]
    assert [int(count) for count in counts] == [8]  # in the place where earlier checkpoints hold it


def is_scheduled(node):
    return isinstance(node, optax.ScaleByScheduleState)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_given_step_that_is_the_number_of_updates_changes_no_bit(name):
    tx = make_optimizer(name, make_schedule("cosine", learning_rate=0.1, total_steps=5, warmup_steps=2))
    params = {"conv": {"kernel": jnp.linspace(-1, 1, 36).reshape(3, 3, 2, 2)}, "head": {"bias": jnp.ones(3)}}
    update = jax.jit(tx.update)
    states = [tx.init(params)] * 2
    for step in range(4):
        updates, counted = update(params, states[0], params, value=jnp.ones(()))
        stepped, given = update(
            params, states[1], params, value=jnp.ones(()), step=jnp.asarray(step, jnp.int32)
        )
        states = [counted, given]
        jax.tree.map(np.testing.assert_array_equal, (updates, counted), (stepped, given))


@pytest.mark.parametrize("kernels", [True, False])
def test_memory_holds_one_microbatch(kernels):
    """Which is what they are for: their loop is not unrolled, slow as XLA's convolutions are inside it."""
    model = create_model("resnet20_cifar(stage_sizes=(2,), widths=(8,), num_classes=3)")
    batch = {"image": jnp.zeros((16, 32, 32, 3)), "label": jnp.zeros(16, jnp.int32), "mask": jnp.ones(16)}
    state = jax.eval_shape(functools.partial(init_state, model, make_state()[1], KEY, (32, 32, 3)))

    def held(microbatches):
        values = {"model": model, "augment": lambda _, batch: batch, "microbatches": microbatches}
        with cpu.chosen(kernels):
            compiled = jax.jit(functools.partial(batch_gradient, **values)).lower(state, batch, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert held(4) < 0.4 * held(1)


@pytest.mark.parametrize("microbatches", [1, 3])
def test_the_sharpness_aware_gradient_is_that_of_a_point_uphill(microbatches):
    """In NumPy from the gradients at both points; the loss stays that of the first."""
    state, _ = make_state()
    batch = make_batch(range(12))
    gradient = functools.partial(batch_gradient, model=Linear(), augment=as_float, microbatches=microbatches)
    found = jax.jit(functools.partial(sharpness_aware, gradient=gradient, rho=0.3))(state, batch, KEY)
    here = gradient_of(state, batch)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(here.grads)))
    uphill = jax.tree.map(lambda w, g: w + 0.3 / norm * g, state.params, here.grads)
    there = gradient_of(state.replace(params=uphill), batch)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found.grads, there.grads
    )
    np.testing.assert_allclose(found.loss, here.loss, rtol=1e-6)
    assert float(there.loss) > float(here.loss)
    assert not np.allclose(found.grads["head"]["kernel"], here.grads["head"]["kernel"], rtol=1e-2)


def test_a_distilled_loss_is_mixed_from_both_and_the_teacher_gets_no_gradient():
    draw = np.random.default_rng(0)
    logits, teacher = (draw.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    losses = draw.random(4).astype(np.float32)
    soft, own = (np.exp(x / 2) / np.exp(x / 2).sum(1, keepdims=True) for x in (teacher, logits))
    wanted = 0.7 * losses + 0.3 * 4 * (soft * np.log(soft / own)).sum(1)
    found = distilled(losses, logits, teacher, alpha=0.3, temperature=2.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    by = jax.grad(lambda *x: distilled(losses, *x, alpha=0.3, temperature=2.0).sum(), argnums=(0, 1))
    of_logits, of_teacher = by(jnp.asarray(logits), jnp.asarray(teacher))
    np.testing.assert_allclose(of_logits, 0.3 * 2 * (own - soft), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(of_teacher, 0)


@pytest.mark.parametrize("scan", [False, True])
def test_batch_statistics_are_those_of_the_batch_alone(scan):
    """Whatever the momentum of a layer and the statistics so far, also of blocks in a loop."""
    model = create_model(f"resnet20_cifar(stage_sizes=(3,), widths=(4,), num_classes=3, scan_blocks={scan})")
    image = jax.random.uniform(KEY, (6, 8, 8, 3))
    variables = init_variables(model, KEY, (8, 8, 3))
    variables["batch_stats"] = jax.tree.map(lambda x: x + 3.0, variables["batch_stats"])
    found = batch_statistics(variables, {"image": image}, KEY, model=model, augment=lambda _, batch: batch)
    conv = variables["params"]["stem"]["conv"]["kernel"]
    wanted = np.asarray(ops.conv2d(image, conv, None, padding=1)).reshape(-1, 4)
    np.testing.assert_allclose(found["stem"]["norm"]["mean"], wanted.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["stem"]["norm"]["var"], wanted.var(0), rtol=1e-4)
    moved = model.apply(variables | {"batch_stats": found}, image, train=True, mutable=["batch_stats"])[1]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), moved["batch_stats"], found
    )


def test_frozen_normalizations_keep_their_statistics_and_normalize_by_them():
    """Also before a maximum, which has no derivative forward, as they have none."""
    model, image = create_model("simple_cnn(widths=(3, 4))"), jax.random.uniform(KEY, (6, 28, 28, 1))
    variables = init_variables(model, KEY, (28, 28, 1))
    variables["batch_stats"]["norm1"] = jax.tree.map(lambda x: x + 3.0, variables["batch_stats"]["norm1"])
    find = functools.partial(batch_statistics, model=model, augment=lambda _, batch: batch)
    found = find(variables, {"image": image}, KEY, freeze="conv1|norm1")
    jax.tree.map(np.testing.assert_array_equal, found["norm1"], variables["batch_stats"]["norm1"])
    frozen = {"frozen": {"norm1": {"statistics": jnp.ones((), bool)}}, "batch_stats": found}
    moved = model.apply(variables | frozen, image, train=True, mutable=["batch_stats"])[1]["batch_stats"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), moved, found)
    assert np.any(found["norm2"]["mean"] != find(variables, {"image": image}, KEY)["norm2"]["mean"])


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.int64])
def test_steps_have_one_set_of_dtypes_where_jax_has_64_bits(dtype):
    state, tx = make_state(ema=True)
    batch = make_batch([0, 3])
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        batch["label"] = jnp.arange(12).astype(dtype) % 3
        gradient = functools.partial(batch_gradient, model=Linear(), augment=as_float)
        step = functools.partial(
            train_step, tx=tx, gradient=gradient, average=functools.partial(ema_update, decay=0.9)
        )
        new, metrics = jax.eval_shape(step, state, batch, KEY)
        assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)
        rows = jax.eval_shape(
            functools.partial(
                eval_step, model=Linear(), protocol=lambda apply, x: apply(x.astype(jnp.float32))
            ),
            state.variables,
            batch,
        )
        assert {x.dtype.name for x in jax.tree.leaves((metrics, rows["loss"]))} == {"float32", "int32"}


def test_an_evaluated_batch_has_a_row_for_each_example():
    state, _ = make_state()
    batch = make_batch([0, 3, 4])

    def protocol(apply, images):
        return apply(images.astype(jnp.float32) / 255)

    rows = jax.jit(functools.partial(eval_step, model=Linear(), protocol=protocol))(state.variables, batch)
    assert set(rows) == {"label", "prediction", "confidence", "loss", "top5", "mask", "index"}
    logits = Linear().apply(state.variables, batch["image"].astype(jnp.float32) / 255)
    np.testing.assert_array_equal(rows["prediction"], logits.argmax(-1))
    np.testing.assert_array_equal(rows["mask"], batch["mask"])
    losses = -np.log(np.asarray(jax.nn.softmax(logits)))[np.arange(12), batch["label"]]
    np.testing.assert_allclose(rows["loss"], losses, rtol=1e-5)


@pytest.mark.parametrize("place", [None, "cpu", "device"])
def test_weights_initialize_without_optimization_on_a_cpu_beside_a_gpu_too(monkeypatch, place):
    seen, jit = {}, jax.jit
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "jit", lambda f, **options: seen.update(options) or jit(f))
    with jax.default_device(jax.devices()[0] if place == "device" else place):
        run_init(lambda: jnp.zeros(3))
    assert seen["compiler_options"].get("xla_backend_optimization_level") == (0 if place else None)
