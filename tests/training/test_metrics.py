"""Metrics against scikit-learn, on random and degenerate inputs, for any cut into batches."""

import itertools
import json
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
from cnnjax.training.steps import cross_entropy

rows_of = jax.jit(metrics.of_logits)
losses_of = jax.jit(cross_entropy)


def rows(logits, label):
    """The rows of a batch."""
    logits, label = jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.int32)
    return jax.device_get(rows_of(logits, label, losses_of(logits, label)))


def measure(logits, label, batch_size, padding=0.0):
    """The rows in batches, without the padding of the last one, which looks rightly classified."""
    batches = []
    for start in range(0, len(label), batch_size):
        part = slice(start, start + batch_size)
        count = len(label[part])
        padded = np.pad(logits[part], ((0, batch_size - count), (0, 0)), constant_values=padding)
        batch = rows(padded, np.pad(label[part], (0, batch_size - count)))
        batches.append({name: values[:count] for name, values in batch.items()})
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


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
    found = metrics.compute(measure(logits, label, batch_size), num_classes)
    assert_equals_sklearn(found, logits, label)


def test_a_class_that_never_occurs_and_one_never_predicted():
    label = np.array([0, 0, 1, 1, 3])
    prediction = np.array([0, 2, 0, 0, 3])  # 2 never occurs, 1 is never predicted
    logits = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    logits[np.arange(5), prediction] += 10
    result = metrics.compute(measure(logits, label, 4), 6)
    assert_equals_sklearn(result, logits, label)
    assert result["per_class"]["recall"][2] == result["per_class"]["precision"][1] == 0.0


def test_rows_of_older_files_have_all_scores_but_the_top_5():
    label = np.array([0, 5, 1])
    new = measure(np.eye(6, dtype=np.float32)[[0, 5, 2]], label, 3)
    wanted = metrics.compute(new, 6)
    assert wanted.pop("top5_accuracy") == 1
    found = metrics.compute({name: values for name, values in new.items() if name != "top5"}, 6)
    np.testing.assert_equal(found, wanted)


def test_bins_are_one_at_least():
    with pytest.raises(UserError, match="bins=0 must be an integer of at least 1"):
        metrics.calibration(measure(np.eye(6, dtype=np.float32), np.arange(6), 6), 0)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_every_example_counts_once(count):
    rng = np.random.default_rng(count)
    logits = rng.normal(size=(count, 10)).astype(np.float32)
    label = rng.integers(0, 10, count)
    whole, cut = (metrics.compute(measure(logits, label, b), 10) for b in (1000, 16))
    assert whole["count"] == cut["count"] == count == cut["confusion_matrix"].sum()
    for key in ("accuracy", "top5_accuracy", "macro", "micro", "weighted"):
        assert whole[key] == cut[key]
    assert whole["loss"] == pytest.approx(cut["loss"], rel=1e-6)
    assert whole["ece"] == pytest.approx(cut["ece"], abs=1e-6)


def test_padding_may_hold_anything():
    logits = np.random.default_rng(4).normal(size=(5, 6)).astype(np.float32)
    found = [measure(logits, np.arange(5), 16, padding) for padding in (0.0, np.nan, np.inf)]
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_equal_logits_are_no_free_hits():
    found = rows([[0.5] * 8] * 8, range(8))
    assert found["top5"].tolist() == [True] * 5 + [False] * 3
    assert found["prediction"].tolist() == [0] * 8
    assert metrics.compute(found, 8)["accuracy"] == 1 / 8


def test_nan_logits_are_not_in_the_top_5_and_make_loss_and_calibration_nan():
    found = rows([[np.nan] * 8] * 8, range(8))
    assert not found["top5"].any()
    assert not rows([[0, 1, 2, 3, 4, 5, 6, np.nan]], [7])["top5"][0]
    scores = metrics.compute(found, 8)
    assert np.isnan(scores["loss"]) and np.isnan(scores["ece"]) and scores["count"] == 8


def test_without_examples_scores_are_nan():
    nothing = {name: values[:0] for name, values in rows(np.zeros((3, 4)), [0, 1, 2]).items()}
    result = metrics.compute(nothing, 4)
    assert result["count"] == 0 and result["confusion_matrix"].sum() == 0
    for key in ("loss", "accuracy", "top5_accuracy", "ece"):
        assert np.isnan(result[key]), key
    for average in ("macro", "micro", "weighted"):
        assert all(np.isnan(v) for v in result[average].values()), average


@pytest.mark.parametrize("value", [-1, 6])
@pytest.mark.parametrize("name", ["label", "prediction"])
def test_labels_and_predictions_out_of_range_are_reported(name, value):
    wrong = rows(np.zeros((2, 6)), [2, 3]) | {name: np.array([2, value])}
    with pytest.raises(UserError, match=rf"^{name}: 1 of 2 {name}s lie outside 0\.\.5"):
        metrics.compute(wrong, 6)


def test_of_many_classes_there_is_no_matrix_and_all_else(monkeypatch):
    """8 TB would be needed for it, and the file could not be read again."""
    draw = np.random.default_rng(6)
    found = rows(draw.normal(size=(40, 8)).astype(np.float32), draw.integers(0, 8, 40))
    few, many = (metrics.compute(found, count) for count in (8, 2**20))
    assert "confusion_matrix" not in many and many["accuracy"] == few["accuracy"]
    monkeypatch.setattr(metrics, "MOST_IN_MATRIX", 7)
    assert few.pop("confusion_matrix").sum() == 40
    jax.tree.map(np.testing.assert_array_equal, metrics.compute(found, 8), few)


def test_the_largest_matrix_is_a_file_of_tens_of_megabytes():
    """Of a cell, as JSON is indented, the file has nine bytes."""
    largest = np.zeros((2, metrics.MOST_IN_MATRIX), int).tolist()
    assert len(json.dumps(largest, indent=2)) / 2 * metrics.MOST_IN_MATRIX < 40e6


def test_counts_and_sums_are_exact_beyond_float32():
    """float32 stops counting at 2^24; a loss of 1 is summed over more images than that."""
    count = 2**24 + 3
    label = np.zeros(count, np.int32)
    prediction = label.copy()
    prediction[:3] = 1
    ones = np.ones(count, np.float32)
    found = {"label": label, "prediction": prediction, "confidence": ones, "loss": ones, "top5": ones > 0}
    result = metrics.compute(found, 2)
    assert result["count"] == count
    assert result["confusion_matrix"].tolist() == [[2**24, 3], [0, 0]]
    assert result["loss"] == result["top5_accuracy"] == 1.0
    assert result["accuracy"] == 2**24 / count
    assert result["ece"] == 1 - 2**24 / count


@pytest.mark.parametrize("padding", [0.0, np.nan])
def test_rows_of_a_padded_batch_are_scored_without_the_padding(padding):
    """As `eval_step` gives them: JAX's arrays with a mask, in which float32 cannot sum these losses."""
    whole = rows(np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32), [0, 1, 2, 3, 0, 1])
    whole["loss"] = np.asarray([2**24, 1, 1, 1, 0.5, 3], np.float32)
    pad = {"label": 0, "prediction": 9, "confidence": padding, "loss": padding, "top5": True}
    padded = {name: jnp.asarray([*values, pad[name]], values.dtype) for name, values in whole.items()}
    padded |= {"mask": jnp.asarray([1.0] * 6 + [0.0]), "index": jnp.arange(7)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, wanted = metrics.compute(padded, 4), metrics.compute(whole, 4)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert found["loss"] == (2**24 + 6.5) / 6 and found["count"] == 6
    np.testing.assert_array_equal(metrics.worst_mistakes(padded), metrics.worst_mistakes(whole))
    np.testing.assert_array_equal(metrics.calibration(padded).count, metrics.calibration(whole).count)


def test_rows_are_arrays_of_fixed_types():
    types = {name: values.dtype.name for name, values in rows(np.zeros((2, 3)), [0, 1]).items()}
    assert types == {
        "label": "int32", "prediction": "int32", "confidence": "float32", "loss": "float32", "top5": "bool",
    }  # fmt: skip


def test_worst_mistakes_and_a_calibration_of_fewer_bins():
    draw = np.random.default_rng(0)
    label, prediction = draw.integers(0, 4, 200), draw.integers(0, 3, 200)
    found = {"label": label, "prediction": prediction, "confidence": draw.uniform(0.2, 1, 200)}
    found["loss"] = draw.exponential(size=200)
    worst = metrics.worst_mistakes(found, 5)
    assert (label[worst] != prediction[worst]).all()
    assert (np.diff(found["loss"][worst]) <= 0).all()
    assert found["loss"][worst[0]] == found["loss"][label != prediction].max()
    curve = metrics.calibration(found, bins=10)
    assert curve.count.sum() == 200
    inside = (found["confidence"] > 0.5) & (found["confidence"] <= 0.6)
    assert curve.accuracy[5] == pytest.approx((label == prediction)[inside].mean())


@pytest.mark.parametrize("hits, count", [(5, 3), (-1, 3)])
def test_an_interval_of_more_than_all_is_told(hits, count):
    with pytest.raises(UserError, match=f"hits={hits} must be from 0 to count=3"):
        metrics.interval(hits, count)


def test_the_interval_is_wilsons():
    """Numbers of Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ):
        np.testing.assert_allclose(metrics.interval(hits, count), (low, high), atol=5e-5)
    assert metrics.interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_of_a_diverged_network_are_computed_without_a_warning(value):
    row = {
        "label": [0, 1, 1],
        "prediction": [0, 0, 1],
        "confidence": [0.5, value, 0.7],
        "loss": [1, value, 0],
    }
    found = {name: np.asarray(each) for name, each in row.items()} | {"top5": np.ones(3, bool)}
    scores = metrics.compute(found, 2)
    assert scores["accuracy"] == 2 / 3 and not np.isfinite([scores["loss"], scores["ece"]]).any()
