"""Weights files as run folders, and the weights of a run as files that torch's users can load."""

import contextlib
from pathlib import Path

from flax import traverse_util
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.augment.chain import explicit_spec, parse
from cnnjax.data.catalog import DATASETS
from cnnjax.models import Preset, count_params, create_model, variant
from cnnjax.models.variants import preset_augment
from cnnjax.models.weights import files, to_torch
from cnnjax.runs.checkpoints import Checkpoints, Saver
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import initial_variables
from cnnjax.runs.record import make_record


def import_weights(file: str | Path, config: ConfigDict, workdir: str | Path) -> list[str]:
    """Makes a run folder of a weights file, which can be evaluated like one that was trained here.

    `config.model` names the network; the preprocessing of its preset is filled in. The file has the names of
    torch, see `files.read`; if one does not fit, no folder is made. Returns the paths of the parameters.
    """
    preset = variant(config.model).preset
    config.augment.eval = preset_augment(preset)
    config.augment.train, config.data.size = config.augment.eval, preset.resize or 0
    config_lib.validate(config)
    model = create_model(config.model)
    variables = initial_variables(file, model, preset.input_size)
    run = Run.create(workdir, config, fingerprint="")
    facts = {"spec": config.model, "num_params": count_params(variables["params"])}
    data = imported_data(config, preset, model.num_classes)
    run.write_json("record.json", make_record(seed=config.seed, data=data, model=facts))
    with contextlib.closing(run), contextlib.closing(Saver(run.path / "checkpoints")) as saved:
        saved.save(0, {"state": variables}, {"position": 0, "seconds": 0.0})
    return ["/".join(path) for path in traverse_util.flatten_dict(variables["params"])]


def imported_data(
    config: ConfigDict, preset: Preset, num_classes: int
) -> dict[str, str | list[str] | list[int]]:
    """What the run record says of the images of imported weights; {} if their mean cannot be known."""
    info, channels = DATASETS.get(config.data.name), preset.input_size[2]
    if info and (info.num_classes, info.image_shape[2]) != (num_classes, channels):
        info = None
    if not info and preset.mean is None:
        return {}
    shape = (preset.resize, preset.resize, channels) if preset.resize else preset.input_size
    mean, std = (info.mean, info.std) if info else (None, None)
    augment = parse(config.augment.eval, image_shape=shape, mean=mean, std=std)
    names = info.class_names if info else map(str, range(num_classes))
    return {"class_names": list(names), "image_shape": list(shape), "eval_augment": explicit_spec(augment)}


def export_weights(workdir: str | Path, file: str | Path, checkpoint: str = "last") -> int:
    """Writes the weights of a run as safetensors under torch's names; returns how many tensors."""
    run = Run.open(workdir)
    _, variables = Checkpoints(run.path / "checkpoints").variables(checkpoint, "raw")
    tensors = to_torch(variables, create_model(run.config().model))
    files.write(file, tensors)
    return len(tensors)
