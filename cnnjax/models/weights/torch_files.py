"""Files of `torch.save`, read without torch and without unpickling: their tensors as NumPy arrays.

Two containers are read: the zip archive (since torch 1.6; entries `*/data.pkl` and `*/data/KEY`) and the
older one, a row of pickles followed by the storages. The pickles are run by the closed interpreter of
`pickles`; the few names in `BUILDERS` build tensors, storages and dicts here. Values are read of those
tensors alone that are asked for.
"""

import functools
import io
import math
import reprlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from cnnjax.errors import UserError
from cnnjax.models.weights.pickles import KEYS, Built, Foreign, Interpreter, Malformed, Value

MAX_PICKLE_BYTES, LEGACY_MAGIC = 64 * 2**20, 0x1950A86A20F9469CFC6C
MAX_SHARED = 4  # a few names may stand for one tensor
_NAMES = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
_DTYPES = ("<f8", "<f4", "<f2", ml_dtypes.bfloat16, "<i8", "<i4", "<i2", "i1", "u1", "?")
STORAGES = {f"torch.{name}Storage": np.dtype(d) for name, d in zip(_NAMES, _DTYPES, strict=True)}
STORAGES["torch.storage.UntypedStorage"] = np.dtype("u1")
# Storages whose tensors are not read, and the bytes of a value.
UNREAD = {"torch.ComplexDoubleStorage": 16, "torch.ComplexFloatStorage": 8, "torch.QInt32Storage": 4}
UNREAD |= {f"torch.Q{name}Storage": 1 for name in ("Int8", "UInt8", "UInt4x2", "UInt2x4")}
# Dtypes without a storage of their own: their tensors are views of an untyped one.
UNTYPED = {f"torch.uint{bits}": np.dtype(f"<u{bits // 8}") for bits in (16, 32, 64)}

Load = Callable[[str], np.ndarray]  # the bytes of a storage, by its key


class Storage(NamedTuple):
    """A flat run of values in the file: `size` of them from `first` on, of the `total` under that key."""

    key: str
    dtype: np.dtype
    size: int
    first: int
    total: int


class Tensor(NamedTuple):
    """A strided view of a storage, not read yet; offset and strides count values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Saved(NamedTuple):
    """A file of `torch.save` with its tensors not read yet."""

    value: Value
    load: Load
    big: bool  # endian
    size: int  # in bytes

    def read(self, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """The values of tensors (bfloat16 as `ml_dtypes.bfloat16`)."""
        arrays, copied, whole = {}, 0, 0
        for name, tensor in tensors.items():
            array = arrays[name] = _array(name, tensor, self.load, self.big)
            whole += array.nbytes
            copied += array.nbytes if array.base is None else 0
            if copied > self.size or whole > MAX_SHARED * self.size:
                raise Malformed(
                    f"its tensors are larger than the file, or {MAX_SHARED} times if they share values"
                )
        return arrays


def open_torch(path: Path) -> Saved:
    """What torch saved in a file."""
    saved, load, big = _open_zip(path) if zipfile.is_zipfile(path) else _open_legacy(path)
    return Saved(saved, load, big, path.stat().st_size)


def _array(name: str, tensor: Tensor, load: Load, big: bool) -> np.ndarray:
    """The values of a tensor: a view of its storage if it is contiguous, else a copy."""
    storage, offset, shape, strides = tensor
    sizes_fit = len(shape) == len(strides) and all(map(_is_size, (offset, *shape, *strides)))
    if not sizes_fit:
        raise Malformed(f"{name} has impossible sizes")
    key, dtype, count, first, total = storage
    if 0 in shape:
        return np.zeros(shape, dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= count or math.prod(shape) > count:
        raise Malformed(f"{name} reaches beyond its storage of {count} values")
    data = load(key)
    if len(data) != total * dtype.itemsize:
        raise Malformed(f"storage {key!r} has {len(data)} bytes, not those of {total} values")
    steps = [stride * dtype.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(data.view(dtype)[first + offset :], shape, steps, writeable=False)
    view = view.byteswap() if big else view
    return view if view.flags.c_contiguous else view.copy()


def _open_zip(path: Path) -> tuple[Value, Load, bool]:
    archive = zipfile.ZipFile(path)
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "constants.pkl" in entries:
        raise UserError("is a program of TorchScript; in torch, save its state_dict()")
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in entries.values())
    if not stored or sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
        raise Malformed("compressed or overlapping entries, which torch does not write")
    if "data.pkl" not in entries or entries["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise Malformed(f"no data.pkl of at most {MAX_PICKLE_BYTES} bytes in the archive")
    big = "byteorder" in entries and archive.read(entries["byteorder"]) == b"big"
    pickled = io.BytesIO(archive.read(entries["data.pkl"]))
    saved = Interpreter(_persistent, BUILDERS).run(pickled)
    load = functools.cache(lambda key: np.frombuffer(archive.read(entries[f"data/{key}"]), np.uint8))
    return saved, load, big


def _open_legacy(path: Path) -> tuple[Value, Load, bool]:
    """Five pickles (magic number, version, machine, object, keys), then each storage: int64 size, values."""
    itemsizes: dict[str, int] = {}

    def note(persistent_id: Value) -> Value:
        storage = _persistent(persistent_id)
        if isinstance(storage, Storage):
            itemsizes.setdefault(storage.key, storage.dtype.itemsize)
        elif isinstance(storage, Built):
            itemsizes.setdefault(persistent_id[2], UNREAD[storage.name])
        return storage

    file = io.BytesIO(path.read_bytes())  # in memory, so that a hostile length in it allocates nothing
    magic, _, machine, saved, keys = (Interpreter(note, BUILDERS).run(file) for _ in range(5))
    data = np.frombuffer(file.getbuffer(), np.uint8)[file.tell() :]
    if magic != LEGACY_MAGIC:
        raise Malformed("a pickle of something else")
    big = not machine["little_endian"]
    loaded: dict[str, np.ndarray] = {}
    for key in keys:
        size = int.from_bytes(data[:8].tobytes(), "big" if big else "little")
        end = 8 + size * itemsizes[key]
        if end > len(data):
            raise Malformed(f"storage {key!r} is cut off")
        loaded[key], data = data[8:end], data[end:]
    return saved, loaded.__getitem__, big


def _persistent(persistent_id: Value) -> Value:
    """The storage, or None or a class, that a persistent id stands for.

    It is ('storage', class, key, device, number of values[, (key of the view, its start, its size)]), or for
    a whole module of the older container ('module', class, file, source).
    """
    kind, of, key, *rest = persistent_id
    if kind == "module" and isinstance(of, Foreign):
        return of
    if kind != "storage" or not isinstance(of, Foreign) or not isinstance(key, str):
        raise Malformed(f"storage {reprlib.repr(persistent_id)}")
    name = of.name.replace("torch.cuda.", "torch.")
    if name not in STORAGES:
        return Built(name)
    total, first, size = rest[1], 0, rest[1]
    if len(rest) == 3 and rest[2] is not None:
        _, first, size = rest[2]
    if not all(map(_is_size, (total, first, size))) or first + size > total:
        raise Malformed(f"storage {reprlib.repr(persistent_id)}")
    return Storage(key, STORAGES[name], size, first, total)


def _is_size(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _ordered_dict(pairs: list[Value]) -> dict:
    """`OrderedDict()`, or `OrderedDict([[key, value], ...])` as Python 2 wrote it."""
    items = {key: value for key, value in pairs if isinstance(key, KEYS)}
    del pairs[:]  # so that a hostile file which names one long list many times gains nothing
    return items


def _tensor(storage: Value, *place: Value) -> Value:
    """A tensor of its first three fields there; of a storage of a kind that is not read, nothing."""
    return Tensor(storage, *place[:3]) if isinstance(storage, Storage) else Built("torch.Tensor")


def _tensor_of(storage: Value, offset: Value, shape: Value, strides: Value, *rest: Value) -> Value:
    """`_rebuild_tensor_v3`: the same, with a dtype after (requires_grad, backward_hooks)."""
    dtype = UNTYPED.get(rest[2].name) if isinstance(rest[2], Foreign) else None
    if not isinstance(storage, Storage) or not dtype:
        return Built("torch.Tensor")
    key, _, size, first, total = storage
    if total % dtype.itemsize or first:
        raise Malformed(f"storage {key!r} of {total} bytes holds no {dtype}")
    return Tensor(
        Storage(key, dtype, size // dtype.itemsize, 0, total // dtype.itemsize), offset, shape, strides
    )


def _subclass(function: Value, kind: Value, arguments: Value, *_: Value) -> Value:
    """A tensor with attributes or of a subclass: the plain one that it is rebuilt from."""
    build = BUILDERS.get(function.name)
    return build(*arguments) if build else Built(function.name)


BUILDERS: dict[str, Callable[..., Value]] = {
    "collections.OrderedDict": lambda *pairs: _ordered_dict(*pairs or [[]]),
    "torch.Size": lambda sizes: sizes,
    **{f"torch._utils._rebuild_tensor{v}": _tensor for v in ("", "_v2")},
    "torch._utils._rebuild_tensor_v3": _tensor_of,
    **{f"torch._utils._rebuild_parameter{v}": lambda tensor, *_: tensor for v in ("", "_with_state")},
    **{f"torch._tensor._rebuild_from_type{v}": _subclass for v in ("", "_v2")},
    "torch.nn.parameter.Parameter": lambda tensor, *_: tensor,  # before torch 0.4.1
}
