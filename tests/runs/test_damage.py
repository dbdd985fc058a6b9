"""Damaged and unusual files of a run folder: every command is right, or refuses them in one line."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.cli.tables import metrics_tables
from cnnjax.data.files import check_kind
from cnnjax.errors import UserError
from cnnjax.runs import train
from cnnjax.runs.checkpoints import Checkpoints, Saver, describe
from cnnjax.runs.config_files import from_file
from cnnjax.runs.folder import KINDS, Run, plain
from cnnjax.runs.log import Progress
from cnnjax.runs.results import RESULTS, read_results, spread
from cnnjax.training.metrics import compute
from experiments.reliability import damage


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, str]:
    """Where trials find sound folders, and the name of their data set."""
    folder = tmp_path_factory.mktemp("damage")
    return folder, damage.make_place(folder)


@pytest.mark.parametrize("command", damage.COMMANDS)
def test_no_damage_ends_in_more_than_one_line(place, command, capsys):
    """The short form of `experiments/reliability/run.py damage`."""
    found = damage.damage(*place, command, 1 if command == "init_from" else 2)
    assert not found["failed"], capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", damage.COMMANDS)
def test_no_damage_at_all_ends_in_more_than_one_line(place, command, capsys):
    found = damage.damage(*place, command, 60, seed=1)
    assert not found["failed"], capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name in damage.COMMANDS if name != "init_from"])
def test_a_trial_without_damage_is_no_failure(place, command):
    """Else a refusal of everything would pass."""
    ended, words = damage.trial(*place, command, "none", lambda path: None)
    refused = command == "weights export"  # SimpleCNN has no names in torch
    assert ended == ("refused" if refused else "done"), words


def test_scores_that_are_not_finite_are_shown_as_such(place):
    """As after a divergence, or by damage."""
    test = json.loads((place[0] / "sound" / "test.json").read_text())
    bad = json.dumps({**test, "loss": float("nan"), "macro": {**test["macro"], "f1": float("inf")}})
    ended, words = damage.trial(*place, "report of two", "test.json", lambda path: path.write_text(bad))
    assert ended == "done", words
    assert spread(["inf", "1"], 1, 1) == "inf ± nan"
    assert spread(["nan", "2"], 1, 1) == "nan ± nan"
    assert spread(["0.5", "0.5"], 1, 1) == "0.5 ± 0.0"


@pytest.mark.parametrize("lines", [0, 1])
def test_a_finished_run_that_lost_its_last_metrics_gets_no_row(place, lines):
    """Without any there was a traceback; with earlier ones they would be its scores."""
    (run,) = (path for path in (place[0] / "swept" / "runs").iterdir() if path.is_dir())
    kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:lines]
    file = f"runs/{run.name}/metrics.jsonl"
    ended, words = damage.trial(*place, "sweep", file, lambda path: path.write_text("".join(kept)))
    assert ended == "refused", words
    assert "metrics.jsonl lacks the last row of a finished run; restore it, or remove" in words


@pytest.mark.parametrize("name", KINDS)
def test_only_a_file_that_a_run_can_spare_is_to_be_removed(tmp_path, name):
    (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=r"is damaged: .*; restore") as caught:
        Run(tmp_path).read_json(name)
    assert ("or remove it" in str(caught.value)) == (name != "record.json")


LINES = (
    *("{", "null", "[]", '"x"', "\0\0", "", "x" * 10_000, '{"step": "3", "loss": 1}', '{"loss": 1}'),
    *('{"step": -1, "loss": 1}', '{"step": 2, "loss": "1"}', '{"step": 2, "step": 3}', "[" * 9999),
    *('{"step": 1e400}', '{"step": 99999999999999999999}', '{"step": 2, "epoch": NaN}', "{}{}", "\xff"),
)


@pytest.mark.parametrize("bad", LINES)
def test_a_damaged_line_of_metrics_is_told_and_later_rows_are_kept(tmp_path, bad):
    run = Run.create(tmp_path / "run", config_lib.default(), fingerprint="f")
    for step in (1, 2, 3, 4):
        run.append_metrics({"step": step, "loss": 0.5})
    file = run.path / "metrics.jsonl"
    first, *rest = file.read_text().splitlines()
    file.write_bytes("\n".join([first, bad, *rest, '{"step": 5, "lo']).encode("latin-1"))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: damaged lines skipped: line 2 \("):
        assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]
    with pytest.warns(UserWarning, match="line 2"):
        run.start_metrics(3)
    run.append_metrics({"step": 4, "loss": 0.25})
    run.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]
    assert run.metrics()[-1]["loss"] == 0.25


def test_a_config_of_the_first_version_is_read_and_a_missing_field_is_not_guessed(tmp_path, monkeypatch):
    assert len(config_lib.FIRST) == 27  # it does not grow with later fields
    values: dict = {"data": {}, "augment": {}, "loss": {}, "optimizer": {}}
    for name in config_lib.FIRST:
        *group, leaf = name.split(".")
        (values[group[0]] if group else values)[leaf] = config_lib.FIELDS[name].default
    monkeypatch.setitem(config_lib.FIELDS, "optimizer.new", config_lib.Field(0.5, "of a later version", 1.0))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    assert Run.open(tmp_path).config() == config_lib.default()
    for name in config_lib.FIRST:
        changed = json.loads(json.dumps(values))
        *group, leaf = name.split(".")
        del (changed[group[0]] if group else changed)[leaf]
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=rf"config\.json: config\.{name} is missing"):
            Run.open(tmp_path).config()


@pytest.mark.parametrize(
    "door", [lambda file: Run.open(file.parent).config(), lambda file: from_file(str(file))]
)
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, r"config.json cannot be read: "),
        ({"data": 5}, "config.data is not a field"),
        ({"seed": {}}, "config.seed={} must be int"),
        ({"seed": {"a": 1}}, "config.seed.a is not a field"),
        ({"seed": None}, "config.seed=None must be int"),
        ({"other": 1}, "config.other is not a field"),
        ({"total_epochs": float("nan")}, "config.total_epochs=nan must be greater than 0"),
    ],
)
def test_a_config_of_wrong_kinds_is_named(tmp_path, values, words, door):
    """Of a run, and as the user's --config=RUN/config.json."""
    file = tmp_path / "config.json"
    config = {**json.loads(config_lib.to_json(config_lib.default())), **(values or {})}
    file.write_text(json.dumps(config) if values else '{"seed": ')
    with pytest.raises(UserError, match=r"config\.json(:| cannot be read:) ") as error:
        door(file)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["link", "pipe", "folder"])
def test_a_lock_or_rows_that_are_no_files_are_refused_and_nothing_outside_is_touched(tmp_path, how):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    put = {"link": lambda p: p.symlink_to(outside), "pipe": os.mkfifo, "folder": Path.mkdir}[how]
    run = Run.create(tmp_path / "run", config_lib.default(), fingerprint="f")
    put(run.path / "metrics.jsonl")
    with pytest.raises((UserError, OSError), match=r"metrics\.jsonl"):
        run.append_metrics({"step": 1, "loss": 0.5})
    run.close()
    (run.path / ".lock").unlink()
    put(run.path / ".lock")
    with pytest.raises(UserError, match=r"\.lock is not a regular file; remove it"):
        Run.create(run.path, config_lib.default(), fingerprint="f")
    assert outside.read_text() == "kept"


class Then(Progress):
    """Does something to the run folder once, before the row of a step."""

    def __init__(self, step: int, what):
        self.step, self.what = step, what

    def advance(self, step: int) -> None:
        if step == self.step:
            self.what()


def remove(workdir: Path) -> None:
    workdir.rename(workdir.with_name("moved"))


def replace(workdir: Path) -> None:
    remove(workdir)
    shutil.copytree(workdir.with_name("moved"), workdir)


def to_file(workdir: Path) -> None:
    remove(workdir)
    workdir.write_text("")


@pytest.mark.parametrize(  # the next write is a row, or a checkpoint
    ("what", "step"), [(remove, 2), (remove, 5), (replace, 2), (replace, 5), (to_file, 5)]
)
def test_a_run_folder_that_vanishes_ends_the_run_and_is_not_made_again(tiny_config, tmp_path, what, step):
    workdir = tmp_path / "run"
    tiny_config.log_every_steps = 3 if step == 2 else 20
    with pytest.raises(OSError) as error:
        train.train(tiny_config, workdir, Then(step, lambda: what(workdir)))
    assert error.value.errno in (errno.ENOENT, errno.ENOTDIR)
    assert str(error.value.filename).startswith(str(workdir))
    if what is remove:
        assert not workdir.exists()
    else:
        assert not workdir.is_dir() or not (workdir / "checkpoints").exists()
    moved = Run.open(workdir.with_name("moved"))
    assert all(row["step"] < step for row in moved.metrics())


def test_a_vanished_folder_is_told_in_one_line(tiny_config, tmp_path, monkeypatch, capsys):
    from cnnjax.cli import progress

    workdir = tmp_path / "run"
    monkeypatch.setattr(progress, "Lines", lambda console: Then(5, lambda: remove(workdir)))
    flags = [f"--config.{k}={v}" for k, v in config_lib.flatten(tiny_config).items()]
    assert main.run(["train", f"--workdir={workdir}", *flags]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run cannot be written or read: the run folder was removed" in error


def tree(value: float) -> dict:
    return {"state": {"params": {"w": np.full((64, 64), value, np.float32)}, "batch_stats": {}}}


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_reader_that_loses_its_checkpoint_to_pruning_looks_again(tmp_path, checkpoint):
    """Another thread saves and prunes as fast as it can; each reading gives one whole checkpoint."""
    directory, done = tmp_path / "checkpoints", threading.Event()
    saver = Saver(directory, keep=1)
    saver.save(1, tree(1), {})
    saver.add_metrics(1, {"accuracy": 0.001})

    def prune() -> None:
        """As a process that trains: a new checkpoint, then the older one goes."""
        step = 1
        while not done.wait(0.1):
            shutil.copytree(directory / str(step), directory / ".new")
            (directory / ".new").rename(directory / str(step + 1))
            (directory / str(step)).rename(directory / f".{step}.part")
            shutil.rmtree(directory / f".{step}.part")
            step += 1

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        steps = []
        for _ in range(15):
            step, variables = Checkpoints(directory).variables(checkpoint, "raw")
            assert (variables["params"]["w"] == 1).all()
            steps.append(step)
            restored = Checkpoints(directory).restore(tree(0))
            assert restored is not None and (restored[1]["state"]["params"]["w"] == 1).all()
    finally:
        done.set()
        thread.join()
        saver.close()
    assert steps == sorted(steps) and steps[-1] > steps[0]


def test_a_checkpoint_pruned_while_it_is_listed_is_not_damaged(tmp_path, tiny_run):
    shutil.copytree(tiny_run, tmp_path / "run")
    directory = tmp_path / "run" / "checkpoints"
    (directory / "7").symlink_to("none")  # damaged: it is there, and cannot be read
    rows = {row["step"]: row["state"] for row in describe(tmp_path / "run")}
    assert "damaged" in str(rows[7])
    (directory / "7").unlink()
    assert all("damaged" not in str(row["state"]) for row in describe(tmp_path / "run", verify=True))


@pytest.mark.parametrize("name", ["checkpoints", "5"])
@pytest.mark.parametrize("how", ["pipe", "file", "dangling"])
def test_a_folder_of_checkpoints_that_is_none_is_told(tmp_path, tiny_run, how, name):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    file = run / "checkpoints" if name == "checkpoints" else run / "checkpoints" / "5"
    shutil.rmtree(file, ignore_errors=True)
    put = {"pipe": os.mkfifo, "file": Path.touch, "dangling": lambda p: p.symlink_to("none")}[how]
    put(file)
    saved = Checkpoints(run / "checkpoints")
    if name == "checkpoints":
        with pytest.raises(UserError, match="checkpoints is not a folder"):
            saved.find("last")
        return
    assert saved.find("last") != 5 and saved.problem(5)
    with pytest.raises(UserError, match="checkpoint 5 in"):
        saved.variables("5", "raw")
    saver = Saver(run / "checkpoints", keep=9)
    assert "5" in saver.prune(9) and not os.path.lexists(file)
    saver.close()


def test_names_that_are_no_steps_are_not_checkpoints(tmp_path):
    for name in ("007", "1" * 200, "²", "-1", "1.damaged", "+1"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").mkdir()
    assert Checkpoints(tmp_path).steps() == [12]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "run\n1,2\n",
        'run,seed\n"1',
        "run,test_accuracy\na,b\n",
        "run,seconds\na,nan\n",
        "a\0,b\n\0,\0,\0\n",
    ],
)
def test_a_damaged_table_of_a_sweep_is_told(tmp_path, text):
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(UserError, match=r"results\.csv is damaged after row 0"):
        read_results(tmp_path)


def test_scores_of_a_run_from_before_they_had_all_names_are_printed():
    """Of six classes; of the moving average only the accuracy is there."""
    scores = compute(
        {name: np.zeros(4, kind) for name, kind in {"label": int, "prediction": int}.items()}
        | {"confidence": np.ones(4), "loss": np.ones(4), "top5": np.ones(4, bool)},
        6,
    )
    old = {"step": 1, **plain(scores), "ema_accuracy": 1.0}
    del old["top5_accuracy"]
    check_kind(old, KINDS["test.json"])
    whole, *_ = metrics_tables(old, [*"abcdef"])
    assert (whole.title, len(whole.rows)) == ("test, 4 images", 2)
    for name, value in {"split": 3, "top5_accuracy": "x"}.items():
        with pytest.raises(ValueError, match=name):
            check_kind({**old, name: value}, KINDS["test.json"])
