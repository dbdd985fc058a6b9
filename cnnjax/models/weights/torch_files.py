"""Files of `torch.save` without torch: tensors alone come out, as NumPy arrays.

Both containers are read: the zip archive (since torch 1.6; entries `*/data.pkl` and `*/data/KEY`) and the
older one, a row of pickles followed by the storages. `opcodes` says why reading one runs nothing.
"""

import io
import reprlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cnnjax.errors import UserError
from cnnjax.models.weights.opcodes import Interpreter, Malformed

MAX_PICKLE_BYTES = 64 * 2**20
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Where checkpoints of training scripts keep the state dict.
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "net")


class Storage(NamedTuple):
    """A flat run of values in the file."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A strided view of a storage, not read yet; all in values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that torch saved: names to arrays (bfloat16 as `ml_dtypes.bfloat16`).

    A state dict inside a checkpoint is found under `WRAPPERS`; a prefix 'module.' of all names is dropped.

    Raises:
      UserError: if the file is damaged, holds anything but tensors, numbers, strings and their dicts, or a
        tensor reaches beyond its storage.
    """
    try:
        found, load = _open_zip(path) if zipfile.is_zipfile(path) else _open_legacy(path)
        arrays, copied = {}, 0
        for name, tensor in _state_dict(found).items():
            arrays[name] = _array(name, tensor, load)
            copied += 0 if arrays[name].base is not None else arrays[name].nbytes
            if copied > path.stat().st_size:
                raise Malformed("its tensors are larger than the file")
    except UserError as error:
        raise UserError(f"{path}: {error}; only tensors are loaded") from None
    except (
        Malformed,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
    ) as error:
        raise _damaged(path, error) from None
    except (AssertionError, TypeError, ValueError, struct.error, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None
    return arrays


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a whole file of torch.save ({' '.join(str(error).split()) or 'damaged'})"
    )


# --- Containers: the unpickled object, and a way to load a storage ------------------------------------------

Load = Callable[[Storage], np.ndarray]


def _open_zip(path: Path) -> tuple[Any, Load]:
    archive = zipfile.ZipFile(path)
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise Malformed("compressed entries, which torch does not write")
    if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
        raise Malformed("overlapping entries")
    if "data.pkl" not in entries:
        raise Malformed("no data.pkl in the archive")
    if entries["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise Malformed(f"data.pkl has more than {MAX_PICKLE_BYTES} bytes")
    order = archive.read(entries["byteorder"]).decode() if "byteorder" in entries else "little"
    interpreter = Interpreter(BUILDERS, _storage)
    found = interpreter.run(io.BytesIO(archive.read(entries["data.pkl"])))
    loaded: dict[str, np.ndarray] = {}

    def load(storage: Storage) -> np.ndarray:
        if storage.key not in loaded:
            loaded[storage.key] = np.frombuffer(archive.read(entries[f"data/{storage.key}"]), np.uint8)
        return _values(loaded[storage.key], storage, order)

    return found, load


def _open_legacy(path: Path) -> tuple[Any, Load]:
    """Five pickles (magic number, version, machine, object, keys), then each storage: int64 size, values."""
    storages: dict[str, Storage] = {}

    def note(persistent_id: Any) -> Storage:
        storage = _storage(persistent_id)
        return storages.setdefault(storage.key, storage)

    file = io.BytesIO(path.read_bytes())  # in memory, so that a hostile length in it allocates nothing
    if file.read(1) != b"\x80":
        raise Malformed("neither a zip archive nor a pickle")
    file.seek(0)
    magic, _, machine, found, keys = (Interpreter(BUILDERS, note).run(file) for _ in range(5))
    data = np.frombuffer(file.getbuffer(), np.uint8)[file.tell() :]
    if magic != LEGACY_MAGIC:
        raise Malformed("a pickle of something else")
    order = "little" if machine["little_endian"] else "big"
    loaded: dict[str, np.ndarray] = {}
    for key in keys:
        end = 8 + storages[key].size * storages[key].dtype.itemsize
        if end > len(data) or int.from_bytes(data[:8].tobytes(), order) != storages[key].size:
            raise Malformed(f"storage {key!r} is cut off")
        loaded[key], data = data[8:end], data[end:]
    return found, lambda storage: _values(loaded[storage.key], storage, order)


def _values(data: np.ndarray, storage: Storage, order: str) -> np.ndarray:
    if len(data) != storage.size * storage.dtype.itemsize:
        raise Malformed(f"storage {storage.key!r} has {len(data)} bytes, not those of {storage.size} values")
    values = data.view(storage.dtype)
    return values if order == "little" else values.byteswap()


# --- What the names in the pickle stand for -----------------------------------------------------------------


def _dtype(name: str) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise Malformed(f"a call of {name}")

    return call


def _storage(persistent_id: Any) -> Storage:
    """('storage', class, key, device, number of values[, view of another storage])."""
    kind, storage_class, key, _, size, *view = persistent_id
    name = getattr(storage_class, "name", "").removeprefix("torch ")
    if kind != "storage" or name not in STORAGES or (view and view[0] is not None):
        raise Malformed(f"persistent id {reprlib.repr(persistent_id)}")
    if not isinstance(key, str) or not _is_size(size):
        raise Malformed(f"storage {reprlib.repr(key)} of {reprlib.repr(size)} values")
    return Storage(key, np.dtype(STORAGES[name]).newbyteorder("<"), size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides) or not all(map(_is_size, sizes)):
        raise Malformed("a tensor of no storage, or of impossible sizes")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict(*arguments: Any) -> dict:
    if arguments:
        raise Malformed("an OrderedDict that is not empty at first")
    return {}


BUILDERS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": lambda sizes: tuple(sizes),
    **{f"torch {name}": _dtype(name) for name in STORAGES},
}


# --- Tensors ------------------------------------------------------------------------------------------------


def _state_dict(found: Any) -> dict[str, Tensor]:
    """The dict of tensors in what was saved."""
    if isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
        inner = [found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)]
        found = inner[0] if inner else found
    if not isinstance(found, Mapping) or not found:
        raise UserError("holds no state dict, a dict of names to tensors")
    wrong = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(f"holds entries that are no tensors: {', '.join(wrong[:5])}")
    prefix = "module." if all(str(name).startswith("module.") for name in found) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in found.items()}


def _array(name: str, tensor: Tensor, load: Load) -> np.ndarray:
    """The values of a tensor: a view of its storage where it is contiguous, else a copy."""
    storage, offset, shape, strides = tensor
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    count = 1
    for size in shape:
        count *= size
    if last >= storage.size or count > storage.size:
        raise Malformed(f"{name} reaches beyond its storage of {storage.size} values")
    bytes_per_step = [stride * storage.dtype.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(load(storage)[offset:], shape, bytes_per_step, writeable=False)
    return view if view.flags.c_contiguous else view.copy()
