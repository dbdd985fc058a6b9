"""The one full default config, and the checks that run before anything compiles.

`default()` lists every field; a config file takes it and assigns some of them. Durations carry their unit in
the name. Strings such as `model` or `augment.train` are names or calls of literals.
"""

import difflib
import json
import math
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnnjax.errors import UserError, parse_call

DTYPES = ("float32", "bfloat16")


def default() -> ConfigDict:
    """Every field with its default: SimpleCNN on the embedded sample of Fashion-MNIST."""
    return ConfigDict(
        {
            "seed": 0,
            "total_epochs": 10.0,
            "batch_size": 128,  # global, over all devices
            "eval_batch_size": 500,  # global
            "eval_protocol": "center",  # views averaged: mirror, mirror_translate, ten_crop, multi_scale
            "dtype": "float32",  # of the computation; parameters and loss are float32
            "mesh": "",  # devices by axis: 'data:4,model:2'; '' has all of them on data
            "sharding": "replicated",  # of parameters: 'fsdp' over data; 'model', 'towers' over model
            "batch_norm": "global",  # whose statistics: the global batch's, 'device', or 'groups(32)'
            "accumulate_steps": 1,  # parts that a batch is worked off in, one after the other
            "model": "simple_cnn",  # `cnnjax models`; 'simple_cnn(activation="tanh")' sets fields
            "init_from": "",  # a run folder, or a .safetensors or .pth file with torch's names
            "init_head": "keep",  # 'new' draws the head anew, as other classes need
            "freeze": "",  # pattern on parameter paths that do not move: 'stem|stage[12]'
            "data": {
                "name": "fashion_mnist_mini",  # `cnnjax data`; or idx:, folder:, npz:, tfds: and a path
                "dir": "",  # where the data set lies; '' searches the places that `cnnjax data` lists
                "size": 0,  # of image folders: short side to it and the middle square; 0 as they are
                "num_validation": 600,  # held out of train by `seed`, for every choice; 0 holds none out
                "num_workers": 0,  # processes that read streamed images; 0 reads with threads
                "on_bad_image": "error",  # 'skip' leaves out, counts and lists what cannot be read
                "max_bad_images": 100,  # more than that end the run all the same
                "test_split": "test",  # the official split of the final score: ImageNet's is 'validation'
                "download": True,  # where the data set is found nowhere else
            },
            "augment": {
                "train": "normalize",
                "eval": "normalize",
            },
            "loss": {
                "label_smoothing": 0.0,
                "aux_weight": 0.3,  # of each auxiliary head
            },
            "optimizer": {
                "name": "adamw",  # or 'sgd(momentum=0.9)', ...: its own values in the call
                "learning_rate": 0.003,  # the highest one
                "schedule": "cosine",  # or 'step(boundaries=(0.5, 0.75), factor=0.1)', ...
                "warmup_epochs": 1.0,
                "weight_decay": 0.05,
                "decay": "kernels",  # what decays: 'kernels', 'all', or a pattern on parameter paths
                "decay_mode": "",  # 'coupled', 'decoupled', '': the optimizer's own
                "gradient_clip": 0.0,  # the largest global norm; 0 is off
                "learning_rate_scales": "",  # by pattern on paths: 'stem|stage1: 0.1, head: 10'
            },
            "cpu_kernels": True,  # oneDNN on a CPU, where it is installed; False leaves all to XLA
            "ema_decay": 0.0,  # of the moving average of parameters and statistics; 0 is off
            "on_nonfinite": "stop",  # before such an update; 'skip(limit=10)' leaves out so many of a run
            "log_every_steps": 20,
            "eval_every_epochs": 1.0,
            "checkpoint_every_steps": 0,  # besides the one after each evaluation; 0 is off
            "keep_checkpoints": 2,
        }
    ).lock()


# Fields that may change between a run and its resumption: they leave the trained numbers alone.
RESUMABLE = frozenset(
    {
        "on_nonfinite",  # acts only where the run would have ended
        "data.dir",
        "data.download",
        "data.num_workers",
        "keep_checkpoints",
        "checkpoint_every_steps",
        "mesh",
        "sharding",
    }
)

_POSITIVE = ("total_epochs", "batch_size", "eval_batch_size", "optimizer.learning_rate",
             "log_every_steps", "eval_every_epochs", "keep_checkpoints", "accumulate_steps")  # fmt: skip
_NOT_NEGATIVE = ("seed", "data.size", "data.num_validation", "data.num_workers",
                 "data.max_bad_images", "loss.aux_weight", "optimizer.warmup_epochs",
                 "optimizer.weight_decay", "optimizer.gradient_clip", "checkpoint_every_steps")  # fmt: skip
_BELOW_ONE = ("loss.label_smoothing", "ema_decay")


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{"a.b": value} of every field."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def validate(config: ConfigDict) -> None:
    """Raises a UserError for the first field that is unknown, of a wrong type or out of range."""
    flat, known = flatten(config), flatten(default())
    for field in flat:
        if field not in known:
            raise _unknown_field(field, known)
    for field, value in known.items():
        if field not in flat:
            raise UserError(f"config.{field} is missing; start the config from cnnjax.config.default()")
        kinds = (int, float) if isinstance(value, float) else (type(value),)
        if type(flat[field]) not in kinds:
            raise UserError(
                f"config.{field}={flat[field]!r} must be {type(value).__name__}, as in its default {value!r}"
            )
    for fields, holds, words in (
        (_POSITIVE, lambda v: 0 < v < math.inf, "greater than 0"),
        (_NOT_NEGATIVE, lambda v: 0 <= v < math.inf, "at least 0"),
        (_BELOW_ONE, lambda v: 0 <= v < 1, "in [0, 1)"),
    ):
        for field in fields:
            if not holds(flat[field]):
                raise UserError(f"config.{field}={flat[field]!r} must be {words}")
    if config.dtype not in DTYPES:
        raise UserError(f"config.dtype={config.dtype!r} must be one of {', '.join(DTYPES)}")
    if config.data.on_bad_image not in ("error", "skip"):
        raise UserError(f"config.data.on_bad_image={config.data.on_bad_image!r} must be one of error, skip")
    if config.init_head not in ("keep", "new"):
        raise UserError(f"config.init_head={config.init_head!r} must be one of keep, new")
    skip_limit(config.on_nonfinite)
    if config.optimizer.warmup_epochs >= config.total_epochs:
        raise UserError(
            f"config.optimizer.warmup_epochs={config.optimizer.warmup_epochs} must be less than "
            f"config.total_epochs={config.total_epochs}"
        )


def skip_limit(on_nonfinite: str) -> int:
    """How many steps of a run may be left out as their loss or gradient is not finite; 0 stops at the first.

    Raises:
      UserError: for anything but 'stop', 'skip' and 'skip(limit=n)'.
    """
    name, args, values = parse_call(on_nonfinite, "config.on_nonfinite")
    limit = values.get("limit", 10)
    if name == "stop" and not args and not values:
        return 0
    if name == "skip" and not args and values.keys() <= {"limit"} and type(limit) is int and limit > 0:
        return limit
    raise UserError(f"config.on_nonfinite={on_nonfinite!r} must be 'stop' or 'skip(limit=10)', limit from 1")


def from_file(path: str) -> ConfigDict:
    """The config that `get_config()` of a Python file returns; the file is executed.

    Raises:
      UserError: where the file is missing, fails, or returns something else.
    """
    if not Path(path).is_file():
        raise UserError(f"--config={path} is not a file; configs/ holds those of the project")
    try:
        config = runpy.run_path(path)["get_config"]()
    except KeyError as error:
        raise UserError(f"--config={path}: the file has no {error}()") from None
    except Exception as error:  # whatever the file does
        reason = " ".join(str(error).partition("Other fields present")[0].split())
        raise UserError(f"--config={path}: {type(error).__name__}: {reason}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config() returned {config!r}, not a ConfigDict")
    return config


def check_override(field: str, text: str | None) -> None:
    """Raises a UserError where `--config.field=text` names no field, or no value of its type.

    `text` is None where the value is not known.
    """
    known = flatten(default())
    if field not in known:
        raise _unknown_field(field, known)
    kind = type(known[field])
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    try:
        if text is not None and kind in (int, float):
            kind(text)
        elif text is not None and kind is bool and text.lower() not in ("true", "false", "1", "0"):
            raise ValueError
    except ValueError:
        raise UserError(
            f"config.{field}={text!r} must be {words[kind]}, as in its default {known[field]!r}"
        ) from None


def _unknown_field(field: str, known: dict[str, Any]) -> UserError:
    last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(field, known, n=1)
    near = near or [last[n] for n in difflib.get_close_matches(field.rpartition(".")[2], last, n=1)]
    hint = f" (did you mean config.{near[0]}?)" if near else ""
    name = f"config.{field}" if field.isprintable() else repr(f"config.{field}")  # one line, whatever it is
    return UserError(f"{name} is not a field{hint}; allowed: {', '.join(known)}")


def to_json(config: ConfigDict) -> str:
    """The config as JSON, one field a line."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """A config read back from `to_json`; fields that have come since take their defaults."""
    config = default()
    with config.unlocked():
        config.update(json.loads(text))
    return config.lock()


def differing(saved: ConfigDict, config: ConfigDict) -> list[str]:
    """Fields whose difference forbids a resumption, as 'config.a.b: saved X, now Y'."""
    old, new = flatten(saved), flatten(config)
    fields = [f for f in sorted(old.keys() | new.keys()) if f not in RESUMABLE]
    return [
        f"config.{f}: saved {old.get(f)!r}, now {new.get(f)!r}" for f in fields if old.get(f) != new.get(f)
    ]
