"""The optimizer and the schedule that a config names; errors name its fields."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import optax
from ml_collections import ConfigDict

from cnnjax.config import FIELDS, warmup_epochs
from cnnjax.errors import UserError, by_name, parse_call
from cnnjax.models import variant
from cnnjax.runs import trackers
from cnnjax.training import optimizers, parallel, parameter_groups, schedules

# Arguments below that the config holds in fields of their own.
_FIELDS = {
    **{n.removeprefix("optimizer."): n for n in FIELDS if re.match(r"optimizer\.(?!name$)", n)},
    "warmup_steps": "optimizer.warmup_epochs",
    "total_steps": "total_epochs",
    "steps_per_epoch": "batch_size",
    "freeze": "freeze",
    "data_dir": "data.dir",
    "num_validation": "data.num_validation",
    "size": "data.size",
    "test_split": "data.test_split",
    "protocol": "eval_protocol",
}


def check_names(config: ConfigDict) -> None:
    """Raises a UserError for a name that needs no data, before data are read or downloaded."""
    variant(config.model)
    trackers.parse(config.trackers)
    with errors_name_fields("sharding"):
        parallel.rules_of(config.sharding)
    for field, table in (("schedule", schedules.SCHEDULES), ("name", optimizers.OPTIMIZERS)):
        name, _ = _parse_values(f"optimizer.{field}", config.optimizer[field])
        by_name(f"config.optimizer.{field}", name, table)


def make_optimizer(
    config: ConfigDict, total_steps: int, steps_per_epoch: float, layers: Mapping[str, str] | None = None
) -> tuple[optax.GradientTransformationExtraArgs, schedules.Schedule]:
    """The optimizer with its parameter groups, for a model of these layers, and its learning rate."""
    fields = config.optimizer
    name, values = _parse_values("optimizer.schedule", fields.schedule)
    # Shorter than the run in epochs, it may still round to all of its steps.
    warmup = min(round(warmup_epochs(config) * steps_per_epoch), total_steps - 1)
    values |= {"learning_rate": fields.learning_rate, "warmup_steps": warmup}
    values |= {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    with errors_name_fields(f"optimizer.schedule={fields.schedule!r}"):
        schedule = schedules.make_schedule(name, **values)
    name, values = _parse_values("optimizer.name", fields.name)
    values |= {field: fields[field] for field in ("weight_decay", "decay", "decay_mode", "gradient_clip")}
    with errors_name_fields(f"optimizer.name={fields.name!r}"):
        freeze = parameter_groups.parse_freeze(config.freeze)
        pattern, until = freeze.pattern, freeze.steps(steps_per_epoch)
        tx = optimizers.make_optimizer(name, schedule, freeze=pattern, until=until, **values)
        scales = parameter_groups.parse_scales(fields.learning_rate_scales, layers)
        return parameter_groups.with_groups(tx, freeze=pattern, scales=scales, until=until), schedule


def after_the_end(config: ConfigDict) -> list[str]:
    """What a config asks for at epochs that the run does not reach, a line each."""
    end, values = config.total_epochs, _parse_values("optimizer.schedule", config.optimizer.schedule)[1]
    boundaries = values.get("boundaries") or ()
    epochs = boundaries if isinstance(boundaries, (tuple, list)) else (boundaries,)
    late = [str(epoch) for epoch in epochs if isinstance(epoch, int) and epoch >= end]
    lines = [f"config.optimizer.schedule: no rate changes at epoch {', '.join(late)}"] * bool(late)
    until = parameter_groups.parse_freeze(config.freeze).epochs
    lines += [f"config.freeze: nothing thaws at epoch {until:g}"] * (end <= until < math.inf)
    return [f"{line}; the run ends at {end:g}" for line in lines]


@contextlib.contextmanager
def errors_name_fields(chosen: str) -> Iterator[None]:
    """Puts the config's field in place of the argument that an error names, or `chosen` before it.

    Such an error begins with "argument=value" or "unknown argument"; a path may begin with the same word.
    """
    try:
        yield
    except UserError as error:
        named = re.match(r"(\w+)=|unknown (\w+) ", str(error))
        argument = named[1] or named[2] if named else ""
        field = f"config.{_FIELDS.get(argument, chosen)}"
        if argument and field.endswith(argument):
            raise type(error)(str(error).replace(argument, field, 1)) from None
        raise type(error)(f"{field}: {error}") from None


def _parse_values(field: str, spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the named values of a call such as 'sgd(momentum=0.9)'."""
    name, args, values = parse_call(spec, f"config.{field}")
    if args:
        raise UserError(f"config.{field}={spec!r}: values are given by name, as in {name}(x=1)")
    for value in values:
        if value in _FIELDS:
            raise UserError(f"config.{field}={spec!r}: {value} is set by config.{_FIELDS[value]}")
    return name, values
