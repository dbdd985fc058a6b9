"""Weights from elsewhere as a run folder, and the weights of a run as a file for PyTorch."""

import contextlib
import dataclasses
from collections.abc import Collection
from pathlib import Path

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.catalog import DATASETS
from cnnjax.data.files import expanded, replacing
from cnnjax.errors import UserError
from cnnjax.models import count_params, create_model
from cnnjax.models.variants import preset_augment
from cnnjax.models.weights import files, to_torch
from cnnjax.models.weights.torch import Variables
from cnnjax.runs.checkpoints import Checkpoints, Saver
from cnnjax.runs.facts import of_weights, preset_recipe
from cnnjax.runs.folder import Run
from cnnjax.runs.loaded import read
from cnnjax.runs.pretrained import Pretrained, resolve
from cnnjax.runs.record import make_record


def import_weights(
    source: str | Path,
    config: ConfigDict,
    workdir: str | Path,
    *,
    model: str = "",
    class_names: str | None = None,
    given: Collection[str] = (),
) -> list[str]:
    """Makes a run folder of weights from elsewhere, which can be evaluated like one that was trained here.

    `model` is a name or spec, for weights that do not tell it. Their preprocessing is filled in, unless
    `config.augment.eval` differs from its default or is among the fields `given`. If they do not fit, no
    folder is made. Returns the parameters' paths.
    """
    config = config_lib.assign(config, {})  # a copy, whose fields are filled in
    found = resolve(str(source), model)
    network, variables = read(found)
    config.model, own = found.spec, found.data or {}
    if "augment.eval" not in given and config.augment.eval == config_lib.default().augment.eval:
        config.augment.eval = own.get("eval_augment") or preset_augment(found.preset)
    if "eval_protocol" not in given and config.eval_protocol == config_lib.default().eval_protocol:
        config.eval_protocol = found.protocol or config.eval_protocol
    config.augment.train = config.augment.eval
    recipe = preset_recipe(found.preset, margin="center_crop" in config.augment.eval)
    config.data.size = own["image_shape"][0] if own else recipe.shape[0]
    config_lib.validate(config)
    data = imported_data(config, found, network.num_classes, class_names)
    run = Run.create(workdir, config, fingerprint="")
    with contextlib.closing(run), contextlib.closing(Saver(run.path / "checkpoints")) as saved:
        if not _imported(saved, variables):
            facts = {"spec": config.model, "num_params": count_params(variables["params"])}
            facts |= {"weights": found.source, "license": found.license}
            run.write_json("record.json", make_record(seed=config.seed, data=data, model=facts))
            saved.save(0, {"state": variables}, {"position": 0, "seconds": 0.0})
    return ["/".join(path) for path in traverse_util.flatten_dict(variables["params"])]


def _imported(saved: Saver, variables: Variables) -> bool:
    """Whether a run folder holds these weights, as after a kill at the end; UserError if it holds others."""
    if not (sound := [step for step in saved.steps() if not saved.problem(step)]):
        return False
    before, now = map(traverse_util.flatten_dict, (saved.read(sound[-1])["state"], variables))
    same = before.keys() == now.keys() and all(np.array_equal(before[path], now[path]) for path in now)
    if sound != [0] or not same:
        problem = f"{saved.directory.parent} contains other weights or a trained run"
        raise UserError(f"{problem}; choose another --workdir")
    return True


def imported_data(
    config: ConfigDict, found: Pretrained, num_classes: int, class_names: str | None
) -> dict[str, object]:
    """What the run record says of the images of imported weights; {} if their mean cannot be known."""
    info, channels = DATASETS.get(config.data.name), found.preset.input_size[2]
    if info and (info.num_classes, info.image_shape[2]) == (num_classes, channels):
        found = dataclasses.replace(found, class_names=found.class_names or info.class_names)
    else:
        info = None
    if not info and not found.data and found.preset.mean is None and "mean=" not in config.augment.eval:
        return {}
    mean, std = (info.mean, info.std) if info else (found.preset.mean, found.preset.std)
    return of_weights(found, num_classes, class_names, config.augment.eval, mean, std).record()


def export_weights(
    workdir: str | Path, file: str | Path, *, checkpoint: str | int = "last", weights: str = "raw"
) -> int:
    """Writes the weights of a run as safetensors under torch's names; returns how many tensors.

    `checkpoint` is "last", "best" (on validation), or a step; `weights` "raw", or "ema" for their average.
    """
    run = Run.open(workdir)
    _, variables = Checkpoints(run.path / "checkpoints").variables(checkpoint, weights)
    tensors = to_torch(variables, create_model(run.config().model))
    with replacing(expanded(file)) as part:
        files.write(part, tensors)
    return len(tensors)
