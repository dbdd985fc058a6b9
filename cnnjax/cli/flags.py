"""What the commands share: their flags and words."""

import sys
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.errors import UserError, unknown


def parse_flags(
    command: str,
    args: list[str],
    define: Callable[[flags.FlagValues], None],
    *,
    max_names: int = 0,
    more_help: str = "",
) -> tuple[flags.FlagValues, list[str]]:
    """The flags of a command and the words beside them; `more_help` follows the flags in --help.

    Raises:
      UserError: for an unknown flag, a value of a wrong type, or more than `max_names` words.
    """
    values = flags.FlagValues()
    define(values)
    values.mark_as_parsed()
    if "--help" in args or "-h" in args:
        print(f"flags of cnnjax {command}:\n{values.get_help()}{more_help}")
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


def read_config(args: list[str]) -> tuple[ConfigDict, list[str]]:
    """The config of --config=FILE or the default one, each --config.a.b=value set; and the other words.

    Raises:
      UserError: for a file that cannot be read, an unknown field, or a value of a wrong type.
    """
    config, values, rest, words = None, {}, [], iter(args)
    for word in words:
        name, given, text = word.removeprefix("-").removeprefix("-").partition("=")
        negated = name.startswith("noconfig.")
        field = name.removeprefix("no").removeprefix("config.") if "config." in name else ""
        if not word.startswith("-") or not (name == "config" or name.startswith(("config.", "noconfig."))):
            rest.append(word)
        elif name == "config":
            config = config_lib.from_file(text if given else next(words, ""))
        elif not given and isinstance(config_lib.field(field).default, bool):
            values[field] = not negated
        else:
            values[field] = config_lib.parse_value(field, text if given else next(words, ""))
    return config_lib.assign(config or config_lib.default(), values), rest


def _names(values: flags.FlagValues) -> list[str]:
    return [f"--{name}" for name in values if name not in ("?", "help", "helpfull", "helpshort")]
