"""Every door sees the pixels of a network's own recipe: Pillow's, as in tests/data/test_recipe."""

import base64
import dataclasses
import functools
import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from cnnjax import config as config_lib
from cnnjax import evaluate, load_model, load_run
from cnnjax.cli import main
from cnnjax.data import datasets
from cnnjax.data.augment import views
from cnnjax.data.decode import decode_image
from cnnjax.data.recipe import Recipe, covering, fast
from cnnjax.errors import UserError
from cnnjax.explore.page.views import Views
from cnnjax.inference import export, onnx_files, pixels
from cnnjax.inference.model import TrainedModel
from cnnjax.inference.probe import open_images, pooled
from cnnjax.inference.weights import import_weights
from cnnjax.models import create_model, init_variables, variant
from cnnjax.models.weights import files, to_torch
from cnnjax.runs import loaded
from cnnjax.runs.evaluate import evaluate_loaded
from cnnjax.runs.experiment import build
from cnnjax.runs.facts import preset_recipe
from cnnjax.runs.folder import Run
from cnnjax.runs.own_images import suited
from tests.conftest import needs_extra
from tests.data.test_recipe import assert_is, cut_middle, jpeg, photo, pillows, upright

SPEC = "squeezenet1_1(stem='cifar', stem_width=8, squeezes=((2,),(4,)), num_classes=3)"
SIDE, MEAN, STD = 32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZES = [(60, 83), (131, 64), (50, 50), (33, 200), (301, 222), (45, 46), (90, 31), (20, 27)]


def bordered(data: bytes) -> np.ndarray:
    image = upright(data)
    ratio = max(image.width / 36, image.height / 36)
    size = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
    return np.asarray(cut_middle(image.resize(size, Image.Resampling.BICUBIC), SIDE, (102, 128, 153)))


def squashed(data: bytes) -> np.ndarray:
    return np.asarray(cut_middle(upright(data).resize((37, 37), Image.Resampling.BICUBIC), SIDE))


# Recipes, and the same in plain Pillow; in two of them a pixel is left over beside the crop.
RECIPES: dict[str, tuple[Recipe, Callable[[bytes], np.ndarray]]] = {
    "bicubic": (Recipe((45,), (SIDE, SIDE), "bicubic", margin=6), lambda x: pillows(x, SIDE, 45, "bicubic")),
    "bilinear": (Recipe((33,), (SIDE, SIDE)), lambda x: pillows(x, SIDE, 33, "bilinear")),
    "squash": (Recipe((37, 37), (SIDE, SIDE), "bicubic", "squash", margin=2), squashed),
    "border": (Recipe((36, 36), (SIDE, SIDE), "bicubic", "border", (102, 128, 153)), bordered),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of weights whose probabilities tell images apart."""
    model = create_model(SPEC)
    variables = jax.device_get(init_variables(model, jax.random.key(0), (SIDE, SIDE, 3)))
    kernel = variables["params"]["head"]["kernel"]
    variables["params"]["head"]["kernel"] = 100 * kernel
    file = tmp_path_factory.mktemp("weights") / "net.safetensors"
    files.write(file, to_torch(variables, model))
    return file


@pytest.fixture(scope="module")
def imported(weights, tmp_path_factory) -> Path:
    """The run folder of the file, as `cnnjax weights import` makes it."""
    folder, config = tmp_path_factory.mktemp("imported") / "run", config_lib.default()
    config.model = SPEC
    import_weights(weights, config, folder, model=SPEC)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """JPEGs of any shape in train/CLASS and test/CLASS; one is turned."""
    root = tmp_path_factory.mktemp("photos")
    for number, (split, size) in enumerate((split, size) for split in ("train", "test") for size in SIZES):
        file = root / split / str(number % 3) / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(photo(*size, 25, number), orientation=6 if number % 7 == 4 else 0))
    return root


def with_recipe(imported: Path, place: Path, recipe: Recipe | None) -> Path:
    """The run with another recipe in its record, or as from before recipes were recorded."""
    run = place / "run"
    shutil.copytree(imported, run)
    record = json.loads((run / "record.json").read_text())
    side, crop = (recipe.shape[0], SIDE) if recipe else (44, SIDE)
    del record["data"]["recipe"]
    spec = f"center_crop(({crop}, {crop}))|normalize(mean={MEAN}, std={STD})"
    record["data"] |= {"image_shape": [side, side, 3], "eval_augment": spec}
    record["data"] |= {"recipe": recipe.record()} if recipe else {}
    (run / "record.json").write_text(json.dumps(record))
    config = json.loads((run / "config.json").read_text())
    config["data"]["size"] = side
    (run / "config.json").write_text(json.dumps(config))
    return run


def in_order(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def probabilities(trained: TrainedModel, crops: list[np.ndarray]) -> np.ndarray:
    """[N, K] of the network alone, on uint8 [crop, crop, 3]."""
    x = (np.stack(crops) / 255 - np.float64(MEAN)) / np.float64(STD)
    logits = jax.jit(trained.model.apply)(trained.variables, np.float32(x))
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("name", RECIPES)
def test_predict_evaluate_and_the_page_see_its_pixels(name, imported, photos, tmp_path):
    recipe, pillow = RECIPES[name]
    run = with_recipe(imported, tmp_path, recipe)
    trained, images = load_run(run), in_order(photos / "test")
    assert trained.recipe == recipe
    theirs = [pillow(image.read_bytes()) for image in images]
    for image, crop in zip(images, theirs, strict=True):
        fitted = trained.fit(image)[None]
        assert_is(trained.picture(fitted)[0], crop, f"fit {image.name}")
        normalized = (crop / 255 - np.float64(MEAN)) / np.float64(STD)
        assert np.abs(np.asarray(trained.prepare(fitted))[0] - normalized).mean() < 0.05 / 255 / min(STD)
    wanted = probabilities(trained, theirs)
    assert np.ptp(wanted.max(1)) > 0.05  # other images would show
    found = np.stack([p.probabilities for p in trained.predict(images)])
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    _, rows = evaluate(run, data=f"folder:{photos}")
    np.testing.assert_allclose(rows["confidence"], wanted.max(1), atol=2e-3)
    np.testing.assert_array_equal(rows["label"], [int(image.parent.name) for image in images])
    shown = Views(trained).upload(images[3].read_bytes())["image"]
    with Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))) as opened:
        assert_is(np.asarray(opened.convert("RGB")), theirs[3], "the page")


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_evaluates_with_the_pixels_of_the_weights_that_it_starts_from(
    name, imported, photos, tmp_path
):
    """If the images have several sizes and data.size names none; the train split alone is decoded fast."""
    recipe, pillow = RECIPES[name]
    config = config_lib.default()
    config.model, config.init_from = SPEC, str(with_recipe(imported, tmp_path, recipe))
    config.data.name, config.data.num_validation = f"folder:{photos}", 3
    config.batch_size = 4
    experiment = build(config)
    assert experiment.facts.recipe == dataclasses.replace(recipe, margin=0)
    assert (experiment.config.data.size, config.data.size) == (SIDE, 0)
    record = experiment.record_entries()["data"]
    assert record["recipe"] == dataclasses.replace(recipe, margin=0).record()
    assert record["train_recipe"] == fast(SIDE).record()
    assert "train is decoded fast" in "".join(experiment.train_source.notes)
    test, validation = experiment.source("test"), experiment.source("validation")
    for i, image in enumerate(in_order(photos / "test")):
        assert_is(test[i]["image"], pillow(image.read_bytes()), image.name)
    theirs = [pillow(image.read_bytes()) for image in in_order(photos / "train")]
    near = [min(range(8), key=lambda k: np.abs(theirs[k].astype(int) - v["image"]).sum()) for v in validation]
    for i, k in enumerate(near):
        assert_is(validation[i]["image"], theirs[k], f"validation {k}")
    assert len({*near}) == 3
    quick = [decode_image(x.read_bytes(), x, 3, fast(SIDE)) for x in in_order(photos / "train")]
    for example in experiment.train_source:
        assert any((example["image"] == each).all() for each in quick)
    mean, std = (dict(dict(experiment.eval_augment.steps)["normalize"])[k] for k in ("mean", "std"))
    assert (mean, std) == (MEAN, STD)


def test_a_training_is_resumed_and_evaluated_with_the_recipe_that_it_took_along(
    imported, photos, tmp_path, capsys
):
    recipe, pillow = RECIPES["bicubic"]
    start, run = with_recipe(imported, tmp_path, recipe), tmp_path / "trained"
    fields = {"model": SPEC, "init_from": start, "data.name": f"folder:{photos}", "data.num_validation": 0}
    fields |= {"batch_size": 4, "total_epochs": 2, "optimizer.warmup_epochs": 0, "eval_every_epochs": 1}
    command = ["train", *(f"--config.{name}={value}" for name, value in fields.items()), f"--workdir={run}"]
    for _ in range(2):
        assert main.run(command) == 0, capsys.readouterr().err
    trained, test = load_run(run), json.loads((run / "test.json").read_text())
    images = {split: in_order(photos / split) for split in ("train", "test")}
    for split, files_of in images.items():
        wanted = probabilities(trained, [pillow(image.read_bytes()) for image in files_of])
        scores, rows = evaluate(run, split=split)
        np.testing.assert_allclose(rows["confidence"], wanted.max(1), atol=2e-3)
        if split == "test":
            assert scores["loss"] == pytest.approx(test["loss"], rel=1e-5)
    features, _ = pooled(trained, open_images(trained, None, "train"))
    own = trained.features(list(images["train"]))
    np.testing.assert_allclose(features, own.reshape(len(own), -1), rtol=1e-4, atol=1e-5)


def test_a_file_of_weights_brings_the_recipe_of_its_network(weights, photos):
    config = config_lib.default()
    config.model, config.init_from, config.batch_size = SPEC, str(weights), 4
    config.data.name, config.data.num_validation = f"folder:{photos}", 0
    known = build(config).facts
    assert known.recipe == preset_recipe(variant(SPEC).preset, margin=False)
    config.data.size = 40  # what the user says comes first
    assert build(config).facts.recipe == covering(40, 40)


def test_a_run_that_recorded_no_recipe_sees_what_it_saw(imported, photos, tmp_path):
    """The middle square first, JPEGs at a fraction."""
    run = with_recipe(imported, tmp_path, None)
    trained, images = load_run(run), in_order(photos / "test")
    assert trained.recipe == fast(44)
    theirs = [decode_image(image.read_bytes(), image, 3, fast(44)) for image in images]
    np.testing.assert_array_equal(np.stack([trained.fit(image) for image in images]), theirs)
    wanted = probabilities(trained, [image[6:38, 6:38] for image in theirs])
    _, rows = evaluate(run, data=f"folder:{photos}")
    np.testing.assert_allclose(rows["confidence"], wanted.max(1), rtol=1e-4)
    assert trained.fit(theirs[0]) is theirs[0]  # as in every run: arrays of its shape stay


def test_prepared_and_inspected_sets_say_which_split_is_decoded_fast(photos, tmp_path, capsys):
    out = tmp_path / "records"
    assert main.run(["data", "prepare", f"folder:{photos}", f"--out={out}", "--short_side=40"]) == 0
    assert "train is decoded fast" in capsys.readouterr().out
    test = datasets.load(f"records:{out}", "test")
    for i, image in enumerate(in_order(photos / "test")):
        assert_is(test[i]["image"], pillows(image.read_bytes(), 40, 40, "bilinear"), image.name)
    assert main.run(["data", "inspect", f"folder:{photos}", "--short_side=40"]) == 0
    assert "train is decoded fast" in capsys.readouterr().out


@pytest.mark.parametrize(("form", "name"), [("stablehlo", "border"), ("onnx", "bicubic")])
def test_an_exported_graph_takes_images_of_any_size(form, name, imported, photos, tmp_path, capsys):
    """uint8 [H, W, 3] in, the probabilities of `predict` out."""
    if form == "onnx":
        needs_extra("onnx")
    recipe, pillow = RECIPES[name]
    run = with_recipe(imported, tmp_path, recipe)
    file = tmp_path / f"net.{form}"
    flags = [f"--workdir={run}", f"--format={form}", f"--out={file}", "--with_preprocessing"]
    assert main.run(["export", *flags]) == 0, capsys.readouterr().err
    assert "its probabilities differ by at most" in capsys.readouterr().out
    trained = load_run(run)
    graph = export.FORMATS[form].read(trained, file)
    images = in_order(photos / "test")
    wanted = probabilities(trained, [pillow(image.read_bytes()) for image in images])
    found = np.stack([graph(np.asarray(upright(image.read_bytes()))) for image in images])
    np.testing.assert_allclose(found, wanted, atol=5e-3)
    facts = json.loads((tmp_path / f"{file.name}.json").read_text())
    given = {"dtype": "uint8", "shape": ["height", "width", 3], "layout": "HWC", "channel_order": "RGB"}
    assert facts["input"] == given
    assert facts["output"] == {"dtype": "float32", "shape": [3], "values": "probabilities"}


OTHERS = [
    *(RECIPES["squash"][0], RECIPES["border"][0], covering(48, 64), fast(24)),
    Recipe((30,), (40, 36), "lanczos", fill=(9, 8, 7)),
]


@pytest.mark.parametrize("recipe", OTHERS, ids=str)
def test_a_recipe_in_a_graph_gives_pillows_pixels(recipe):
    """Within 2 levels, 0.1 in the mean: on smooth images, as Pillow 13 may resize rows before columns."""
    run = None
    if recipe.interpolation in onnx_files.MODES and importlib.util.find_spec("onnxruntime"):
        runtime, model = pytest.importorskip("onnxruntime"), onnx_files.recipe_model(recipe, 3)
        model.ir_version = 9  # which any runtime knows
        run = runtime.InferenceSession(model.SerializeToString()).run
    for size in ((60, 83), (131, 64)):
        image = photo(*size, 0, 1)
        theirs = decode_image(png(image), "x", 3, recipe)
        ours = [np.asarray(jax.jit(functools.partial(pixels.cut, recipe))(image))]
        ours += [run(None, {"image": image})[0][0]] if run else []
        for each in ours:
            assert each.shape == theirs.shape
            difference = np.abs(each.astype(int) - theirs)
            assert difference.max() <= 2 and difference.mean() <= 0.1, (size, difference.max())


def sides_in_a_graph(recipe: Recipe, lengths: np.ndarray) -> np.ndarray | None:
    """int64 [2, N] of ONNX nodes; None if that cannot be run here."""
    if not importlib.util.find_spec("onnxruntime"):
        return None
    from onnx import helper
    from onnxruntime import InferenceSession

    graph, whole = onnx_files._Graph(), functools.partial(helper.make_tensor_value_info, shape=["N"])
    sides = graph.sides(recipe, "height", "width")
    inputs, outputs = ([whole(name, onnx_files.INT64) for name in x] for x in (("height", "width"), sides))
    opset = [helper.make_opsetid("", onnx_files.OPSET)]
    model = helper.make_model(helper.make_graph(graph.nodes, "sides", inputs, outputs), opset_imports=opset)
    model.ir_version = 9  # which any runtime knows
    run = InferenceSession(model.SerializeToString()).run
    return np.stack(run(None, dict(zip(("height", "width"), lengths, strict=True))))


@pytest.mark.parametrize(
    ("mode", "sides"),
    [
        *(("center", sides) for sides in ((30, 40), (48, 64), (33,))),
        *(("border", sides) for sides in ((36, 36), (40, 30))),
    ],
)
def test_every_way_resizes_to_the_same_sides(mode, sides):
    """Of random sizes, and of one whose side is 127.5, which quotients of quotients miss."""
    recipe = Recipe(sides, (30, 30), mode=mode)
    lengths = np.random.default_rng(0).integers(1, 700, (2, 20_000))
    lengths[:, 0] = 92, 391
    wanted = np.transpose([recipe.resized(*size) for size in lengths.T.tolist()])
    found = jax.jit(functools.partial(pixels._resized, recipe))(*lengths.astype(np.int32))
    np.testing.assert_array_equal(np.broadcast_arrays(*found), wanted)
    if (nodes := sides_in_a_graph(recipe, lengths)) is not None:
        np.testing.assert_array_equal(nodes, wanted)


def test_a_grey_image_is_bordered_by_the_mean_of_the_colour():
    image = photo(40, 20, 9, 0)[..., :1]
    theirs = RECIPES["border"][0].apply(image)
    assert (theirs[:, 0] == 128).all()
    ours = np.asarray(jax.jit(functools.partial(pixels.cut, RECIPES["border"][0]))(image))
    np.testing.assert_allclose(ours.astype(int), theirs, atol=1)


def test_weights_without_a_run_folder_have_the_recipe_of_their_preset(weights, photos):
    """Of the file: a short side of 256, 224 of it."""
    images, which = in_order(photos / "test")[:3], {"model": SPEC, "weights": str(weights)}
    trained = load_model(SPEC, weights=str(weights))
    theirs = [pillows(image.read_bytes(), 224, 256, "bilinear") for image in images]
    for image, crop in zip(images, theirs, strict=True):
        assert_is(trained.picture(trained.fit(image)[None])[0], crop, image.name)
    _, rows = evaluate(**which, data=f"folder:{photos}")
    found = [p.probabilities.max() for p in trained.predict(in_order(photos / "test"))]
    np.testing.assert_allclose(rows["confidence"], found, rtol=1e-4)


@pytest.mark.parametrize(
    "spec", ["normalize(mean=0.5, std=0.2)", "center_crop(224)|normalize(mean=0.5, std=0.2)"]
)
def test_a_normalization_that_is_given_keeps_the_crop(spec, weights, photos, tmp_path):
    config = config_lib.default()
    config.augment.eval = spec
    import_weights(weights, config, tmp_path / "run", model=SPEC)
    trained, image = load_run(tmp_path / "run"), in_order(photos / "test")[1]
    assert trained.input_shape == (224, 224, 3)
    theirs = pillows(image.read_bytes(), 224, 256, "bilinear")
    assert_is(trained.picture(trained.fit(image)[None])[0], theirs, spec)


@pytest.mark.parametrize("door", ["build", "suited", "import", "evaluate"])
def test_a_config_stays_as_it_was_given(door, weights, tiny_config, tiny_data, tiny_run, tmp_path):
    trained = loaded.load(tiny_run)
    looks = views.parse("mirror", trained.facts.eval_augment, trained.facts.image_shape)
    mirrored = dataclasses.replace(trained, protocol=looks)
    doors = {
        "build": lambda: build(tiny_config, workdir=tmp_path / "run"),
        "suited": lambda: suited(tiny_config, tiny_data),
        "import": lambda: import_weights(weights, tiny_config, tmp_path / "run", model=SPEC),
        "evaluate": lambda: evaluate_loaded(mirrored),
    }
    before = [config.to_dict() for config in (tiny_config, trained.config)]
    doors[door]()
    assert [config.to_dict() for config in (tiny_config, trained.config)] == before


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_the_sidecar_says_how_to_prepare_an_image(imported, tmp_path):
    """All that another program needs: followed by hand it gives the same pixels."""
    recipe, _ = RECIPES["bicubic"]
    trained = load_run(with_recipe(imported, tmp_path, recipe))
    export.export(trained, "safetensors", tmp_path / "net.safetensors")
    facts = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert (facts["input"]["layout"], facts["input"]["channel_order"]) == ("NHWC", "RGB")
    assert facts["decoding"].startswith("uint8 pixels")
    told = facts["image"]
    assert (told["order"], told["antialias"]) == ("the whole image is resized, then cut", True)
    data = jpeg(photo(61, 83, 25, 0))
    image, side, crop = upright(data), told["resize"]["short_side"], told["crop"][0]
    resized = image.resize((int(side * 83 / 61), side), Image.Resampling[told["interpolation"].upper()])
    left, top = ((length - crop) / 2 for length in resized.size)
    assert told["crop_offset"] == "(side - crop) / 2, rounded half to even"
    pixels = np.asarray(resized)[round(top) :, round(left) :][:crop, :crop]
    (step,) = (step for step in facts["preprocessing"] if step["name"] == "normalize")
    assert step["computes"] == "(pixel / 255 - mean) / std"
    by_hand = (pixels / 255 - np.float64(step["mean"])) / np.float64(step["std"])
    (ours,) = np.asarray(trained.prepare(trained.fit(data)[None]))
    np.testing.assert_allclose(ours, by_hand, atol=1.01 / 255 / min(STD))
    assert np.abs(ours - by_hand).mean() < 0.05 / 255 / min(STD)
    assert facts["class_names"] == ["0", "1", "2"]
    assert load_model(weights=tmp_path / "net.safetensors").augment.steps == trained.augment.steps


MISTAKES = {
    "safetensors": (RECIPES["bicubic"][0], None, "format safetensors; allowed: onnx or stablehlo"),
    "onnx": (Recipe((33,), (SIDE, SIDE), "lanczos"), None, "cannot resize by 'lanczos'; allowed: bilinear"),
    "stablehlo": (RECIPES["bicubic"][0], 2, "batch_size=2; allowed"),
}


@pytest.mark.parametrize("form", MISTAKES)
def test_a_graph_that_cannot_have_the_preprocessing_is_refused(form, imported, tmp_path):
    recipe, batch_size, problem = MISTAKES[form]
    trained = load_run(with_recipe(imported, tmp_path, recipe))
    out = tmp_path / f"net{export.FORMATS[form].suffix}"
    with pytest.raises(UserError, match=problem):
        export.export(trained, form, out, batch_size=batch_size, with_preprocessing=True)
    assert not out.exists()


def test_a_record_whose_recipe_is_damaged_is_told(imported, tmp_path):
    run = with_recipe(imported, tmp_path, RECIPES["bicubic"][0])
    whole = json.loads((run / "record.json").read_text())
    for change, problem in (({"margin": 5}, "the recipe gives"), ({"mode": "zoom"}, "unknown crop mode")):
        recipe = whole["data"]["recipe"] | change
        (run / "record.json").write_text(json.dumps({**whole, "data": {**whole["data"], "recipe": recipe}}))
        with pytest.raises(UserError, match=rf"record\.json: .*{problem}"):
            load_run(run)


def test_the_preprocessing_that_a_flag_gives_is_kept_though_it_is_the_default(weights, tmp_path, capsys):
    words = ["weights", "import", str(weights), f"--model={SPEC}", "--config.augment.eval=normalize"]
    assert main.run([*words, f"--workdir={tmp_path / 'run'}"]) == 0, capsys.readouterr().err
    assert Run.open(tmp_path / "run").config().augment.eval == "normalize"
    steps = dict(load_run(tmp_path / "run").augment.steps)
    assert [*steps] == ["normalize"] and dict(steps["normalize"])["mean"] == variant(SPEC).preset.mean
    words[-1] = "--config.augment.eval=mirror|normalize"
    assert main.run([*words, f"--workdir={tmp_path / 'random'}"]) == 2
    assert (
        "mirror is for training; remove it" in capsys.readouterr().err and not (tmp_path / "random").exists()
    )
