"""What a run knows of its images: classes, shape, how files are brought to it, normalization.

They are found from the train split when the run begins and written to its record.json; whatever resumes,
evaluates or uses the run loads them, so that other images are seen as the run's own were.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import datasets
from cnnjax.data import recipe as recipes
from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.augment.chain import Augmentation, explicit_spec
from cnnjax.data.augment.register import AUGMENTATIONS
from cnnjax.data.files import expanded, read_lines
from cnnjax.data.recipe import Recipe
from cnnjax.data.sources import records
from cnnjax.data.sources.classes import known_as, numbered
from cnnjax.data.sources.sets import SeveralSizes
from cnnjax.data.sources.source import Listed, Shape, Source, numbered_names
from cnnjax.data.statistics import channel_statistics
from cnnjax.errors import UserError, listed, visible
from cnnjax.models import Preset
from cnnjax.models.variants import preset_augment
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.config_files import naming
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import load_split
from cnnjax.runs.pretrained import Pretrained, is_run, resolve
from cnnjax.runs.record import DataFacts

Statistics = dict[str, Any]  # mean, std and covariance of the channels, as far as augmentations need them


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run knows of its images."""

    class_names: tuple[str, ...]  # in the order of the labels
    image_shape: Shape  # [H, W, C] of the images as they are stored
    eval_augment: Augmentation  # of evaluation and prediction
    recipe: Recipe  # how image files are brought to that shape, for evaluation and prediction
    statistics: Statistics | None  # None in records from before they were written
    listed: Listed = dataclasses.field(default_factory=dict, repr=False, compare=False)  # for its next split

    @property
    def images(self) -> tuple[tuple[str, ...], Shape, Recipe]:
        """What `open_split` must know to open a split for evaluation."""
        return self.class_names, self.image_shape, self.recipe

    def load(self, config: ConfigDict, split: str) -> Source:
        """A split as evaluation sees it, in memory if its images are few."""
        return load_split(config, split, *self.images, listed=self.listed)

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
            "recipe": self.recipe.record(),
            **({} if self.statistics is None else {"statistics": self.statistics}),
        }


def read_names(file: str | Path, count: int) -> tuple[str, ...]:
    """So many class names of a text file, one a line."""
    names = tuple(filter(None, read_lines(expanded(file), f"class_names={file}")))
    if len(names) != count:
        raise UserError(f"class_names={file} has {len(names)} names; allowed: {count}, one per line")
    return names


def recorded(run: Run) -> Facts | None:
    """The facts in a run's record; None if it is from before they were written."""
    data = run.read_json("record.json").get("data", {})
    return _read(data, run.path / "record.json") if "image_shape" in data else None


def _read(data: DataFacts, file: Path) -> Facts:
    """What `Facts.record` wrote; a UserError names the file if it is damaged."""
    shape = tuple(data.get("image_shape", ()))
    if len(shape) != 3 or min(shape) < 1 or not {"eval_augment", "class_names"} <= data.keys():
        raise UserError(f"{file} is damaged: data lacks a valid image_shape, eval_augment or class_names")
    with naming(file):
        augment = augment_lib.parse(data["eval_augment"], image_shape=shape)
        recipe = recipes.read(data["recipe"]) if "recipe" in data else _before_recipes(shape)
        if recipe.shape != shape[:2]:
            raise UserError(f"the recipe gives {recipe.shape}, data.image_shape is {list(shape)}")
    _warn_of_draws(augment, file)
    known = data.get("statistics")
    return Facts(tuple(data["class_names"]), shape, augment, recipe, None if known is None else {**known})


def _warn_of_draws(augment: Augmentation, file: Path) -> None:
    """Warns if a file has an augmentation for evaluation that draws, which earlier versions allowed."""
    if steps := augment.training_only:
        problem = f"{file}: evaluation draws at random ({listed(steps)})"
        warnings.warn(
            visible(f"{problem}; answers depend on an image's place in its batch, scores on eval_batch_size"),
            stacklevel=1,
        )


def _before_recipes(shape: Shape) -> Recipe:
    """How runs that recorded no recipe brought image files to their shape."""
    height, width, _ = shape
    return recipes.fast(height) if height == width else recipes.covering(height, width)


def of_run(run: Run) -> Facts:
    """The facts of a run: recorded, or for older records found from its train split as when it began."""
    if facts := recorded(run):
        return facts
    if not run.read_json("record.json"):
        raise UserError(f"{run.path / 'record.json'} is missing; restore it, or train again")
    config = run.config()
    facts = of_images(config, load_split(config, "train"), start_of(config))
    _warn_of_draws(facts.eval_augment, run.path / "config.json")
    return dataclasses.replace(facts, recipe=_before_recipes(facts.image_shape))


def begun(config: ConfigDict, workdir: str | Path | None) -> ConfigDict | None:
    """The config of the run in a folder that began with the weights `config.init_from` and has a checkpoint.

    It needs these weights no more: its checkpoint holds what came of them, its record the facts.
    """
    if not config.init_from or not workdir or not os.path.lexists((run := Run(workdir)).path / "config.json"):
        return None
    before = run.config()
    same = before.init_from == config.init_from and Checkpoints(run.path / "checkpoints").steps()
    return before if same else None


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights that `config.init_from` names, and what they bring along."""

    place: Path  # a run folder or a file
    class_names: tuple[str, ...] = ()  # () if nobody knows them
    recipe: Recipe | None = None  # how they bring images to what their network takes; None if unknown
    normalization: Statistics = dataclasses.field(default_factory=dict)  # mean and std, if known

    def statistics(self, channels: int) -> Statistics:
        """The mean and std that they were trained with, if these fit so many channels."""
        values = {name: np.atleast_1d(value).tolist() for name, value in self.normalization.items()}
        values = {name: value * (channels if len(value) == 1 else 1) for name, value in values.items()}
        return values if all(len(value) == channels for value in values.values()) else {}


def start_of(config: ConfigDict) -> Start | None:
    """What `config.init_from` names, fetched unless it is here; None if it names nothing."""
    if not (source := config.init_from):
        return None
    found = None if is_run(source) else resolve(source, config.model)
    if found and not found.data:
        known = {"mean": found.preset.mean, "std": found.preset.std} if found.preset.mean else {}
        return Start(found.file, found.class_names, preset_recipe(found.preset, margin=False), known)
    place = found.file if found else expanded(source)
    facts = _read(found.data, Path(found.source)) if found and found.data else recorded(Run(source))
    if not facts:  # a run from before they were recorded
        return Start(place)
    own, known = facts.recipe, dict(dict(facts.eval_augment.steps).get("normalize", ()))
    recipe = recipes.covering(*own.shape) if own.mode == "square" else dataclasses.replace(own, margin=0)
    return Start(place, facts.class_names, recipe, known)


def open_train(
    config: ConfigDict, listed: Listed, before: ConfigDict | None, start: Callable[[], Start | None]
) -> tuple[Source, ConfigDict, Recipe | None]:
    """The train split, and the config and recipe that it is opened with.

    Images of several sizes, for which config.data.size names none, are brought to size as the weights `start`
    have it; else the recipe is None. The run that is resumed, of the config `before`, knows the size itself.
    """
    size, weights = start_size(before, start)
    try:
        one_size = size > 0 or weights is not None
        return load_split(config, "train", one_size=one_size, listed=listed), config, None
    except SeveralSizes:
        if not size:
            raise
    config = config_lib.assign(config, {"data.size": size})
    return load_split(config, "train", listed=listed), config, weights


def start_size(before: ConfigDict | None, start: Callable[[], Start | None]) -> tuple[int, Recipe | None]:
    """The data.size of the run that is resumed, or else of the weights that a run starts from, 0 for none.

    With it the recipe of these weights, if they are needed.
    """
    if before:
        return before.data.size, None
    weights = found.recipe if (found := start()) else None
    return weights.shape[0] if weights and len({*weights.shape}) == 1 else 0, weights


def of_images(
    config: ConfigDict, source: Source, start: Start | None = None, recipe: Recipe | None = None
) -> Facts:
    """The facts of a new run on a train split; the weights `start` bring their mean and std along."""
    shape, classes = source.image_shape, tuple(source.class_names)
    values = {**statistics(config, source), **(start.statistics(shape[2]) if start else {})}
    if recipe is None:
        interpolation = start.recipe.interpolation if start and start.recipe else "bilinear"
        recipe = recipes.covering(shape[0], shape[1], interpolation)
    augment = parse_augment(config, "eval", shape, len(classes), values)
    return Facts(classes, shape, augment, recipe, values)


def of_resumed(config: ConfigDict, workdir: str | Path, fingerprint: str) -> Facts | None:
    """The facts of the run in a folder, if training with this config, on these images, resumes it."""
    run = Run(workdir)
    if not (run.path / "config.json").is_file() or run.differing(config, fingerprint):
        return None
    return recorded(run)


def of_weights(
    found: Pretrained,
    num_classes: int,
    class_names: str | Path | None = None,
    augment: str = "",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Facts:
    """The facts of weights from elsewhere, which have a head of so many classes.

    `class_names` is a file that names them, one a line; unknown names are numbers. `augment` stands in place
    of their own normalization, `mean` and `std` are those of the data set that it may need.
    """
    names = found.class_names or numbered_names(num_classes)
    if class_names:
        names = read_names(class_names, num_classes)
    elif len(names) != num_classes:
        counts = f"its head has {num_classes} classes but {len(names)} names"
        raise UserError(f"{found.source}: {counts}; give all names in a file as class_names, one per line")
    if found.data:
        own = dataclasses.replace(_read(found.data, Path(found.source)), class_names=names)
        if augment in ("", found.data["eval_augment"]):
            return own
        known = dict(dict(own.eval_augment.steps).get("normalize", ())) or {"mean": mean, "std": std}
        parsed = augment_lib.parse(augment, image_shape=own.image_shape, **known)
        check_eval(parsed)
        return dataclasses.replace(own, eval_augment=parsed)
    if found.preset.mean is None and not augment:
        problem = "the mean and std of its images are unknown"
        advice = "`cnnjax weights import` takes --config.augment.eval='normalize(mean=..., std=...)'"
        raise UserError(f"{found.source}: {problem}; {advice}")
    spec = augment or preset_augment(found.preset)
    recipe = preset_recipe(found.preset, margin="center_crop" in spec)
    shape = (*recipe.shape, found.preset.input_size[2])
    parsed = augment_lib.parse(spec, image_shape=shape, mean=mean, std=std)
    check_eval(parsed)
    return Facts(names, shape, parsed, recipe, None)


def check_head(config: ConfigDict, start: Start, facts: Facts) -> None:
    """Raises a UserError if weights start with a head for as many classes of other names."""
    names = known, ours = start.class_names, facts.class_names
    if config.init_head == "new" or len(known) != len(ours) or any(map(numbered, names)):
        return
    if [*map(known_as, known)] != [*map(known_as, ours)]:
        problem = f"its head has the classes {listed(known)}; the images have {listed(ours)}"
        raise UserError(
            f"config.init_from={config.init_from}: {problem}; initialize a new one with config.init_head=new"
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
    return augment


def check_eval(augment: Augmentation) -> None:
    """Raises a UserError if evaluation draws: an answer must not depend on an image's place in its batch."""
    if augment.training_only:
        raise UserError(
            f"config.augment.eval={augment.spec!r}: {augment.training_only[0]} is for training; remove it "
            "(config.eval_protocol=mirror averages both views)"
        )


def warn_unless_alike(train: Augmentation, evaluation: Augmentation) -> None:
    """Warns if a run does not normalize images in evaluation as in training."""
    wanted, given = train.normalization, evaluation.normalization
    if wanted is given or (wanted is not None and given is not None and np.allclose(wanted, given)):
        return
    names = ((call, call.partition("(")[0]) for call in train.spec.split("|"))
    call = next((call for call, name in names if AUGMENTATIONS[name].gives == "normalized"), "scale")
    fields = f"config.augment.eval={evaluation.spec!r}", f"config.augment.train={train.spec!r}"
    problem = f"{fields[0]} does not normalize as {fields[1]}: scores are of other pixels than it learns from"
    warnings.warn(visible(f"{problem}; write {call} there too"), stacklevel=2)


def statistics(config: ConfigDict, source: Source) -> Statistics:
    """The data set's mean, std and covariance, as far as the augmentations of the config need them."""
    form, _, place = config.data.name.partition(":")
    if form == "records":
        return records.statistics(expanded(place))._asdict()
    info = datasets.DATASETS.get(config.data.name)
    known = {"mean": info.mean, "std": info.std} if info else {}
    if info and "pca_color" not in f"{config.augment.train}|{config.augment.eval}":
        return known
    return channel_statistics(source)._asdict() | known


def preset_recipe(preset: Preset, *, margin: bool = True) -> Recipe:
    """How a preset's images are brought to size, with what `preset_augment` cuts off them around the crop."""
    height, width, _ = preset.input_size
    resize = preset.resize or min(height, width)
    spare = max(0, resize - max(height, width)) // 2 if margin and preset.resize else 0
    sides = (resize,) if preset.crop_mode == "center" else (resize, resize)
    fill = (
        tuple(round(255 * value) for value in preset.mean or (0,)) if preset.crop_mode == "border" else (0,)
    )
    return Recipe(sides, (height, width), preset.interpolation, preset.crop_mode, fill, spare)
