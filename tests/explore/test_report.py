"""The page of a run: complete, self-contained, and safe whatever the names in it."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cnnjax.errors import UserError
from cnnjax.explore import markup, report
from cnnjax.runs import train
from tests import browser
from tests.conftest import tiny_arrays


class Balanced(HTMLParser):
    """Notes tags that were not closed in order, and all addresses."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "defs", "rect", "line"})

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.addresses, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """The report of a short run on classes with hostile names."""
    from cnnjax import config as config_lib

    folder = tmp_path_factory.mktemp("report")
    names = np.array(["<script>alert(1)</script>", 'b"&', "c"])
    np.savez(folder / "named.npz", **tiny_arrays(), class_names=names)
    config = config_lib.default()
    config.model = "simple_cnn(widths=(2, 3), kernel_size=3)"
    config.batch_size, config.eval_batch_size, config.total_epochs = 16, 16, 1.0
    config.data.name, config.data.num_validation = f"npz:{folder / 'named.npz'}", 10
    config.log_every_steps, config.optimizer.warmup_epochs = 2, 0.0
    config.optimizer.learning_rate = 1e-5
    result = train.train(config, folder / "run")
    assert report.write(result.path) == folder / "run" / "report.html"
    return (folder / "run" / "report.html").read_text()


def test_the_page_is_whole_and_needs_no_network(page):
    parser = Balanced()
    parser.feed(page)
    assert not parser.wrong
    assert not parser.open
    assert "script" not in parser.tags
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in parser.addresses)
    assert not re.search(r"@import|url\(\s*['\"]?http", page)


def test_the_page_shows_what_the_run_found(page):
    for title in ("Training", "Classes", "Confusion matrix", "Worst mistakes", "Config", "Record"):
        assert title in page
    assert page.count("<svg") == 4
    assert page.count("<figcaption>") >= 1
    assert "of 37 test images" in page


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
def test_reports_are_read_on_a_telephone_in_light_and_in_dark(page, tiny_run, tmp_path):
    """Nothing wider than the screen, and paper and ink that follow the reader's choice."""
    (tmp_path / "one.html").write_text(page)
    report.compare([tiny_run], tmp_path / "all.html")
    seen = browser.Browser(tmp_path / "profile")
    try:
        for file in ("one.html", "all.html"):
            shades = []
            for width, dark in ((1000, False), (320, False), (320, True)):
                seen.show_as(width, dark=dark)
                seen.open((tmp_path / file).as_uri())
                assert seen.run("document.documentElement.scrollWidth") == width
                assert seen.run("[...document.images].every((image) => image.naturalWidth > 0)")
                seen.screenshot(tmp_path / "seen.png")
                with Image.open(tmp_path / "seen.png") as opened:
                    shades.append(np.median(np.asarray(opened.convert("L"))))
            assert min(shades[:2]) > 240
            assert shades[2] < 40
    finally:
        seen.close()


def test_names_are_escaped(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_predictions_of_older_runs_still_make_a_report(tiny_run, tmp_path):
    """They lack the column `top5`."""
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    with np.load(copy / "predictions.npz") as arrays:
        columns = dict(arrays)
    assert columns.pop("top5").all()  # of three classes
    np.savez(copy / "predictions.npz", **columns)
    assert "Worst mistakes" in report.write(copy).read_text()
    report.compare([copy, tiny_run], tmp_path / "both.html")


def test_text_and_attributes_are_escaped_once_and_markup_is_not():
    bold = markup.element("b", '<i>"&')
    assert bold == "<b>&lt;i&gt;&quot;&amp;</b>"
    assert markup.element("p", bold, 1, class_='"') == f'<p class="&quot;">{bold}1</p>'
    table = markup.table(["", "<"], [["&", 3]], np.array([[0.5]]))
    assert "<th>&lt;</th>" in table and "<th>&amp;</th>" in table
    assert '<td style="background: rgb(var(--cell) / 0.35)">3</td>' in table


def test_a_folder_that_is_no_run_has_no_report(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("record.json", "[]", "no JSON object"),
        ("test.json", '{"accuracy": 1}', "is damaged"),
        ("test.json", "{", "test.json is damaged"),
        ("predictions.npz", "x", "is damaged"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(tiny_run, tmp_path, file, text, words):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    (copy / file).write_text(text)
    for write in (report.write, lambda path: report.compare([path, tiny_run], tmp_path / "c.html")):
        with pytest.raises(UserError, match=words) as found:
            write(copy)
        assert "\n" not in str(found.value)
