"""The images and augmentations that a config names."""

import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnnjax.data import datasets
from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.sources import records
from cnnjax.data.sources.source import to_memory
from cnnjax.data.statistics import channel_statistics
from cnnjax.errors import UserError
from cnnjax.runs.optimizer import errors_name_fields

SMALL_BYTES = 2**28  # sources up to this size are read into memory once


def load_split(config: ConfigDict, split: str) -> Any:
    """The source that a config names for a split, in memory where it is small."""
    if split == "test" and config.data.test_split == "validation" and config.data.num_validation:
        raise UserError(
            "config.data.test_split='validation' needs config.data.num_validation=0: a split that choices "
            "are made on gives no test score"
        )
    with errors_name_fields("data.name"):
        source = datasets.load(
            config.data.name,
            config.data.test_split if split == "test" else split,
            data_dir=config.data.dir or None,
            num_validation=config.data.num_validation,
            seed=config.seed,
            size=config.data.size or None,
            download=config.data.download,
        )
    if len(source) * math.prod(source.image_shape) <= SMALL_BYTES:
        return to_memory(source, max_bad_images(config))
    return source


def max_bad_images(config: ConfigDict) -> int | None:
    """Images that may be left out; None where the first one that cannot be read is an error."""
    return config.data.max_bad_images if config.data.on_bad_image == "skip" else None


def parse_augment(
    config: ConfigDict, split: str, source: Any, facts: dict[str, Any] | None = None
) -> augment_lib.Augmentation:
    """The augmentation that a config names for "train" or "eval", for the images of a source."""
    facts = facts or statistics(config, source)
    try:
        augment = augment_lib.parse(
            config.augment[split], image_shape=source.image_shape, num_classes=source.num_classes, **facts
        )
    except UserError as error:
        raise UserError(f"config.augment.{split}: {error}") from None
    if split == "eval" and augment.training_only:
        raise UserError(
            f"config.augment.eval={augment.spec!r}: {augment.training_only[0]} is for training; remove it "
            "(config.eval_protocol=mirror averages both views)"
        )
    return augment


def statistics(config: ConfigDict, source: Any) -> dict[str, Any]:
    """The data set's mean, std and covariance, as far as the augmentations of the config need them."""
    form, _, place = config.data.name.partition(":")
    if form == "records":
        return records.statistics(Path(place).expanduser())._asdict()
    info = datasets.DATASETS.get(config.data.name)
    known = {"mean": info.mean, "std": info.std} if info else {}
    if info and "pca_color" not in f"{config.augment.train}|{config.augment.eval}":
        return known
    return channel_statistics(source)._asdict() | known
