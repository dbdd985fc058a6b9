"""The page of a run: complete, self-contained, and safe whatever the names in it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.config import to_json
from cnnjax.errors import UserError
from cnnjax.explore import comparison, markup, report
from cnnjax.runs import train
from cnnjax.runs.folder import Run
from cnnjax.runs.results import Results, row_of
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
    assert re.search(r"test accuracy \d+\.\d %</span> \(95 % interval \d+\.\d to \d+\.\d\), 37 images", page)
    assert re.search(r"<p>5 steps in \d+ s · \d+ parameters · .*</p><pre class=\"command\">", page)


def test_a_mistake_is_shown_with_both_probabilities(tiny_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    with np.load(copy / "predictions.npz") as arrays:
        columns = dict(arrays)
    columns["prediction"] = np.where(np.arange(37) == 5, (columns["label"] + 1) % 3, columns["label"])
    columns["confidence"][5], columns["loss"][5] = 0.75, -np.log(0.2)
    np.savez(copy / "predictions.npz", **columns)
    written = report.write(copy).read_text().replace("\u00a0", " ")
    label = columns["label"][5]
    names = Run.open(copy).class_names()
    predicted, true = (f"<b><bdi>{names[i]}</bdi></b>" for i in ((label + 1) % 3, label))
    assert f"<figcaption>predicted {predicted} 75 %<br>true {true} 20 %</figcaption>" in written


def another(run: Path, copy: Path, seed: int = 0, **images: str) -> Path:
    """A copy of a run as one of its own, with a seed and by split with fingerprints of its images."""
    config = Run.open(shutil.copytree(run, copy)).config()
    config.seed = seed
    (copy / "config.json").write_text(to_json(config))
    record = json.loads((copy / "record.json").read_text())
    record["id"], record["data"]["fingerprint"] = (
        copy.name,
        images.pop("train", record["data"]["fingerprint"]),
    )
    record["data"]["fingerprints"] |= images
    (copy / "record.json").write_text(json.dumps(record))
    return copy


def with_predictions(run: Path, copy: Path, **columns: np.ndarray) -> Path:
    """A copy of a run with other columns of its predictions."""
    shutil.copytree(run, copy)
    with np.load(copy / "predictions.npz") as arrays:
        np.savez(copy / "predictions.npz", **(dict(arrays) | columns))
    return copy


def test_a_report_without_mistakes_says_so(tiny_run, tmp_path):
    label = np.load(tiny_run / "predictions.npz")["label"]
    right = with_predictions(tiny_run, tmp_path / "right", prediction=label)
    wrong = with_predictions(tiny_run, tmp_path / "wrong", prediction=(label + 1) % 3)
    none = "<p>None: every test image is right.</p>"
    assert f"Worst mistakes</h2>{none}" in report.write(right).read_text()
    assert none in comparison.compare([right], tmp_path / "one.html").read_text()
    for run, other in ((right, tmp_path / "too"), (wrong, tmp_path / "wrong_too")):
        config = Run.open(shutil.copytree(run, other)).config()
        config.model = "lenet5"
        (other / "config.json").write_text(to_json(config))
        written = comparison.compare([run, other], tmp_path / "both.html").read_text()
        assert "<p>None: each test image is right, or wrong, in all.</p>" in written
        assert '<div class="mistakes">' not in written


def without_end(run: Path, copy: Path, rows: list[dict[str, float]]) -> Path:
    """A copy of a run, with another learning rate, that stopped after these rows of metrics."""
    config = Run.open(shutil.copytree(run, copy)).config()
    config.optimizer.learning_rate = 0.5
    (copy / "config.json").write_text(to_json(config))
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (copy / "test.json").unlink()
    (copy / "predictions.npz").unlink()
    return copy


def test_titles_without_lines_are_left_out(tiny_run, tmp_path):
    for number, rows in enumerate(([], [{"step": 2, "epoch": 0.4, "loss": 1.1}])):
        run = without_end(tiny_run, tmp_path / str(number), rows)
        for file in (report.write(run), comparison.compare([run], tmp_path / "all.html")):
            written = file.read_text()
            assert written.count("<svg") == len(rows)
            assert ("No curves: no row of metrics yet." in written) == (not rows)


def test_only_runs_with_predictions_are_said_to_disagree(tiny_run, tmp_path):
    label = np.load(tiny_run / "predictions.npz")["label"]
    ended = with_predictions(tiny_run, tmp_path / "ended", prediction=(label + 1) % 3)
    stopped = without_end(tiny_run, tmp_path / "stopped", [])
    written = comparison.compare([ended, stopped], tmp_path / "both.html").read_text()
    pictures = written.partition("The same images")[2]
    words = "Mistakes of learning_rate 0.03, highest loss first; the others have no predictions."
    assert f"</h2><p>{words}</p>" in pictures
    assert pictures.count("<li>") == 1 and "</span> learning_rate 0.03</li>" in pictures
    assert re.search(r"true <b><bdi>\d</bdi></b><br>.*?</span> ✗ <bdi>\d</bdi> \d", pictures)
    assert "highest loss first.</p>" in comparison.compare([ended], tmp_path / "one.html").read_text()
    written = comparison.compare([stopped], tmp_path / "none.html").read_text()
    assert "No pictures: no run has predictions." in written


def a_sweep(run: Path, folder: Path, rates=(0.1, 0.2, 0.3), accuracies=(0.5, 0.75, 0.7)) -> Path:
    """A sweep of two seeds a rate, whose runs are copies of one with other accuracies."""
    results = Results(folder, ["optimizer.learning_rate"])
    results.claim(Run.open(run).config())
    for rate, accuracy in zip(rates, accuracies, strict=True):
        for seed in (0, 1):
            path = folder / "runs" / f"{rate}_{seed}"
            shutil.copytree(run, path)
            copy = Run.open(path)
            config = copy.config()
            config.seed, config.optimizer.learning_rate = seed, rate
            (path / "config.json").write_text(to_json(config))
            rows = [{**row, "validation_accuracy": accuracy + 0.01 * seed} for row in copy.metrics()]
            (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            results.append(row_of(copy, {"optimizer.learning_rate": rate}, "finished"))
    return folder


def test_the_page_of_a_sweep_has_the_best_on_validation_first(tiny_run, tmp_path):
    folder = a_sweep(tiny_run, tmp_path / "sweep")
    written = comparison.sweep(folder).read_text()
    assert (folder / "report.html").read_text() == written
    assert "<h1>3 configs, 6 runs: optimizer.learning_rate</h1>" in written
    rows = re.findall(
        r"<th>learning_rate (\S+)</th><td><div class=\"bar\" style=\"(.*?)\">(.*?)</div>", written
    )
    assert rows == [
        ("0.2", "--share: 100.0%", "75.50 ± 0.71"),
        ("0.3", "--share: 84.0%", "70.50 ± 0.71"),
        ("0.1", "--share: 20.0%", "50.50 ± 0.71"),
    ]
    assert "Bars run from 44.2 to 75.5 %." in written
    assert re.findall(r"<li>.*?</span> learning_rate (\S+)</li>", written) == ["0.2", "0.3", "0.1"]
    assert written.count("<svg") == 4 and "training on" in written
    shutil.rmtree(folder / "runs")
    written = comparison.sweep(folder).read_text()
    assert "No curves" in written and "75.50 ± 0.71" in written


def test_groups_are_named_by_what_differs(tiny_run, tmp_path):
    runs = []
    for i, (model, rate) in enumerate([("lenet5", 0.1), ("lenet5", 0.2), ("simple_cnn", 0.1)]):
        shutil.copytree(tiny_run, tmp_path / str(i))
        config = Run.open(tiny_run).config()
        config.model, config.optimizer.learning_rate, config.seed = model, rate, i
        (tmp_path / str(i) / "config.json").write_text(to_json(config))
        runs.append(Run.open(tmp_path / str(i)))
    names = ["lenet5, learning_rate 0.1", "lenet5, learning_rate 0.2", "simple_cnn, learning_rate 0.1"]
    assert [group.name for group in comparison.make_groups(runs)] == names
    assert [group.name for group in comparison.make_groups(runs[:2])] == [
        "learning_rate 0.1",
        "learning_rate 0.2",
    ]


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
def test_reports_are_read_on_a_telephone_in_light_and_in_dark(page, tiny_run, tmp_path):
    """Nothing wider than the screen, and paper and ink that follow the reader's choice."""
    (tmp_path / "one.html").write_text(page)
    comparison.compare([tiny_run], tmp_path / "all.html")
    comparison.sweep(a_sweep(tiny_run, tmp_path / "sweep"), tmp_path / "sweep.html")
    seen = browser.Browser(tmp_path / "profile")
    try:
        for file in ("one.html", "all.html", "sweep.html"):
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


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
def test_a_long_name_leaves_room_for_the_numbers_beside_it(tmp_path):
    """The first column stays in place, so what it covers cannot be scrolled to."""
    seen = browser.Browser(tmp_path / "profile")
    wide = "document.querySelector('tr:last-child th').offsetWidth"
    try:
        for name in ("7", "n" * 40, "n" * 400):
            table = markup.table(["class", *"abcde", "n" * 40], [[name, *["0.1234"] * 6]])
            (tmp_path / "table.html").write_text(markup.page("table", table))
            for width in (320, 1280, 3000):
                seen.show_as(width, dark=False)
                seen.open((tmp_path / "table.html").as_uri())
                room = seen.run("document.querySelector('.scroll').clientWidth")
                assert seen.run(wide) <= (room / 2 if len(name) > 1 else 60), (name, width)
                assert seen.run("document.querySelector('th:last-child').offsetWidth") <= room / 2
    finally:
        seen.close()


def test_names_are_escaped(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_predictions_of_older_runs_still_make_a_report(tiny_run, tmp_path):
    """They lack the columns `top5` and `index`."""
    copy = another(tiny_run, tmp_path / "run")
    with np.load(copy / "predictions.npz") as arrays:
        columns = dict(arrays)
    assert columns.pop("top5").all()  # of three classes
    assert (columns.pop("index") == np.arange(37)).all()
    np.savez(copy / "predictions.npz", **columns)
    assert "Worst mistakes" in report.write(copy).read_text()
    comparison.compare([copy, tiny_run], tmp_path / "both.html")


def test_the_report_of_many_classes_says_that_their_matrix_was_not_kept(tiny_run, tmp_path):
    copy = another(tiny_run, tmp_path / "run")
    test = json.loads((copy / "test.json").read_text())
    del test["confusion_matrix"]
    (copy / "test.json").write_text(json.dumps(test))
    page = report.write(copy).read_text()
    assert "Not kept for more than 2,000 classes." in page and "Worst mistakes" in page
    comparison.compare([copy, tiny_run], tmp_path / "both.html")


@pytest.mark.parametrize("left_out", [{"test.json"}, {"test.json", "metrics.jsonl"}])
def test_a_run_without_a_test_split_is_finished(left_out, tiny_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    for name in left_out | {"predictions.npz"}:
        (copy / name).unlink(missing_ok=True)
    words = ["no test split", "not finished"][len(left_out) - 1]
    written = comparison.compare([copy], tmp_path / "one.html").read_text()
    assert {word for word in ("no test split", "not finished") if word in written} == {words}
    alone = report.write(copy).read_text()
    assert ("finished, without a test split" in alone) == ("metrics.jsonl" not in left_out)


@pytest.mark.parametrize("unfinished", [0, 1, 2])
def test_a_run_that_still_trains_is_no_seed_of_the_means(unfinished, tiny_run, tmp_path):
    """Its minutes so far are not those of a run."""
    for seed in range(2):
        shutil.copytree(tiny_run, tmp_path / str(seed))
        run = Run.open(tmp_path / str(seed))
        config, rows = run.config(), run.metrics()
        config.seed = seed
        (run.path / "config.json").write_text(to_json(config))
        if seed >= unfinished:
            rows[-1]["seconds"] = 60 * (seed + 2)
        else:
            (run.path / "test.json").unlink()
            rows = [row | {"seconds": 600} for row in rows[:1]]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = comparison.compare([tmp_path / "0", tmp_path / "1"], tmp_path / "both.html").read_text()
    minutes, seeds = re.findall(r"<td>(.*?)</td>", written)[3:5]
    assert minutes == ["2.5 ± 0.7", "3.0", "not finished"][unfinished]
    assert seeds == ["0, 1", "0, 1, 1 of 2 not finished", "0, 1"][unfinished]


@pytest.mark.parametrize("again", ["{}", "{}/", "{}/../{.name}"])
def test_a_run_is_not_compared_with_itself(again, tiny_run, tmp_path):
    """However its folder is spelled: nothing would differ, or a seed would count twice."""
    again = again.format(*[tiny_run] * again.count("{"))
    with pytest.raises(UserError, match=f"{re.escape(again)}: this run folder is given twice"):
        comparison.compare([tiny_run, again], tmp_path / "both.html")


@pytest.mark.parametrize(
    ("seed", "images", "apart"),
    [
        (1, {}, False),
        (1, {"test": "other"}, True),
        (1, {"train": "other"}, False),  # what is held out of it depends on the seed
        (0, {"train": "other"}, True),
        (0, {"validation": "other"}, True),
        (0, {}, False),  # trained again
    ],
)
def test_runs_of_other_images_are_no_seeds_of_one_mean(seed, images, apart, tiny_run, tmp_path):
    runs = [tiny_run, another(tiny_run, tmp_path / "other", seed, **images)]
    groups = comparison.make_groups([Run.open(path) for path in runs])
    assert [group.name for group in groups] == (["images 1", "images 2"] if apart else [groups[0].name])
    written = comparison.compare(runs, tmp_path / "both.html").read_text()
    assert ("changed: images 1, images 2 are kept apart." in written) == apart
    assert ("The configs are equal except for their seeds." in written) != apart
    assert ("2 groups, 2 runs" in written, "1 config, 2 runs" in written) == (apart, not apart)


def test_a_copy_of_a_run_is_no_other_seed(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    written = comparison.compare([tiny_run, copy], tmp_path / "both.html").read_text()
    assert "2 groups, 2 runs" in written and "Copies of other folders here, no seeds: copy." in written


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
        ("record.json", "[]", "not a JSON object"),
        ("test.json", '{"accuracy": 1}', "is damaged"),
        ("test.json", "{", "test.json is damaged"),
        ("predictions.npz", "x", "is damaged"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(tiny_run, tmp_path, file, text, words):
    copy = another(tiny_run, tmp_path / "run")
    (copy / file).write_text(text)
    for write in (report.write, lambda path: comparison.compare([path, tiny_run], tmp_path / "c.html")):
        with pytest.raises(UserError, match=words) as found:
            write(copy)
        assert "\n" not in str(found.value)
