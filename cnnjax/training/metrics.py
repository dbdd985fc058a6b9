"""Classification metrics as masked sums that merge: any cut into batches gives the same numbers.

The sums live on the device and go through `jit`, donation and sharding like any other arrays;
`compute` turns them into numbers on the host. Counts are int32, exact up to 2,147,483,647 images
(float32 stops counting at 2^24 = 16.7 million); sums of real numbers are kept as a float32 value
and the float32 rest that rounding cut off, so they lose nothing over a million batches either.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cnnjax.errors import UserError

CALIBRATION_BINS = 15  # as in Guo et al. 2017, arXiv 1706.04599


@flax.struct.dataclass
class Metrics:
    """Sums over the examples seen; K classes, M = 15 bins of confidence.

    A "sum with rest" has a leading axis of 2: the float32 sum, and what rounding took from it.
    """

    weight: Array  # int32 []: examples
    top5: Array  # int32 []: examples whose label is among the five highest logits
    confusion: Array  # int32 [K, K]: examples by (label, prediction)
    loss: Array  # float32 [2]: sum with rest
    bin_weight: Array  # int32 [M]: examples by confidence
    bin_correct: Array  # int32 [M]: of those, rightly classified
    bin_confidence: Array  # float32 [2, M]: sum with rest of the confidences


def empty(num_classes: int) -> Metrics:
    """The metrics of no example, neutral in `merge`.

    Args:
      num_classes: K.
    """
    return Metrics(
        weight=jnp.zeros((), jnp.int32),
        top5=jnp.zeros((), jnp.int32),
        confusion=jnp.zeros((num_classes, num_classes), jnp.int32),
        loss=jnp.zeros(2, jnp.float32),
        bin_weight=jnp.zeros(CALIBRATION_BINS, jnp.int32),
        bin_correct=jnp.zeros(CALIBRATION_BINS, jnp.int32),
        bin_confidence=jnp.zeros((2, CALIBRATION_BINS), jnp.float32),
    )


def from_batch(logits: Array, label: Array, mask: Array, loss: Array) -> Metrics:
    """The metrics of one batch.

    The prediction is the highest logit, the first of equals. The label is in the top 5 if fewer
    than five classes have a higher logit, or an equal one and a lower index: equal logits are no
    free hits. With K <= 5 classes the top-5 accuracy is therefore 1.

    Args:
      logits: float [B, K]. Logarithms of averaged probabilities do as well.
      label: int [B], or float [B, K], of which the largest entry counts.
      mask: [B]: 0 for padding, anything else for a real example.
      loss: float [B], the loss of each example.
    """
    logits = logits.astype(jnp.float32)
    num_classes = logits.shape[-1]
    label = (jnp.argmax(label, axis=-1) if label.ndim == 2 else label).astype(jnp.int32)
    real = mask != 0
    prediction = jnp.argmax(logits, axis=-1)
    # A label outside 0..K-1 falls off the matrix, and `compute` then reports that its sum is short.
    known = (label >= 0) & (label < num_classes)
    row = jnp.where(known, label, num_classes)
    confusion = jnp.zeros((num_classes, num_classes), jnp.int32)
    confusion = confusion.at[row, prediction].add(real.astype(jnp.int32), mode="drop")
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    # Bins are (lower, upper]. A NaN confidence goes to the first bin and shows in its sum.
    bins = jnp.ceil(jnp.nan_to_num(confidence) * CALIBRATION_BINS).astype(jnp.int32) - 1
    bins = jnp.clip(bins, 0, CALIBRATION_BINS - 1)
    correct = real & (prediction == label)
    return Metrics(
        weight=jnp.sum(real, dtype=jnp.int32),
        top5=jnp.sum(real & known & (_rank(logits, label) < 5), dtype=jnp.int32),
        confusion=confusion,
        loss=_with_rest(jnp.sum(jnp.where(real, loss.astype(jnp.float32), 0.0))),
        bin_weight=_by_bin(bins, real.astype(jnp.int32)),
        bin_correct=_by_bin(bins, correct.astype(jnp.int32)),
        bin_confidence=_with_rest(_by_bin(bins, jnp.where(real, confidence, 0.0))),
    )


def merge(a: Metrics, b: Metrics) -> Metrics:
    """The metrics of the examples of `a` and of `b` together; associative, and commutative."""
    return Metrics(
        weight=a.weight + b.weight,
        top5=a.top5 + b.top5,
        confusion=a.confusion + b.confusion,
        loss=_add(a.loss, b.loss),
        bin_weight=a.bin_weight + b.bin_weight,
        bin_correct=a.bin_correct + b.bin_correct,
        bin_confidence=_add(a.bin_confidence, b.bin_confidence),
    )


def update(metrics: Metrics, logits: Array, label: Array, mask: Array, loss: Array) -> Metrics:
    """`metrics` with one batch more; the arguments are those of `from_batch`."""
    return merge(metrics, from_batch(logits, label, mask, loss))


def compute(metrics: Metrics) -> dict[str, Any]:
    """The numbers that the sums stand for, in float64 on the host.

    Precision, recall and F1 are 0 where their denominator is 0 (scikit-learn's zero_division=0);
    `macro` is the plain mean over all K classes, those that never occur included, `weighted` the
    mean weighted by how often a class occurs, `micro` counts all decisions together and so equals
    the accuracy. Without any example every score is NaN. The expected calibration error is that of
    Guo et al. 2017, arXiv 1706.04599, section 3, with 15 bins of equal width.

    Returns:
      count, loss, accuracy, top5_accuracy, ece: int and floats; macro, micro, weighted: dicts of
      the floats precision, recall, f1; per_class: dict of the float64 [K] precision, recall, f1
      and int64 [K] support; confusion_matrix: int64 [K, K], rows are labels.

    Raises:
      UserError: if a label was outside 0..K-1.
    """
    sums = jax.tree.map(np.asarray, jax.device_get(metrics))
    count = int(sums.weight)
    confusion = sums.confusion.astype(np.int64)
    if confusion.sum() != count:
        raise UserError(
            f"label: {count - confusion.sum()} of {count} labels lie outside "
            f"0..{len(confusion) - 1}; check num_classes and the data set"
        )
    hits, support, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    per_class = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted),
    }
    none = np.nan if count == 0 else 0.0
    accuracy = float(_ratio(hits.sum(), count, none))
    share = _ratio(support, count, none)
    gap = np.abs(sums.bin_correct - sums.bin_confidence.astype(np.float64).sum(0))
    return {
        "count": count,
        "loss": float(_ratio(sums.loss.astype(np.float64).sum(), count, none)),
        "accuracy": accuracy,
        "top5_accuracy": float(_ratio(sums.top5, count, none)),
        "ece": float(_ratio(gap.sum(), count, none)),
        "macro": {name: float(np.mean(v) + none) for name, v in per_class.items()},
        "micro": dict.fromkeys(per_class, accuracy),
        "weighted": {name: float(np.sum(v * share)) for name, v in per_class.items()},
        "per_class": {**per_class, "support": support},
        "confusion_matrix": confusion,
    }


def _rank(logits: Array, label: Array) -> Array:
    """How many classes come before the label; NaN comes before everything."""
    own = jnp.take_along_axis(logits, label[:, None], axis=-1, mode="clip")
    index = jnp.arange(logits.shape[-1])
    earlier = (logits == own) & (index < label[:, None])
    return jnp.sum(~(logits <= own) | earlier, axis=-1)


def _by_bin(bins: Array, values: Array) -> Array:
    return jnp.zeros(CALIBRATION_BINS, values.dtype).at[bins].add(values)


def _with_rest(total: Array) -> Array:
    return jnp.stack([total, jnp.zeros_like(total)])


def _add(a: Array, b: Array) -> Array:
    """Adds two sums with rest: Knuth's TwoSum gives the rounding error of `total` exactly."""
    total = a[0] + b[0]
    b_part = total - a[0]
    error = (a[0] - (total - b_part)) + (b[0] - b_part)
    return jnp.stack([total, a[1] + b[1] + error])


def _ratio(part: Any, whole: Any, empty_value: float = 0.0) -> np.ndarray:
    """part / whole in float64, and `empty_value` where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, empty_value), where=whole != 0)
