"""What a user's mistake looks like: one line that names the field, the value and the way out."""

import ast
import difflib
import inspect
import itertools
import numbers
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Entry = TypeVar("Entry")
MOST_INT, MOST_FLOAT = 2**31 - 1, 3.4e38  # of int32 and float32, which devices count and compute in
MOST = 2000  # characters of a text that is shown in one line
SKIPPING = "on_bad_image=skip"  # how the user says that bad images are left out
MOST_MARKS = 8  # accents and the like on one letter
BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # letters and marks that nobody sees

# An address where a path belongs, alone or in 'records:gs://bucket/data'; `pathlib` leaves one / of two.
KNOWN = "gs|gcs|s3|az|abfss?|hdfs|file|https?"
ADDRESS = re.compile(rf"""(?:^|[:("'=])(?:([a-z][a-z0-9+.-]*)://|({KNOWN}):/)""", re.IGNORECASE)
INSTEAD = {
    "gs": "mount the bucket to read it (gcsfuse BUCKET DIR), or copy it (gcloud storage cp -r FROM TO)",
    "s3": "mount the bucket to read it (mount-s3 BUCKET DIR), or copy it (aws s3 cp --recursive FROM TO)",
    "file": "leave out file://",
}


class _Escapes(dict[int, str]):
    """A table for `str.translate`: what is not printable, as Python writes it in a string."""

    def __missing__(self, code: int) -> str:
        seen = chr(code).isprintable() or unicodedata.category(chr(code)) == "Zs"
        self[code] = chr(code) if seen and chr(code) not in BLANK else ascii(chr(code))[1:-1]
        return self[code]


_LINE, _LINES = _Escapes(), _Escapes({ord("\n"): "\n"})


def visible(text: object, *, lines: bool = False, most: int = MOST) -> str:
    """Text from outside, as it may be shown anywhere: control, bidi and invisible characters as escapes.

    What it is makes no difference: a name, a path that is not UTF-8, an error of a library. It is one line of
    at most `most` characters, without its middle if it is longer; with `lines` it is whole.
    """
    shown = str(text).translate(_LINES if lines else _LINE)
    if not shown.isascii():
        runs = itertools.groupby(shown, lambda char: unicodedata.category(char) in ("Mn", "Me"))
        parts = [(marks, "".join(run)) for marks, run in runs]
        shown = "".join(run[:MOST_MARKS] + "…" if marks and run[MOST_MARKS:] else run for marks, run in parts)
    if lines or len(shown) <= most:
        return shown
    return f"{shown[: most - most // 4]}…{shown[-(most // 4) :]}"


class UserError(ValueError):
    """A mistake that the user can mend: the CLI prints its message alone and exits with code 2."""

    def __init__(self, message: object):
        super().__init__(visible(message))


class BadImage(UserError):
    """One image that cannot be used, and may be left out where the user says so."""

    def refused(self, doing: str) -> "BadImage":
        """The same where the user has not said so: 'train' or 'prepare' with SKIPPING would leave it out."""
        return BadImage(f"{self}; replace or remove it, or {doing} with {SKIPPING}")


def extra(name: str) -> str:
    """How to install an extra of this package, whose name no package index has."""
    return f"pip install -e '.[{name}]' in a checkout of cnnjax"


def unknown(what: str, value: object, allowed: Iterable[str]) -> UserError:
    """The error for a `what` ("model") outside a closed set: it lists the set and names the nearest one."""
    names = sorted(map(str, allowed))
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"unknown {what} {value!r}{hint}; allowed: {listed(names, value)}")


def unknown_model(name: str, names: Iterable[str]) -> UserError:
    """The error for a model that no family has: the nearest name, and the pattern of those like it."""
    names, start = sorted(names), re.split(r"[^a-z]", name.lower())[0]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    like = sum(each.startswith(start) for each in names) if start else 0
    pattern, words = (f" '{start}*'", f"{like} like it") if like else ("", f"all {len(names)}")
    return UserError(f"unknown model {name!r}{hint}; `cnnjax models{pattern}` lists {words}")


def listed(names: Iterable[str], near: object = "", most: int = 10) -> str:
    """The names; of more than twice `most` so many, those nearest to `near` if any is, and how many more."""
    names = list(names)
    if len(names) <= 2 * most:
        return ", ".join(names)
    some = difflib.get_close_matches(str(near), names, most, 0.3) or names[:most]
    return f"{', '.join(some)} and {len(names) - len(some)} more"


def counted(count: float, noun: str) -> str:
    """'1 epoch', '0.5 epochs', '10,000 images'."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun}{'s' * (count != 1)}"


def scheme_of(text: object) -> str:
    """'gs' of 'gs://bucket/run', also of 'records:gs://bucket/data'; '' for what is a path."""
    found = ADDRESS.search(str(text))
    return (found[1] or found[2]).lower() if found else ""


def check_local(what: str, value: object, *, web: bool = False) -> None:
    """Raises a UserError if `value`, which names a file or folder, is an address; `web` admits http(s)."""
    if (scheme := scheme_of(value)) and not (web and scheme in ("http", "https")):
        instead = INSTEAD.get(scheme, "mount it as a folder, or copy it")
        named = f"{what}={value}" if what else value
        problem = f"{named}: {scheme}:// addresses cannot be read from or written to"
        raise UserError(f"{problem}; allowed: a path on this machine, such as an NFS share; {instead}")


def one_line(error: BaseException, most: int | None = 200) -> str:
    """The message of an error, or without one its type, in one line of at most so many characters."""
    return visible(" ".join(str(error).split()) or type(error).__name__, lines=True)[:most]


def by_name(what: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """The entry of a table; an unknown name is a UserError that lists the names."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def parse_call(text: str, what: str) -> tuple[str, list, dict]:
    """Splits `name` or `name(literal, field=literal)` into its name, positional and named arguments.

    Anything else is a UserError that names `what` holds the text.
    """
    bad = UserError(f"{what}={text!r} is not a name or a call of literals such as 'crop(28, pad=4)'")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise bad from None
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise bad
    try:
        args = [ast.literal_eval(arg) for arg in node.args]
        kwargs = {kw.arg: ast.literal_eval(kw.value) for kw in node.keywords}
    except (ValueError, TypeError, RecursionError):
        raise bad from None
    if None in kwargs or len(kwargs) < len(node.keywords):  # **more, or one name twice
        raise bad
    if not all(map(_fits, [*args, *kwargs.values()])):
        raise UserError(f"{what}={text!r} has an integer beyond 32 bits; allowed: below 2**31")
    return node.func.id, args, kwargs


def _fits(value: Any) -> bool:
    """Whether the integers of a literal are of 32 bits, as devices count."""
    if isinstance(value, dict):
        return _fits([*value, *value.values()])
    if isinstance(value, (tuple, list, set)):
        return all(map(_fits, value))
    return not isinstance(value, int) or abs(value) <= MOST_INT


def check(field: str, value: Any, allowed: str, holds: Callable[[Any], bool]) -> None:
    """Raises a UserError unless `value` is a finite number that `holds`; `allowed` says it in words."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not abs(value) <= MOST_FLOAT or not holds(value):
        raise UserError(f"{field}={value!r} must be {allowed}")


def check_count(field: str, value: Any, least: int) -> None:
    """Raises a UserError unless `value` is an integer of at least `least`, in 32 bits."""
    if type(value) is int and least <= value <= MOST_INT:
        return  # most are; `predict` asks at every image
    allowed = f"an integer of at least {least} and below 2**31"
    check(field, value, allowed, lambda v: isinstance(v, numbers.Integral) and least <= int(v) <= MOST_INT)


def check_fraction(field: str, value: Any) -> None:
    """Raises a UserError unless 0 <= value < 1."""
    check(field, value, "in [0, 1)", lambda v: 0 <= v < 1)


def own_values(field: str, name: str, build: Callable, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that are not None; a UserError if `build`, of `field`, has no such keyword."""
    own = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        if key not in own:
            takes = ", ".join(own) or "no values"
            raise UserError(f"{field}: {name} takes no {key} (given {value!r}); allowed: {takes}")
    return given
