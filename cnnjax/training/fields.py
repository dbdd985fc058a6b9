"""Checks of the values that a user gives, in words that name the field."""

import inspect
import math
from collections.abc import Callable
from typing import Any

from cnnjax.errors import UserError


def check(field: str, value: Any, allowed: str, holds: Callable[[Any], bool]) -> None:
    """Raises a UserError unless `value` is a finite number that `holds`; `allowed` says it in words."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not holds(value):
        raise UserError(f"{field}={value!r} must be {allowed}")


def check_count(field: str, value: Any, least: int) -> None:
    """Raises a UserError unless `value` is an integer of at least `least`."""
    allowed = f"an integer of at least {least}"
    check(field, value, allowed, lambda v: isinstance(v, int) and v >= least)


def check_fraction(field: str, value: Any) -> None:
    """Raises a UserError unless 0 <= value < 1."""
    check(field, value, "in [0, 1)", lambda v: 0 <= v < 1)


def own_values(field: str, name: str, build: Callable, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that are not None, all of them keyword-only parameters of `build`.

    Args:
      field: what chose `build`, for the error: 'optimizer.schedule'.
      name: its value: 'cosine'.

    Raises:
      UserError: for a value that `build` does not take.
    """
    parameters = inspect.signature(build).parameters.values()
    own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        if key not in own:
            takes = ", ".join(own) or "no values"
            raise UserError(f"{field}: {name} takes no {key} (given {value!r}); it takes: {takes}")
    return given
