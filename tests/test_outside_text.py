"""Text from outside is text: no name, path or error is markup, HTML, a formula, or an order to a terminal."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjax.cli import tables
from cnnjax.errors import MOST, UserError, visible
from cnnjax.explore import report
from cnnjax.runs.folder import Run
from experiments.reliability import texts
from experiments.reliability.texts import HOSTILE, SHORT, TRAIN, Tags, assert_text, shown
from tests import ROOT


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of a hostile name with what `texts` feeds."""
    return texts.make_place(tmp_path_factory.mktemp("outside"))


@pytest.fixture(scope="module")
def trained(place) -> Path:
    """The folder of a run on classes of hostile names."""
    return place / "run"


@pytest.mark.parametrize("sink", texts.SINKS)
def test_hostile_text_is_text_wherever_it_goes(sink, place):
    """The same as `experiments/reliability/run.py texts`."""
    found = list(texts.feed(sink, place))
    assert len(found) >= len(SHORT)
    assert not any(found), "\n".join(found)[:4000]


def test_what_is_visible_stays_and_what_is_not_becomes_an_escape():
    for text in ("plain", "ünï · 犬 العربية עברית 👩", "a\u00a0b\u3000c", "[red]", "ế", "\\x1b"):
        assert visible(text) == text
    assert visible("\x1b[2J\r\n\u202e\u200b\udce9\x9b\x00") == r"\x1b[2J\r\n\u202e\u200b\udce9\x9b\x00"
    assert visible("a\nb", lines=True) == "a\nb"
    assert visible("\u3164\u2800\u034f\u2060\u00ad\U000e0041") == r"\u3164\u2800\u034f\u2060\xad\U000e0041"
    assert len(visible("n" * 10_000)) == MOST + 1
    assert len(visible("n" * 10_000, lines=True)) == 10_000
    for text in HOSTILE:
        assert_text(visible(text))
        assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize("terminal", [{"encoding": "ascii"}, {"encoding": "latin-1"}, {"tty": True}])
def test_any_terminal_takes_them(terminal, place, trained, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    printed = shown("predict", f"--workdir={trained}", str(place / "images"), code=2, **terminal)
    assert "\x1b[2J" not in printed
    assert "\x1b]" not in printed
    assert "\\x1b" in printed


@pytest.mark.parametrize("command", ["train", "prepare", "sweep"])
def test_bars_and_colours_reach_a_terminal(command, place, monkeypatch, tmp_path):
    """They are the only orders that do."""
    monkeypatch.setenv("TERM", "xterm-256color")
    train = [*TRAIN[1:], f"--config.data.name=npz:{place / 'data.npz'}"]
    words = {"train": ["train", *train, f"--workdir={tmp_path / 'run'}"]}
    words |= {"prepare": ["data", "prepare", f"npz:{place / 'data.npz'}", f"--out={tmp_path / 'records'}"]}
    words |= {"sweep": ["sweep", *train, "--set=loss.label_smoothing=0.1", f"--out={tmp_path / 'sweep'}"]}
    printed = shown(*words[command], tty=True)
    assert "\x1b[" in printed
    assert not re.search(r"\\x1b\[(\d\dm|\d+;|\?|2K)", printed)  # nor are they shown as text
    assert not re.search(r"\x1b(?!\[[0-9;?]*[a-zA-Z])", printed)
    assert "\x1b[2J" not in printed


def test_a_name_in_the_json_of_a_run_is_text_in_its_page(trained, tmp_path):
    """Wherever a string may stand, and in place of numbers."""
    text = "<script>alert(1)</script>"

    def planted(value):
        if isinstance(value, dict):
            return {f"{key}": planted(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [planted(inner) for inner in value]
        return text if isinstance(value, str) else value

    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    record, test = (json.loads((trained / name).read_text()) for name in ("record.json", "test.json"))
    variants = [(planted(record), planted(test))]
    variants += [(record, {**test, key: text}) for key in ("count", "macro")]
    for changed, tested in variants:
        (tmp_path / "record.json").write_text(json.dumps(changed))
        (tmp_path / "test.json").write_text(json.dumps(tested))
        try:
            Tags(report.write(tmp_path).read_text())
        except UserError as error:
            assert "damaged" in str(error)
    assert Run.open(tmp_path).config()


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "report", "export", "checkpoint"])
def test_a_run_folder_whose_path_is_not_utf8_is_refused(command, tmp_path):
    """The library of checkpoints takes no such path."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    if command != "train":
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    words = {"report": [str(folder)], "checkpoint": ["list"], "predict": [str(tmp_path)]}.get(command, [])
    words += [f"--out={tmp_path}/a.safetensors"] if command == "export" else []
    printed = shown(command, *words, *([] if command == "report" else [f"--workdir={folder}"]), code=2)
    assert "caf\\udce9" in printed
    assert "UTF-8" in printed
    assert folder.exists() == (command != "train")


@pytest.mark.skipif(not shutil.which("localedef"), reason="no localedef")
def test_a_path_that_the_locale_does_not_write_as_utf8_is_refused(tmp_path):
    """Python would write parts of a checkpoint there, the library of checkpoints the others elsewhere."""
    built = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "latin1")]
    if subprocess.run(built, capture_output=True).returncode:
        pytest.skip("no Latin-1 locale can be built")
    code = "import sys; from cnnjax.cli import main; sys.exit(main.run(sys.argv[1:]))"
    env = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "latin1", "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "été"
    for words in (
        ["train", "--config.data.name=fashion_mnist_mini", f"--workdir={folder}"],
        ["data", "prepare", "fashion_mnist_mini", f"--out={folder}"],
    ):
        raw = [word.encode("latin-1") for word in words]
        done = subprocess.run([sys.executable, "-c", code, *raw], capture_output=True, env=env, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
        assert b"use a UTF-8 locale" in done.stderr
    assert os.listdir(tmp_path) == ["latin1"]


def test_records_take_utf8_paths_only_and_exports_any(trained, tiny_data, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    assert "UTF-8" in shown("data", "prepare", tiny_data, f"--out={folder}", "--short_side=8", code=2)
    assert "UTF-8" in shown("data", "inspect", f"records:{folder}", code=2)
    assert not folder.exists()
    folder.mkdir()
    shown("export", f"--workdir={trained}", "--format=stablehlo", f"--out={folder / 'net.stablehlo'}")
    assert "caf\\udce9\\nb" in shown("report", str(trained), f"--out={folder}\nb.html")


@pytest.mark.parametrize("name", ["[b]", "a*", "a?", "a\\b", "gs:"])
def test_a_new_run_folder_in_which_checkpoints_would_be_lost_is_refused(name, tmp_path):
    """orbax looks for what each process wrote by a glob over the whole path, finds nothing where that is a
    pattern, and saves an empty tree without an error; it offers no way to escape the path. `gs:/` is a bucket
    to it. A link of another name would have to live, and be cleared, somewhere else: so another name it is.
    """
    assert "choose another" in shown("train", f"--workdir={tmp_path / name / 'run'}", code=2)
    assert not (tmp_path / name).exists()


def test_numbers_that_are_not_finite_are_null_in_json(capsys):
    tables.print_json({"loss": float("nan"), "rows": [{"x": (float("inf"), 1.5, "nan")}]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "loss": None,
        "rows": [{"x": [None, 1.5, "nan"]}],
    }
