"""The studies: their queue, their verdicts, and a run of each cut down to two steps."""

import argparse
import dataclasses
import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.models import create_model
from cnnjax.runs import experiment
from cnnjax.runs.results import SCORES, Results, read_results
from cnnjax.runs.signals import Interrupted
from experiments import curves, pages, results, run_all, sample, speeds, studies, tables

ALL = list(studies.every(run_all.STUDIES))


@pytest.mark.parametrize("study", ALL, ids=[study.name for study in ALL])
def test_every_run_of_a_study_is_one_of_its_own(study):
    """Equal fields in all, so that one table holds them; models that exist; a later run is never needed."""
    planned = study.planned()
    assert len({tuple(sorted(run.fields())) for run in planned}) == 1
    assert len({(run.label, run.seed, tuple(run.fields().items())) for run in planned}) == len(planned)
    assert not planned[0].later
    for run in planned:
        create_model(str(run.values["model"]), num_classes=10)


def test_a_study_trains_in_the_folder_of_its_own_files(tmp_path, monkeypatch):
    def claim(config, values, out, **others):
        Results(out, sorted(values)).claim(config)

    monkeypatch.setattr(studies, "sweep", claim)
    (tmp_path / "run.py").write_text("")
    assert ALL[0].train_next(tmp_path, "fashion_mnist")


def write_runs(study, out, runs, **others):
    """Adds rows of runs to results.csv, like one of another study."""
    like = read_results(studies.ROOT / "experiments" / "why_convolution")[0]
    del like["model"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "sweep.json").write_text(config_lib.to_json(study.config()))
    for number, run in enumerate(runs, len(read_results(out))):
        row = {"run": number} | run.fields() | {"seed": run.seed}
        results.append(out / "results.csv", row | {k: v for k, v in like.items() if k not in row} | others)


LOST = dict.fromkeys(SCORES, "") | {"outcome": "not finite"}
MEASURED = [study for study in ALL if study.measure]


class Measured(dict):
    """A row with whatever the study asks for."""

    def get(self, name, default=None):
        return dict.get(self, name, "0.5")

    def __missing__(self, name):
        return "0.5"


@pytest.mark.parametrize(
    ("study", "ended"),
    [(study, ended) for study in ALL for ended in ("finished", "not finite")]
    + [(study, "measured") for study in MEASURED],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_page_is_drawn_after_the_first_run(study, ended, tmp_path, monkeypatch):
    """The queue draws after each run, when most of what a verdict compares is not there."""
    out = tmp_path / study.name
    write_runs(study, out, study.planned()[:1], **LOST if ended == "not finite" else {})
    if ended == "measured":
        monkeypatch.setattr(curves, "with_scores", lambda rows, out: [*map(Measured, rows)])
    page = study.text(out)
    assert not re.search("holds|reverse|worse|nan", page.partition("**Verdict.**")[2])
    if ended == "not finite":
        assert "| 1 |\n" not in page  # in the column of seeds
        assert "| 0, 1 not finite |\n" in page or study.name == "relu_vs_tanh"  # whose tries are in no table
        assert not re.search("[Bb]elow|[1-9] seed|more than", page.partition("**Verdict.**")[2])
    study.figure(study, out)


@pytest.mark.parametrize("study", MEASURED, ids=[study.name for study in MEASURED])
def test_a_run_that_ended_before_it_was_measured_is_measured_next(study, tmp_path):
    """The queue counts what the study trains or measures next; a diverged run is neither."""
    runs, measured = study.planned(), []
    write_runs(study, tmp_path, runs[:1])
    write_runs(study, tmp_path, runs[1:], **LOST)
    (tmp_path / "runs" / "0").mkdir(parents=True)

    def measure(path):
        measured.append(path.name)
        return {"shift_1": 0.5}

    study = dataclasses.replace(study, measure=measure)
    assert study.waiting(tmp_path) == runs[:1]
    assert not study.train_next(tmp_path, "fashion_mnist")
    assert not study.train_next(tmp_path, "fashion_mnist")
    assert measured == ["0"] and study.waiting(tmp_path) == []
    assert [row.get("shift_1") for row in study.rows(tmp_path)] == ["0.5"] + [None] * len(runs[1:])
    assert sum(map(len, study.groups(tmp_path).values())) == len(runs)


def test_the_queue_names_what_has_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "QUEUE", tmp_path / "queue.csv")
    lines = run_all.write_queue({}).splitlines()
    waiting = sum(len(study.waiting()) for study in ALL)
    assert len(lines) == 1 + waiting
    assert (run_all.HERE / "queue.csv").read_text() == "\n".join(
        lines
    ) + "\n"  # the committed one is up to date


def test_a_claim_is_decided_at_five_per_cent_by_students_t_and_twice_the_standard_error():
    """At two or three seeds twice the standard error alone would decide 18 or 12 % of nothing."""
    draw = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        found = [tables.difference(*draw.normal(0, 1, (2, seeds)).tolist()).decided for _ in range(2000)]
        assert np.mean(found) < 0.06
    clear = tables.difference([0.91, 0.92, 0.93], [0.80, 0.81, 0.82])
    assert math.isclose(clear.freedom, 4)
    near = tables.Difference(2.5, 1.0, freedom=100.0)
    assert near.decided and not dataclasses.replace(near, among=6).decided
    assert tables.difference([0.91, 0.93], [0.90, 0.92]).decided is False
    clear = tables.difference([0.91, 0.92, 0.93], [0.80, 0.81, 0.82])
    assert math.isclose(clear.value, 0.11)
    assert math.isclose(clear.error, math.sqrt(2 * 1e-4 / 3))
    assert tables.verdict(clear, "32x32, 20 epochs, 3 seeds") == "holds (32x32, 20 epochs, 3 seeds)"
    assert tables.verdict(tables.Difference(-0.1, 0.01), "x") == "the reverse (x)"
    single = tables.difference([0.9], [0.1])
    assert tables.verdict(single, "x") == "not decided at this size (x)"
    assert not tables.difference([], [0.1, 0.2]).decided


SHARED = {
    "why_convolution": {3},  # CNNs, each against the best dense net
    "why_convolution/cifar10": {2},
    "alexnet_ablation": {1, 3},  # of the local net, of the 18 % net
    "alexnet_regularization": {4},
    "auxiliary_heads": {2},
    "inception_factorization": {2},
    "pooling_types": {6},
    "pooling_types/cifar10": {3},
    "two_towers": {1},  # two scores
}


@pytest.mark.parametrize("name", SHARED)
def test_what_is_compared_with_one_shares_the_five_per_cent(name, monkeypatch):
    decided, among = tables.Difference.decided, set()

    def spied(found):
        among.add(found.among)
        return decided.fget(found)

    monkeypatch.setattr(tables.Difference, "decided", property(spied))
    study = next(study for study in ALL if study.name == name)
    labels = dict.fromkeys(run.label for run in study.planned())
    scores = dict.fromkeys(("test_accuracy", "train_accuracy", "colour_more", "colour_less"), "0.5")
    rows = [{"run": "0", "seed": str(s), "epochs": "1", "params": "1"} | scores for s in range(3)]
    study.claim(types.SimpleNamespace(groups=lambda out: dict.fromkeys(labels, rows), side=32), study.here)
    assert among == SHARED[name]


def test_a_split_that_costs_accuracy_is_worse(tmp_path):
    """The claim is that it costs nothing: 'holds' would be said of a gain alone."""
    study = next(study for study in ALL if study.name == "two_towers")
    scores = zip(
        ("two towers", "one tower, same width", "one tower, same parameters"), (0.5, 0.6, 0.6), strict=True
    )
    groups = {
        label: [{"run": str(i), "epochs": "1", "test_accuracy": str(score + i / 1000)} for i in range(3)]
        for label, score in scores
    }
    found = study.claim(types.SimpleNamespace(groups=lambda out: groups, side=32), tmp_path)
    assert found.verdict.endswith("accuracy: worse (32x32, 1 epochs, 3 seeds)")


def test_the_nets_of_an_hour_take_an_hour():
    study = next(study for study in ALL if study.name == "fashion_mnist/hour")
    for run in study.planned():
        assert math.isclose(run.epochs * 55_000 / speeds.published(study.net(run)), 3600, rel_tol=0.002)


def test_a_legend_says_how_many_runs_a_band_is_of():
    study = next(study for study in ALL if study.name == "fashion_mnist")
    legend = study.figure(study, study.here).axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["SimpleCNN, n = 3"]


def test_the_best_rate_is_chosen_on_validation_of_a_seed_of_its_own():
    nets = {"a": {"model": "simple_cnn"}}
    first = studies.tuned([], nets, (0.1, 0.2), 2.0, {"a": 5.0}, 3)
    assert [(run.label, run.seed, run.epochs) for run in first] == [
        *(("a, rate 0.1", 0, 2.0), ("a, rate 0.2", 0, 2.0))
    ]
    row = {"model": "simple_cnn", "seed": "0", "total_epochs": "2.0"}
    rows = [
        {**row, studies.RATE: "0.1", "validation_accuracy": "0.7"},
        {**row, studies.RATE: "0.2", "validation_accuracy": ""},  # its loss was not finite
    ]
    runs = studies.tuned(rows, nets, (0.1, 0.2), 2.0, {"a": 5.0}, 3)
    assert runs[:2] == first
    assert [(run.label, run.seed, run.values[studies.RATE], run.epochs) for run in runs[2:]] == [
        *(("a", 1, 0.1, 5.0), ("a", 2, 0.1, 5.0), ("a", 3, 0.1, 5.0))
    ]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """This machine has the images a second of the published ones: a test measures none."""
    known = {tuple(row[name] for name in speeds.KEY[:-1]): row for row in results.read(speeds.FILE)}
    file = tmp_path / "speeds.csv"
    for row in known.values():
        results.append(file, {**row, "machine": speeds.this_machine()})
    monkeypatch.setattr(speeds, "FILE", file)
    speeds.rate.cache_clear()
    yield
    speeds.rate.cache_clear()


@pytest.mark.usefixtures("measured")
def test_runs_of_other_lengths_are_not_mixed_at_another_size(tmp_path):
    """Runs that differ only in length and images have rows of their own, and labels say the length."""
    regularization = next(study for study in ALL if study.name == "alexnet_regularization")
    degradation = next(study for study in ALL if study.name == "degradation")
    for study in (regularization, degradation):
        for size in ("hour", "paper", "minute"):
            sized = dataclasses.replace(study, size=size)
            runs = sized.runs(tmp_path)
            assert len({(tuple(run.fields().items()), run.seed) for run in runs}) == len(runs)
            told = [run for run in runs if run.label.endswith(("epochs", "steps"))]
            assert all(run.label.endswith(f", {run.epochs:g} epochs") for run in told)
            assert bool(told) == (study is degradation)


def test_the_papers_epochs_are_those_of_each_net_and_number_of_images():
    def paper(name):
        study = next(study for study in ALL if study.name == name)
        runs = study.planned(size="paper")
        assert {run.label for run in runs} == {run.label for run in study.planned()}
        return {run.label: run.epochs for run in runs}

    lengths = paper("alexnet_ablation")
    assert {lengths[label] for label in lengths if label.startswith("18 %")} == {140}
    assert {lengths[label] for label in lengths if label.startswith("local")} == {470}
    lengths = paper("alexnet_regularization")
    steps = {images * lengths[f"all, {images:,} images"] for images in (5_000, 15_000, 45_000)}
    assert steps == {90.0 * 45_000} and lengths["dropout"] == 90


def test_a_run_that_missed_the_goal_counts_with_its_own_length(tmp_path):
    """Not with that of the committed size: runs of another are shorter, and a verdict would rest on it."""
    study = next(study for study in ALL if study.name == "relu_vs_tanh")
    errors = {"relu": (2.0, 2.9, 2.95), "tanh": (9.0, 9.0, 9.0)}  # epochs to 25 %, of runs of three epochs
    groups, lines = {}, ["run,epoch,loss,accuracy,validation_loss,validation_accuracy"]
    for name, goals in errors.items():
        groups[name] = [
            {"run": f"{name}{i}", "seed": str(i), "epochs": "3.0", "test_accuracy": "0.5"}
            for i in range(len(goals))
        ]
        lines += [f"{name}{i},{min(at, 3)},,{0.75 if at < 3 else 0.5},," for i, at in enumerate(goals)]
    (tmp_path / "curves.csv").write_text("\n".join([*lines, ""]))
    found = study.claim(types.SimpleNamespace(groups=lambda out: groups, side=study.side), tmp_path)
    assert "tanh more than 3 epochs" in found.ours
    assert found.verdict == "ReLU sooner not decided at this size (32x32, 3 epochs, 3 seeds)"


def test_seeds_that_diverged_are_neither_counted_nor_averaged(tmp_path):
    study = next(study for study in ALL if study.name == "pooling_types")
    like = read_results(study.here)
    kinds = {"max": like[:3], "average": [like[3], like[4] | LOST], "min": [like[5] | LOST]}
    (tmp_path / "sweep.json").write_text(study.config().to_json())
    shutil.copyfile(study.here / "results.csv", tmp_path / "results.csv")
    lines = [f"{row['run']},10,,{0.9 if row['test_accuracy'] else 0.1},," for row in like[:6]]
    lines[4] = lines[4].replace("0.9", "0.1")
    (tmp_path / "curves.csv").write_text("run,epoch,loss,accuracy,validation_loss,validation_accuracy\n")
    with (tmp_path / "curves.csv").open("a") as file:
        file.write("\n".join([*lines, ""]))
    page = tables.score_table(tmp_path, "pooling", kinds, ("training error %", "test %"))
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in page.splitlines()}
    assert [cells[f"| {kind}"][-1] for kind in kinds] == ["3 |", "1, 1 not finite |", "0, 1 not finite |"]
    assert cells["| average"][0] == "10.00" and cells["| min"][:2] == ["", ""]
    assert tables.size(*kinds.values(), pixels=32).endswith("10 epochs, 0 seeds")
    assert tables.size(kinds["max"], kinds["average"], pixels=32).endswith("10 epochs, 1 seed")
    drawn = study.figure(types.SimpleNamespace(groups=lambda out: kinds), tmp_path)
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == ["max", "average"]


@pytest.mark.parametrize("study", ALL, ids=[study.name for study in ALL])
def test_the_first_run_of_a_study_is_built_at_size_minute(study, tmp_path, monkeypatch):
    def build(config, values, out, **others):
        experiment.build(config_lib.assign(config, {field: each[0] for field, each in values.items()}))

    monkeypatch.setattr(studies, "sweep", build)
    study = dataclasses.replace(study, size="minute", measure=None)
    assert study.train_next(tmp_path, sample.written(tmp_path, study.side))


def test_a_study_is_drawn_whatever_the_locale(tmp_path):
    """Its table has more than ASCII, and is printed to a terminal that may not."""
    study = ALL[0]
    write_runs(study, tmp_path / study.name, study.planned(size="paper")[:1])
    line = [sys.executable, str(study.home / "run.py"), "--tables", "--size=paper", f"--out={tmp_path}"]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(line, capture_output=True, env={**os.environ, **plain}, timeout=300)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / study.name / "table.md").read_text("utf-8")
    assert not table.isascii() and table.splitlines()[0].encode() in done.stdout


def test_a_folder_of_runs_that_cannot_be_made_is_named(tmp_path, capfd):
    (file := tmp_path / "file").touch()
    assert main.run(["study", "fashion_mnist", "--size=minute", f"--out={file}"]) == 2
    error = capfd.readouterr().err
    assert f"--out={file} cannot be written: Not a directory; choose another" in error
    assert error.count("\n") == 1


def run_a_minute(name, tmp_path, capfd):
    assert main.run(["study", name, "--size=minute", f"--out={tmp_path}"]) == 0
    page = (tmp_path / name / "table.md").read_text()
    verdict = page.partition("**Verdict.** ")[2].partition("\n")[0]
    assert re.search("ot decided at this size|^Measured on|^(At least|Below) 93 %", verdict), verdict
    assert (tmp_path / name / "figure.svg").is_file()
    assert page.strip() in capfd.readouterr().out


def test_a_study_runs_in_a_minute(tmp_path, capfd):
    run_a_minute("two_towers", tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in run_all.STUDIES if name != "two_towers"])
def test_all_studies_run(name, tmp_path, capfd):
    run_a_minute(name, tmp_path, capfd)


def test_studies_are_listed_and_unknown_ones_refused(capsys):
    assert main.run(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(study.name.partition("/")[0] in listed for study in ALL)
    assert main.run(["study", "degradatoin"]) == 2
    assert "did you mean 'degradation'" in capsys.readouterr().err


STUDY = """
import os, signal, sys, time
from cnnjax.runs.signals import caught_signals
with caught_signals() as caught:  # studies.main() trains so
    print(os.getpid(), flush=True)
    while not caught:
        time.sleep(0.01)
    time.sleep(0.5)  # saves; a second signal would end it
    caught.clear()
    print("saved", flush=True)
sys.exit(77)
"""
ALONE = """
import sys
from pathlib import Path
from cnnjax.cli import main, study
study.STUDIES = Path(sys.argv[1])
main.main(["study", "slow"])
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("tell", [os.kill, os.killpg])  # as `kill` does, and Ctrl-C
def test_a_signal_to_the_command_lets_the_study_save_once(tell, signum, tmp_path):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "run.py").write_text(STUDY)
    (tmp_path / "studies.py").touch()
    words = [sys.executable, "-c", ALONE, str(tmp_path)]
    started = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    child = int(started.stdout.readline())
    tell(started.pid, signum)
    assert started.communicate(timeout=60)[0] == "saved\n" and started.returncode == 77
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


ENDS = {
    Interrupted(signal.SIGTERM, "SIGTERM: saved step 1 of 2 in runs/x"): (
        143,
        "SIGTERM: saved step 1 of 2 in runs/x",
    ),
    KeyboardInterrupt(): (130, "interrupted"),
    UserError("--size=x"): (2, "--size=x"),
    OSError(errno.ENOSPC, "No space left on device", "/x"): (
        *(1, "/x cannot be written or read: No space left on device"),
    ),
    TimeoutError("slow"): (1, "a file cannot be written or read: slow"),
}


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_an_error_ends_a_study_with_one_line(error, capsys):
    def work():
        raise error

    with pytest.raises(SystemExit) as ended:
        studies.start(work)
    code, line = ENDS[error]
    assert ended.value.code == code
    assert capsys.readouterr().err == f"{sys.argv[0]}: {line}\n"


@pytest.mark.parametrize("missing", [True, False])  # runs
def test_other_data_than_those_of_the_rows_are_refused(missing, tmp_path):
    study = ALL[0]
    write_runs(study, tmp_path / study.name, study.runs()[missing:])
    given = argparse.Namespace(size="paper", out=tmp_path, tables=False, data="mnist", later=True, next=None)
    with pytest.raises(UserError, match="--data=mnist: .* holds runs on cifar10; leave --data out"):
        studies.run(study, given)


@pytest.mark.parametrize("cut", [1, 3, 12, None])
def test_a_cut_table_is_refused_and_not_added_to(cut, tmp_path):
    """A cut number is another number: 0.5776 was once read as 0."""
    file = tmp_path / "scores.csv"
    results.append(file, {"run": "a", "shift_1": 0.5776}, {"run": "b", "shift_1": 0.25})
    results.append(file, {"run": "c", "shift_1": 0.125})
    whole = file.read_text()
    assert results.read(file)[2] == {"run": "c", "shift_1": "0.125"}
    file.write_text(whole[:-cut] if cut else whole + "d\n")
    before = file.read_text()
    for use in (results.read, lambda file: results.append(file, {"run": "e", "shift_1": 1})):
        with pytest.raises(UserError, match=r"scores.csv is damaged: .*; restore it, or remove it"):
            use(file)
    assert file.read_text() == before


def test_a_full_disk_leaves_the_files_of_a_study_whole(tmp_path, monkeypatch):
    """Each is replaced at once by a new one, or not at all."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    study = next(study for study in ALL if study.name == "why_convolution")
    write_runs(study, tmp_path, study.planned()[:2])
    (tmp_path / "runs" / "0").mkdir(parents=True)
    (tmp_path / "runs" / "1").mkdir()
    page = tmp_path / "README.md"
    page.write_text("<!-- toy: begin --><!-- toy: end -->")
    results.append(tmp_path / "scores.csv", {"run": "0", "shift_1": 0.5})
    results.append(tmp_path / "curves.csv", dict.fromkeys(("run", *curves.COLUMNS), 1))
    (tmp_path / "figure.svg").write_text("old")
    monkeypatch.setattr(curves.Run, "metrics", lambda run: [{"epoch": 1.0, "loss": 2.0}])
    for run in ("0", "1"):
        (tmp_path / "runs" / run / "metrics.jsonl").touch()
        (tmp_path / "runs" / run / "config.json").write_text(config_lib.to_json(study.config()))
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    monkeypatch.setattr(os, "replace", full)
    for write in (
        *(lambda: curves.write(tmp_path), lambda: curves.add_scores(tmp_path, lambda path: {"shift_1": 1})),
        *(lambda: pages.write((page,), "toy", "new"), lambda: studies.draw(study, tmp_path)),
        lambda: results.append(tmp_path / "scores.csv", {"run": "1", "shift_1": 1}),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_a_machine_whose_checkout_cannot_be_written_is_measured_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(speeds, "FILE", tmp_path / "no folder" / "speeds.csv")
    monkeypatch.setattr(
        speeds, "bench_train", lambda *_, **__: calls.append(1) or {"images_per_second": 123.4567}
    )
    for _ in range(2):  # as two processes
        speeds.rate.cache_clear()
        assert speeds.rate(("a net of no study", "128", "float32", "32")) == 123.5
    assert len(calls) == 1


@pytest.mark.parametrize("between", ["\n", "\nold\n", "\n\nold\ntable\n\n"])
def test_a_table_goes_between_the_marks_of_its_page(between):
    page = f"# Toy\n<!-- toy: begin -->{between}<!-- toy: end -->\nafter\n"
    filled = pages.fill(page, "toy", "new")
    assert filled == "# Toy\n<!-- toy: begin -->\nnew\n<!-- toy: end -->\nafter\n"
    assert pages.fill(filled, "toy", "new") == filled


@pytest.mark.parametrize("text", [None, "# Toy\n", "<!-- toy: begin -->\n"])
def test_a_study_without_a_place_for_its_table_ends_before_it_trains(text, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ROOT", tmp_path)
    home = tmp_path / "experiments" / "toy"
    home.mkdir(parents=True)
    if text is not None:
        (home / "README.md").write_text(text)
    given = argparse.Namespace(size="ours", out=None, tables=False, data=None, later=False, next=None)
    study = dataclasses.replace(ALL[0], here=home)  # whose data are not looked for either
    with pytest.raises(UserError, match=r"toy/README.md: (No such file|the lines <!-- toy: begin -->)"):
        studies.run(study, given)
