"""Hostile and damaged inputs for what is read from outside: only the documented errors come out."""

import contextlib
import gzip
import hashlib
import io
import json
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.data import datasets, decode
from cnnjax.data.augment import chain
from cnnjax.data.augment.register import AUGMENTATIONS
from cnnjax.data.recipe import covering, fast
from cnnjax.data.sources import idx
from cnnjax.errors import UserError
from cnnjax.models.weights import files
from cnnjax.models.weights.torch_files import LEGACY_MAGIC
from cnnjax.runs import manifest as manifests
from cnnjax.runs.checkpoints import Checkpoints
from experiments.reliability.torch_opcodes import (
    TORCH_MODULE,
    TORCH_OTHERS,
    TORCH_PICKLE,
    pickled_text,
    torch_zip,
)

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SMALL = st.integers(0, 40)
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(["0", "-1", "1e400", "nan", "inf", "0x10", "1_0", "٣", "2**40", "True"]),
)
LITERALS = st.one_of(
    NUMBERS,
    st.text(max_size=6).map(repr),
    st.lists(NUMBERS, max_size=3).map(lambda values: f"({', '.join(values)})"),
)


@st.composite
def calls(draw: Any, names: list[str]) -> str:
    """Something like `name(1, key=2)`, mostly well formed."""
    name = draw(st.sampled_from(names) | st.text(max_size=6))
    keys = st.sampled_from(["probability", "size", "padding", "mean", "std", "alpha", "area", "limit", "x"])
    words = draw(st.lists(LITERALS | st.tuples(keys, LITERALS).map("=".join), max_size=3))
    return draw(st.sampled_from([name, f"{name}({', '.join(words)})", f"{name}({', '.join(words)}"]))


def damaged(*wholes: bytes) -> st.SearchStrategy[bytes]:
    """One of these, with some bytes changed, cut off, repeated or put in."""

    def apply(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for kind, place, new in edits:
            at = place % (len(data) + 1)
            if kind == 0:
                data = data[:at] + new + data[at + len(new) :]
            elif kind == 1:
                data = data[:at]
            else:
                data = data[:at] + new + data[at:]
        return data

    edits = st.tuples(st.integers(0, 2), st.integers(0, 2**16), st.binary(min_size=1, max_size=4))
    changed = st.builds(apply, st.sampled_from(wholes), st.lists(edits, min_size=1, max_size=4))
    return changed | st.binary(max_size=300)


def overrides() -> st.SearchStrategy[list[str]]:
    fields = st.sampled_from(sorted(config_lib.FIELDS))
    values = NUMBERS | LITERALS | st.text(max_size=20) | calls(["skip", "stop", "sgd", "cosine"])
    written = st.tuples(fields | fields | fields | st.text(max_size=12), values)
    return st.lists(written.map(lambda pair: f"--config.{pair[0]}={pair[1]}"), min_size=1, max_size=3)


def read_overrides(args: list[str], _: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.run(["train", *args, "--print_config"])
    if code:
        assert code == 2 and err.getvalue().count("\n") == 1, err.getvalue()
        raise UserError(err.getvalue().strip())


SOUND = (
    "mirror",
    "random_crop(28, padding=2)",
    "scale",
    "normalize",
    "cutout(8)",
    "mixup(0.2)",
    "contrast(0.2)",
)


def augmentations() -> st.SearchStrategy[str]:
    one = st.sampled_from(SOUND) | st.sampled_from(SOUND) | calls(sorted(AUGMENTATIONS))
    chains = st.lists(one, max_size=4).map("|".join)
    return chains | chains.map("{}|normalize".format) | st.text(max_size=40)


def read_augmentation(text: str, _: Path) -> None:
    chain.parse(text, image_shape=(28, 28, 3), num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


def idx_files() -> st.SearchStrategy[bytes]:
    dims = st.lists(st.integers(0, 3) | st.integers(0, 2**32 - 1), min_size=3, max_size=3)
    whole = st.tuples(
        st.sampled_from([b"\0\0\x08\x03", b"\0\0\x0d\x03", b"\0\0\x08\x01"]), dims, st.binary(max_size=40)
    )
    plain = whole.map(lambda parts: parts[0] + struct.pack(">3I", *parts[1]) + parts[2])
    sound = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 3) + bytes(18)
    return plain | damaged(sound, gzip.compress(sound)) | plain.map(gzip.compress)


def read_idx(data: bytes, folder: Path) -> None:
    for name in ("images.gz" if data[:1] == b"\x1f" else "images",):
        (folder / name).write_bytes(data)
        idx.read_idx(folder / name, 3)


def npz_bytes(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npz_files() -> st.SearchStrategy[bytes]:
    image, label = np.zeros((4, 3, 3), np.uint8), np.arange(4, dtype=np.uint8)
    sound = npz_bytes(train_image=image, train_label=label)
    dtypes = st.sampled_from(["u1", "i8", "f4", "U3", "S2", "?", "c8", "M8[s]"])
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
    arrays = st.builds(lambda shape, dtype: np.zeros(shape, dtype), shapes, dtypes)
    names = st.sampled_from(["train_image", "train_label", "class_names", "test_image", "x"])
    others = st.dictionaries(names, arrays, max_size=4).map(lambda found: npz_bytes(**found))
    return others | damaged(
        sound, npz_bytes(train_image=image, train_label=label, class_names=np.array(["a"] * 4))
    )


def read_npz(data: bytes, folder: Path) -> None:
    (folder / "x.npz").write_bytes(data)
    source = datasets.load(f"npz:{folder / 'x.npz'}", "train")
    assert source.images.dtype == np.uint8 and len(source.labels) == len(source)


def safetensors_files() -> st.SearchStrategy[bytes]:
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "BF16", "X"]) | Json,
            "shape": st.lists(st.integers(-1, 3), max_size=3) | Json,
            "data_offsets": st.lists(SMALL, min_size=1, max_size=3) | Json,
        }
    )
    header = st.dictionaries(st.text(max_size=5), entry | Json, max_size=3).map(
        lambda x: json.dumps(x).encode()
    )
    whole = st.tuples(header | st.binary(max_size=40), st.binary(max_size=40), st.integers(-9, 9))
    sound = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    packed = whole.map(
        lambda parts: struct.pack("<Q", max(0, len(parts[0]) + parts[2] // 8)) + parts[0] + parts[1]
    )
    return packed | damaged(struct.pack("<Q", len(sound)) + sound + bytes(8))


def read_safetensors(data: bytes, folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(data)
    files.read(folder / "x.safetensors")


def torch_files() -> st.SearchStrategy[bytes]:
    """Both containers; opcodes of a state dict left out, doubled or replaced by others, hostile ones too."""
    wholes = [b"".join(opcodes) for opcodes in (TORCH_PICKLE, TORCH_MODULE)]
    magic = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
    head = magic + b".\x80\x02M\xe9\x03.\x80\x02}" + pickled_text("little_endian") + b"\x88s."
    tail = b"\x80\x02](" + pickled_text("0") + b"e." + struct.pack("<q", 6) + bytes(24)

    def edited(sound: tuple[bytes, ...], edits: list[tuple[int, bytes | None, bool]]) -> bytes:
        opcodes = list(sound)
        for place, other, keep in edits:
            at = place % len(opcodes)
            opcodes[at : at + (not keep)] = [other] if other is not None else []
        return b"".join(opcodes)

    one = st.sampled_from(TORCH_PICKLE) | st.sampled_from(TORCH_OTHERS)
    edits = st.lists(st.tuples(SMALL, one | st.none(), st.booleans()), max_size=3)
    streams = st.builds(edited, st.sampled_from([TORCH_PICKLE, TORCH_MODULE]), edits) | st.lists(
        one, max_size=12
    ).map(b"".join)
    either = streams.map(torch_zip) | streams.map(lambda stream: head + stream + tail)
    return either | damaged(*map(torch_zip, wholes), *(head + sound + tail for sound in wholes))


def read_torch(data: bytes, folder: Path) -> None:
    (folder / "x.pth").write_bytes(data)
    for array in files.read(folder / "x.pth").values():
        assert array.nbytes <= len(data)


def manifest_files() -> st.SearchStrategy[bytes]:
    """Also such as carry the right digest of themselves."""
    entry = st.fixed_dictionaries({"bytes": SMALL | Json, "sha256": st.text(max_size=5)}) | Json
    names = st.sampled_from(["tree/a", "../x", "/etc", "", ".", "\0"]) | st.text(max_size=8)
    manifest = st.fixed_dictionaries(
        {"files": st.dictionaries(names, entry, max_size=3) | Json},
        optional={
            "step": Json,
            "position": Json,
            "metrics": Json | st.dictionaries(st.just("accuracy"), Json),
        },
    )

    def signed(value: dict[str, Any]) -> bytes:
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        return json.dumps({**value, "sha256": digest}).encode()

    sound = signed({"step": 1, "position": {}, "metrics": {}, "files": {}})
    return manifest.map(signed) | Json.map(lambda x: json.dumps(x).encode()) | damaged(sound)


def read_manifest(data: bytes, folder: Path) -> None:
    place = folder / "checkpoints" / "1"
    (place / "tree").mkdir(parents=True, exist_ok=True)
    (place / "tree" / "a").write_bytes(b"")
    (place / manifests.NAME).write_bytes(data)
    saved = Checkpoints(folder / "checkpoints")
    saved.best()
    problem = saved.problem(1)
    try:
        manifests.verify(place)
    except ValueError as error:
        assert problem == str(error)
        raise UserError(problem) from None


def encoded_images() -> st.SearchStrategy[bytes]:
    pixels = (np.arange(16 * 16 * 3).reshape(16, 16, 3) % 256).astype(np.uint8)
    wholes = []
    for form, mode in (
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("GIF", "L"),
        ("BMP", "RGB"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
        ("PPM", "L"),
    ):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, form)
        wholes.append(file.getvalue())
    return damaged(*wholes)


def read_image(data: bytes, _: Path) -> None:
    for recipe in (None, fast(8), covering(8, 8)):
        pixels = decode.decode_image(data, "x", 3, recipe)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


TARGETS: dict[str, tuple[Callable[[], st.SearchStrategy], Callable[[Any, Path], None]]] = {
    "config overrides": (overrides, read_overrides),
    "augmentation strings": (augmentations, read_augmentation),
    "idx files": (idx_files, read_idx),
    "npz files": (npz_files, read_npz),
    "safetensors files": (safetensors_files, read_safetensors),
    "torch.save files": (torch_files, read_torch),
    "checkpoint manifests": (manifest_files, read_manifest),
    "image bytes": (encoded_images, read_image),
}


def fuzz(name: str, count: int) -> dict[str, Any]:
    """Tries `count` inputs of a kind; raises the first error that is not a documented one."""
    inputs, read = TARGETS[name]
    tried, refused = 0, 0
    # hypothesis counts what it generates; the same inputs come each time
    options = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    with tempfile.TemporaryDirectory() as place:

        @options
        @given(inputs())
        def run(value: Any) -> None:
            nonlocal tried, refused
            tried += 1
            try:
                read(value, Path(place))
            except UserError as error:
                assert len(str(error).splitlines()) == 1, f"not one line: {error}"
                refused += 1

        began = time.monotonic()
        run()
    seconds = round(time.monotonic() - began, 1)
    return {
        "test": "fuzz",
        "case": name,
        "inputs": tried,
        "refused": refused,
        "failed": 0,
        "seconds": seconds,
    }
