"""A command is a function; its keywords are the flags: `top: Flag[int, "classes per image", 1] = 5`.

`Flag` is `typing.Annotated`: the type, what `--help` says, and for a number the least and greatest value.
"""

import functools
import inspect
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Container, Iterable
from typing import Annotated as Flag
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.cli.help import print_help
from cnnjax.errors import UserError, check_local, one_line, unknown
from cnnjax.runs.config_files import from_file

ANY_NUMBER = sys.maxsize  # of words beside the flags
FOLDERS = ("workdir", "out", "dir", "data", "config")  # flags that take no address, not even of the web
Command = Callable[..., int | None]
FLAGS: dict[str, list[str]] = {}  # of each command whose file has been imported
Parameters = Iterable[inspect.Parameter]
# The most of a whole number: that of its name, or of 32 bits.
MOST = {
    **dict.fromkeys(("batch_size", "num_classes"), 2**20),
    **dict.fromkeys(("image_size", "short_side"), 2**14),
    **dict.fromkeys(("seeds", "random"), 2**16),
    **dict.fromkeys(("processes", "process_count"), 2**12),
}
DEFINE: dict[type, Callable[..., object]] = {
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    list: flags.DEFINE_multi_string,
}
# What a value must be, by how Python and absl say that it is not.
WRONG = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "('Non-boolean argument": "true or false",
}
Json = Flag[bool, "print JSON"]
Workdir = Flag[str | None, "run folder"]
StopSeconds = Flag[float, "seconds to shut down after a signal", 1.0]


def command(
    name: str, *, words: int = 0, like: Callable[..., object] | None = None
) -> Callable[[Command], Callable[[list[str]], int]]:
    """Makes a command, a function of a list of arguments that returns an exit code, of an annotated function.

    A list of up to `words` words beside the flags is its first argument, if any; the flags of the function
    `like` are its `**keywords`. Of the config, `config` is all of it, `fields` those that flags set, and
    `from_file` whether it is of a file.
    """

    def wrap(function: Command) -> Callable[[list[str]], int]:
        both = [*(_parameters(like) if like else ()), *_parameters(function)]
        parameters = {parameter.name: parameter for parameter in both}
        sources = {each for each in ("fields", "from_file") if parameters.pop(each, None)}

        @functools.wraps(function)
        def run(args: list[str]) -> int:
            if bad := next((word for word in args if "\0" in word), None):
                raise UserError(f"{bad} contains a NUL character")
            for word in args:
                flag, given, text = word.lstrip("-").partition("=")
                folder = flag in FOLDERS or flag.startswith("config.data.")
                check_local(f"--{flag}" if given else "", text if given else word, web=not folder)
            args = [_expanded(word) for word in args]
            own = args[: args.index("--")] if "--" in args else args
            asks = bool({"--help", "-h"} & {*own})
            if not asks:
                _check_given(own, parameters)
            keywords: dict[str, Any] = {}
            if "config" in parameters:
                keywords["config"], args, known = read_config(args)
                keywords |= {each: known[each] for each in sources}
            flags_only = [parameter for flag, parameter in parameters.items() if flag != "config"]
            if asks:
                print_help(name, function.__doc__, words, flags_only, keywords.get("config"))
                return 0
            values, rest = _parse(name, args, flags_only, "config" in parameters)
            if "" in rest:  # as a path it would be the current folder
                raise UserError(f"cnnjax {name}: an argument is empty (an unset variable?); give or drop it")
            if len(rest) > words:
                hint = _flag_of(rest[words], parameters) or "flags are --name=value"
                raise UserError(f"cnnjax {name} does not take {rest[words]!r}; {hint}")
            keywords |= {parameter.name: values[parameter.name].value for parameter in flags_only}
            return function(*([rest] if words else []), **keywords) or 0

        FLAGS[name] = ["--help", *(f"--{p.name}{'=' * (not _is_switch(p))}" for p in parameters.values())]
        return run

    return wrap


def _expanded(word: str) -> str:
    """A word, or the value of a flag, as a shell would have it after a space: ~ is the home folder."""
    flag, given, text = word.partition("=")
    if flag.startswith("-") and given:
        return word if "config." in flag else f"{flag}={os.path.expanduser(text)}"
    return os.path.expanduser(word)


def _check_given(args: list[str], parameters: dict[str, inspect.Parameter]) -> None:
    """Raises a UserError for a flag that would take the next flag as its value; --flag=--next is a value."""
    words = iter(args)
    for word in words:
        name = word.lstrip("-")
        if not word.startswith("-") or "=" in word:
            continue
        if name.startswith("config.") and "config" in parameters:
            takes = not isinstance(config_lib.field(name.removeprefix("config.")).default, bool)
        else:
            takes = name in parameters and not _is_switch(parameters[name])
        if takes and next(words, "--").startswith("--"):
            raise UserError(f"--{name} has no value; write --{name}=VALUE")


def _flag_of(word: str, known: Container[str]) -> str | None:
    """How to write a folder that stands there without its flag."""
    flag = "workdir" if os.path.isfile(os.path.join(word, "config.json")) else "data"
    return f"write --{flag}={word}" if flag in known and os.path.isdir(word) else None


def _is_switch(parameter: inspect.Parameter) -> bool:
    """Whether a flag needs no value."""
    kinds = typing.get_args(parameter.annotation)[:1]
    return bool in (*kinds, *(part for kind in kinds for part in typing.get_args(kind)))


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


def given(flag: str, value: str | None, hint: str) -> str:
    """The value of a flag that has no default, or a UserError that says what to give."""
    if not value:
        raise UserError(f"--{flag} is missing; {hint}")
    return value


def run_folder(workdir: str | None) -> str:
    """The value of --workdir in a command that needs a trained run."""
    return given("workdir", workdir, "name the run folder that `cnnjax train` wrote")


def _parse(
    command: str, args: list[str], parameters: Parameters, has_config: bool
) -> tuple[flags.FlagValues, list[str]]:
    """The flag values and the words of a command."""
    values = flags.FlagValues()
    for parameter in parameters:
        annotation, meaning, *bounds = typing.get_args(parameter.annotation)
        kind = (typing.get_args(annotation) or (annotation,))[0]  # int of `int | None`
        if kind is int:
            bounds = [*bounds, *[None][len(bounds) :], MOST.get(parameter.name, 2**31 - 1)][:2]
        default = None if kind is str and parameter.default is False else parameter.default
        DEFINE[kind](parameter.name, default, meaning, *bounds, flag_values=values)
        values[parameter.name].boolean |= _is_switch(parameter)  # `str | bool` needs no value either
    values.mark_as_parsed()
    try:
        rest = values([f"cnnjax {command}", *args])[1:]
    except flags.UnrecognizedFlagError as error:
        if has_config and (field := config_lib.known_as(error.flagname)):
            what = f"unknown flag of cnnjax {command} '--{error.flagname}'"
            raise UserError(f"{what} (did you mean --config.{field}=VALUE?)") from None
        if (inner := next((word for word in args if word in FLAGS), None)) and "--" not in args:
            advice = f"put -- before {inner}, as in cnnjax {command} -- {inner}"
            raise UserError(f"unknown flag of cnnjax {command} '--{error.flagname}'; {advice}") from None
        known = [f"--{name}" for name in values if name not in ("?", "help", "helpfull", "helpshort")]
        raise unknown(f"flag of cnnjax {command}", f"--{error.flagname}", known) from None
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        text = one_line(error, None)
        if wrong := re.match(f"flag (--.*): ({'|'.join(map(re.escape, WRONG))})", text):
            text = f"{wrong[1]} must be {WRONG[wrong[2]]}"
        raise UserError(text) from None
    for name in values:
        value = values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value} must be a finite number")
        if values[name].present and "" in (value if isinstance(value, list) else [value]):
            raise UserError(f"--{name}= is empty (an unset variable?); give a value, or leave it out")
    return values, rest


def read_config(args: list[str]) -> tuple[ConfigDict, list[str], dict[str, object]]:
    """The config of --config=NAME|FILE, else the default, with every --config.a.b=value, and all other words.

    With them `fields`, those that have such a flag, and `from_file`, whether there is a --config.
    """
    values: dict[str, Any] = {}
    config, rest, words = None, [], iter(args)
    for word in words:
        name, given, text = word.removeprefix("-").removeprefix("-").partition("=")
        negated = name.startswith("noconfig.")
        field = name.removeprefix("no").removeprefix("config.") if "config." in name else ""
        if not word.startswith("-") or not (name == "config" or name.startswith(("config.", "noconfig."))):
            rest.append(word)
            continue
        if name == "config":
            config = from_file(text if given else next(words, ""))
            continue
        switch = isinstance(config_lib.field(field).default, bool)
        if negated and (given or not switch):
            instead = "leave out the value" if switch else f"give --config.{field}=VALUE"
            raise UserError(f"{word}: --no is for a field that is true or false, without a value; {instead}")
        if switch and not given:
            values[field] = not negated
        else:
            values[field] = config_lib.parse_value(field, text if given else next(words, ""))
    known = {"fields": frozenset(values), "from_file": config is not None}
    return config_lib.assign(config_lib.default() if config is None else config, values), rest, known
