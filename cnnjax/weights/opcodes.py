"""The pickle of a torch state dict, read without unpickling: a closed interpreter of its opcodes.

Nothing named in the file is ever looked up, imported or called. What the opcodes may build is numbers,
strings, tuples, lists and dicts; a name in the file is only compared with those of the caller's table.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cnnjax.errors import UserError

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUT, GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
IGNORED = {"PROTO", "FRAME"}


class Malformed(Exception):
    """The opcodes are not those of a state dict."""


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

    def run(self, opcodes: Iterable[tuple[Any, Any, int]]) -> Any:
        """The value that the opcodes of `pickletools.genops` leave.

        Raises:
          UserError: naming a global or an opcode that state dicts do not need.
          Malformed, or any error of Python's own: where the stack does not hold what an opcode needs.
        """
        for opcode, argument, _ in opcodes:
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise Malformed("no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in PUT:
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in GET:
            stack.append(self.memo[int(argument)])
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
        elif name not in IGNORED:
            raise UserError(f"asks for the pickle opcode {name}, which no state dict of tensors needs")

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
