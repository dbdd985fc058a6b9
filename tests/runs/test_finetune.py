"""Training that starts from another run: what is taken over, what is drawn anew, what is refused."""

import contextlib
import dataclasses
import functools
import json
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnnjax import config as config_lib
from cnnjax import load_run
from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.models import stream_key
from cnnjax.runs import evaluate, train
from cnnjax.runs import step as steps
from cnnjax.runs.checkpoints import Checkpoints, Saver
from cnnjax.runs.experiment import build
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import load_split, seen_before
from cnnjax.runs.log import Progress
from cnnjax.runs.signals import Interrupted
from cnnjax.training.steps import batch_statistics
from tests.conftest import tiny_arrays


@pytest.fixture(scope="module")
def pretrained(tiny_data, tmp_path_factory):
    config = config_lib.default()
    config.model = "simple_cnn(widths=(2, 3), kernel_size=3)"
    config.batch_size, config.eval_batch_size, config.total_epochs = 16, 16, 3.0
    config.data.name, config.data.num_validation = tiny_data, 10
    config.optimizer.learning_rate = 0.01
    return config, train.train(config, tmp_path_factory.mktemp("runs") / "run")


def copy(config, **fields):
    other = config_lib.assign(config, {})
    other.update(fields)
    return other


def test_a_run_starts_from_the_best_checkpoint_of_another(pretrained):
    config, result = pretrained
    state = build(copy(config, init_from=str(result.path))).init_state()
    best = evaluate.evaluate(result.path, checkpoint="best", split="validation")[0]
    found, _ = train.Evaluator(build(config), "validation")(state.variables)
    assert found["loss"] == best["loss"]


def test_another_number_of_classes_needs_a_new_head(pretrained, tmp_path):
    config, result = pretrained
    arrays = tiny_arrays()
    two = {k: (v % 2 if k.endswith("label") else v) for k, v in arrays.items()}
    np.savez(tmp_path / "two.npz", **two)
    other = copy(config, init_from=str(result.path))
    other.data.name = f"npz:{tmp_path / 'two.npz'}"
    with pytest.raises(UserError, match=r"head/kernel is \[12, 3\], here \[12, 2\].*config.init_head=new"):
        build(other)
    other.init_head = "new"
    state = build(other).init_state()
    assert state.params["head"]["kernel"].shape == (12, 2)
    np.testing.assert_array_equal(
        state.params["conv1"]["kernel"],
        build(copy(config, init_from=str(result.path))).init_state().params["conv1"]["kernel"],
    )


def test_fine_tuning_moves_what_is_not_frozen(pretrained, tmp_path):
    config, result = pretrained
    other = copy(config, init_from=str(result.path), freeze="conv|norm", total_epochs=2.0)
    start = build(other).init_state()
    other.seed, notes = 1, Progress()
    notes.note = (told := []).append
    end = train.train(other, tmp_path / "run", notes).state
    assert any("config.seed=0 with config.data.num_validation=10" in line for line in told)
    jax.tree.map(np.testing.assert_array_equal, end.params["conv1"], start.params["conv1"])
    assert not np.array_equal(end.params["head"]["kernel"], start.params["head"]["kernel"])


def photos(root, sizes):
    """Image files of the tiny training set, their sizes in turn."""
    arrays = tiny_arrays()
    for i, (image, label) in enumerate(zip(arrays["train_image"], arrays["train_label"], strict=True)):
        file = root / "train" / f"class{label}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).resize(sizes[i % len(sizes)]).save(file)
    return root


@pytest.mark.parametrize("data", ["arrays", "files of several sizes", "own images"])
def test_a_run_that_began_with_weights_is_resumed_and_replayed_without_them(
    data, tiny_data, tmp_path, capsys
):
    base, run = tmp_path / "base", tmp_path / "run"
    place = photos(tmp_path / "photos", [(8, 8), (9, 11)][: 1 + ("several" in data)])
    name = tiny_data if data == "arrays" else f"folder:{place}"
    held, model = "--config.data.num_validation=10", "--config.model=simple_cnn(widths=(2, 3), kernel_size=3)"
    common = [
        "train",
        "--config.total_epochs=2",
        "--config.eval_every_epochs=1",
        "--config.batch_size=16",
        "--config.keep_checkpoints=9",
    ]
    own = [held, model, f"--config.data.name={name}"]
    size = 0 if data == "arrays" else 8
    assert main.run([*common, *own, f"--workdir={base}", f"--config.data.size={size}"]) == 0
    start = [*own, f"--config.init_from={base}", "--config.init_head=new"]
    start = [f"--data={place}", f"--weights={base}"] if data == "own images" else start
    command = [*common, *start, f"--workdir={run}"]
    assert main.run(command) == 0
    first, *_, last = Checkpoints(run / "checkpoints").steps()
    loss = evaluate.evaluate(run, split="train")[0]["loss"]
    shutil.rmtree(base)
    shutil.rmtree(run / "checkpoints" / str(last))
    assert main.run(command) == 0
    assert evaluate.evaluate(run, split="train")[0]["loss"] == loss
    assert main.run(["replay", f"--workdir={run}", f"--step={first}"]) == 0
    capsys.readouterr()
    assert main.run(["replay", f"--workdir={run}", "--step=0"]) == 2  # of before its first checkpoint
    assert "base" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main.run(command) == 2
    assert "base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({}, ""),
        ({"data.num_validation": 5}, ""),  # five of its ten
        ({"seed": 1}, "config.seed=0 with config.data.num_validation=10 holds out those of that run"),
        ({"data.num_validation": 12}, "config.seed=0 with config.data.num_validation=10"),
        ({"start": 0}, "train that run with config.data.num_validation too"),
        ({"seed": 1, "own": True}, ""),
        ({"start": 0, "own": True}, ""),
        (
            {"seed": 1, "name": "set.npz"},
            "config.seed=0 with config.data.num_validation=10",
        ),  # in another way
        ({"seed": 1, "name": "copy.npz"}, "config.seed=0 with config.data.num_validation=10"),
        ({"seed": 1, "name": "copy.npz", "data.size": 4}, "config.seed=0 with config.data.num_validation=10"),
        ({"seed": 1, "name": "other.npz"}, ""),
        ({"seed": 1, "name": "none.npz"}, ""),
    ],
)
def test_held_out_images_that_the_start_was_trained_on_are_told(fields, advice, tiny_config, tmp_path):
    arrays, base = tiny_arrays(), tmp_path / "base"
    if fields.pop("own", False):
        arrays |= {"val_image": arrays["test_image"], "val_label": arrays["test_label"]}
    for name in ("set", "copy", "other"):
        images = {each: 255 - x for each, x in arrays.items() if "image" in each and name == "other"}
        np.savez(tmp_path / f"{name}.npz", **arrays | images)
    tiny_config.data.name = f"npz:{tmp_path / 'set.npz'}"
    start = config_lib.assign(tiny_config, {"data.num_validation": fields.pop("start", 10)})
    if name := fields.pop("name", ""):
        tiny_config.data.name = f"npz:{tmp_path}/./{name}"
    (base / "checkpoints").mkdir(parents=True)
    (base / "config.json").write_text(config_lib.to_json(start))
    record = {"data": {"fingerprint": load_split(start, "train").fingerprint}}
    (base / "record.json").write_text(json.dumps(record))
    config = config_lib.assign(tiny_config, {"init_from": str(base), **fields})
    line = seen_before(config)
    assert bool(line) == bool(advice) and advice in line
    assert not seen_before(config_lib.assign(config, {"init_from": ""}))


METHODS = {
    "a head first, and a teacher": {"freeze": "until(1, all but head)"},
    "SAM in microbatches, and SWA": {"optimizer.sam_rho": 0.05, "accumulate_steps": 2, "swa_start": 0.3},
}


class Stop(Progress):
    """Sends a signal at a row."""

    def row(self, row):
        if row["step"] == 3:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(method, tiny_config, tiny_run, tmp_path):
    config = config_lib.assign(tiny_config, METHODS[method])
    if "teacher" in method:
        config.loss.distill = f"distill({str(tiny_run)!r}, temperature=2)"
    whole = train.train(config, tmp_path / "whole").state
    with pytest.raises(Interrupted):
        train.train(config, tmp_path / "run", Stop())
    again = train.train(config, tmp_path / "run").state
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert Run.open(tmp_path / "run").metrics()[-1]["step"] == int(whole.step)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_signal_while_the_average_gets_its_statistics_loses_nothing(
    stopped, tiny_config, tmp_path, monkeypatch
):
    """And the time that they take is none of the last steps'."""
    tiny_config.swa_start, tiny_config.log_every_steps = 0.5, 3
    calls = []

    def slow(key, name, index):
        if name == "average":
            calls.append(time.sleep(0.5))
            if stopped and len(calls) == 2:
                signal.raise_signal(signal.SIGTERM)
        return stream_key(key, name, index)

    monkeypatch.setattr(steps, "stream_key", slow)
    if stopped:
        with pytest.raises(Interrupted, match=r"SIGTERM: saved step 9 of 10 in .*; the same command resumes"):
            train.train(tiny_config, tmp_path / "run")
        assert len(calls) == 2
    result = train.train(tiny_config, tmp_path / "run")
    *_, last = (
        row for row in result.path.joinpath("metrics.jsonl").read_text().splitlines() if "mages" in row
    )
    assert json.loads(last)["step"] == 10 and json.loads(last)["images_per_second"] > 16 / 2.5
    if stopped:
        monkeypatch.setattr(steps, "stream_key", stream_key)
        whole = train.train(tiny_config, tmp_path / "whole")
        jax.tree.map(np.testing.assert_array_equal, result.state, whole.state)
        assert result.test == whole.test


def test_a_head_moves_first_and_then_all(tiny_config, tmp_path):
    """In the first phase neither parameters nor statistics move, in the second both do."""
    tiny_config.freeze = "until(1, all but head)"
    tiny_config.checkpoint_every_steps = tiny_config.log_every_steps = 5
    experiment = build(tiny_config)
    start = experiment.init_state()
    end = train.train(tiny_config, tmp_path / "run").state
    first = Checkpoints(tmp_path / "run" / "checkpoints").restore(experiment.abstract_tree(), 5)[1]["state"]
    for name in ("params", "batch_stats"):
        before, middle, after = (getattr(state, name) for state in (start, first, end))
        for module in before:
            same = jax.tree.map(lambda a, b: bool(np.all(a == b)), before[module], middle[module])
            assert all(jax.tree.leaves(same)) == (module != "head"), module
            moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), middle[module], after[module])
            assert any(jax.tree.leaves(moved)), module


@pytest.mark.parametrize("microbatches", [1, 2])
def test_an_average_has_statistics_of_its_own_and_is_evaluated(microbatches, tiny_config, tmp_path):
    """Those of one epoch under the averaged weights, in the microbatches of training, not an average."""
    tiny_config.swa_start, tiny_config.total_epochs = 0.3, 4.0
    tiny_config.accumulate_steps = microbatches
    result = train.train(tiny_config, tmp_path / "run")
    scores = evaluate.evaluate(result.path, weights="ema")[0]
    assert scores["accuracy"] == result.test["ema_accuracy"]
    experiment, ema = build(tiny_config), result.state.ema
    batches, found = experiment.train_batches(), []

    @functools.partial(jax.jit, static_argnums=0)
    def statistics(first, *inputs):
        """Of every so many examples of a batch, augmented whole."""

        def augment(key, batch):
            augmented = experiment.augment(key, batch)
            return {"image": augmented["image"][first::microbatches]}

        return batch_statistics(*inputs, model=experiment.model, augment=augment)

    for index in range(experiment.steps_per_epoch):
        key, batch = stream_key(experiment.key(), "average", index), next(batches)
        found += [statistics(first, ema, batch, key) for first in range(microbatches)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, ema["batch_stats"], mean)
    with pytest.raises(AssertionError):
        jax.tree.map(close, ema["batch_stats"], result.state.batch_stats)


def test_a_student_learns_from_a_teacher_alone(tiny_config, tiny_run, tmp_path):
    """With alpha 1 labels count for nothing: shuffled ones are as good."""
    arrays = tiny_arrays()
    arrays["train_label"] = np.random.default_rng(0).permutation(arrays["train_label"])
    np.savez(tmp_path / "shuffled.npz", **arrays)
    tiny_config.data.name = f"npz:{tmp_path / 'shuffled.npz'}"
    tiny_config.augment.train = tiny_config.augment.eval = "normalize(0.1, 0.3)"  # the teacher has another
    tiny_config.total_epochs, tiny_config.optimizer.learning_rate = 12.0, 0.03
    tiny_config.loss.distill = f"distill({str(tiny_run)!r}, alpha=1)"
    result = train.train(tiny_config, tmp_path / "run")
    teacher = evaluate.evaluate(tiny_run)[0]["accuracy"]
    assert result.test["accuracy"] >= teacher - 0.1 > 0.6
    record = result.path / "record.json"
    known = json.loads(record.read_text())
    assert known["teacher"]["source"] == str(tiny_run) and len(known["teacher"]["fingerprint"]) == 64
    known["teacher"]["fingerprint"] = "0" * 64
    record.write_text(json.dumps(known))
    with pytest.raises(UserError, match="learned from other weights of .*choose another --workdir"):
        train.train(tiny_config, result.path)


def test_a_teacher_sees_pixels_and_classes_as_its_own(tiny_config, tiny_run):
    """Whatever the student's normalization, and in the student's order of classes."""
    tiny_config.augment.train = tiny_config.augment.eval = "normalize(mean=0.5, std=0.25)"
    tiny_config.loss.distill = f"distill({str(tiny_run)!r})"
    experiment, model = build(tiny_config), load_run(tiny_run, checkpoint="best")
    images = tiny_arrays()["test_image"][:5]
    seen = []
    teacher = dataclasses.replace(experiment.teacher, model=Recorder(seen), columns=(2, 0))
    student = experiment.augment.preprocess(jnp.asarray(images))
    teacher.teaching(teacher.variables)(student, jnp.zeros((5, 2)), jnp.zeros(5))
    np.testing.assert_allclose(seen[0], model.prepare(images), atol=1e-5)


@dataclasses.dataclass
class Recorder:
    """A model of three logits that keeps what it is given."""

    seen: list

    def apply(self, variables, image):
        self.seen.append(np.asarray(image))
        return jnp.zeros((len(image), 3))


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        ("distill('nowhere')", "nowhere is neither a run folder nor a weights file"),
        ("distill(RUN, alpha=2)", "alpha=2 must be in"),
        ("distill(RUN, temperature=0)", "temperature=0 must be greater than 0"),
        ("teacher(RUN)", "must be 'distill"),
        ("distill('a', beta=0.5)", "must be 'distill"),
        ("distill('a', teacher='b')", "teacher is given twice; give it once"),
        ("distill('a', 0.3, alpha=0.9)", "alpha is given twice; give it once"),
    ],
)
def test_a_teacher_that_cannot_teach_is_told(distill, words, tiny_config, tiny_run):
    tiny_config.loss.distill = distill.replace("RUN", repr(str(tiny_run)))
    with pytest.raises(UserError, match=rf"^config\.loss\.distill.*{words}"):
        build(tiny_config)


def test_what_does_not_fit_is_listed(pretrained, tmp_path):
    config, result = pretrained
    with pytest.raises(UserError, match=r"missing norm3/mean.*norm2/mean is \[3\], here \[4\].*and 8 more"):
        build(copy(config, init_from=str(result.path), model="simple_cnn(widths=(2, 4, 5), kernel_size=3)"))
    with pytest.raises(UserError, match="neither a run folder nor a weights file"):
        build(copy(config, init_from=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="config.init_head='fresh'"):
        build(copy(config, init_head="fresh"))


def test_a_shortcut_that_weights_do_not_tell_is_asked_for(tmp_path, capsys):
    from cnnjax.cli import main
    from cnnjax.models import create_model, init_variables
    from cnnjax.models.weights import files, to_torch
    from cnnjax.runs.inputs import initial_variables

    sizes = "stage_sizes=(1, 1), widths=(4, 8)"
    model = create_model(f"resnet20_cifar({sizes})")
    variables = jax.device_get(init_variables(model, jax.random.key(0), (8, 8, 3)))
    file = tmp_path / "given.safetensors"
    files.write(file, to_torch(variables, model))
    run = f"--workdir={tmp_path / 'run'}"
    assert main.run(["weights", "import", str(file), f"--model=resnet20_cifar({sizes})", run]) == 2
    error = capsys.readouterr().err
    assert "weights do not tell the shortcut of resnet20_cifar" in error and error.count("\n") == 1
    assert f"resnet20_cifar(shortcut='a', {sizes}), zeros behind" in error
    assert f"resnet20_cifar(shortcut='a_centered', {sizes}), zeros on both sides" in error
    assert not (tmp_path / "run").exists()
    spec = f"resnet20_cifar(shortcut='a', {sizes})"
    pixels = "normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))"
    words = [
        "weights",
        "import",
        str(file),
        f"--model={spec}",
        "--config.augment.eval=normalize(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))",
        run,
    ]
    assert main.run(words) == 0, capsys.readouterr().err
    assert load_run(tmp_path / "run").augment.spec == pixels
    assert (
        initial_variables(tmp_path / "run", model, (8, 8, 3))["params"].keys() == variables["params"].keys()
    )
    with pytest.raises(UserError, match=r"shortcut='a', not shortcut='a_centered'"):
        initial_variables(tmp_path / "run", model.clone(shortcut="a_centered"), (8, 8, 3))
    own = tmp_path / "own"
    centered = f"--model=resnet20_cifar_centered({sizes})"
    assert main.run(["weights", "import", str(file), centered, f"--workdir={own}"]) == 0
    assert load_run(own).augment.spec == "normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))"


def test_a_weights_file_becomes_a_run_that_can_be_evaluated_and_written_again(tmp_path, capsys):
    """Import, evaluate on real images, export: the file comes back bit for bit."""
    from cnnjax.cli import main
    from cnnjax.models import create_model, init_variables
    from cnnjax.models.weights import files, to_torch

    spec = "squeezenet1_1(stem='cifar', stem_width=8, squeezes=((2,),(4,)), num_classes=3)"
    model = create_model(spec)
    variables = jax.device_get(init_variables(model, jax.random.key(0), (32, 32, 3)))
    file = tmp_path / "given.safetensors"
    files.write(file, to_torch(variables, model))
    flags = [f"--model={spec}", f"--workdir={tmp_path / 'run'}"]
    assert main.run(["weights", "import", str(file), *flags]) == 0, capsys.readouterr().err
    assert main.run(["weights", "import", str(file), "--model=vgg11", f"--workdir={tmp_path / 'no'}"]) == 2
    assert "missing classifier.0.bias" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert load_run(tmp_path / "run").class_names == ("0", "1", "2")
    again = tmp_path / "again.safetensors"
    assert main.run(["weights", "export", str(again), f"--workdir={tmp_path / 'run'}"]) == 0
    ours, theirs = files.read(again), files.read(file)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    saved, manifest = (
        tmp_path / "run" / "checkpoints",
        tmp_path / "run" / "checkpoints" / "0" / "manifest.json",
    )
    before = manifest.read_bytes()
    assert main.run(["weights", "import", str(file), *flags]) == 0  # as after a kill at its last moment
    files.write(again, {name: value + 1 for name, value in ours.items()})
    capsys.readouterr()
    assert main.run(["weights", "import", str(again), *flags]) == 2
    assert "contains other weights or a trained run; choose another --workdir" in capsys.readouterr().err
    assert [path.name for path in saved.iterdir()] == ["0"] and manifest.read_bytes() == before
    manifest.write_text("{}")
    assert main.run(["weights", "import", str(file), *flags]) == 0
    assert {path.name for path in saved.iterdir()} == {"0", "0.damaged"}
    draw = np.random.default_rng(0)
    arrays = {
        "train_image": draw.integers(0, 255, (6, 256, 256, 3), np.uint8),
        "train_label": np.arange(6, dtype=np.uint8) % 3,
        "test_image": draw.integers(0, 255, (5, 256, 256, 3), np.uint8),
        "test_label": np.arange(5, dtype=np.uint8) % 3,
    }
    np.savez(tmp_path / "images.npz", **arrays)
    data = f"--data=npz:{tmp_path / 'images.npz'}"
    capsys.readouterr()
    assert main.run(["evaluate", f"--workdir={tmp_path / 'run'}", data, "--json"]) == 0
    assert '"count": 5' in capsys.readouterr().out


def test_the_average_of_any_checkpoint_is_exported_and_flags_of_the_other_way_are_refused(tmp_path, capsys):
    from cnnjax.cli import main
    from cnnjax.models import create_model, init_variables
    from cnnjax.models.weights import files, to_torch

    spec = "squeezenet1_1(stem='cifar', stem_width=8, squeezes=((2,),(4,)), num_classes=3)"
    model, given, out = create_model(spec), tmp_path / "given.safetensors", tmp_path / "out.safetensors"
    variables = jax.device_get(init_variables(model, jax.random.key(0), (32, 32, 3)))
    files.write(given, to_torch(variables, model))
    run = f"--workdir={tmp_path / 'run'}"
    assert main.run(["weights", "import", str(given), f"--model={spec}", run]) == 0, capsys.readouterr().err
    named = files.read(given)
    for step in (1, 2):
        raw, ema = (jax.tree.map(lambda x, by=by: x + by, variables) for by in (step, 10 * step))
        with contextlib.closing(Saver(tmp_path / "run" / "checkpoints", keep=3)) as saved:
            saved.save(step, {"state": {**raw, "ema": ema}}, {"position": 0, "seconds": 0.0})
    for flags, added in {"": 2, "--weights=ema": 20, "--weights=ema --checkpoint=1": 10}.items():
        assert main.run(["weights", "export", str(out), run, *flags.split()]) == 0, capsys.readouterr().err
        for name, value in files.read(out).items():
            np.testing.assert_array_equal(value, named[name] + np.float32(added))
    capsys.readouterr()
    for words in (["export", "--weights=torchvision"], ["export", "--weights=ema", "--checkpoint=0"]):
        assert main.run(["weights", words[0], str(out), run, *words[1:]]) == 2
    for way, flag in {"export": "model=vgg11", "import": "weights=ema"}.items():
        assert main.run(["weights", way, str(given), run, f"--{flag}"]) == 2
        assert f"--{flag} has no effect on weights {way}; leave it out" in capsys.readouterr().err
