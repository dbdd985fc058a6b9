"""Archives of images, bad images, prepared records: what is read, what is refused, what is left out."""

import dataclasses
import gc
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cnnjax.cli import main
from cnnjax.data import decode, prepare
from cnnjax.data.batches import StreamBatches, make_batches
from cnnjax.data.datasets import load
from cnnjax.data.decode import decode_image
from cnnjax.data.recipe import fast
from cnnjax.data.sources import records
from cnnjax.data.sources.source import ArraySource, Source, to_memory
from cnnjax.data.statistics import channel_statistics
from cnnjax.errors import BadImage, UserError
from tests import ROOT

pillow, ImageOps = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
RNG = np.random.default_rng(0)
SHARED = (
    next((p for p in Path(__file__).parents if (p / "shared/data").is_dir()), Path("/nowhere"))
    / "shared/data"
)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def pictures(count: int) -> dict[str, bytes]:
    """class/number.png of 6x5, two classes."""
    draw = np.random.default_rng(1)
    return {
        f"{'ab'[i % 2]}/{i}.png": encoded(draw.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        for i in range(count)
    }


def write(root: Path, kind: str, files: dict[str, bytes]) -> Path:
    """The files as a folder, a zip or a tar."""
    path = root / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_serves_what_its_folder_does(tmp_path, kind):
    files = {f"{split}/{name}": data for split in ("train", "test") for name, data in pictures(6).items()}
    files |= {"train/a/.hidden.png": b"", "__MACOSX/train/a/0.png": b"", "readme.txt": b"x"}
    folder, archive = (load(f"folder:{write(tmp_path, k, files)}", "train") for k in ("folder", kind))
    sent = pickle.dumps(archive)
    archive = pickle.loads(sent)  # as for a reading process
    assert archive.class_names == folder.class_names == ("a", "b") and len(archive) == 6
    np.testing.assert_array_equal(to_memory(archive).images, to_memory(folder).images)
    np.testing.assert_array_equal(archive.labels, [0, 0, 0, 1, 1, 1])
    (tmp_path / f"data.{kind}").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"data.{kind}: cannot be read"):
        pickle.loads(sent)


@pytest.fixture(params=["arrays", "files"])
def six(request, tmp_path) -> Source:
    """Six images of two classes, in memory or in files."""
    files = {f"train/{name}": data for name, data in pictures(6).items()}
    source = load(f"folder:{write(tmp_path, 'folder', files)}", "train")
    return to_memory(source) if request.param == "arrays" else source


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_an_archive_is_closed_as_its_source_goes_or_as_python_ends_without_words(tmp_path, form):
    files = pictures(6)
    if form == "tar":
        pairs = [{f"{i}.png": png, f"{i}.cls": b"%d" % (i % 2)} for i, png in enumerate(files.values())]
        files = {name: data for pair in pairs for name, data in pair.items()}
    path = write(tmp_path, "tar", files).resolve()

    def descriptors() -> int:
        return sum(os.path.realpath(file) == str(path) for file in Path("/proc/self/fd").iterdir())

    source = load(f"{form}:{path}", "train")
    assert source[0]["image"].shape == (6, 5, 3)
    if Path("/proc/self/fd").exists():
        assert descriptors() == 1
        del source
        gc.collect()
        assert descriptors() == 0
    code = f"""
import numpy
from cnnjax.data.datasets import load
from cnnjax.data.sources import archive, webdataset
numpy.kept = load("{form}:{path}", "train"), archive, webdataset  # as a library keeps what it has loaded
numpy.kept[0][0]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_subset_takes_positions_or_a_mask(six):
    mask = np.array([False, True, False, False, True, True])
    wanted = [six[i]["image"] for i in (1, 4, 5)]
    for chosen in (mask, mask.tolist(), [1, 4, 5], np.array([1, 4, 5], np.uint8)):
        part = six.subset(chosen)
        np.testing.assert_array_equal(part.labels, six.labels[mask])
        np.testing.assert_array_equal(
            [example["image"] for example in map(part.__getitem__, range(3))], wanted
        )
    assert len(six.subset([])) == len(six.subset(np.zeros(6, bool))) == 0


@pytest.mark.parametrize(
    ("indices", "problem"),
    [
        (np.ones(5, bool), r"bool \[5\]; allowed: whole numbers, or one bool for each of 6 examples"),
        ([0.9, 1.2], r"float64 \[2\]"),
        ([[0, 1]], r"int64 \[1, 2\]"),
        (3, r"int64 \[\]"),
        (["1"], r"<U1 \[1\]"),
        ([0, -1], "have -1; allowed: 0 to 5"),
        ([0, 6], "have 6; allowed: 0 to 5"),
    ],
)
def test_a_subset_of_what_are_no_positions_is_refused(six, indices, problem):
    with pytest.raises(UserError, match=f"train: indices .*{problem}"):
        six.subset(indices)


def test_an_example_of_a_source_in_memory_cannot_be_written_to(six):
    source = to_memory(six)
    before = source.images.copy()
    with pytest.raises(ValueError, match="read-only"):
        source[2]["image"][:] = 0
    np.testing.assert_array_equal(source.images, before)


def test_loose_files_have_their_class_in_front_of_the_name(tmp_path):
    data = encoded(np.zeros((4, 4, 3), np.uint8))
    path = write(tmp_path, "zip", {"n02_ray.png": data, "n01_tench.png": data})
    source = load(f"folder:{path}", "train")
    assert source.class_names == ("n01", "n02") and list(source.labels) == [0, 1]
    path = write(tmp_path, "tar", {"tench.png": data})
    with pytest.raises(UserError, match=r"data.tar/tench.png: an image outside a class folder"):
        load(f"folder:{path}", "train")


def test_archives_with_ways_out_or_links_or_damage_are_refused(tmp_path):
    data = encoded(np.arange(3 * 40 * 40, dtype=np.uint8).reshape(40, 40, 3))
    for kind in ("zip", "tar"):
        path = write(tmp_path, kind, {"a/../../0.png": data})
        with pytest.raises(UserError, match="outside the archive"):
            load(f"folder:{path}", "train")
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        entry = tarfile.TarInfo("a/0.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    link = zipfile.ZipInfo("a/0.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    for kind in ("zip", "tar"):
        with pytest.raises(UserError, match=r"a/0.png' is a link"):
            load(f"folder:{tmp_path / f'link.{kind}'}", "train")
    for kind in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / f"a.tar.{kind}", f"w:{kind}") as archive:
            archive.add(__file__, "a/0.png")
        with pytest.raises(UserError, match=rf"a.tar.{kind}: a compressed tar .*tar -xf a.tar.{kind}"):
            load(f"folder:{tmp_path / f'a.tar.{kind}'}", "train")
    path = write(tmp_path, "zip", {"a/0.png": data})
    spoilt = bytearray(path.read_bytes())
    spoilt[60] ^= 255
    path.write_bytes(spoilt)
    with pytest.raises(UserError, match=r"data.zip/a/0.png: damaged"):
        load(f"folder:{path}", "train")[0]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="data.zip"):
        load(f"folder:{path}", "train")


def turned(pixels: np.ndarray, orientation: int) -> bytes:
    exif = pillow.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, "JPEG", exif=exif, quality=95)


def test_kinds_of_images_that_are_read_as_they_look():
    pixels = np.zeros((8, 4, 3), np.uint8)
    pixels[:4] = (200, 100, 40)
    image = pillow.fromarray(pixels)
    for mode, kind in (("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "WEBP"), ("RGB", "BMP")):
        file = io.BytesIO()
        (image.quantize(4) if mode == "P" else image.convert(mode)).save(
            file, kind, **({"lossless": True} if kind == "WEBP" else {})
        )
        out = decode_image(file.getvalue(), mode, 3)
        np.testing.assert_allclose(out.astype(int), pixels, atol=12, err_msg=mode)
    pixels[:, 2:] //= 2
    for orientation in range(1, 9):
        data = turned(pixels, orientation)
        theirs = np.asarray(ImageOps.exif_transpose(pillow.open(io.BytesIO(data)))).astype(int)
        np.testing.assert_allclose(decode_image(data, "exif", 3), theirs, atol=8, err_msg=str(orientation))
    clear = np.dstack([pixels, np.zeros((8, 4), np.uint8)])
    assert not decode_image(encoded(clear), "clear", 3).any()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"hello", "not an image of a known format"),
        (encoded(np.zeros((64, 64, 3), np.uint8) + 7, "JPEG")[:300], "JPEG that cannot be decoded"),
        (encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))[:2000], "not an image"),
        (encoded(np.zeros((4, 4), np.uint16)), "8 bits per channel"),
        (encoded(np.zeros((12000, 12000), bool)), "12000x12000 pixels"),
    ],
)
def test_kinds_of_images_that_are_refused_by_name(data, words):
    with pytest.raises(BadImage, match=f"x.png: .*{words}"):
        decode_image(data, "x.png", 3)


def test_an_animation_is_refused():
    frames = [pillow.fromarray(np.full((4, 4), level, np.uint8)) for level in (0, 99)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImage, match="2 frames"):
        decode_image(file.getvalue(), "x.gif", 3)


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same():
    row, column = np.mgrid[0:300, 0:400]
    pixels = np.stack([row / 2, column / 2, (row + column) / 4], -1).astype(np.uint8)
    small = decode_image(encoded(pixels, "JPEG", quality=95), "big", 3, fast(32)).astype(int)
    reference = pillow.fromarray(pixels[:, 50:350]).resize((32, 32), pillow.Resampling.BOX)
    np.testing.assert_allclose(small, np.asarray(reference).astype(int), atol=5)


@pytest.mark.skipif(decode._kernel() is None, reason="the kernel was not built; Pillow does its work")
def test_the_resizing_kernel_gives_pillows_bytes(monkeypatch):
    shapes = (
        (375, 500, 3),
        (500, 512, 3),
        (500, 375, 3),
        (256, 400, 3),
        (90, 91, 1),
        (17, 300, 3),
        (1, 7, 3),
        (2, 2, 1),
    )
    cases = [(RNG.integers(0, 256, shape, dtype=np.uint8), size) for shape in shapes for size in (256, 31, 1)]
    ours = [decode.middle_square(image, size) for image, size in cases]
    flipped = decode.middle_square(cases[0][0][:, ::-1], 64)  # strides that the kernel does not know
    monkeypatch.setattr(decode, "_kernel", lambda: None)
    for (image, size), found in zip(cases, ours, strict=True):
        np.testing.assert_array_equal(found, decode.middle_square(image, size))
    np.testing.assert_array_equal(flipped, decode.middle_square(cases[0][0][:, ::-1], 64))


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("memory", [True, False])
def test_batches_name_the_place_of_an_image_after_one_that_was_left_out(memory, seed, tmp_path):
    files = pictures(12)
    files["a/0.png"], files["b/5.png"] = b"", files["b/5.png"][:50]
    source = load(f"folder:{write(tmp_path, 'folder', files)}", "train")
    batches = make_batches(to_memory(source, max_bad=2) if memory else source, 5, seed=seed, max_bad=2)
    for step in range(batches.steps_per_epoch):
        batch = {name: np.asarray(array) for name, array in next(batches).items()}
        real = batch["mask"] > 0
        assert set(batch["index"][real].tolist()) <= set(batches.indices(step))
        for place, image in zip(batch["index"][real], batch["image"][real], strict=True):
            np.testing.assert_array_equal(source[int(place)]["image"], image)


@pytest.mark.parametrize("memory", [True, False])
def test_a_class_without_a_readable_image_is_named(memory, tmp_path):
    files = pictures(12)
    files |= {name: b"" for name in files if name.startswith("a/")} | {next(reversed(files)): b""}
    source = load(f"folder:{write(tmp_path, 'folder', files)}", "train", size=4)
    batches = make_batches(to_memory(source, max_bad=7) if memory else source, 5, seed=0, max_bad=7)
    list(batches.one_epoch())
    assert len(batches.skipped) == 7
    assert batches.lost == "no readable image of class a is left in train"


def test_bad_images_are_counted_and_left_out_up_to_a_limit(tmp_path):
    files = pictures(12)
    files["a/0.png"], files["b/5.png"] = b"", files["b/5.png"][:50]
    source = load(f"folder:{write(tmp_path, 'zip', files)}", "train")
    leave_out = "replace or remove it, or train with on_bad_image=skip"
    with pytest.raises(BadImage, match=rf"a/0.png: an empty file.*; {leave_out}"):
        to_memory(source)
    kept = to_memory(source, max_bad=2)
    assert len(kept) == 10 and len(kept.skipped) == 2 and "b/5.png" in kept.skipped[1]
    with pytest.raises(UserError, match="more than 1 images cannot be read, the first"):
        to_memory(source, max_bad=1)
    batches = StreamBatches(source, 5, seed=0, max_bad=2)
    masks = np.concatenate([np.asarray(next(batches)["mask"]) for _ in range(6)])  # two epochs
    assert masks.sum() == 20 and sorted(batches.skipped) == sorted(kept.skipped)
    for batch in StreamBatches(source, 5, seed=0, max_bad=2).one_epoch():  # which mixup pairs within
        rows = list(zip(np.asarray(batch["image"]), np.asarray(batch["label"]), strict=True))
        served = {image.tobytes(): label for image, label in zip(kept.images, kept.labels, strict=True)}
        assert all(served[image.tobytes()] == label for image, label in rows)
    with pytest.raises(UserError, match="more than 1 images"):
        list(StreamBatches(source, 5, seed=0, max_bad=1).one_epoch())
    with pytest.raises(BadImage, match=rf"png.*; {leave_out}"):
        list(StreamBatches(source, 5, seed=0).one_epoch())


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_prepared_records_hold_the_images_labels_classes_and_statistics(tmp_path, encoding):
    path = write(tmp_path, "zip", {f"{s}/{n}": d for s in ("train", "test") for n, d in pictures(10).items()})
    sources = {split: load(f"folder:{path}", split, size=16) for split in ("train", "test")}
    prepare.prepare(sources, tmp_path / "out", encoding=encoding, shard_examples=4)
    found = load(f"records:{tmp_path / 'out'}", "train")
    assert len(list((tmp_path / "out").glob("train-*.array_record"))) == 3
    assert found.class_names == ("a", "b") and found.image_shape == (16, 16, 3)
    expected, again = to_memory(sources["train"]), to_memory(pickle.loads(pickle.dumps(found)))
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(again.labels, expected.labels)
    facts = records.statistics(tmp_path / "out")
    for recorded, measured in zip(facts, channel_statistics(expected), strict=True):
        np.testing.assert_allclose(recorded, measured, atol=1e-6)
    if encoding == "raw":
        np.testing.assert_array_equal(again.images, expected.images)
    else:
        assert np.abs(again.images.astype(int) - expected.images).mean() < 8


@pytest.fixture
def few_files():
    """A soft limit of open files that is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux does")
@pytest.mark.parametrize("form", ["records", "tar"])
def test_more_shards_than_files_may_be_open(tmp_path, few_files, form, monkeypatch):
    images = RNG.integers(0, 256, (60, 8, 8, 3), np.uint8)
    out = tmp_path / "out"
    if form == "records":
        source = ArraySource(images, np.arange(60, dtype=np.int32) % 2, ("a", "b"), "x", "train")
        prepare.prepare({"train": source}, out, shard_examples=1)
    else:
        out.mkdir()
        for number, image in enumerate(images):
            files = {f"{number}.png": encoded(image), f"{number}.cls": b"%d" % (number % 2)}
            write(out, "tar", files).rename(out / f"{number:03d}.tar")
    found = to_memory(load(f"{form}:{out}", "train"))
    np.testing.assert_array_equal(found.images, images)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (50, 50))
    allowed = "60 files are read at once, this process may open 50; raise its limit to 124 or more"
    with pytest.raises(UserError, match=allowed):
        load(f"{form}:{out}", "train")


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_record_that_is_damaged_while_it_is_read_is_named(tmp_path, encoding):
    images = RNG.integers(0, 256, (41, 64, 64, 3), np.uint8)
    source = ArraySource(images, np.arange(41, dtype=np.int32) % 2, ("a", "b"), "x", "train")
    prepare.prepare({"train": source}, tmp_path / "out", encoding=encoding)
    found = load(f"records:{tmp_path / 'out'}", "train")
    assert found[0]["label"] == 0  # it is open
    (shard,) = (tmp_path / "out").glob("*.array_record")
    data = bytearray(shard.read_bytes())
    data = data[: len(data) // 2] + bytes(40) + data[len(data) // 2 + 40 :]
    shard.write_bytes(data)
    kept = to_memory(found, max_bad=2)
    assert kept.skipped and all("prepare it again" in message for message in kept.skipped)
    assert all("array_record record 2" in message for message in kept.skipped)  # 20 is in the middle
    assert len(kept) + len(kept.skipped) == 41


@pytest.mark.parametrize("channels", [2, 4])
def test_jpeg_records_of_two_or_four_channels_are_refused_before_a_file_is_written(channels, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, channels), np.uint8)
    sources = {"train": ArraySource(images, np.array([0, 1, 0, 1]), ("a", "b"), "mine", "train")}
    with pytest.raises(UserError, match=f"images have {channels} channels and JPEG has 1 or 3"):
        prepare.prepare(sources, tmp_path / "out", encoding="jpeg")
    assert not (tmp_path / "out").exists()
    prepare.prepare(sources, tmp_path / "out")
    assert load(f"records:{tmp_path / 'out'}", "train")[1]["image"].shape == (8, 8, channels)


def test_a_preparation_of_splits_that_differ_is_refused(tmp_path):
    """What is recorded of train would not hold for the others."""
    train = ArraySource(np.zeros((2, 4, 4, 3), np.uint8), np.arange(2), ("a", "b"), "x", "train")
    others = {
        "x: images of different shapes: train 4x4x3, test 4x4x1": {
            "images": np.zeros((2, 4, 4, 1), np.uint8)
        },
        "test has classes b, a; allowed: those of train, a, b": {"class_names": ("b", "a")},
    }
    for words, change in others.items():
        test = dataclasses.replace(train, split="test", **change)
        with pytest.raises(UserError, match=words):
            prepare.prepare({"train": train, "test": test}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_preparation_that_was_stopped_goes_on_and_another_is_refused(tmp_path):
    sources = {"train": load(f"folder:{write(tmp_path, 'zip', pictures(10))}", "train")}
    out = tmp_path / "out"
    out.mkdir()
    (out / ".cnnjax-part-x1y2-plan.json").write_bytes(b"ha")  # a kill while the plan was written
    prepare.prepare(sources, out, shard_examples=4)
    whole = {p.name: p.read_bytes() for p in out.iterdir()}
    times = (out / "train-00000.array_record").stat().st_mtime_ns
    for name in ("dataset.json", "train-00001.json", "train-00002.array_record"):
        (out / name).unlink()  # as a kill would leave it
    (out / ".cnnjax-part-x1y2-train-00002.array_record").write_bytes(b"half")
    with pytest.raises(UserError, match=r"dataset.json: cannot be read"):
        load(f"records:{out}", "train")
    prepare.prepare(sources, out, shard_examples=4)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == whole
    assert (out / "train-00000.array_record").stat().st_mtime_ns == times
    with pytest.raises(UserError, match="images of other data or settings"):
        prepare.prepare(sources, out, shard_examples=5)
    before = load(f"records:{out}", "train").fingerprint
    facts = json.loads((out / "dataset.json").read_text())
    facts["splits"]["train"][0]["labels"][0] = 1
    (out / "dataset.json").write_text(json.dumps(facts))
    assert load(f"records:{out}", "train").fingerprint != before
    (out / "train-00001.array_record").write_bytes(b"short")
    with pytest.raises(UserError, match=r"train-00001.array_record: 5 bytes"):
        load(f"records:{out}", "train")


def test_a_preparation_that_met_a_bad_image_goes_on_without_it(tmp_path, capsys):
    """The flag that leaves it out was neither named nor taken, so all shards before it were lost."""
    files = pictures(10)
    bad = sorted(files)[-1]
    files[bad] = b"x"
    words = [
        "data",
        "prepare",
        f"folder:{write(tmp_path, 'zip', files)}",
        f"--out={tmp_path / 'out'}",
        "--short_side=8",
    ]
    assert main.run(words) == 2
    assert capsys.readouterr().err.endswith("; replace or remove it, or prepare with --on_bad_image=skip\n")
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert main.run([*words, "--on_bad_image=skip"]) == 0
    assert "train: 9 images, 1 skipped" in capsys.readouterr().out
    assert main.run([*words, "--on_bad_image=skip"]) == 0
    assert main.run(words) == 2  # what is there lacks an image that would now be an error
    assert "images of other data or settings" in capsys.readouterr().err


def test_shards_from_before_a_bad_image_are_kept(tmp_path):
    files = pictures(10)
    source = load(f"folder:{write(tmp_path, 'zip', files)}", "train")
    prepare.prepare({"train": source}, out := tmp_path / "out", shard_examples=4)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    prepare.prepare({"train": source}, out, shard_examples=4, on_bad_image="skip")
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")} == times


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared archives")
def test_the_real_archives():
    cifar = load(f"folder:{SHARED}/cifar10-images.zip", "train")
    assert len(cifar) == 50_000 and cifar.class_names[3] == "cat" and cifar.image_shape == (32, 32, 3)
    samples = load(f"folder:{SHARED}/imagenet-samples.zip", "train", size=64)
    assert len(samples) == 200 and samples.class_names[0] == "n01440764"
    assert samples[199]["image"].shape == (64, 64, 3)


def test_alexnets_recipe_is_checked_on_a_prepared_archive(tmp_path, capsys):
    from cnnjax.cli import main
    from cnnjax.runs import config_files, experiment
    from cnnjax.runs.inputs import load_split

    files = {f"{s}/{n}": d for s in ("train", "val") for n, d in pictures(6).items()}
    path = write(tmp_path, "zip", files)
    out = f"--out={tmp_path / 'out'}"
    assert main.run(["data", "prepare", f"folder:{path}", out, "--short_side=240"]) == 0
    assert "train: 6 images, 0 skipped" in capsys.readouterr().out
    recipe = config_files.from_file(str(ROOT / "configs/imagenet_alexnet.py"))
    recipe.data.name = f"records:{tmp_path / 'out'}"
    with pytest.raises(UserError, match="num_validation=10000.* 1 to 4"):
        experiment.build(recipe)
    recipe.data.num_validation = 2
    built = experiment.build(recipe)
    assert len(built.train_source) == 4 and len(load_split(recipe, "validation")) == 2
    assert built.augment.output_shape == (227, 227, 3) and built.model.num_classes == 2
    assert len(load_split(recipe, "test")) == 6
    assert main.run(["data", "prepare", f"folder:{path}"]) == 2
