"""What the commands share: their flags and words."""

import sys
from collections.abc import Callable

from absl import flags

from cnnjax.errors import UserError, unknown


def parse_flags(
    command: str,
    args: list[str],
    define: Callable[[flags.FlagValues], list[str] | None],
    *,
    max_names: int = 0,
) -> tuple[flags.FlagValues, list[str]]:
    """The flags of a command and the words beside them; `define` may take some of the words away.

    Raises:
      UserError: for an unknown flag, a value of a wrong type, or more than `max_names` words.
    """
    values = flags.FlagValues()
    args = define(values) or args
    values.mark_as_parsed()
    if "--help" in args or "-h" in args:
        print(f"flags of cnnjax {command}:\n{values.get_help()}")
        sys.exit(0)
    try:
        words = values([f"cnnjax {command}", *args])[1:]
    except flags.UnrecognizedFlagError as error:
        raise unknown(f"flag of cnnjax {command}", f"--{error.flagname}", _names(values)) from None
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if len(words) > max_names:
        raise UserError(f"cnnjax {command} does not take {words[max_names]!r}; flags are --name=value")
    return values, words


def _names(values: flags.FlagValues) -> list[str]:
    return [f"--{name}" for name in values if name not in ("?", "help", "helpfull", "helpshort")]
