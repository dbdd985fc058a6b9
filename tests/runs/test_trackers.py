"""Trackers: the real ones without a network, a resumption that continues, and failures that end no run."""

import contextlib
import importlib.util
import json
import resource
import threading
from pathlib import Path

import pytest

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.runs import trackers
from cnnjax.runs.folder import Run


def track(folder: Path, names: str, resumed_at: int, *steps: int) -> Run:
    """Does what a run does to its metrics, from a step on; the folder is closed again."""
    config = config_lib.assign(config_lib.default(), {"trackers": names})
    run = Run.create(folder, config, fingerprint="f")
    try:
        run.start_metrics(resumed_at)
        for step in steps:
            run.append_metrics({"step": step, "epoch": step / 10, "loss": 1 / step})
    finally:
        run.close()
    return run


def in_wandb(run: Run, id: str) -> None:
    folders = sorted((run.path / "wandb").glob(f"offline-run-*-{id}"))
    (first,), (second,) = (list(folder.glob("*.wandb")) for folder in folders)
    for file, loss in ((first, b"0.5"), (second, b"0.25")):
        assert b"loss" in file.read_bytes() and loss in file.read_bytes()


def in_mlflow(run: Run, id: str) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cnnjax")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["optimizer.learning_rate"] == "0.003" and found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(2, 0.5), (4, 0.25)]


def in_trackio(run: Run, id: str) -> None:
    from trackio import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("cnnjax")
    rows = SQLiteStorage.get_logs("cnnjax", name)
    assert name.endswith(id[:6]) and [(row["step"], row["loss"]) for row in rows] == [(2, 0.5), (4, 0.25)]


def in_tensorboard(run: Run, id: str) -> None:
    written = [file.read_bytes() for file in sorted((run.path / "tensorboard").glob("events*"))]
    assert b"loss" in b"".join(written) and b"loss" in written[-1]


LOOK = {"mlflow": in_mlflow, "tensorboard": in_tensorboard, "trackio": in_trackio, "wandb": in_wandb}


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_resumption_continues_the_same_run_of_a_tracker(name, tmp_path, monkeypatch):
    pytest.importorskip(trackers.TRACKERS[name][0], reason=f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = track(tmp_path / "run", name, 0, 2)
    id = run.read_json("record.json")["id"]
    track(tmp_path / "run", name, 2, 4)
    assert run.read_json("record.json")["id"] == id
    assert [row["step"] for row in run.metrics()] == [2, 4]
    LOOK[name](run, id)


@pytest.mark.parametrize("bad", ["start", "log", "end"])
def test_a_tracker_that_fails_ends_neither_the_run_nor_another_tracker(bad, tmp_path, monkeypatch):
    seen = {"broken": [], "good": []}

    @contextlib.contextmanager
    def broken(place):
        if bad == "start":
            raise ConnectionError("no server\nat all")
        yield lambda step, row: (1 // (bad != "log"), seen["broken"].append(step)), "there"
        if bad == "end":
            raise ConnectionError("no server\nat all")

    @contextlib.contextmanager
    def good(place):
        yield lambda step, row: seen["good"].append((step, dict(row))), "here"
        seen["good"].append("closed")

    monkeypatch.setitem(trackers.TRACKERS, "broken", ("json", broken))
    monkeypatch.setitem(trackers.TRACKERS, "good", ("json", good))
    with pytest.warns(UserWarning, match="tracker broken failed, the run continues without it: ") as warned:
        run = track(tmp_path / "run", "broken, good", 0, 1, 2)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert [row["step"] for row in run.metrics()] == [1, 2]
    rows = [(1, {"epoch": 0.1, "loss": 1.0}), (2, {"epoch": 0.2, "loss": 0.5})]
    assert seen == {"good": [*rows, "closed"], "broken": [1, 2] if bad == "end" else []}


def test_an_unknown_tracker_and_a_missing_package_are_told_before_the_data_are_read(capsys):
    assert main.run(["train", "--config.trackers=wandb,tensorbord", "--config.data.name=npz:nowhere"]) == 2
    error = capsys.readouterr().err
    missing = not importlib.util.find_spec("wandb")
    assert ("pip install -e '.[wandb]'" if missing else "(did you mean 'tensorboard'?)") in error
    assert error.count("\n") == 1
    with pytest.raises(UserError, match=r"unknown config.trackers 'tensorbord' \(did you mean 'tensorboard'"):
        trackers.parse("tensorbord")


def test_a_folder_of_a_tracker_is_no_package(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("wandb_of_nobody", trackers.TRACKERS["wandb"][1]))
    (tmp_path / "wandb_of_nobody").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install -e '.\[wandb\]'"):
        trackers.parse("wandb")


@pytest.mark.skipif(not importlib.util.find_spec("tensorboardX"), reason="tensorboardX is not installed")
def test_a_run_from_before_there_were_trackers_gets_its_id(tmp_path):
    run = Run.create(tmp_path / "run", config_lib.default(), fingerprint="f")
    run.write_json("record.json", {"started": "2026-01-01T00:00:00Z"})
    run.close()
    track(tmp_path / "run", "tensorboard", 0, 1)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert len(record["id"]) == 16 and record["started"]


@pytest.mark.skipif(not importlib.util.find_spec("tensorboardX"), reason="tensorboardX is not installed")
def test_a_run_goes_on_without_event_files_that_cannot_be_written(tmp_path):
    place = trackers.Place(tmp_path, "abcdef123456", {}, 0)
    logs = trackers.Trackers("tensorboard", place)

    def write_rows():
        for step in range(100):
            logs.log({"step": step, "loss": 1.0, "accuracy": 0.5})
        logs.close()

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = threading.Thread(target=write_rows, daemon=True)  # so that the test ends if it hangs
    try:
        with pytest.warns(UserWarning, match="tracker tensorboard failed, the run continues") as warned:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # as if the disk were full
            writer.start()
            writer.join(20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not writer.is_alive() and len(warned) == 1 and "File too large" in str(warned[0].message)
