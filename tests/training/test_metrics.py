"""Metrics against scikit-learn, on random and degenerate inputs, for any cut into batches."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from cnnjax.errors import UserError
from cnnjax.training import metrics
from cnnjax.training.losses import cross_entropy

update = jax.jit(metrics.update)
from_batch = jax.jit(metrics.from_batch)
losses_of = jax.jit(cross_entropy)


def measure(logits, label, batch_size, padding=0.0):
    """The metrics of all rows in batches; padding of the last one looks rightly classified."""
    sums = metrics.empty(logits.shape[1])
    for start in range(0, len(label), batch_size):
        rows = slice(start, start + batch_size)
        missing = batch_size - len(label[rows])
        padded = np.pad(logits[rows], ((0, missing), (0, 0)), constant_values=padding)
        batch_label = np.pad(label[rows], (0, missing))
        mask = np.pad(np.ones(len(label[rows]), np.float32), (0, missing))
        loss = losses_of(padded, batch_label)
        sums = update(sums, padded, batch_label, mask, loss)
    return sums


def probabilities(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def calibration_error(logits, label):
    confidence, right = probabilities(logits).max(-1), logits.argmax(-1) == label
    edges, error = np.linspace(0, 1, 16), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def assert_equals_sklearn(result, logits, label):
    classes, prediction = range(logits.shape[1]), logits.argmax(-1)
    assert result["count"] == len(label)
    assert result["accuracy"] == pytest.approx(accuracy_score(label, prediction))
    np.testing.assert_array_equal(
        result["confusion_matrix"], confusion_matrix(label, prediction, labels=classes)
    )
    for average in ("macro", "micro", "weighted", None):
        expected = precision_recall_fscore_support(
            label, prediction, labels=classes, average=average, zero_division=0
        )
        ours = result[average or "per_class"]
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            np.testing.assert_allclose(ours[name], value, rtol=1e-12, err_msg=f"{average} {name}")
        if average is None:
            np.testing.assert_array_equal(ours["support"], expected[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns that 5 >= K makes top-5 perfect
        top5 = top_k_accuracy_score(label, logits, k=5, labels=classes)
    assert result["top5_accuracy"] == pytest.approx(top5)
    expected = log_loss(label, probabilities(logits), labels=classes)
    assert result["loss"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert result["ece"] == pytest.approx(calibration_error(logits, label), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    num_classes=st.sampled_from([3, 8]),
    occurring=st.integers(1, 8),
    predictable=st.integers(1, 8),
    batch_size=st.sampled_from([1, 7, 16]),
)
def test_equal_to_sklearn_for_any_cut(seed, count, num_classes, occurring, predictable, batch_size):
    rng = np.random.default_rng(seed)
    label = rng.permutation(num_classes)[rng.integers(0, min(occurring, num_classes), count)]
    logits = rng.normal(size=(count, num_classes)).astype(np.float32) * 2
    logits[:, rng.permutation(num_classes)[predictable:]] -= 20  # these are never predicted
    assert_equals_sklearn(metrics.compute(measure(logits, label, batch_size)), logits, label)


def test_a_class_that_never_occurs_and_one_never_predicted():
    label = np.array([0, 0, 1, 1, 3])
    prediction = np.array([0, 2, 0, 0, 3])  # 2 never occurs, 1 is never predicted
    logits = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    logits[np.arange(5), prediction] += 10
    result = metrics.compute(measure(logits, label, 4))
    assert_equals_sklearn(result, logits, label)
    assert result["per_class"]["recall"][2] == result["per_class"]["precision"][1] == 0.0


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_every_example_counts_once(count):
    rng = np.random.default_rng(count)
    logits = rng.normal(size=(count, 10)).astype(np.float32)
    label = rng.integers(0, 10, count)
    whole, cut = (metrics.compute(measure(logits, label, b)) for b in (1000, 16))
    assert whole["count"] == cut["count"] == count == cut["confusion_matrix"].sum()
    for key in ("accuracy", "top5_accuracy", "macro", "micro", "weighted"):
        assert whole[key] == cut[key]
    assert whole["loss"] == pytest.approx(cut["loss"], rel=1e-6)
    assert whole["ece"] == pytest.approx(cut["ece"], abs=1e-6)


def test_padding_may_hold_anything():
    logits = np.random.default_rng(4).normal(size=(5, 6)).astype(np.float32)
    sums = [measure(logits, np.arange(5), 16, padding) for padding in (0.0, np.nan, np.inf)]
    for other in sums[1:]:
        jax.tree.map(np.testing.assert_array_equal, sums[0], other)


def test_merge_is_neutral_with_empty_and_ignores_order():
    rng = np.random.default_rng(2)
    logits, label = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 4, 30)
    a, b = measure(logits[:11], label[:11], 11), measure(logits[11:], label[11:], 19)
    for one, other in (
        (metrics.merge(a, metrics.empty(4)), a),
        (metrics.merge(a, b), metrics.merge(b, a)),
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def one_example(logits, label):
    return from_batch(np.float32([logits]), np.array([label]), np.ones(1), np.zeros(1))


def test_equal_logits_are_no_free_hits():
    hits = [int(one_example([0.5] * 8, label).top5) for label in range(8)]
    assert hits == [1, 1, 1, 1, 1, 0, 0, 0]
    correct = [metrics.compute(one_example([0.5] * 8, k))["accuracy"] for k in (0, 1)]
    assert correct == [1.0, 0.0]


def test_nan_logits_are_not_in_the_top_5():
    assert [int(one_example([np.nan] * 8, label).top5) for label in range(8)] == [0] * 8
    assert int(one_example([0, 1, 2, 3, 4, 5, 6, np.nan], 7).top5) == 0


def test_without_examples_scores_are_nan():
    batch = np.zeros((3, 4), np.float32), np.array([0, 1, 2]), np.zeros(3), np.zeros(3)
    for sums in (metrics.empty(4), update(metrics.empty(4), *batch)):
        result = metrics.compute(sums)
        assert result["count"] == 0 and result["confusion_matrix"].sum() == 0
        for key in ("loss", "accuracy", "top5_accuracy", "ece"):
            assert np.isnan(result[key]), key
        for average in ("macro", "micro", "weighted"):
            assert all(np.isnan(v) for v in result[average].values()), average


def test_soft_labels_count_by_their_largest_entry():
    rng = np.random.default_rng(3)
    logits, label = rng.normal(size=(9, 6)).astype(np.float32), rng.integers(0, 6, 9)
    soft = 0.6 * np.eye(6)[label] + 0.4 / 6
    hard_sums = from_batch(logits, label, np.ones(9), np.zeros(9))
    soft_sums = from_batch(logits, soft.astype(np.float32), np.ones(9), np.zeros(9))
    jax.tree.map(np.testing.assert_array_equal, hard_sums, soft_sums)


@pytest.mark.parametrize("label", [-1, 6])
def test_labels_out_of_range_are_reported(label):
    sums = metrics.merge(one_example([0.0] * 6, 2), one_example([0.0] * 6, label))
    with pytest.raises(UserError, match=r"^label: 1 of 2 labels lie outside 0\.\.5"):
        metrics.compute(sums)


def test_counts_and_sums_are_exact_beyond_float32():
    """float32 stops counting at 2^24; here 10^9 images with a loss of 1 have gone before."""
    before = 1_000_000_000
    sums = metrics.empty(2).replace(
        weight=jnp.int32(before),
        top5=jnp.int32(before),
        confusion=jnp.asarray([[before, 0], [0, 0]], jnp.int32),
        loss=jnp.asarray([before, 0], jnp.float32),
    )
    logits, label = jnp.asarray([[1.0, 0.0], [1.0, 0.0]]), jnp.asarray([0, 1])
    many = jax.jit(lambda sums: jax.lax.fori_loop(
        0, 101, lambda _, s: metrics.update(s, logits, label, jnp.ones(2), jnp.ones(2)), sums
    ))(sums)  # fmt: skip
    result = metrics.compute(many)
    assert result["count"] == before + 202
    assert result["confusion_matrix"].tolist() == [[before + 101, 0], [101, 0]]
    assert result["loss"] == 1.0
    assert result["accuracy"] == (before + 101) / (before + 202)


def test_sums_are_arrays_that_keep_their_types():
    sums = metrics.empty(3)
    after = update(sums, np.zeros((2, 3), np.float32), np.array([0, 1]), np.ones(2), np.ones(2))
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    assert describe(sums) == describe(after)
