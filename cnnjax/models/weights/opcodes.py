"""The pickle of a torch state dict, read without unpickling: a closed interpreter of its opcodes.

Nothing named in the file is ever looked up, imported or called. What the opcodes may build is numbers,
strings, tuples, lists and dicts; a name in the file is only compared with those of the caller's table.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from cnnjax.errors import UserError


class Malformed(Exception):
    """The opcodes are not those of a state dict."""


def _bytes(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise Malformed("cut off")
    return data


def _number(layout: str) -> Callable[[BinaryIO], Any]:
    return lambda file: struct.unpack(layout, _bytes(file, struct.calcsize(layout)))[0]


def _sized(layout: str, decode: Callable[[bytes], Any]) -> Callable[[BinaryIO], Any]:
    """Bytes behind their count, which has that layout."""
    count = _number(layout)
    return lambda file: decode(_bytes(file, count(file)))


def _name(file: BinaryIO) -> str:
    """A module and a name, a line each."""
    return " ".join(file.readline().decode().removesuffix("\n") for _ in range(2))


def _nothing(_: BinaryIO) -> None:
    return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# The byte of each opcode that is known here, and how its argument is read.
OPCODES: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"\x80": ("IGNORED", _number("<B")),  # PROTO
    b"\x95": ("IGNORED", _number("<Q")),  # FRAME
    b"J": ("LITERAL", _number("<i")),
    b"K": ("LITERAL", _number("<B")),
    b"M": ("LITERAL", _number("<H")),
    b"G": ("LITERAL", _number(">d")),
    b"\x8a": ("LITERAL", _sized("<B", _integer)),
    b"\x8b": ("LITERAL", _sized("<i", _integer)),
    b"X": ("LITERAL", _sized("<I", _text)),
    b"\x8c": ("LITERAL", _sized("<B", _text)),
    b"\x8d": ("LITERAL", _sized("<Q", _text)),
    b"T": ("LITERAL", _sized("<i", lambda data: data.decode("latin-1"))),
    b"U": ("LITERAL", _sized("<B", lambda data: data.decode("latin-1"))),
    b"B": ("LITERAL", _sized("<I", bytes)),
    b"C": ("LITERAL", _sized("<B", bytes)),
    b"q": ("PUT", _number("<B")),
    b"r": ("PUT", _number("<I")),
    b"h": ("GET", _number("<B")),
    b"j": ("GET", _number("<I")),
    b"c": ("GLOBAL", _name),
    **{
        code: (name, _nothing)
        for code, name in {
            **{b"N": "NONE", b"\x88": "NEWTRUE", b"\x89": "NEWFALSE"},
            **{b"}": "EMPTY_DICT", b"]": "EMPTY_LIST", b")": "EMPTY_TUPLE"},
            **{b"\x85": "TUPLE1", b"\x86": "TUPLE2", b"\x87": "TUPLE3", b"t": "TUPLE", b"(": "MARK"},
            **{b"s": "SETITEM", b"u": "SETITEMS", b"a": "APPEND", b"e": "APPENDS", b"\x94": "MEMOIZE"},
            **{b"\x93": "STACK_GLOBAL", b"R": "REDUCE", b"b": "BUILD", b"Q": "BINPERSID", b".": "STOP"},
        }.items()
    },
}


class Interpreter:
    """Runs the opcodes of one pickle.

    Args:
      builders: 'torch._utils _rebuild_tensor_v2' -> function of the arguments, for every name allowed.
      persistent: what a persistent id stands for.
    """

    def __init__(self, builders: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]):
        self.builders, self.persistent = builders, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """The value that the opcodes at the file's position leave; the position is behind them then.

        Raises:
          UserError: naming a global or an opcode that state dicts do not need.
          Malformed, or any error of Python's own: where the stack does not hold what an opcode needs.
        """
        while True:
            code = _bytes(file, 1)
            if code not in OPCODES:
                raise UserError(f"asks for the pickle opcode {code!r}, which no state dict of tensors needs")
            name, read = OPCODES[code]
            argument = read(file)
            if name == "STOP":
                return self.stack.pop()
            self._step(name, argument)

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "LITERAL":
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "PUT":
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "GET":
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in FIXED_TUPLES:
            stack.append(tuple(self._pop(FIXED_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2) if name == "SETITEM" else self._pop_to_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
            self._top(list).extend(items)
        elif name == "GLOBAL":
            stack.append(self._builder(argument))
        elif name == "STACK_GLOBAL":
            stack.append(self._builder(" ".join(map(str, self._pop(2)))))
        elif name == "REDUCE":
            builder, arguments = self._pop(2)
            if not isinstance(builder, Builder) or not isinstance(arguments, tuple):
                raise Malformed("a call of something that is no name")
            stack.append(self.builders[builder.name](*arguments))
        elif name == "BUILD":  # the versions of modules, kept as an attribute of the OrderedDict
            self._pop(1)
            self._top(dict)
        elif name == "BINPERSID":
            stack.append(self.persistent(self._pop(1)[0]))

    def _builder(self, name: str) -> "Builder":
        if name not in self.builders:
            raise UserError(f"asks for {name.replace(' ', '.')!r}, which no state dict of tensors needs")
        return Builder(name)

    def _pop(self, count: int) -> list[Any]:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) - count < floor:
            raise Malformed("too little on the stack")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise Malformed("no mark")
        items = self._pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise Malformed(f"no {kind.__name__} to fill")
        return self.stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise Malformed("a key without a value")
        if not all(isinstance(key, str | int | float | None) for key in items[::2]):
            raise Malformed(
                "a key that is neither a name nor a number"
            )  # hashing nested tuples may never end
        self._top(dict).update(zip(items[::2], items[1::2], strict=True))


class Builder:
    """A name of the table, on the stack; nothing but REDUCE does anything with it."""

    def __init__(self, name: str):
        self.name = name
