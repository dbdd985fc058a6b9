"""Columns of many files, headers of tars, directories of zips: what the standard library gives for each."""

import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjax.data.sources import zips
from cnnjax.data.sources.members import Member, Members
from cnnjax.data.sources.source import digest
from cnnjax.data.sources.tars import read_entries
from cnnjax.errors import UserError

NAMES = st.text(st.sampled_from(["a", "b", "/", "ä", "猫", "\udcff"]), min_size=1, max_size=4)


@given(rows=st.lists(st.tuples(NAMES, st.integers(0, 2**40), st.none() | st.integers(0, 2**32 - 1))))
@settings(max_examples=60, deadline=None)
def test_members_are_sorted_and_the_last_of_a_name_counts(rows):
    rows_as_members = [
        Member(name, size, number, size, 8, crc, name) for number, (name, size, crc) in enumerate(rows)
    ]
    members = pickle.loads(pickle.dumps(Members(rows_as_members)))
    expected = sorted({member.name: member for member in rows_as_members}.values())
    assert [members[i] for i in range(len(members))] == expected
    assert [*members.names()] == [member.name for member in expected]
    backwards = np.arange(len(members))[::-1]
    assert [*members.names(backwards)] == [member.name for member in expected[::-1]]
    assert members.by_name(backwards).tolist() == list(range(len(members)))
    assert {member.name for member in members.twins} == {
        name for name, *_ in rows if sum(name == other for other, *_ in rows) > 1
    }
    listing = [(member.name.removeprefix("a"), member.size, member.crc) for member in expected]
    assert digest(members.listing(np.arange(len(members)), "a")) == digest(listing)


@pytest.mark.parametrize("before", [b"", b"a program that unpacks the rest"])
@pytest.mark.parametrize("large", [False, True])
def test_a_directory_is_read_as_by_zipfile(tmp_path, monkeypatch, before, large):
    if large:  # so that every number is written as those of more than 4 GB are
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = tmp_path / "a.zip"
    path.write_bytes(before)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in ("b/ä.txt", "a.txt", "folder/"):
            archive.writestr(name, name * 9)
        archive.comment = b"PK of all"
    with open(path, "rb") as file:
        found = [*zips.read_directory(file)]
    with zipfile.ZipFile(path) as archive:
        assert found == [
            tuple(getattr(info, field) for field in zips.Entry._fields) for info in archive.infolist()
        ]
    assert len(found) == 3
    for cut in (12, 30, 60):
        path.write_bytes(path.read_bytes()[:-cut])
        with open(path, "rb") as file, pytest.raises((ValueError, struct.error)):
            [*zips.read_directory(file)]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_by_tarfile(tmp_path, kind):
    path = tmp_path / "a.tar"
    long = "/".join(["folder" * 8] * 3) + "/a.jpg"  # more than the 100 bytes of the oldest header
    names = ["a.jpg", "folder/ä.jpg", long, "b.cls"] + ([] if kind == tarfile.USTAR_FORMAT else ["x" * 300])
    with tarfile.open(path, "w", format=kind) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 300 * number, 1.5 if kind == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
    with tarfile.open(path) as archive:
        expected = [(i.name + "/" * i.isdir(), i.size, i.offset_data) for i in archive]
    assert [*read_entries(path)] == expected and len(expected) == len(names) + 1
    data = bytearray(path.read_bytes())
    (*_, (_, _, last)) = expected
    data[last - 400] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="truncated or damaged"):
        [*read_entries(path)]


def test_a_tar_that_claims_too_much_is_refused_at_once(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("a.jpg")
    info.size = 2**70
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UserError, match="truncated; copy"):
        [*read_entries(path)]
