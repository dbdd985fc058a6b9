"""Networks as repositories of the Hub, on a server of this machine that answers as it does."""

import base64
import errno
import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import cnnjax
from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.inference import export, push
from cnnjax.inference.model import untrained
from cnnjax.models import create_model
from cnnjax.models.weights import convert, files
from cnnjax.runs import hub, loaded, train
from cnnjax.runs.experiment import build
from cnnjax.runs.pretrained import resolve
from tests.loopback import Server, serving

COMMIT = "3" * 40


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "CNNJAX_OFFLINE", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        accept(server, "me/net")
        yield server


def accept(server: Server, name: str) -> None:
    """Lets the server take one repository, and answer for it afterwards."""
    stored: dict[str, bytes] = {}

    def create(handler, data):
        assert json.loads(data)["name"] == name.partition("/")[2]
        server.files["/api/repos/create"] = 409
        return {"url": f"{server.address}/{name}"}

    def batch(handler, data):
        objects = []
        for each in json.loads(data)["objects"]:
            server.files[f"/put/{each['oid']}"] = put
            actions = {"upload": {"href": f"{server.address}/put/{each['oid']}?signature=S3"}}
            actions["verify"] = {"href": f"{server.address}/verify"}
            objects.append({"oid": each["oid"], "size": each["size"], "actions": actions})
        return {"transfer": "basic", "objects": objects}

    def put(handler, data):
        assert handler.headers["Authorization"] is None
        oid = handler.path.rpartition("/")[2].partition("?")[0]
        assert hashlib.sha256(data).hexdigest() == oid
        stored[oid] = data
        return 200

    def commit(handler, data):
        contents = {}
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                contents[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                contents[value["path"]] = stored[value["oid"]]
        siblings = []
        for path, body in contents.items():
            git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            large = {"lfs": {"sha256": hashlib.sha256(body).hexdigest()}} if path == hub.WEIGHTS else {}
            siblings.append({"rfilename": path, "size": len(body), "blobId": git, **large})
            server.files[f"/{name}/resolve/{COMMIT}/{path}"] = body
        server.files[f"/api/models/{name}/revision/main"] = json.dumps(
            {"sha": COMMIT, "siblings": siblings}
        ).encode()
        return {"commitUrl": f"{server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}

    server.files |= {"/api/repos/create": create, "/verify": lambda handler, data: {}}
    server.files[f"/{name}.git/info/lfs/objects/batch"] = batch
    server.files[f"/api/models/{name}/commit/main"] = commit


def test_a_run_becomes_a_repository_that_loads_again(tiny_run, server, capsys, tmp_path):
    """With its own pixels and classes, and a card that says how well it does."""
    words = "push", f"--workdir={tiny_run}", "hf:me/net", "--license=apache-2.0"
    assert main.run([*words]) == 0, capsys.readouterr().err
    out = capsys.readouterr()
    assert f"wrote {server.address}/me/net" in out.out and "hf_secret" not in out.out + out.err
    writes = [headers for method, _, headers in server.requests if method == "POST"]
    assert {headers["authorization"] for headers in writes} == {"Bearer hf_secret"}
    again, own = cnnjax.load_model(weights="hf:me/net"), cnnjax.load_run(tiny_run)
    assert (again.spec, again.class_names, again.recipe) == (own.spec, own.class_names, own.recipe)
    assert main.run([*words]) == 0, capsys.readouterr().err  # once more, it is there already
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    for a, b in zip(again.predict(images), own.predict(images), strict=True):
        np.testing.assert_array_equal(a.probabilities, b.probabilities)
    assert resolve("hf:me/net").license == "apache-2.0"
    card = server.files[f"/me/net/resolve/{COMMIT}/README.md"].decode()
    test = json.loads((tiny_run / "test.json").read_text())
    assert f"`{100 * test['accuracy']:.2f} %`" in card and 'license: "apache-2.0"' in card
    assert card.startswith("---\n") and own.spec.partition("(")[0] in card


def test_weights_from_elsewhere_keep_their_names(server, tmp_path, capsys):
    """A folder has torch's names, so that torch's users can load it, and is read again."""
    spec = 'resnet18(stage_sizes=(1,1),widths=(4,8),stem="cifar")'
    model = create_model(spec, num_classes=5)
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    files.write(tmp_path / "a.safetensors", cnnjax.models.weights.to_torch(variables, model))
    source = f"--model={spec}", f"--weights={tmp_path / 'a.safetensors'}"
    out = tmp_path / "folder"
    for _ in range(2):
        assert main.run(["push", *source, f"--out={out}", "--offline"]) == 0, capsys.readouterr().err
    assert sorted(each.name for each in out.iterdir()) == sorted([hub.CONFIG, hub.WEIGHTS, "README.md"])
    arrays = files.read(out / hub.WEIGHTS)
    assert "layer1.0.conv1.weight" in arrays and len(arrays["fc.bias"]) == 5
    back = convert(arrays, f"{spec[:-1]},num_classes=5)")
    jax.tree.map(np.testing.assert_array_equal, back, {**variables})
    again = cnnjax.load_model(weights=str(out))
    assert (again.spec, again.class_names) == (spec, ("0", "1", "2", "3", "4"))
    assert again.input_shape == (224, 224, 3)
    (out / "other").write_text("")
    assert main.run(["push", *source, f"--out={out}"]) == 2
    assert "contains files that are not a repository's" in capsys.readouterr().err


def exported(run, tmp_path, capsys) -> Path:
    file = tmp_path / "net.safetensors"
    assert main.run(["export", f"--workdir={run}", f"--out={file}"]) == 0, capsys.readouterr().err
    return file


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ("normalize", None),
        ("normalize(0.5, 0.25)", {"normalize": {"mean": 0.5, "std": 0.25}}),
        ("scale", {"scale": {}}),
        ("mirror|normalize", "mirror is for training; remove it"),
    ],
)
def test_a_flag_overrides_the_normalization_of_an_exported_file(spec, steps, tiny_run, tmp_path, capsys):
    file, place = exported(tiny_run, tmp_path, capsys), tmp_path / "imported"
    words = ["weights", "import", str(file), f"--config.augment.eval={spec}", f"--workdir={place}"]
    code, error = main.run(words), capsys.readouterr().err
    if isinstance(steps, str):
        assert code == 2 and steps in error and not place.exists()
        return
    assert code == 0, error
    seen = cnnjax.load_run(place).augment.steps
    own = cnnjax.load_run(tiny_run).augment.steps
    assert {name: dict(values) for name, values in seen} == (steps or {n: dict(v) for n, v in own})


def test_an_exported_file_is_read_back_as_the_run_is(tiny_run, tmp_path, capsys):
    """Its network, classes, size and normalization are those of the run, named or not."""
    file, own = exported(tiny_run, tmp_path, capsys), cnnjax.load_run(tiny_run)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    for model in ("", own.spec):
        again = cnnjax.load_model(model, str(file))
        assert (again.spec, again.class_names, again.image_shape) == (
            own.spec,
            own.class_names,
            own.image_shape,
        )
        assert (again.recipe, again.augment.steps) == (own.recipe, own.augment.steps)
        for a, b in zip(again.predict(images), own.predict(images), strict=True):
            np.testing.assert_array_equal(a.probabilities, b.probabilities)


def test_an_exported_file_does_not_load_into_a_part_of_its_network(tmp_path, capsys):
    spec, file = "resnet20_cifar(stage_sizes={}, widths=(2, 3))", tmp_path / "net.safetensors"
    export.export(untrained(spec.format((1, 2))), "safetensors", file)
    assert cnnjax.load_model("", str(file)).spec == spec.format((1, 2))
    part = spec.format((1, 1))
    with pytest.raises(UserError, match="does not fit the model: .*stage2_block2"):
        cnnjax.load_model(part, str(file))
    words = ["weights", "import", str(file), f"--model={part}", f"--workdir={tmp_path / 'imported'}"]
    assert main.run(words) == 2 and "stage2_block2" in capsys.readouterr().err


def test_an_exported_network_of_other_fields_is_told_of(tiny_run, tiny_config, tmp_path, capsys):
    file = exported(tiny_run, tmp_path, capsys)
    other = "simple_cnn(widths=(2, 3), kernel_size=3, activation='tanh')"
    with pytest.warns(UserWarning, match="differs in activation='relu', not activation='tanh'"):
        cnnjax.load_model(other, str(file))
    tiny_config.model, tiny_config.init_from = other, str(file)
    with pytest.warns(UserWarning, match="differs in activation='relu', not activation='tanh'"):
        build(tiny_config)


@pytest.mark.parametrize("way", ["export", "push", "weights import"])
def test_the_views_that_a_run_averages_go_with_its_weights(way, tiny_run, tmp_path, capsys):
    """Unless others are asked for; files from before they were written average none."""
    run, out = shutil.copytree(tiny_run, tmp_path / "run"), tmp_path / "net.safetensors"
    config = json.loads((run / "config.json").read_text()) | {"eval_protocol": "mirror_translate(pixels=3)"}
    (run / "config.json").write_text(json.dumps(config))
    word, file = ("push", out / hub.CONFIG) if way == "push" else ("export", tmp_path / f"{out.name}.json")
    assert main.run([word, f"--workdir={run}", f"--out={out}"]) == 0, capsys.readouterr().err
    weights = str(out)
    if way == "weights import":
        weights = str(tmp_path / "imported")
        assert main.run(["weights", "import", str(out), f"--workdir={weights}"]) == 0, capsys.readouterr().err
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    own, centre = (cnnjax.load_run(run, protocol=spec).predict(images) for spec in (None, "center"))
    again = cnnjax.load_model(weights=weights).predict(images)
    np.testing.assert_array_equal(again[0].probabilities, own[0].probabilities)
    assert (own[0].probabilities != centre[0].probabilities).any()
    facts = json.loads(file.read_text())
    facts["cnnjax"]["protocol"] = "mirror(3)"
    file.write_text(json.dumps(facts))
    assert cnnjax.load_model(weights=weights, protocol="center").protocol.spec == "center"
    if way != "weights import":
        with pytest.raises(UserError, match=r"net.safetensors: protocol='mirror\(3\)': its values are"):
            cnnjax.load_model(weights=weights)
        del facts["cnnjax"]["protocol"]
        file.write_text(json.dumps(facts))
        assert cnnjax.load_model(weights=weights).protocol.spec == "center"


def test_a_card_names_the_views_of_its_test_score(tiny_run, tmp_path):
    card = push.write(loaded.load(tiny_run, protocol="mirror"), tmp_path / "out") / "README.md"
    assert "| test views | `center` |" in card.read_text()
    assert "| views averaged | `mirror` |" in card.read_text()


def test_a_sidecar_that_does_not_fit_is_refused_by_name(tiny_run, tmp_path, capsys):
    """One of an older version lacks half of the preprocessing; one of other weights has none of it."""
    file = exported(tiny_run, tmp_path, capsys)
    beside = file.with_name("net.safetensors.json")
    facts = json.loads(beside.read_text())
    files.write(file, {name: x + 1 for name, x in files.read(file).items()})
    with pytest.raises(UserError, match=r"net.safetensors.json: it describes another file .* export"):
        resolve(str(file))
    beside.write_text(json.dumps({name: value for name, value in facts.items() if name != "cnnjax"}))
    with pytest.raises(UserError, match=r"net.safetensors.json: an older version wrote it.* export"):
        resolve(str(file), facts["model"])
    beside.write_text('{"of": "another program"}')
    assert resolve(str(file), facts["model"]).data is None


def test_the_card_of_averaged_weights_has_their_scores(tiny_config, tmp_path):
    tiny_config.ema_decay = 0.5
    train.train(tiny_config, tmp_path / "run")
    file = tmp_path / "run/test.json"
    test = json.loads(file.read_text()) | {"accuracy": 0.25, "ema_accuracy": 0.5, "loss": 2, "ema_loss": 1}
    file.write_text(json.dumps(test))
    words = {"raw": ("`25.00 %`", "`2.0000`", ""), "ema": ("`50.00 %`", "`1.0000`", "average over")}
    for weights, expected in words.items():
        trained = loaded.load(tmp_path / "run", weights=weights)
        card = (push.write(trained, tmp_path / weights) / "README.md").read_text()
        assert all(word in card for word in expected)
        assert ("average over" in card) == (weights == "ema")
    file.write_text(json.dumps({name: value for name, value in test.items() if "ema_" not in name}))
    assert "not evaluated" in (push.write(trained, tmp_path / "ema") / "README.md").read_text()


def test_weights_that_cannot_be_written_leave_the_earlier_ones(tiny_run, tmp_path, monkeypatch):
    trained = loaded.load(tiny_run)
    file = push.write(trained, tmp_path / "out") / hub.WEIGHTS
    before = file.read_bytes()

    def full(path, tensors):
        path.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match="No space left"):
        push.write(trained, tmp_path / "out")
    assert file.read_bytes() == before
    assert {each.name for each in file.parent.iterdir()} == push.FILES


@pytest.mark.parametrize("name", sorted(push.FILES))
def test_files_of_others_are_not_overwritten(tiny_run, tmp_path, name):
    """Neither of a user, nor of a repository that another program made."""
    trained = loaded.load(tiny_run)
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="contains files that are not a repository's"):
        push.write(trained, tmp_path)
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize(
    "spec",
    [
        "airbench94(widths=(2,3,4))",
        "airbench96(widths=(2,3,4))",
        "nin_imagenet(widths=((2,2,2),(2,2,2),(2,2,2),(2,2)))",
    ],
)
def test_a_network_without_names_in_torch_is_read_again(spec, tmp_path, capsys):
    """Its classes are told by its head, with a bias or without."""
    model = create_model(spec, num_classes=5)
    variables = jax.device_get(model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    given, out = tmp_path / "a.safetensors", tmp_path / "folder"
    files.write(given, {key: np.asarray(x) for key, x in flatten_dict(dict(variables), sep="/").items()})
    assert main.run(["push", f"--model={spec}", f"--weights={given}", f"--out={out}"]) == 0, (
        capsys.readouterr().err
    )
    again = cnnjax.load_model(weights=str(out))
    assert (again.spec, len(again.class_names)) == (spec, 5)
    jax.tree.map(np.testing.assert_array_equal, dict(again.variables), {"batch_stats": {}} | dict(variables))


@pytest.mark.parametrize(
    ("name", "timm"),
    [("efficientnet_b0", "efficientnet_b0"), ("efficientnet_b5", None), ("mnasnet1_0", "mnasnet_100")],
)
def test_a_folder_names_the_network_that_timm_has_under_its_name(name, timm, tmp_path, capsys):
    spec = f"{name}(width=0.1)" if name == "mnasnet1_0" else f"{name}(width=0.05, depth=0.1)"
    model, given = create_model(spec), tmp_path / "a.safetensors"
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    files.write(given, cnnjax.models.weights.to_torch(zeros, model))
    words = ["push", f"--model={spec}", f"--weights={given}", f"--out={tmp_path / 'out'}"]
    assert main.run(words) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "out" / hub.CONFIG).read_text()).get("architecture") == timm


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["hf:me/other"], "403, private or missing"),
        (["hf:me"], "is not a repository"),
        (["me/net"], "usage"),
        ([], "usage"),
        (["hf:me/net", "--out=x"], "usage"),
        (["hf:me/net", "--offline"], "the network is not used"),
    ],
)
def test_mistakes_are_one_line(tiny_run, server, capsys, words, text):
    server.files["/api/repos/create"] = 403 if words == ["hf:me/other"] else 500
    assert main.run(["push", f"--workdir={tiny_run}", *words]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1 and "hf_secret" not in error
