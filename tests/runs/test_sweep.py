"""Sweeps: every point with every seed once, through kills, into one table; mistakes told in one line."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.live import Live

from cnnjax import config as config_lib
from cnnjax.cli import boards, main
from cnnjax.cli.sweep import parse_sets
from cnnjax.cli.tables import Console
from cnnjax.errors import UserError
from cnnjax.explore import comparison, report
from cnnjax.runs import sweep as sweep_lib
from cnnjax.runs import train
from cnnjax.runs.folder import Run
from cnnjax.runs.results import SCORES, Results, points_of, row_of, spread, validation_means
from cnnjax.runs.seeds import train_together
from cnnjax.runs.sweep import sweep
from tests.conftest import tiny_arrays

FIELD = "optimizer.learning_rate"
TINY = [
    "--config.model=simple_cnn(widths=(2,), kernel_size=3)",
    "--config.batch_size=16",
    "--config.eval_batch_size=16",
    "--config.total_epochs=2",
    "--config.log_every_steps=4",
    "--config.optimizer.warmup_epochs=0.5",
    "--config.data.num_validation=10",
]


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


KILLED = """
import os, signal, sys
from cnnjax.cli import main
from cnnjax.cli import boards

class Killed(boards.Lines):
    def begin(self, name, number, count):
        self.number = number

    def row(self, row):
        if self.number == 2 and row["step"] == 8:
            os.kill(os.getpid(), signal.SIGKILL)

boards.Lines = Killed
main.run(sys.argv[1:])
"""


def test_a_killed_sweep_goes_on_where_it_was_and_leaves_one_row_a_run(tiny_data, tmp_path, capsys):
    """A task of two runs: the loss of the first is not finite, the second is killed on its way."""
    out = tmp_path / "out"
    args = ["sweep", f"--set={FIELD}=1e38,0.01", "--seeds=2", "--task=0/3", f"--out={out}"]
    args += [f"--config.data.name={tiny_data}", *TINY]
    command = [sys.executable, "-c", KILLED, *args]
    process = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (first,) = table(out)
    assert (first[FIELD], first["seed"], first["outcome"]) == ("1e+38", "0", "not finite")
    assert first["test_accuracy"] == ""
    times = {file: file.stat().st_mtime_ns for file in (out / "runs" / first["run"]).rglob("*")}
    (second,) = (path for path in out.glob("runs/*_seed1_*"))
    started = Run.open(second).read_json("record.json")["started"]

    assert main.run(args) == 0
    assert "validation" in capsys.readouterr().out
    rows = table(out)
    assert rows[0] == first
    assert all(file.stat().st_mtime_ns == at for file, at in times.items())
    (row,) = rows[1:]
    assert (row["run"], row[FIELD], row["seed"], row["outcome"]) == (second.name, "0.01", "1", "finished")
    assert row["started"] == started  # the killed run went on
    run = Run.open(second)
    test, last = run.read_json("test.json"), run.metrics()[-1]
    assert float(row["test_accuracy"]) == pytest.approx(test["accuracy"], abs=1e-5)
    assert float(row["validation_accuracy"]) == pytest.approx(last["validation_accuracy"], abs=1e-5)
    assert run.config().optimizer.learning_rate == 0.01
    assert float(row["seconds"]) > 0
    assert json.loads(row["versions"])["jax"]
    assert "sweep" in json.loads(row["command"])
    assert row["machine"]
    assert row["cpu_kernels"]
    assert validation_means(rows, [FIELD]).keys() == {("0.01",)}

    before = (out / "results.csv").read_bytes()
    assert main.run(args) == 0  # nothing is left to do
    assert (out / "results.csv").read_bytes() == before
    capsys.readouterr()
    assert main.run([*args, "--config.ema_decay=0.5"]) == 2
    assert "config.ema_decay: saved 0.0, now 0.5); choose another --out" in capsys.readouterr().err
    assert main.run([*args, "--set=ema_decay=0.5"]) == 2
    assert "belongs to a sweep that sets optimizer.learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "more"),
    [("train", "seed"), ("train", "point"), ("test", "point"), ("nothing", "seed"), ("no folder", "seed")],
)
def test_a_sweep_does_not_mix_runs_of_other_images(changed, more, tmp_path, capsys):
    """Its rows would be ranked beside each other; a run whose folder is gone cannot be asked."""
    arrays, out = tiny_arrays(), tmp_path / "out"
    np.savez(tmp_path / "tiny.npz", **arrays)
    args = ["sweep", f"--out={out}", f"--config.data.name=npz:{tmp_path / 'tiny.npz'}", *TINY]
    assert main.run([*args, f"--set={FIELD}=0.01"]) == 0
    (first,) = table(out)
    if changed == "no folder":
        shutil.rmtree(out / "runs" / first["run"])
    if changed != "nothing":
        split = "test" if changed == "test" else "train"
        np.savez(tmp_path / "tiny.npz", **arrays | {f"{split}_image": 255 - arrays[f"{split}_image"]})
    capsys.readouterr()
    again = [f"--set={FIELD}=0.01", "--seeds=2"] if more == "seed" else [f"--set={FIELD}=0.01,0.02"]
    refused = changed in ("train", "test")
    assert main.run([*args, *again]) == (2 if refused else 0)
    assert len(table(out)) == (1 if refused else 2)
    told = capsys.readouterr().err
    assert (f"{first['run']} was" in told and "restore them, or choose another --out" in told) == refused
    assert f"tiny.npz {changed} (fingerprint" in told or not refused


def test_a_table_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="other columns"):
        sweep(config_lib.default(), {FIELD: [0.1]}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize("name", ["config.json", "report.html", "class/image.png"])
def test_a_folder_of_something_else_is_left_alone(name, tmp_path):
    """A run's, whose report would be replaced, or one of images."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"--out=.* is neither empty nor the folder of a sweep"):
        sweep(config_lib.default(), {FIELD: [0.1]}, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", ["runs", ".hidden", "sweep.json", "results.csv"])
def test_a_folder_that_a_sweep_began_is_used(left, tmp_path):
    results = Results(tmp_path / "first", [FIELD])
    results.claim(config_lib.default())
    (tmp_path / "first" / "results.csv").write_text(",".join(results.columns))
    (tmp_path / "first" / ".hidden").write_text("")
    (tmp_path / "first" / left).rename(tmp_path / left)
    if left in ("sweep.json", "results.csv"):
        (tmp_path / "report.html").write_text("")
    shutil.rmtree(tmp_path / "first")
    Results(tmp_path, [FIELD]).claim(config_lib.default())


def test_the_choice_is_made_on_validation_over_whole_points():
    def row(rate, validation, test):
        return {FIELD: rate, "validation_accuracy": validation, "test_accuracy": test}

    rows = [row("1", "0.9", "0.1"), row("1", "0.8", "0.1"), row("2", "0.84", "0.9"), row("3", "0.99", "0.9")]
    rows.append(row("3", "", ""))  # a point of which a seed was not finite
    assert next(iter(points_of([{**row, "seed": ""} for row in rows], [FIELD]))) == ("1",)
    assert spread(["0.9", "0.8"]) == "85.00 ± 7.07"


def test_values_are_read_as_their_fields_are():
    sets = [
        'model=simple_cnn(widths=(2, 3), pooling="a,b"),lenet5',
        "batch_size=8,16",
        "cpu_kernels=true,False",
    ]
    assert parse_sets([*sets, "config.ema_decay=0,0.5"]) == {
        "model": ['simple_cnn(widths=(2, 3), pooling="a,b")', "lenet5"],
        "batch_size": [8, 16],
        "cpu_kernels": [True, False],
        "ema_decay": [0.0, 0.5],
    }


def test_a_field_that_is_also_a_fact_keeps_its_values(tiny_run, tmp_path):
    """`cpu_kernels` says whether a run used them; of a sweep that sets it the column is the field's."""
    results = Results(tmp_path, ["batch_size", "cpu_kernels"])
    results.claim(config_lib.default())
    point = {"batch_size": 8, "cpu_kernels": False}
    results.append(row_of(Run.open(tiny_run), point, "finished"))
    (row,) = csv.reader((tmp_path / "results.csv").read_text().splitlines()[1:])
    assert len(results.columns) == len({*results.columns}) == len(row)
    assert table(tmp_path)[0]["cpu_kernels"] == "False"
    for others in (["batch_size"], ["ema_decay"]):
        told = "belongs to a sweep that sets batch_size, cpu_kernels; set"
        with pytest.raises(UserError, match=told):
            Results(tmp_path, others).claim(config_lib.default())
    Results(tmp_path / "other", ["batch_size"]).claim(config_lib.default())
    row = row_of(Run.open(tiny_run), {"batch_size": 8}, "finished")
    assert row["cpu_kernels"] == Run.open(tiny_run).read_json("record.json")["cpu_kernels"]
    (other := Results(tmp_path / "other", ["batch_size"])).append(row)
    with pytest.raises(UserError, match="belongs to a sweep that sets batch_size; set"):
        Results(tmp_path / "other", ["ema_decay"]).claim(config_lib.default())
    assert "cpu_kernels" in other.columns


@pytest.mark.parametrize("kind", ["lines", "live"])
def test_a_sweep_shows_what_its_runs_note_once_and_not_their_headers(kind, capsys):
    """Notes were lost: damaged images, a start that has seen what is held out, other versions."""
    board = boards.Lines() if kind == "lines" else boards.LiveBoard(Live(console=Console()))
    board.note("of all runs")
    for number, name in enumerate(("a", "b"), 1):
        board.begin(name, number, 2)
        board.header(["data, network"])
        board.note("skipped: x.jpg")
        board.note(f"resuming {name}")
    told = ["of all runs", "a: skipped: x.jpg", "a: resuming a", "b: resuming b"]
    assert capsys.readouterr().out.splitlines() == told


@pytest.mark.parametrize("counts", ["0", "10", "0,10"])
def test_a_sweep_without_validation_images_says_so_and_is_not_called_sorted(
    counts, tiny_data, tmp_path, capsys
):
    name = "data.num_validation"
    swept = [f"--set={name}={counts}"] if "," in counts else [f"--config.{name}={counts}"]
    args = ["sweep", f"--out={tmp_path / 'out'}", f"--config.data.name={tiny_data}", *TINY[:-1]]
    assert main.run([*args, *swept, "--config.total_epochs=0.2"]) == 0
    lines, without = capsys.readouterr().out.splitlines(), "0" in counts.split(",")
    advice = f"config.{name} holds one out of train"
    assert (lines[1] == f"points without a validation split are not ranked; {advice}") == without
    assert sum("has no labelled validation split" in line for line in lines) == without
    ranked = "10" in counts
    assert lines[-1].startswith("sorted by validation accuracy; table ") == ranked
    assert ("Best first" in (tmp_path / "out" / "report.html").read_text("utf-8")) == ranked


def test_points_that_are_drawn_twice_count_once(capsys, monkeypatch, tmp_path):
    values = ["--set=batch_size=uniform(7.6, 9.4)", "--set=cpu_kernels=True,False", "--random=40"]
    monkeypatch.setattr(sweep_lib, "sweep", lambda *args, **others: [])
    assert main.run(["sweep", *values, "--seeds=2", f"--out={tmp_path}/out"]) == 0
    assert ": 4 points x 2 seeds = 8 runs in" in capsys.readouterr().out


def test_random_points_lie_in_their_range_and_more_of_them_leave_the_first_alone():
    values = {
        FIELD: "log_uniform(1e-4, 0.1)",
        "batch_size": "uniform(8, 64)",
        "model": ["lenet5", "simple_cnn"],
    }
    points = sweep_lib._draw(values, 40)
    assert points[:3] == sweep_lib._draw(values, 3)
    rates = [point[FIELD] for point in points]
    assert all(1e-4 <= rate <= 0.1 for rate in rates)
    assert 10 < sum(rate < 3.2e-3 for rate in rates) < 30  # half of them below the geometric mean
    assert all(type(point["batch_size"]) is int for point in points)
    assert {point["model"] for point in points} == {"lenet5", "simple_cnn"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([f"--set={FIELD}=0.1"], "--out is missing"),
        (["--set=optimizer.lerning_rate=0.1"], "did you mean config.optimizer.learning_rate"),
        ([f"--set={FIELD}=0.1,fast"], "must be a number"),
        ([f"--set={FIELD}="], "has no values"),
        ([f"--set={FIELD}=0.1", f"--set={FIELD}=0.2"], "given twice"),
        ([f"--set={FIELD}=0.1,-1"], "must be greater than 0"),
        ([f"--set={FIELD}=log_uniform(0.1, 1)"], "--random=N"),
        ([f"--set={FIELD}=log_uniform(0, 1)", "--random=2"], "low end greater than 0"),
        ([f"--set={FIELD}=uniform(1)", "--random=2"], "uniform(low, high)"),
        (["--set=seed=1,2"], "--seeds=N"),
        (["--set=keep_checkpoints=1,2"], "it says how a run is carried out, not what is trained"),
        (["--set=model=simple_cnn,resnet9000"], "resnet9000"),
        (["--task=2/2"], "0 <= i < n"),
        (["--task=last"], "must be i/n"),
        (["--seeds=0"], "seeds"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_trained(args, message, tmp_path, capsys, tiny_data):
    out = [] if "missing" in message else [f"--out={tmp_path / 'out'}"]
    assert main.run(["sweep", *args, *out, f"--config.data.name={tiny_data}", *TINY]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert not list(tmp_path.glob("out/runs/*/config.json"))


def test_adaptive_pooling_of_whole_windows_is_max_pooling_and_strided_takes_the_corner():
    import jax
    import numpy as np

    from cnnjax import ops
    from cnnjax.models.simple_cnn import pooling_function

    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    np.testing.assert_array_equal(pooling_function("adaptive")(x, 2), ops.max_pool(x, 2))
    assert pooling_function("adaptive")(x[:, :5, :7], 2).shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(pooling_function("strided")(x[:, :5], 2), x[:, :4:2, ::2])
    np.testing.assert_array_equal(ops.subsample(x, 3, 2), x[:, :4:2, :6:2])
    with pytest.raises(UserError, match="adaptive"):
        pooling_function("adaptiv")


def test_a_config_of_another_type_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config.batch_size=8.5 must be int"):
        sweep(config_lib.default(), {"batch_size": [8.5]}, tmp_path)


def test_seeds_trained_together_are_those_trained_alone(tiny_config, tmp_path):
    """The first goes on from half of its way, where the other meets it."""
    tiny_config.augment.train = "mirror|normalize(mean=0.5, std=0.25)"
    tiny_config.augment.eval = "normalize(mean=0.5, std=0.25)"
    tiny_config.optimizer.name = "sgd"  # Adam makes whole steps of rounding noise
    configs = [config_lib.assign(tiny_config, {}) for _ in range(2)]
    configs[1].seed = 1
    alone = [train.train(config, tmp_path / f"alone{config.seed}") for config in configs]
    shutil.copytree(alone[0].path, tmp_path / "together0")
    (tmp_path / "together0/test.json").unlink()
    saved = sorted(int(path.name) for path in (tmp_path / "together0/checkpoints").glob("[0-9]*"))
    for step in saved[1:]:
        shutil.rmtree(tmp_path / f"together0/checkpoints/{step}")
    together = train_together(configs, [tmp_path / "together0", tmp_path / "together1"])
    for a, b in zip(alone, together, strict=True):
        assert a.test["loss"] == pytest.approx(b.test["loss"], rel=1e-4)
        runs = [Run.open(result.path) for result in (a, b)]
        losses = [[row["loss"] for row in run.metrics() if "loss" in row] for run in runs]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(UserError, match=r"differ in config\.batch_size"):
        configs[1].batch_size = 8
        train_together(configs, [tmp_path / "x", tmp_path / "y"])


def test_a_sweep_of_seeds_together_tells_whose_loss_was_not_finite(tiny_config, tmp_path):
    tiny_config.augment.train = "mirror|normalize(mean=0.5, std=0.25)"
    tiny_config.augment.eval = "normalize(mean=0.5, std=0.25)"
    rows = sweep(tiny_config, {FIELD: [1e38]}, tmp_path, seeds=2, together=True)
    assert [row["outcome"] for row in rows] == ["not finite", "not finite"]


def test_a_run_that_diverges_in_its_last_step_has_a_row_without_scores(tiny_config, tmp_path):
    """Its training losses are finite, its evaluations are not; the sweep goes on and its page is drawn."""
    tiny_config.total_epochs, tiny_config.optimizer.warmup_epochs = 0.2, 0.0  # one step
    tiny_config.optimizer.name, tiny_config.optimizer.schedule = "sgd", "constant"
    sweep(tiny_config, {FIELD: [1e25]}, tmp_path)
    rows = sweep(tiny_config, {FIELD: [1e25, 0.01]}, tmp_path)
    assert [row["outcome"] for row in rows] == ["not finite", "finished"]
    assert not any(rows[0][name] for name in SCORES) and rows[1]["test_loss"]
    assert validation_means(rows, [FIELD]).keys() == {("0.01",)}
    assert "1, 1 not finite" in comparison.sweep(tmp_path).read_text()
    report.write(tmp_path / "runs" / rows[0]["run"])
