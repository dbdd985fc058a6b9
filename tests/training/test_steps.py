"""One step: the gradient of a batch in microbatches is that of the whole, and padding has no part in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnnjax.training.optimizers import make_optimizer
from cnnjax.training.schedules import make_schedule
from cnnjax.training.steps import NEVER, batch_gradient, eval_step, init_state, train_step

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
    step = jax.jit(functools.partial(train_step, tx=tx, gradient=gradient, ema_decay=0.9))
    batch = make_batch(range(12))
    after, metrics = step(state, batch | {"label": batch["label"].at[0].set(7)}, KEY)
    assert int(after.step) == 1 and int(metrics.nonfinite_step) == 0 and float(metrics.num_steps) == 0
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=state.step), state)
    moved, _ = step(after, batch, KEY)
    assert np.any(moved.params["head"]["kernel"] != state.params["head"]["kernel"])
    assert np.any(moved.ema["params"]["head"]["kernel"] != state.ema["params"]["head"]["kernel"])


def test_an_evaluated_batch_has_a_row_for_each_example():
    state, _ = make_state()
    batch = make_batch([0, 3, 4])

    def protocol(apply, images):
        return apply(images.astype(jnp.float32) / 255)

    rows = jax.jit(functools.partial(eval_step, model=Linear(), protocol=protocol))(state.variables, batch)
    assert set(rows) == {"label", "prediction", "confidence", "loss", "top5", "mask"}
    logits = Linear().apply(state.variables, batch["image"].astype(jnp.float32) / 255)
    np.testing.assert_array_equal(rows["prediction"], logits.argmax(-1))
    np.testing.assert_array_equal(rows["mask"], batch["mask"])
    losses = -np.log(np.asarray(jax.nn.softmax(logits)))[np.arange(12), batch["label"]]
    np.testing.assert_allclose(rows["loss"], losses, rtol=1e-5)
