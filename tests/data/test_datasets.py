"""Data sets by name, readers of files made here, the embedded sample, splits, downloads, error texts."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjax.data import catalog, decode
from cnnjax.data.datasets import DATASETS, available, hold_out, load
from cnnjax.data.fetch import download
from cnnjax.data.recipe import fast
from cnnjax.data.sources import cifar, idx, tfds
from cnnjax.data.sources.source import ArraySource, Place, to_memory
from cnnjax.data.statistics import channel_statistics
from cnnjax.errors import UserError
from tests import ROOT

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_fashion = pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the package dataset-fashion-mnist")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch, tmp_path):
    """No folder of the real user is looked at, and no proxy stands before 127.0.0.1."""
    for name in ("CNNJAX_DATA_DIR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def message(function, *args, **kwargs) -> str:
    """The one line of the UserError that the call raises."""
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, sizes: dict[str, int], zipped: bool = False) -> dict[str, np.ndarray]:
    """Writes idx files of random 4x3 images with labels 0, 1, 2, 0, ...; returns the images by split."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, size in sizes.items():
        written[split] = RNG.integers(0, 256, (size, 4, 3), dtype=np.uint8)
        prefix = idx.PREFIX[split]
        for kind, array in (("images-idx3", written[split]), ("labels-idx1", np.arange(size) % 3)):
            data = idx_bytes(array)
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return written


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A registered data set `toy` of idx files, its archives in tmp_path/mirror, no system folder."""
    mirror = tmp_path / "mirror"
    write_idx(mirror, {"train": 12, "test": 6}, zipped=True)
    files = sorted(mirror.iterdir())
    contents = {p.stem: hashlib.sha256(gzip.decompress(p.read_bytes())).hexdigest() for p in files}
    archives = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    info = dataclasses.replace(
        DATASETS["fashion_mnist"],
        name="toy",
        image_shape=(4, 3, 1),
        class_names=("a", "b", "c"),
        splits={"train": 12, "test": 6},
        archives=archives,
        mirrors=("http://127.0.0.1:9/",),
        system=None,
        layout=catalog.idx_layout(contents),
    )
    monkeypatch.setitem(DATASETS, "toy", info)
    return info


@pytest.fixture
def server(tmp_path):
    """A web server of tmp_path/mirror; its address."""
    (tmp_path / "mirror").mkdir(exist_ok=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=tmp_path / "mirror")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


# The embedded sample and the real data.


def test_mini_is_balanced_small_and_needs_nothing_else(tmp_path):
    assert catalog.MINI.stat().st_size <= 4e6
    assert "Zalando" in (catalog.MINI.parent / "FASHION_MNIST_LICENSE").read_text()
    with np.load(catalog.MINI) as arrays:
        assert {k: (v.dtype, v.shape) for k, v in arrays.items()} == {
            "train_image": (np.uint8, (6000, 28, 28)),
            "train_label": (np.uint8, (6000,)),
            "test_image": (np.uint8, (1000, 28, 28)),
            "test_label": (np.uint8, (1000,)),
        }
    for split, per_class in (("train", 600), ("test", 100)):
        source = load("fashion_mnist_mini", split)
        assert source.images.shape == (10 * per_class, 28, 28, 1) and source.images.dtype == np.uint8
        assert source.labels.dtype == np.int32
        np.testing.assert_array_equal(np.bincount(source.labels), [per_class] * 10)
        example = source[7]
        assert isinstance(example["label"], int) and example["image"].shape == (28, 28, 1)


@needs_fashion
@pytest.mark.parametrize("split", ["train", "test"])
def test_mini_is_drawn_from_the_same_split_of_the_real_set(split):
    real, mini = load("fashion_mnist", split), load("fashion_mnist_mini", split)
    known = {image.tobytes(): label for image, label in zip(real.images, real.labels, strict=True)}
    assert all(known[i.tobytes()] == y for i, y in zip(mini.images, mini.labels, strict=True))
    assert mini.class_names == real.class_names


@needs_fashion
def test_the_script_makes_the_embedded_file(tmp_path):
    script = ROOT / "experiments/fashion_mnist_mini/make.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "made.npz")], check=True)
    with np.load(tmp_path / "made.npz") as made, np.load(catalog.MINI) as embedded:
        assert made.files == embedded.files
        for name in made.files:
            np.testing.assert_array_equal(made[name], embedded[name])


@needs_fashion
def test_the_real_set_is_whole_and_its_statistics_are_those_stated():
    source = load("fashion_mnist", "train")
    np.testing.assert_array_equal(np.bincount(source.labels), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(load("fashion_mnist", "test").labels), [1000] * 10)
    assert source.fingerprint == load("fashion_mnist", "train").fingerprint
    pixels = hashlib.sha256(source.images.tobytes()).hexdigest()
    assert pixels == hashlib.sha256(_unzipped("train-images-idx3-ubyte")[16:]).hexdigest()
    unit = source.images / np.float32(255)
    info = DATASETS["fashion_mnist"]
    assert info.mean[0] == pytest.approx(unit.mean(dtype=np.float64), abs=1e-6)
    assert info.std[0] == pytest.approx(unit.std(dtype=np.float64), abs=1e-6)
    assert available("fashion_mnist") == str(DEBIAN)


def _unzipped(name: str) -> bytes:
    return gzip.decompress((DEBIAN / f"{name}.gz").read_bytes())


@needs_fashion
def test_one_changed_byte_of_the_real_set_is_noticed(tmp_path):
    for path in DEBIAN.iterdir():
        (tmp_path / path.name).symlink_to(path)
    name = "t10k-labels-idx1-ubyte"
    data = bytearray(_unzipped(name))
    data[100] ^= 1
    (tmp_path / f"{name}.gz").unlink()
    (tmp_path / name).write_bytes(data)
    text = message(load, "fashion_mnist", "test", data_dir=tmp_path)
    assert str(tmp_path / name) in text and "SHA-256" in text and "0402a96d" in text


def test_facts_agree_with_each_other():
    for info in DATASETS.values():
        assert len(info.mean) == len(info.std) == info.image_shape[2]
        assert len(set(info.class_names)) == info.num_classes
        assert info.licence and info.source and info.description
        assert all(len(sha256) == 64 for sha256 in info.archives.values())
    assert DATASETS["cifar100"].num_classes == 100
    mini = channel_statistics(load("fashion_mnist_mini", "train"))
    np.testing.assert_allclose(mini.mean, DATASETS["fashion_mnist_mini"].mean, atol=1e-6)
    np.testing.assert_allclose(mini.std, DATASETS["fashion_mnist_mini"].std, atol=1e-6)
    assert set(DATASETS) == {"fashion_mnist", "fashion_mnist_mini", "mnist", "cifar10", "cifar100"}
    assert available("fashion_mnist_mini") == "in the package" and available("cifar10") is None


# idx


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path, zipped):
    written = write_idx(tmp_path, {"train": 7, "test": 4}, zipped)
    for split in ("train", "test"):
        source = load(f"idx:{tmp_path}", split)
        np.testing.assert_array_equal(source.images[..., 0], written[split])
        np.testing.assert_array_equal(source.labels, np.arange(len(source)) % 3)
        assert source.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d[:-1], ["truncated", "83 bytes", "84"]),
        (lambda d: d + b"x", ["followed by other bytes", "85 bytes", "84"]),
        (lambda d: b"\0\0\x0d\3" + d[4:], ["00000d03", "00000803"]),
        (lambda d: b"\0\0\x08\1" + d[4:], ["00000801", "00000803", "3 dimensions"]),
        (lambda d: d[:10], ["00000803", "3 dimensions"]),
        (lambda d: b"", ["00000803"]),
        (lambda d: b"\0\0\x08\3" + b"\xff" * 12, ["truncated"]),
    ],
)
def test_spoilt_idx_names_the_file(tmp_path, spoil, words):
    write_idx(tmp_path, {"train": 7})
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    text = message(load, f"idx:{tmp_path}", "train")
    assert all(word in text for word in [str(path), *words]), text


def test_spoilt_gzip_labels_out_of_range_and_lengths(tmp_path):
    write_idx(tmp_path, {"train": 7, "test": 4}, zipped=True)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.array([0, 1, 9, 0]))))
    assert load(f"idx:{tmp_path}", "train").num_classes == load(f"idx:{tmp_path}", "test").num_classes == 10
    assert "train has no images of 3, 4" in "; ".join(load(f"idx:{tmp_path}", "train").notes)
    labels.write_bytes(gzip.compress(idx_bytes(np.array([0, 1]))))
    assert "4 images and 2 labels" in message(load, f"idx:{tmp_path}", "test")
    labels.write_bytes(gzip.compress(b"x" * 100)[:-9])
    assert str(labels) in message(load, f"idx:{tmp_path}", "test")
    labels.unlink()
    assert "t10k-labels-idx1-ubyte[.gz] is missing" in message(load, f"idx:{tmp_path}", "test")


# CIFAR's binary version


def cifar_blob(size: int, label_bytes: int, first: int = 0) -> tuple[bytes, np.ndarray, np.ndarray]:
    pictures = RNG.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    labels = (first + np.arange(size)) % 10
    coarse = np.full((size, label_bytes - 1), 99, np.uint8)
    planes = pictures.transpose(0, 3, 1, 2).reshape(size, -1)
    table = np.concatenate([coarse, labels[:, None].astype(np.uint8), planes], 1)
    return table.astype(np.uint8).tobytes(), pictures, labels


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_binary_archive_and_folder(tmp_path, label_bytes):
    one, two = cifar_blob(5, label_bytes), cifar_blob(4, label_bytes, first=5)
    write_tar(
        tmp_path / "c.tar.gz", {"batches/a.bin": one[0], "batches/readme": b"x", "batches/b.bin": two[0]}
    )
    (tmp_path / "a.bin").write_bytes(one[0])
    (tmp_path / "b.bin").write_bytes(two[0])
    for place in (tmp_path / "c.tar.gz", tmp_path):
        image, label = cifar.read_cifar(place, ("a.bin", "b.bin"), label_bytes, 10)
        np.testing.assert_array_equal(image, np.concatenate([one[1], two[1]]))
        np.testing.assert_array_equal(label, np.concatenate([one[2], two[2]]))
        assert image.dtype == np.uint8 and label.dtype == np.int32


def test_spoilt_cifar_names_the_file(tmp_path):
    path = tmp_path / "c.tar.gz"
    blob = cifar_blob(3, 1)[0]
    write_tar(path, {"a.bin": blob[:-1], "b.bin": b"\x0a" + blob[1:]})
    assert "a.bin has 9218 bytes" in message(cifar.read_cifar, path, ("a.bin",), 1, 10)
    assert "b.bin: label 10 of example 0" in message(cifar.read_cifar, path, ("b.bin",), 1, 10)
    assert "c.bin is missing" in message(cifar.read_cifar, path, ("c.bin",), 1, 10)
    path.write_bytes(path.read_bytes()[:500])
    assert str(path) in message(cifar.read_cifar, path, ("a.bin",), 1, 10)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"not it")
    text = message(load, "cifar10", "train", data_dir=tmp_path)
    assert "cifar-10-binary.tar.gz" in text and "SHA-256" in text


def test_unpacked_cifar10_is_found_by_its_folder(tmp_path, monkeypatch):
    info = dataclasses.replace(DATASETS["cifar10"], splits={"train": 10, "test": 3})
    monkeypatch.setitem(DATASETS, "cifar10", info)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(cifar_blob(2, 1, first=2 * i)[0])
    (folder / "test_batch.bin").write_bytes(cifar_blob(3, 1)[0])
    for place in (tmp_path, folder):
        source = load("cifar10", "train", data_dir=place)
        np.testing.assert_array_equal(source.labels, (np.arange(10) + 2) % 10)
        assert source.class_names[3] == "cat"
    monkeypatch.setenv("CNNJAX_DATA_DIR", str(tmp_path))
    assert len(load("cifar10", "test")) == 3 and available("cifar10") == str(folder)
    (folder / "test_batch.bin").write_bytes(cifar_blob(4, 1)[0])
    assert "(4, 32, 32, 3)" in message(load, "cifar10", "test")


# npz


def test_npz_with_and_without_class_names_and_channels(tmp_path):
    grey, colour = RNG.integers(0, 256, (4, 5, 6), dtype=np.uint8), np.zeros((3, 5, 6, 3), np.uint8)
    np.savez(tmp_path / "a.npz", train_image=grey, train_label=[0, 1, 1, 0], class_names=["cat", "dog"])
    source = load(f"npz:{tmp_path / 'a.npz'}", "train")
    assert source.class_names == ("cat", "dog") and source.image_shape == (5, 6, 1)
    np.testing.assert_array_equal(source.images[..., 0], grey)
    np.savez(
        tmp_path / "b.npz",
        train_image=colour,
        train_label=[0, 2, 1],
        validation_image=colour[:1],
        validation_label=[1],
        test_image=colour[:2],
        test_label=[1, 1],
    )
    name = f"npz:{tmp_path / 'b.npz'}"
    assert load(name, "test").class_names == ("0", "1", "2")
    assert len(load(name, "validation")) == 1
    assert len(load(name, "validation", num_validation=2)) == 1  # its own
    assert len(load(name, "train", num_validation=2)) == 3


def test_npz_never_unpickles_and_names_the_file(tmp_path):
    path = tmp_path / "a.npz"
    name = f"npz:{path}"
    np.savez(path, train_image=np.array([{"a": 1}], dtype=object), train_label=[0])
    assert str(path) in message(load, name, "train") and "pickle" in message(load, name, "train")
    np.savez(path, train_image=np.zeros((2, 3, 3), np.uint8), train_label=[0, -1])
    assert "label -1 of example 1" in message(load, name, "train")
    np.savez(path, train_image=np.zeros((2, 3, 3), np.uint8), train_label=[0])
    assert "2 images" in message(load, name, "train")
    np.savez(path, train_image=np.zeros((2, 3, 3), np.uint8))
    assert "train has no labels" in message(load, name, "train")
    np.savez(path, pictures=np.zeros((2, 3, 3), np.uint8))
    assert "train_image" in message(load, name, "train")
    for broken in (b"", b"PK\3\4 but no more", b"hello"):
        path.write_bytes(broken)
        assert str(path) in message(load, name, "train")
    path.unlink()
    assert str(path) in message(load, name, "train")


# Image folders


def write_image(path: Path, pixels: np.ndarray, **options) -> None:
    pillow = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(pixels).save(path, **options)


def smooth(height: int, width: int, level: int) -> np.ndarray:
    """uint8 [H, W, 3] that JPEG keeps well."""
    return np.full((height, width, 3), level, np.uint8) + np.arange(width, dtype=np.uint8)[None, :, None]


def test_image_folder_with_splits(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"train/dog/{i}.jpg", smooth(8, 6, 40 * i), quality=95)
        write_image(tmp_path / f"train/cat/{i}.PNG", smooth(8, 6, 40 * i))
    write_image(tmp_path / "val/dog/0.png", smooth(8, 6, 9)[..., 0])  # grey
    (tmp_path / "train/dog/notes.txt").write_text("not an image")
    name = f"folder:{tmp_path}"
    train, validation = load(name, "train"), load(name, "validation")
    assert train.class_names == validation.class_names == ("cat", "dog")
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    assert [train[i]["label"] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(train[2]["image"], smooth(8, 6, 80))
    np.testing.assert_allclose(train[5]["image"].astype(int), smooth(8, 6, 80), atol=4)
    np.testing.assert_array_equal(validation[0]["image"], smooth(8, 6, 9))
    assert validation[0]["label"] == 1
    assert "test" in message(load, name, "test") and "allowed: train, validation" in message(
        load, name, "test"
    )
    memory = to_memory(train)
    assert memory.images.shape == (6, 8, 6, 3)
    statistics = channel_statistics(memory)
    np.testing.assert_allclose(statistics.mean, (memory.images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(statistics.std, (memory.images / 255).std((0, 1, 2)))
    covariance = np.cov((memory.images / 255).reshape(-1, 3).T, bias=True)
    np.testing.assert_allclose(statistics.covariance, covariance)
    for number, again in zip(statistics, channel_statistics(train), strict=True):
        np.testing.assert_allclose(number, again)


def test_image_folder_without_splits_is_train_and_holds_validation_out(tmp_path):
    for i in range(6):
        write_image(tmp_path / f"{'ab'[i % 2]}/{i}.png", smooth(4, 4, i))
    name = f"folder:{tmp_path}"
    train = load(name, "train", num_validation=2)
    validation = load(name, "validation", num_validation=2)
    seen = sorted(int(s[i]["image"][0, 0, 0]) for s in (train, validation) for i in range(len(s)))
    assert seen == list(range(6)) and sorted(validation.labels) == [0, 1]
    assert len({train.fingerprint, validation.fingerprint, load(name, "train").fingerprint}) == 3
    prints = {load(name, "train").fingerprint, load(name, "train").fingerprint}
    (tmp_path / "a/0.png").rename(tmp_path / "a/7.png")
    prints.add(load(name, "train").fingerprint)
    write_image(tmp_path / "a/7.png", RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    prints.add(load(name, "train").fingerprint)
    (tmp_path / "a/7.png").unlink()
    prints.add(load(name, "train").fingerprint)
    assert len(prints) == 4


def test_image_folder_errors_name_the_file(tmp_path):
    write_image(tmp_path / "train/a/0.jpg", smooth(8, 6, 0))
    write_image(tmp_path / "train/a/1.jpg", smooth(9, 6, 0))
    name = f"folder:{tmp_path}"
    assert "size=6 must be given" in message(load, name, "train")
    text = message(load(name, "train", any_size=True).__getitem__, 1)
    assert "train/a/1.jpg" in text and "9x6" in text and "8x6" in text and "size" in text
    assert "train/a/1.jpg" in message(to_memory, load(name, "train", any_size=True))
    (tmp_path / "train/a/1.jpg").unlink()
    whole = (tmp_path / "train/a/0.jpg").read_bytes()
    (tmp_path / "train/a/0.jpg").write_bytes(whole[: len(whole) // 2])
    assert "train/a/0.jpg: JPEG that cannot be decoded" in message(load(name, "train").__getitem__, 0)
    for broken in (b"", b"hello", b"\x89PNG\r\n\x1a\n and no more"):
        (tmp_path / "train/a/0.jpg").write_bytes(broken)
        assert "train/a/0.jpg" in message(load(name, "train").__getitem__, 0)
    write_image(tmp_path / "train/a/0.png", np.zeros((8, 6), np.uint16))
    (tmp_path / "train/a/0.jpg").unlink()
    text = message(load(name, "train").__getitem__, 0)
    assert "train/a/0.png" in text and "8 bits" in text
    (tmp_path / "train/b").mkdir()
    assert "train/b: a class without images" in message(load, name, "train")
    (tmp_path / "train/b").rmdir()
    write_image(tmp_path / "test/c/0.jpg", smooth(8, 6, 0))
    assert "test/c: not a class of train" in message(load, name, "test")
    (tmp_path / "empty").mkdir()
    assert "no images" in message(load, f"folder:{tmp_path / 'empty'}", "train")
    assert "no such folder" in message(load, f"folder:{tmp_path / 'nowhere'}", "train")


@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (5, 9), (8, 8)])
def test_size_brings_the_short_side_to_it_and_cuts_the_middle_square(tmp_path, height, width):
    ramp = np.linspace(0, 240, width).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
    write_image(tmp_path / "a/0.png", pixels)
    image = load(f"folder:{tmp_path}", "train", size=8)[0]["image"]
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    if height == width == 8:
        np.testing.assert_array_equal(image, pixels)
    if min(height, width) <= 8:
        return
    cut = 240 * (1 - min(1, height / width)) / 2
    ends = image[4, [0, -1], 0].astype(int)
    slope = (240 - 2 * cut) / 8
    np.testing.assert_allclose(ends, [cut + slope / 2, 240 - cut - slope / 2], atol=8)


def test_grey_decoding_and_every_format_alike():
    pillow = pytest.importorskip("PIL.Image")
    pixels = smooth(8, 6, 50)
    for kind in ("PNG", "BMP", "JPEG"):
        file = io.BytesIO()
        pillow.fromarray(pixels).save(file, kind)
        grey = decode.decode_image(file.getvalue(), kind, 1)
        assert grey.shape == (8, 6, 1)
        np.testing.assert_allclose(grey[..., 0].astype(int), pixels[..., 0], atol=4)


@pytest.mark.parametrize("size", [8, 16])
def test_a_decoded_jpeg_is_not_written_over_by_the_next_one(size):
    encoded = [simplejpeg.encode_jpeg(np.full((16, 16, 3), level, np.uint8)) for level in (10, 200)]
    first = decode.decode_image(encoded[0], "first", 3, fast(size))
    kept = first.copy()
    second = decode.decode_image(encoded[1], "second", 3, fast(size))
    np.testing.assert_array_equal(first, kept)
    assert first.max() < 20 and second.min() > 190


# Prepared TFDS folders


def write_prepared(
    root: Path,
    name: str,
    splits: dict[str, np.ndarray],
    class_names: list[str],
    unlabelled: tuple[str, ...] = (),
) -> None:
    """What `tfds` leaves behind with file_format="array_record": root/name/1.0.0."""
    pillow = pytest.importorskip("PIL.Image")
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    shape = next(iter(splits.values())).shape[1:]
    classes = tfds.features.ClassLabel(names=class_names)
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=shape), "label": classes})
    features.save_config(str(folder))
    features.save_metadata(str(folder))
    listed = []
    for split, pictures in splits.items():
        writer = ArrayRecordWriter(
            str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for i, picture in enumerate(pictures):
            file = io.BytesIO()
            pillow.fromarray(picture[..., 0] if shape[2] == 1 else picture).save(file, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(file.getvalue())
            label = -1 if split in unlabelled else i % len(class_names)
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        size = {"shardLengths": [str(len(pictures))], "numBytes": "1", "filepathTemplate": template}
        listed.append({"name": split, **size})
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": listed}
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("stored", ["tfrecord", "riegeli"])
def test_a_prepared_folder_of_another_format_is_told(tmp_path, stored):
    write_prepared(tmp_path, "pets", {"train": RNG.integers(0, 256, (2, 4, 4, 3), np.uint8)}, ["cat", "dog"])
    folder = tmp_path / "pets" / "1.0.0"
    file = folder / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": stored}))
    text = message(tfds.open_prepared, folder, Place("tfds:pets", "pets", None, None))
    assert text == f"{folder}: records are {stored}; prepare it with file_format='array_record'"


def test_prepared_folder_is_read_and_tensorflow_never_imported(tmp_path):
    pictures = RNG.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
    write_prepared(tmp_path, "pets", {"train": pictures, "test": pictures[:2]}, ["cat", "dog"])
    code = """
import sys
import numpy as np
import cnnjax.data.augment.chain, cnnjax.data.batches
from cnnjax.data.datasets import load
from cnnjax.data.sources.source import to_memory
source = load("tfds:pets", "train", data_dir=sys.argv[1])
np.save(sys.argv[1] + "/read.npy", to_memory(source).images)
print([source[i]["label"] for i in range(len(source))], source.class_names)
print(len(load("tfds:pets:1.0.0", "validation", data_dir=sys.argv[1], num_validation=3)))
print([m for m in sys.modules if m.split(".")[0] == "tensorflow"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[0, 1, 0, 1, 0, 1, 0] ('cat', 'dog')", "3", "[]"]
    np.testing.assert_array_equal(np.load(tmp_path / "read.npy"), pictures)
    assert "allowed: test, train" in message(load, "tfds:pets", "dev", data_dir=tmp_path)
    for root in (tmp_path / "pets" / "1.0.0", tmp_path):
        assert tfds.find_prepared("pets", root) == tmp_path / "pets" / "1.0.0"


def test_registered_name_is_found_as_prepared_folder(tmp_path, toy, monkeypatch):
    pictures = RNG.integers(0, 256, (12, 4, 3, 1), dtype=np.uint8)
    write_prepared(tmp_path / "prepared", "toy", {"train": pictures, "test": pictures[:6]}, ["a", "b", "c"])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    assert available("toy") == f"{tmp_path / 'prepared' / 'toy' / '1.0.0'} (TFDS)"
    source = load("toy", "train", download=False)
    assert isinstance(source, ArraySource)
    np.testing.assert_array_equal(source.images, pictures)
    assert available("toy", tmp_path / "mirror") == str(tmp_path / "mirror")  # data_dir comes first


def test_missing_prepared_folder_lists_the_places(tmp_path):
    text = message(load, "tfds:pets", "train", data_dir=tmp_path)
    assert str(tmp_path) in text and "no_tfds" in text and "array_record" in text
    assert "tfds:NAME" in message(load, "tfds:/etc/x", "train")


# Validation


def test_validation_is_balanced_disjoint_and_a_function_of_the_seed():
    whole = load("fashion_mnist_mini", "train")
    train = load("fashion_mnist_mini", "train", num_validation=1000, seed=3)
    validation = load("fashion_mnist_mini", "validation", num_validation=1000, seed=3)
    np.testing.assert_array_equal(np.bincount(validation.labels), [100] * 10)
    np.testing.assert_array_equal(np.bincount(train.labels), [500] * 10)
    rest, drawn = hold_out(whole.labels, 1000, 3)
    np.testing.assert_array_equal(validation.images, whole.images[drawn])
    np.testing.assert_array_equal(train.images, whole.images[rest])
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, drawn])), np.arange(6000))
    again = load("fashion_mnist_mini", "validation", validation_fraction=1 / 6, seed=3)
    assert again.fingerprint == validation.fingerprint
    other = load("fashion_mnist_mini", "validation", num_validation=1000, seed=4)
    assert other.fingerprint != validation.fingerprint
    assert (
        load("fashion_mnist_mini", "test", num_validation=1000).fingerprint
        == load("fashion_mnist_mini", "test").fingerprint
    )


def test_the_draw_never_changes_between_versions():
    _, drawn = hold_out(np.arange(20) % 2, 4, seed=0)
    np.testing.assert_array_equal(drawn, [2, 3, 11, 18])


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=60), seed=st.integers(0, 99), data=st.data())
def test_every_class_gives_its_share(labels, seed, data):
    labels = np.array(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    count = data.draw(st.integers(0, len(labels) - len(classes)))
    rest, drawn = hold_out(labels, count, seed)
    assert len(drawn) == count
    assert sorted([*rest, *drawn]) == list(range(len(labels)))
    assert set(labels[rest]) == set(labels)  # no class loses its last image
    shares = np.asarray([(labels[drawn] == label).sum() for label in classes])
    exact = sizes * (count / len(labels))
    largest_remainders = np.floor(exact + 1e-9)
    order = np.argsort(largest_remainders - exact, kind="stable")
    largest_remainders[order[: count - int(largest_remainders.sum())]] += 1
    if (largest_remainders < sizes).all():
        np.testing.assert_array_equal(shares, largest_remainders)


def test_subsets_keep_order_and_fingerprints_tell_them_apart():
    source = load("fashion_mnist_mini", "test")
    part = source.subset([5, 3, 3])
    np.testing.assert_array_equal(part.images, source.images[[5, 3, 3]])
    assert part[1]["label"] == source[3]["label"] and len(part) == 3
    assert len({s.fingerprint for s in (source, part, source.subset([3, 5, 3]))}) == 3
    changed = dataclasses.replace(part, labels=(part.labels + 1) % 10)
    assert changed.fingerprint != part.fingerprint
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.labels = source.labels


# Names, places, downloads


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        (("fashion_mnst", "train"), {}, ["data set 'fashion_mnst'", "'fashion_mnist'", "tfds:NAME"]),
        (("foldr:/x", "train"), {}, ["'foldr:'", "did you mean 'folder:'", "npz:"]),
        (("idx:", "train"), {}, ["'idx:'", "idx:FOLDER"]),
        (("fashion_mnist_mini", "tset"), {}, ["'tset'", "did you mean 'test'", "train"]),
        (("fashion_mnist_mini", "validation"), {}, ["'validation'", "test, train", "num_validation"]),
        (("fashion_mnist_mini", "train"), {"num_validation": 6000}, ["num_validation=6000", "1 to 5990"]),
        (("fashion_mnist_mini", "train"), {"num_validation": -1}, ["num_validation=-1", "at least 0"]),
        (("fashion_mnist_mini", "train"), {"validation_fraction": 1.0}, ["=1.0", "in [0, 1)"]),
        (("fashion_mnist_mini", "train"), {"validation_fraction": 1e-6}, ["0 of 6000"]),
        (
            ("fashion_mnist_mini", "train"),
            {"num_validation": 9, "validation_fraction": 0.1},
            ["num_validation=9", "one of them"],
        ),
        (("fashion_mnist_mini", "train"), {"seed": -1}, ["seed=-1", "an integer of at least 0"]),
        (("fashion_mnist_mini", "train"), {"data_dir": "/no/where"}, ["'/no/where'", "not a folder"]),
    ],
)
def test_mistakes_are_named(args, kwargs, words):
    text = message(load, *args, **kwargs)
    assert all(word in text for word in words), text


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"num_validation": -5}, "num_validation=-5 must be an integer of at least 0"),
        ({"num_validation": 2.5}, "num_validation=2.5 must be an integer"),
        ({"validation_fraction": 1.5}, "validation_fraction=1.5 must be in"),
        ({"validation_fraction": float("nan")}, "validation_fraction=nan must be in"),
        ({"num_validation": 9, "validation_fraction": 0.1}, "one of them"),
    ],
)
def test_what_is_held_out_is_checked_for_every_split(split, held, words):
    assert words in message(load, "fashion_mnist_mini", split, **held)


def test_the_order_of_places(tmp_path, toy, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "toy", there):
        folder.mkdir(parents=True)
        for path in (tmp_path / "mirror").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    assert available("toy") is None
    monkeypatch.setitem(DATASETS, "toy", dataclasses.replace(toy, system=(str(there), "dataset-toy")))
    assert available("toy") == str(there)
    monkeypatch.setenv("CNNJAX_DATA_DIR", str(here))
    assert available("toy") == str(here / "toy")
    assert available("toy", there) == str(there)
    assert load("toy", "train", data_dir=there).fingerprint == load("toy", "train").fingerprint
    assert "did you mean 'toy'" in message(available, "toyy")


def test_nothing_answers_is_one_line_with_places_and_ways(tmp_path, toy):
    for kwargs, reason in (({}, "127.0.0.1:9"), ({"download": False}, "downloads are off")):
        text = message(load, "toy", "train", data_dir=tmp_path, **kwargs)
        places = [tmp_path, tmp_path / "toy", tmp_path / "no_tfds", tmp_path / "cache/cnnjax/toy"]
        for word in (*map(str, places), reason, "train-images-idx3-ubyte.gz", "CNNJAX_DATA_DIR"):
            assert word in text, text
    info = DATASETS["fashion_mnist"]
    assert info.system == (str(DEBIAN), "dataset-fashion-mnist")


def test_download_then_load_then_no_second_download(tmp_path, toy, server, monkeypatch):
    mirrors = ("http://127.0.0.1:9/", server.rstrip("/"))
    monkeypatch.setitem(DATASETS, "toy", dataclasses.replace(toy, mirrors=mirrors))
    source = load("toy", "train")
    assert len(source) == 12 and source.class_names == ("a", "b", "c")
    cache = tmp_path / "cache/cnnjax/toy"
    assert sorted(p.name for p in cache.iterdir()) == sorted(toy.archives)
    assert available("toy") == str(cache)
    monkeypatch.setitem(DATASETS, "toy", dataclasses.replace(toy, mirrors=()))
    assert load("toy", "test", download=False).fingerprint != source.fingerprint
    download(toy.archives, cache, ())  # all there: nothing is asked for


@pytest.mark.parametrize("served", [b"other bytes!", b"12", b"longer than it should be by far"])
def test_a_wrong_download_is_refused_and_leaves_nothing(tmp_path, server, served):
    (tmp_path / "mirror" / "a.bin").write_bytes(served)
    sha256 = hashlib.sha256(b"right bytes!").hexdigest()
    text = message(download, {"a.bin": sha256}, tmp_path / "out", [server])
    assert f"{server}a.bin" in text and sha256 in text
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "mirror" / "a.bin").write_bytes(b"right bytes!")
    download({"a.bin": sha256}, tmp_path / "out", [server])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.bin"]
    assert "404" in message(download, {"b.bin": sha256}, tmp_path / "out", [server])
    (tmp_path / "out" / "a.bin").write_bytes(b"spoilt bytes")
    assert "127.0.0.1:9" in message(download, {"a.bin": sha256}, tmp_path / "out", ["http://127.0.0.1:9/"])
    download({"a.bin": sha256}, tmp_path / "out", [server])
    assert (tmp_path / "out" / "a.bin").read_bytes() == b"right bytes!"
