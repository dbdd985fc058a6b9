"""What a run knows of its images is loaded: other data give what `predict` gives on them, or are refused."""

import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnnjax
from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.data import prepare
from cnnjax.data.sources.source import ArraySource
from cnnjax.errors import UserError
from cnnjax.explore import comparison, report
from cnnjax.explore.markup import Markup
from cnnjax.explore.page import network
from cnnjax.inference.probe import open_images
from cnnjax.runs import train
from cnnjax.runs.experiment import build
from cnnjax.runs.folder import Run
from cnnjax.runs.loaded import with_data
from cnnjax.runs.replay import replay_step
from tests.data.test_datasets import write_prepared
from tests.data.test_parquet import HUB
from tests.data.test_parquet import write as write_parquet
from tests.data.test_sources import encoded

TONES = {"blue": (30, 60, 220), "green": (40, 190, 50), "red": (230, 70, 40), "violet": (150, 30, 160)}
NAMES = ("blue", "green", "red")
Pictures = tuple[np.ndarray, np.ndarray]  # uint8 [N, H, W, C] and labels int [N]


def pictures(names: Sequence[str], count: int, *, seed: int = 0, height: int = 8, width: int = 8) -> Pictures:
    """Noisy tones of the classes in turn, no two sets of one brightness."""
    draw, label = np.random.default_rng(seed), np.arange(count) % len(names)
    tone = np.asarray([TONES[name] for name in names])[label]
    noise = draw.integers(-25, 26, (count, height, width, 3)) - 20 * (seed % 2)
    return np.clip(tone[:, None, None] + noise, 0, 255).astype(np.uint8), label


def tree(root: Path, names: Sequence[str], **splits: Pictures) -> str:
    for split, (images, labels) in splits.items():
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = root / split / names[label] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(file)
    return f"folder:{root}"


def zipped(root: Path, names: Sequence[str], **splits: Pictures) -> str:
    tree(root / "tree", names, **splits)
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for file in sorted((root / "tree").rglob("*.png")):
            archive.write(file, file.relative_to(root / "tree"))
    return f"folder:{root / 'images.zip'}"


def npz(root: Path, names: Sequence[str], **splits: Pictures) -> str:
    images = {f"{split}_image": images for split, (images, _) in splits.items()}
    labels = {f"{split}_label": labels for split, (_, labels) in splits.items()}
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "images.npz", **images, **labels, **({"class_names": list(names)} if names else {}))
    return f"npz:{root / 'images.npz'}"


def parquet(root: Path, names: Sequence[str], **splits: Pictures) -> str:
    features = {**HUB, "label": {"_type": "ClassLabel", "names": list(names)}} if names else None
    for split, (images, labels) in splits.items():
        write_parquet(root / f"{split}-0.parquet", [encoded(x.squeeze()) for x in images], labels, features)
    return f"parquet:{root}"


def records(root: Path, names: Sequence[str], **splits: Pictures) -> str:
    splits = {"train": splits["test"], **splits}
    sources = {s: ArraySource(x, y.astype(np.int32), tuple(names), "x", s) for s, (x, y) in splits.items()}
    prepare.prepare(sources, root)
    return f"records:{root}"


def tfds(root: Path, names: Sequence[str], **splits: Pictures) -> str:
    write_prepared(root, "tones", {split: images for split, (images, _) in splits.items()}, list(names))
    return "tfds:tones"


FORMATS: dict[str, Callable[..., str]] = {
    each.__name__: each for each in (tree, zipped, npz, parquet, records, tfds)
}
CONVERTED = ("tree", "zipped", "parquet", "tfds")  # whose files are decoded as `predict` decodes them
SETS = {  # the classes of other data, in their order
    "same": NAMES,
    "reordered": ("red", "blue", "green"),
    "subset": ("red", "blue"),
    "of other cases": ("Red", "BLUE", "green"),
}


def recipe(data: str, **fields) -> config_lib.ConfigDict:
    config = config_lib.default()
    config.model = "simple_cnn(widths=(4,), kernel_size=3)"
    config.batch_size, config.eval_batch_size, config.total_epochs = 10, 16, 6.0
    config.optimizer.learning_rate, config.data.name = 0.02, data
    config.data.num_validation = 6
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A run on colour images of 8x8 in folders."""
    root = tmp_path_factory.mktemp("colour")
    data = tree(root / "own", NAMES, train=pictures(NAMES, 66), test=pictures(NAMES, 15, seed=2))
    train.train(recipe(data), root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A run on grey images of 8x8 without class names."""
    root = tmp_path_factory.mktemp("grey")
    made = {"train": pictures(NAMES, 66), "test": pictures(NAMES, 15, seed=2)}
    own = {split: (as_grey(images), labels) for split, (images, labels) in made.items()}
    train.train(recipe(npz(root / "own", (), **own)), root / "run")
    return root / "run"


def as_grey(images: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in images])[..., None]


def predicted(run: Path, images: np.ndarray) -> list[str]:
    """The classes that `predict` tells of image files."""
    return [each.top[0][0] for each in cnnjax.load_run(run).predict([encoded(x.squeeze()) for x in images])]


def check_as_predicted(run: Path, data: str, names: Sequence[str], images: np.ndarray, labels: np.ndarray):
    """`evaluate --data` decides and counts as `predict` does on the same images."""
    scores, rows = cnnjax.evaluate(run, data=data)
    own = cnnjax.load_run(run).class_names
    wanted = predicted(run, images)
    order = np.arange(len(labels))
    if data.startswith("folder:"):  # it lies by class in the run's order
        rank = [own.index(names[label].lower()) for label in labels]
        order = np.lexsort((np.asarray([str(i) for i in range(len(labels))]), rank))
    assert [own[label] for label in rows["label"]] == [names[labels[i]].lower() for i in order]
    assert [own[prediction] for prediction in rows["prediction"]] == [wanted[i] for i in order]
    hits = [name == names[label].lower() for name, label in zip(wanted, labels, strict=True)]
    assert scores["accuracy"] == pytest.approx(np.mean(hits))
    return scores


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("form", FORMATS)
def test_other_data_of_any_format_give_what_predict_gives(form, kind, colour, tmp_path, monkeypatch):
    """Their train split is of one class and of other brightness, or there is none."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    names, splits = SETS[kind], {}
    images, labels = pictures(names and [n.lower() for n in names], 12, seed=3)
    if kind == "reordered":
        dark = pictures(NAMES[:1], 6)[0] // 4
        splits["train"] = dark, np.zeros(6, int)
    data = FORMATS[form](tmp_path, names, **splits, test=(images, labels))
    scores = check_as_predicted(colour, data, names, images, labels)
    assert scores["accuracy"] > 0.9
    support = {name: 12 // len(names) for name in map(str.lower, names)}
    assert list(scores["per_class"]["support"]) == [support.get(name, 0) for name in NAMES]


@pytest.mark.parametrize("form", FORMATS)
def test_classes_that_the_run_does_not_know_are_refused(form, colour, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    names = ("blue", "violet", "red")
    data = FORMATS[form](tmp_path, names, test=pictures(names, 6))
    assert main.run(["evaluate", f"--workdir={colour}", f"--data={data}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "violet" in error and "allowed: blue, green, red" in error
    assert "config." not in error


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("change", ["grey", "larger", "wider"])
def test_images_of_another_shape_are_converted_or_refused(
    form, change, colour, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    height, width = {"grey": (8, 8), "larger": (20, 20), "wider": (12, 17)}[change]
    images, labels = pictures(NAMES, 9, seed=3, height=height, width=width)
    images = as_grey(images) if change == "grey" else images
    data = FORMATS[form](tmp_path, NAMES, test=(images, labels))
    if form in CONVERTED:
        check_as_predicted(colour, data, NAMES, images, labels)
        return
    assert main.run(["evaluate", f"--workdir={colour}", f"--data={data}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "x".join(map(str, images.shape[1:])) in error and "8x8x3" in error


@pytest.mark.parametrize("form", CONVERTED)
def test_colour_becomes_grey_as_for_predict_and_numbers_need_names(form, grey, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    images, labels = pictures(("red", "blue", "green"), 9, seed=3)
    data = FORMATS[form](tmp_path / "data", ("red", "blue", "green"), test=(images, labels))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    command = ["evaluate", f"--workdir={grey}", f"--data={data}", "--json"]
    assert main.run(command) == 2
    assert "give a file of them as class_names" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert main.run([*command, f"--class_names={tmp_path / 'names.txt'}"]) == 0
    scores = json.loads(capsys.readouterr().out)
    wanted = [NAMES[int(number)] for number in predicted(grey, images)]
    hits = [name == ("red", "blue", "green")[label] for name, label in zip(wanted, labels, strict=True)]
    assert scores["accuracy"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("words", [[], ["--split=validation"], ["--data={}"], ["--data={}", "--split=train"]])
def test_names_of_a_file_leave_the_own_images_their_labels(words, grey, tmp_path, capsys):
    """Its own are numbered, or named otherwise; the file is for words and for other data."""
    (tmp_path / "names.txt").write_text("one\ntwo\nthree")
    own = grey.parent / "own/images.npz"
    command = ["evaluate", f"--workdir={grey}", *(word.format(own) for word in words)]
    assert main.run([*command, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert main.run([*command, "--json", f"--class_names={tmp_path / 'names.txt'}"]) == 0
    assert json.loads(capsys.readouterr().out) == scores
    assert main.run([*command, f"--class_names={tmp_path / 'names.txt'}"]) == 0
    assert "three" in capsys.readouterr().out


def test_a_page_shows_the_own_images_under_the_names_of_a_file(colour, tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\nthree")
    named = cnnjax.load_run(colour).with_class_names(tmp_path / "names.txt")
    tests = [network.Tests.of(each, each.config, 15) for each in (cnnjax.load_run(colour), named)]
    assert tests[0].labels == tests[1].labels and tests[1].class_names == ("one", "two", "three")


@pytest.mark.parametrize("form", [npz, parquet])
def test_data_without_names_fit_a_run_without_names(form, colour, grey, tmp_path):
    images, labels = pictures(NAMES, 9, seed=3)
    with pytest.raises(UserError, match=r"data: .*images of 0, 1, 2, not classes.*these have no names"):
        cnnjax.evaluate(colour, data=form(tmp_path / "colour", (), test=(images, labels)))
    data = form(tmp_path / "grey", (), test=(as_grey(images)[:8:3], labels[:8:3]))  # blue alone
    scores, rows = cnnjax.evaluate(grey, data=data)
    assert list(scores["per_class"]["support"]) == [3, 0, 0]
    assert [str(number) for number in rows["prediction"]] == predicted(grey, as_grey(images)[:8:3])


def test_averages_say_how_absent_classes_count(colour, tmp_path, capsys):
    images, labels = pictures(("red", "blue"), 8, seed=3)
    data = tree(tmp_path, ("red", "blue"), test=(images, labels))
    assert main.run(["evaluate", f"--workdir={colour}", f"--data={data}"]) == 0
    printed = capsys.readouterr().out
    assert "macro, all 3 classes" in printed and "macro, the 2 that occur" in printed
    scores, _ = cnnjax.evaluate(colour, data=data)
    f1 = scores["per_class"]["f1"]
    assert scores["macro"]["f1"] == pytest.approx(np.mean(f1))
    assert scores["occurring"]["f1"] == pytest.approx(np.mean(f1[[0, 2]])) == pytest.approx(1)
    assert scores["per_class"]["support"].tolist() == [4, 0, 4]


def copy_of(run: Path, root: Path) -> tuple[Path, Path]:
    """A copy of a run and of its own data: (run folder, data folder)."""
    shutil.copytree(run, root / "run")
    shutil.copytree(run.parent / "own", root / "own")
    config = Run.open(root / "run").config()
    config.data.name = f"folder:{root / 'own'}"
    (root / "run" / "config.json").write_text(config_lib.to_json(config))
    return root / "run", root / "own"


def test_of_the_own_data_only_the_split_that_is_asked_for_is_read(colour, tmp_path):
    before, _ = cnnjax.evaluate(colour)
    run, own = copy_of(colour, tmp_path)
    assert cnnjax.evaluate(run)[0]["loss"] == before["loss"]
    shutil.rmtree(own / "train")
    assert cnnjax.evaluate(run)[0]["loss"] == before["loss"]
    assert cnnjax.load_run(run).class_names == NAMES


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_own_images_that_have_changed_are_told(split, colour, tmp_path, capsys):
    run, own = copy_of(colour, tmp_path)
    for file in sorted((own / ("test" if split == "test" else "train")).rglob("*.png")):
        image = 255 - np.asarray(Image.open(file))
        Image.fromarray(image).save(file)
    assert main.run(["evaluate", f"--workdir={run}", f"--split={split}"]) == 2
    error = capsys.readouterr().err
    assert "other images of" in error and "--data" in error and error.count("\n") == 1
    other = "test" if split != "test" else "train"
    assert main.run(["evaluate", f"--workdir={run}", f"--split={other}", "--json"]) == 0
    if split == "test":
        assert main.run(["evaluate", f"--workdir={run}", f"--data=folder:{own}", "--json"]) == 0
        report.write(run)
        assert "every test image is right" in (run / "report.html").read_text()
        assert "No pictures" in report.gallery(Run.open(run), np.asarray([0]), [Markup("a mistake")])


def test_a_run_without_a_record_is_not_used(colour, tmp_path, capsys):
    """How its images were prepared is unknown."""
    run, _ = copy_of(colour, tmp_path)
    (run / "record.json").unlink()
    assert main.run(["evaluate", f"--workdir={run}"]) == 2
    error = capsys.readouterr().err
    assert f"{run / 'record.json'} is missing; restore it" in error and error.count("\n") == 1
    with pytest.raises(UserError, match=r"record.json is missing"):
        cnnjax.load_run(run)


READERS = {  # what reads the images of a run, and what is to be done if they are gone
    "evaluate": (cnnjax.evaluate, "name the data set with --data"),
    "replay": (lambda run: replay_step(run, 1), "move it back, or make a link there"),
    "probe": (lambda run: open_images(cnnjax.load_run(run), None, "test"), "name the data set with --data"),
    "explore": (
        lambda run: network.Tests.of(made := cnnjax.load_run(run), made.config, 3),
        "name the data set with --data",
    ),
    "int8": (lambda run: cnnjax.load_run(run).calibration_images(), "name images with --calibration"),
}


@pytest.mark.parametrize("field", ["data.name", "data.dir"])
@pytest.mark.parametrize("reader", READERS)
def test_images_that_are_gone_are_told_with_what_to_do(reader, field, tiny_run, tiny_data, tmp_path):
    """As of the run of someone else."""
    run = Run.open(shutil.copytree(tiny_run, tmp_path / "run"))
    value = "npz:gone.npz" if field == "data.name" else "gone"
    (run.path / "config.json").write_text(config_lib.to_json(config_lib.assign(run.config(), {field: value})))
    read, advice = READERS[reader]
    with pytest.raises(UserError, match=f"gone.*; if it was moved, {advice}$"):
        read(run.path)
    assert cnnjax.evaluate(run.path, data=tiny_data)[0]["count"] == 37
    assert cnnjax.evaluate(run.path, data=tiny_data, split="validation")[0]["count"] == 10


def test_own_images_that_have_moved_keep_their_splits(colour, tmp_path, capsys):
    run, own = copy_of(colour, tmp_path)
    before = {split: cnnjax.evaluate(run, split=split)[0] for split in ("test", "validation", "train")}
    own.rename(moved := tmp_path / "moved")
    for split, scores in before.items():
        assert main.run(["evaluate", f"--workdir={run}", f"--split={split}"]) == 2
        assert "if it was moved, name the data set with --data" in capsys.readouterr().err
        again = cnnjax.evaluate(run, split=split, data=moved)[0]
        assert (again["count"], again["loss"]) == (scores["count"], scores["loss"])
    assert main.run(["evaluate", f"--workdir={run}", f"--data={moved}", "--split=tset"]) == 2
    assert "if it was moved" not in capsys.readouterr().err


@pytest.mark.parametrize("same", [True, False])
def test_a_run_resumes_if_its_images_have_moved(same, colour, tmp_path):
    run, own = copy_of(colour, tmp_path)
    own.rename(moved := tmp_path / "moved")
    config, known = Run.open(run).config(), Run.open(run).read_json("record.json")["data"]
    if not same:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(next((moved / "train").rglob("*.png")))
    config.data.name = f"folder:{moved}"
    if same:
        assert build(config, workdir=run).facts.record()["statistics"] == known["statistics"]
        train.train(config, run)
        assert cnnjax.evaluate(run)[0]["count"]  # the run knows the new name
    else:
        with pytest.raises(UserError, match=r"another config \(config.data.name: saved"):
            train.train(config, run)


def test_a_resumed_run_keeps_the_normalization_that_it_began_with(colour, tmp_path):
    run, _ = copy_of(colour, tmp_path)
    config = Run.open(run).config()
    began = build(config, workdir=run)
    assert began.augment.steps == build(config).augment.steps  # as written and read back, to the last bit
    assert began.eval_augment.steps == build(config).eval_augment.steps
    record = json.loads((run / "record.json").read_text())
    record["data"]["statistics"] = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    record["data"]["eval_augment"] = "normalize(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))"
    (run / "record.json").write_text(json.dumps(record))
    resumed = build(config, workdir=run)
    for augment in (resumed.augment, resumed.eval_augment):
        assert dict(augment.steps[0][1]) == {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    other = recipe(config.data.name, seed=3)
    assert build(other, workdir=run).facts == build(other).facts  # no resumption


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_of_an_earlier_version_that_draws_in_evaluation_is_read_with_a_warning(
    recorded, colour, tmp_path
):
    run, _ = copy_of(colour, tmp_path)
    record = json.loads((run / "record.json").read_text())
    own = record["data"]["eval_augment"]
    record["data"] = record["data"] | {"eval_augment": f"mirror(probability=0.5)|{own}"} if recorded else {}
    (run / "record.json").write_text(json.dumps(record))
    values = json.loads((run / "config.json").read_text())
    values["augment"]["eval"] = "mirror|normalize"
    (run / "config.json").write_text(json.dumps(values))
    place = r"record\.json" if recorded else r"config\.json"
    for use in (cnnjax.evaluate, cnnjax.load_run):
        with pytest.warns(UserWarning, match=rf"{place}: evaluation draws at random \(mirror\)"):
            use(run)
    if recorded:
        with pytest.warns(UserWarning, match="draws at random"):
            build(Run.open(run).config(), workdir=run)


@pytest.mark.parametrize(
    ("trained", "tested", "advice"),
    [
        ("mirror|normalize(mean=0.5, std=0.05)", "normalize", "normalize(0.5, 0.05)"),
        ("mirror|scale", "normalize", "scale"),
        ("normalize|random_erasing", "scale", "normalize"),
        ("pca_color(0.1)", "normalize(0.5, 0.25)", "scale"),
        ("normalize(0.5, 0.25)", "normalize(0.4, 0.25)", "normalize(0.5, 0.25)"),
        ("normalize(0.5, 0.25)", "normalize((0.5, 0.5, 0.5), 0.25)", ""),
        ("pca_color(0.1)|mirror", "scale", ""),
        ("scale|normalize(0.5, 0.25)", "center_crop(8)|normalize((0.5,), std=(0.25, 0.25, 0.25))", ""),
    ],
)
def test_a_run_that_normalizes_otherwise_in_evaluation_than_in_training_is_warned_of(
    trained, tested, advice, colour
):
    config = Run.open(colour).config()
    config.augment.train, config.augment.eval = trained, tested
    if advice:
        words = rf"config\.augment\.eval='{re.escape(tested)}' .*; write {re.escape(advice)} there too"
        with pytest.warns(UserWarning, match=words):
            build(config)
    else:
        with warnings.catch_warnings(action="error"):
            build(config)


def test_fine_tuning_keeps_the_normalization_of_the_weights_and_refuses_their_head(colour, tmp_path):
    names = ("green", "violet", "red")
    data = tree(tmp_path, names, train=pictures(names, 66, seed=1), test=pictures(names, 9, seed=1))
    config = recipe(data, init_from=str(colour))
    with pytest.raises(UserError, match=r"classes blue, green, red; .* green, red, violet; .*init_head=new"):
        build(config)
    config.init_head = "new"
    experiment = build(config)
    assert experiment.augment.steps == experiment.eval_augment.steps
    assert experiment.eval_augment.steps == cnnjax.load_run(colour).augment.steps
    assert build(recipe(data)).eval_augment.steps != experiment.eval_augment.steps


def test_runs_of_other_classes_have_no_images_in_common(colour, tmp_path):
    run, _ = copy_of(colour, tmp_path)
    both = [str(colour), str(run)]
    assert "No pictures" not in comparison.compare(both, tmp_path / "x.html").read_text()
    record = json.loads((run / "record.json").read_text())
    record["data"]["class_names"] = ["green", "blue", "red"]
    (run / "record.json").write_text(json.dumps(record))
    assert "no test images in common" in comparison.compare(both, tmp_path / "x.html").read_text()


def test_another_data_set_is_not_looked_for_in_the_folder_of_the_run(tiny_config, tmp_path):
    tiny_config.data.dir = own = str(tmp_path)
    assert with_data(tiny_config, "mnist", (28, 28, 1)).data.dir == ""
    assert with_data(tiny_config, tiny_config.data.name, (8, 8, 1)).data.dir == own
    assert with_data(tiny_config, None, (8, 8, 1)).data.dir == own
