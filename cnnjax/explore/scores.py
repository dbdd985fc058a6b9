"""What an evaluation's predictions say: confusions, calibration, worst mistakes, accuracy of each class.

`predictions` are those of `loop.evaluate`, or of a run's predictions.npz: label, prediction int [N],
confidence and loss float [N].
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

Predictions = Mapping[str, np.ndarray]


def confusion_matrix(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Images by (label, prediction): int64 [K, K]."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (predictions["label"], predictions["prediction"]), 1)
    return matrix


def class_accuracy(predictions: Predictions, num_classes: int) -> np.ndarray:
    """The share of each class's images that were classified rightly, NaN for one without any: float64 [K]."""
    matrix = confusion_matrix(predictions, num_classes)
    count = matrix.sum(1)
    return np.where(count > 0, np.diag(matrix) / np.maximum(count, 1), np.nan)


def worst_mistakes(predictions: Predictions, count: int = 24) -> np.ndarray:
    """Indices of wrongly classified images, highest loss first: int64, at most `count`."""
    wrong = np.flatnonzero(predictions["label"] != predictions["prediction"])
    return wrong[np.argsort(-predictions["loss"][wrong], kind="stable")][:count]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """By bins of confidence, [M]: mean confidence and accuracy (NaN in an empty bin), and images."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error."""
        used = self.count > 0
        gap = np.abs(self.confidence[used] - self.accuracy[used])
        return float((gap * self.count[used]).sum() / self.count.sum())


def calibration(predictions: Predictions, bins: int = 15) -> Calibration:
    """Whether the network is as often right as it says, by bins (low, high] of equal width.

    Source: Guo et al. 2017, arXiv:1706.04599, section 3.
    """
    confidence = np.asarray(predictions["confidence"], np.float64)
    right = np.asarray(predictions["label"] == predictions["prediction"], np.float64)
    where = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(where, weights=x, minlength=bins) / count for x in (confidence, right)]
    return Calibration(means[0], means[1], count)
