"""Own images: fields at their defaults are chosen from the size and number of the images."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import datasets
from cnnjax.data.sources.sets import SeveralSizes
from cnnjax.data.sources.source import Listed

SIDE = 64  # pixels to which larger images are resized
STEPS = 1500  # of training, as far as MOST_EPOCHS allow
LEAST_EPOCHS, MOST_EPOCHS = 10, 60
EVALUATIONS = 12  # about, of a run; each writes a checkpoint


def suited(
    config: ConfigDict, data: str, weights: str = "", listed: Listed | None = None
) -> tuple[ConfigDict, str]:
    """The config with a data set, defaults replaced by what suits it, and a line that lists the choices.

    Args:
      data: a name as in config.data.name, or a folder of images.
      weights: to start from, as in config.init_from; the head is initialized anew.
      listed: see `datasets.load`.
    """
    data = f"folder:{data}" if ":" not in data and Path(data).expanduser().is_dir() else data
    config = config_lib.assign(config, {"data.name": data} | ({"init_from": weights} if weights else {}))
    fields = _fields(config, {} if listed is None else listed)
    default = config_lib.flatten(config_lib.default())
    given = config_lib.flatten(config)
    chosen = {name: value for name, value in fields.items() if given[name] == default[name] != value}
    words = ", ".join(f"{name}={value}" for name, value in chosen.items()) or "nothing"
    line = f"chosen for {data}: {words}; --config.FIELD=VALUE sets another"
    return config_lib.assign(config, chosen), line


def _fields(config: ConfigDict, listed: Listed) -> dict[str, config_lib.Value]:
    load = functools.partial(datasets.load, data_dir=config.data.dir or None, listed=listed)
    try:
        source = load(config.data.name, "train")
        side = min(source.image_shape[:2])
        resized = side > SIDE or source.image_shape[0] != source.image_shape[1]
    except SeveralSizes:
        source = load(config.data.name, "train", size=SIDE)
        resized = True
    side, count, classes = SIDE if resized else side, len(source), source.num_classes
    batch = 32 if count < 5000 else 128
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(STEPS * batch / max(count, 1))))
    own = "validation" in source.splits
    fields: dict[str, config_lib.Value] = {
        "data.num_validation": 0 if own else max(0, min(max(count // 10, classes), count - classes)),
        "batch_size": batch,
        "total_epochs": float(epochs),
        "eval_every_epochs": float(max(1, epochs // EVALUATIONS)),
    }
    if config.init_from:
        fields |= {"optimizer.learning_rate": 0.0003, "init_head": "new", "eval_batch_size": 100}
        fields["augment.train"] = "mirror|normalize"
        if config.init_from.partition(":")[0] in ("torchvision", "timm"):
            fields["model"] = "resnet18"
        return fields
    fields |= {"model": "resnet20_cifar", "data.size": SIDE if resized else 0}
    return fields | {"augment.train": f"random_crop({side}, padding={side // 8})|mirror|normalize"}
