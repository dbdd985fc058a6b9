"""Hostile text given to all that shows text: it comes out as text, and a mistake stays one line.

A sink is a command that meets the texts as names of classes and files, as arguments or within a file, an
error, or a part of a page. Each text counts as one trial of a sink, also where the sink meets all at once.
"""

import contextlib
import io
import json
import os
import shutil
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from cnnjax.cli import main
from cnnjax.errors import MOST, BadImage, UserError, visible
from cnnjax.explore import markup, plots
from experiments.reliability.place import tiny_arrays

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
    rect clippath image bdi
"""
COMMANDS = {
    "evaluate": ["evaluate", "--workdir={run}"],
    "evaluate other": ["evaluate", "--workdir={run}", "--data=npz:{place}/data.npz", "--split=train"],
    "predict": ["predict", "--workdir={run}", "{place}/images"],
    "predict explain": ["predict", "--workdir={run}", "{place}/images", "--explain", "--out={place}/drawn"],
    "report": ["report", "{run}"],
    "compare": ["report", "{run}", "{place}/again", "--out={place}/two.html"],
    "stablehlo": ["export", "--workdir={run}", "--format=stablehlo", "--out={place}/net.stablehlo"],
    "weights": ["weights", "export", "{place}/torch.safetensors", "--workdir={run}"],
    "inspect": ["data", "inspect", "npz:{place}/data.npz", "--out={place}/sheet.png"],
    "prepare": ["data", "prepare", "npz:{place}/data.npz", "--out={place}/records", "--short_side=8"],
    "checkpoints": ["checkpoint", "verify", "--workdir={run}"],
    "replay": ["replay", "--workdir={run}", "--step=0"],
    "resume": ["train", "--workdir={run}", "--config.data.name=npz:{place}/data.npz"],
    "print": ["train", "--print_config", "--config.data.name=npz:{place}/data.npz"],
}
Check = Callable[[str], object]  # of one text; an AssertionError says what is wrong


def assert_text(text: str) -> None:
    """Nothing but visible characters and newlines, with few marks on each."""
    strange = {c for c in text if c != "\n" and not c.isprintable() and unicodedata.category(c) != "Zs"}
    assert not strange, (strange, text[:2000])
    assert "\u0301" * 20 not in text, text[:2000]


class Tags(HTMLParser):
    """The text of a page; fails for tags and attributes that no page of ours has."""

    def __init__(self, page: str):
        super().__init__()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS.split(), tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("data:image/png;base64,", "#")), (tag, value)

    def handle_data(self, data: str) -> None:
        self.text += data


class Terminal(io.TextIOWrapper):
    """What a terminal that knows an encoding gets."""

    def __init__(self, encoding: str = "utf-8", tty: bool = False):
        self.bytes, self.tty = io.BytesIO(), tty
        super().__init__(self.bytes, encoding, errors="strict", write_through=True)

    def isatty(self) -> bool:
        return self.tty

    @property
    def text(self) -> str:
        return self.bytes.getvalue().decode(self.encoding)


def shown(*args: str, code: int | None = 0, encoding: str = "utf-8", tty: bool = False) -> str:
    """What a command writes to a terminal, out and err; `code` None is any."""
    out, err = Terminal(encoding, tty), Terminal(encoding, tty)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = main.run(list(args))
    assert code is None or ended == code, (ended, err.text[-2000:])
    if not tty:
        assert_text(out.text + err.text)
    return out.text + err.text


def one_line(*args: str) -> str:
    """The one line that refuses a command."""
    printed = shown(*args, code=2)
    assert printed.count("\n") == 1 and printed.startswith("cnnjax: "), (args, printed[:2000])
    return printed


def arrays(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The tiny data set with a class for each name."""
    images = tiny_arrays(3 * len(names), len(names))
    labels = {
        f"{split}_label": np.arange(len(images[f"{split}_label"])) % len(names) for split in ("train", "test")
    }
    return {**images, **labels, "class_names": np.array(names)}


def make_place(parent: Path) -> Path:
    """A folder of a hostile name: a data set, such images, one damaged, a `run` and its copy `again`."""
    folder = parent / "<b>&\x9b2J\u202e$犬"
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(FILES):
        Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(folder / "images" / f"{name}.png")
    (folder / "images" / f"broken{FILES[5]}.png").write_bytes(b"\x89PNG")
    np.savez(folder / "data.npz", **arrays(HOSTILE))
    printed = shown(*TRAIN, f"--workdir={folder / 'run'}", f"--config.data.name=npz:{folder / 'data.npz'}")
    assert visible(folder) in printed, printed
    shutil.copytree(folder / "run", folder / "again")
    return folder


def command(name: str, place: Path) -> Check:
    """Runs a command on names of classes and images; a check of one name in what it shows and writes."""
    words = [word.format(run=place / "run", place=place) for word in COMMANDS[name]]
    refused = ("predict", "resume", "weights")  # one image is broken; another config; no names in torch
    printed = shown(*words, code=2 if name.startswith(refused) else 0)
    page = {"report": place / "run" / "report.html", "compare": place / "two.html"}.get(name)
    text = Tags(page.read_text("utf-8")).text if page else ""
    if page:
        assert_text(page.read_text("utf-8"))

    def check(hostile: str) -> None:
        if name.startswith("predict") and hostile in FILES[:9]:  # of tables that are wider the names are cut
            assert visible(hostile) in printed, printed
        if name == "report" and hostile in SHORT:
            assert visible(hostile, lines=True) in text, text[:2000]

    return check


def json_output(place: Path) -> Check:
    """All that is printed or written as JSON is JSON, with the names unchanged where it holds them."""
    run = f"--workdir={place / 'run'}"
    for row in shown("predict", run, str(place / "images"), "--json", code=2).splitlines():
        if not row.startswith("cnnjax: "):
            assert set(json.loads(row)) <= {"image", "classes", "error"}, row
    shown("export", run, f"--out={place / 'net.safetensors'}")
    facts = json.loads((place / "net.safetensors.json").read_text("ascii"))
    assert json.loads(shown("evaluate", run, "--json"))["count"] == len(HOSTILE)

    def check(hostile: str) -> None:
        assert facts["class_names"][HOSTILE.index(hostile)] == hostile

    return check


def arguments(name: str, place: Path) -> Check:
    """A command's arguments, flags and folders."""

    def check(hostile: str) -> None:
        with contextlib.chdir(place):
            for args in ([hostile], [f"--{hostile}"], [f"--workdir={hostile}", hostile]):
                one_line(name, *args)

    return check


def names_of_commands(place: Path) -> Check:
    """In place of a command, of a config and of its fields."""

    def check(hostile: str) -> None:
        for args in ([hostile], ["train", f"--config={hostile}"], ["train", f"--config.{hostile}=1"]):
            one_line(*args)

    return check


def error(kind: type[Exception], place: Path) -> Check:
    """An error's message."""

    def check(hostile: str) -> None:
        message = str(kind(f"file={hostile}; allowed: another"))
        assert_text(message)
        assert "\n" not in message and len(message) <= MOST + 1, message

    return check


def elements(place: Path) -> Check:
    """Titles, cells, attributes and captions of a page; escaped once."""

    def check(hostile: str) -> None:
        table = markup.table([hostile], [[hostile, hostile]])
        made = markup.page(hostile, table, markup.element("p", hostile, title=hostile))
        assert visible(hostile, lines=True) in Tags(made).text, made
        Tags(markup.image(np.zeros((2, 2, 1), np.uint8), alt=hostile))
        assert_text(made)

    return check


def figures(place: Path) -> Check:
    """Figures with the names, also those that look like formulas or that a legend would leave out."""
    names, images = list(HOSTILE), [np.zeros((2, 2, 1))] * len(HOSTILE)
    count = len(names)
    drawn = [
        plots.image_grid(images, names, rows=names, columns=1),
        plots.curves({name: ([0, 1], [0, 1]) for name in names}, "epoch", title=names[4]),
        plots.points(np.zeros((count, 2)), np.arange(count), names[:20]),
        plots.confusion(np.eye(count, dtype=int), names),
    ]
    for figure in drawn:
        Tags(markup.svg(figure))
    assert len(drawn[1].axes[0].get_legend().get_texts()) == count
    assert len(drawn[2].legends[0].get_texts()) == 20
    return lambda hostile: None


def inside(kind: str, place: Path) -> Check:
    """Tensors, arrays and fields of any number and length in a file that is refused."""
    names = [f"{text}.{i}" for i in range(30) for text in (*SHORT, "n" * 2000) if "\udce9" not in text]
    folder = place / f"inside {kind}"
    folder.mkdir()
    if kind == "safetensors":
        save_file({name: np.zeros(2, np.float32) for name in names}, folder / "net.safetensors")
        words = ["weights", "import", f"{folder}/net.safetensors", "--model=lenet5"]
        words += [f"--workdir={folder}/run"]
    elif kind == "npz":
        np.savez(folder / "data.npz", **{name.replace("/", "|"): np.zeros(2) for name in names})
        words = ["data", "inspect", f"npz:{folder}/data.npz"]
    else:
        (folder / "config.json").write_text(json.dumps(dict.fromkeys(names, names)), "utf-8")
        words = ["evaluate", f"--workdir={folder}"]
    assert len(one_line(*words)) < MOST + 20
    return lambda hostile: None


def _sinks() -> Iterator[tuple[str, tuple[Sequence[str], Callable[[Path], Check]]]]:
    """(name, (texts that it takes, what gives its check at a place))."""
    argued = HOSTILE[:-2]  # the system takes no NUL, and no names so long
    for name in COMMANDS:
        yield f"names, {name}", (HOSTILE, lambda place, name=name: command(name, place))
    yield "names, JSON", (HOSTILE, json_output)
    for name in main.COMMANDS:
        yield f"arguments, {name}", (argued, lambda place, name=name: arguments(name, place))
    yield "command or config", (argued, names_of_commands)
    for kind in (UserError, BadImage):
        yield f"message, {kind.__name__}", (HOSTILE, lambda place, kind=kind: error(kind, place))
    yield "elements of a page", (HOSTILE, elements)
    yield "figures", (HOSTILE, figures)
    for kind in ("safetensors", "npz", "json"):
        yield f"inside a file, {kind}", (SHORT, lambda place, kind=kind: inside(kind, place))


SINKS: Mapping[str, tuple[Sequence[str], Callable[[Path], Check]]] = dict(_sinks())


def feed(sink: str, place: Path) -> Iterator[str]:
    """'' or what was wrong, for each of the texts that a sink takes."""
    hostile, prepare = SINKS[sink]
    check, wrong = None, ""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph|constrained_layout")
        try:
            check = prepare(place)
        except Exception:
            wrong = traceback.format_exc()
        for text in hostile:
            problem = wrong
            if check:
                try:
                    check(text)
                except Exception:
                    problem = traceback.format_exc()
            yield f"{sink}, {text!r:.60}: {problem}" if problem else ""
