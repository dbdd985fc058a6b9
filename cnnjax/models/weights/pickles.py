"""A closed interpreter of pickles: it runs opcodes, and never looks up, imports or calls what they name.

A global is a `Foreign`, which only remembers the name; what its call would build is a `Built`, which only
remembers what was put into it. So anything at all is skipped unread. The few names that its user gives
builders for build values here.
"""

import functools
import operator
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_OPCODES = 2**21  # of a pickle: some 100,000 tensors

Value = Any  # whatever a pickle may hold


class Malformed(Exception):
    """The file is not one of `torch.save`."""


@dataclass(frozen=True)
class Foreign:
    """A name in a pickle such as 'os.system'."""

    name: str


@dataclass(eq=False)
class Built:
    """What a call of a name would have built: the items and the attributes that it was given."""

    name: str
    items: dict = field(default_factory=dict)
    state: Value = None


def _number(layout: str) -> Callable[[BinaryIO], Value]:
    return lambda file: struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _counted(layout: str, decode: Callable[[bytes], Value]) -> Callable[[BinaryIO], Value]:
    """Bytes behind their count, which has that layout."""

    def read(file: BinaryIO) -> Value:
        data = file.read(count := _number(layout)(file))
        if len(data) != count:
            raise Malformed("cut off")
        return decode(data)

    return read


def _integer(file: BinaryIO) -> int:
    """Digits in a line, as Python 2 wrote numbers of more than 32 bits."""
    return int(file.readline(32))


TEXT = operator.methodcaller("decode", "utf-8", "surrogatepass")
LATIN = operator.methodcaller("decode", "latin-1")
INTEGER = functools.partial(int.from_bytes, byteorder="little", signed=True)
KEYS = str | int | float | None  # of dicts; others are skipped, since hashing nested tuples may never end
PUT = {b"q": _number("<B"), b"r": _number("<I")}
IGNORED = {b"\x80": _number("<B"), b"\x95": _number("<Q")}  # PROTO, FRAME
GET = {b"h": _number("<B"), b"j": _number("<I")}
# What an opcode puts on the stack, from the bytes that follow it.
PUSH: dict[bytes, Callable[[BinaryIO], Value]] = {
    **{b"N": lambda _: None, b"\x88": lambda _: True, b"\x89": lambda _: False},
    **{b"}": lambda _: {}, b"]": lambda _: [], b")": lambda _: (), b"\x8f": lambda _: Built("set")},
    **{b"J": _number("<i"), b"K": _number("<B"), b"M": _number("<H"), b"G": _number(">d"), b"I": _integer},
    **{b"\x8a": _counted("<B", INTEGER), b"\x8b": _counted("<i", INTEGER)},
    **{b"X": _counted("<I", TEXT), b"\x8c": _counted("<B", TEXT), b"\x8d": _counted("<Q", TEXT)},
    **{b"U": _counted("<B", LATIN), b"T": _counted("<i", LATIN)},
    **{b"C": _counted("<B", bytes), b"B": _counted("<I", bytes), b"\x8e": _counted("<Q", bytes)},
    b"\x96": _counted("<Q", bytes),
    b"c": lambda file: Foreign(".".join(TEXT(file.readline()).removesuffix("\n") for _ in range(2))),
}


@dataclass
class Interpreter:
    """The state of one run.

    `persistent` gives what a persistent id stands for, `builders` build what a call of their names would.
    """

    persistent: Callable[[Value], Value]
    builders: Mapping[str, Callable[..., Value]]
    stack: list[Value] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Value] = field(default_factory=dict)

    def run(self, file: BinaryIO) -> Value:
        """The value that the opcodes from the file's position on leave; it ends behind them."""
        for _ in range(MAX_OPCODES):
            if (code := file.read(1)) == b".":
                return self.stack.pop()
            if code in PUSH:
                self.stack.append(PUSH[code](file))
            elif code in PUT:
                self.memo[PUT[code](file)] = self.stack[-1]
            elif code in GET:
                self.stack.append(self.memo[GET[code](file)])
            elif code in IGNORED:
                IGNORED[code](file)
            else:
                self._step(code)
        raise Malformed(f"a pickle of more than {MAX_OPCODES} opcodes")

    def _step(self, code: bytes) -> None:
        """An opcode without bytes behind it."""
        stack = self.stack
        match code:
            case b"\x94":  # MEMOIZE
                self.memo[len(self.memo)] = stack[-1]
            case b"(":
                self.marks.append(len(stack))
            case b"t" | b"\x85" | b"\x86" | b"\x87":  # TUPLE, TUPLE1 to 3
                stack.append(tuple(self._pop() if code == b"t" else self._pop(code[0] - 0x84)))
            case b"s" | b"u":  # SETITEM, SETITEMS
                items = self._pop(2 if code == b"s" else None)
                pairs = zip(items[::2], items[1::2], strict=True)
                self._top(dict).update((key, value) for key, value in pairs if isinstance(key, KEYS))
            case b"a" | b"e":  # APPEND, APPENDS
                items = self._pop(1 if code == b"a" else None)
                self._top(list).extend(items)
            case b"b":  # BUILD; the attributes of an OrderedDict are not needed
                (state,) = self._pop(1)
                if isinstance(stack[-1], Built):
                    stack[-1].state = state
            case b"0" | b"\x90" | b"1":  # POP; ADDITEMS, to a set; POP_MARK
                self._pop(1 if code == b"0" else None)
            case b"\x91":  # FROZENSET
                self._pop()
                stack.append(Built("frozenset"))
            case b"\x93":  # STACK_GLOBAL
                stack.append(Foreign(".".join(self._pop(2))))
            case b"R" | b"\x81":  # REDUCE, NEWOBJ
                stack.append(self._call(*self._pop(2)))
            case b"\x92":  # NEWOBJ_EX, with keywords, which no builder takes
                stack.append(self._call(*self._pop(3)[:2]))
            case b"o":  # OBJ, as Python 2 wrote instances of its old classes
                stack.append(self._call(self._pop()[0], ()))
            case b"Q":  # BINPERSID
                stack.append(self.persistent(*self._pop(1)))
            case _:
                raise Malformed(f"unknown pickle opcode {code!r}" if code else "cut off")

    def _call(self, called: Value, arguments: Value) -> Value:
        if not isinstance(called, Foreign | Built) or not isinstance(arguments, tuple):
            raise Malformed("a call of something that is no name")
        build = self.builders.get(called.name) if isinstance(called, Foreign) else None
        return build(*arguments) if build else Built(called.name)

    def _pop(self, count: int | None = None) -> list[Value]:
        """The last `count` values, or all since the last mark, which goes too."""
        floor = self.marks[-1] if self.marks else 0
        start = floor if count is None else len(self.stack) - count
        if start < floor or (count is None and not self.marks):
            raise Malformed("too little on the stack")
        if count is None:
            self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self, kind: type) -> Value:
        """The list or dict to fill, that of a `Built`, or a list to be thrown away."""
        top = self.stack[-1]
        if isinstance(top, Built):
            return top.items if kind is dict else []
        if not isinstance(top, kind):
            raise Malformed(f"items for something that is no {kind.__name__}")
        return top
