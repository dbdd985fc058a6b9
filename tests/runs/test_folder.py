"""The run folder: whole files or none, rows that survive a cut."""

import json
import re
import subprocess

import numpy as np
import pytest

from cnnjax import config as config_lib
from cnnjax.errors import UserError
from cnnjax.runs import processes
from cnnjax.runs.folder import Run, plain
from cnnjax.runs.record import _commit, make_record, processor


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "run", config_lib.default(), fingerprint="f")
    yield run
    run.close()


def test_only_the_first_process_writes(run, monkeypatch):
    run.write_json("x.json", {"a": 1})
    run.write_json("test.json", {})
    monkeypatch.setattr(processes, "is_first", lambda: False)
    before = {file: file.read_bytes() for file in run.path.iterdir()}
    other = Run(run.path)
    other.start_metrics(0)
    other.remove_scores()
    other.append_metrics({"step": 1, "loss": 0.5})
    other.write_json("x.json", {"a": 2})
    other.write_arrays("y.npz", {"y": np.zeros(3)})
    assert {file: file.read_bytes() for file in run.path.iterdir()} == before
    assert other.read_json("x.json") == {"a": 1}


def test_rows_after_the_checkpoint_and_a_cut_line_are_dropped(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 0.5})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    run.start_metrics(2)
    run.append_metrics({"step": 3, "loss": 0.25})
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.5, 0.25]


def test_metrics_become_json(run):
    value = {"a": np.float32(0.5), "b": {"c": np.arange(3)}, "d": "x"}
    run.write_json("x.json", value)
    assert run.read_json("x.json") == plain(value) == {"a": 0.5, "b": {"c": [0, 1, 2]}, "d": "x"}
    assert run.read_json("absent.json") == {}


def test_a_damaged_file_is_named(run):
    (run.path / "test.json").write_text("{")
    with pytest.raises(UserError, match=r"test\.json is damaged"):
        run.read_json("test.json")


def test_the_record_tells_how_to_repeat_the_run():
    record = make_record(seed=3)
    assert record["seed"] == 3
    assert {"jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(record["versions"])
    assert record["machine"]["cores"] >= 1
    assert record["devices"]


def test_settings_that_leave_the_numbers_alone_may_change(tmp_path):
    config = config_lib.default()
    Run.create(tmp_path / "run", config, fingerprint="f").close()
    config.keep_checkpoints = 5
    config.data.download = False
    Run.create(tmp_path / "run", config, fingerprint="f").close()
    config.log_every_steps = 5
    with pytest.raises(UserError, match="config.log_every_steps: saved 20, now 5"):
        Run.create(tmp_path / "run", config, fingerprint="f")


def test_the_config_survives_json():
    config = config_lib.default()
    config.optimizer.schedule = "step(boundaries=(0.5, 0.75))"
    assert config_lib.from_dict(json.loads(config_lib.to_json(config))) == config


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("model name\t: AMD EPYC\nflags\t: avx2 avx512f", "AMD EPYC (family 26, model 2), AVX-512"),
        ("model name\t: AMD Ryzen 9 5950X\nflags\t: avx2", "AMD Ryzen 9 5950X, AVX2"),
    ],
)
def test_processors_with_one_name_are_told_apart(tmp_path, cpuinfo, name):
    file = tmp_path / "cpuinfo"
    file.write_text(f"cpu family\t: 26\nmodel\t\t: 2\n{cpuinfo}\n")
    assert processor(file) == name


def test_the_commit_is_that_of_a_checkout_which_has_the_file(tmp_path):
    """Not that of another project, in whose folder the package is installed."""
    file = tmp_path / "environment" / "record.py"
    file.parent.mkdir()
    file.touch()

    def git(*words: str) -> None:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *settings, *words], check=True, capture_output=True)

    assert _commit(file) == ""
    git("init")
    git("commit", "--allow-empty", "-m", "x")
    assert _commit(file) == ""
    git("add", ".")
    git("commit", "-m", "y")
    assert re.fullmatch("[0-9a-f]{40}", _commit(file))


@pytest.mark.parametrize("there", ["notes.txt", "config.json"])
def test_a_folder_that_is_refused_stays_as_it_was(there, tmp_path):
    other = config_lib.assign(config_lib.default(), {"seed": 1})
    (tmp_path / there).write_text(config_lib.to_json(other))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="choose another|another --workdir"):
        Run.create(tmp_path, config_lib.default(), fingerprint="f")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
