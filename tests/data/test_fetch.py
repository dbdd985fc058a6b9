"""Files of the network against a server that cuts, lies, hangs and sends elsewhere."""

import fcntl
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from cnnjax.data import web
from cnnjax.data.fetch import Remote, fetch
from cnnjax.data.files import PART
from cnnjax.data.web import NoNetwork
from cnnjax.errors import UserError
from tests import ROOT
from tests.loopback import Server, serving

BODY = np.random.default_rng(0).bytes(400_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(web, "PAUSE", 0.01)
    for name in ("CNNJAX_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        server.files["/a.bin"] = BODY
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "a.bin"


def remote(server: Server, digits: str = SHA256, name: str = "a.bin", **known) -> Remote:
    return Remote(f"{server.address}/{name}", digits=digits, **known)


def names(path: Path) -> list[str]:
    return [each.name for each in path.parent.iterdir()]


def fails(kind: type[Exception], *args: object) -> str:
    with pytest.raises(kind) as caught:
        fetch(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("digits", [SHA256, SHA256[:8], ""])
@pytest.mark.parametrize("length", [True, False])
def test_a_file_is_fetched_once(server, path, digits, length):
    server.length = length
    for _ in range(2):
        fetch(remote(server, digits), path)
        assert path.read_bytes() == BODY and names(path) == ["a.bin"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_a_fetched_file_has_what_the_umask_allows(server, path, umask):
    before = os.umask(umask)
    try:
        fetch(remote(server), path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("digits", [SHA256, ""])
def test_a_cut_connection_is_resumed(server, path, digits, etags):
    server.cuts, server.etags = [100_000, 50_000], etags
    if not digits and not etags:  # nobody can tell that the next connection has the same file
        assert "cut" in fails(NoNetwork, remote(server, digits), path)
        assert names(path) == []
        return
    fetch(remote(server, digits), path)
    assert path.read_bytes() == BODY
    assert [headers.get("range") for headers in server.asked()] == [None, "bytes=100000-", "bytes=150000-"]


def test_what_another_process_received_is_resumed_if_its_sum_is_known(server, path):
    server.cuts = [100_000, 0]
    assert "cut" in fails(NoNetwork, remote(server), path)
    assert [name.startswith(PART) for name in names(path)] == [True]
    fetch(remote(server), path)
    assert server.asked()[-1]["range"] == "bytes=100000-" and names(path) == ["a.bin"]


@pytest.mark.parametrize("left", [b"other" * 100, BODY + b"more", BODY])
@pytest.mark.parametrize("digits", [SHA256, ""])
@pytest.mark.parametrize("size", [len(BODY), None])
def test_what_is_left_is_checked(server, path, left, digits, size):
    path.parent.mkdir()
    path.with_name(f"{PART}a.bin").write_bytes(left)
    fetch(remote(server, digits, size=size), path)
    assert path.read_bytes() == BODY and names(path) == ["a.bin"]


def test_a_server_without_ranges_sends_it_again(server, path):
    server.ranges, server.cuts = False, [300_000]
    fetch(remote(server), path)
    assert path.read_bytes() == BODY


def test_a_file_that_changes_between_two_connections_is_not_mixed(server, path):
    other = np.random.default_rng(1).bytes(len(BODY))

    def first(handler, data):
        server.files["/a.bin"] = other
        return BODY

    server.files["/a.bin"], server.cuts = first, [100_000]
    fetch(remote(server, ""), path)
    assert path.read_bytes() == other


def test_a_damaged_file_is_fetched_again(server, path):
    path.parent.mkdir()
    path.write_bytes(BODY[:-1] + b"x")
    fetch(remote(server, SHA256[:8]), path)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("digits", "size", "words"),
    [
        ("0" * 8, None, f"SHA-256 is {SHA256}, not 00000000"),
        ("0" * 40, None, "its name in git is"),
        (SHA256, 5, "it has 400,000 bytes, not 5"),
    ],
)
def test_another_file_is_refused_and_not_kept(server, path, digits, size, words):
    text = fails(UserError, remote(server, digits, size=size), path)
    assert words in text and f"{server.address}/a.bin" in text
    assert names(path) == []


def test_git_names_are_checked(server, path):
    digits = hashlib.sha1(b"blob 400000\0" + BODY).hexdigest()
    fetch(remote(server, digits), path)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such file"), (401, "HF_TOKEN"), (403, "HF_TOKEN"), (418, "answered 418")]
)
def test_a_refusal_is_told(server, path, status, words):
    server.files["/a.bin"] = status
    assert words in fails(UserError, remote(server), path) and names(path) == []


def test_a_busy_server_is_asked_again(server, path):
    def busy(handler, data):
        server.files["/a.bin"] = BODY
        return 503

    server.files["/a.bin"] = busy
    fetch(remote(server), path)
    assert path.read_bytes() == BODY


def test_redirects_are_followed_and_told_no_secret(server, path):
    with serving() as other:
        other.files["/far"] = BODY
        server.files["/a.bin"] = "/b.bin"
        server.files["/b.bin"] = f"{other.address}/far?signature=S3"
        fetch(remote(server, token="secret"), path)
        assert path.read_bytes() == BODY
        assert [headers.get("authorization") for headers in server.asked()] == ["Bearer secret"] * 2
        assert "authorization" not in other.asked()[0]
        other.files["/far"] = 404
        text = fails(UserError, remote(server, "1" * 64, token="secret"), path)
    assert "S3" not in text and "secret" not in text


@pytest.mark.parametrize("goal", ["/a.bin", "file:///etc/passwd", "ftp://127.0.0.1/a", "http://[", "//:x"])
def test_redirects_to_nowhere_end(server, path, goal):
    server.files["/a.bin"] = goal
    fails(UserError, remote(server), path)


@pytest.mark.parametrize("address", ["http://", "http://u:p@127.0.0.1/a", "http://[::1/a", "x", "file:///a"])
def test_other_addresses_are_refused(path, address):
    assert "not an address" in (text := fails(UserError, Remote(address), path)) and "u:p" not in text


def test_a_server_that_hangs_ends_in_time(server, path, monkeypatch):
    monkeypatch.setattr(web, "SECONDS", 0.3)
    server.cuts, server.silent = [1000, 0], 2.0
    assert "timed out" in fails(NoNetwork, remote(server), path)


def test_nobody_answers(path, monkeypatch):
    assert "refused" in fails(NoNetwork, Remote("http://127.0.0.1:9/a"), path) and names(path) == []


@pytest.mark.parametrize("name", ["CNNJAX_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody(server, path, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert "--offline" in fails(NoNetwork, remote(server), path) and not server.requests
    path.write_bytes(BODY)
    fetch(remote(server), path)


def test_a_full_disk_is_one_line_and_keeps_nothing(server, path, monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            fetch(remote(server), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path) and names(path) == []
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "room for 1,000 bytes; 400,000 are needed" in fails(UserError, remote(server), path)


def test_two_processes_fetch_one_file(server, path):
    program = (
        "import sys; from pathlib import Path; from cnnjax.data.fetch import *; path = Path(sys.argv[2]); "
        f"fetch(Remote(sys.argv[1], digits={SHA256!r}), path); print(len(path.read_bytes()))"
    )
    begun = threading.Event()

    def slowly(handler, data):
        begun.set()
        begun.wait(0.3)
        return BODY

    server.files["/a.bin"] = slowly
    command = [sys.executable, "-c", program, f"{server.address}/a.bin", str(path)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1) for _ in range(2)]
    assert [child.communicate()[0] for child in running] == [b"400000\n"] * 2
    assert len(server.requests) == 1 and names(path) == ["a.bin"]


def test_what_another_process_fetched_meanwhile_is_used(server, path):
    """It waits as long as the other has the file, and asks nobody then."""
    part = path.with_name(f"{PART}a.bin")
    path.parent.mkdir()
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = threading.Thread(target=fetch, args=(remote(server), path))
        waiting.start()
        file.write(BODY)
        file.flush()
        part.rename(path)
    waiting.join(10)
    assert not waiting.is_alive() and not server.requests
