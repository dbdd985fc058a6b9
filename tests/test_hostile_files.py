"""No code from a file: nothing in the package can run any, and files that try are refused in one line."""

import ast
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import cnnjax
from cnnjax import config as config_lib
from cnnjax.data import datasets, decode
from cnnjax.data.sources import cifar, idx, npz
from cnnjax.errors import UserError
from cnnjax.models.weights import files
from cnnjax.runs import manifest as manifests
from cnnjax.runs.experiment import build
from cnnjax.runs.folder import Run
from experiments.reliability import fuzz

PACKAGE = Path(cnnjax.__file__).parent
RUNS_CODE = {"eval", "exec", "compile", "__import__", "system", "popen", "extractall", "import_module"}
MAY = {
    ("__init__.py", "import_module"),
    ("models/__init__.py", "import_module"),
    ("runs/config_files.py", "run_path"),
    ("cli/completion.py", "import_module"),
    ("cli/main.py", "import_module"),
    ("profiling/peers/keras.py", "import_module"),
    ("profiling/peers/torch.py", "eval"),
}  # own files; the user's --config=FILE; torch's name for a net in use


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    found = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return [(getattr(node.func, "attr", getattr(node.func, "id", "")), node) for node in found]


def test_the_package_has_no_way_to_run_code_from_a_file():
    for file in PACKAGE.rglob("*.py"):
        place = str(file.relative_to(PACKAGE))
        for name, node in calls(file):
            if isinstance(node.func, ast.Name) or name not in ("compile",):  # re.compile, lowered.compile
                assert name not in {*RUNS_CODE, "run_path"} or (place, name) in MAY, f"{place}: {name}"
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "shell" not in keywords, f"{place}: shell="
            if (
                name == "load"
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func) == "np.load"
            ):
                assert ast.unparse(keywords["allow_pickle"]) == "False", place


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_pickles_in_arrays_are_refused_and_do_not_run(tmp_path):
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    np.savez(tmp_path / "inside.npz", train_image=evil, train_label=np.zeros(1, np.uint8))
    np.save(tmp_path / "array.npy", evil, allow_pickle=True)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(evil))
    for name in ("inside", "array", "bare"):
        with pytest.raises(UserError, match=f"{name}.npz: cannot be read as npz without pickle"):
            npz.read_npz(tmp_path / f"{name}.npz")
    assert not (tmp_path / "ran").exists()


def test_names_that_nest_without_end_are_refused_at_once(tmp_path):
    doubled = b")" + b"2\x86" * 60  # t = (t, t), sixty times: hashing or printing it never ends
    noted = b")q\0" + b"h\0\x86q\0" * 60  # the same with opcodes that torch writes
    for twice in (doubled, noted):
        for body in (b"}" + twice + b"K\x01s.", twice + b"Q.", twice + b"h\0\x93.", twice + b"K\x01R."):
            with zipfile.ZipFile(tmp_path / "deep.pth", "w") as archive:
                archive.writestr("net/data.pkl", b"\x80\x02" + body)
            with pytest.raises(UserError, match=r"deep\.pth"):
                files.read(tmp_path / "deep.pth")


def test_archives_write_nothing_and_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("cnnjax.data.sources.archive.ALWAYS_BYTES", 2**16)
    zeros = bytes(2**24)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(zeros))
    with pytest.raises(UserError, match="unpacks to more than"):
        idx.read_idx(tmp_path / "train-images-idx3-ubyte.gz", 3)
    np.savez_compressed(tmp_path / "bomb.npz", train_image=np.zeros((2**14, 32, 32), np.uint8))
    with pytest.raises(UserError, match=r"bomb\.npz: .* claims"):
        npz.read_npz(tmp_path / "bomb.npz")
    slip = tmp_path / "slip.tar.gz"
    with tarfile.open(slip, "w:gz") as archive:
        for name, data in (("../../slipped.bin", bytes(3073)), ("bomb.bin", zeros)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError, match=r"bomb\.bin claims"):
        cifar.read_cifar(slip, ("bomb.bin",), 1, 10)
    with pytest.raises(UserError, match=r"slip.tar.gz"):
        cifar.read_cifar(slip, ("slipped.bin",), 1, 10)
    with zipfile.ZipFile(tmp_path / "slip.npz", "w") as archive:
        archive.writestr("../../../slipped.npy", b"x")
    with pytest.raises(UserError, match="train_image|cannot be read"):
        datasets.load(f"npz:{tmp_path / 'slip.npz'}", "train")
    assert not list(tmp_path.parent.glob("slipped*"))


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_an_image_that_claims_too_many_pixels_is_refused():
    pytest.importorskip("PIL")
    with pytest.raises(UserError, match="pixels"):
        decode.decode_image(png(12_000, 12_000), "big.png", 3)
    import simplejpeg

    small = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = small.index(b"\xff\xc0") + 5
    small[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(UserError, match=r"big\.jpg: 60000x60000 pixels"):
        decode.decode_image(bytes(small), "big.jpg", 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "os.system('touch ran')"),
        ("model", "__import__('os').system('touch ran')"),
        ("model", "os:system"),
        ("augment.train", "system('touch ran')|normalize"),
        ("optimizer.name", "subprocess.run(args='touch ran')"),
        ("data.name", "module:os"),
    ],
)
def test_a_run_folder_that_names_code_is_refused(tmp_path, monkeypatch, field, value):
    monkeypatch.chdir(tmp_path)
    config = json.loads(config_lib.to_json(config_lib.default()))
    *groups, last = field.split(".")
    place = config[groups[0]] if groups else config
    place[last] = value
    Path("config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        build(Run.open(tmp_path).config())
    assert not Path("ran").exists()


def test_an_idx_file_of_nothing_in_huge_dimensions_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1))
    with pytest.raises(UserError, match="too large"):
        idx.read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize("kind", fuzz.TARGETS)
def test_any_input_gives_the_documented_error(kind):
    """The short form of `experiments/reliability/run.py fuzz`, with the inputs that come first there."""
    found = fuzz.fuzz(kind, 60)
    assert found["inputs"] >= 60 and found["refused"] > 0


@pytest.mark.parametrize(
    "manifest",
    [
        {"files": {"a": {"bytes": 0}}},
        {"files": {"a": {"bytes": True, "sha256": ""}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": {"../a": {"bytes": 1, "sha256": ""}}},
        {"files": {}, "metrics": {"accuracy": "high"}},
        {"files": {}, "position": []},
        {"files": []},
        {},
    ],
)
def test_a_manifest_with_the_right_digest_and_wrong_fields_is_damaged(tmp_path, manifest):
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        manifests.verify(tmp_path)
