"""Networks for other programs: safetensors with JSON, StableHLO, ONNX.

They are read back and compared. They take images float32 [B, H, W, C] as the network takes them,
any number of them unless one is asked for; the JSON says how to prepare them.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export as jax_export
from jax.typing import DTypeLike

from cnnjax.data import recipe as recipes
from cnnjax.data.files import atomic_write, expanded, replacing, sha256_of
from cnnjax.errors import UserError, by_name, check_count, listed, unknown
from cnnjax.inference import onnx_files, onnx_int8, pixels, sidecar
from cnnjax.inference.images import Images
from cnnjax.inference.int8 import BATCH, Int8
from cnnjax.inference.model import TrainedModel
from cnnjax.models.weights import files
from cnnjax.models.weights.torch import Variables
from cnnjax.ops.portable import portable

TOLERANCE = 1e-4  # of logits, by their largest absolute value where that is above 1
HALF_TOLERANCE = 2e-2  # likewise, for weights rounded to float16
INT8_TOLERANCE = 0.25  # likewise, in 8-bit integers, on the images of the calibration
PIXEL_TOLERANCE = 5e-2  # of probabilities, by the largest: resized pixels differ by a level here and there
PLATFORMS = ("cpu", "cuda", "tpu")  # that StableHLO is lowered for
Logits = Callable[[np.ndarray], np.ndarray]


class Format(NamedTuple):
    """How a network is written to a file and read back, see `FORMATS` below."""

    suffix: str
    write: Callable[[TrainedModel, Path, int | None], None]
    write_whole: Callable[[TrainedModel, Path], None] | None  # with the preprocessing, from uint8 [H, W, C]
    read: Callable[[TrainedModel, Path], Logits]
    resizes: Collection[str] = ()  # the interpolations of `write_whole`


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: its size, and the largest difference of its logits (see `TOLERANCE`)."""

    num_bytes: int
    difference: float
    agreement: float | None = None  # the share of compared images whose likeliest class is the same
    count: int = 0  # of them


def export(
    trained: TrainedModel,
    form: str,
    out: str | Path,
    *,
    half: bool = False,
    batch_size: int | None = None,
    with_preprocessing: bool = False,
    dtype: str = "float32",
    calibration: Images | None = None,
) -> Exported:
    """Writes a network that computes in float32 or int8, reads it back and compares its logits.

    Args:
      form: a name of `FORMATS`; FILE.json beside `out` says how to prepare images. An error leaves no file.
      half: weights rounded to float16, for half the bytes.
      batch_size: the only one that the StableHLO or ONNX file accepts; None is any.
      with_preprocessing: the graph takes one image, uint8 [H, W, C] of any size, and gives the probabilities
        [K] of `predict`, which are compared in place of logits.
      dtype: "float32", or "int8" for ONNX with 8-bit integers (QDQ) and ranges from `calibration`, which is
        that of `load_run`; compared on its images.
    """
    path = expanded(out)
    suffix, write, write_whole, read, _ = by_name("form", form, FORMATS)
    if path.suffix != suffix:
        raise UserError(f"out={out}: files of format {form} end in {suffix}")
    if not path.parent.is_dir():
        raise UserError(f"out={out}: {path.parent} is not a folder; make it first")
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    if with_preprocessing:
        _check_whole(trained, form, batch_size)
    images = _images(trained, form, dtype, calibration, half or with_preprocessing, batch_size or BATCH)
    trained = dataclasses.replace(trained, model=trained.model.clone(dtype=jnp.float32))
    kept, limit = (jnp.float16, HALF_TOLERANCE) if half else (jnp.float32, TOLERANCE)
    stored = dataclasses.replace(trained, variables=_cast(trained.variables, kept))
    agreement, count = None, 0
    # ONNX Runtime's products are float32 in full, where those of GPUs and TPUs are rounded by default.
    precise = jax.default_matmul_precision("highest") if form == "onnx" else contextlib.nullcontext()
    with replacing(path) as written, precise:
        if with_preprocessing and write_whole:
            what, limit = "probabilities", PIXEL_TOLERANCE
            write_whole(stored, written)
            difference = _compare_whole(trained, read(trained, written))
        else:
            what = "logits"
            write(stored, written, batch_size)
            if images is None:
                batches = _drawn(trained, [batch_size] if batch_size else [1, 3])
            else:
                onnx_int8.quantize(written, images, batch_size or BATCH)
                batches, limit = np.split(images, len(images) // (batch_size or BATCH)), INT8_TOLERANCE
            difference, agreement, count = _compare(trained, read(trained, written), batches)
        if not difference <= limit:
            problem = f"the {what} differ by {difference:.1e}, more than {limit}"
            raise UserError(f"format {form}: {problem}; nothing was written")
    stored_as = "int8" if images is not None else jnp.dtype(kept).name
    facts = sidecar.description(trained, form, stored_as, batch_size, with_preprocessing, sha256_of(path))
    atomic_write(path.with_name(f"{path.name}.json"), json.dumps(facts, indent=2) + "\n")
    return Exported(path.stat().st_size, difference, agreement, count)


def _images(
    trained: TrainedModel, form: str, dtype: str, calibration: Images | None, others: bool, size: int
) -> np.ndarray | None:
    """Those of the calibration in whole batches, the first ones again at the end; None in float32."""
    if isinstance(trained.model, Int8):
        raise UserError("an int8 network cannot be exported; load it in float32 and export with dtype=int8")
    if dtype not in ("float32", "int8"):
        raise unknown("dtype", dtype, ("float32", "int8"))
    if dtype == "float32":
        if calibration is not None:
            raise UserError("calibration needs dtype=int8; leave it out")
        return None
    if form != "onnx" or others:
        raise UserError("dtype=int8: allowed with format onnx, without half and with_preprocessing")
    images = trained.calibration_images(calibration)
    return np.resize(images, (-(-len(images) // size) * size, *images.shape[1:]))


def _check_whole(trained: TrainedModel, form: str, batch_size: int | None) -> None:
    """Raises a UserError for a graph with the preprocessing that cannot be written."""
    known = FORMATS[form].resizes
    if not known or batch_size:
        given = f"batch_size={batch_size}" if known else f"format {form}"
        allowed = " or ".join(sorted(name for name, each in FORMATS.items() if each.resizes))
        raise UserError(f"with_preprocessing: {given}; allowed: {allowed}, and no batch size")
    if (channels := trained.image_shape[2]) not in (1, 3):
        raise UserError(f"with_preprocessing: {channels} channels; allowed: 1 or 3; export it without")
    if (how := trained.recipe.interpolation) not in known:
        problem = f"format {form} cannot resize by {how!r}; allowed: {listed(list(known))}"
        raise UserError(f"with_preprocessing: {problem}; export it without")


def _cast(variables: Variables, dtype: jax.typing.DTypeLike) -> Variables:
    """The same with floating leaves in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, variables)


def _drawn(trained: TrainedModel, sizes: Sequence[int]) -> list[np.ndarray]:
    """Batches of noise, prepared."""
    raw = (np.random.default_rng(n).integers(0, 256, (n, *trained.image_shape), np.uint8) for n in sizes)
    return [np.asarray(trained.prepare(each), np.float32) for each in raw]


def _compare(
    trained: TrainedModel, logits: Logits, batches: Sequence[np.ndarray]
) -> tuple[float, float, int]:
    """How far logits are from the run's own, over the largest if above 1; how often classes agree; images."""
    apply, differences, same = jax.jit(trained.model.apply), list[float](), list[np.ndarray]()
    for image in batches:
        own, other = np.asarray(apply(trained.variables, image)), logits(image)
        differences.append(np.abs(other - own).max() / max(1.0, np.abs(own).max()))
        same.append(other.argmax(1) == own.argmax(1))
    hits = np.concatenate(same)
    return float(np.max(differences)), float(hits.mean()), len(hits)


def _compare_whole(trained: TrainedModel, probabilities: Logits) -> float:
    """The largest difference from `predict`, by the largest probability, on smooth images of three sizes."""
    height, width, channels = trained.image_shape
    draw, differences = np.random.default_rng(0), []
    for shape in ((2 * height, 3 * width), (height + height // 3, width + 1), (1 + height // 2, width)):
        coarse = draw.integers(0, 256, (9, 9, channels), dtype=np.uint8)
        image = recipes.Recipe(shape, shape, "bicubic", "squash").apply(coarse)
        (own,) = trained.predict(image, batch_size=1)
        differences.append(np.abs(probabilities(image) - own.probabilities).max() / own.probabilities.max())
    return float(np.max(differences))


def _forward(trained: TrainedModel) -> Callable[[jax.Array], jax.Array]:
    """image -> logits with the weights inside, kept in the dtype that they are stored in."""
    return lambda image: jnp.asarray(trained.model.apply(_cast(trained.variables, jnp.float32), image))


def _probabilities(trained: TrainedModel) -> Callable[[jax.Array], jax.Array]:
    """uint8 [1, *image_shape] -> probabilities [K], as `predict` computes them."""
    forward = _forward(trained)
    return lambda images: jax.nn.softmax(trained.protocol(forward, images))[0]


def _write_safetensors(trained: TrainedModel, path: Path, batch_size: int | None) -> None:
    flat = traverse_util.flatten_dict(trained.variables, sep="/")
    files.write(path, {name: np.asarray(x) for name, x in flat.items()})


def _read_safetensors(trained: TrainedModel, path: Path) -> Logits:
    tree = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, files.read(path)), sep="/")
    variables = _cast({"params": {}, "batch_stats": {}, **tree}, jnp.float32)
    apply = jax.jit(trained.model.apply)
    return lambda image: np.asarray(apply(variables, image))


def _write_stablehlo(trained: TrainedModel, path: Path, batch_size: int | None) -> None:
    batch = batch_size or jax_export.symbolic_shape("batch")[0]
    _save_stablehlo(_forward(trained), (batch, *trained.input_shape), jnp.float32, path)


def _write_whole_stablehlo(trained: TrainedModel, path: Path) -> None:
    probabilities, recipe = _probabilities(trained), trained.recipe
    shape = (*jax_export.symbolic_shape("height, width"), trained.image_shape[2])
    _save_stablehlo(lambda image: probabilities(pixels.cut(recipe, image)[None]), shape, jnp.uint8, path)


def _save_stablehlo(
    function: Callable[[jax.Array], jax.Array], shape: Sequence[object], dtype: DTypeLike, path: Path
) -> None:
    with portable():
        done = jax_export.export(jax.jit(function), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, dtype))
    path.write_bytes(done.serialize())


def _read_stablehlo(trained: TrainedModel, path: Path) -> Logits:
    call = jax_export.deserialize(bytearray(path.read_bytes())).call
    return lambda image: np.asarray(call(image))


def _write_onnx(trained: TrainedModel, path: Path, batch_size: int | None) -> None:
    advice = "format stablehlo may do, " + ("" if batch_size else "or batch_size=1, ")
    shape = (batch_size or "batch", *trained.input_shape)
    path.write_bytes(onnx_files.convert(_forward(trained), [shape], advice).SerializeToString())


def _write_whole_onnx(trained: TrainedModel, path: Path) -> None:
    images = jax.ShapeDtypeStruct((1, *trained.image_shape), jnp.uint8)
    network = onnx_files.convert(_probabilities(trained), [images], "format stablehlo may do, ")
    whole = onnx_files.with_recipe(network, trained.recipe, trained.image_shape[2])
    path.write_bytes(whole.SerializeToString())


FORMATS = {
    "safetensors": Format(".safetensors", _write_safetensors, None, _read_safetensors),
    "stablehlo": Format(
        ".stablehlo", _write_stablehlo, _write_whole_stablehlo, _read_stablehlo, pixels.KERNELS
    ),
    "onnx": Format(
        ".onnx", _write_onnx, _write_whole_onnx, lambda trained, path: onnx_files.load(path), onnx_files.MODES
    ),
}
