"""How much the features of a network tell of other classes: a linear probe and k nearest neighbours.

Features are standardized by the mean and deviation of the train split. The strength of the linear probe's
penalty and k are chosen on a fifth of that split, drawn by seed with as much of each class, of few images up
to ten times; then all of it is learned, and the test split is looked at once.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnjax.data.sources.source import Source, read_some
from cnnjax.errors import UserError, check_count, extra
from cnnjax.inference.model import TrainedModel
from cnnjax.runs.inputs import NAME_IT, if_moved, load_split, max_bad_images
from cnnjax.runs.loaded import with_data
from cnnjax.training.metrics import interval

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

PENALTIES = tuple(10.0**power for power in (-4, -3, -2, -1, 0, 1))  # scikit-learn's C, its inverse
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
HELD_OUT = 400  # images that choices look at, as far as ten draws give them


@dataclasses.dataclass(frozen=True)
class Score:
    """The accuracy of one classifier on the test split, with Wilson's 95 % interval."""

    accuracy: float
    low: float
    high: float
    chosen: float  # C of the linear probe, or k


@dataclasses.dataclass(frozen=True)
class Probe:
    """How well two simple classifiers learn the classes from the features of a layer; None is the last."""

    layer: str | None
    width: int  # features of an image
    num_train: int
    num_test: int
    num_classes: int
    linear: Score
    neighbours: Score


def probe(
    trained: TrainedModel,
    data: str | Path | None = None,
    *,
    layer: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Probe:
    """Probes a layer of a network (see `TrainedModel.features`; maps are averaged over places) on a data set.

    `data` is a name as of `config.data.name`, of any classes; None is the data set of the run. UserError
    without scikit-learn, without labelled train and test splits, or if there is one class or
    a class has a single image.
    """
    check_count("batch_size", batch_size, 1)
    check_count("seed", seed, 0)
    try:
        import sklearn  # noqa: F401 - asked for before the images are read
    except ImportError:
        raise UserError(f"a probe needs scikit-learn; {extra('probe')}") from None
    sources = [train := open_images(trained, data, "train")]
    try:
        sources.append(open_images(trained, data, "test"))
    except UserError as error:
        if "test" in train.splits:
            raise
        advice = "a probe needs labelled train and test images; put some into test/CLASS/"
        raise UserError(f"{error}; {advice}") from None
    max_bad = max_bad_images(trained.config) if trained.config else None
    (features, labels), (others, wanted) = (
        pooled(trained, each, layer, batch_size, max_bad) for each in sources
    )
    names = sources[0].class_names
    if (few := np.bincount(labels, minlength=len(names)).min()) < 2:
        raise UserError(f"{sources[0].name}: a class with {few} training images; a probe needs two of each")
    if len(names) < 2:
        raise UserError(f"{sources[0].name}: images of one class; a probe needs two or more")
    mean, deviation = features.mean(0), features.std(0)
    features, others = ((x - mean) / np.where(deviation > 0, deviation, 1.0) for x in (features, others))
    scores = [_score(kind, features, labels, others, wanted, seed) for kind in (_linear, _neighbours)]
    return Probe(layer, features.shape[1], len(labels), len(wanted), len(names), *scores)


def open_images(trained: TrainedModel, data: str | Path | None, split: str) -> Source:
    """A split of a data set with its own classes, files brought to size as the network has it."""
    config = with_data(trained.config, data, trained.image_shape)
    if config is None:
        raise UserError(
            f"weights {trained.name} come without images; name a data set, as in --data=folder:PATH"
        )
    with if_moved(config, NAME_IT, "data" if data else ""):
        return load_split(config, split, (), None, trained.recipe)


def pooled(
    trained: TrainedModel,
    source: Source,
    layer: str | None = None,
    batch_size: int = 64,
    max_bad: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [N, D] of all images of a source, maps averaged over places, and labels int [N].

    Up to `max_bad` unreadable images are left out, None refuses the first.
    """
    check_count("batch_size", batch_size, 1)
    rows, labels = [], []
    readable = (example for _, example in read_some(source, range(len(source)), max_bad, []))
    while examples := [*itertools.islice(readable, batch_size)]:
        values = trained.features([each["image"] for each in examples], layer, batch_size=batch_size)
        rows.append(values.reshape(len(values), -1, values.shape[-1]).mean(1))
        labels += [int(each["label"]) for each in examples]
    return np.concatenate(rows), np.asarray(labels)


def _linear(count: int) -> dict[float, "ClassifierMixin"]:
    """Linear probes by their C, the strongest penalty first."""
    from sklearn.linear_model import LogisticRegression

    return {value: LogisticRegression(C=value, max_iter=1000) for value in PENALTIES}


def _neighbours(count: int) -> dict[float, "ClassifierMixin"]:
    """Nearest neighbours by k, of so many examples."""
    from sklearn.neighbors import KNeighborsClassifier

    return {k: KNeighborsClassifier(k) for k in NEIGHBOURS if k <= count}


def _score(
    kind: Callable[[int], dict[float, "ClassifierMixin"]],
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    wanted: np.ndarray,
    seed: int,
) -> Score:
    """The classifier that is best on held-out fifths, learned again on all and tested."""
    from sklearn.model_selection import StratifiedShuffleSplit

    held = max(round(len(labels) / 5), len(np.unique(labels)))
    draws = min(max(HELD_OUT // held, 1), 10)  # of few images one fifth alone would choose by luck
    folds = StratifiedShuffleSplit(draws, test_size=held, random_state=seed)
    made = kind(len(labels) - held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a penalty so weak that the solver is still under way
        shares = dict.fromkeys(made, 0.0)
        for some, rest in folds.split(train, labels):
            for value, classifier in made.items():
                shares[value] += classifier.fit(train[some], labels[some]).score(train[rest], labels[rest])
        chosen = max(shares, key=lambda value: shares[value])  # the first of equals
        hits = int((made[chosen].fit(train, labels).predict(test) == wanted).sum())
    return Score(hits / len(wanted), *interval(hits, len(wanted)), chosen)
