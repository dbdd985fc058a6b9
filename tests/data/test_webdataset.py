"""WebDataset: tars of images beside their labels, read at random; what is no such tar is refused by name."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.cli import main
from cnnjax.data.datasets import load, official_splits
from cnnjax.data.sources.source import to_memory
from cnnjax.errors import BadImage, UserError


def image(level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), level, np.uint8)).save(file, kind)
    return file.getvalue()


def write(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of files in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def samples(start: int, stop: int, label: str = "cls") -> dict[str, bytes]:
    """Image i of class i % 3 has pixels of 10 i."""
    files = {}
    for i in range(start, stop):
        text = str(i % 3) if label == "cls" else json.dumps({"label": i % 3, "caption": "x"})
        files |= {f"{i:06}.png": image(10 * i), f"{i:06}.{label}": text.encode(), f"{i:06}.txt": b"words"}
    return files


@pytest.mark.parametrize("label", ["cls", "json"])
def test_samples_of_all_tars_are_read_at_random(tmp_path, label):
    write(tmp_path / "000000.tar", samples(0, 5, label))
    write(tmp_path / "000001.tar", {"._000005.png": b"of a Mac", **samples(5, 9, label)})
    (tmp_path / "classnames.txt").write_text("cat\ndog\nox\n")
    source = load(f"tar:{tmp_path}", "train")
    assert len(source) == 9 and source.class_names == ("cat", "dog", "ox") and source.image_shape == (6, 8, 3)
    assert source.labels.tolist() == [i % 3 for i in range(9)]
    again = to_memory(pickle.loads(pickle.dumps(source)))  # as a process that reads gets it
    assert again.images[:, 0, 0, 0].tolist() == [10 * i for i in range(9)]
    assert again.labels.tolist() == source.labels.tolist()
    assert source[7]["image"][0, 0, 0] == 70 and source[2]["image"][0, 0, 0] == 20
    assert load(f"tar:{tmp_path}", "train", size=4)[8]["image"].shape == (4, 4, 3)
    assert len(load(f"tar:{tmp_path}/000001.tar", "train")) == 4
    before = source.fingerprint
    write(tmp_path / "000001.tar", samples(5, 8, label))
    assert load(f"tar:{tmp_path}", "train").fingerprint != before


def test_splits_are_those_of_the_names(tmp_path):
    write(tmp_path / "flowers-train-0000.tar", samples(0, 6))
    write(tmp_path / "val" / "0000.tar", samples(6, 9))
    write(tmp_path / "test" / "0000.tar", {"0.png": image(1), "1.png": image(2)})
    assert official_splits(f"tar:{tmp_path}") == ("train", "validation")
    source = load(f"tar:{tmp_path}", "validation")
    assert [source[i]["image"][0, 0, 0] for i in range(3)] == [60, 70, 80]
    assert any("test has no labels: 2 images" in note for note in source.notes)
    write(tmp_path / "0000.tar", samples(0, 6))
    with pytest.raises(UserError, match=r"/0000.tar: its name does not name a split"):
        load(f"tar:{tmp_path}", "train")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"\xef\xbb\xbfcat\r\n dog\r\nox \r\n\r\n", ("cat", "dog", "ox")),
        ("a\u2028\x85x\rb\x0by\r犬".encode(), ("a\u2028\x85x", "b\x0by", "犬")),
        (b"cat\n\ndog\nox\n", "classnames.txt: line 2 is empty; allowed: a class name per line"),
        (b"\ncat\ndog\nox\n", "classnames.txt: line 1 is empty"),
        (b"caf\xe9\ndog\nox\n", "classnames.txt is not UTF-8 .*; save it as UTF-8"),
    ],
)
def test_class_names_are_the_lines_of_a_text_in_utf8(tmp_path, text, names):
    path = write(tmp_path / "0.tar", samples(0, 3))
    (tmp_path / "classnames.txt").write_bytes(text)
    for name in (f"tar:{tmp_path}", f"tar:{path}"):
        if isinstance(names, str):
            with pytest.raises(UserError, match=names):
                load(name, "train")
        else:
            assert load(name, "train").class_names == names


def test_images_with_a_dot_in_their_names_are_told(tmp_path):
    """Also those that belong to a sample, as masks do, and those of another label; no hidden ones."""
    files = {**samples(0, 3), "._a.b.png": b"of a Mac", "x.y.txt": b"words"}
    write(tmp_path / "0.tar", files)
    assert "dot" not in str(load(f"tar:{tmp_path}", "train").notes)
    files |= {"000003.png": image(1), "000003.cls": b"0", "000003.2.png": image(2), "000003.2.cls": b"1"}
    files |= {"000004.png": image(1), "000004.cls": b"0", "000004.mask.PNG": image(1)}
    write(tmp_path / "0.tar", files)
    source = load(f"tar:{tmp_path}", "train")
    assert len(source) == 5 and source.notes[-1] == "left out: 2 images with a dot in their names"
    for number in range(2):
        dotted = {"v1.2.png": image(1), "v1.2.cls": b"0", "a.b/v1.3.JPEG": image(2)}
        write(tmp_path / f"{number}.tar", files | dotted)
    assert load(f"tar:{tmp_path}", "train").notes[-1] == "left out: 8 images with a dot in their names"
    write(tmp_path / "0.tar", dotted)
    with pytest.raises(UserError, match="left out: 2 images with a dot in their names"):
        load(f"tar:{tmp_path}/0.tar", "train")


@pytest.mark.parametrize("junk", ["._{}", "__MACOSX/._{}", "__MACOSX/{}", "./.{}", "thumbs.db", "./.x/{}"])
@pytest.mark.parametrize("start", ["", "./", "../", "a/b/"])
def test_what_systems_leave_between_the_files_divides_no_sample(tmp_path, junk, start):
    files: dict[str, bytes] = {}
    for name, data in samples(0, 3).items():
        files |= {start + junk.format(name): b"of a Mac", start + name: data}
    source = load(f"tar:{write(tmp_path / '0.tar', files)}", "train")
    assert len(source) == 3 and source.labels.tolist() == [0, 1, 2]
    assert "dot" not in str(source.notes)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a/1.png": image(1), "a/2.png": image(2)}, "train has no labels: 2 images"),
        ({**samples(0, 3), "x.png": image(1)}, r"0.tar/x.png: no label; others of train have"),
        ({"x.png": image(1), "x.jpg": image(1), "x.cls": b"0"}, "sample 'x' has 2 images"),
        ({"x.PNG": image(1), "x.png": image(2), "x.cls": b"0"}, "sample 'x' has 2 images"),
        ({"x.png": image(1), "x.cls": b"0", "x.CLS": b"1"}, "sample 'x' has 2 labels"),
        ({"x.png": image(1), "x.JSON": b"{}", "x.json": b"{}"}, "sample 'x' has 2 labels"),
        ({"x.cls": b"0"}, "sample 'x' has 0 images"),
        ({"x.png": image(1), "x.cls": b"cat"}, r"0.tar/x.cls: label b'cat'; allowed: digits"),
        ({"x.png": image(1), "x.cls": b"-3"}, "label -3 of example 0 is out of range"),
        ({"x.png": image(1), "x.cls": b"9" * 9}, "label 999999999 of example 0 is out of range"),
        ({"x.png": image(1), "x.json": b"{"}, r"0.tar/x.json is damaged"),
        ({"x.png": image(1), "x.json": b'{"label": true}'}, r"x.json: label True; allowed: a whole number"),
        ({"x.png": image(1), "x.json": b" " * 2**21}, r"x.json: 2097152 bytes; allowed: at most"),
        ({"readme.txt": b"x"}, "train has no images"),
    ],
)
def test_what_is_no_sample_is_refused_in_one_line(tmp_path, capsys, files, words):
    path = write(tmp_path / "0.tar", files)
    with pytest.raises(UserError, match=words):
        load(f"tar:{path}", "train")
    assert main.run(["data", "inspect", f"tar:{path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_links_and_damage_are_refused(tmp_path):
    path = write(tmp_path / "0.tar", samples(0, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    with pytest.raises(UserError, match=r"0.tar: truncated"):
        load(f"tar:{path}", "train")
    for tail in (whole, bytes(2**21)):
        path.write_bytes(whole + tail)
        with pytest.raises(
            UserError, match=r"0.tar: its files end at byte \d+ of \d+: truncated, or several"
        ):
            load(f"tar:{path}", "train")
    path.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(UserError, match=r"0.tar: cannot be read as tar .* not compressed"):
        load(f"tar:{path}", "train")
    path.write_bytes(whole)
    source = load(f"tar:{path}", "train")
    path.write_bytes(whole[:600])
    with pytest.raises(BadImage, match=r"0.tar/000002.png: cut short"):
        source[2]
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("000000.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match=r"member '000000.png' is a link"):
        load(f"tar:{path}", "train")
    with pytest.raises(UserError, match=r"no \*.tar; allowed"):
        load(f"tar:{tmp_path / 'missing'}", "train")
