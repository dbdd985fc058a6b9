"""Networks for other programs: safetensors with JSON, StableHLO, ONNX; and to and from torch's weights files.

The first three are read back and compared. They take images float32 [B, H, W, C] as the network takes them,
any number of them unless one is asked for; the JSON says how to prepare them.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import export as jax_export
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.catalog import DATASETS
from cnnjax.data.files import atomic_write, read_json, replacing
from cnnjax.data.sources.source import numbered_names
from cnnjax.errors import UserError, one_line
from cnnjax.inference.model import TrainedModel
from cnnjax.models import Preset, count_params, create_model, variant
from cnnjax.models.variants import preset_augment
from cnnjax.models.weights import files, to_torch
from cnnjax.models.weights.torch import Variables
from cnnjax.ops.portable import portable
from cnnjax.runs.checkpoints import Checkpoints, Saver
from cnnjax.runs.facts import Facts as ImageFacts
from cnnjax.runs.facts import preset_recipe
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import initial_variables
from cnnjax.runs.record import make_record

TOLERANCE = 1e-4  # of logits, by their largest absolute value where that is above 1
HALF_TOLERANCE = 2e-2  # likewise, for weights rounded to float16
PLATFORMS = ("cpu", "cuda", "tpu")  # that StableHLO is lowered for
Logits = Callable[[np.ndarray], np.ndarray]


class Format(NamedTuple):
    """How a network is written to a file and read back, see `FORMATS` below."""

    suffix: str
    write: Callable[[TrainedModel, Path, int | None], None]
    read: Callable[[TrainedModel, Path], Logits]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: its size, and the largest difference of its logits (see `TOLERANCE`)."""

    num_bytes: int
    difference: float


def export(
    trained: TrainedModel, form: str, out: str | Path, *, half: bool = False, batch_size: int | None = None
) -> Exported:
    """Writes a network that computes in float32, reads it back and compares its logits.

    Args:
      form: a name of `FORMATS`; FILE.json beside `out` says how to prepare images. An error leaves no file.
      half: weights rounded to float16, for half the bytes.
      batch_size: the only one that the StableHLO or ONNX file accepts; None is any.
    """
    path = Path(out)
    suffix, write, read = FORMATS[form]
    if path.suffix != suffix:
        raise UserError(f"out={out}: a file of format {form} ends in {suffix}")
    if not path.parent.is_dir():
        raise UserError(f"out={out}: {path.parent} is not a folder; make it first")
    trained = dataclasses.replace(trained, model=trained.model.clone(dtype=jnp.float32))
    dtype, limit = (jnp.float16, HALF_TOLERANCE) if half else (jnp.float32, TOLERANCE)
    stored = dataclasses.replace(trained, variables=_cast(trained.variables, dtype))
    with replacing(path) as written:
        write(stored, written, batch_size)
        difference = _compare(trained, read(trained, written), [batch_size] if batch_size else [1, 3])
        if not difference <= limit:
            problem = f"the logits differ by {difference:.1e}, more than {limit}"
            raise UserError(f"format {form}: {problem}; nothing is kept")
    facts = description(trained, form, half, batch_size)
    atomic_write(path.with_name(f"{path.name}.json"), json.dumps(facts, indent=2) + "\n")
    return Exported(path.stat().st_size, difference)


def description(trained: TrainedModel, form: str, half: bool, batch_size: int | None) -> dict[str, object]:
    """What another program must know: preprocessing, classes, and the run's whole config."""
    batch = batch_size or "batch"
    return {
        "format": form,
        "weights": "float16" if half else "float32",
        "model": trained.config.model,
        "input": {"dtype": "float32", "shape": [batch, *trained.input_shape], "layout": "NHWC"},
        "output": {"dtype": "float32", "shape": [batch, len(trained.class_names)], "values": "logits"},
        "preprocessing": [{"name": name, **dict(arguments)} for name, arguments in trained.augment.steps],
        "image_shape": list(trained.image_shape),
        "class_names": list(trained.class_names),
        "step": trained.step,
        "config": trained.config.to_dict(),
    }


class Step(TypedDict):
    """A step of the preprocessing; its other entries are the arguments."""

    name: str


class Facts(TypedDict):
    """What is read of `description`."""

    model: str
    class_names: list[str]
    preprocessing: list[Step]
    image_shape: list[int]


def load_safetensors(file: str | Path) -> tuple[nn.Module, Variables, augment_lib.Augmentation]:
    """(model, variables, preprocessing) of what `export` wrote as safetensors with its JSON."""
    path = Path(file)
    sidecar = path.with_name(f"{path.name}.json")
    facts = read_json(sidecar, Facts)
    try:
        model = create_model(facts["model"], num_classes=len(facts["class_names"]))
        spec = "|".join(map(_call, facts["preprocessing"]))
        augment = augment_lib.parse(spec, image_shape=facts["image_shape"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{sidecar} is damaged: {one_line(error)}") from None
    return model, _read_variables(path), augment


def _call(step: dict[str, object]) -> str:
    """{"name": "crop", "size": [8, 8]} as 'crop(size=(8, 8))'."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in step.items()}
    return f"{values.pop('name')}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


def _read_variables(path: Path) -> Variables:
    tree = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, files.read(path)), sep="/")
    return _cast({"params": {}, "batch_stats": {}, **tree}, jnp.float32)


def _cast(variables: Variables, dtype: jax.typing.DTypeLike) -> Variables:
    """The same with floating leaves in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, variables)


def _compare(trained: TrainedModel, logits: Logits, sizes: Sequence[int]) -> float:
    """The largest difference from the run's own logits, over the largest logit where that is above 1."""
    differences = []
    for size in sizes:
        raw = np.random.default_rng(size).integers(0, 256, (size, *trained.image_shape), dtype=np.uint8)
        image = np.asarray(trained.prepare(raw), np.float32)
        own = np.asarray(jax.jit(trained.model.apply)(trained.variables, image))
        differences.append(np.abs(logits(image) - own).max() / max(1.0, np.abs(own).max()))
    return float(np.max(differences))


def _forward(trained: TrainedModel) -> Callable[[jax.Array], jax.Array]:
    """image -> logits with the weights inside, kept in the dtype that they are stored in."""
    return lambda image: jnp.asarray(trained.model.apply(_cast(trained.variables, jnp.float32), image))


def _write_safetensors(trained: TrainedModel, path: Path, batch_size: int | None) -> None:
    flat = traverse_util.flatten_dict(trained.variables, sep="/")
    files.write(path, {name: np.asarray(x) for name, x in flat.items()})


def _read_safetensors(trained: TrainedModel, path: Path) -> Logits:
    variables, apply = _read_variables(path), jax.jit(trained.model.apply)
    return lambda image: np.asarray(apply(variables, image))


def _write_stablehlo(trained: TrainedModel, path: Path, batch_size: int | None) -> None:
    batch = batch_size or jax_export.symbolic_shape("batch")[0]
    image = jax.ShapeDtypeStruct((batch, *trained.input_shape), jnp.float32)
    with portable():
        done = jax_export.export(jax.jit(_forward(trained)), platforms=PLATFORMS)(image)
    path.write_bytes(done.serialize())


def _read_stablehlo(trained: TrainedModel, path: Path) -> Logits:
    call = jax_export.deserialize(bytearray(path.read_bytes())).call
    return lambda image: np.asarray(call(image))


def _write_onnx(trained: TrainedModel, path: Path, batch_size: int | None) -> None:
    try:
        import onnx
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(f"format onnx needs {error.name}; pip install 'cnnjax[onnx]'") from None
    images = [(batch_size or "batch", *trained.input_shape)]
    logging.disable(logging.WARNING)  # the converter reports each of its plugins
    try:
        with portable():
            model = to_onnx(_forward(trained), images, model_name="cnnjax")
    except Exception as error:  # whatever an operation that it lacks makes it raise
        versions = f"jax2onnx {importlib.metadata.version('jax2onnx')} with jax {jax.__version__}"
        advice = "format stablehlo may do, " + ("" if batch_size else "or batch_size=1, ")
        raise UserError(
            f"format onnx: {versions} cannot convert this network ({one_line(error, 160)}); {advice}"
            "or versions that go together: pip install 'cnnjax[onnx]'"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    onnx.save(model, str(path))


def _read_onnx(trained: TrainedModel, path: Path) -> Logits:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("format onnx is checked with onnxruntime; pip install 'cnnjax[onnx]'") from None
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


FORMATS = {
    "safetensors": Format(".safetensors", _write_safetensors, _read_safetensors),
    "stablehlo": Format(".stablehlo", _write_stablehlo, _read_stablehlo),
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
}


def import_weights(file: str | Path, config: ConfigDict, workdir: str | Path) -> list[str]:
    """Makes a run folder of a weights file, which can be evaluated like one that was trained here.

    `config.model` names the network; the preprocessing of its preset is filled in, but not over another
    `config.augment.eval` than the default one. The file has the names of torch, see `files.read`; if one does
    not fit, no folder is made. Returns the paths of the parameters.
    """
    preset = variant(config.model).preset
    if config.augment.eval == config_lib.default().augment.eval:
        config.augment.eval = preset_augment(preset)
    recipe = preset_recipe(preset)
    config.augment.train, config.data.size = config.augment.eval, recipe.shape[0]
    config_lib.validate(config)
    model = create_model(config.model)
    variables = initial_variables(file, model, preset.input_size, spec=config.model)
    run = Run.create(workdir, config, fingerprint="")
    with contextlib.closing(run), contextlib.closing(Saver(run.path / "checkpoints")) as saved:
        if not _imported(saved, variables):
            facts = {"spec": config.model, "num_params": count_params(variables["params"])}
            data = imported_data(config, preset, model.num_classes)
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
        problem = f"{saved.directory.parent} holds other weights or a trained run"
        raise UserError(f"{problem}; choose another --workdir")
    return True


def imported_data(config: ConfigDict, preset: Preset, num_classes: int) -> dict[str, Any]:
    """What the run record says of the images of imported weights; {} if their mean cannot be known."""
    info, channels = DATASETS.get(config.data.name), preset.input_size[2]
    if info and (info.num_classes, info.image_shape[2]) != (num_classes, channels):
        info = None
    if not info and preset.mean is None and "mean=" not in config.augment.eval:
        return {}
    recipe = preset_recipe(preset)
    shape = (*recipe.shape, channels)
    mean, std = (info.mean, info.std) if info else (None, None)
    augment = augment_lib.parse(config.augment.eval, image_shape=shape, mean=mean, std=std)
    names = info.class_names if info else numbered_names(num_classes)
    return ImageFacts(tuple(names), shape, augment, recipe, None).record()


def export_weights(workdir: str | Path, file: str | Path, checkpoint: str = "last") -> int:
    """Writes the weights of a run as safetensors under torch's names; returns how many tensors."""
    run = Run.open(workdir)
    _, variables = Checkpoints(run.path / "checkpoints").variables(checkpoint, "raw")
    tensors = to_torch(variables, create_model(run.config().model))
    with replacing(Path(file)) as part:
        files.write(part, tensors)
    return len(tensors)
