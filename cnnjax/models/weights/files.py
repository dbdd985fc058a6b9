"""Weight files: safetensors in and out, files of `torch.save` in. Nothing in a file is ever executed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from cnnjax.errors import UserError
from cnnjax.models.weights.torch_files import read_torch

DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt", ".th", "")


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of one that `torch.save` wrote, by name, in its dtypes."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return read_torch(path)
    suffixes = ", ".join((".safetensors", *TORCH_SUFFIXES[:-1]))
    raise UserError(f"{path}: weight files end in {suffixes}, or in no suffix")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        tensors = load_file(path)
        with path.open("rb") as file:  # the library keeps the last of several tensors of one name
            json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=_unique)
        _check_dtypes(tensors)
    except (SafetensorError, AttributeError, OSError, ValueError) as error:  # AttributeError: of a dtype
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"{path} is not a whole safetensors file: {reason}") from None
    return tensors


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in the header")


def _check_dtypes(tensors: Mapping[str, np.ndarray]) -> None:
    if wrong := [name for name, tensor in tensors.items() if tensor.dtype.name not in DTYPES]:
        raise UserError(f"{wrong[0]} is of dtype {tensors[wrong[0]].dtype}; allowed: {', '.join(DTYPES)}")


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file; with `to_torch` one that torch's users can load."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"weights are written to files that end in .safetensors, not in {path.suffix!r}")
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    _check_dtypes(arrays)
    path.write_bytes(save(arrays, {"format": "pt"}))
