"""The help of a command: usage, flags, examples, and the fields of a config, as wide as the terminal."""

import inspect
import shutil
import textwrap
import typing
from collections.abc import Iterable

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.cli.examples import EXAMPLES, WORDS
from cnnjax.runs import config_files

WIDEST = 110
FLAG_COLUMN, FIELD_COLUMN = 23, 30  # at which the meanings begin


def print_help(
    name: str,
    meaning: str | None,
    words: int,
    parameters: Iterable[inspect.Parameter],
    config: ConfigDict | None,
) -> None:
    """Prints the help of a command, with the fields of the config if it takes one."""
    width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    fields = " [--config=NAME|FILE] [--config.FIELD=VALUE ...]" if config else ""
    taken = f" {WORDS.get(name, '[WORD ...]')}" if words else ""
    usage = f"cnnjax {name} [--FLAG=VALUE ...]{fields}{taken}"
    lines = [*_filled("usage:", usage, len("usage: "), width), "", *_filled("", f"{meaning}", 0, width), ""]
    for parameter in parameters:
        text, default = typing.get_args(parameter.annotation)[1], parameter.default
        if default not in (None, [], "") and default is not False:
            text += f" (default: {default})"
        lines += _filled(f"  --{parameter.name}", text, FLAG_COLUMN, width)
    lines += _filled("  --help", "show this", FLAG_COLUMN, width)
    if name in EXAMPLES:
        lines += ["", "examples:", *(f"  {example}" for example in EXAMPLES[name])]
    if config:
        names = f"example configs, as in --config=NAME: {', '.join(config_files.examples())}"
        fields = "fields of the config, as in --config.optimizer.name='sgd(momentum=0.9)':"
        lines += ["", *_filled("", names, 0, width), "", fields, "", describe(config, width)]
    print(*lines, sep="\n")


def describe(config: ConfigDict, width: int = WIDEST) -> str:
    """The fields of a config with values, meanings, allowed values and examples, nested as in the config."""
    values, lines, last = config_lib.flatten(config), [], ""
    for name, row in config_lib.FIELDS.items():
        group, _, leaf = name.rpartition(".")
        if group != last:
            lines += ["", f"{group}:"] if group else [""]
        last, indent = group, "  " * bool(group)
        text = row.meaning + (f"; {row.allowed.words}" if row.allowed else "")
        told = _filled(f"{indent}{leaf}: {values[name]!r}", text, FIELD_COLUMN, width)
        example = f"e.g. {row.example!r}"
        if len(told[-1]) + len(example) + 2 <= width:
            told[-1] += f"; {example}"
        else:
            told.append(" " * FIELD_COLUMN + example)
        lines += told
    return "\n".join(lines)


def _filled(start: str, text: str, column: int, width: int) -> list[str]:
    """Lines of a text that begins at a column, in the first line after `start`, if that is short enough."""
    filled = textwrap.wrap(text, max(width - column, 20), break_on_hyphens=False, break_long_words=False)
    filled = [" " * column + line for line in filled]
    if len(start) >= column and start:
        return [start, *filled]
    return [start + filled[0][len(start) :], *filled[1:]]
