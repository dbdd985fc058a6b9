"""Checkpoints: complete or absent, the newest few and the best, a damaged one skipped."""

import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.runs.checkpoints import Checkpoints, Saver, describe


def tree(value: float) -> dict:
    return {"w": jnp.full((3, 2), value), "empty": {}, "count": jnp.asarray(int(value), jnp.int32)}


@pytest.fixture
def saved(tmp_path):
    """Five checkpoints of which the second is the best; two of the newest are kept."""
    checkpoints = Saver(tmp_path / "checkpoints", keep=2)
    for step, accuracy in enumerate((0.5, 0.9, 0.7, 0.6, 0.8), 1):
        checkpoints.save(step, tree(step), {"position": 10 * step})
        checkpoints.add_metrics(step, {"accuracy": accuracy})
    yield checkpoints
    checkpoints.close()


def test_the_newest_and_the_best_survive(saved):
    assert saved.steps() == [2, 4, 5]
    assert saved.best() == 2 and saved.metrics(2) == {"accuracy": 0.9}
    assert saved.best("ema") == saved.find("best", "ema") == 2  # of before each had its own accuracy


def test_a_save_whose_arrays_are_missing_is_no_checkpoint(tmp_path):
    """orbax takes the path for a pattern, finds nothing that matches, and saves an empty tree in silence."""
    checkpoints = Saver(tmp_path / "a[b]")
    checkpoints.save(1, tree(1), {})
    with pytest.raises(OSError, match="the arrays of the save are missing"):
        checkpoints.wait()
    checkpoints.close()
    assert not checkpoints.steps()


SCORES = {1: (0.9, 0.1), 2: (0.8, 0.9), 3: (0.3, 0.8), 4: (0.3, 0.8)}  # raw, of the average


@pytest.fixture
def averaged(tmp_path):
    """Four checkpoints, of which the first has the best raw weights and the second the best average."""
    checkpoints = Saver(tmp_path / "checkpoints", keep=1)
    for step, (raw, ema) in SCORES.items():
        state = {"params": tree(raw), "batch_stats": {}, "ema": {"params": tree(ema), "batch_stats": {}}}
        checkpoints.save(step, {"state": state}, {})
        checkpoints.add_metrics(step, {"accuracy": raw, "ema_accuracy": ema})
    yield checkpoints
    checkpoints.close()


@pytest.mark.parametrize(("weights", "best"), [("raw", 1), ("ema", 2)])
def test_the_best_is_that_of_the_weights_that_are_asked_for(averaged, weights, best):
    step, variables = averaged.variables("best", weights)
    highest = max(SCORES[each][weights == "ema"] for each in SCORES)
    assert step == best and np.allclose(variables["params"]["w"], highest)


def test_the_best_of_both_kinds_of_weights_survive(averaged):
    assert averaged.steps() == [1, 2, 4]
    assert averaged.prune(1) == []
    assert averaged.steps() == [1, 2, 4]


def test_checkpoints_are_listed_with_both_accuracies(averaged, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("{}")
    rows = describe(tmp_path)
    assert [(row["step"], row["accuracy"], row["ema_accuracy"]) for row in rows] == [
        (step, *(f"{100 * each:.2f}" for each in SCORES[step])) for step in (1, 2, 4)
    ]
    (averaged.folder(2) / "manifest.json").write_text("{}")
    monkeypatch.setenv("COLUMNS", "200")
    assert main.run(["checkpoint", "list", f"--workdir={tmp_path}"]) == 1
    told = capsys.readouterr().out
    assert "EMA accuracy %" in told and "80.00" in told and "damaged" in told


def test_a_best_one_whose_manifest_is_damaged_is_reported_and_kept(saved):
    (saved.folder(2) / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"checkpoint 2: .*manifest.json.*; skipped"):
        assert saved.find("best") == 5
    for step in (6, 7, 8):
        saved.save(step, tree(step), {})
        saved.add_metrics(step, {"accuracy": 0.1})
    assert saved.steps() == [2, 5, 7, 8]


def test_without_an_accuracy_the_best_is_the_newest_sound_one(tmp_path):
    checkpoints = Saver(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, tree(step), {})
    checkpoints.wait()
    damage(checkpoints.folder(2), "bit")
    with pytest.warns(UserWarning, match="checkpoint 2: .*skipped"):
        assert checkpoints.find("best") == 1
    checkpoints.close()


def test_those_between_evaluations_are_not_kept_for_ever(tmp_path):
    checkpoints = Saver(tmp_path / "checkpoints", keep=2)
    for step in range(1, 7):
        checkpoints.save(step, tree(step), {})
        if step == 2:
            checkpoints.add_metrics(step, {"accuracy": 0.5})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    checkpoints.close()


def test_what_was_saved_comes_back(saved):
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree(0))
    step, restored, position = saved.restore(like)
    assert (step, position) == (5, {"position": 50})
    np.testing.assert_array_equal(restored["w"], tree(5)["w"])
    assert restored["empty"] == {}
    assert saved.restore(like, 2)[1]["count"] == 2


def test_without_a_checkpoint_there_is_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.restore(tree(0)) is None
    assert checkpoints.best() is None


def test_a_damaged_newest_one_is_passed_over_with_a_warning(saved, tmp_path):
    files = [f for f in (tmp_path / "checkpoints" / "5" / "tree").rglob("*") if f.is_file()]
    for file in files:
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoint 5: .*skipped"):
        step, restored, _ = saved.restore(tree(0))
    assert step == 4
    assert restored["count"] == 4


def test_all_damaged_is_an_error_that_names_them(saved, tmp_path):
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and "tree" in file.parts:
            file.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="no checkpoint in .* can be read"):
        saved.restore(tree(0))


def test_a_step_is_named_by_a_number_or_its_digits(saved):
    assert saved.find(4) == saved.find(np.int64(4)) == saved.find("4") == 4
    with pytest.raises(UserError, match="unknown checkpoint '3'"):
        saved.find(3)


def test_a_half_written_checkpoint_is_not_there(saved, tmp_path):
    half = tmp_path / "checkpoints" / ".9.part"
    half.mkdir()
    (half / "tree").mkdir()
    again = Checkpoints(tmp_path / "checkpoints")
    assert again.steps() == [2, 4, 5]


def damage(folder: Path, how: str) -> None:
    """Damages the largest file of a checkpoint, or its manifest."""
    files = [file for file in (folder / "tree").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    data = largest.read_bytes()
    if how == "truncated":
        largest.write_bytes(data[:-1])
    elif how == "bit":
        largest.write_bytes(bytes([data[0] ^ 4]) + data[1:])
    elif how == "half":
        for file in files[::2]:
            file.unlink()
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace('"position": 50', '"position": 51'))


@pytest.mark.parametrize("how", ["truncated", "bit", "half", "no manifest", "manifest"])
def test_any_damage_is_seen_and_the_one_before_used_and_kept(saved, tmp_path, how):
    damage(tmp_path / "checkpoints" / "5", how)
    assert saved.problem(5)
    assert not saved.problem(4)
    with pytest.warns(UserWarning, match=r"checkpoint 5: .*skipped"):
        assert saved.restore(tree(0))[0] == 4
    with pytest.warns(UserWarning, match="skipped"):
        assert saved.find("last") == 4
    with pytest.raises(UserError, match="checkpoint 5 in .* cannot be read"):
        saved.read(5)
    assert saved.clear_unfinished() == [5]
    saved.save(5, tree(5.5), {"position": 50})
    saved.wait()
    assert saved.restore(tree(0))[0] == 5
    assert (tmp_path / "checkpoints" / "5.damaged").is_dir()
    assert 4 in saved.steps()


def test_prune_keeps_the_newest_sound_ones_and_never_the_last(saved, tmp_path):
    damage(tmp_path / "checkpoints" / "5", "bit")
    assert saved.prune(1) == ["5"]
    assert saved.steps() == [2, 4]
    for step in (2, 4):
        damage(tmp_path / "checkpoints" / str(step), "bit")
    assert saved.prune(1) == []
    assert saved.clear_unfinished() == []
    assert saved.steps() == [2, 4]


def test_a_write_that_fails_is_an_error_at_the_next_step_and_loses_nothing(saved):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file may grow larger
    try:
        with pytest.raises(OSError, match="checkpoints"):
            saved.save(6, {"w": jnp.arange(100_000.0) ** 0.5}, {"position": 60})
            for _ in range(3000):  # half a minute
                time.sleep(0.01)
                saved.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.steps() == [2, 4, 5]
    assert not list(saved.directory.glob(".*"))
    saved.save(7, tree(7), {"position": 70})
    saved.wait()
    assert saved.steps() == [2, 5, 7]


def test_a_full_disk_is_seen_before_anything_is_written(saved, monkeypatch):
    usage = shutil.disk_usage(saved.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(OSError, match="No space left on device"):
        saved.save(6, tree(6), {"position": 60})
    assert saved.steps() == [2, 4, 5]
    assert not list(saved.directory.glob(".*"))


def test_metrics_are_added_to_a_checkpoint_after_its_save(saved):
    saved.save(6, tree(6), {"position": 60})
    saved.add_metrics(6, {"accuracy": 0.95})
    assert saved.steps() == [5, 6]  # the best is another one now
    assert saved.best() == 6 and saved.metrics(6) == {"accuracy": 0.95}
    assert saved.restore(tree(0))[2] == {"position": 60}


def test_reading_leaves_a_save_under_way_alone(saved):
    part = saved.directory / ".9.part"
    part.mkdir()
    other = Checkpoints(saved.directory)
    other.read(other.find("last"))
    assert part.is_dir()
    assert saved.clear_unfinished() == []
    assert not part.exists()
