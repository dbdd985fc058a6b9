"""The studies: their queue, their verdicts, and a run of each cut down to two steps."""

import csv
import dataclasses
import math
import re
import signal

import pytest

from cnnjax.cli import main
from cnnjax.models import create_model
from cnnjax.runs.results import read_results
from cnnjax.runs.signals import Interrupted
from experiments import run_all, studies, tables

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


@pytest.mark.parametrize("study", ALL, ids=[study.name for study in ALL])
def test_a_page_is_drawn_after_the_first_run(study, tmp_path):
    """The queue draws after each run, when most of what a verdict compares is not there."""
    out = tmp_path / study.name
    out.mkdir(parents=True)
    (out / "sweep.json").write_text(study.config().to_json())
    like = read_results(studies.ROOT / "experiments" / "why_convolution")[0]
    run = study.planned()[0]
    row = {"run": "one"} | run.fields() | {"seed": run.seed}
    row |= {name: value for name, value in like.items() if name not in ("model", *row)}
    measured: dict[str, float] = {}  # whatever columns the study asks for
    while True:
        with (out / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*row, *measured])
            writer.writeheader()
            writer.writerow(row | measured)
        unmeasured = dataclasses.replace(study, measure=None)
        try:
            page = unmeasured.text(out)
            break
        except KeyError as error:
            assert error.args[0] not in measured
            measured[error.args[0]] = 0.5
    assert not re.search("holds|reverse|worse|nan", page.partition("**Verdict.**")[2])
    unmeasured.figure(unmeasured, out)


def test_the_queue_names_what_has_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "QUEUE", tmp_path / "queue.csv")
    lines = run_all.write_queue({}).splitlines()
    waiting = sum(len(run_all.waiting(study)) for study in ALL)
    assert len(lines) == 1 + waiting
    assert (run_all.HERE / "queue.csv").read_text() == "\n".join(
        lines
    ) + "\n"  # the committed one is up to date


def test_a_claim_is_decided_by_twice_the_standard_error():
    assert tables.difference([0.91, 0.93], [0.90, 0.92]).decided is False
    clear = tables.difference([0.91, 0.92, 0.93], [0.80, 0.81, 0.82])
    assert math.isclose(clear.value, 0.11)
    assert math.isclose(clear.error, math.sqrt(2 * 1e-4 / 3))
    assert tables.verdict(clear, "32x32, 20 epochs, 3 seeds") == "holds (32x32, 20 epochs, 3 seeds)"
    assert tables.verdict(tables.Difference(-0.1, 0.01), "x") == "the reverse (x)"
    single = tables.difference([0.9], [0.1])
    assert tables.verdict(single, "x") == "not decided at this size (x)"
    assert not tables.difference([], [0.1, 0.2]).decided


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


def test_a_signal_ends_a_study_with_one_line(capsys):
    def stopped():
        raise Interrupted(signal.SIGTERM, "SIGTERM: saved step 1 of 2 in runs/x")

    with pytest.raises(SystemExit) as ended:
        studies.start(stopped)
    assert ended.value.code == 143
    assert capsys.readouterr().err.endswith(": SIGTERM: saved step 1 of 2 in runs/x\n")
