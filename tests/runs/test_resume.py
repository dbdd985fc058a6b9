"""A killed or stopped run goes on to the very numbers of one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.runs import inputs, processes, train
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.experiment import build
from cnnjax.runs.folder import Run
from cnnjax.runs.log import MEASURED, Progress
from cnnjax.runs.replay import replay_step
from cnnjax.runs.signals import Interrupted
from tests.conftest import USERS

FLAGS = [
    "--config.model=simple_cnn(widths=(2, 3), kernel_size=3)",
    "--config.batch_size=4",
    "--config.eval_batch_size=16",
    "--config.total_epochs=8",
    "--config.log_every_steps=7",
    "--config.checkpoint_every_steps=33",
    "--config.data.num_validation=10",
    "--config.augment.train=random_crop(8, padding=1)|mirror|normalize",
    "--config.ema_decay=0.9",
    "--config.optimizer.learning_rate=0.001",
]


def start(data: str, workdir: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "cnnjax", "train", f"--workdir={workdir}", f"--config.data.name={data}"]
    return subprocess.Popen(
        [*command, *FLAGS, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": USERS},
    )


def end(process: subprocess.Popen) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()  # if it runs on
    return process.returncode, output.decode()


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns when the run has written metrics of at least that step."""
    file, until = workdir / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None:
        lines = file.read_text().splitlines() if file.exists() else []
        if lines and json.loads(lines[-1] if lines[-1].endswith("}") else lines[-2])["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {end(process)[1]}")


def outcome(workdir: Path) -> tuple[list[dict], list[np.ndarray], dict]:
    """Metrics without times, the final parameters with the rest of the state, and the test scores."""
    run = Run.open(workdir)
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in run.metrics()]
    saved = Checkpoints(workdir / "checkpoints")
    _, tree, _ = saved.restore(build(run.config()).abstract_tree())
    return rows, [np.asarray(leaf) for leaf in jax.tree.leaves(tree["state"])], run.read_json("test.json")


@pytest.fixture(scope="module")
def uninterrupted(tiny_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resume") / "whole"
    code, output = end(start(tiny_data, workdir))
    assert code == 0, output
    return outcome(workdir)


def assert_same(workdir: Path, expected: tuple) -> None:
    rows, leaves, test = outcome(workdir)
    assert rows == expected[0]
    for ours, theirs in zip(leaves, expected[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert test == expected[2]


def test_killed_runs_end_bit_identical(uninterrupted, tiny_data, tmp_path):
    for step in (7, 80):
        process = start(tiny_data, tmp_path / "run")
        wait_for_step(process, tmp_path / "run", step)
        process.send_signal(signal.SIGKILL)
        assert end(process)[0] == -signal.SIGKILL
    code, output = end(start(tiny_data, tmp_path / "run"))
    assert code == 0, output
    assert "resuming" in output
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(signum, uninterrupted, tiny_data, tmp_path):
    process = start(tiny_data, tmp_path / "run")
    wait_for_step(process, tmp_path / "run", 60)
    process.send_signal(signum)
    code, output = end(process)
    assert code == 128 + signum, output
    assert "Traceback" not in output
    assert f"{signum.name}: saved step" in output
    code, output = end(start(tiny_data, tmp_path / "run"))
    assert code == 0, output
    assert_same(tmp_path / "run", uninterrupted)


class SignalAt(Progress):
    """Sends this process a signal when the row of a step has been written."""

    def __init__(self, step: int):
        self.step = step

    def row(self, row: dict) -> None:
        if row["step"] == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("step", [5, 10], ids=["evaluation", "last evaluation"])
def test_a_signal_stops_an_evaluation_which_is_made_up_for(step, tiny_config, tmp_path):
    tiny_config.ema_decay, tiny_config.log_every_steps = 0.9, 5
    train.train(tiny_config, tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"SIGTERM: saved step {step} of 10"):
        train.train(tiny_config, tmp_path / "run", SignalAt(step))
    rows = Run.open(tmp_path / "run").metrics()
    assert rows[-1]["step"] == step and "validation_loss" not in rows[-1]
    saved = Checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.steps()[-1] == step and saved.metrics(step) == {}
    train.train(tiny_config, tmp_path / "run")
    row = Run.open(tmp_path / "run").metrics()[-1]
    assert saved.best() in saved.steps() and saved.metrics(10)
    assert all(saved.metrics(10)[name] == row[f"validation_{name}"] for name in ("accuracy", "ema_accuracy"))
    assert_same(tmp_path / "run", outcome(tmp_path / "whole"))


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_ends_a_compilation(signals, tiny_data, tmp_path):
    """One after the seconds of grace, a second at once."""
    process = start(tiny_data, tmp_path / "run", "--config.model=resnet56_cifar")
    until = time.monotonic() + 100
    while time.monotonic() < until and not (tmp_path / "run" / "record.json").exists():
        time.sleep(0.05)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    began = time.monotonic()
    code, output = end(process)
    assert code == 143, output
    assert time.monotonic() - began < (20 if signals == 1 else 5)
    assert ("SIGTERM: no step was completed" in output) == (signals == 1)
    assert not Checkpoints(tmp_path / "run" / "checkpoints").steps()


class StopsAtABadImage(Progress):
    """Ends the process in the step after the one in which the first bad image was told."""

    def __init__(self):
        self.told: list[str] = []

    def note(self, text):
        self.told += [text] * text.startswith("skipped: ")

    def advance(self, step):
        if len(self.told) > 1:
            raise KeyboardInterrupt
        self.told += ["saved"] * len(self.told)


@pytest.mark.parametrize(("limit", "process"), [(2, 0), (1, 0), (1, 1)])
def test_a_resumed_run_knows_the_images_that_were_skipped(limit, process, tiny_config, tmp_path, monkeypatch):
    """Those of the list, which is of process 0: another does not count them as its own."""
    monkeypatch.setattr(inputs, "SMALL_BYTES", 0)  # so that images are read as they come
    for i in range(12):
        (tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    for name in ("a/4.png", "b/7.png"):
        (tmp_path / "images" / name).write_bytes(b"x")
    fields = {"name": f"folder:{tmp_path / 'images'}", "on_bad_image": "skip", "max_bad_images": limit}
    tiny_config.update({"data": {**fields, "num_validation": 0}, "batch_size": 1, "log_every_steps": 100})
    tiny_config.total_epochs, tiny_config.checkpoint_every_steps = 1.0, 1
    with pytest.raises(KeyboardInterrupt):
        train.train(tiny_config, tmp_path / "run", stopped := StopsAtABadImage())
    first, _ = stopped.told
    monkeypatch.setattr(processes, "is_first", lambda: process == 0)
    if process == 1:
        assert train.train(tiny_config, tmp_path / "run").state.step == 12
        return
    if limit == 1:
        with pytest.raises(UserError, match="more than 1 images cannot be read"):
            train.train(tiny_config, tmp_path / "run")
        return
    run = train.train(tiny_config, tmp_path / "run").path
    skipped = json.loads((run / "skipped_images.json").read_text())["skipped"]
    assert len(skipped) == 2 and f"skipped: {skipped[0]}" == first
    assert Run.open(run).metrics()[-1]["skipped_images"] == 2


def test_a_run_that_ended_at_a_bad_image_resumes_without_it(tiny_config, tmp_path, monkeypatch, capsys):
    """As the error advises."""
    monkeypatch.setattr(inputs, "SMALL_BYTES", 0)  # so that images are read as they come
    for i in range(12):
        (tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "images" / "a" / "4.png").write_bytes(b"x")
    tiny_config.update(
        {"data": {"name": f"folder:{tmp_path / 'images'}", "num_validation": 0}, "batch_size": 4}
    )
    fields = config_lib.flatten(tiny_config).items() - config_lib.flatten(config_lib.default()).items()
    flags = [f"--config.{name}={value}" for name, value in fields]
    assert main.run(["train", f"--workdir={tmp_path / 'run'}", *flags]) == 2
    assert "or train with --config.data.on_bad_image=skip" in capsys.readouterr().err
    tiny_config.data.update({"on_bad_image": "skip", "max_bad_images": 1})
    run = train.train(tiny_config, tmp_path / "run").path
    assert len(json.loads((run / "skipped_images.json").read_text())["skipped"]) == 1


@pytest.mark.parametrize("lost", ["all", "last", "none"])
def test_test_scores_are_those_of_the_weights(lost, tiny_run, tmp_path):
    """Those of weights that are trained again are removed before the first step."""
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    scores = run.read_json("test.json")
    run.write_json("test.json", {**scores, "accuracy": 2.0})
    for step in (checkpoints := Checkpoints(run.path / "checkpoints")).steps():
        if lost == "all" or (lost == "last" and step == scores["step"]):
            shutil.rmtree(checkpoints.folder(step))
    seen = []

    class Watch(Progress):
        def row(self, row: dict) -> None:
            seen.extend(run.path / name for name in ("test.json", "predictions.npz"))
            assert not any(file.exists() for file in seen)

    result = train.train(run.config(), run.path, Watch())
    assert bool(seen) == (lost != "none")
    assert result.test["accuracy"] == (2.0 if lost == "none" else scores["accuracy"])
    assert (run.path / "predictions.npz").exists()


@pytest.mark.parametrize(
    ("fields", "groups"),
    [
        ({"model": "resnet20_cifar", "batch_norm": "groups(4)", "accumulate_steps": 2}, 2),
        ({"model": "lenet5", "batch_norm": "groups(4)"}, 1),  # a network without BatchNorm
    ],
)
def test_only_the_same_groups_of_batchnorm_resume_and_replay(fields, groups, tiny_config, tmp_path):
    tiny_config.update(fields | {"log_every_steps": 1, "checkpoint_every_steps": 1})
    with pytest.raises(Interrupted):
        train.train(tiny_config, tmp_path / "run", SignalAt(1))
    run = Run.open(tmp_path / "run")
    record = run.read_json("record.json")
    assert record["norm_groups"] == groups
    run.write_json("record.json", {**record, "norm_groups": 8})
    size = 16 // 8 // tiny_config.accumulate_steps
    words = rf"batch_norm='.*' is now {groups} groups?, in .*run 8; resume it on 8 .*'groups\({size}\)'"
    for again in (lambda: train.train(tiny_config, run.path), lambda: replay_step(run.path, 0)):
        with pytest.raises(UserError, match=words):
            again()
    del record["norm_groups"]  # as in a run from before it was recorded
    run.write_json("record.json", record)
    with pytest.raises(Interrupted, match="saved step 2"):
        train.train(tiny_config, run.path, SignalAt(2))


def test_sessions_are_recorded_and_what_differs_is_told_once(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    config, record = run.config(), run.read_json("record.json")
    last = Checkpoints(run.path / "checkpoints").steps()[-1]
    others = {"versions": {**record["versions"], "jax": "0.1.2"}, "commit": "c0ffee", "cpu_kernels": "none"}
    run.write_json("record.json", {**record, **others, "machine": {"processor": "abacus"}})
    notes = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.extend([text] if "last bits" in text else [])

    for _ in range(2):
        shutil.rmtree(run.path / "checkpoints" / str(last))
        train.train(config, run.path, Notes())
        (note,) = notes
        train.train(config, run.path, Notes())  # it is finished: no session
    for name, now, before in [
        ("jax", jax.__version__, "0.1.2"),
        ("commit", record["commit"], "c0ffee"),
        ("CPU kernels", record["cpu_kernels"], "none"),
        ("processor", record["machine"]["processor"], "abacus"),
    ]:
        assert f"{name} {now}, before {before}" in note
    assert "flax" not in note
    again = run.read_json("record.json")
    assert again["commit"] == "c0ffee" and again["id"] == record["id"]
    keys = {"started", "command", "versions", "commit", "cpu_kernels", "machine"}
    assert [set(each) for each in again["sessions"]] == [keys, keys]
