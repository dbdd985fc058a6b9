"""Numbers that do not fit, archives cut short and files that swell: one line, whatever the format."""

import io
import itertools
import json
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cnnjax.cli import main
from cnnjax.data import prepare, statistics
from cnnjax.data.datasets import load
from cnnjax.data.sources import archive, cifar
from cnnjax.data.sources import parquet as parquet_source
from cnnjax.data.sources.classes import with_classes
from cnnjax.data.sources.source import ArraySource, FileSource, Source, to_memory
from cnnjax.errors import BadImage, UserError
from tests.data import test_datasets, test_parquet
from tests.data.test_sources import encoded, pictures, write

ANY_LABEL = {"too large": 2**33 + 1, "in 31 bits": 2**31 - 1, "negative": -1}
NO_INTEGER = {"a fraction": 0.5, "nan": np.nan, "infinite": np.inf}
PICTURE = encoded(np.zeros((6, 5, 3), np.uint8))


def npz(folder: Path, values: list) -> Source:
    file = folder / "x.npz"
    images = np.zeros((len(values), 6, 5, 3), np.uint8)
    np.savez(file, train_image=images, train_label=np.asarray(values))
    return load(f"npz:{file}", "train")


def hub(folder: Path, values: list, features: dict | None = None) -> Source:
    cells = pyarrow.array([{"bytes": PICTURE, "path": None}] * len(values), test_parquet.TYPES["image"])
    table = pyarrow.Table.from_arrays([cells, pyarrow.array(values)], ["image", "label"])
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, folder / "train.parquet")
    return load(f"parquet:{folder}", "train")


def prepared(folder: Path) -> tuple[dict[str, Source], Path]:
    files = {f"train/{name}": data for name, data in pictures(10).items()}
    sources = {"train": load(f"folder:{write(folder, 'zip', files)}", "train", size=4)}
    prepare.prepare(sources, folder / "out", shard_examples=4)
    return sources, folder / "out"


def records(folder: Path, values: list) -> Source:
    _, out = prepared(folder)
    facts = json.loads((out / "dataset.json").read_text())
    facts["splits"]["train"][0]["labels"][: len(values)] = values
    (out / "dataset.json").write_text(json.dumps(facts))
    return to_memory(load(f"records:{out}", "train"))


def arrays(folder: Path, values: list) -> Source:
    return ArraySource(
        np.zeros((len(values), 6, 5, 3), np.uint8), np.asarray(values), ("a", "b"), "x", "train"
    )


def tfds(folder: Path, values: list) -> Source:
    test_datasets.write_prepared(folder, "pets", {"train": np.zeros((3, 4, 4, 3), np.uint8)}, ["a", "b", "c"])
    labels = folder / "pets/1.0.0/label.labels.txt"
    labels.write_text("a\nb\n")  # the third record has a label without a name
    return to_memory(load("tfds:pets", "train", data_dir=folder))


@pytest.mark.parametrize("door", [npz, hub, records, arrays])
@pytest.mark.parametrize("kind", [*ANY_LABEL, *NO_INTEGER])
def test_a_label_that_is_none_is_refused_by_name(tmp_path, door, kind):
    label = {**ANY_LABEL, **NO_INTEGER}[kind]
    if door is hub and kind in NO_INTEGER:
        pytest.skip("a column of floats is no column of labels")
    with pytest.raises(UserError) as error:
        door(tmp_path, [0, label])
    text = str(error.value)
    assert "\n" not in text and "allowed" in text
    assert str(label)[:7] in text or (door is records and kind in ("nan", "infinite"))


@pytest.mark.parametrize("door", [npz, hub, arrays])
def test_a_label_of_64_bits_without_a_sign_is_refused(tmp_path, door):
    with pytest.raises(UserError, match="label 9223372036854775809 of example 1 is out of range"):
        door(tmp_path, np.array([0, 2**63 + 1], np.uint64))


@pytest.mark.parametrize("door", [npz, arrays])
def test_whole_numbers_of_any_type_are_labels(tmp_path, door):
    for values in ([0, 1], [0.0, 1.0], [False, True], np.array([0, 1], np.uint64)):
        source = door(tmp_path, values)
        assert source.labels.dtype.kind in "iu" and [source[i]["label"] for i in range(2)] == [0, 1]


def test_a_label_without_a_name_is_refused_as_it_is_read(tmp_path):
    with pytest.raises(UserError, match=r"record 2: label 2 is out of range; allowed: 0 to 1"):
        tfds(tmp_path, [])


@pytest.mark.parametrize("label", [-1, 2, 2**31])
@pytest.mark.parametrize("names", [("a", "b"), ("x", "b", "a"), ("b", "a", "x", "y")])
def test_a_label_without_a_name_is_no_class_of_a_network_either(label, names):
    """Labels of TFDS are known as they are read: first they are checked, then taken to another's classes."""
    labels, image = [0, label, 1], np.zeros((4, 4, 3), np.uint8)
    facts = "", None, ("a", "b"), "pets", "test", image.shape
    own = FileSource(lambda i, _: (image, labels[i], f"record {i}"), 3, np.arange(3), *facts)
    source = with_classes(own, names)
    assert [source.class_names[source[i]["label"]] for i in (0, 2)] == ["a", "b"]
    words = f"record 1: label {label} is out of range; allowed: 0 to 1"
    with pytest.raises(BadImage, match=words):
        source[1]
    assert statistics.inspect({"test": own})["test"].unreadable == [words]


def test_class_names_of_bytes_are_text(tmp_path):
    names = {"class_names": np.array([b"cat"])}
    np.savez(tmp_path / "x.npz", train_image=np.zeros((1, 4, 4), np.uint8), train_label=[0], **names)
    assert load(f"npz:{tmp_path / 'x.npz'}", "train").class_names == ("cat",)
    for wrong in ("cat", 5, {"a": 0}):
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": wrong}}
        with pytest.raises(UserError, match=r"train\.parquet: class names .*; allowed: a list"):
            hub(tmp_path, [0, 0], features)


def archives(folder: Path) -> dict[str, bytes]:
    files = {f"{name}": data for name, data in pictures(6).items()}
    found = {kind: write(folder, kind, files).read_bytes() for kind in ("zip", "tar")}
    for name, form in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=form) as opened:
            opened.add(folder / "data.zip", "readme")
            for each, content in files.items():
                entry = tarfile.TarInfo(each)
                entry.size, entry.mtime = len(content), 1.5
                opened.addfile(entry, io.BytesIO(content))
        found[name] = data.getvalue()
    return found


@pytest.mark.parametrize("kind", ["zip", "tar", "pax", "gnu"])
def test_an_archive_cut_anywhere_is_refused(tmp_path, kind):
    whole = archives(tmp_path)[kind]
    file = tmp_path / "cut"
    end = len(whole.rstrip(b"\0")) if kind != "zip" else len(whole)
    for cut in itertools.chain(range(0, end, 97), range(0, end, 512)):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError) as error:
            load(f"folder:{file}", "train")
        assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
    file.write_bytes(whole)
    assert len(load(f"folder:{file}", "train")) == 6


TAILS = {"zeros": bytes(2**21), "files": b"", "bytes": bytes(1024) + b"x"}  # "files" are those of another


@pytest.mark.parametrize("kind", ["zip", "tar", "pax", "gnu"])
@pytest.mark.parametrize("tail", TAILS)
def test_images_after_the_end_of_an_archive_are_not_lost_in_silence(tmp_path, kind, tail):
    """A download into a file of full size that was interrupted, and two archives joined by `cat`."""
    whole, file = archives(tmp_path)[kind], tmp_path / "joined"
    file.write_bytes(whole + (TAILS[tail] or whole))
    if kind == "zip" and tail == "bytes":
        assert len(load(f"folder:{file}", "train")) == 6  # its directory, found from the end, is whole
        return
    with pytest.raises(UserError, match=r"joined: (its files end at byte|cannot be read as zip)"):
        load(f"folder:{file}", "train")
    file.write_bytes(whole + bytes(2**19) * (kind != "zip"))  # as tar --blocking-factor=1024 fills it up
    assert len(load(f"folder:{file}", "train")) == 6


@pytest.mark.parametrize("kind", ["zip", "tar", "pax"])
def test_a_damaged_archive_gives_all_images_or_one_line(tmp_path, kind):
    whole, draw, refused = archives(tmp_path)[kind], np.random.default_rng(0), 0
    start = whole.index(b"PK\1\2") if kind == "zip" else 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.integers(1, 4)):
            data[draw.integers(start, len(data))] = draw.choice([0, 128, 255])
        (tmp_path / "x").write_bytes(data)
        try:
            to_memory(load(f"folder:{tmp_path / 'x'}", "train"))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


def test_a_damaged_name_in_a_zip_loses_and_moves_no_image_silently(tmp_path):
    """The directory at its end says what there is, but each member has its name at its own place too."""
    whole, file = archives(tmp_path)["zip"], tmp_path / "x.zip"
    at, name = whole.rindex(b"a/2.png"), b"a/2.png"
    names = {name[:i] + bytes([value]) + name[i + 1 :] for i in range(7) for value in b"\0./\\b1\xff"}
    names |= {b".a2.png", b"a/.2png", b"b/2.png", b"a/1.png", b"thumbs.", b"@eaDir/"}
    for damaged in sorted(names - {name}):
        file.write_bytes(whole[:at] + damaged + whole[at + 7 :])
        try:
            source = load(f"folder:{file}", "train")
            to_memory(source)
        except UserError as error:
            assert "\n" not in str(error) and "x.zip" in str(error), damaged
        else:
            assert "left out: " in str(source.notes), (damaged, source.notes)


def lying_zip(stored: int, size: int, name: bytes = b"a/0.png") -> bytes:
    """A zip of one deflated member of 10 bytes that claims other sizes, in its directory alone."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a/0.png", bytes(10))
    whole = bytearray(data.getvalue())
    at = whole.index(b"PK\1\2")
    whole[at + 20 : at + 28] = struct.pack("<II", stored, size)
    whole[at + 46 : at + 53] = name
    return bytes(whole)


@pytest.mark.parametrize(
    ("stored", "size", "words"),
    [(2**32 - 2, 10, "reaches beyond"), (12, 2**32 - 2, "allowed: at most"), (12, 5, "damaged"), (3, 10, "")],
)
def test_a_zip_that_claims_other_sizes_is_refused_before_they_are_read(tmp_path, stored, size, words):
    (tmp_path / "x.zip").write_bytes(lying_zip(stored, size))
    with pytest.raises(UserError, match=rf"x\.zip.*{words}"):
        load(f"folder:{tmp_path / 'x.zip'}", "train")[0]


def test_a_large_file_that_is_no_image_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_IMAGE_BYTES", 2**16)
    files = {**pictures(4), "notes.txt": bytes(2**17), "a/large.png": bytes(2**17)}
    for kind in ("folder", "zip", "tar"):
        source = load(f"folder:{write(tmp_path, kind, files)}", "train")
        with pytest.raises(UserError, match=r"a/large\.png"):
            to_memory(source)
        assert len(source) == 5 and source[0]["label"] == 0


def test_a_shard_cut_after_it_was_written_is_told_and_written_again(tmp_path):
    sources, out = prepared(tmp_path)
    shard, whole = out / "train-00001.array_record", (out / "train-00001.array_record").read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train-00001.array_record: 65536 bytes; allowed: 131072"):
        load(f"records:{out}", "train")
    (out / "train-00002.json").write_text("{")
    prepare.prepare(sources, out, shard_examples=4)
    assert shard.read_bytes() == whole
    np.testing.assert_array_equal(
        to_memory(load(f"records:{out}", "train")).images, to_memory(sources["train"]).images
    )


def shard_of(facts: dict) -> dict:
    return facts["splits"]["train"][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: shard_of(facts)["labels"].pop(),
        lambda facts: shard_of(facts)["labels"].append(0),
        lambda facts: shard_of(facts)["labels"].__setitem__(0, 1),
        lambda facts: shard_of(facts).pop("sha256"),
        lambda facts: shard_of(facts).update(file="/etc/passwd"),
        lambda facts: shard_of(facts).update(file=4),
        lambda facts: facts["splits"].update(train=[4]),
        lambda facts: facts.update(splits=[]),
        lambda facts: facts.update(class_names="ab"),
        lambda facts: facts.update(encoding=[]),
        lambda facts: facts.update(image_shape=[2**40, 2**40, 3]),
        lambda facts: facts.update(image_shape=[4, 4]),
        lambda facts: facts.update(image_shape=[4, 4, 1]),
        lambda facts: facts.update(mean=[0.5, float("nan"), 0.5]),
        lambda facts: facts.update(std=[0.5]),
    ],
)
def test_facts_that_are_others_than_the_records_are_told(tmp_path, change):
    _, out = prepared(tmp_path)
    facts = json.loads((out / "dataset.json").read_text())
    change(facts)
    (out / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError) as error:
        to_memory(load(f"records:{out}", "train"))
    assert str(out) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("nested", ["[", '{"a":'])
def test_facts_nested_without_end(tmp_path, nested):
    (tmp_path / "dataset.json").write_text(nested * 100_000)
    with pytest.raises(UserError, match=r"dataset\.json"):
        load(f"records:{tmp_path}", "train")


def test_parquet_that_swells_or_is_empty_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no split with labels; train has no images"):
        hub(tmp_path, np.zeros(0, np.int64))
    cells = pyarrow.array([{"bytes": bytes(2**19), "path": None}] * 400, test_parquet.TYPES["image"])
    table = pyarrow.Table.from_arrays([cells, pyarrow.array([0] * 400)], ["image", "label"])
    parquet.write_table(table, tmp_path / "train.parquet")
    assert (tmp_path / "train.parquet").stat().st_size < 2**16
    monkeypatch.setattr(parquet_source, "MAX_GROUP_BYTES", 2**24)
    with pytest.raises(UserError, match="row group 0 unpacks to more than 16777216 bytes"):
        load(f"parquet:{tmp_path}", "train")
    monkeypatch.setattr(archive, "ALWAYS_BYTES", 2**8)
    monkeypatch.setattr(archive, "MAX_RATIO", 0)
    with pytest.raises(UserError, match="it claims 400 rows"):
        load(f"parquet:{tmp_path}", "train")


def test_a_damaged_parquet_file_gives_all_images_or_one_line(tmp_path):
    hub(tmp_path, [0, 1, 2, 0, 1, 2])
    whole, draw = (tmp_path / "train.parquet").read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.integers(1, 4)):
            data[draw.integers(max(0, len(data) - 1500), len(data))] = draw.choice([0, 128, 214, 255])
        (tmp_path / "train.parquet").write_bytes(data)
        try:
            assert len(to_memory(load(f"parquet:{tmp_path}", "train"))) == 6
        except UserError as error:
            assert "\n" not in str(error)


def npy(shape: str) -> bytes:
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(64)


@pytest.mark.parametrize(
    "shape", ["(30000000000, 1, 1, 1)", "(2**70,)", f"({2**70},)", "(0, -1)", "(1.0,)", "4"]
)
def test_an_npz_whose_array_claims_another_size_is_refused(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as opened:
        opened.writestr("train_image.npy", npy(shape))
        opened.writestr("train_label.npy", npy("(64,)"))
    with pytest.raises(UserError, match=r"x\.npz: cannot be read as npz without pickle"):
        load(f"npz:{tmp_path / 'x.npz'}", "train")


def test_cifars_labels_are_checked(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(UserError, match="a.bin: label 10 of example 0"):
        cifar.read_cifar(tmp_path, ("a.bin",), 1, 10)


def test_what_tfds_has_prepared_is_whole_or_told(tmp_path):
    test_datasets.write_prepared(tmp_path, "pets", {"train": np.zeros((7, 6, 5, 3), np.uint8)}, ["a", "b"])
    folder = tmp_path / "pets/1.0.0"
    files = {path: path.read_bytes() for path in folder.iterdir()}
    shard = next(path for path in files if "array_record" in path.name)
    info = folder / "dataset_info.json"
    spoilt = bytearray(files[shard])
    spoilt[200] ^= 255  # within the records
    changes = [(shard, files[shard][:cut]) for cut in (0, 100, 2**16, len(files[shard]) - 10)]
    changes += [(shard, bytes(spoilt)), (folder / "features.json", files[folder / "features.json"][:200])]
    for length in ('["3"]', '["9"]', '["-1"]', f'["{10**20}"]', "[]"):
        changes.append((info, files[info].replace(b'["7"]', length.encode())))
    for path, data in changes:
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            to_memory(load("tfds:pets", "train", data_dir=tmp_path))
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
        path.write_bytes(files[path])
    assert len(to_memory(load("tfds:pets", "train", data_dir=tmp_path))) == 7


def test_a_disk_that_is_full_while_images_are_prepared_is_told(tmp_path, capsys):
    file = tmp_path / "x.npz"
    np.savez(file, train_image=np.zeros((8, 64, 64, 3), np.uint8), train_label=np.arange(8) % 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        code = main.run(["data", "prepare", f"npz:{file}", f"--out={tmp_path / 'out'}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    shard = tmp_path / "out" / "train-00000.array_record"
    assert code == 1 and f"{shard} cannot be written or read: File too large\n" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]
