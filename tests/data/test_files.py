"""Files: written whole or not at all, read only if they are what they should be; checksums, caches."""

import hashlib
import os
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pytest

from cnnjax.data import datasets
from cnnjax.data.files import (
    OpenToOthers,
    atomic_write,
    cache_folder,
    check_cache_folder,
    make_cache_folder,
    read_file,
    read_json,
    sha256_of,
)
from cnnjax.errors import UserError, visible


def test_a_file_is_replaced_whole_or_kept(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    atomic_write(file, "old")
    atomic_write(file, b"\xff\x00")
    assert file.read_bytes() == b"\xff\x00"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(file, "new")
    assert file.read_bytes() == b"\xff\x00"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_a_written_file_has_what_the_umask_allows(tmp_path, umask):
    before = os.umask(umask)
    try:
        for content in ("old", "new"):
            atomic_write(tmp_path / "a.json", content)
            assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a system without /proc")
def test_files_that_tell_no_size_are_read_whole_or_refused():
    assert read_file("/proc/self/cmdline") == Path("/proc/self/cmdline").read_bytes() != b""
    with pytest.raises(UserError, match="it has 10 bytes; allowed: at most 9"):
        read_file("/proc/self/cmdline", 9)


def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside.json"
    inside.mkdir()
    outside.write_bytes(b"{}")
    (inside / "file").write_bytes(b"{}")
    os.mkfifo(inside / "pipe")
    targets = {"link": "file", "zero": "/dev/zero", "dangling": "none", "loop": "loop", "out": outside}
    for name, target in targets.items():
        (inside / name).symlink_to(target)
    with open(inside / "sparse", "wb") as file:
        file.truncate(2**30)
    for name in ("file", "link"):
        assert read_file(inside / name, within=inside) == b"{}"
    assert read_file(inside / "out") == b"{}"  # data sets are made of links
    refusals = {
        **{"pipe": "pipe or a device", "zero": "pipe or a device", "dangling": "No such file"},
        **{
            "loop": "symbolic links",
            "out": "a link to outside",
            "sparse": "1,073,741,824 bytes; allowed: at most",
        },
        **{"": "Is a directory", "none": "No such file", "a\0b": "null byte", 300 * "a": "name too long"},
    }
    for name, reason in refusals.items():
        for read in (read_file, read_json):
            with pytest.raises(UserError, match=reason) as error:
                read(inside / name, within=inside)
            assert str(error.value).startswith(f"{visible(inside / name)} cannot be read: ")
    with pytest.raises(UserError, match="has 2 bytes; allowed: at most 1$"):
        read_file(inside / "file", 1)
    with pytest.raises(UserError, match="pipe or a device"):
        sha256_of(inside / "pipe")


class Facts(TypedDict):
    count: int
    scores: NotRequired[list[float]]
    names: NotRequired[dict[str, list[str | None]]]


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("", dict, "Expecting value"),
        ("[]", dict, "it is not a JSON object"),
        ("{} {}", dict, "Extra data"),
        ('{"a": 1, "a": 2}', dict, "a name occurs twice"),
        ('{"a": {"b": 1, "b": 2}}', dict, "a name occurs twice"),
        ("[" * 100_000, list, "recursion"),
        ("[" * 900 + "]" * 900, list, "nested more than 63 deep"),
        ("[[]," * 100 + "0" + "]" * 100, list, "nested more than 63 deep"),
        ('{"a": 9999999999999999999}', dict, "integer 999999999999999999... is too long"),
        ("9" * 10_000, int, "too long"),
        ("{}", Facts, "it lacks count"),
        ('{"count": true}', Facts, "count is True; allowed: an integer"),
        ('{"count": 1.0}', Facts, "count is 1.0; allowed: an integer"),
        ('{"count": "1"}', Facts, "count is '1'; allowed: an integer"),
        ('{"count": 1, "scores": 5}', Facts, "scores is 5; allowed: a list"),
        ('{"count": 1, "scores": [1, 0.5, null]}', Facts, r"scores\[2\] is None; allowed: a number"),
        ('{"count": 1, "names": []}', Facts, r"names is \[\]; allowed: an object"),
        ('{"count": 1, "names": {"a": ["b", 3]}}', Facts, r"names\['a'\]\[1\] is 3; allowed: a text or null"),
        ("[[1], [2, {}]]", list[list[int]], r"it\[1\]\[1\] is {}; allowed: an integer"),
    ],
)
def test_json_of_another_kind_is_refused_in_one_line(tmp_path, text, kind, reason):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        read_json(file, kind)
    assert str(error.value).startswith(f"{file} is damaged: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_of_its_kind_is_read(tmp_path, encoding):
    file = tmp_path / "a.json"
    file.write_bytes(
        '{"count": 1, "scores": [1, NaN], "names": {"ü": ["é", null]}, "x": [{}]}'.encode(encoding)
    )
    facts = read_json(file, Facts)
    assert facts["count"] == 1 and facts["names"] == {"ü": ["é", None]}
    assert facts["scores"][0] == 1 and np.isnan(facts["scores"][1])


def test_json_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"a\.json is damaged: 'utf-8' codec can't decode"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("made", ["open root", "open", "group", "link", "file", "open inside"])
def test_a_cache_that_others_may_change_is_not_used(made, tmp_path, monkeypatch):
    """Neither for counts nor for data sets: what is there is not read, and a download says why."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = make_cache_folder("mnist")
    check_cache_folder("mnist")
    own, root = folder.parent, folder.parent.parent
    for name in datasets.DATASETS["mnist"].archives:
        (folder / name).write_bytes(b"not what it should be")
    if made in ("link", "file"):
        own.rename(tmp_path / "elsewhere")
        own.symlink_to(tmp_path / "elsewhere") if made == "link" else own.write_bytes(b"")
    elif made == "open inside":
        own.chmod(0o755)
        folder.chmod(0o777)
    else:
        {"open root": root, "open": own, "group": own}[made].chmod(0o777 if made != "group" else 0o770)
    with pytest.raises(OpenToOthers, match="xdg.*(chmod|remove)"):
        check_cache_folder("mnist")
    if made != "open inside":
        with pytest.raises(OpenToOthers):
            make_cache_folder("new")
        assert not os.path.lexists(own / "new")
    monkeypatch.setattr(datasets.tfds, "tfds_folders", lambda given: [tmp_path])
    if datasets.find("mnist") is not None:
        assert folder not in datasets.find("mnist")[1].parents
    else:
        with pytest.raises(UserError, match="xdg"):
            datasets.load("mnist", "test")


def test_a_cache_in_a_sticky_folder_and_below_a_closed_one_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = make_cache_folder("mnist")
    assert (folder.stat().st_mode | folder.parent.stat().st_mode) & 0o777 == 0o700
    tmp_path.chmod(0o1777)  # as /tmp is
    folder.chmod(0o775)  # as umask 002 made it; nobody gets there
    assert make_cache_folder("mnist") == folder
