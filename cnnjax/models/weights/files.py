"""Weight files: safetensors in and out, and what torch saved in. Nothing in a file is ever executed.

A safetensors file is 8 bytes of header length, a JSON header (name -> dtype, shape, place) and the values
(https://github.com/huggingface/safetensors, "Format"); so little that NumPy alone reads it.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cnnjax.errors import UserError
from cnnjax.models.weights.torch_files import read_torch

MAX_HEADER_BYTES = 100_000_000  # as the format's own library
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a weight file by name, read-only, in the dtypes of the file.

    Args:
      path: a .safetensors file, or one that `torch.save` wrote (.pth, .pt, .bin, .tar, .ckpt).

    Raises:
      UserError: naming the file, if it is missing, of another kind, damaged, or asks for more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return read_torch(path)
    raise UserError(f"{path}: weight files end in .safetensors, {', '.join(TORCH_SUFFIXES)}")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """`read` for one kind of file; its tensors must fill it without gap or overlap, as the format asks."""
    try:
        data, entries = _open(path)
        places = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
        arrays, reached = {}, 0
        for name, entry in places:
            begin, end = entry["data_offsets"]
            dtype, shape = _dtype(name, entry), entry["shape"]
            if not all(type(size) is int and size >= 0 for size in (begin, end, *shape)):
                raise ValueError(f"{name} has impossible sizes")
            if begin != reached or end - begin != math.prod(shape) * dtype.itemsize or end > len(data):
                raise ValueError(f"{name} lies at bytes {begin} to {end}, which does not fit")
            arrays[name], reached = data[begin:end].view(dtype).reshape(shape), end
        if reached != len(data):
            raise ValueError(f"{len(data) - reached} bytes belong to no tensor")
    except UserError:
        raise
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a whole safetensors file: {reason}") from None
    return {name: arrays[name] for name in entries}


def _open(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The bytes behind the header, and its entries."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        entries = json.loads(file.read(length), object_pairs_hook=_unique)
        data = np.frombuffer(file.read(), np.uint8)
    entries.pop("__metadata__", None)
    return data, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in the header")
    return found


def _dtype(name: str, entry: Mapping[str, Any]) -> np.dtype:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} is of dtype {entry['dtype']!r}; known are {', '.join(DTYPES)}")
    return np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<")


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file, whole or not at all; with `to_torch` one that torch's users can load.

    Raises:
      UserError: for a dtype that the format does not have, or a path that does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written to files that end in .safetensors")
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    arrays, end = [], 0
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if array.dtype not in names:
            raise UserError(f"{name} is of dtype {array.dtype}; allowed: {', '.join(DTYPES)}")
        begin, end = end, end + array.nbytes
        place = [begin, end]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": place}
        arrays.append(array)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the values begin at a multiple of 8
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    part.replace(path)
