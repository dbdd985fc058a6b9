"""Every field of a config in one table: default, meaning, allowed values; and the one check of all of them.

`default()` returns every field; a config file takes it and assigns some. Durations carry their unit in the
name. Strings such as `model` or `augment.train` are names or calls of literals.
"""

import difflib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnnjax.errors import MOST_FLOAT, MOST_INT, UserError, check_local, parse_call

Value = bool | int | float | str


class Allowed(NamedTuple):
    """Which values a field may have: a test, and the same in words ("greater than 0")."""

    words: str
    holds: Callable[[Any], bool]
    limit: str = ""  # of its type, which only errors mention


class Field(NamedTuple):
    """One field of the config."""

    default: Value  # its value in `default()`, whose type is the field's
    meaning: str  # as shown by `--help`, `--print_config` and docs/configs.md, like its example
    example: Value  # another valid value
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


_POSITIVE = Allowed("greater than 0", lambda v: 0 < v <= _most(v), " (32-bit)")
_FROM_0 = Allowed("at least 0", lambda v: 0 <= v <= _most(v), " (32-bit)")
_FRACTION = Allowed("in [0, 1)", lambda v: 0 <= v < 1)

FIELDS: dict[str, Field] = {
    "seed": Field(0, "seed of all random draws", 7, _below(32, 0)),
    "total_epochs": Field(10.0, "length of training; may be fractional", 0.5, _POSITIVE),
    "batch_size": Field(128, "images per step, over all devices", 256, _below(20, 1)),
    "eval_batch_size": Field(500, "images per evaluation batch, over all devices", 1000, _below(20, 1)),
    "eval_protocol": Field(
        "center", "views to average: center, mirror, mirror_translate, ten_crop, multi_scale", "ten_crop"
    ),
    "dtype": Field(
        "float32",
        "dtype of computations; parameters and loss stay float32",
        "bfloat16",
        _one_of("float32", "bfloat16"),
    ),
    "mesh": Field("", "device mesh; '' puts all devices on data", "data:4,model:2", resumable=True),
    "sharding": Field(
        "replicated",
        "parameters: 'replicated', 'fsdp' over data, 'model' or 'towers' over model",
        "fsdp",
        resumable=True,
    ),
    "batch_norm": Field(
        "global", "statistics over the 'global' batch, each 'device', or groups of images", "groups(32)"
    ),
    "accumulate_steps": Field(1, "microbatches per step (gradient accumulation)", 4, _below(20, 1)),
    "model": Field("simple_cnn", "a name from `cnnjax models`", 'simple_cnn(activation="tanh")'),
    "init_from": Field(
        "", "initial weights: a run folder, torchvision, timm, hf:USER/NAME or a file", "torchvision"
    ),
    "init_head": Field(
        "keep", "'new' initializes a new head, for other classes", "new", _one_of("keep", "new")
    ),
    "freeze": Field(
        "", "pattern of parameters to freeze; for 2 epochs: 'until(2, all but head)'", "stem|stage[12]"
    ),
    "data.name": Field(
        "fashion_mnist_mini",
        "a name from `cnnjax data`, or folder:PATH, npz:FILE, idx:PATH, tfds:NAME ...",
        "folder:photos",
    ),
    "data.dir": Field("", "folder of the data set; '': the usual places", "/data/mnist", resumable=True),
    "data.size": Field(
        0,
        "resizes the short side of image files and crops the centre; 0: as stored, or as init_from",
        224,
        _below(14, 0),
    ),
    "data.num_validation": Field(
        600, "images held out of train by `seed` if there is no validation split; 0: none", 1000, _FROM_0
    ),
    "data.num_workers": Field(
        0, "processes that read streamed images; 0: threads", 4, _below(10, 0), resumable=True
    ),
    "data.on_bad_image": Field(
        "error",
        "'skip' skips, counts and lists unreadable images",
        "skip",
        _one_of("error", "skip"),
        resumable=True,  # as it acts only where the run would have ended
    ),
    "data.max_bad_images": Field(
        100, "the run ends if it has to skip more images", 10, _FROM_0, resumable=True
    ),
    "data.test_split": Field(
        "test",
        "split of the final score; with 'validation' (ImageNet), set data.num_validation too",
        "validation",
    ),
    "data.download": Field(True, "download the data set if it is not found", False, resumable=True),
    "augment.train": Field(
        "normalize", "augmentations, joined by |", "random_crop(28, padding=2)|mirror|normalize"
    ),
    "augment.eval": Field("normalize", "for evaluation and prediction", "center_crop(28)|normalize"),
    "loss.label_smoothing": Field(0.0, "epsilon, spread over all classes", 0.1, _FRACTION),
    "loss.aux_weight": Field(0.3, "loss weight of each auxiliary head", 0.4, _FROM_0),
    "loss.distill": Field("", "teacher and its share of the loss", 'distill("runs/big", alpha=0.5)'),
    "optimizer.name": Field(
        "adamw", "sgd, nesterov, adam, adamw, rmsprop, lamb or muon, with options", "sgd(momentum=0.9)"
    ),
    "optimizer.learning_rate": Field(0.003, "peak learning rate", 0.01, _POSITIVE),
    "optimizer.schedule": Field(
        "cosine",
        "constant, step, exponential, polynomial, cosine, one_cycle or plateau, with options",
        "step(boundaries=(0.5, 0.75), factor=0.1)",
    ),
    "optimizer.warmup_epochs": Field(
        1.0, "linear warm-up; a tenth of the run if the run is shorter", 5.0, _FROM_0
    ),
    "optimizer.weight_decay": Field(
        0.05, "weight decay of the parameters that optimizer.decay selects; 0: off", 1e-4, _FROM_0
    ),
    "optimizer.decay": Field("kernels", "decayed parameters: 'kernels', 'all', or a pattern of paths", "all"),
    "optimizer.decay_mode": Field("", "'coupled', 'decoupled', or '' for the optimizer's default", "coupled"),
    "optimizer.gradient_clip": Field(0.0, "maximum global gradient norm; 0: off", 1.0, _FROM_0),
    "optimizer.learning_rate_scales": Field(
        "", "factors by pattern, or by depth: 'layer_decay(0.75)'", "stem|stage1: 0.1, head: 10"
    ),
    "optimizer.sam_rho": Field(
        0.0, "radius of SAM, which takes two gradients per step; 0: off", 0.05, _FROM_0
    ),
    "cpu_kernels": Field(True, "use the CPU kernels if available; False: XLA only", False),
    "ema_decay": Field(
        0.0, "decay of the moving average of parameters and statistics; 0: off", 0.999, _FRACTION
    ),
    "swa_start": Field(
        0.0, "SWA: averages the weights after this fraction of training; 0: off", 0.75, _FRACTION
    ),
    "on_nonfinite": Field(
        "stop",
        "'stop' before a non-finite update, or skip a number of them",
        "skip(limit=10)",
        resumable=True,  # as it acts only where the run would have ended
    ),
    "log_every_steps": Field(20, "steps per row of metrics.jsonl", 100, _POSITIVE),
    "trackers": Field(
        "", "sends each row to wandb, mlflow, tensorboard or trackio too", "wandb,mlflow", resumable=True
    ),
    "eval_every_epochs": Field(1.0, "epochs between evaluations, each with a checkpoint", 5.0, _POSITIVE),
    "checkpoint_every_steps": Field(
        0, "steps between additional checkpoints; 0: off", 500, _FROM_0, resumable=True
    ),
    "keep_checkpoints": Field(
        2, "number of newest checkpoints to keep, besides the best", 10, _POSITIVE, resumable=True
    ),
}


# What other programs call some of them.
SHORT = {
    **{"lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "warmup": "optimizer.warmup_epochs"},
    **{"epochs": "total_epochs", "bs": "batch_size", "bsz": "batch_size", "arch": "model", "net": "model"},
    **{"dataset": "data.name", "data": "data.name", "image_size": "data.size", "workers": "data.num_workers"},
    **{"pretrained": "init_from", "weights": "init_from", "ema": "ema_decay", "precision": "dtype"},
    **{"smoothing": "loss.label_smoothing", "scheduler": "optimizer.schedule"},
}
# What the config.json of any run has, also of the first; what has come since an old one may lack.
FIRST = {
    *("seed", "total_epochs", "batch_size", "eval_batch_size", "dtype", "model", "ema_decay"),
    *("log_every_steps", "eval_every_epochs", "checkpoint_every_steps", "keep_checkpoints"),
    *("data.name", "data.dir", "data.num_validation", "data.download", "augment.train", "augment.eval"),
    *("loss.label_smoothing", "loss.aux_weight", "optimizer.name", "optimizer.learning_rate"),
    *("optimizer.schedule", "optimizer.warmup_epochs", "optimizer.weight_decay", "optimizer.decay"),
    *("optimizer.decay_mode", "optimizer.gradient_clip"),
}


def default() -> ConfigDict:
    """Returns a config with every field at its default: SimpleCNN on the sample of Fashion-MNIST."""
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


def check_complete(config: ConfigDict) -> None:
    """Raises a UserError for the first field that is missing."""
    flat = flatten(config)
    if missing := [name for name in FIELDS if name not in flat]:
        raise UserError(f"config.{missing[0]} is missing; start the config from cnnjax.config.default()")


def validate(config: ConfigDict) -> None:
    """Raises a UserError for the first field that is unknown, missing, of a wrong type or out of range."""
    flat = flatten(config)
    for name in flat:
        field(name)
    check_complete(config)
    for name, value in flat.items():
        default, allowed, kind = field(name).default, field(name).allowed, type(field(name).default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"config.{name}={value!r} must be {kind.__name__}, like its default {default!r}")
        if "\0" in str(value):
            raise UserError(f"config.{name}={value!r} must not contain a NUL character")
        if allowed and not allowed.holds(value):
            raise UserError(f"config.{name}={value!r} must be {allowed.words}{allowed.limit}")
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
    """A copy of the config with fields {"a.b": value} set, whatever their types; `validate` checks those.

    A UserError if the config lacks a field.
    """
    check_complete(config)
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
    if missing := sorted(FIRST - flat.keys()):
        raise UserError(f"config.{missing[0]} is missing")
    return assign(default(), flat)


def differing(saved: ConfigDict, config: ConfigDict) -> list[str]:
    """Fields whose difference forbids a resumption, as 'config.a.b: saved X, now Y'."""
    old, new = flatten(saved), flatten(config)
    resumable = {name for name, row in FIELDS.items() if row.resumable}
    names = [n for n in sorted((old.keys() | new.keys()) - resumable) if old.get(n) != new.get(n)]
    return [f"config.{n}: saved {old.get(n)!r}, now {new.get(n)!r}" for n in names]
