"""What a user's mistake looks like: one line that names the field, the value and the way out."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend: the CLI prints its message alone and exits with code 2."""


class BadImage(UserError):
    """One image that cannot be used, and may be left out where the user says so."""


def unknown(what: str, value: object, allowed: Iterable[str]) -> UserError:
    """The error for a name outside a closed set; it lists the set and names the nearest member.

    Args:
      what: the field or kind of thing, as the user wrote it ("config.model.name", "augmentation").
      value: what was given.
      allowed: every name that would have done.
    """
    names = sorted(map(str, allowed))
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"unknown {what} {value!r}{hint}; allowed: {', '.join(names)}")
