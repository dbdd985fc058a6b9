"""The README and the generated tables: commands run, examples work, numbers are those of the CSV files."""

import re
import runpy
import shlex

import pytest

from cnnjax.cli import main
from experiments import front, pages, results, studies
from experiments.cpu_speed import tables as speed_tables
from experiments.data_speed import listing
from tests import ROOT

README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_a_short_readme_begins_with_two_commands():
    assert len(README.splitlines()) <= 150
    assert [line.strip() for line in code("sh")] == [
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && cnnjax train",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
    ]


def test_every_command_of_the_table_exists():
    rows = re.findall(r"^\| `cnnjax ([^`]*)` \|", README, re.MULTILINE)
    assert {row.split()[0] for row in rows} == set(main.COMMANDS)


def test_the_listing_commands_run_as_written(capsys):
    for row in re.findall(r"^\| `cnnjax ((?:data|models|train --print)[^`]*)` \|", README, re.MULTILINE):
        if not row.startswith("data prepare"):
            assert main.run(shlex.split(row)) == 0


def test_the_notebook_example_runs(tmp_path, monkeypatch, tiny_data):
    """As written, but on tiny data for one epoch."""
    monkeypatch.chdir(tmp_path)
    example = code("python")[0]
    assert len([line for line in example.splitlines() if line]) <= 12
    example = example.replace('"fashion_mnist_mini"', repr(tiny_data)).replace(
        "result =",
        f"config.data.name, config.data.num_validation, config.total_epochs = {tiny_data!r}, 10, 1.0\n"
        "config.batch_size = 16\nresult =",
    )
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "tanh-average" / "test.json").is_file()


@pytest.mark.parametrize(
    ("study", "page"),
    [
        ("cpu_speed", "experiments/cpu_speed/README.md"),
        ("cpu_speed", "docs/speed.md"),
        ("data_speed", "experiments/data_speed/README.md"),
        ("finetune", "experiments/finetune/README.md"),
        ("models", "docs/models.md"),
        ("reliability", "experiments/reliability/README.md"),
        ("bfloat16", "experiments/bfloat16/README.md"),
        ("scaling", "experiments/scaling/README.md"),
        ("gpu", "experiments/gpu/README.md"),
        ("explore_speed", "experiments/explore_speed/README.md"),
    ],
)
def test_tables_are_those_of_the_csv(study, page):
    run = runpy.run_path(str(ROOT / "experiments" / study / "run.py"))
    text = (ROOT / page).read_text()
    assert run["pages"].fill(text, study, run["table"](run["read_rows"]())) == text


def test_the_table_of_weights_is_that_of_the_package():
    run = runpy.run_path(str(ROOT / "experiments" / "models" / "run.py"))
    text = (ROOT / "docs" / "pretrained.md").read_text()
    assert run["pages"].fill(text, "weights", run["weights_table"]()) == text


@pytest.mark.parametrize(
    ("mark", "make", "page"),
    [
        ("cpu_training", "training_table", "experiments/cpu_speed/README.md"),
        ("cpu_inference", "inference_table", "experiments/cpu_speed/README.md"),
        ("cpu_shares", "shares_table", "docs/speed.md"),
    ],
)
def test_tables_of_speed_are_those_of_the_csv(mark, make, page):
    text = (ROOT / page).read_text()
    assert pages.fill(text, mark, getattr(speed_tables, make)(speed_tables.read_rows())) == text


def test_the_table_of_kernels_is_that_of_its_csv():
    page = (ROOT / "experiments" / "cpu_speed" / "README.md").read_text()
    table = speed_tables.ops_table(results.read(speed_tables.OPS))
    assert pages.fill(page, "cpu_ops", table) == page


def test_the_table_of_listings_is_that_of_its_csv():
    page = (ROOT / "experiments" / "data_speed" / "README.md").read_text()
    assert pages.fill(page, "listing", listing.table(results.read(listing.RESULTS))) == page


def test_the_promises_rest_on_what_was_tried():
    run = runpy.run_path(str(ROOT / "experiments" / "reliability" / "run.py"))
    page = (DOCS / "promises.md").read_text()
    assert pages.fill(page, "promises", run["promise"](run["read_rows"]())) == page


@pytest.mark.parametrize(
    "config, study", [("cifar10_airbench", "cifar10_fast"), ("fashion_mnist_simple_cnn", "fashion_mnist")]
)
def test_a_config_has_the_result_of_its_study(config, study):
    measured = next(studies.every([study]))
    seeds = len(results.finished(measured.rows()))
    said = " ".join((ROOT / "configs" / f"{config}.py").read_text().split())
    assert f"{seeds} seeds: {measured.claim(measured, measured.here).ours}" in said


def test_the_claims_are_those_of_the_csvs():
    summary = runpy.run_path(str(ROOT / "experiments" / "summary.py"))
    assert pages.fill(README, "results", front.table()) == README
    page = (ROOT / "experiments" / "README.md").read_text()
    assert pages.fill(pages.fill(page, "claims", summary["table"]("")), "costs", summary["costs"]()) == page
    page = (DOCS / "reproducing.md").read_text()
    assert pages.fill(page, "reproducing", summary["at_paper_size"]()) == page
    assert pages.fill(page, "claims", summary["table"]()) == page
    for study in studies.every(summary["STUDIES"]):
        page = (study.home / "README.md").read_text()
        assert f"<!-- {study.name}: begin -->" in page
        if study.rows():
            assert pages.fill(page, study.name, study.text(study.here)) == page
