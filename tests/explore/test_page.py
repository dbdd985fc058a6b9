"""The local page: its answers, who may ask, and a browser that uses it."""

import contextlib
import dataclasses
import io
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import cnnjax
from cnnjax import config as config_lib
from cnnjax import ops
from cnnjax.data import datasets
from cnnjax.data.augment import views as protocols
from cnnjax.errors import UserError
from cnnjax.models import create_model, init_variables
from cnnjax.models.layers import BatchNorm, Conv, Dense, LayerNorm
from cnnjax.models.shufflenet import shuffle
from cnnjax.runs import train
from cnnjax.runs.loaded import with_data
from tests import browser
from tests.conftest import tiny_arrays

testclient = pytest.importorskip("starlette.testclient", reason="starlette is not here: the extra `explore`")
import uvicorn

from cnnjax.cli import explore
from cnnjax.explore.page import network, operations, reasons, server, training, views

SCRIPT = "\n".join(path.read_text() for path in sorted(Path(server.__file__).parent.glob("*.js")))


@pytest.fixture(scope="module")
def trained(tiny_run):
    return cnnjax.load_run(tiny_run)


@pytest.fixture(scope="module")
def app(trained):
    return server.make_app(server.Page.of(trained))


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
    model, found = client.get("/api/model").json(), client.post("/api/upload", content=one).json()
    by_hand = trained.predict([one], batch_size=1)[0]
    assert [row["class"] for row in found["predictions"]] == [name for name, _ in by_hand.top]
    stage = next(i for i, row in enumerate(model["stages"]) if row["module"] == "conv2")
    maps = client.get("/api/maps", params={"id": found["id"], "stage": stage, "page": 0}).json()
    assert (maps["shape"], len(maps["maps"])) == ([4, 4, 3], 3)
    assert len(client.get("/api/walk", params={"id": found["id"]}).json()["pictures"]) == len(model["stages"])
    patches = client.get("/api/unit", params={"stage": stage, "unit": 1}).json()["patches"]
    assert len(patches) == 9
    assert patches == sorted(patches, key=lambda row: -row["value"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/look?id=none", "no longer kept"),
        ("/api/look?id=s99", "no longer kept"),
        ("/api/maps?id=s0&stage=99&page=0", "stage=99; allowed: 0 to 9"),
        ("/api/maps?id=s0&stage=0&page=1", "page=1; allowed: 0 to 0"),
        ("/api/unit?stage=4&unit=3", "unit=3"),
        ("/api/unit?stage=4&unit=x", "is no number"),
        ("/api/filters?stage=4&unit=3&page=0", "unit=3; allowed: 0 to 2"),
        ("/api/filters?stage=2&unit=0&page=0", "has no filters"),
        ("/api/window?id=s0&stage=4&unit=0&row=4&column=0", "row 4"),
        ("/api/heat?id=s0&class=3&method=grad_cam&layer=", "class 3; allowed: 0 to 2"),
        ("/api/heat?id=s0&class=0&method=cam&layer=", "unknown method 'cam'"),
        ("/api/heat?id=s0&class=0&method=layer_cam&layer=conv7", "unknown layer 'conv7'"),
        ("/api/step?step=7777&id=s0&stage=0", "unknown step '7777'"),
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
    command = [sys.executable, "-m", "cnnjax", "explore", f"--workdir={trained.name}", "--port=0"]
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
        process.terminate()
        process.wait(20)
        killer.cancel()


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
    tokens = [shown.upload(one)["id"] for _ in range(network.KEPT_IMAGES + 3)]
    assert len(set(tokens)) == len(tokens)
    assert list(shown.network.uploads) == tokens[3:]


class Pools(nn.Module):
    """Poolings that are no plain means at the borders or anywhere, and a gate of each channel."""

    @nn.compact
    def __call__(self, image, *, train=False):
        x = Conv(4, 3, name="conv")(image)
        x = ops.avg_pool(x, 3, 1, 1) + ops.avg_pool(x, 3, 1, padding=1, count_padding=True)
        x = ops.center_weighted_pool(x, 3, 1, 1)
        x = ops.l2_pool(x, 2)
        x = x * nn.sigmoid(Dense(4, name="gate")(ops.global_avg_pool(x)))[:, None, None, :]
        return Dense(3, name="head")(ops.global_avg_pool(x))


def by_hand(kind, found) -> float | None:
    """What the formula of a value comes to as the page writes it; None if it writes none."""
    if "terms" not in found:
        given = found.get("inputs")
        joined = {"addition": sum, "scaling": np.prod, "ReLU": lambda x: max(0, x[0])}.get(kind)
        return joined(given) if given and joined else None
    if "sum" in found:
        return found["sum"] + (found["bias"] or 0)
    values = [value for row in found["terms"][0]["values"] for value in row if value is not None]
    return max(values) if kind == "max pooling" else np.mean(values)


def test_the_formula_of_a_value_comes_to_the_value(trained):
    model, key = Pools(), jax.random.key(1)
    variables = model.init(key, np.ones((1, 8, 8, 1), np.float32))
    shown = views.Views(dataclasses.replace(trained, model=model, variables=variables, spec="pools"))
    kinds = []
    for number, stage in enumerate(shown.network.rows):
        height, width = stage.layer.shape[:2] if len(stage.layer.shape) == 3 else (1, 1)
        for row, column in ((0, 0), (height // 2, width - 1), (height // 2, width // 2)):
            found = shown.window("s2", number, 1, row, column)
            if (formula := by_hand(stage.kind, found)) is not None:
                assert formula == pytest.approx(found["output"], rel=1e-4, abs=1e-5), (
                    stage.kind,
                    row,
                    column,
                )
                kinds.append(stage.kind)
    assert {"convolution", "average pooling", "scaling", "addition", "dense layer"} == set(kinds)
    assert kinds.count("average pooling") == 3 * 4


class Neighbours(nn.Module):
    """Stages whose values are of their own place and unit alone, and others whose values are not."""

    @nn.compact
    def __call__(self, image, *, train=False):
        x = BatchNorm(name="batch_norm")(Conv(4, 3, name="conv")(image))
        x = Dense(4, name="dense")(shuffle(nn.relu(x), nn.tanh(x))[..., :4])
        x = LayerNorm(name="layer_norm")(ops.local_response_norm(nn.relu(ops.gelu(x))))
        x = nn.softmax(nn.sigmoid(x))
        return Dense(3, name="head")(ops.global_avg_pool(x))


def test_only_what_a_value_was_made_of_is_shown_as_its_inputs(trained):
    """A shuffle moves channels; dense layers, softmax and other normalizations read those beside."""
    variables = Neighbours().init(jax.random.key(1), np.ones((1, 8, 8, 1), np.float32))
    shown = views.Views(dataclasses.replace(trained, model=Neighbours(), variables=variables, spec="all"))
    kinds, made = [stage.kind for stage in shown.network.rows], []
    for number, kind in enumerate(kinds):
        if "inputs" in shown.window("s2", number, 1, 0, 0):
            made.append(kind)
    assert {"channel shuffle", "dense layer", "response normalization", "maximum"} < set(kinds)
    assert made == ["normalization", "ReLU", "tanh", "GELU", "ReLU", "sigmoid"]


class Grouped(nn.Module):
    @nn.compact
    def __call__(self, image, *, train=False):
        x = Conv(6, 3, groups=3, name="grouped")(nn.relu(Conv(12, 3, name="conv")(image)))
        return Dense(3, name="head")(ops.global_avg_pool(x))


def test_the_filters_of_a_group_have_the_numbers_of_its_channels(trained):
    variables = Grouped().init(jax.random.key(1), np.ones((1, 8, 8, 1), np.float32))
    shown = views.Views(dataclasses.replace(trained, model=Grouped(), variables=variables, spec="grouped"))
    for unit in range(6):
        found = shown.filters(2, unit, 0)
        numbers = range(found["number"], found["number"] + len(found["filters"]))
        assert numbers == range(4 * (unit // 2), 4 * (unit // 2) + 4)
        assert {term["channel"] for term in shown.window("s2", 2, unit, 1, 1)["terms"]} < set(numbers)
    assert shown.filters(0, 5, 0)["number"] == 0  # all filters of one channel


def test_the_test_images_of_a_folder_are_of_all_its_classes(trained, tmp_path):
    """A folder lists its images by class."""
    for label in "012":
        (tmp_path / "test" / label).mkdir(parents=True)
        for i in range(12):
            (tmp_path / "test" / label / f"{i}.png").write_bytes(encoded(np.full((8, 8), 9 * i, np.uint8)))
    config = with_data(trained.config, f"folder:{tmp_path}", trained.image_shape)
    tests = network.Tests.of(trained, config, 9)
    assert [tests.labels.count(label) for label in range(3)] == [3, 3, 3]


def test_an_error_about_images_that_the_user_named_does_not_name_the_config(trained, tmp_path):
    config = with_data(trained.config, f"folder:{tmp_path}", trained.image_shape)
    (tmp_path / "test" / "other").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "test" / "other" / "1.png")
    with pytest.raises(UserError, match="^data: "):
        _ = network.Network(trained, config).tests


@pytest.mark.parametrize("classes", [3, 24, 25, 100])
def test_samples_are_of_all_classes_or_of_evenly_spaced_ones(classes):
    labels = sorted([*range(classes)] * 30)
    tests = network.Tests("many", np.zeros((len(labels), 1)), labels, (), own=True)
    shown = [labels[i] for i in tests.samples]
    assert len(shown) == len(set(tests.samples)) == network.SAMPLES
    if classes <= network.SAMPLES:
        assert shown == [i % classes for i in range(network.SAMPLES)]
    else:
        assert (shown[0], shown[-1], len(set(shown))) == (0, classes - 1, network.SAMPLES)
        assert max(np.diff(shown)) <= classes / network.SAMPLES + 2


@pytest.mark.parametrize(
    ("one", "two", "alike"),
    [([0, 0], [0, 0], 1), ([0, 0], [1, 2], 0), ([2, 1], [0, 0], 0), ([1, 2], [2, 4], 1)],
)
def test_an_image_without_values_at_a_stage_is_only_like_another_without(one, two, alike, trained):
    shown = views.Views(trained)
    values = {"s0": one, "s1": two}
    seen = {token: types.SimpleNamespace(values=[np.array(x, np.float32)]) for token, x in values.items()}
    shown.network.seen = seen.__getitem__
    assert reasons.Reasons(shown.network).similarities("s0", "s1") == {"similarity": pytest.approx([alike])}


@pytest.fixture
def raw_and_averaged(trained, tmp_path):
    """A copy of a run: after 3 steps only the raw weights are the trained ones, later only the average."""
    path = tmp_path / "run"
    shutil.copytree(trained.name, path)
    start = views.Views(trained), training.Training(views.Views(trained))
    ends = (trained.variables, start[1]._variables(0))
    trees = {3: ends, trained.step: ends[::-1]}

    def read(self, step):
        raw, average = (jax.tree.map(np.asarray, tree) for tree in trees[step])
        return {"state": {**raw, "ema": average}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Checkpoints, "read", read)
        patch.setattr(training.Checkpoints, "steps", lambda self: sorted(trees))
        yield dataclasses.replace(trained, name=str(path)), trees


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("protocol", ["center", "mirror"])
def test_each_checkpoint_predicts_with_its_own_weights(raw_and_averaged, weights, protocol):
    trained, trees = raw_and_averaged
    looks = protocols.parse(protocol, trained.augment, trained.image_shape)
    trained = dataclasses.replace(trained, protocol=looks)
    told = training.Training(views.Views(trained), weights)
    image = told.views.network.image("s1")
    for step, (raw, average) in trees.items():
        variables = jax.tree.map(np.asarray, average if weights == "ema" else raw)
        (right,) = dataclasses.replace(trained, variables=variables).predict(image, batch_size=1)
        found = {row["class"]: row["probability"] for row in told.step(step, "s1", 0)["predictions"]}
        assert found == pytest.approx(dict(right.top), abs=1e-5)


@pytest.mark.parametrize(
    "model, init_from, drawn",
    [("simple_cnn", "", True), ("simple_cnn", "runs/other", False), ("airbench94", "", False)],
)
def test_the_start_is_shown_only_if_the_seed_alone_gives_it(model, init_from, drawn, trained):
    config = config_lib.assign(trained.config, {"model": model, "init_from": init_from})
    told = training.Training(views.Views(dataclasses.replace(trained, config=config)))
    steps = [row["step"] for row in told.run()["steps"]]
    assert (0 in steps) == drawn and trained.step in steps
    with contextlib.nullcontext() if drawn else pytest.raises(UserError, match="step"):
        told.step(0, "s0", 0)


def test_each_curve_of_a_long_run_is_thinned_on_its_own(trained, tmp_path):
    shutil.copytree(trained.name, tmp_path / "run")
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 5000)]
    for epoch in range(1, 8):  # of rows that no even step over all of them would meet
        rows.insert(700 * epoch + 5, {"step": 700 * epoch, "validation_loss": 1.0 / epoch})
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "run" / "metrics.jsonl").write_text(lines + "\n")
    told = training.Training(views.Views(dataclasses.replace(trained, name=str(tmp_path / "run"))))
    curves = told.run()["curves"]
    assert [step for step, _ in curves["validation_loss"]] == list(range(700, 5000, 700))
    assert len(curves["loss"]) == training.CURVE_POINTS and curves["loss"][-1][0] == 4999


def test_other_images_are_not_what_a_network_was_trained_on(trained, tiny_data):
    other = with_data(None, tiny_data, trained.image_shape)
    for config, learned, data in ((trained.config, True, tiny_data), (None, False, "")):
        shown = views.Views(dataclasses.replace(trained, config=config, name=trained.spec), other)
        told = shown.model()
        assert (told["learned"], told["data"]) == (learned, data)
        assert shown.samples()["own"]


@contextlib.contextmanager
def served(run, tmp_path):
    """A browser on the page of a run, as a user starts it on a free port."""
    command = [sys.executable, "-m", "cnnjax", "explore", f"--workdir={run}", "--port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    killer = threading.Timer(300, process.kill)
    killer.start()
    page = None
    try:
        address = next(line for line in process.stderr if line.startswith("open ")).split()[1]
        page = browser.Browser(tmp_path / "profile")
        page.open(address)
        page.until("document.body.dataset.ready === 'yes'")
        yield page
    finally:
        if page:
            page.close()
        process.terminate()
        process.wait(20)
        killer.cancel()


def count(selector: str) -> str:
    return f"document.querySelectorAll('{selector}').length"


def text(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


def click(page: browser.Browser, name: str, index: int = 0) -> None:
    page.run(f"document.querySelectorAll('{name}')[{index}].click()")


QUIET = "!document.querySelector('[aria-busy=true]')"


def focus_on(selector: str, index: int = 0) -> str:
    """Whether an element has the focus."""
    return f"document.activeElement === document.querySelectorAll('{selector}')[{index}]"


def set_value(page: browser.Browser, name: str, value: object, then: str = "null") -> object:
    """Of an input or a select, as a user who leaves it then; returns what `then` is before any answer."""
    return page.run(
        f"(() => {{ const it = document.querySelector('{name}'); it.focus(); it.value = {json.dumps(value)};"
        f"it.onchange(); return {then} }})()"
    )


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
def test_a_browser_walks_through_all_of_the_page(trained, one, tmp_path):
    before = sorted(Path(trained.name).rglob("*"))
    with served(trained.name, tmp_path) as page:
        see_the_opening(page)
        see_a_stage(page)
        see_the_reasons(page)
        see_two_images_and_the_training(page)
        see_the_operations(page)
        see_uploads_drawings_and_mistakes(page, one, tmp_path)
        for width, dark in ((1280, True), (390, False)):
            page.show_as(width, dark=dark)
            for name in ("network", "reasons", "compare", "training", "operations"):
                click(page, f"#tab-{name}")
                page.until(QUIET)
                assert page.run("document.documentElement.scrollWidth") <= width, name
        page.screenshot(tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as seen:
            assert np.asarray(seen.convert("L")).std() > 5
        own = "performance.getEntriesByType('resource').every((row) => row.name.startsWith(location.origin))"
        assert page.run(own)  # data URLs are no resources
    assert sorted(Path(trained.name).rglob("*")) == before


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
def test_a_browser_sees_all_tabs_of_a_network_without_maps(tiny_config, tmp_path):
    """Of images of two channels, which no image file has."""
    arrays = tiny_arrays()
    two = {name: np.repeat(x, 2, -1) for name, x in arrays.items() if x.ndim == 4}
    np.savez(tmp_path / "two.npz", **(arrays | two))
    tiny_config.data.name = f"npz:{tmp_path / 'two.npz'}"
    tiny_config.augment.train = tiny_config.augment.eval = "normalize(0.5, 0.5)"
    tiny_config.model, tiny_config.total_epochs = "lenet_300_100", 1.0
    train.train(tiny_config, tmp_path / "run")
    with served(tmp_path / "run", tmp_path) as page:
        assert page.run(count("#choose[hidden], #drop[hidden], #draw[hidden]")) == 3
        click(page, "#rail .card", 1)
        page.until(text("bestof") + ".startsWith('Strongest for unit 0 ') && " + QUIET)
        click(page, "#mappages button", 1)
        page.until(text("bestof") + ".startsWith('Strongest for unit 64 ') && " + QUIET)
        assert page.run(text("unitname")) == "Unit 64"
        click(page, "#tab-compare")
        page.until(count("#similarity .line") + " === 1 && " + count("#differences figure") + " === 3")
        last = page.run(count("#part option")) - 1
        assert page.run(text("differing")).startswith(f"Units that differ most at stage {last}: Dense")
        click(page, "#tab-training")
        page.until(count("#steppredictions li") + " === 3 && " + count("#stepmaps span") + " === 32")
        click(page, "#tab-reasons")
        page.until(count("#methods img[src^=data]") + " === 3 && " + QUIET, 120)
        click(page, "#run-curves")
        page.until(count("#curves .numbers tr") + " === 4 && " + QUIET, 120)
        shown = (
            "#compare .error:not([hidden]), #training .error:not([hidden]), #curvespanel .error:not([hidden])"
        )
        assert page.run(count(shown)) == 0


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
def test_a_browser_follows_a_run_that_still_trains(trained, tmp_path):
    """New checkpoints appear as the tab is opened again, and when one is gone that it asks for."""
    shutil.copytree(trained.name, tmp_path / "run")
    saved, away = tmp_path / "run" / "checkpoints", tmp_path / "away"
    *others, older, newest = map(str, training.Checkpoints(saved).steps())
    away.mkdir()
    for step in (*others, newest):
        shutil.move(saved / step, away)
    slider = "document.getElementById('step')"

    def seen(page, words, value, last):
        page.until(text("steptext") + f".startsWith('{words}') && " + QUIET)
        assert page.run(f"[{slider}.value, {slider}.max]") == [value, last]

    with served(tmp_path / "run", tmp_path) as page:
        click(page, "#tab-training")
        seen(page, f"step {older},", "1", "1")
        shutil.move(saved / older, away)
        shutil.move(away / newest, saved)
        set_value(page, "#watched", 4)
        seen(page, f"step {newest},", "1", "1")
        shutil.move(away / older, saved)
        click(page, "#tab-compare")
        click(page, "#tab-training")
        seen(page, f"step {newest},", "2", "2")
        page.run(f"({slider}.value = 1, {slider}.oninput())")
        seen(page, f"step {older},", "1", "2")
        shutil.move(saved / newest, away)
        click(page, "#tab-compare")
        click(page, "#tab-training")
        seen(page, f"step {older},", "1", "1")
        assert page.run(count(".error:not([hidden])")) == 0


def see_the_opening(page):
    """Test images to click, the first already predicted, and a busy sign at once after a click."""
    assert page.run(count("#samples button")) == 24
    page.until(count("#predictions li") + " === 3")
    page.until(count("#walk img[src^=data]") + " === 10")
    page.until(count("#rail .card") + " === 10 && " + count(".outline .block") + " === 10")
    busy = "document.getElementById('side').hasAttribute('aria-busy')"
    assert page.run(f"document.querySelectorAll('#samples button')[1].click(), {busy}")
    page.until(f"!{busy} && document.querySelectorAll('#samples button')[1].ariaPressed === 'true'")
    assert page.run(text("truth")).endswith(" it is 1")


def see_a_stage(page):
    """Its maps, filters and best patches; the sum behind a place; arrow keys walk on."""
    click(page, "#rail .card", 0)
    page.until(count("#filters button") + " === 2")
    page.run("document.querySelectorAll('#filters button')[1].focus()")
    click(page, "#filters button", 1)
    page.until(f"document.querySelectorAll('#filters button')[1].ariaPressed === 'true' && {QUIET}")
    assert page.run(focus_on("#filters button", 1))
    click(page, "#rail .card", 4)
    page.until(count("#maps .tile") + " === 3")
    page.until(count("#filters .tile") + " === 2 && " + count("#best figure") + " === 9")
    titles = "[...document.querySelectorAll('#filters .tile')].map((it) => it.title).join()"
    assert page.run(titles) == "input 0,input 1"
    assert page.run(text("stagename")) == "Conv 3×3"
    assert "(4 + 2 − 3) / 1" in page.run(text("facts"))
    click(page, "#maps .tile", 2)
    page.until(text("unitname") + " === 'Unit 2' && " + text("products") + ".includes('Σ window × weights')")
    before = page.run(text("products"))
    page.run(
        "(() => { const area = document.getElementById('large').getBoundingClientRect();"
        "document.getElementById('bigmap').dispatchEvent(new PointerEvent('pointermove',"
        "{clientX: area.left + 3, clientY: area.top + 3, bubbles: true})) })()"
    )
    page.until(text("products") + f" !== {json.dumps(before)} && {QUIET}")
    page.until(count("#products .outside") + " === 10")  # the corner's window lies half in the padding
    assert page.run(count("#products .term")) == 2
    assert page.run("document.getElementById('field').style.top") == "0%"
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}))"
    page.run(press % "ArrowRight")
    page.until(text("stagename") + " === 'Normalize'")
    page.run(press % "ArrowRight")
    page.until(text("stagename") + " === 'ReLU' && " + text("products") + ".includes('max(0, ')")
    page.run(press % "ArrowRight")
    page.until(text("stagename") + ".startsWith('Max pool') && " + text("products") + ".includes('max of 4')")
    page.until(QUIET)
    page.run("document.getElementById('tab-network').focus()")
    for key, name in (("ArrowRight", "reasons"), ("ArrowLeft", "network")):
        page.run(press.replace("body", "activeElement") % key)
        assert page.run(f"document.body.dataset.tab === '{name}' && {focus_on(f'#tab-{name}')}")
    assert page.run(text("stagename")).startswith("Max pool")
    page.run(press % "2")
    page.until("document.body.dataset.tab === 'reasons'")


def see_the_reasons(page):
    """A heat map of every method, both curves, and the maps of randomized layers."""
    page.until(count("#methods img[src^=data]") + " === 9", 120)
    click(page, "#run-curves")
    page.until(count("#curves .numbers tr") + " === 10", 120)
    assert page.run(count("#curves .line")) == 18
    click(page, "#run-sanity")
    page.until(count("#sanity figure") + " === 6", 120)
    assert "rank correlation" in page.run(text("verdict")) or "stays" in page.run(text("verdict"))
    share = (
        "[...document.querySelectorAll('#predictions li')].find((row) => row.firstChild.textContent === '2')"
    )
    share = page.run(f"{share}.querySelector('.share').textContent")
    assert set_value(page, "#class", 2, text("verdict") + " + " + text("probability")) == ""
    page.until(text("probability") + f" === {json.dumps(share)}", 60)
    page.until(QUIET, 120)
    page.run("document.getElementById('run-sanity').click(), document.getElementById('class').value = 0")
    page.run("document.getElementById('class').onchange()")  # while the layers of class 2 are randomized
    page.until(QUIET, 120)
    assert page.run(text("verdict")) == "" and page.run(count("#sanity figure")) == 0


def see_two_images_and_the_training(page):
    """Where two images part; a slider over the checkpoints, from before the first step on."""
    click(page, "#tab-compare")
    page.until(count("#similarity .line") + " === 1 && " + count("#differences figure") + " === 3")
    set_value(page, "#part", 0)
    page.until(text("differing") + ".startsWith('Units that differ most at stage 0:')")
    click(page, "#others button", 5)
    page.until("document.querySelectorAll('#others button')[5].ariaPressed === 'true'")
    page.until(QUIET)
    click(page, "#tab-training")
    page.until(count("#stepfilters .tile") + " === 2 && " + count("#runcurves .line") + " > 1")
    last = page.run("document.querySelector('#stepfilters img').src")
    slide = "(() => { const it = document.getElementById('step'); it.value = 0; it.oninput() })()"
    page.run(slide)
    page.until(text("steptext") + " === 'before training' && " + QUIET)
    assert page.run("document.querySelector('#stepfilters img').src") != last


def see_the_operations(page):
    """The module's numbers, where one comes from, and a pixel turned over."""
    click(page, "#tab-operations")
    page.until(count("#m-pooling td") + " === 2")
    row = "document.querySelector('#m-convolution tr').innerText.split(/\\s+/).join(' ')"
    assert page.run(row) == "-0.11 1 -0.11"
    page.run("document.querySelectorAll('#m-convolution td')[1].onpointerenter()")
    assert page.run(count("#m-image .seen")) == 9
    assert page.run(text("sum")).endswith(") / 9 = 1")
    click(page, "#m-image td")
    page.until("document.querySelector('#m-convolution td').innerText !== '-0.11'")
    before = page.run("document.querySelectorAll('#m-image td')[1].innerText")
    page.run(
        "(() => { const it = document.querySelectorAll('#m-image td')[1]; it.focus();"
        "it.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true})) })()"
    )
    page.until(QUIET)
    assert page.run("document.querySelectorAll('#m-image td')[1].innerText") == str(-int(before))
    assert page.run(focus_on("#m-image td", 1))
    set_value(page, "#m-kernel input", 7)
    page.until(QUIET)
    assert page.run(focus_on("#m-kernel input")) and page.run(count("#m-kernel input")) == 9
    for mode in ("zero", "reflect"):
        set_value(page, "#padding_mode", mode)
        set_value(page, "#padding", 2)
        page.until(QUIET + " && " + count("#m-convolution tr") + " === " + count("#m-image tr") + " + 2")
        last = page.run(count("#m-convolution td")) - 1
        seen = [add_up(page, cell) for cell in (0, last // 2, last)]
        assert seen[0] == seen[2] == (9 if mode == "reflect" else 1)
        assert seen[1] == 9
    page.run("document.getElementById('padding').value = 7")  # typed, but not entered yet
    assert add_up(page, 0) == 9
    results = ", ".join(f"#m-{name} td" for name in ("convolution", "relu", "pooling"))
    for name, wrong, right in (("padding", 99, 2), ("divisor", 0, 9)):
        set_value(page, f"#{name}", wrong)
        refused = f"document.querySelector('#play-panel > .error')?.textContent.startsWith('{name}={wrong};')"
        page.until(refused + f" && {QUIET}")
        assert page.run(count(results)) == 0  # they would be those of other numbers
        set_value(page, f"#{name}", right)
        page.until(count(".error:not([hidden])") + f" === 0 && {QUIET}")
        assert add_up(page, 0) == 9


def add_up(page, cell):
    """Checks the sum that the page writes for a value; returns how many pixels it marks."""
    page.run("document.querySelectorAll('#m-image .seen').forEach((it) => it.classList.remove('seen'))")
    page.run(f"document.querySelectorAll('#m-convolution td')[{cell}].onpointerenter()")
    terms, value = page.run(text("sum")).replace("\N{MINUS SIGN}", "-").split(" = ")
    products, _, divisor = terms.strip("(").partition(") / ")
    total = sum(np.prod(list(map(float, term.split("·")))) for term in products.split(" + "))
    assert total / float(divisor or 1) == pytest.approx(float(value), rel=0.01)
    return page.run(count("#m-image .seen"))


def see_uploads_drawings_and_mistakes(page, one, tmp_path):
    """An upload, a line drawn by the mouse, and what is no image, told beside the click."""
    (tmp_path / "one.png").write_bytes(one)
    click(page, "#tab-network")
    page.choose_file("#file", tmp_path / "one.png")
    page.until(text("truth") + " === '' && " + count("#predictions li") + " === 3")
    before = page.run("document.getElementById('image').src")
    click(page, "#draw")
    page.run(
        "(() => { const canvas = document.getElementById('canvas'), area = canvas.getBoundingClientRect();"
        "const send = (kind, x) => canvas.dispatchEvent(new PointerEvent(kind, {clientX: area.left + x,"
        "clientY: area.top + 40, buttons: 1, pointerId: 1, bubbles: true}));"
        "canvas.setPointerCapture = () => {}; send('pointerdown', 20); send('pointermove', 90) })()"
    )
    page.until(f"document.getElementById('image').src !== {json.dumps(before)}")
    page.run("document.getElementById('file').oninput = (event) => { window.file = event.target.files[0] }")
    page.choose_file("#file", tmp_path / "one.png")  # again
    page.until(f"document.getElementById('image').src === {json.dumps(before)} && {QUIET}")
    (tmp_path / "one.png").unlink()
    drop = "document.getElementById('side').ondrop({preventDefault() {}, dataTransfer: {files: [%s]}})"
    error = "document.querySelector('#side > .error')?.textContent"
    page.run(drop % "window.file")
    page.until(f"{error}?.startsWith('one.png: ') && {error}.includes('not be found')")
    page.run(drop % "new File([new Uint8Array(25e6)], 'large.png')")
    page.until(f"{error}?.includes('more than 20 MB')")
    (tmp_path / "two.png").write_bytes(b"no image")
    page.choose_file("#file", tmp_path / "two.png")
    page.until("document.querySelector('#side > .error')?.textContent.includes('not a readable image')")


LONG = ("n" * 120, "\u05e9\u05dc", ("two words " * 12).strip())


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
def test_a_browser_shows_long_and_hebrew_names_and_wide_images(tiny_config, tmp_path):
    """Of a run with one row of metrics, whose images are 6 high and 16 wide."""
    arrays = tiny_arrays()
    wide = {name: np.tile(x[:, :6], (1, 1, 2, 1)) for name, x in arrays.items() if x.ndim == 4}
    np.savez(tmp_path / "wide.npz", **(arrays | wide), class_names=np.array(LONG))
    tiny_config.data.name, tiny_config.augment.train = f"npz:{tmp_path / 'wide.npz'}", "normalize"
    tiny_config.total_epochs, tiny_config.optimizer.warmup_epochs = 1.0, 0.0
    tiny_config.log_every_steps = 5
    train.train(tiny_config, tmp_path / "run")
    beyond = (
        "[...document.querySelectorAll('main figcaption, main label, main select, main .name, #seen *')]"
        ".filter((it) => it.clientWidth && it.getBoundingClientRect().right > "
        "it.closest('.panel').getBoundingClientRect().right).map((it) => it.outerHTML)"
    )
    with served(tmp_path / "run", tmp_path) as page:
        click(page, "#rail .card")
        page.until(count("#best figcaption bdi") + " > 0 && " + QUIET)
        for width in (1280, 390):
            page.show_as(width, dark=False)
            for name in ("network", "reasons", "compare", "training"):
                click(page, f"#tab-{name}")
                page.until(QUIET, 120)
                assert page.run("document.documentElement.scrollWidth") <= width, name
                assert page.run(beyond) == [], (name, width)
        titles = "[...document.querySelectorAll('#predictions .name')].map((it) => it.title)"
        assert set(page.run(titles)) == set(LONG)
        click(page, "#tab-network")
        click(page, "#rail .card", page.run(count("#rail .card")) - 1)
        page.until(count("#maps .value") + " === 3 && " + QUIET)
        titles = "[...document.querySelectorAll('#maps .value span:first-child')].map((it) => it.title)"
        assert page.run(titles) == list(LONG)
        click(page, "#draw")
        board = page.run("(({width, height}) => [width, height])(document.getElementById('canvas'))")
        assert board == [280, 105]
        click(page, "#tab-training")
        for step, labels in (("step 5,", 1), ("before training", 3)):  # all points are of step 5
            page.until(text("steptext") + f".startsWith('{step}') && {QUIET}")
            assert page.run(count("#runcurves circle.line")) == 4
            assert page.run(count("#runcurves svg:first-of-type text")) == 2 * (5 + labels + 1)
            assert page.run("document.querySelector('#runcurves line.mark').x1.baseVal.value") == 46
            page.run("(() => { const it = document.getElementById('step'); it.value = 0; it.oninput() })()")


def test_the_page_and_its_words_agree():
    """Every element that the script asks for is on the page."""
    import re

    folder = Path(server.__file__).parent
    html, script = (folder / "index.html").read_text(), SCRIPT
    for name in set(re.findall(r'\$\("([\w-]+)"\)', script)):
        assert f'id="{name}"' in html, name
    assert {f"/{path.name}" for path in folder.glob("*.js")} <= server.FILES.keys()


OPERATION = {"image": [[1, 2], [3, 4]], "kernel": [[1]], "padding": 0, "stride": 1, "window": 2}
OPERATION |= {"pool_stride": 2, "padding_mode": "zero", "pooling": "max"}
STRANGE = [None, True, -1, 1.5, 65, 10**17, 1e300, float("nan"), float("inf"), "1", "\x1b[2J", [], {}, [[]]]
STRANGE += [
    [None],
    [[True]],
    [["1"]],
    [[1], 2],
    [[[1]]],
    [[1e300]],
    [[float("nan")]],
    [[1, 2], [3]],
    {"a": 1},
]


@pytest.mark.parametrize("name", [*OPERATION, "other"])
def test_any_value_of_an_operation_is_refused_in_one_line(client, name):
    assert client.post("/api/operation", content=json.dumps(OPERATION)).status_code == 200
    lacking = [{key: value for key, value in OPERATION.items() if key != name}] if name in OPERATION else []
    for asked in lacking + [OPERATION | {name: value} for value in STRANGE]:
        reply = client.post("/api/operation", content=json.dumps(asked))
        assert reply.status_code == 400, asked
        assert reply.json()["error"].isprintable()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b"{", b"\xff", b"\xef\xbb\xbf{}", b"[" * 400_000, b'{"a":' * 100_000, b"NaN"),
        *(
            b"1" * 900_000,
            b'{"stride": ' + b"9" * 900_000 + b"}",
            b'{"stride": 1, "stride": 2}',
            b"\0" * 1000,
        ),
        *(b'"\\ud800"', b'{"\\ud800\\u001b[2J": 1}', b'{"' + b"x" * 900_000 + b'": 1}', b"x" * 1_000_001),
    ],
)
def test_hostile_json_is_refused_in_one_line(client, body):
    reply = client.post("/api/operation", content=body)
    assert reply.status_code == (413 if len(body) > 1_000_000 else 400)
    assert reply.json()["error"].isprintable()
    assert len(reply.content) < 9000


@pytest.mark.parametrize(
    "query",
    [
        *("", "?id", "?id=1", "?id=1&layer=conv1&x=1", "?layer=%1b%5b2J&unit=1", "?layer=conv2&unit=-1"),
        *(
            "?layer=conv2&unit=9999999999999999",
            "?layer=conv2&unit=%d9%a1",
            "?id=%00&class=1",
            "?id=&layer=%ff",
        ),
        *(f"?{'x' * 5000}=1", "?picture=%3Cscript%3E&filter=loop", "?id=x&class=0x1", "?id=x&class="),
    ],
)
def test_hostile_addresses_are_refused_in_one_line(client, query):
    for path in ("/api/maps", "/api/heat", "/api/unit", "/api/window", "/api/step", "/api/example"):
        reply = client.get(path + query)
        assert reply.status_code == 400, (path, query)
        assert reply.json()["error"].isprintable()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_every_reply_carries_the_headers(client, method):
    for path in (
        *server.FILES,
        "/api/model",
        "/api/maps",
        "/api/operation",
        "/api/upload",
        "/none",
        "/%2e%2e/x",
    ):
        for headers in ({}, {"host": "evil.example"}, {"origin": "null"}):
            reply = client.request(method, path, headers=headers)
            for name, value in server.HEADERS.items():
                assert reply.headers.get_list(name) == [value], (method, path, name)
    assert client.request(method, "/").status_code == (200 if method in ("GET", "HEAD") else 405)


def test_an_error_of_the_program_carries_the_headers_too(trained, monkeypatch):
    monkeypatch.setattr(operations, "example", lambda *given: 1 / 0)
    app = server.make_app(server.Page.of(trained))
    asking = testclient.TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    reply = asking.get("/api/example?picture=9&filter=loop")
    assert reply.status_code == 500
    assert reply.headers["x-frame-options"] == "DENY"


def test_a_network_that_knows_nothing_is_told(trained, one):
    """NaN is no JSON."""
    lost = jax.tree.map(lambda x: x * float("nan"), trained.variables)
    app = server.make_app(server.Page.of(dataclasses.replace(trained, variables=lost)))
    reply = testclient.TestClient(app, base_url="http://127.0.0.1").post("/api/upload", content=one)
    assert (reply.status_code, reply.json()) == (400, {"error": "the result is not finite"})


def test_names_in_answers_are_visible(trained, one):
    names = ("\x1b[2J", "\u202e<script>", "\udcff" + "n" * 5000)
    shown = views.Views(dataclasses.replace(trained, class_names=names))
    told = shown.upload(one)["predictions"]
    assert all(row["class"].isprintable() and len(row["class"]) < 3000 for row in told)
    assert [shown.model()["classes"][row["label"]] for row in told] == [row["class"] for row in told]


def test_a_model_alone_is_shown_with_random_weights_and_borrowed_images(capsys):
    given = {"workdir": None, "weights": "raw"}
    shown = views.Views(explore._untrained(model="lenet5", **given))
    assert "random weights" in capsys.readouterr().err
    assert explore._untrained(model="", **given) is None
    assert not shown.model()["learned"]
    samples = shown.samples()
    assert (samples["own"], len(samples["images"])) == (False, 24)
    seen = shown.look("s0")
    assert seen["truth"] == ""
    likely = [row["probability"] for row in seen["predictions"]]
    assert len(likely) == 5 and likely == sorted(likely, reverse=True)
    assert 0.5 <= sum(likely) < 1  # the likelier half of lenet5's ten classes


@pytest.mark.parametrize("name", ["nin_cifar", "lenet5", "resnet20_cifar"])
def test_what_the_page_is_told_of_a_network_is_json(trained, name):
    """Numbers of shapes and borders may be NumPy's; nothing is computed here."""
    model = create_model(name, num_classes=3)
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (8, 8, 1)))
    shown = views.Views(dataclasses.replace(trained, model=model, variables=variables, spec=name))
    told = json.loads(json.dumps(shown.model(), allow_nan=False))
    assert {"convolution", "dense layer"} & {row["kind"] for row in told["stages"]}
    assert any(row["rule"] for row in told["stages"])


def test_the_script_makes_no_html_of_text():
    script = SCRIPT
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert word not in script


@pytest.fixture
def port(app, monkeypatch):
    """Of a server that waits for half a second."""
    monkeypatch.setattr(server, "SECONDS", 0.5)
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 30)
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()
        running = uvicorn.Server(server.settings(app))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [opened]})
        thread.start()
        yield opened.getsockname()[1]
        running.should_exit = True
        thread.join(10)


def ask(port: int, text: bytes = b"") -> bytes:
    """What the server sends until it closes the connection, whether all was sent or not."""
    with socket.create_connection(("127.0.0.1", port), 10) as opened:
        opened.sendall(text)
        return b"".join(iter(lambda: opened.recv(2**16), b""))


def test_half_a_request_is_ended_in_time(port, capfd):
    host = f"Host: 127.0.0.1:{port}\r\n".encode()
    for head in (b"", b"GET / HT", b"GET / HTTP/1.1\r\n" + host):
        with contextlib.suppress(ConnectionResetError):
            assert ask(port, head) == b""
    head = b"POST /api/operation HTTP/1.1\r\n" + host
    for body in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
        with socket.create_connection(("127.0.0.1", port), 10) as opened:
            opened.sendall(head + body)
            reply = opened.recv(2**16)
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b"x-frame-options: DENY" in reply
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        *(b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\0\x01" + b"\n" * 99, b"GET / HTTP/9.9\r\n\r\n"),
        *(b"GET  / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nbad\r\n\r\n"),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
        b"GET /\x1b[2J HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /api/operation HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /api/operation HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_gets_400_with_the_headers_and_writes_nothing(port, capfd, text):
    with socket.create_connection(("127.0.0.1", port), 10) as opened:
        opened.sendall(text)
        reply = opened.recv(2**16)
    assert reply.startswith(b"HTTP/1.1 400 ")
    for name, value in server.HEADERS.items():
        assert f"{name}: {value}\r\n".lower().encode() in reply.lower()
    assert capfd.readouterr().err == ""


def test_clients_that_leave_and_many_connections_write_nothing(port, capfd, one):
    host = f"Host: 127.0.0.1:{port}\r\n".encode()
    length = f"Content-Length: {len(one)}\r\n\r\n".encode()
    for head in (
        b"GET /api/model HTTP/1.1\r\n" + host + b"\r\n",
        b"POST /api/upload HTTP/1.1\r\n" + host + b"Content-Length: 5000\r\n\r\n\x89PNG",
        b"POST /api/upload HTTP/1.1\r\n" + host + length + one,
        b"GET /" + b"x" * 100,
    ):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), 10) as opened:
                reset = struct.pack("ii", 1, 0)
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                opened.sendall(head)
    many = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(60)]
    for opened in many:
        opened.close()
    time.sleep(0.7)
    reply = ask(port, b"GET / HTTP/1.1\r\nConnection: close\r\n" + host + b"\r\n")
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert capfd.readouterr().err == ""
