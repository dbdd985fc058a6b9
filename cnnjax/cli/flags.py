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


def define_config(args: list[str], values: flags.FlagValues) -> list[str]:
    """Defines --config.a.b over the config of --config=FILE, or the default one; returns the rest."""
    from ml_collections import config_flags

    from cnnjax import config as config_lib

    while "--config" in args[:-1]:  # `--config FILE` as `--config=FILE`
        at = args.index("--config")
        args = [*args[:at], f"--config={args[at + 1]}", *args[at + 2 :]]
    files = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    config = config_lib.from_file(files[-1]) if files else config_lib.default()
    overrides = [arg for arg in args if not arg.startswith("--config=")]
    for arg in overrides:
        name, given, value = arg.removeprefix("-").removeprefix("-").partition("=")
        if arg.startswith("-") and name.startswith("config."):
            config_lib.check_override(name.removeprefix("config."), value if given else None)
    config_flags.DEFINE_config_dict(
        "config", config, "--config=FILE or --config.field=value", flag_values=values, sys_argv=overrides
    )
    return overrides


def _names(values: flags.FlagValues) -> list[str]:
    return [f"--{name}" for name in values if name not in ("?", "help", "helpfull", "helpshort")]
