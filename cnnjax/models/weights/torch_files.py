"""Files of `torch.save`, read without torch and without unpickling: their tensors as NumPy arrays.

Two containers are read: the zip archive (since torch 1.6; entries `*/data.pkl` and `*/data/KEY`) and the
older one, a row of pickles followed by the storages. A closed interpreter runs the pickles' opcodes and never
looks up, imports or calls what they name. The few names in `BUILDERS` build tensors, storages and dicts here;
any other, and whatever it would build, becomes a `Foreign` that only remembers the name. So a state dict is
read beside optimizers, options or anything else, and refused if it holds something foreign itself.
"""

import functools
import io
import math
import operator
import reprlib
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from cnnjax.errors import UserError

MAX_PICKLE_BYTES, LEGACY_MAGIC = 64 * 2**20, 0x1950A86A20F9469CFC6C
MAX_OPCODES = 2**21  # of a pickle: some 100,000 tensors
MAX_SHARED = 4  # a few names may stand for one tensor
_NAMES = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
_DTYPES = ("<f8", "<f4", "<f2", ml_dtypes.bfloat16, "<i8", "<i4", "<i2", "i1", "u1", "?")
STORAGES = {f"torch.{name}Storage": np.dtype(d) for name, d in zip(_NAMES, _DTYPES, strict=True)}
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "net")  # the state dict in checkpoints

Value = Any  # whatever a pickle may hold
Load = Callable[[str], np.ndarray]  # the bytes of a storage, by its key


class Malformed(Exception):
    """The file is not one of `torch.save`."""


@dataclass(frozen=True)
class Foreign:
    """A name in a pickle such as 'os.system', or what a call of it would have built."""

    name: str


class Storage(NamedTuple):
    """A flat run of values in the file."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A strided view of a storage, not read yet; offset and strides count values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that torch saved, by name (bfloat16 as `ml_dtypes.bfloat16`).

    A state dict inside a checkpoint is found under `WRAPPERS`; a prefix 'module.' of all names is dropped.
    UserError if the file is damaged, or the state dict holds anything but tensors.
    """
    try:
        saved, load, big = _open_zip(path) if zipfile.is_zipfile(path) else _open_legacy(path)
        arrays, size, copied, whole = {}, path.stat().st_size, 0, 0
        for name, tensor in _state_dict(saved).items():
            array = arrays[name] = _array(name, tensor, load, big)
            whole += array.nbytes
            copied += array.nbytes if array.base is None else 0
            if copied > size or whole > MAX_SHARED * size:
                raise Malformed(
                    f"its tensors are larger than the file, or {MAX_SHARED} times if they share values"
                )
    except UserError as error:
        raise UserError(f"{path}: {error}; only tensors are loaded") from None
    except Exception as error:  # a damaged file may make Python raise almost anything
        reason = " ".join(str(error).split()) or "damaged"
        raise UserError(f"{path} is not a whole file of torch.save ({reason})") from None
    return arrays


def _state_dict(saved: Value) -> dict[str, Tensor]:
    """The dict of tensors in what was saved."""
    for key in WRAPPERS:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    values = saved.values() if isinstance(saved, dict) else [saved]
    if foreign := [value.name for value in values if isinstance(value, Foreign)]:
        raise UserError(f"asks for {foreign[0]!r}, which no state dict of tensors needs")
    if not isinstance(saved, dict) or not saved:
        raise UserError("holds no state dict, a dict of names to tensors")
    if wrong := [str(name) for name, value in saved.items() if not isinstance(value, Tensor)]:
        raise UserError(f"holds entries that are no tensors: {', '.join(wrong[:5])}")
    prefix = "module." if all(str(name).startswith("module.") for name in saved) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in saved.items()}


def _array(name: str, tensor: Tensor, load: Load, big: bool) -> np.ndarray:
    """The values of a tensor: a view of its storage if it is contiguous, else a copy."""
    storage, offset, shape, strides = tensor
    sizes_fit = len(shape) == len(strides) and all(map(_is_size, (offset, *shape, *strides)))
    if not isinstance(storage, Storage) or not sizes_fit:
        raise Malformed(f"{name} has no storage, or impossible sizes")
    key, dtype, count = storage
    if 0 in shape:
        return np.zeros(shape, dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= count or math.prod(shape) > count:
        raise Malformed(f"{name} reaches beyond its storage of {count} values")
    data = load(key)
    if len(data) != count * dtype.itemsize:
        raise Malformed(f"storage {key!r} has {len(data)} bytes, not those of {count} values")
    steps = [stride * dtype.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(data.view(dtype)[offset:], shape, steps, writeable=False)
    view = view.byteswap() if big else view
    return view if view.flags.c_contiguous else view.copy()


def _open_zip(path: Path) -> tuple[Value, Load, bool]:
    archive = zipfile.ZipFile(path)
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in entries.values())
    if not stored or sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
        raise Malformed("compressed or overlapping entries, which torch does not write")
    if "data.pkl" not in entries or entries["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise Malformed(f"no data.pkl of at most {MAX_PICKLE_BYTES} bytes in the archive")
    big = "byteorder" in entries and archive.read(entries["byteorder"]) == b"big"
    saved = Interpreter(_storage).run(io.BytesIO(archive.read(entries["data.pkl"])))
    load = functools.cache(lambda key: np.frombuffer(archive.read(entries[f"data/{key}"]), np.uint8))
    return saved, load, big


def _open_legacy(path: Path) -> tuple[Value, Load, bool]:
    """Five pickles (magic number, version, machine, object, keys), then each storage: int64 size, values."""
    storages: dict[str, Storage] = {}

    def note(persistent_id: Value) -> Storage:
        storage = _storage(persistent_id)
        return storages.setdefault(storage.key, storage)

    file = io.BytesIO(path.read_bytes())  # in memory, so that a hostile length in it allocates nothing
    magic, _, machine, saved, keys = (Interpreter(note).run(file) for _ in range(5))
    data = np.frombuffer(file.getbuffer(), np.uint8)[file.tell() :]
    if magic != LEGACY_MAGIC:
        raise Malformed("a pickle of something else")
    big = not machine["little_endian"]
    loaded: dict[str, np.ndarray] = {}
    for key in keys:
        end = 8 + storages[key].size * storages[key].dtype.itemsize
        size = int.from_bytes(data[:8].tobytes(), "big" if big else "little")
        if end > len(data) or size != storages[key].size:
            raise Malformed(f"storage {key!r} is cut off")
        loaded[key], data = data[8:end], data[end:]
    return saved, loaded.__getitem__, big


def _storage(persistent_id: Value) -> Storage:
    """('storage', class, key, device, number of values[, view of another storage])."""
    kind, of, key, _, size, *view = persistent_id
    name = of.name if isinstance(of, Foreign) and kind == "storage" and view in ([], [None]) else ""
    if name not in STORAGES or not isinstance(key, str) or not _is_size(size):
        raise Malformed(f"storage {reprlib.repr(persistent_id)}")
    return Storage(key, STORAGES[name], size)


def _is_size(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _ordered_dict(pairs: list[Value]) -> dict:
    """`OrderedDict()`, or `OrderedDict([[key, value], ...])` as Python 2 wrote it."""
    items = {key: value for key, value in pairs if isinstance(key, KEYS)}
    del pairs[:]  # so that a hostile file which names one long list many times gains nothing
    return items


BUILDERS: dict[str, Callable[..., Value]] = {
    "collections.OrderedDict": lambda *pairs: _ordered_dict(*pairs or [[]]),
    "torch.Size": lambda sizes: sizes,
    **{f"torch._utils._rebuild_tensor{v}": lambda *fields: Tensor(*fields[:4]) for v in ("", "_v2")},
    **{f"torch._utils._rebuild_parameter{v}": lambda tensor, *_: tensor for v in ("", "_with_state")},
}


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
    **{b"}": lambda _: {}, b"]": lambda _: [], b")": lambda _: (), b"\x8f": lambda _: Foreign("set")},
    **{b"J": _number("<i"), b"K": _number("<B"), b"M": _number("<H"), b"G": _number(">d")},
    **{b"\x8a": _counted("<B", INTEGER), b"\x8b": _counted("<i", INTEGER)},
    **{b"X": _counted("<I", TEXT), b"\x8c": _counted("<B", TEXT), b"\x8d": _counted("<Q", TEXT)},
    **{b"U": _counted("<B", LATIN), b"T": _counted("<i", LATIN)},
    **{b"C": _counted("<B", bytes), b"B": _counted("<I", bytes), b"\x8e": _counted("<Q", bytes)},
    b"c": lambda file: Foreign(".".join(TEXT(file.readline()).removesuffix("\n") for _ in range(2))),
}


@dataclass
class Interpreter:
    """The state of one run; `persistent` gives what a persistent id stands for."""

    persistent: Callable[[Value], Value]
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
            case b"b" | b"0" | b"\x90" | b"1":  # BUILD, of an OrderedDict; POP; ADDITEMS; POP_MARK
                self._pop(1 if code in b"b0" else None)
            case b"\x91" | b"\x93":  # FROZENSET, STACK_GLOBAL
                names = self._pop(None if code == b"\x91" else 2)
                stack.append(Foreign("frozenset" if code == b"\x91" else ".".join(names)))
            case b"R" | b"\x81":  # REDUCE, NEWOBJ
                name, arguments = self._pop(2)
                if not isinstance(name, Foreign) or not isinstance(arguments, tuple):
                    raise Malformed("a call of something that is no name")
                stack.append(BUILDERS[name.name](*arguments) if name.name in BUILDERS else name)
            case b"Q":  # BINPERSID
                stack.append(self.persistent(*self._pop(1)))
            case _:
                raise Malformed(f"unknown pickle opcode {code!r}" if code else "cut off")

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
        """The list or dict to fill; a new one, to be thrown away, for something foreign."""
        if not isinstance(self.stack[-1], kind | Foreign):
            raise Malformed(f"items for something that is no {kind.__name__}")
        return kind() if isinstance(self.stack[-1], Foreign) else self.stack[-1]
