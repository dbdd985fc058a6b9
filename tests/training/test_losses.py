"""Cross entropy against NumPy and scikit-learn, and the masked mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from cnnjax.errors import UserError
from cnnjax.training.metrics import of_logits
from cnnjax.training.steps import cross_entropy, masked_mean

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 5)).astype(np.float32) * 3
LABEL = np.array([0, 4, 2, 2, 1, 3, 0])


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(logits, target):
    return -np.sum(target * np.log(softmax(logits)), -1)


def test_cross_entropy_is_one_value_an_example():
    losses = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL))
    assert losses.shape == (7,) and losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, reference(LOGITS, np.eye(5)[LABEL]), rtol=1e-5)
    expected = log_loss(LABEL, softmax(LOGITS), labels=range(5))
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_label_smoothing_spreads_epsilon_over_all_classes(epsilon):
    target = (1 - epsilon) * np.eye(5)[LABEL] + epsilon / 5
    hard = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABEL), epsilon)
    soft = cross_entropy(jnp.asarray(LOGITS), jnp.eye(5)[LABEL], epsilon)
    np.testing.assert_allclose(hard, reference(LOGITS, target), rtol=1e-5)
    np.testing.assert_allclose(soft, hard, rtol=1e-6)


def test_mixed_labels_mix_the_losses():
    first, second = np.eye(5)[LABEL], np.eye(5)[LABEL[::-1]]
    mixed = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(0.3 * first + 0.7 * second))
    expected = 0.3 * reference(LOGITS, first) + 0.7 * reference(LOGITS, second)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_gradient_is_the_difference_of_probability_and_target():
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.asarray(LABEL), 0.1).sum())(LOGITS)
    expected = softmax(LOGITS) - (0.9 * np.eye(5)[LABEL] + 0.1 / 5)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_large_logits_and_bfloat16_stay_finite_and_float32():
    logits = jnp.asarray([[1e4, -1e4], [-3e38, 3e38]], jnp.bfloat16)
    losses = cross_entropy(logits, jnp.asarray([0, 1]))
    assert losses.dtype == jnp.float32
    np.testing.assert_array_equal(losses, [0.0, 0.0])


@pytest.mark.parametrize("label", [-1, 5, 1000])
def test_a_label_out_of_range_gives_nan(label):
    losses = cross_entropy(jnp.asarray(LOGITS[:2]), jnp.asarray([1, label]))
    assert np.isfinite(losses[0]) and np.isnan(losses[1])


@pytest.mark.parametrize("shape", [(7, 1), (7, 4), (7, 6), (1, 5), (1,), (6,), ()])
def test_labels_of_another_shape_are_refused_not_spread_over_the_logits(shape):
    with pytest.raises(UserError, match=r"labels of shape .* logits of shape \(7, 5\); allowed: .*\(7,\)"):
        cross_entropy(jnp.asarray(LOGITS), jnp.zeros(shape, jnp.float32 if len(shape) > 1 else jnp.int32))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.int32])
def test_a_label_has_any_dtype_of_whole_numbers(dtype):
    """200 classes are more than int8 counts."""
    logits, label = RNG.normal(size=(3, 200)).astype(np.float32), jnp.asarray([0, 100, 127], dtype)
    losses = cross_entropy(jnp.asarray(logits), label)
    np.testing.assert_allclose(losses, reference(logits, np.eye(200)[[0, 100, 127]]), rtol=1e-5)
    rows = of_logits(jnp.asarray(logits), label, losses)
    order = (-logits).argsort(-1)
    assert rows["top5"].tolist() == [own in order[i, :5] for i, own in enumerate((0, 100, 127))]
    if jnp.issubdtype(dtype, jnp.signedinteger):
        assert np.isnan(cross_entropy(jnp.asarray(logits), jnp.asarray([-3, -1, -128], dtype))).all()


def test_masked_mean_counts_only_what_is_not_masked():
    values = jnp.asarray([1.0, jnp.nan, 3.0, jnp.inf])
    assert masked_mean(values, jnp.asarray([1, 0, 1, 0])) == 2.0
    assert masked_mean(values, jnp.asarray([True, False, False, False])) == 1.0
    assert masked_mean(values, jnp.zeros(4)) == 0.0
    assert np.isnan(masked_mean(values, jnp.ones(4)))


def test_masked_examples_have_no_gradient():
    mask = jnp.asarray([1.0, 1.0, 0.0])
    gradient = jax.grad(lambda x: masked_mean(x**2, mask))(jnp.asarray([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(gradient, [1.0, 2.0, 0.0])
    nothing = jax.grad(lambda x: masked_mean(x**2, jnp.zeros(2)))(jnp.ones(2))
    np.testing.assert_array_equal(nothing, [0.0, 0.0])
