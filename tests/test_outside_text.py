"""Text from outside is text: no name, path or error is markup, HTML, a formula, or an order to a terminal."""

import contextlib
import io
import json
import os
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cnnjax.cli import main, tables
from cnnjax.errors import MOST, BadImage, UserError, visible
from cnnjax.explore import markup, plots, report
from cnnjax.runs.folder import Run
from tests.conftest import tiny_arrays

CONTROLS = "".join(map(chr, [*range(1, 0x20), *range(0x7F, 0xA0)]))
SHORT = (  # each is what it stands for, and fits into a file's name but for / and NUL
    "[red]x[/red]",
    "[/]",
    ":smile:",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b[2J",
    "\x1b]0;x\x07",
    "\r",
    "a\nb",
    CONTROLS,
    "\u202egnp.exe\u2066",
    "\u200bz\u200d\ufeff",
    os.fsdecode(b"caf\xe9"),
    "Z" + "\u0301" * 100,
    "$\\frac$ $",
    "%s %d {0} {x}",
    "_under",
    "犬",
    "=1+1",
)
HOSTILE = (*SHORT, "n" * 10_000, "\x00-")
FILES = tuple(name.replace("/", "|") for name in SHORT)
TRAIN = ["train", "--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.batch_size=21"]
TRAIN += ["--config.data.num_validation=0", "--config.total_epochs=1", "--config.optimizer.warmup_epochs=0"]
TAGS = """
    html head meta title style body h1 h2 p span div table tr th td figure figcaption img br b ul li details
    summary pre svg metadata rdf:rdf cc:work dc:type dc:format dc:creator cc:agent dc:title g path defs use
    rect clippath image
"""


def assert_text(text: str) -> None:
    """Nothing but visible characters and newlines, with few marks on each."""
    strange = {c for c in text if c != "\n" and not c.isprintable() and unicodedata.category(c) != "Zs"}
    assert not strange, (strange, text[:2000])
    assert "\u0301" * 20 not in text


class Tags(HTMLParser):
    """The text of a page; fails for tags and attributes that no page of ours has."""

    def __init__(self, page: str):
        super().__init__()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS.split(), tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, value)

    def handle_data(self, data):
        self.text += data


class Terminal(io.TextIOWrapper):
    """What a terminal that knows an encoding gets."""

    def __init__(self, encoding: str = "utf-8", tty: bool = False):
        self.bytes, self.tty = io.BytesIO(), tty
        super().__init__(self.bytes, encoding, errors="strict", write_through=True)

    def isatty(self):
        return self.tty

    @property
    def text(self) -> str:
        return self.bytes.getvalue().decode(self.encoding)


def shown(*args: str, code: int | None = 0, **terminal) -> str:
    """What a command writes to a terminal, out and err; `code` None is any."""
    out, err = Terminal(**terminal), Terminal(**terminal)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = main.run(list(args))
    assert code is None or ended == code, err.text
    if not terminal.get("tty"):
        assert_text(out.text + err.text)
    return out.text + err.text


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of a hostile name with a data set and images of hostile names, one of them damaged."""
    folder = tmp_path_factory.mktemp("outside") / "<b>&\x9b2J\u202e$犬"
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(FILES):
        Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(folder / "images" / f"{name}.png")
    (folder / "images" / f"broken{FILES[5]}.png").write_bytes(b"\x89PNG")
    np.savez(folder / "data.npz", **arrays(HOSTILE))
    return folder


def arrays(names) -> dict[str, np.ndarray]:
    """The tiny data set with a class for each name."""
    images = tiny_arrays(3 * len(names), len(names))
    labels = {
        f"{split}_label": np.arange(len(images[f"{split}_label"])) % len(names) for split in ("train", "test")
    }
    return {**images, **labels, "class_names": np.array(names)}


@pytest.fixture(scope="module")
def trained(place) -> Path:
    """The folder of a run on classes of hostile names."""
    printed = shown(*TRAIN, f"--workdir={place / 'run'}", f"--config.data.name=npz:{place / 'data.npz'}")
    assert visible(place) in printed
    return place / "run"


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


@pytest.mark.parametrize("kind", [UserError, BadImage])
def test_an_error_is_one_visible_line(kind):
    for text in HOSTILE:
        message = str(kind(f"file={text}; allowed: another"))
        assert_text(message)
        assert "\n" not in message
        assert len(message) <= MOST + 1


COMMANDS = {
    "evaluate": ["evaluate", "--workdir={run}"],
    "evaluate other": ["evaluate", "--workdir={run}", "--data=npz:{place}/data.npz", "--split=train"],
    "predict": ["predict", "--workdir={run}", "{place}/images"],
    "predict explain": ["predict", "--workdir={run}", "{place}/images", "--explain", "--out={place}/drawn"],
    "report": ["report", "{run}"],
    "compare": ["report", "{run}", "{run}/../run", "--out={place}/two.html"],
    "stablehlo": ["export", "--workdir={run}", "--format=stablehlo", "--out={place}/net.stablehlo"],
    "weights": ["weights", "export", "{place}/torch.safetensors", "--workdir={run}"],
    "inspect": ["data", "inspect", "npz:{place}/data.npz", "--out={place}/sheet.png"],
    "prepare": ["data", "prepare", "npz:{place}/data.npz", "--out={place}/records", "--short_side=8"],
    "checkpoints": ["checkpoint", "verify", "--workdir={run}"],
    "replay": ["replay", "--workdir={run}", "--step=0"],
    "resume": ["train", "--workdir={run}", "--config.data.name=npz:{place}/data.npz"],
    "print": ["train", "--print_config", "--config.data.name=npz:{place}/data.npz"],
}


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_show_hostile_names_as_text(name, place, trained):
    words = [word.format(run=trained, place=place) for word in COMMANDS[name]]
    refused = ("predict", "resume", "weights")  # one image is broken; another config; no names in torch
    printed = shown(*words, code=2 if name.startswith(refused) else 0)
    if name.startswith("predict"):
        for text in FILES[:9]:  # of tables that are wider the names are cut
            assert visible(text) in printed, text
    if name in ("report", "compare"):
        file = trained / "report.html" if name == "report" else place / "two.html"
        page = file.read_text("utf-8")
        text = Tags(page).text
        for text_of_class in SHORT if name == "report" else ():
            assert visible(text_of_class, lines=True) in text, text_of_class
        assert_text(page)


def test_json_is_valid_whatever_the_names(place, trained):
    for row in shown("predict", f"--workdir={trained}", str(place / "images"), "--json", code=2).splitlines():
        if not row.startswith("cnnjax: "):
            assert set(json.loads(row)) <= {"image", "classes", "error"}
    shown("export", f"--workdir={trained}", f"--out={place / 'net.safetensors'}")
    facts = json.loads((place / "net.safetensors.json").read_text("ascii"))
    assert facts["class_names"] == list(HOSTILE)
    assert json.loads(shown("evaluate", f"--workdir={trained}", "--json"))["count"] == len(HOSTILE)


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


@pytest.mark.parametrize("command", main.COMMANDS)
def test_a_hostile_argument_is_refused_in_one_visible_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in HOSTILE[:-2]:
        for args in ([text], [f"--{text}"], [f"--workdir={text}", text]):
            printed = shown(command, *args, code=2)
            assert printed.count("\n") == 1, (args, printed)
            assert printed.startswith("cnnjax: ")


def test_a_hostile_command_or_config_is_refused_in_one_visible_line():
    for text in HOSTILE[:-2]:
        for args in ([text], ["train", f"--config={text}"], ["train", f"--config.{text}=1"]):
            printed = shown(*args, code=2)
            assert printed.count("\n") == 1, (args, printed)
    printed = shown("train", "--config.data.name=npz:/no.npz", code=2)
    assert printed.startswith("cnnjax: config.data.name: /no.npz")


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


def test_elements_are_escaped_once_wherever_text_stands():
    for text in HOSTILE:
        made = markup.page(text, markup.table([text], [[text, text]]), markup.element("p", text, title=text))
        assert visible(text, lines=True) in Tags(made).text
        Tags(markup.image(np.zeros((2, 2, 1), np.uint8), alt=text))
        assert_text(made)


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_figures_show_names_as_text():
    """Also those that look like formulas, or that a legend would leave out."""
    names, images = list(HOSTILE), [np.zeros((2, 2, 1))] * len(HOSTILE)
    count = len(names)
    figures = [
        plots.image_grid(images, names, rows=names, columns=1),
        plots.curves({name: ([0, 1], [0, 1]) for name in names}, "epoch", title=names[4]),
        plots.points(np.zeros((count, 2)), np.arange(count), names[:20]),
        plots.confusion(np.eye(count, dtype=int), names),
    ]
    figures += [plots.numbers(np.zeros((1, 1)), name) for name in names[-3:]]
    for figure in figures:
        Tags(markup.svg(figure))
    assert len(figures[1].axes[0].get_legend().get_texts()) == count
    assert len(figures[2].legends[0].get_texts()) == 20


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
    assert "choose another" in shown("train", f"--workdir={tmp_path / name / 'run'}", code=2)
    assert not (tmp_path / name).exists()


def test_numbers_that_are_not_finite_are_null_in_json(capsys):
    tables.print_json({"loss": float("nan"), "rows": [{"x": (float("inf"), 1.5, "nan")}]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "loss": None,
        "rows": [{"x": [None, 1.5, "nan"]}],
    }


@pytest.mark.parametrize("kind", ["safetensors", "npz", "json"])
def test_names_inside_damaged_files_are_visible(kind, tmp_path):
    """Tensors, arrays and fields of any number and length."""
    names = [f"{text}.{i}" for i in range(30) for text in (*SHORT, "n" * 2000) if "\udce9" not in text]
    if kind == "safetensors":
        save_file({name: np.zeros(2, np.float32) for name in names}, tmp_path / "net.safetensors")
        words = [
            "weights",
            "import",
            f"{tmp_path}/net.safetensors",
            "--model=lenet5",
            f"--workdir={tmp_path}/run",
        ]
    elif kind == "npz":
        np.savez(tmp_path / "data.npz", **{name.replace("/", "|"): np.zeros(2) for name in names})
        words = ["data", "inspect", f"npz:{tmp_path}/data.npz"]
    else:
        (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(names, names)))
        words = ["evaluate", f"--workdir={tmp_path}"]
    printed = shown(*words, code=2)
    assert printed.count("\n") == 1
    assert len(printed) < MOST + 20
