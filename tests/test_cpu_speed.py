"""The study of speed: what a bench prints becomes rows, which replace those of the same bench."""

import argparse

import pytest

from experiments.cpu_speed import run, tables

FOUND = {
    **{"model": "resnet18", "batch": 32, "dtype": "float32", "images_per_second": 30.0},
    **{"first_step_seconds": 4.5, "peak_memory_bytes": 2e9, "cpu_kernels": "oneDNN 3.2", "ratio": 1.4},
    "shares": {"convolution": 0.8, "pooling": 0.2},
    "peers": {
        "torch": {"images_per_second": 15.0, "ratio": 2.0, "ratio_min": 1.9, "ratio_max": 2.1, "rounds": 3},
        "torch_compile": {"images_per_second": 21.4, "ratio": 1.4, "ratio_min": 1.3, "ratio_max": 1.5},
        "keras": {"failed": "no such net"},
    },
}


def rows(machine: str = "a CPU, AVX-512") -> list[dict[str, str]]:
    return [{"kind": "train", **row, "machine": machine} for row in run.rows_of(FOUND, rounds=3)]


def test_the_verdict_is_on_the_best_peer_and_says_what_is_missing():
    bench = {row["framework"]: row for row in rows()}
    assert tables.best(rows()) == ("torch_compile", 1.4, 1.3, 1.5)
    assert tables.verdict(bench) == "1.5 missed by 0.10"
    assert tables.verdict({name: row | {"dtype": "bfloat16"} for name, row in bench.items()}) == "1.3 met"
    assert tables.verdict({row["framework"]: row for row in rows("a CPU, AVX2")}) == "1.3 met"
    eager = {name: bench[name] for name in ("cnnjax", "torch")}
    assert tables.verdict(eager) == ""  # beside eager PyTorch alone nothing is told of the best


def test_the_tables_say_all_of_a_bench():
    training = tables.training_table(rows())
    assert (
        "| 2.00 | 1.40 | no such net |  | **1.40** (1.30, 1.50) | 1.5 missed by 0.10 | 4.5 | 2.0 |"
        in training
    )
    assert "| 80% | 20% |" in tables.shares_table(rows())
    assert "| resnet18, 32 | 1.40 torch_compile |" in tables.table(rows())
    assert "| geometric mean | 1.40 |" in tables.table(rows())
    assert "| training float32, target 1.5 (mean 1.8) |" in tables.table(rows())
    assert "| training float32, target 1.3 |" in tables.table(rows("a CPU, AVX2"))


def test_the_machine_on_which_most_was_measured_is_shown_first():
    few, many = rows("few"), [*rows("many"), *(row | {"dtype": "bfloat16"} for row in rows("many"))]
    assert tables.main_machine([*few, *many], "train") == "many"
    assert tables.table([*few, *many]).index("many") < tables.table([*few, *many]).index("few")


def test_rows_of_the_same_bench_are_replaced_and_what_is_there_is_not_measured_again(tmp_path, monkeypatch):
    file = tmp_path / "training.csv"
    monkeypatch.setitem(run.FILES, "train", file)
    options = argparse.Namespace(nets="resnet18,vgg11", batches="", dtypes="float32", again=False)
    assert [*run.wanted("train", options)] == [("resnet18", 32, "float32"), ("vgg11", 32, "float32")]
    run.keep(file, run.rows_of(FOUND, 3))
    run.keep(file, run.rows_of(FOUND | {"dtype": "bfloat16"}, 3))
    run.keep(file, run.rows_of(FOUND | {"images_per_second": 31.0}, 3))
    ours = [row for row in run.results.read(file) if row["framework"] == "cnnjax"]
    assert [(row["dtype"], row["images_per_second"]) for row in ours] == [
        ("bfloat16", "30.0"),
        ("float32", "31.0"),
    ]
    assert [*run.wanted("train", options)] == [("vgg11", 32, "float32")]
    options.again = True
    assert len([*run.wanted("train", options)]) == 2


def test_an_unknown_net_is_told(capsys):
    with pytest.raises(SystemExit):
        run.main(["train", "--nets=resnet19"])
    assert "--nets=resnet19: the study has simple_cnn" in capsys.readouterr().err
