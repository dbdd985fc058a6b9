"""Trained networks by name, from a server of this machine: nothing here needs the network."""

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import cnnjax
from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.data import web
from cnnjax.data.datasets import load
from cnnjax.data.sources.classes import imagenet_ids, imagenet_names
from cnnjax.data.web import NoNetwork
from cnnjax.errors import UserError
from cnnjax.models import create_model, init_variables, variants
from cnnjax.models.variants import Preset
from cnnjax.models.weights import files, published, to_torch
from cnnjax.runs import hub, pretrained
from cnnjax.runs.experiment import build
from cnnjax.runs.pretrained import resolve
from tests import ROOT
from tests.loopback import Server, serving

MODEL = "resnet18"
SPEC = 'resnet18(stage_sizes=(1,1),widths=(4,8),stem="cifar")'  # a small one, with torch's names
COMMIT, OTHER = "1" * 40, "2" * 40
CONFIG = {
    "architecture": "resnet_there",
    "num_classes": 3,
    "label_names": ["ant", "bee", "cat"],
    "pretrained_cfg": {
        "input_size": [3, 32, 40],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "num_classes": 3,
        "license": "mit",
        "more": None,
    },
}


def weights(num_classes: int = 3) -> dict[str, np.ndarray]:
    """A state dict of torch's names, all of its values small."""
    model = create_model(SPEC, num_classes=num_classes)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (64, 64, 3)))
    draw = np.random.default_rng(0)
    arrays = jax.tree.map(lambda leaf: draw.uniform(0, 0.05, leaf.shape).astype(np.float32), shapes)
    return to_torch(arrays, model)


@pytest.fixture(scope="module")
def body(tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("weights") / "a.safetensors"
    files.write(file, weights())
    return file.read_bytes()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that stands for torchvision's and for the Hub, and caches of nobody else."""
    monkeypatch.setattr(web, "PAUSE", 0.01)
    for name in (*os.environ,):
        if name.startswith(("HF_", "HUGGINGFACE_", "TORCH_HOME", "CNNJAX_OFFLINE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with serving() as server:
        monkeypatch.setenv("CNNJAX_TORCHVISION_URL", f"{server.address}/models")
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture
def table(monkeypatch, tmp_path, body):
    """The tables of published weights, with one row each of a small network."""
    digits = hashlib.sha256(body).hexdigest()[:8]
    how = {"interpolation": "bilinear", "mean": "0.5 0.5 0.5", "std": "0.2 0.2 0.2", "license": "BSD"}
    scores = {"top1": 58.1, "top5": 80.6, "crop": 32, "resize": 36, "params": 1, "recipe": ""}
    row = {"model": MODEL, "tag": "V1", "default": 0, "file": f"resnet-{digits}.safetensors", "mb": 2.8}
    rows = {
        "torchvision.csv": [row | how | scores, row | how | scores | {"tag": "V2", "default": 1}],
        "timm.csv": [
            {
                "model": MODEL,
                "timm": "resnet_there",
                "tag": "a1",
                "default": 1,
                "hub": "timm/resnet_there.a1",
            }
            | {"mb": 2.8, "classes": 3, "input": 32, "crop_pct": 0.9, "crop_mode": "center"}
            | how
        ],
    }
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, lines in rows.items():
        with (folder / name).open("w", newline="") as file:
            out = csv.DictWriter(file, lines[0])
            out.writeheader()
            out.writerows(lines)
    monkeypatch.setattr(published, "HERE", folder)
    published.published.cache_clear()
    yield row["file"]
    published.published.cache_clear()


def serve_hub(server: Server, repository: str, contents: dict[str, bytes], commit: str = COMMIT) -> None:
    """Puts a repository on the server, as the Hub answers for it."""
    siblings = []
    for name, data in contents.items():
        large = name.endswith(".safetensors")
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        lfs = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}} if large else {}
        siblings.append({"rfilename": name, "size": len(data), "blobId": git, **lfs})
        server.files[f"/{repository}/resolve/{commit}/{name}"] = data
    answer = {"sha": commit, "siblings": siblings, "gated": False}
    for revision in ("main", commit):
        server.files[f"/api/models/{repository}/revision/{revision}"] = json.dumps(answer).encode()


def repository(body: bytes, **more: object) -> dict[str, bytes]:
    return {hub.CONFIG: json.dumps(CONFIG | more).encode(), hub.WEIGHTS: body, "README.md": b"# a"}


def fails(*args: str, kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        resolve(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The tables of the package.


def test_the_tables_name_networks_of_here():
    rows = published.published()
    assert {row.model for row in rows} <= variants().keys()
    assert len({row.name for row in rows}) == len(rows)
    assert sum(row.default for row in rows if row.source == "torchvision") == len(
        {row.model for row in rows if row.source == "torchvision"}
    )
    for row in rows:
        assert row.mb > 0 and row.license and row.preset.input_size[2] == 3
        assert row.source == "timm" or (50 < row.top1 < 90 and row.preset.resize >= row.preset.input_size[0])
        assert row.source == "timm" or pretrained._digits(row.place)
    best = published.find("torchvision", "resnet50")
    assert (best.tag, best.place, best.top1) == ("IMAGENET1K_V2", "resnet50-11ad3fa6.pth", 80.858)
    assert best.preset == Preset(resize=232)
    first = published.find("torchvision", "resnet50", "IMAGENET1K_V1").preset
    assert first == variants()["resnet50"].preset
    assert published.find("timm", "resnet50", "a1_in1k").preset.resize == 235


def test_the_models_command_lists_the_weights(capsys):
    out = run(capsys, "models", "resnet18")
    row = published.find("torchvision", "resnet18")
    assert f"torchvision:{row.tag} (default)" in out and f"{row.top1:.2f} / {row.top5:.2f}" in out
    assert f"timm:{published.find('timm', 'resnet18').tag} (default)" in out


def test_imagenet_has_a_thousand_classes():
    assert len(imagenet_names()) == len(set(imagenet_ids().values())) == 1000
    assert imagenet_names()[281] == "tabby" and imagenet_ids()["tabby"] == "n02123045"


# torchvision.


@pytest.mark.parametrize("rest", ["", ":V2", f":{MODEL}", f":{MODEL}:V2"])
def test_torchvisions_weights_are_fetched_once(server, table, body, rest):
    server.files[f"/models/{table}"] = body
    for _ in range(2):
        found = resolve(f"torchvision{rest}", MODEL)
        assert (found.source, found.spec, found.license) == (f"torchvision:{MODEL}:V2", MODEL, "BSD")
        assert found.file.read_bytes() == body
        assert (found.preset.resize, found.preset.mean) == (36, (0.5, 0.5, 0.5))
        assert found.class_names == imagenet_names()
    assert len(server.requests) == 1
    assert os.stat(found.file.parents[2]).st_mode & 0o777 == 0o700


def test_the_network_is_told_by_the_name(server, table, body):
    server.files[f"/models/{table}"] = body
    assert resolve(f"torchvision:{MODEL}:V1").spec == MODEL
    assert resolve("torchvision", f"{MODEL}(num_classes=1000)").spec == f"{MODEL}(num_classes=1000)"
    assert "of which network" in fails("torchvision") and "of which network" in fails("timm")


def test_torchs_own_cache_is_used_and_never_written(server, table, body, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    there = tmp_path / "torch" / "hub" / "checkpoints" / table
    there.parent.mkdir(parents=True)
    there.write_bytes(body)
    assert resolve("torchvision", MODEL).file == there and not server.requests
    there.write_bytes(body[:-1] + b"x")  # damaged, or of an older name
    server.files[f"/models/{table}"] = body
    assert resolve("torchvision", MODEL).file.is_relative_to(tmp_path / "xdg")
    assert there.read_bytes() == body[:-1] + b"x"


def test_without_a_network_one_line_says_what_to_do(server, table, body, monkeypatch):
    monkeypatch.setenv("CNNJAX_TORCHVISION_URL", "http://127.0.0.1:9/models")
    text = fails("torchvision", MODEL, kind=NoNetwork)
    address, path = f"http://127.0.0.1:9/models/{table}", text.rpartition(" ")[2]
    assert f"download {address} by hand and save it as {path}" in text
    Path(path).write_bytes(body)
    assert resolve("torchvision", MODEL).file == Path(path)


def test_another_file_of_the_name_is_refused(server, table, body):
    server.files[f"/models/{table}"] = body[:-1] + b"x"
    assert "SHA-256 is" in fails("torchvision", MODEL)
    server.files[f"/models/{table}"] = body
    assert resolve("torchvision", MODEL).file.read_bytes() == body


def test_a_cache_open_to_others_is_refused(server, table, body, tmp_path):
    server.files[f"/models/{table}"] = body
    resolve("torchvision", MODEL)
    (tmp_path / "xdg" / "cnnjax").chmod(0o777)
    assert "chmod 700" in fails("torchvision", MODEL)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("torchvision", "lenet5"), "lenet5 has no weights of torchvision; networks that have: "),
        (("torchvision:lenet5",), "networks that have: resnet18"),
        (("torchvision:V3", MODEL), "unknown weights of torchvision for resnet18 'V3'"),
        (("timm:a2", MODEL), "unknown weights of timm for resnet18 'a2'"),
        (
            ("nowhere", MODEL),
            "nowhere is neither a run folder nor a weights file; allowed: a run",
        ),
        (("hf:nobody",), "is not a repository"),
        (("hf:a/../b",), "is not a repository"),
        (("hf:a/b@../c",), "is not a repository"),
        (("https://u:p@host/a.pth", MODEL), "is not an address"),
    ],
)
def test_what_is_not_there_is_one_line(server, table, args, words):
    assert words in fails(*args) and not server.requests


# The Hub.


def test_a_repository_is_a_network_with_its_pixels(server, table, body):
    serve_hub(server, "org/net", repository(body))
    for _ in range(2):
        found = resolve("hf:org/net")
        assert (found.spec, found.class_names, found.license) == (MODEL, ("ant", "bee", "cat"), "mit")
        shape, resize, how = found.preset.input_size, found.preset.resize, found.preset.interpolation
        assert (shape, resize, how) == ((32, 40, 3), 35, "bicubic")
        assert (found.preset.mean, found.preset.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert found.file.read_bytes() == body
    assert len(server.asked("/resolve/")) == 2  # each file once
    assert "README" not in str(server.requests)


def test_timms_weights_are_a_repository(server, table, body):
    serve_hub(server, "timm/resnet_there.a1", repository(body))
    for args in (("timm", MODEL), ("timm:a1", MODEL), ("timm:resnet_there.a1",), (f"timm:{MODEL}",)):
        found = resolve(*args)
        assert (found.source, found.spec) == ("timm:resnet_there.a1", MODEL)
        assert found.preset.resize == 35 and found.class_names == ()


def test_a_newer_commit_is_fetched_and_the_last_one_used_without_a_network(server, table, body, monkeypatch):
    serve_hub(server, "org/net", repository(body))
    first = resolve("hf:org/net").file
    newer = repository(body, label_names=["x", "y", "z"])
    serve_hub(server, "org/net", newer, OTHER)
    found = resolve("hf:org/net")
    assert found.class_names == ("x", "y", "z") and found.file != first
    assert len(server.asked(hub.WEIGHTS)) == 1  # which is the same in both
    assert resolve(f"hf:org/net@{COMMIT}").class_names == ("ant", "bee", "cat")
    monkeypatch.setenv("CNNJAX_OFFLINE", "1")
    assert resolve("hf:org/net").class_names == ("x", "y", "z")


def test_sharded_weights_are_all_fetched(server, table, body):
    shard = "model-00001-of-00001.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights(), shard)}
    contents = repository(body) | {hub.INDEX: json.dumps(index).encode(), shard: body}
    del contents[hub.WEIGHTS]
    serve_hub(server, "org/net", contents)
    found = resolve("hf:org/net")
    assert found.file.name == hub.INDEX and (found.file.parent / shard).read_bytes() == body
    index["weight_map"]["b"] = "../../etc/passwd"
    serve_hub(server, "org/bad", contents | {hub.INDEX: json.dumps(index).encode()})
    assert "does not name files next to it" in fails("hf:org/bad")


def test_the_hubs_own_cache_is_used_and_never_written(server, table, body, monkeypatch, tmp_path):
    theirs = tmp_path / "hf" / "hub" / "models--org--net"
    here = theirs / "snapshots" / COMMIT
    for folder in (here, theirs / "blobs", theirs / "refs"):
        folder.mkdir(parents=True)
    (theirs / "refs" / "main").write_text(COMMIT)
    contents = repository(body)
    for name in (hub.CONFIG, hub.WEIGHTS):
        data = contents[name]
        digits = (
            hashlib.sha256(data).hexdigest()
            if name == hub.WEIGHTS
            else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )
        (theirs / "blobs" / digits).write_bytes(data)
        (here / name).symlink_to(f"../../blobs/{digits}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    before = sorted(theirs.rglob("*"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("hf:org/net").file == here / hub.WEIGHTS
    monkeypatch.delenv("HF_HUB_OFFLINE")
    serve_hub(server, "org/net", contents)
    assert resolve("hf:org/net").file == here / hub.WEIGHTS and not server.asked("/resolve/")
    (theirs / "blobs" / digits).write_bytes(body[:-1] + b"x")
    assert resolve("hf:org/net").file.is_relative_to(tmp_path / "xdg")
    assert sorted(theirs.rglob("*")) == before
    shutil.rmtree(tmp_path / "xdg" / "cnnjax" / "weights")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is damaged; delete it" in fails("hf:org/net")


def test_the_hub_is_told_the_token_and_no_other_host(server, table, body, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    serve_hub(server, "org/net", repository(body))
    with serving() as other:
        other.files["/far"] = body
        server.files[f"/org/net/resolve/{COMMIT}/{hub.WEIGHTS}"] = f"{other.address}/far?sig=1"
        resolve("hf:org/net")
        assert all(headers["authorization"] == "Bearer hf_secret" for headers in server.asked())
        assert other.asked() and not any("authorization" in headers for headers in other.asked())
    server.files["/api/models/org/secret/revision/main"] = 401
    assert "HF_TOKEN" in (text := fails("hf:org/secret")) and "hf_secret" not in text
    monkeypatch.setenv("HF_TOKEN", "hf secret\n x")
    assert "HF_TOKEN contains" in (text := fails("hf:org/net")) and "secret" not in text


def test_a_repository_that_cannot_be_reached_says_what_to_fetch(server, table, body, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    text = fails("hf:org/net", kind=NoNetwork)
    assert f"http://127.0.0.1:9/org/net/resolve/main/{hub.CONFIG}" in text
    folder = Path(text.rpartition(" ")[2])
    folder.mkdir(parents=True)
    for name, data in repository(body).items():
        (folder / name).write_bytes(data)
    assert resolve("hf:org/net").file.read_bytes() == body


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "vit"}, "architecture 'vit' is not"),
        ({"architecture": "-"}, "architecture '-' is not"),
        ({"architecture": 3}, "architecture is 3"),
        ({"pretrained_cfg": []}, "pretrained_cfg is"),
        ({"pretrained_cfg": {"input_size": [3]}}, "input_size=[3]"),
        ({"pretrained_cfg": {"input_size": [3, 0, 8]}}, "input_size=[3, 0, 8]"),
        ({"pretrained_cfg": {"input_size": [1, 8, 8]}}, "mean="),
        ({"pretrained_cfg": {"input_size": [3, 8, 8], "crop_pct": 0}}, "crop_pct=0"),
        ({"label_names": [1]}, "label_names"),
        ({"cnnjax": {"model": 1}}, "cnnjax"),
    ],
)
def test_a_config_of_another_kind_is_one_line(server, table, body, tmp_path, change, words):
    for name, data in repository(body, **change).items():
        (tmp_path / name).write_bytes(data)
    assert words in fails(str(tmp_path))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>", "invalid response"),
        (b"{}", "is not a Hub"),
        (json.dumps({"sha": COMMIT, "siblings": [1, {"rfilename": "a.bin"}]}).encode(), "it has a.bin"),
        (404, "404"),
    ],
)
def test_an_answer_that_is_none_of_the_hub_is_one_line(server, table, answer, words):
    server.files["/api/models/org/net/revision/main"] = answer
    assert words in fails("hf:org/net")


def test_a_folder_like_a_repository_is_read(server, table, body, tmp_path):
    for name, data in repository(body).items():
        (tmp_path / name).write_bytes(data)
    found = resolve(str(tmp_path))
    assert (found.spec, found.file, found.class_names[0]) == (MODEL, tmp_path / hub.WEIGHTS, "ant")


# Addresses and files.


def test_an_address_is_fetched_again_if_its_file_changes(server, table, body, monkeypatch):
    address = f"{server.address}/any/a.safetensors"
    server.files["/any/a.safetensors"] = body
    found = resolve(f"{address}?key=1", MODEL)
    assert (found.source, found.spec, found.preset) == (address, MODEL, variants()[MODEL].preset)
    assert resolve(f"{address}?key=1", MODEL).file == found.file
    server.files["/any/a.safetensors"] = body + b" "
    assert resolve(f"{address}?key=1", MODEL).file.read_bytes() == body + b" "
    found.file.write_bytes(b"damaged")
    assert resolve(f"{address}?key=1", MODEL).file.read_bytes() == body + b" "
    monkeypatch.setenv("CNNJAX_OFFLINE", "1")
    assert resolve(f"{address}?key=1", MODEL).file == found.file
    assert "save it as" in fails(f"{server.address}/b.pth", MODEL, kind=NoNetwork)
    assert "of which network" in fails(f"{address}?key=1")


def test_a_file_of_torchvision_is_known_by_its_name_and_sum(server, table, body, tmp_path):
    file = tmp_path / table
    file.write_bytes(body)
    assert resolve(str(file)).preset.resize == 36
    server.files[f"/mirror/{table}"] = body
    assert resolve(f"{server.address}/mirror/{table}").preset.resize == 36
    file.write_bytes(body + b" ")
    assert resolve(str(file), MODEL).preset == variants()[MODEL].preset


# The doors: without a run folder.

SMALL = f"--model={SPEC}", "--weights=hf:org/net"


@pytest.fixture
def place(server, table, body, tmp_path, monkeypatch):
    """Weights of torchvision's and of a repository on the server, and images in folders by class."""
    server.files[f"/models/{table}"] = body
    serve_hub(server, "org/net", repository(body))
    draw = np.random.default_rng(0)
    for name in ("bee", "ant"):  # without cats, and in another order
        folder = tmp_path / "images" / "test" / name
        folder.mkdir(parents=True)
        for i, shape in enumerate([(50, 70, 3), (41, 33, 3), (90, 40, 3)]):
            Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words: str, code: int = 0) -> str:
    assert main.run([*words]) == code, capsys.readouterr().err
    out = capsys.readouterr()
    return out.out if code == 0 else out.err


def test_predict_takes_weights_by_name(place, capsys):
    image = "images/test/bee/0.png"
    row = json.loads(run(capsys, "predict", *SMALL, image, "--json"))
    trained = cnnjax.load_model(SPEC, "hf:org/net")
    assert trained.image_shape == trained.input_shape == (32, 40, 3)
    (own,) = trained.predict(image)
    assert [each["class"] for each in row["classes"]] == [name for name, _ in own.top]
    assert {each["class"] for each in row["classes"]} == {"ant", "bee", "cat"}
    pixels = np.asarray(Image.open(image).resize((int(35 * 70 / 50), 35), Image.Resampling.BICUBIC))
    top, left = round((35 - 32) / 2), round((pixels.shape[1] - 40) / 2)
    cut = pixels[top : top + 32, left : left + 40]
    cut = (cut.astype(np.float32) / 255 - (0.1, 0.2, 0.3)) / np.asarray((0.4, 0.5, 0.6))
    by_hand = jax.nn.softmax(trained.model.apply(trained.variables, cut[None].astype(np.float32)))[0]
    np.testing.assert_allclose(own.probabilities, by_hand, atol=1e-5)


def test_evaluate_matches_classes_by_name(place, capsys):
    words = "evaluate", *SMALL, "--json"
    metrics = json.loads(run(capsys, *words, "--data=folder:images"))
    assert metrics["count"] == 6 and list(metrics["per_class"]["support"]) == [3, 3, 0]
    predictions = cnnjax.load_model(SPEC, "hf:org/net").predict("images/test")
    right = [each.top[0][0] == Path(each.name).parent.name for each in predictions]
    assert metrics["accuracy"] == pytest.approx(np.mean(right))
    assert "come without images; name a data set" in run(capsys, *words, code=2)
    Path("images/test/ant").rename("images/test/dog")
    assert "dog" in (text := run(capsys, *words, "--data=folder:images", code=2)) and "ant, bee, cat" in text


def test_explore_and_export_take_weights_by_name(place, capsys):
    from cnnjax.explore.page.views import Views

    Path("names.txt").write_text("a\nb\nc\n")
    source = f"--model={SPEC}", f"--weights={resolve('hf:org/net', SPEC).file}"
    run(capsys, "export", *source, "--out=a.safetensors", "--class_names=names.txt")
    facts = json.loads(Path("a.safetensors.json").read_text())
    assert facts["model"] == SPEC and facts["class_names"] == ["a", "b", "c"] and "config" not in facts
    shown = Views(cnnjax.load_model(SPEC, "hf:org/net")).model()
    assert shown["model"] == SPEC and shown["classes"] == ["ant", "bee", "cat"]


def test_an_import_has_the_classes_of_its_file(place, capsys):
    run(capsys, "weights", "import", "hf:org/net", f"--model={SPEC}", "--workdir=a")
    assert cnnjax.load_run("a").class_names == ("ant", "bee", "cat")
    Path("names.txt").write_text("x\ny\nz\n")
    file = str(resolve("hf:org/net", SPEC).file)
    run(capsys, "weights", "import", file, f"--model={SPEC}", "--workdir=b", "--class_names=names.txt")
    run(capsys, "weights", "import", file, f"--model={SPEC}", "--workdir=c")
    assert cnnjax.load_run("b").class_names == ("x", "y", "z")
    assert cnnjax.load_run("c").class_names == ("0", "1", "2")
    image = "images/test/bee/0.png"
    assert cnnjax.load_run("c").predict(image)[0].probabilities.shape == (3,)
    Path("names.txt").write_text("x\ny\n")
    words = "weights", "import", file, f"--model={SPEC}", "--workdir=d", "--class_names=names.txt"
    assert "has 2 names; allowed: 3" in run(capsys, *words, code=2) and not Path("d").exists()
    assert (
        cnnjax.load_run("a").predict(image)[0].top
        == cnnjax.load_model(SPEC, "hf:org/net").predict(image)[0].top
    )


def test_training_starts_from_weights_by_name(place, server, capsys):
    shutil.copytree("images/test", "images/train")
    config = config_lib.default()
    config.update({"model": SPEC, "batch_size": 4, "eval_batch_size": 4, "total_epochs": 9.0})
    config.update({"init_from": "hf:org/net", "init_head": "new"})
    config.data.update({"name": "folder:images", "size": 33, "num_validation": 0})
    config.augment.train = "normalize"
    server.requests.clear()
    experiment = build(config)
    state = experiment.init_state()
    assert len(server.asked("/api/")) == 1  # so that all that they bring along is of one commit
    start = cnnjax.load_model(SPEC, "hf:org/net")
    first = start.variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(state.params["stem"]["conv"]["kernel"], first)
    normalize = dict(dict(experiment.eval_augment.steps)["normalize"])
    assert tuple(normalize["mean"]) == (0.1, 0.2, 0.3) and tuple(normalize["std"]) == (0.4, 0.5, 0.6)
    config.init_head = "keep"
    with pytest.raises(UserError, match=r"init_head=new|fc\.bias"):
        build(config)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("predict images", "--workdir is missing; name the run folder"),
        ("predict images --weights=ema", "--workdir is missing"),
        (f"predict images --weights={'x' * 300}", "is neither a run folder nor a weights file"),
        (f"predict images --model={MODEL}", "--model=resnet50 --weights=torchvision"),
        ("predict images --workdir=r --weights=torchvision", "allowed with --workdir: --weights=raw or ema"),
        (f"predict images --workdir=r --model={MODEL}", "cannot be combined with --workdir"),
        ("predict images --weights=torchvision", "of which network"),
        ("predict images --model=lenet5 --weights=torchvision", "lenet5 has no weights of torchvision"),
        ("predict images --model=vgg11 --weights=hf:org/net", "does not fit VGG"),
        (f"evaluate --model={SPEC} --weights=torchvision --data=folder:images", "3 classes but 1000 names"),
        ("predict images --offline --weights=hf:org/other", "--offline"),
        (f"train --offline --config.model={MODEL} --config.init_from=hf:org/other", "--offline"),
    ],
)
def test_mistakes_are_one_line(place, capsys, words, text):
    assert text in (line := run(capsys, *words.split(), code=2)) and line.count("\n") == 1
    assert "CNNJAX_OFFLINE" not in os.environ


def test_images_by_wordnet_id_are_imagenets_classes(tmp_path):
    image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    for name in ("n02123045", "goldfish"):
        (tmp_path / "a" / "test" / name).mkdir(parents=True)
        image.save(tmp_path / "a" / "test" / name / "a.png")
    source = load(f"folder:{tmp_path / 'a'}", "test", class_names=imagenet_names())
    assert sorted(source[i]["label"] for i in range(2)) == [1, 281]
    (tmp_path / "b" / "test").mkdir(parents=True)
    for name in ("n02123045_tabby.png", "n01443537_goldfish.png"):
        image.save(tmp_path / "b" / "test" / name)
    source = load(f"folder:{tmp_path / 'b'}", "test", class_names=imagenet_names())
    assert sorted(source[i]["label"] for i in range(2)) == [1, 281]
    ids = tuple(imagenet_ids().values())
    source = load(f"folder:{tmp_path / 'a'}", "test", class_names=ids[::-1])
    assert sorted(source[i]["label"] for i in range(2)) == [999 - 281, 998]


def test_the_page_shows_ten_lines_that_run(place, capsys):
    """As written, but with a small network of the server in place of ResNet-18, and two small epochs."""
    page = (ROOT / "docs" / "pretrained.md").read_text()
    shell, python = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("sh", "python"))
    Path("images").rename("photos")
    shutil.copytree("photos/test", "photos/train")
    small = {"model=resnet18": f"model={SPEC}", "torchvision": "hf:org/net", "size=224": "size=33"}
    small |= {"batch_size=32": "batch_size=4", "total_epochs=5": "total_epochs=2"}
    lines = shell.replace("\\\n", " ").splitlines()
    assert len(lines) <= 10 and lines[0].startswith("python3 -m venv")
    for line in lines[1:]:
        command, *words = shlex.split(line)
        assert command == "cnnjax"
        if words[0] != "models":
            for word, other in small.items():
                words = [each.replace(word, other) if "=" in each else each for each in words]
        run(capsys, *words)
    out = Path("resnet18-photos")
    metrics = json.loads(Path("runs/photos/test.json").read_text())
    assert f"{100 * metrics['accuracy']:.2f} %" in (out / "README.md").read_text()
    assert cnnjax.load_model(weights=str(out)).class_names == ("ant", "bee")
    python = python.replace('"resnet18"', repr(SPEC)).replace("torchvision", "hf:org/net")
    exec(compile(python, "pretrained.md", "exec"), {})
    assert "photos/test" in capsys.readouterr().out
