"""Files: whole or not there, their checksums, and where caches lie."""

import hashlib
import os
from pathlib import Path

import pytest

from cnnjax.data.files import atomic_write, cache_folder, make_cache_folder, sha256_of


def test_a_file_is_replaced_whole_or_kept(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    atomic_write(file, "old")
    atomic_write(file, b"\xff\x00")
    assert file.read_bytes() == b"\xff\x00"
    assert file.stat().st_mode & 0o777 == 0o644

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(file, "new")
    assert file.read_bytes() == b"\xff\x00"
    assert list(tmp_path.iterdir()) == [file]


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"bytes")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"bytes").hexdigest()


@pytest.mark.parametrize("given", ["", "relative/folder"])
def test_the_cache_lies_at_home_unless_xdg_names_an_absolute_folder(tmp_path, monkeypatch, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache_folder("mnist") == tmp_path / ".cache/cnnjax/mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert make_cache_folder("mnist") == tmp_path / "xdg/cnnjax/mnist"
    assert (tmp_path / "xdg/cnnjax").stat().st_mode & 0o777 == 0o700
    assert Path(tmp_path / "xdg/cnnjax/mnist").is_dir()
