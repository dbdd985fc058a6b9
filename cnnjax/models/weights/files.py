"""Weight files: safetensors in and out, files of `torch.save` in. Nothing in a file is ever executed.

What a file is its content says, not its suffix.
"""

import json
import os
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from cnnjax.errors import UserError, one_line, visible
from cnnjax.models.weights.fit import first
from cnnjax.models.weights.state_dicts import find
from cnnjax.models.weights.torch_files import open_torch

DTYPES = {  # safetensors' names and NumPy's
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt", ".th")
MAX_INDEX_BYTES = 2**26
OTHER_FILES = {  # how files begin that stand in the place of weights
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file with `git lfs pull`",
    b"<": "a web page; download the file itself",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x1f\x8b": "gzipped; unpack it",
}


def locate(source: str | os.PathLike[str]) -> tuple[Path, str]:
    """'FILE#ema.state_dict' as the file and the state dict in it that is meant, '' if none is named."""
    path = Path(source)
    file, mark, entry = str(source).rpartition("#")
    return (Path(file), entry) if mark and not os.path.exists(path) else (path, "")


def _form_of(path: Path, missing: str) -> str:
    """What a file is, see `_form`; a UserError, `missing` if there is none, unless it can be read."""
    try:
        if not path.is_file():
            raise UserError(missing)
        with path.open("rb") as file:
            return _form(path, file.read(32))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read(source: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a weights file by name, in its dtypes.

    It is a safetensors file, the JSON index of a sharded one, or a file of `torch.save` with a state dict
    anywhere in it, see `state_dicts.find`; FILE#ENTRY names which. A warning tells which one was read if
    there are several, and what beside tensors is in it.
    """
    path, entry = locate(source)
    form = _form_of(path, f"{path}: no such weight file")
    if form == "torch":
        return _read_torch(path, entry)
    if entry:
        raise UserError(f"{source}: only files of torch.save have several state dicts; give the file alone")
    return _read_safetensors(path) if form == "safetensors" else _read_sharded(path)


def _form(path: Path, head: bytes) -> str:
    """What a file with that beginning is; of a damaged one what its suffix says."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    if re.match(rb"PK\x03\x04|\x80[\x02-\x05]", head):
        return "torch"
    if path.name.endswith(".json") or re.match(rb"\s*\{", head):
        return "index"
    for start, other in OTHER_FILES.items():
        if head.startswith(start):
            raise UserError(f"{path} is not a weights file but {other}")
    if path.suffix in (*TORCH_SUFFIXES, ".safetensors"):
        return path.suffix.removeprefix(".") if path.suffix == ".safetensors" else "torch"
    formats = "safetensors, the index of a sharded one, and files of torch.save"
    raise UserError(f"{path} is not a weights file; allowed: {formats}")


def _read_torch(path: Path, entry: str) -> dict[str, np.ndarray]:
    try:
        saved = open_torch(path)
        state_dict, like = find(saved.value, entry)
        arrays = saved.read(state_dict.tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file may make Python raise almost anything
        reason = " ".join(str(error).split()) or "damaged"
        raise UserError(f"{path} is not a whole file of torch.save ({reason})") from None
    notes = [f"left out {first(state_dict.others)}, not tensors"] if state_dict.others else []
    if like:
        here, *others = (each or "the outermost names" for each in (state_dict.path, *like))
        notes.append(f"read {here}, not {first(others)}; {path}#{like[-1]} reads that")
    if notes:
        warnings.warn(visible(f"{path}: {'; '.join(notes)}"), stacklevel=3)
    return arrays


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np") as stored:
            dtypes = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
        tensors = {} if {*dtypes.values()} - {*DTYPES} else load_file(path)
        with path.open("rb") as file:  # the library keeps the last of several tensors of one name
            json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=_unique)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {one_line(error, 400)}") from None
    _check_dtypes(path, dtypes, DTYPES)
    return tensors


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in the header")


def _check_dtypes(path: Path, dtypes: Mapping[str, str], known: Collection[str]) -> None:
    if wrong := [name for name, dtype in dtypes.items() if dtype not in known]:
        problem = f"{wrong[0]} is of dtype {dtypes[wrong[0]]}, which is neither read nor written"
        raise UserError(f"{path}: {problem}; allowed: {', '.join(DTYPES.values())}")


def _read_sharded(index: Path) -> dict[str, np.ndarray]:
    """The tensors of an index, {"weight_map": {name: file beside it}}; its files hold these and no others."""
    places = _weight_map(index)
    tensors: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(places.values()):
        shard = index.with_name(name)
        if _form_of(shard, f"{index}: its file {name} is missing; put it next to the index") == "index":
            raise UserError(f"{index} names {name}, which is not a file of tensors")
        found = read(shard)
        wanted = {tensor for tensor, place in places.items() if place == name}
        if wrong := sorted(wanted ^ found.keys()):
            which = "lacks" if wrong[0] in wanted else "contains, but the index lacks,"
            raise UserError(
                f"{index}: {name} {which} {first(wrong)}; download the files again, all of one version"
            )
        tensors |= found
    return {name: tensors[name] for name in places}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"it is larger than {MAX_INDEX_BYTES} bytes")
        facts = json.loads(index.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{index} is not an index of sharded weights: {one_line(error)}") from None
    places = facts.get("weight_map") if isinstance(facts, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f"{index} is not an index of sharded weights: it has no weight_map of names to files")
    if bad := [place for place in places.values() if not re.fullmatch(r"[\w.-]*[\w-]", place, re.ASCII)]:
        raise UserError(f"{index} names {bad[0]!r}; its files must be next to it, without a folder")
    return places


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file; with `to_torch` one that torch's users can load."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"weights are written to files that end in .safetensors, not in {path.suffix!r}")
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    _check_dtypes(path, {name: array.dtype.name for name, array in arrays.items()}, DTYPES.values())
    path.write_bytes(save(arrays, {"format": "pt"}))
