"""`cnnjax data inspect` on images with a copy across splits and a file that cannot be read."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from cnnjax.cli import main
from cnnjax.data import datasets, statistics
from cnnjax.data.sources.source import ArraySource


@pytest.fixture
def folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    arrays = {f"{c}/{i}": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for c in "ab" for i in range(3)}
    arrays["b/1"] = arrays["b/0"]
    for split, names in {"train": list(arrays), "val": ["a/0"]}.items():
        for name in names:
            path = tmp_path / "set" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(arrays[name]).save(path)
    (tmp_path / "set/train/a/bad.png").write_bytes(b"no image")
    return tmp_path / "set", arrays


def test_inspect_finds_counts_colours_copies_and_bad_files(folder):
    root, arrays = folder
    sources = {s: datasets.load(f"folder:{root}", s, size=8) for s in ("train", "validation")}
    found = statistics.inspect(sources)
    colours = found["train"].colours
    assert dict(found["train"].classes) == {0: 3, 1: 3} and found["train"].sizes == {(8, 8): 6}
    assert len(found["train"].copies) == 1 and not found["validation"].copies
    assert len(found["train"].unreadable) == 1 and "a/bad.png" in found["train"].unreadable[0]
    assert statistics.shared(found) == [("train", 0, "validation", 0)]
    pixels = np.concatenate([a.reshape(-1, 3) for a in arrays.values()]) / 255
    np.testing.assert_allclose(colours.mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(colours.std, pixels.std(0), rtol=1e-9)
    values = np.linalg.eigvalsh(np.cov(pixels.T, bias=True))[::-1]
    np.testing.assert_allclose(np.linalg.eigvalsh(colours.covariance)[::-1], values, rtol=1e-6)


def test_moments_of_large_images_take_little_memory_and_are_exact():
    images = np.random.default_rng(0).integers(0, 256, (6, 700, 500, 3), dtype=np.uint8)
    tracemalloc.start()
    found = statistics.moments(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * images.nbytes  # in float64 they would be eight times as large
    values = images.reshape(-1, 3).astype(np.int64)
    assert found.pixels == len(values)
    np.testing.assert_array_equal(found.total, values.sum(0) / 255)
    np.testing.assert_array_equal(found.products, values.T @ values / 255**2)


def test_every_copy_in_another_split_is_counted():
    image = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(1, 4, 4, 3)
    images = {"train": [0, 1, 1, 2], "test": [1, 3, 1, 0]}
    sources = {
        split: ArraySource(
            np.concatenate([image + n for n in each]), np.zeros(4, np.int32), ("a",), "x", split
        )
        for split, each in images.items()
    }
    pairs = statistics.shared(statistics.inspect(sources))
    assert sorted(pairs) == [("train", 0, "test", 3), ("train", 1, "test", 0), ("train", 1, "test", 2)]


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_images_of_two_splits_are_found_at_any_size(tmp_path, form, capsys):
    """Train is decoded faster than the other splits, to pixels that differ a little: not to compare them."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set" / name / f"1.{form}")
    assert main.run(["data", "inspect", f"folder:{tmp_path / 'set'}", "--short_side=8"]) == 0
    assert "images in two splits: 2" in capsys.readouterr().out
    assert main.run(["data", "prepare", f"folder:{tmp_path / 'set'}", f"--out={tmp_path / 'out'}"]) == 0
    assert main.run(["data", "inspect", f"records:{tmp_path / 'out'}"]) == 0
    assert "more cannot be told if `prepare` resized them" in capsys.readouterr().out


def test_the_command_prints_them_and_draws_a_sheet(folder, tmp_path, capsys):
    root, _ = folder
    sheet = tmp_path / "sheet.png"
    assert main.run(["data", "inspect", f"folder:{root}", "--short_side=8", f"--out={sheet}"]) == 0
    printed = capsys.readouterr().out
    assert "bad.png" in printed and "train 0 is validation 0" in printed and "eigenvalues" in printed
    assert sheet.read_bytes().startswith(b"\x89PNG")
    small = sheet.stat().st_size
    flags = ["--short_side=16", "--augment=each", f"--out={sheet}"]
    assert main.run(["data", "inspect", f"folder:{root}", *flags]) == 0
    assert sheet.stat().st_size > 2 * small
    assert main.run(["data", "inspect"]) == 2
    assert main.run(["data", "inspect", f"folder:{root}", f"--out={tmp_path / 'a.txt'}"]) == 2


def test_images_in_two_splits_are_named_so_that_they_can_be_removed(tmp_path, capsys):
    draw = np.random.default_rng(0)
    for number in range(12):
        pixels = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        for split, name in (("train", f"{number}.png"), ("test", f"copy{number}.png")):
            (tmp_path / "set" / split / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "set" / split / "a" / name)
    command = ["data", "inspect", f"folder:{tmp_path / 'set'}"]
    assert main.run(command) == 0
    printed = capsys.readouterr().out
    files = [f"{tmp_path / 'set'}/{name}" for name in ("train/a/0.png", "test/a/copy0.png")]
    assert f"train 0 is test 0: {files[0]} is {files[1]}" in printed
    assert "and 2 more; --json lists all" in printed
    assert main.run([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in facts["in_two_splits"][0]] == files
    assert len(facts["in_two_splits"]) == 12 and facts["splits"]["test"]["classes"] == {"a": 12}
    assert main.run(["data", "--json"]) == 2
    np.savez(
        tmp_path / "x.npz",
        **{
            f"{x}_{y}": np.full(n, 1, np.uint8)
            for x in ("train", "test")
            for y, n in (("image", (2, 4, 4)), ("label", 2))
        },
    )
    assert main.run(["data", "inspect", f"npz:{tmp_path / 'x.npz'}"]) == 0  # arrays have no names
    assert "  train 0 is test 0\n" in capsys.readouterr().out
