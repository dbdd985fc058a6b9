"""Own images: fields at their defaults are chosen from the size and number of the images."""

import functools
import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.sources.sets import SeveralSizes
from cnnjax.data.sources.source import Listed, Shape, Source, resizes
from cnnjax.errors import UserError
from cnnjax.models.weights.published import published
from cnnjax.runs.facts import begun, start_of, start_size
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import data_name, open_split, same_images
from cnnjax.runs.pretrained import is_run, resolve

SIDE = 64  # pixels to which larger images are resized
STEPS = 1500  # of training, as far as MOST_EPOCHS allow
LEAST_EPOCHS, MOST_EPOCHS = 10, 60
EVALUATIONS = 12  # about, of a run; each writes a checkpoint
FINE_TUNING: dict[str, config_lib.Value] = {
    "optimizer.learning_rate": 0.0003,
    "init_head": "new",
    "eval_batch_size": 100,
    "augment.train": "mirror|normalize",
}


def suited(
    config: ConfigDict,
    data: str,
    weights: str = "",
    listed: Listed | None = None,
    given: Collection[str] = (),
    file: bool = False,
    workdir: str | Path | None = None,
) -> tuple[ConfigDict, str]:
    """The config with a data set, defaults replaced by what suits it, and a line that lists the choices.

    Args:
      data: see `inputs.data_name`.
      weights: to start from, as in config.init_from; the head is initialized anew.
      listed: see `datasets.load`.
      given: fields that stay as they are though they are at their defaults.
      file: whether the config is of a file, which says all but what no file knows of other images.
      workdir: of a run that is resumed, which needs the weights no more, and the images that it had.
    """
    data = data_name(data)
    config = config_lib.assign(config, {"data.name": data} | ({"init_from": weights} if weights else {}))
    default, now = config_lib.flatten(config_lib.default()), config_lib.flatten(config)
    free = {name for name, value in default.items() if now[name] == value} - {*given}
    if file:
        own_size = "augment.train" in free  # else it may crop, to a size that these images have to fit
        own = {"data.num_validation", *(["data.size"] if own_size else [])}
        free &= own | ({"model", "init_head"} if weights else set())
    try:
        source, several = _opened(config, {} if listed is None else listed)
    except UserError as error:
        raise type(error)(str(error).replace("config.data.name: ", "--data: ", 1)) from None
    fields = _schedule(source)
    resize = "data.size" in free and resizes(source)
    if config.init_from:
        before = begun(config, workdir)
        if "model" in free:
            fields["model"] = before.model if before else _model_of(config.init_from)
            config = config_lib.assign(config, {"model": fields["model"]})
        if resize and not several:  # those of several sizes are brought to it in any case
            size, _ = start_size(before, functools.partial(start_of, config))
            fields["data.size"] = 0 if source.image_shape[:2] == (size, size) else size
        fields |= FINE_TUNING
    else:
        fields |= _from_scratch(source.image_shape, resize, several)
    chosen = {name: value for name, value in fields.items() if name in free and value != default[name]}
    words = ", ".join(f"{name}={value}" for name, value in chosen.items()) or "nothing"
    line = f"chosen for {data}: {words}; --config.FIELD=VALUE sets another"
    config = config_lib.assign(config, chosen)
    if workdir:
        _check_images(config, Run(workdir), listed)
    return config, line


def _check_images(config: ConfigDict, run: Run, listed: Listed | None) -> None:
    """A UserError if a run is of other images of this data set, for which other fields are chosen."""
    if not os.path.lexists(run.path / "config.json") or not run.images()["train"]:
        return
    before, data = run.config(), config.data
    if before.data.name != data.name or not config_lib.differing(before, config):
        return
    if not same_images(run, data.name, data.dir, listed):
        problem = f"{run.path} was trained on other images of {data.name} train"
        raise UserError(f"{problem}; restore them, or choose another --workdir")


def _model_of(weights: str) -> str:
    """The network of a source of weights; a ResNet-18 of those that have many."""
    if is_run(weights):
        return Run.open(weights).config().model
    kind, _, rest = weights.partition(":")
    known = {name for row in published() for name in (row.model, row.there)}
    many = kind in ("torchvision", "timm") and re.split("[:.]", rest)[0] not in known
    try:
        return resolve(weights, "resnet18" if many else "").spec
    except UserError as error:
        raise type(error)(str(error).replace("--model=", "--config.model=")) from None


def _opened(config: ConfigDict, listed: Listed) -> tuple[Source, bool]:
    """The train split with all that will be held out, and whether its images are of several sizes."""
    whole = config_lib.assign(config, {"data.num_validation": 0})
    load = functools.partial(open_split, split="train", one_size=True, listed=listed)
    try:
        return load(whole), False
    except SeveralSizes:
        return load(config_lib.assign(whole, {"data.size": SIDE})), True


def _schedule(source: Source) -> dict[str, config_lib.Value]:
    """What the number of images decides."""
    count = len(source)
    # Names may be of classes without images; labels that are not known beforehand, of all.
    classes = source.num_classes if source.labels is None else len(np.unique(source.labels))
    batch = 32 if count < 5000 else 128
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(STEPS * batch / max(count, 1))))
    own = "validation" in source.splits
    return {
        "data.num_validation": 0 if own else max(0, min(max(count // 10, classes), count - classes)),
        "batch_size": batch,
        "total_epochs": float(epochs),
        "eval_every_epochs": float(max(1, epochs // EVALUATIONS)),
    }


def _from_scratch(shape: Shape, resize: bool, several: bool) -> dict[str, config_lib.Value]:
    """Crops of the size that images are evaluated at: SIDE if `resize`, unless they are small squares."""
    height, width, _ = shape
    size = SIDE if resize and (several or height != width or height > SIDE) else 0
    height, width = (size, size) if size else (height, width)
    crop = f"{height}" if height == width else f"({height}, {width})"
    train = f"random_crop({crop}, padding={min(height, width) // 8})|mirror|normalize"
    return {"model": "resnet20_cifar", "data.size": size, "augment.train": train}
