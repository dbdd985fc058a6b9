"""Every field of a config in one table: default, meaning, allowed values; and the one check of all of them.

`default()` returns every field; a config file takes it and assigns some. Durations carry their unit in the
name. Strings such as `model` or `augment.train` are names or calls of literals.
"""

import difflib
import json
import os
import reprlib
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnnjax.errors import MOST_FLOAT, MOST_INT, UserError, check_local, listed, one_line, parse_call

Value = bool | int | float | str


class Allowed(NamedTuple):
    """Which values a field may have: a test, and the same in words ("greater than 0")."""

    words: str
    holds: Callable[[Any], bool]


class Field(NamedTuple):
    """One field of the config."""

    default: Value  # its value in `default()`, whose type is the field's
    meaning: str  # what `--help`, `--print_config` and the pages say of it
    allowed: Allowed | None = None  # which values of that type; None if any will do, or others check it
    resumable: bool = False  # whether it may change between a run and its resumption: the numbers stay


def _one_of(*values: str) -> Allowed:
    return Allowed(f"one of {', '.join(values)}", lambda v: v in values)


def _most(value: int | float) -> float:
    """The largest number of its type in 32 bits, in which a device computes."""
    return MOST_INT if isinstance(value, int) else MOST_FLOAT


def _below(bits: int, least: int) -> Allowed:
    words = "greater than 0" if least else "at least 0"
    return Allowed(f"{words} and below 2**{bits}", lambda v: least <= v < 2**bits)


_POSITIVE = Allowed("greater than 0 (32-bit)", lambda v: 0 < v <= _most(v))
_FROM_0 = Allowed("at least 0 (32-bit)", lambda v: 0 <= v <= _most(v))
_FRACTION = Allowed("in [0, 1)", lambda v: 0 <= v < 1)

FIELDS: dict[str, Field] = {
    "seed": Field(0, "seed of all random draws", _below(32, 0)),
    "total_epochs": Field(10.0, "length of training; may be fractional", _POSITIVE),
    "batch_size": Field(128, "images per step, over all devices", _below(20, 1)),
    "eval_batch_size": Field(500, "images per evaluation batch, over all devices", _below(20, 1)),
    "eval_protocol": Field(
        "center", "views to average: center, mirror, mirror_translate, ten_crop, multi_scale"
    ),
    "dtype": Field("float32", "compute dtype; parameters and loss: float32", _one_of("float32", "bfloat16")),
    "mesh": Field("", "device mesh: 'data:4,model:2'; '' puts all devices on data", resumable=True),
    "sharding": Field(
        "replicated",
        "parameters 'fsdp' over data, 'model' or 'towers' over model, or 'replicated'",
        resumable=True,
    ),
    "batch_norm": Field("global", "statistics over the 'global' batch, each 'device', or 'groups(32)'"),
    "accumulate_steps": Field(1, "microbatches per step (gradient accumulation)", _below(20, 1)),
    "model": Field("simple_cnn", "a name from `cnnjax models`, as in 'simple_cnn(activation=\"tanh\")'"),
    "init_from": Field("", "initial weights: a run folder, torchvision, timm, hf:USER/NAME or a file"),
    "init_head": Field("keep", "'new' initializes a new head, for other classes", _one_of("keep", "new")),
    "freeze": Field(
        "",
        "pattern of parameters to freeze: 'stem|stage[12]'; for 2 epochs: 'until(2, all but head)'",
    ),
    "data.name": Field(
        "fashion_mnist_mini", "a name from `cnnjax data`, or folder:PATH, npz:FILE, idx:PATH, tfds:NAME ..."
    ),
    "data.dir": Field("", "folder of the data set; '' searches the usual places", resumable=True),
    "data.size": Field(
        0,
        "resizes the short side of image files and crops the centre; 0: as stored, or as init_from",
        _below(14, 0),
    ),
    "data.num_validation": Field(
        600, "images held out of train by `seed` if there is no validation split; 0: none", _FROM_0
    ),
    "data.num_workers": Field(0, "processes that read streamed images; 0: threads", _below(10, 0), True),
    "data.on_bad_image": Field(
        "error", "'skip' skips, counts and lists unreadable images", _one_of("error", "skip")
    ),
    "data.max_bad_images": Field(100, "the run ends if it has to skip more images", _FROM_0),
    "data.test_split": Field(
        "test", "split of the final score; with 'validation' (ImageNet), set num_validation too"
    ),
    "data.download": Field(True, "download the data set if it is not found", resumable=True),
    "augment.train": Field("normalize", "joined by |: 'random_crop(28, padding=2)|mirror|normalize'"),
    "augment.eval": Field("normalize", "the same for evaluation and prediction"),
    "loss.label_smoothing": Field(0.0, "epsilon, spread over all classes", _FRACTION),
    "loss.aux_weight": Field(0.3, "loss weight of each auxiliary head", _FROM_0),
    "loss.distill": Field(
        "", "teacher and its share of the loss: 'distill(\"runs/big\", alpha=0.5, temperature=4.0)'"
    ),
    "optimizer.name": Field("adamw", "with options: 'sgd(momentum=0.9)'"),
    "optimizer.learning_rate": Field(0.003, "peak learning rate", _POSITIVE),
    "optimizer.schedule": Field("cosine", "with options: 'step(boundaries=(0.5, 0.75), factor=0.1)'"),
    "optimizer.warmup_epochs": Field(
        1.0, "linear warm-up; a tenth of the run if the run is shorter", _FROM_0
    ),
    "optimizer.weight_decay": Field(0.05, "of the parameters in `decay`; 0: off", _FROM_0),
    "optimizer.decay": Field("kernels", "decayed parameters: 'kernels', 'all', or a pattern of paths"),
    "optimizer.decay_mode": Field("", "'coupled', 'decoupled', or '' for the optimizer's default"),
    "optimizer.gradient_clip": Field(0.0, "maximum global gradient norm; 0: off", _FROM_0),
    "optimizer.learning_rate_scales": Field(
        "", "factors by pattern: 'stem|stage1: 0.1, head: 10', or by depth: 'layer_decay(0.75)'"
    ),
    "optimizer.sam_rho": Field(0.0, "radius of SAM, which takes two gradients per step; 0: off", _FROM_0),
    "cpu_kernels": Field(True, "use the CPU kernels if available; False: XLA only"),
    "ema_decay": Field(0.0, "decay of the moving average of parameters and statistics; 0: off", _FRACTION),
    "swa_start": Field(0.0, "SWA: averages the weights after this fraction of training; 0: off", _FRACTION),
    "on_nonfinite": Field(
        "stop", "'stop' before a non-finite update, or 'skip(limit=10)' up to 10 of them", resumable=True
    ),  # resumable, as it acts only where the run would have ended
    "log_every_steps": Field(20, "steps per row of metrics.jsonl", _POSITIVE),
    "trackers": Field("", "each row goes to these too: 'wandb,mlflow,tensorboard,trackio'", resumable=True),
    "eval_every_epochs": Field(1.0, "epochs between evaluations, each with a checkpoint", _POSITIVE),
    "checkpoint_every_steps": Field(0, "steps between additional checkpoints; 0: off", _FROM_0, True),
    "keep_checkpoints": Field(2, "number of newest checkpoints to keep, besides the best", _POSITIVE, True),
}


# What other programs call some of them.
SHORT = {
    **{"lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "warmup": "optimizer.warmup_epochs"},
    **{"epochs": "total_epochs", "bs": "batch_size", "bsz": "batch_size", "arch": "model", "net": "model"},
    **{"dataset": "data.name", "data": "data.name", "image_size": "data.size", "workers": "data.num_workers"},
    **{"pretrained": "init_from", "weights": "init_from", "ema": "ema_decay", "precision": "dtype"},
    **{"smoothing": "loss.label_smoothing", "scheduler": "optimizer.schedule"},
}
# What the config.json of an old run may lack; all other fields have always been there.
LATER = {
    *("eval_protocol", "mesh", "sharding", "batch_norm", "accumulate_steps", "init_from", "init_head"),
    *("freeze", "cpu_kernels", "on_nonfinite", "optimizer.learning_rate_scales", "data.size"),
    *("data.num_workers", "data.on_bad_image", "data.max_bad_images", "data.test_split"),
    *("loss.distill", "optimizer.sam_rho", "swa_start", "trackers"),
}


def default() -> ConfigDict:
    """Every field with its default: SimpleCNN on the embedded sample of Fashion-MNIST."""
    nested: dict[str, Any] = {}
    for name, row in FIELDS.items():
        group, _, leaf = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = row.default
    return ConfigDict(nested).lock()


def flatten(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """{"a.b": value} of every field."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = flatten(value) if isinstance(value, ConfigDict | dict) else {}
        flat |= {f"{key}.{name}": v for name, v in inner.items()} or {key: value}
    return flat


def describe(config: ConfigDict) -> str:
    """Every field with its value, meaning and range, a line each: what --print_config and --help print."""
    values, lines = flatten(config), []
    for name, row in FIELDS.items():
        allowed = f" ({row.allowed.words})" if row.allowed else ""
        lines.append(f"{f'{name}: {values[name]!r}':<50} # {row.meaning}{allowed}")
    return "\n".join(lines)


def validate(config: ConfigDict) -> None:
    """Raises a UserError for the first field that is unknown, of a wrong type or out of range."""
    flat = flatten(config)
    for name in dict.fromkeys([*flat, *FIELDS]):  # unknown ones first
        default, allowed = field(name).default, field(name).allowed
        if name not in flat:
            raise UserError(f"config.{name} is missing; start the config from cnnjax.config.default()")
        value, kind = flat[name], type(default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"config.{name}={value!r} must be {kind.__name__}, like its default {default!r}")
        if "\0" in str(value):
            raise UserError(f"config.{name}={value!r} must not contain a NUL character")
        if allowed and not allowed.holds(value):
            raise UserError(f"config.{name}={value!r} must be {allowed.words}")
        check_local(f"config.{name}", value, web=not name.startswith("data."))
    skip_limit(config.on_nonfinite)
    if config.swa_start and config.ema_decay:
        raise UserError(
            f"config.ema_decay={config.ema_decay} must be 0 with config.swa_start={config.swa_start}"
        )


def warmup_epochs(config: ConfigDict) -> float:
    """The warm-up; of a run that would be over by then a tenth of the run."""
    warmup, total = config.optimizer.warmup_epochs, config.total_epochs
    return warmup if warmup < total else total / 10


def skip_limit(on_nonfinite: str) -> int:
    """How many non-finite steps of a run may be skipped; 0 stops at the first."""
    name, args, values = parse_call(on_nonfinite, "config.on_nonfinite")
    limit = values.get("limit", 10)
    if name == "stop" and not args and not values:
        return 0
    if name == "skip" and not args and values.keys() <= {"limit"} and type(limit) is int and limit > 0:
        return limit
    raise UserError(
        f"config.on_nonfinite={on_nonfinite!r} must be 'stop' or 'skip(limit=10)', limit at least 1"
    )


def examples() -> dict[str, Path]:
    """The example configs by name: in an installed package, or in configs/ of a checkout."""
    package = Path(__file__).parent
    folder = next((each for each in (package, package.parent) if (each / "configs").is_dir()), package)
    return {file.stem: file for file in sorted(folder.glob("configs/*.py"))}


def _find(path: str) -> str:
    """The file of a config, which may be named as an example with or without .py."""
    if Path(path).is_file():
        return path
    known, name = examples(), path.removesuffix(".py")
    if name in known:
        return str(known[name])
    near = difflib.get_close_matches(Path(name).name, known, n=2, cutoff=0.6)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise UserError(f"--config={path} is neither a file nor an example{hint}; examples: {listed(known)}")


def from_file(path: str) -> ConfigDict:
    """What `get_config()` of a Python file, or of an example by name, returns.

    The file is executed, and may import what lies beside it.
    """
    path = _find(path)
    folder, before = str(Path(path).resolve().parent), {*sys.modules}
    sys.path.insert(0, folder)
    try:
        names = runpy.run_path(path)
        config = names["get_config"]() if "get_config" in names else None
    except (Exception, SystemExit) as error:  # whatever the file does
        reason = one_line(error, 400).partition(" Other fields present")[0]
        place = f"--config={path}{_line_of(error, folder)}"
        raise UserError(f"{place}: {type(error).__name__}: {reason}") from None
    finally:
        sys.path.remove(folder)
        for name in {*sys.modules} - before:  # beside another config there may be another of this name
            if str(getattr(sys.modules[name], "__file__", None)).startswith(folder + os.sep):
                del sys.modules[name]
    if "get_config" not in names:
        raise UserError(f"--config={path}: the file has no 'get_config'()")
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config() returned {reprlib.repr(config)}, not a ConfigDict")
    return config


def _line_of(error: BaseException, folder: str) -> str:
    """', line 7', or ', shared.py line 7', of the last of a config's files that an error came through."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((Path(error.filename), error.lineno))
    own = [(file, line) for file, line in frames if file.is_file() and str(file.resolve().parent) == folder]
    return f", {own[-1][0].name} line {own[-1][1]}" if own else ""


def field(name: str) -> Field:
    """The row of `FIELDS`; a UserError with the nearest name for an unknown one."""
    if name in FIELDS:
        return FIELDS[name]
    last = {known.rpartition(".")[2]: known for known in FIELDS}
    near = [known_as(name)] if known_as(name) else difflib.get_close_matches(name, FIELDS, n=1)
    near = near or [last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], last, n=1)]
    hint = f" (did you mean config.{near[0]}?)" if near else ""
    shown = f"config.{name}" if name.isprintable() else repr(f"config.{name}")  # one line, whatever it is
    raise UserError(f"{shown} is not a field{hint}; `cnnjax train --help` lists the fields")


def known_as(name: str) -> str | None:
    """The field whose last word a name is, or which other programs call so."""
    return ({known.rpartition(".")[2]: known for known in FIELDS} | SHORT).get(name.rpartition(".")[2])


def parse_value(name: str, text: str) -> Value:
    """The value of a field that a user wrote as text, of the field's type; its range is `validate`'s."""
    default = field(name).default
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        raise UserError(f"config.{name}={text!r} must be {words}, like its default {default!r}") from None


def assign(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """A copy of the config with fields {"a.b": value} set, whatever their types; `validate` checks those."""
    copy = config.copy_and_resolve_references()
    for name, value in values.items():
        *parents, leaf = name.split(".")
        place = copy
        for parent in parents:
            place = place[parent]
        with place.ignore_type():
            place[leaf] = value
    return copy


def to_json(config: ConfigDict) -> str:
    """The config as JSON, one field a line."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """The config of `to_json`'s object, not validated; fields that have come since take their defaults."""
    flat = flatten(values)
    for name, value in flat.items():
        kind = type(field(name).default)
        if not isinstance(value, Value):
            raise UserError(f"config.{name}={value!r:.40} must be {kind.__name__}")
    if missing := sorted(FIELDS.keys() - flat.keys() - LATER):
        raise UserError(f"config.{missing[0]} is missing")
    return assign(default(), flat)


def differing(saved: ConfigDict, config: ConfigDict) -> list[str]:
    """Fields whose difference forbids a resumption, as 'config.a.b: saved X, now Y'."""
    old, new = flatten(saved), flatten(config)
    resumable = {name for name, row in FIELDS.items() if row.resumable}
    names = [n for n in sorted((old.keys() | new.keys()) - resumable) if old.get(n) != new.get(n)]
    return [f"config.{n}: saved {old.get(n)!r}, now {new.get(n)!r}" for n in names]
