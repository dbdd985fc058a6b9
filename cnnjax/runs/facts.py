"""What a run knows of its images: classes, shape, normalization.

They are found from the train split when the run begins and written to its record.json; whatever resumes,
evaluates or uses the run loads them, so that other images are seen as the run's own were.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import datasets
from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.augment.chain import Augmentation, explicit_spec
from cnnjax.data.files import read_file
from cnnjax.data.sources import records
from cnnjax.data.sources.classes import numbered
from cnnjax.data.sources.source import Shape, listed
from cnnjax.data.statistics import channel_statistics
from cnnjax.errors import UserError
from cnnjax.models import variant
from cnnjax.runs.folder import Run, naming
from cnnjax.runs.inputs import load_split

Statistics = dict[str, Any]  # mean, std and covariance of the channels, as far as augmentations need them


@dataclasses.dataclass(frozen=True)
class Facts:
    """See above."""

    class_names: tuple[str, ...]  # in the order of the labels
    image_shape: Shape  # [H, W, C] of the images as they are stored
    eval_augment: Augmentation  # of evaluation and prediction
    statistics: Statistics | None  # None in records from before they were written

    def named(self, file: str | Path | None) -> "Facts":
        """The same with the class names of a text file, one a line; None changes nothing."""
        names = read_names(file, len(self.class_names)) if file else self.class_names
        return dataclasses.replace(self, class_names=names)

    def record(self) -> dict[str, Any]:
        """As JSON; `recorded` reads it."""
        return {
            "class_names": list(self.class_names),
            "image_shape": list(self.image_shape),
            "eval_augment": explicit_spec(self.eval_augment),
            "statistics": self.statistics,
        }


def read_names(file: str | Path, count: int) -> tuple[str, ...]:
    """So many class names of a text file, one a line."""
    try:
        lines = io.StringIO(read_file(file).decode("utf-8-sig"), newline=None)  # its ends of lines alone
    except UnicodeDecodeError as error:
        raise UserError(f"class_names={file} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    names = tuple(name for line in lines if (name := line.strip()))
    if len(names) != count:
        raise UserError(f"class_names={file} has {len(names)} names; allowed: {count}, one a line")
    return names


def recorded(run: Run) -> Facts | None:
    """The facts in a run's record; None if it is from before they were written."""
    data = run.read_json("record.json").get("data", {})
    if "image_shape" not in data:
        return None
    file, shape = run.path / "record.json", tuple(data["image_shape"])
    if len(shape) != 3 or min(shape) < 1 or not {"eval_augment", "class_names"} <= data.keys():
        raise UserError(f"{file} is damaged: data has no whole image_shape, eval_augment, class_names")
    with naming(file):
        augment = augment_lib.parse(data["eval_augment"], image_shape=shape)
    return Facts(tuple(data["class_names"]), shape, augment, data.get("statistics"))


def of_run(run: Run) -> Facts:
    """The facts of a run: recorded, or found from its train split as when it began."""
    return recorded(run) or of_images(run.config(), load_split(run.config(), "train"))


def of_images(config: ConfigDict, source: Any) -> Facts:
    """The facts of a new run on a train split; weights that it starts from bring their mean and std along."""
    shape, classes = tuple(source.image_shape), tuple(source.class_names)
    values = {**statistics(config, source), **_normalization(config, shape[2])}
    return Facts(classes, shape, parse_augment(config, "eval", shape, len(classes), values), values)


def resumed(config: ConfigDict, workdir: str | Path) -> Facts | None:
    """The facts of the run in a folder, if training with this config resumes it."""
    run = Run(workdir)
    if not (run.path / "config.json").is_file() or config_lib.differing(run.config(), config):
        return None
    return recorded(run)


def started_from(config: ConfigDict) -> Facts | None:
    """The facts of the run that `config.init_from` names."""
    path = Path(config.init_from)
    return recorded(Run(path)) if config.init_from and (path / "record.json").is_file() else None


def check_head(config: ConfigDict, facts: Facts) -> None:
    """Raises a UserError if weights start with a head for as many classes of other names."""
    start = started_from(config)
    if not start or config.init_head == "new" or start.class_names == facts.class_names:
        return
    names = [each.class_names for each in (start, facts)]
    if len(names[0]) == len(names[1]) and not any(map(numbered, names)):
        problem = f"its head knows {listed(names[0])}; these images are of {listed(names[1])}"
        raise UserError(
            f"config.init_from={config.init_from}: {problem}; draw it anew with config.init_head=new"
        )


def parse_augment(
    config: ConfigDict, split: str, image_shape: Shape, num_classes: int, facts: Statistics
) -> Augmentation:
    """The augmentation that a config names for "train" or "eval"."""
    spec = config.augment[split]
    try:
        augment = augment_lib.parse(spec, image_shape=image_shape, num_classes=num_classes, **facts)
    except UserError as error:
        raise UserError(f"config.augment.{split}: {error}") from None
    if split == "eval" and augment.training_only:
        raise UserError(
            f"config.augment.eval={augment.spec!r}: {augment.training_only[0]} is for training; remove it "
            "(config.eval_protocol=mirror averages both views)"
        )
    return augment


def statistics(config: ConfigDict, source: Any) -> Statistics:
    """The data set's mean, std and covariance, as far as the augmentations of the config need them."""
    form, _, place = config.data.name.partition(":")
    if form == "records":
        return records.statistics(Path(place).expanduser())._asdict()
    info = datasets.DATASETS.get(config.data.name)
    known = {"mean": info.mean, "std": info.std} if info else {}
    if info and "pca_color" not in f"{config.augment.train}|{config.augment.eval}":
        return known
    return channel_statistics(source)._asdict() | known


def _normalization(config: ConfigDict, channels: int) -> Statistics:
    """Mean and std that the weights of `config.init_from` were trained with, if they fit these channels."""
    if start := started_from(config):
        known = dict(dict(start.eval_augment.steps).get("normalize", ()))
    elif Path(config.init_from).is_file():
        preset = variant(config.model).preset
        known = {"mean": preset.mean, "std": preset.std} if preset.mean else {}
    else:
        return {}
    values = {name: np.atleast_1d(value).tolist() for name, value in known.items()}
    values = {name: value * (channels if len(value) == 1 else 1) for name, value in values.items()}
    return values if all(len(value) == channels for value in values.values()) else {}
