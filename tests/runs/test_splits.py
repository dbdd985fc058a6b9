"""What a run does with the splits that a set has: its own validation, no test, a test without labels."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.cli import main
from cnnjax.data import prepare
from cnnjax.errors import UserError
from cnnjax.runs.checkpoints import Checkpoints
from tests.conftest import tiny_arrays

MODEL = "--config.model=simple_cnn(widths=(2, 3), kernel_size=3)"
FLAGS = [MODEL, "--config.batch_size=16", "--config.total_epochs=2", "--config.eval_batch_size=16"]
TINY = tiny_arrays()


def pictures(path: Path, splits: dict[str, str]) -> str:
    """Folders of the tiny images: of train, or of test for what is no train split; "" without labels."""
    for folder, classes in splits.items():
        kind = "train" if folder in ("", "train") else "test"
        for i, (image, label) in enumerate(zip(TINY[f"{kind}_image"], TINY[f"{kind}_label"], strict=True)):
            file = path / folder / (classes[label] if classes else "") / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(file)
    return f"folder:{path}"


def arrays(path: Path, splits: dict[str, str]) -> str:
    """The same as arrays."""
    held = {}
    for folder, classes in splits.items():
        kind = "train" if folder in ("", "train") else "test"
        held[f"{folder or 'train'}_x"] = TINY[f"{kind}_image"]
        if classes:
            held[f"{folder or 'train'}_y"] = TINY[f"{kind}_label"]
    np.savez(path / "set.npz", **held)
    return f"npz:{path / 'set.npz'}"


def train(path: Path, name: str, *flags: str) -> tuple[int, list[dict], bool]:
    """The exit code, the rows of evaluations, and whether there is a test score."""
    code = main.run(["train", f"--workdir={path}", f"--config.data.name={name}", *FLAGS, *flags])
    file = path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return code, [row for row in rows if "validation_accuracy" in row], (path / "test.json").exists()


@pytest.mark.parametrize(
    ("write", "splits", "held", "evaluated", "scored"),
    [
        (arrays, {"": "abc"}, 0, False, False),
        (pictures, {"": "abc"}, 10, True, False),
        (arrays, {"train": "abc", "val": "abc"}, 0, True, False),
        (
            pictures,
            {"train": "abc", "val": "abc"},
            600,
            True,
            False,
        ),  # the default holds out nothing beside it
        (pictures, {"train": "abc", "test": ""}, 10, True, False),
        (arrays, {"train": "abc", "val": "abc", "test": ""}, 600, True, False),
        (arrays, {"train": "abc", "val": "abc", "test": "abc"}, 0, True, True),
        (arrays, {"train": "abc", "val": "", "test": "abc"}, 10, True, True),
    ],
)
def test_what_is_missing_is_told_before_the_first_step(
    tmp_path, capsys, write, splits, held, evaluated, scored
):
    (tmp_path / "set").mkdir()
    name = write(tmp_path / "set", splits)
    code, rows, has_test = train(tmp_path / "run", name, f"--config.data.num_validation={held}")
    assert code == 0 and has_test is scored and bool(rows) is evaluated
    lines = capsys.readouterr().out.splitlines()
    first_row = next(i for i, line in enumerate(lines) if line.startswith("step "))
    told = [
        i for i, line in enumerate(lines) if "no labelled test split: there will be no test score" in line
    ]
    assert [i < first_row for i in told] == [True] * (not scored)
    blind = [
        i for i, line in enumerate(lines) if "no labelled validation split: nothing is evaluated" in line
    ]
    assert [i < first_row for i in blind] == [True] * (not evaluated)
    assert any("no test score" in line for line in lines[first_row:]) is not scored
    if evaluated:
        own = splits.get("val")
        count = 37 if own else held
        assert all(round(row["validation_accuracy"] * count, 4) % 1 == 0 for row in rows) and len(rows) == 2
    page = (tmp_path / "run/report.html").read_text()
    assert "not finished" not in page
    again = ["evaluate", f"--workdir={tmp_path / 'run'}"]
    assert main.run(again) == (0 if scored else 2)
    assert "Traceback" not in capsys.readouterr().err
    if held == 600:
        assert main.run([*again, "--split=validation"]) == 0


def test_the_best_checkpoint_is_that_of_the_sets_own_validation(tmp_path):
    name = arrays(tmp_path, {"train": "abc", "val": "abc"})
    code, rows, _ = train(tmp_path / "run", name, "--config.keep_checkpoints=5")
    assert code == 0
    best = max(rows, key=lambda row: row["validation_accuracy"])["validation_accuracy"]
    checkpoints = Checkpoints(tmp_path / "run/checkpoints")
    step, _ = checkpoints.variables("best", "raw")
    assert [row["validation_accuracy"] for row in rows if row["step"] == step] == [best]


def test_validation_as_the_test_split_gives_choices_to_what_is_held_out(tmp_path, capsys):
    name = arrays(tmp_path, {"train": "abc", "val": "abc"})
    as_test = "--config.data.test_split=validation"
    code, rows, scored = train(tmp_path / "held", name, as_test, "--config.data.num_validation=10")
    assert code == 0 and scored and len(rows) == 2
    assert json.loads((tmp_path / "held/test.json").read_text())["count"] == 37
    code, rows, scored = train(tmp_path / "blind", name, as_test, "--config.data.num_validation=0")
    assert code == 0 and scored and not rows
    assert "nothing is evaluated before the end" in capsys.readouterr().out
    code, *_ = train(tmp_path / "none", name, "--config.data.test_split=tset")
    assert code == 2 and not (tmp_path / "none").exists()
    assert "config.data.test_split='tset' is not a split" in capsys.readouterr().err


def test_a_run_that_was_trained_blind_resumes_with_its_own_validation(tmp_path):
    """Of before that split was looked at, simulated by what such a run leaves: no row of an evaluation."""
    name = arrays(tmp_path, {"train": "abc", "val": "abc", "test": "abc"})
    held = "--config.data.num_validation=0"
    train(tmp_path / "run", name, held)
    file = tmp_path / "run/metrics.jsonl"
    kept = [line for line in file.read_text().splitlines() if "validation" not in line]
    file.write_text("".join(f"{line}\n" for line in kept))
    code, _, scored = train(tmp_path / "run", name, held)
    assert code == 0 and scored


def test_a_sweep_chooses_by_the_sets_own_validation(tmp_path, capsys):
    name = arrays(tmp_path, {"train": "abc", "val": "abc"})
    sets = ["--set", "optimizer.learning_rate=0.01"]
    assert main.run(["sweep", f"--out={tmp_path / 'out'}", f"--config.data.name={name}", *FLAGS, *sets]) == 0
    rows = (tmp_path / "out/results.csv").read_text().splitlines()
    column = rows[0].split(",").index("validation_accuracy")
    assert len(rows) == 2 and all(float(row.split(",")[column]) > 0 for row in rows[1:])


@pytest.mark.parametrize("skip", [False, True])
def test_sizes_that_differ_end_a_run_before_its_first_step(tmp_path, capsys, skip):
    name = pictures(tmp_path / "set", {"train": "abc", "test": "abc"})
    Image.new("L", (5, 9)).save(tmp_path / "set/test/a/0.png")
    flags = ["--config.data.num_validation=10", "--config.data.on_bad_image=skip"][: 1 + skip]
    code, _, scored = train(tmp_path / "run", name, *flags)
    error = capsys.readouterr().err
    if skip:
        assert code == 0 and scored
    else:
        assert code == 2 and "config.data.size=8 must be given" in error and "8x8 (126), 9x5 (1)" in error
        assert not (tmp_path / "run").exists()


def test_the_whole_error_of_tfds_is_told_and_its_progress_shown(tmp_path, monkeypatch, capfd):
    (tmp_path / "tensorflow.py").write_text("")
    (tmp_path / "tensorflow_datasets.py").write_text(
        "import sys\n"
        "def builder(name, data_dir, file_format):\n"
        "    print('Downloading', name)\n"
        "    print('10 %', file=sys.stderr)\n"
        "    raise ValueError('no such config\\n- one\\n- two\\nsee above')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError) as error:
        prepare.prepare_tfds("pets", tmp_path)
    assert str(error.value).endswith(
        "could not be prepared: ValueError: no such config - one - two see above"
    )
    assert re.search("Downloading pets\n10 %", capfd.readouterr().err)


def test_a_damaged_test_split_is_told_before_the_first_step(tmp_path, capsys):
    pictures(tmp_path / "set", {"train": "abc", "test": "abc"})
    out = tmp_path / "records"
    assert main.run(["data", "prepare", f"folder:{tmp_path / 'set'}", f"--out={out}", "--short_side=8"]) == 0
    shard = next(out.glob("test-*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-9])
    code, rows, _ = train(tmp_path / "run", f"records:{out}", "--config.data.num_validation=10")
    assert code == 2 and not rows and str(shard) in capsys.readouterr().err


def test_images_in_the_current_folder_are_trained_on_beside_their_runs(tmp_path, monkeypatch, capsys):
    """The folder of a run is made below them, when they are listed; the next run leaves it out."""
    pictures(tmp_path, {"": "abc"})
    monkeypatch.chdir(tmp_path)
    own = ["--config.data.name=folder:.", "--config.data.num_validation=0"]
    command = ["train", *own, *FLAGS, "--config.total_epochs=0.1"]
    for number in (1, 2):
        assert main.run([*command, f"--config.seed={number}"]) == 0, capsys.readouterr().err
        assert len([*Path("runs").iterdir()]) == number
