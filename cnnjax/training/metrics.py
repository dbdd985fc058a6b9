"""Scores of a classifier: pure functions of one row per example.

The rows (`Predictions`) come from `eval_step`, `evaluate` or a run's predictions.npz: label and
prediction int [N], confidence (the highest probability) and loss (in nats) float [N], and top5 bool [N],
whether the label is among the five highest logits (older files lack it). Of evaluations there is also
index int [N], each example's place in the source: one that could not be read has no row (older files: none).
Rows of `eval_step` have a mask, too, and those whose mask is 0, padding, do not count. Arrays may be JAX's.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from cnnjax.errors import UserError, check_count

Predictions = Mapping[str, ArrayLike]
Scores = dict[str, Any]
MOST_IN_MATRIX = 2000  # classes, of which the matrix takes 36 MB of test.json


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Per bin of confidence, [M]: mean confidence, accuracy (NaN in an empty bin), and number of images."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error; NaN without images."""
        used = self.count > 0
        gap = np.abs(self.confidence[used] - self.accuracy[used])
        return float(_ratio((gap * self.count[used]).sum(), self.count.sum(), np.nan))


def of_logits(logits: Array, label: Array, loss: Array) -> dict[str, Array]:
    """The rows of a batch, on the device, from logits [B, K] or logarithms of averaged probabilities.

    The prediction is the highest logit, the first of equals. The label is in the top 5 if fewer than five
    classes have a higher logit, or an equal one and a lower index: equal logits are no free hits.
    """
    place, places = label.astype(jnp.int32)[:, None], jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
    own = jnp.take_along_axis(logits, place, axis=-1, mode="fill", fill_value=jnp.nan)
    earlier = (logits == own) & (places < place)
    before = jnp.sum(~(logits <= own) | earlier, axis=-1)  # NaN comes before everything
    return {
        "label": label,
        "prediction": jnp.argmax(logits, axis=-1).astype(jnp.int32),
        "confidence": jnp.max(jax.nn.softmax(logits), axis=-1),
        "loss": loss,
        "top5": before < 5,
    }


def compute(predictions: Predictions, num_classes: int) -> Scores:
    """All scores of an evaluation, in float64; NaN without examples.

    Precision, recall and F1, float64 [K] in `per_class` beside `support` int64 [K], are 0 where their
    denominator is 0 (scikit-learn's zero_division=0). Of these, `macro` is the mean over all K classes,
    including those that never occur, `occurring` over those that do, `weighted` the mean weighted by class
    frequency; `micro` pools all decisions and so equals the accuracy. The top-5 accuracy is 1 for K <= 5, and
    left out for rows without it; `ece` is that of `calibration`. `confusion_matrix` is there for up to
    `MOST_IN_MATRIX` classes. A label or prediction outside 0..K-1 raises UserError.
    """
    rows = _counted(predictions)
    label, prediction = _classes(rows, num_classes)
    count, right = len(label), label[label == prediction]
    hits, support, predicted = (np.bincount(x, minlength=num_classes) for x in (right, label, prediction))
    precision, recall = _ratio(hits, predicted), _ratio(hits, support)
    classes = {"precision": precision, "recall": recall, "f1": _ratio(2 * hits, support + predicted)}
    none = np.nan if count == 0 else 0.0
    top5 = {"top5_accuracy": float(_ratio(rows["top5"].sum(), count, none))} if "top5" in rows else {}
    accuracy, share = float(_ratio(hits.sum(), count, none)), _ratio(support, count, none)
    return {
        "count": count,
        "loss": float(_ratio(rows["loss"].sum(dtype=np.float64), count, none)),
        "accuracy": accuracy,
        **top5,
        "ece": calibration(rows).error,
        "macro": {name: float(np.mean(values) + none) for name, values in classes.items()},
        "occurring": {
            name: float(values[support > 0].mean() if count else none) for name, values in classes.items()
        },
        "micro": dict.fromkeys(classes, accuracy),
        "weighted": {name: float(np.sum(values * share)) for name, values in classes.items()},
        "per_class": {**classes, "support": support},
        **(
            {"confusion_matrix": confusion_matrix(rows, num_classes)} if num_classes <= MOST_IN_MATRIX else {}
        ),
    }


def has_top5(scores: Mapping[str, Any]) -> bool:
    """Whether the top-5 accuracy of `compute` tells anything; of five classes or fewer it is 1."""
    return len(scores["per_class"]["f1"]) > 5


def averages(scores: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, float]]:
    """The averages of `compute` by what they are; those of `macro` say it if classes never occur."""
    rows = {kind: scores[f"{prefix}{kind}"] for kind in ("macro", "micro", "weighted")}
    support = np.asarray(scores["per_class"]["support"])
    if (occur := int((support > 0).sum())) == len(support) or f"{prefix}occurring" not in scores:
        return rows
    macro = {f"macro, all {len(support)} classes": rows.pop("macro")}
    return macro | {f"macro, the {occur} that occur": scores[f"{prefix}occurring"]} | rows


def confusion_matrix(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Number of examples by (label, prediction): int64 [K, K]; UserError if one is outside 0..K-1."""
    label, prediction = _classes(_counted(predictions), num_classes)
    pairs = label * num_classes + prediction
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _classes(rows: Mapping[str, np.ndarray], num_classes: int) -> list[np.ndarray]:
    """Labels and predictions, int64 [N]; UserError if one is outside 0..K-1."""
    for name in ("label", "prediction"):
        values = rows[name]
        if outside := int(np.sum((values < 0) | (values >= num_classes))):
            given = f"{name}: {outside} of {len(values)} {name}s lie outside 0..{num_classes - 1}"
            raise UserError(f"{given}; check num_classes and the data set")
    return [rows[name].astype(np.int64) for name in ("label", "prediction")]


def calibration(predictions: Predictions, bins: int = 15) -> Calibration:
    """How often predictions of each confidence are right, by bins (low, high] of equal width.

    A NaN confidence makes the first bin's mean NaN. Source: Guo et al. 2017, arXiv:1706.04599, section 3.
    """
    check_count("bins", bins, 1)
    rows = _counted(predictions)
    confidence = rows["confidence"].astype(np.float64)
    correct = (rows["label"] == rows["prediction"]).astype(np.float64)
    share = np.clip(np.nan_to_num(confidence), 0, 1)  # that of a diverged network may be infinite
    place = np.maximum(np.ceil(share * bins).astype(int) - 1, 0)
    count, right, sure = (np.bincount(place, weights, bins) for weights in (None, correct, confidence))
    return Calibration(_ratio(sure, count, np.nan), _ratio(right, count, np.nan), count)


def worst_mistakes(predictions: Predictions, count: int = 24) -> np.ndarray:
    """Indices of wrongly classified examples, highest loss first: int64, at most `count`."""
    label, prediction, loss = (np.asarray(predictions[name]) for name in ("label", "prediction", "loss"))
    wrong = np.flatnonzero((label != prediction) & (np.asarray(predictions.get("mask", 1)) > 0))
    return wrong[np.argsort(-loss[wrong], kind="stable")][:count]


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927): of no trials (0.0, 1.0), all that it can be."""
    if not 0 <= hits <= count:
        raise UserError(f"hits={hits} must be from 0 to count={count}")
    if not count:
        return 0.0, 1.0
    z, share = 1.959964, hits / count
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _counted(predictions: Predictions) -> dict[str, np.ndarray]:
    """The rows in NumPy, for sums in float64, without padding."""
    rows = {name: np.asarray(values) for name, values in predictions.items()}
    return {name: values[rows["mask"] > 0] for name, values in rows.items()} if "mask" in rows else rows


def _ratio(part: ArrayLike, whole: ArrayLike, empty_value: float = 0.0) -> np.ndarray:
    """part / whole in float64, and `empty_value` where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, empty_value), where=whole != 0)
