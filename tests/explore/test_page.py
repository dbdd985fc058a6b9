"""The local page: its answers, who may ask, and a browser that uses it."""

import io
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnnjax
from cnnjax.data import datasets
from tests import browser

testclient = pytest.importorskip("starlette.testclient", reason="starlette is not here: the extra `explore`")
from cnnjax.explore.page import server, views


@pytest.fixture(scope="module")
def trained(tiny_run):
    return cnnjax.load_run(tiny_run)


@pytest.fixture(scope="module")
def app(trained):
    return server.make_app(trained)


@pytest.fixture
def client(app):
    return testclient.TestClient(app, base_url="http://127.0.0.1")


def encoded(image: np.ndarray, form: str = "png") -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, format=form)
    return data.getvalue()


@pytest.fixture(scope="module")
def one(tiny_data) -> bytes:
    return encoded(datasets.load(tiny_data, "test")[1]["image"][..., 0])


def test_an_upload_is_classified_and_its_maps_and_heat_are_shown(client, trained, one):
    found = client.post("/api/upload", content=one).json()
    by_hand = trained.predict([one], batch_size=1)[0]
    assert [row["class"] for row in found["predictions"]] == [name for name, _ in by_hand.top]
    maps = client.get("/api/maps", params={"id": found["id"], "layer": "conv2"}).json()
    assert (maps["shape"], len(maps["maps"])) == ([4, 4, 3], 3)
    heat = client.get("/api/heat", params={"id": found["id"], "class": 1}).json()
    assert heat["image"].startswith("data:image/png;base64,")
    assert heat["method"] in ("grad_cam", "hires_cam")
    patches = client.get("/api/patches", params={"layer": "conv2", "unit": 1}).json()["patches"]
    assert len(patches) == 9
    assert patches == sorted(patches, key=lambda row: -row["value"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/maps?id=none&layer=conv1", "no longer kept"),
        ("/api/maps?id=none&layer=conv7", "unknown layer 'conv7'"),
        ("/api/patches?layer=conv2&unit=3", "unit=3"),
        ("/api/patches?layer=conv2&unit=x", "is no number"),
        ("/api/heat", "missing"),
        ("/api/example?picture=5&filter=loop", "unknown picture '5'"),
    ],
)
def test_a_mistake_is_told_in_one_line(client, path, words):
    reply = client.get(path)
    assert reply.status_code == 400
    assert words in reply.json()["error"]


def test_the_page_of_operations_gives_the_modules_numbers(client):
    asked = client.get("/api/example", params={"picture": "9", "filter": "loop"}).json()
    asked |= {"kernel": (np.array(asked["kernel"]) / 9).tolist(), "padding": 0, "stride": 1}
    asked |= {"padding_mode": "zero", "pooling": "max", "window": 2, "pool_stride": 2}
    found = client.post("/api/operation", content=json.dumps(asked)).json()
    ninths = [[-1, 9, -1], [-5, 1, -3], [-3, 3, -3], [-5, -1, -5], [-3, -5, -3]]
    np.testing.assert_allclose(found["convolution"], np.array(ninths) / 9, atol=1e-4)
    np.testing.assert_allclose(found["relu"], np.maximum(ninths, 0) / 9, atol=1e-4)
    np.testing.assert_allclose(found["pooling"], [[1], [1 / 3]], atol=1e-4)
    numbers = client.get("/api/example", params={"picture": "4x4 numbers", "filter": "identity"}).json()
    assert numbers["divisor"] == 1
    found = client.post("/api/operation", content=json.dumps(asked | numbers)).json()
    assert found["pooling"] == [[8, 9], [3, 2]]
    both = client.get("/api/example", params={"picture": "96", "filter": "loop"}).json()["image"]
    found = client.post("/api/operation", content=json.dumps(asked | {"image": both})).json()
    assert np.argwhere(np.array(found["convolution"]) > 0.999).tolist() == [[0, 1], [4, 6]]  # both loops
    asked |= {"image": np.eye(9).tolist(), "kernel": np.ones((3, 3)).tolist(), "padding": 1}
    assert np.shape(client.post("/api/operation", content=json.dumps(asked)).json()["convolution"]) == (9, 9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 0}, "stride=0"),
        ({"padding": 1.5}, "padding=1.5"),
        ({"image": [[1, 2], [3]]}, "rows of numbers"),
        ({"image": [[1] * 65]}, "at most 64 by 64"),
        ({"image": [[float("nan")]]}, "finite"),
        ({"pooling": "sum"}, "unknown pooling 'sum'"),
        ({"padding_mode": "wrap"}, "unknown padding_mode 'wrap'"),
        ({"kernel": np.ones((9, 9)).tolist()}, "9"),
    ],
)
def test_impossible_operations_are_refused(client, change, words):
    asked = {"image": [[1, 2], [3, 4]], "kernel": [[1]], "padding": 0, "stride": 1, "window": 2}
    asked |= {"pool_stride": 2, "padding_mode": "zero", "pooling": "max"} | change
    reply = client.post("/api/operation", content=json.dumps(asked))
    assert reply.status_code == 400
    assert words in reply.json()["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"image": [[[1]]]}', b"null"])
def test_a_body_that_is_no_operation_is_refused(client, body):
    assert client.post("/api/operation", content=body).status_code == 400


def test_a_real_server_answers_to_its_own_address_alone(trained):
    """Through a socket: paths out of the folder, other methods, other hosts, a body without a length."""
    command = [sys.executable, "-m", "cnnjax", "explore", f"--workdir={trained.path}", "--port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    killer = threading.Timer(120, process.kill)
    killer.start()
    try:
        address = next(line for line in process.stderr if line.startswith("open ")).split()[1]
        port = int(address.rpartition(":")[2])

        def ask(text: bytes) -> str:
            with socket.create_connection(("127.0.0.1", port), 30) as opened:
                opened.sendall(text)
                return opened.makefile("rb").readline().decode().split()[1]

        def get(path: str, method: str = "GET", **headers: str) -> str:
            lines = {"Host": f"127.0.0.1:{port}", "Connection": "close"} | headers
            head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
            return ask(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())

        assert get("/") == "200"
        for path in ("/../server.py", "/..%2fserver.py", "/%2e%2e/views.py", "//etc/passwd", "/server.py"):
            assert get(path) == "404", path
        assert get("/", Host="evil.example") == "400"
        assert get("/api/model", Origin=f"http://localhost:{port}") == "403"  # another origin too
        assert get("/api/upload", "OPTIONS", Origin="http://evil.example") == "403"
        assert get("/api/upload") == "405"
        assert get("/", "DELETE") == "405"
        assert ask(b"nonsense\r\n\r\n") == "400"
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        head = f"POST /api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert ask(head.encode() + chunk * 20) == "413"
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), 5).close()
    finally:
        killer.cancel()
        process.terminate()
        process.wait(20)


def test_uploads_are_limited_in_bytes_and_in_pixels_and_must_be_images(client, monkeypatch):
    reply = client.post("/api/upload", content=b"x" * (server.MAX_BYTES + 1))
    assert reply.status_code == 413
    large = encoded(np.zeros((8000, 6000), np.uint8))
    assert len(large) < 1_000_000
    reply = client.post("/api/upload", content=large)
    assert reply.status_code == 400
    assert "6000x8000 pixels" in reply.json()["error"]
    for body in (b"", b"hello", b"\x89PNG\r\n\x1a\n broken"):
        assert client.post("/api/upload", content=body).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:81"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"host": "evil.example"}, 400),
    ],
)
def test_no_other_origin_and_no_other_host_may_ask(client, headers, status):
    assert client.get("/api/model", headers=headers).status_code == status
    assert client.post("/api/operation", headers=headers, content=b"{}").status_code == max(status, 400)


def test_answers_forbid_foreign_scripts_and_frames(client):
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert client.get("/../secret").status_code == 404


def test_only_the_newest_images_are_kept(trained, one):
    shown = views.Views(trained)
    tokens = [shown.upload(one)["id"] for _ in range(views.KEPT_IMAGES + 3)]
    assert len(set(tokens)) == len(tokens)
    assert list(shown.images) == tokens[3:]


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
def test_a_browser_uploads_clicks_and_sees(trained, one, tmp_path):
    """The server as a user starts it, on a free port, with nothing written into the run folder."""
    before = sorted(trained.path.rglob("*"))
    file = tmp_path / "one.png"
    file.write_bytes(one)
    command = [sys.executable, "-m", "cnnjax", "explore", f"--workdir={trained.path}", "--port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    page = None
    try:
        killer = threading.Timer(120, process.kill)
        killer.start()
        address = next(line for line in process.stderr if line.startswith("open ")).split()[1]
        page = browser.Browser(tmp_path / "profile")
        page.open(address)
        page.until("document.body.dataset.ready === 'yes'")
        page.choose_file("#file", file)
        page.until("document.querySelectorAll('#predictions li').length === 3")
        page.until("document.querySelectorAll('#maps figure').length === 2")
        page.run("document.getElementById('cam').click()")
        page.until("document.getElementById('method').textContent.includes('CAM')")
        page.run("document.querySelectorAll('#maps figure')[1].click()")
        page.until("document.querySelectorAll('#patches figure').length === 9")
        page.run("document.getElementById('tab-play').click()")
        page.until("document.querySelectorAll('#m-pooling td').length === 2")
        assert page.run("document.querySelector('#m-convolution tr').innerText.split(/\\s+/).join(' ')") == (
            "-0.11 1 -0.11"
        )
        page.run("document.querySelector('#m-image td').click()")  # turn a pixel over
        page.until("document.querySelector('#m-convolution td').innerText !== '-0.11'")
        assert page.run("document.getElementById('error').textContent") == ""
        page.screenshot(tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as seen:
            assert np.asarray(seen.convert("L")).std() > 5
    finally:
        killer.cancel()
        if page:
            page.close()
        process.terminate()
        process.wait(20)
    assert sorted(trained.path.rglob("*")) == before


def test_the_page_and_its_words_agree():
    """Every element that the script asks for is on the page."""
    import re

    folder = Path(server.__file__).parent
    html, script = (folder / "index.html").read_text(), (folder / "app.js").read_text()
    for name in set(re.findall(r'\$\("([\w-]+)"\)', script)):
        assert f'id="{name}"' in html, name
