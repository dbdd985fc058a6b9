"""From a run folder to predictions, pictures, comparisons and files for other programs."""

import copy
import dataclasses
import errno
import functools
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from flax import linen as nn
from PIL import ExifTags, Image

import cnnjax
from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.data import datasets
from cnnjax.data.augment import chain, views
from cnnjax.errors import UserError
from cnnjax.explore import comparison, explain, layers
from cnnjax.explore.explain import METHODS, explainer, heat_function
from cnnjax.inference import export, probe, sidecar
from cnnjax.inference.model import Failure, untrained
from cnnjax.models import create_model
from cnnjax.models.pyramid import layer_values
from cnnjax.ops import cpu
from cnnjax.runs.folder import Run
from tests.conftest import needs_extra


@pytest.fixture(scope="module")
def trained(tiny_run):
    return cnnjax.load_run(tiny_run)


@pytest.fixture
def pictures(tiny_data, tmp_path) -> Path:
    """Five test images as files of several kinds, one of them larger and in colour, and one broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    source = datasets.load(tiny_data, "test")
    images = [Image.fromarray(source[i]["image"][..., 0]) for i in range(5)]
    images[4] = images[4].convert("RGB").resize((40, 24), Image.Resampling.NEAREST)
    for i, image in enumerate(images):
        image.save(folder / f"{i}.{('png', 'bmp', 'png', 'png', 'png')[i]}")
    return folder


def test_predictions_are_those_of_the_evaluation(trained, tiny_run, tiny_data):
    source = datasets.load(tiny_data, "test")
    found = trained.predict(source.images, batch_size=16)
    with np.load(tiny_run / "predictions.npz") as saved:
        assert [p.probabilities.argmax() for p in found] == list(saved["prediction"])
        np.testing.assert_allclose([p.probabilities.max() for p in found], saved["confidence"], rtol=1e-5)
    assert [p.top[0][0] for p in found] == [source.class_names[p.probabilities.argmax()] for p in found]
    assert all(sum(share for _, share in p.top) == pytest.approx(1) for p in found)


@pytest.mark.parametrize("layer", [None, "conv2", "norm1:out"])
def test_features_are_values_of_the_forward_pass(trained, tiny_data, pictures, layer):
    """Of arrays and of files, in batches of any size; the head makes the probabilities of them."""
    images = datasets.load(tiny_data, "test").images[:5]
    found = trained.features(images, layer, batch_size=2)
    assert found.dtype == np.float32
    prepared = trained.prepare(images)
    if layer:
        name = "norm2" if layer == "conv2" else layer  # the stage of two modules
        wanted = layers.feature_maps(trained.model, trained.variables, prepared, [name])[name]
    else:
        wanted = layers.penultimate(trained.model, trained.variables, prepared)
        head = trained.variables["params"]["head"]
        shares = jax.nn.softmax(found @ np.asarray(head["kernel"]) + np.asarray(head["bias"]))
        np.testing.assert_allclose(shares, [p.probabilities for p in trained.predict(images)], rtol=1e-4)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    by_file = trained.features(sorted(pictures.iterdir())[:4], layer)
    np.testing.assert_allclose(by_file, found[:4], rtol=1e-4, atol=1e-5)
    (pictures / "5.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"5\.png"):
        trained.features(pictures)


def test_every_door_takes_a_path_as_it_takes_its_text(tiny_run, tiny_data, tmp_path):
    run, data = cnnjax.load_model(weights=tiny_run), Path(tiny_data)
    assert run.name == cnnjax.load_model(weights=str(tiny_run)).name
    assert len(cnnjax.load_dataset(data, "test")) == len(cnnjax.load_dataset(tiny_data, "test"))
    scores, others = (cnnjax.evaluate(tiny_run, data=each)[0] for each in (data, tiny_data))
    assert scores["loss"] == others["loss"]
    with pytest.raises(UserError, match="lenet6 has no weights"):
        cnnjax.load_model(Path("lenet6"))
    with pytest.raises(UserError, match="is neither a run folder nor a weights file"):
        cnnjax.load_model("lenet5", weights=tmp_path)


def test_numbers_and_dtypes_of_numpy_are_as_good_as_pythons(trained, tiny_data, tmp_path):
    images, two = datasets.load(tiny_data, "test").images[:5], np.int64(2)
    found = trained.predict(images, top=two, batch_size=two)
    assert [len(each.top) for each in found] == [2] * 5
    with cpu.paused():
        list(dataclasses.replace(trained).stream(images, top=two, batch_size=two))
    export.export(trained, "stablehlo", tmp_path / "net.stablehlo", batch_size=two)
    for dtype in (jnp.bfloat16, jnp.dtype("bfloat16")):
        assert trained.with_dtype(dtype).model == trained.with_dtype("bfloat16").model
    for dtype in (np.float16, "float16", 2, float):
        with pytest.raises(UserError, match="unknown dtype .*allowed: bfloat16, float32, int8"):
            trained.with_dtype(dtype)


@pytest.mark.parametrize("paused", [False, True])
def test_replaced_weights_count_after_a_prediction_with_the_first_ones(trained, tiny_data, paused):
    images = datasets.load(tiny_data, "test").images[:5]
    with cpu.chosen(not paused):
        trained.predict(images), trained.features(images)
        other = dataclasses.replace(trained, variables=jax.tree.map(lambda x: 2 * x, trained.variables))
        logits = other.model.apply(other.variables, other.prepare(images))
        found = [p.probabilities for p in other.predict(images)]
        np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)
        assert not np.allclose(other.features(images), trained.features(images))


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "copy"])
@pytest.mark.parametrize("protocol", ["center", "mirror", "mirror_translate(pixels=1)"])
def test_a_network_is_copied_after_its_predictions_as_before_them(tiny_run, tiny_data, way, protocol):
    """Without what it has compiled, which points into this process."""
    trained, images = (
        cnnjax.load_run(tiny_run, protocol=protocol),
        datasets.load(tiny_data, "test").images[:3],
    )
    fields = [field.name for field in dataclasses.fields(trained)]
    through = {
        "pickle": lambda x: pickle.loads(pickle.dumps(x)),
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
    }
    before = through[way](trained)
    wanted = [p.probabilities for p in trained.predict(images)], trained.features(images)
    for other in (before, through[way](trained)):
        assert list(vars(other)) == fields
        found = [p.probabilities for p in other.predict(images)], other.features(images)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_views_of_several_sizes_are_pickled():
    augment = chain.parse("center_crop(4)|scale", image_shape=(6, 6, 1))
    protocol = views.parse("multi_scale(sides=(4, 6))", augment, (6, 6, 1))
    assert pickle.loads(pickle.dumps(protocol)).input_shapes == protocol.input_shapes


@pytest.mark.skipif(bool(cpu.lacks_int8()), reason=cpu.lacks_int8())
def test_a_network_in_integers_is_not_copied_as_its_program_is_of_this_process():
    for act in (pickle.dumps, copy.deepcopy):
        with pytest.raises(UserError, match="dtype=int8: .*with_dtype") as caught:
            act(untrained("simple_cnn", "int8"))
        assert "\n" not in str(caught.value)


def test_other_threads_may_add_sizes_of_batches_during_a_prediction(tiny_run):
    trained, ended, before = cnnjax.load_run(tiny_run), threading.Event(), sys.getswitchinterval()
    images, sizes = np.zeros((2, *trained.image_shape), np.uint8), trained._sizes
    sizes.update(range(100, 100_000))

    def grow():
        while not ended.is_set():
            sizes.add(100_000)
            sizes.discard(100_000)

    thread = threading.Thread(target=grow)
    thread.start()
    sys.setswitchinterval(1e-5)
    try:
        with cpu.paused():
            for _ in range(50):
                assert len(trained.predict(images)) == 2
    finally:
        sys.setswitchinterval(before)
        ended.set()
        thread.join()


@pytest.mark.parametrize("layer", [None, "conv2"])
def test_features_of_no_images_have_the_shape_of_others(layer, trained, tiny_data):
    some = trained.features(datasets.load(tiny_data, "test").images[:2], layer)
    assert trained.features([], layer).shape == (0, *some.shape[1:])


@pytest.mark.parametrize("what", ["features", "predict", "stream", "batches", "export", "probe", "pooled"])
@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_an_image_at_least(what, batch_size, trained, tiny_data, tmp_path):
    source = datasets.load(tiny_data, "test")
    doors = {
        "stream": lambda **options: list(trained.stream(source.images[:2], **options)),
        "export": functools.partial(export.export, trained, "stablehlo", tmp_path / "net.stablehlo"),
        "probe": functools.partial(probe.probe, trained),
        "pooled": functools.partial(probe.pooled, trained, source),
    }
    door = doors.get(what) or functools.partial(getattr(trained, what), source.images[:2])
    with pytest.raises(UserError, match=f"batch_size={batch_size}"):
        door(batch_size=batch_size)


def test_names_and_seeds_that_there_are_not_are_told(trained, tmp_path):
    with pytest.raises(UserError, match="unknown form 'tflite'; allowed: onnx, safetensors, stablehlo"):
        export.export(trained, "tflite", tmp_path / "net.tflite")
    with pytest.raises(UserError, match="unknown dtype .float8.*allowed: bfloat16, float32, int8"):
        untrained("simple_cnn", "float8")
    with pytest.raises(UserError, match="seed=-1 must be"):
        probe.probe(trained, seed=-1)


def test_one_image_after_a_whole_batch_costs_little_more_than_one(tiny_run, caplog):
    """On the way through XLA, where each size of a batch is compiled."""
    trained = cnnjax.load_run(tiny_run)
    with cpu.paused(), jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        for count in (64, 1, 1):
            trained.predict(np.zeros((count, *trained.image_shape), np.uint8))
    compiled = [m for m in caplog.messages if m.startswith("Compiling") and "probabilities" in m]
    assert [re.findall(r"uint8\[(\d+)", m) for m in compiled] == [["64"], ["1"]]


def test_a_protocol_averages_views_as_evaluation_does(trained, tiny_run, tiny_data):
    source = datasets.load(tiny_data, "test")
    ways = [source.images, source.images[:, :, ::-1]]
    both = [trained.predict(np.ascontiguousarray(images), batch_size=37) for images in ways]
    mirrored = cnnjax.load_run(tiny_run, protocol="mirror").predict(source.images, batch_size=37)
    for a, b, found in zip(*both, mirrored, strict=True):
        np.testing.assert_allclose(
            found.probabilities, (a.probabilities + b.probabilities) / 2, rtol=1e-4, atol=1e-6
        )
    scores, _ = cnnjax.evaluate(tiny_run, protocol="mirror")
    hits = [p.probabilities.argmax() == label for p, label in zip(mirrored, source.labels, strict=True)]
    assert np.mean(hits) == pytest.approx(scores["accuracy"])


def test_files_and_arrays_of_one_image_are_one_prediction(trained, tiny_data, pictures):
    source = datasets.load(tiny_data, "test")
    by_array = trained.predict(source.images[:4], batch_size=4)
    by_file = trained.predict(pictures, batch_size=4)
    assert [Path(p.name).name for p in by_file] == ["0.png", "1.bmp", "2.png", "3.png", "4.png"]
    for a, b in zip(by_array, by_file[:4], strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=1e-4, atol=1e-7)
    data = (pictures / "0.png").read_bytes()
    batch = np.stack([np.asarray(Image.open(pictures / "0.png").resize((9, 7)))[..., None]] * 2)
    assert len(trained.predict(batch)) == 2  # of another size than the network's
    np.testing.assert_allclose(trained.predict([data])[0].probabilities, by_file[0].probabilities, rtol=1e-4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_an_image_of_pillow_is_what_its_file_is(trained, tmp_path, mode):
    """Alone or in a list, of any colours, turned as its EXIF says."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    file, exif = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(noise).convert(mode).save(file, exif=exif)
    (wanted,) = trained.predict(file)
    with Image.open(file) as image:
        for images in (image, [image, image], (each for each in [image])):
            found, *_ = trained.predict(images)
            assert found.name == "image 0"
            np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-6)
        assert image.getexif()[ExifTags.Base.Orientation] == 6  # it stays as it was
        np.testing.assert_array_equal(trained.fit(image), trained.fit(file))


@pytest.mark.parametrize("images", [None, 5, np.uint8(5), np.zeros((), np.uint8)])
def test_what_is_no_image_is_refused_in_one_line(trained, images):
    with pytest.raises(UserError, match="allowed: a path"):
        trained.predict(images)
    with pytest.raises(UserError, match="cannot be read"):  # not the images of the current folder
        trained.predict("")
    with pytest.raises(UserError, match="image 0 is int64"):
        trained.predict([5])
    with pytest.raises(UserError, match="image 0: .*mode F"):
        trained.predict(Image.new("F", (8, 8)))


def test_a_broken_image_stops_nothing_but_itself(trained, pictures):
    (pictures / "3.png").write_bytes(b"no image")
    found = list(trained.stream([pictures, pictures / "gone.png"], batch_size=2))
    assert [isinstance(item, Failure) for item in found] == [False, False, False, True, False, True]
    with pytest.raises(UserError, match=r"3\.png: not an image"):
        trained.predict(pictures)
    for wrong in (np.zeros((4, 4, 1), np.float32), [np.zeros((0, 5, 3), np.uint8)]):
        with pytest.raises(UserError, match="allowed: uint8"):
            trained.predict(wrong)


def test_a_cameras_file_of_two_frames_is_its_first_and_programs_are_no_images(trained, tmp_path):
    """MPO, as telephones write: a JPEG with a preview behind it. EPS would be run by another program."""
    photo = Image.fromarray(np.full((8, 12, 3), 200, np.uint8))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert trained.fit(tmp_path / "a.jpg").mean() == pytest.approx(200, abs=2)
    photo.save(tmp_path / "b.jpg", "EPS")
    with pytest.raises(UserError, match="not an image"):
        trained.fit(tmp_path / "b.jpg")


def test_a_folder_of_junk_gives_its_images(trained, tmp_path):
    """No waiting at pipes and devices, no loops, and names of any kind."""
    junk = tmp_path / "junk"
    (junk / "folder.png").mkdir(parents=True)
    os.mkfifo(junk / "pipe.png")
    (junk / "zero.png").symlink_to("/dev/zero")
    (junk / "loop.png").symlink_to("loop.png")
    (junk / "self").symlink_to(junk)
    (junk / "text.png").write_text("no image")
    (junk / "notes.txt").write_text("nothing")
    Image.new("L", (8, 8)).save(junk / "ünï\n.png")
    Image.new("L", (20_000, 8_000)).save(junk / "bomb.png")
    found = {Path(item.name).name: item for item in trained.stream([junk], batch_size=2)}
    assert set(found) == {"text.png", "ünï\n.png", "bomb.png"}
    assert "allowed: at most" in found["bomb.png"].reason
    with pytest.raises(UserError, match="more than 256 MiB"):
        trained.fit("/dev/zero")


def test_the_command_prints_json_lines_and_goes_on_past_a_broken_image(tiny_run, pictures, capsys):
    (pictures / "2.png").write_bytes(b"no image")
    assert main.run(["predict", f"--workdir={tiny_run}", str(pictures), "--json", "--top=2"]) == 2
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [("error" in row) for row in rows] == [False, False, True, False, False]
    assert len(rows[0]["classes"]) == 2
    assert rows[0]["classes"][0]["probability"] >= rows[0]["classes"][1]["probability"]
    assert "1 of the images could not be read" in printed.err
    assert printed.err.count("\n") == 1


def test_standard_input_is_an_image(tiny_run, pictures, capsys, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO((pictures / "1.bmp").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main.run(["predict", f"--workdir={tiny_run}", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == "stdin"


def test_explanations_lie_beside_the_images_and_overwrite_nothing(tiny_run, pictures, tmp_path, capsys):
    before = {file: file.read_bytes() for file in pictures.iterdir()}
    command = ["predict", f"--workdir={tiny_run}", str(pictures), "--explain"]
    assert main.run(command) == 0
    assert "picture" in capsys.readouterr().out
    assert main.run(command) == 0  # a second time: the pictures of the first are no images to classify
    drawn = sorted(set(pictures.iterdir()) - set(before))
    names = sorted(f"{i}.gradcam{end}.png" for i in range(5) for end in ("", "-2"))
    assert [file.name for file in drawn] == names
    assert {file: file.read_bytes() for file in before} == before
    with Image.open(drawn[0]) as opened:
        assert opened.size == (448, 224)
        assert opened.mode == "RGB"
    other = tmp_path / "elsewhere"
    assert main.run([*command[:-1], f"--out={other}", "--explain=occlusion", "--json"]) == 0
    methods = [json.loads(line)["method"] for line in capsys.readouterr().out.splitlines()[-5:]]
    assert methods == ["occlusion"] * 5
    assert len(list(other.iterdir())) == 5


@pytest.mark.parametrize("stem", ["n" * 251, "ü" * 125, "n" + "é" * 125])
def test_the_picture_of_a_long_name_has_a_name_that_fits(tiny_run, pictures, stem, capsys):
    (pictures / "0.png").rename(pictures / f"{stem}.png")
    command = ["predict", f"--workdir={tiny_run}", str(pictures), "--explain", "--json"]
    for end in ("", "-2"):
        assert main.run(command) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(rows) == 5 and all(Path(row["explanation"]).is_file() for row in rows)
        (drawn,) = (Path(row["explanation"]).name for row in rows if row["image"].endswith(f"/{stem}.png"))
        assert drawn.endswith(f".gradcam{end}.png") and stem.startswith(
            drawn.removesuffix(f".gradcam{end}.png")
        )


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("form", ["table", "json"])
def test_a_picture_that_cannot_be_written_loses_no_answer(
    tiny_run, pictures, broken, form, capsys, monkeypatch
):
    if broken:
        (pictures / "5.png").write_bytes(b"x")

    def full(file, *arguments):
        if "2.gradcam" in str(file):
            file.touch()  # as it is made before the disk is full
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return open(file, *arguments)

    monkeypatch.setattr(explain, "open", full, raising=False)
    command = ["predict", f"--workdir={tiny_run}", str(pictures), "--explain", "--batch_size=2"]
    assert main.run(command + ["--json"] * (form == "json")) == 2
    printed = capsys.readouterr()
    words = (
        f"1 of the pictures could not be written: {pictures}/2.gradcam.png cannot be written (No space left"
    )
    assert words in printed.err and printed.err.count("\n") == 1
    assert ("1 of the images could not be read: " in printed.err) == broken
    assert not (pictures / "2.gradcam.png").exists()
    if form == "json":
        rows = [json.loads(line) for line in printed.out.splitlines()]
        assert sum("classes" in row for row in rows) == 5 and sum("explanation" in row for row in rows) == 4
    else:
        assert all(f"{pictures}/{i}." in printed.out for i in range(5)) and "3.gradcam.png" in printed.out


def test_an_empty_grad_cam_is_replaced_and_says_so(trained):
    """The dense kernel's mean over places is negative and one place is positive: so by construction."""
    kernel = np.full((2, 2, 3, 3), -1.0, np.float32)
    kernel[0, 1] = 2.0
    head = trained.variables["params"]["head"] | {"kernel": kernel.reshape(12, 3)}
    variables = {**trained.variables, "params": trained.variables["params"] | {"head": head}}
    changed = dataclasses.replace(trained, variables=jax.tree.map(np.asarray, variables))
    image = np.random.default_rng(0).integers(0, 255, trained.image_shape, dtype=np.uint8)
    ((method, heat),) = explainer(changed)([image], [0], 1)
    assert method == "hires_cam"
    assert heat.max() == 1


@pytest.mark.parametrize("way", ["explain", "features"])
def test_few_images_are_not_filled_up_to_a_whole_batch(way, trained, monkeypatch):
    """What is compiled for 64 images takes as long for one of them as for all."""
    sizes = []

    def mean(network, variables, image, label):
        sizes.append(len(image))
        return image.mean(-1)

    def values(network, variables, image, layer):
        sizes.append(len(image))
        return layer_values(network, variables, image, layer)

    monkeypatch.setitem(METHODS, "saliency", mean)
    monkeypatch.setattr("cnnjax.inference.model.layer_values", values)
    draw, other = explainer(trained, method="saliency"), dataclasses.replace(trained)
    images = np.random.default_rng(0).integers(0, 255, (64, *trained.image_shape), dtype=np.uint8)
    for count, size in {1: 1, 5: 6, 64: 64}.items():
        if way == "explain":
            assert len(draw(list(images[:count]), [0] * count, 64)) == count
        else:
            assert len(other.features(images[:count])) == count
        assert max(sizes) == size


@pytest.mark.parametrize(
    ("count", "labels", "problem"),
    [
        (1, [3], "label 3 .* allowed: 0 to 2"),
        (2, [0, -1], "label -1 of example 1 .* allowed: 0 to 2"),
        (2, [0], "2 images and 1 labels; allowed: one image at least, with a label each"),
        (1, [0, 1], "1 images and 2 labels"),
        (0, [], "0 images and 0 labels"),
    ],
)
def test_an_explanation_is_asked_for_classes_that_exist_one_for_each_image(trained, count, labels, problem):
    with pytest.raises(UserError, match=problem):
        explainer(trained)([np.zeros((8, 8, 1), np.uint8)] * count, labels, 4)


GOOD = np.full((2, 8, 8, 1), 200, np.uint8)
NO_BATCH = {
    "int32": GOOD.astype(np.int32),
    "float of 0 to 255": GOOD.astype(np.float32),
    "no axis for the batch": GOOD[0],
    "colour": GOOD.repeat(3, 3),
    "channels first": GOOD.transpose(0, 3, 1, 2),
    "another size": GOOD[:, 1:],
}


@pytest.mark.parametrize("given", NO_BATCH)
@pytest.mark.parametrize("what", ["prepare", "prepare in jit", "picture", "heat"])
def test_images_that_are_no_batch_of_the_network_are_refused(trained, what, given):
    """They gave values 255 times too large, or another image."""
    take = {
        "prepare": trained.prepare,
        "prepare in jit": jax.jit(trained.prepare),
        "picture": trained.picture,
        "heat": lambda images: heat_function(trained, "saliency")(
            trained.variables, images, np.zeros(2, int)
        ),
    }[what]
    with pytest.raises(UserError, match=r"images are .*; allowed: uint8 \[B, 8, 8, 1\]"):
        take(NO_BATCH[given])


@pytest.fixture(scope="module")
def of_four(tmp_path_factory) -> Path:
    """The run of a network of 4 channels."""
    folder = tmp_path_factory.mktemp("four")
    draw = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 5), np.uint8)
    labels = {"y_train": np.arange(20) % 2, "y_test": np.arange(20) % 2}
    for count in (4, 5):
        np.savez(folder / f"{count}.npz", x_train=draw[..., :count], x_test=draw[..., :count], **labels)
    flags = ["--config.model=simple_cnn(widths=(2,), kernel_size=3)", "--config.total_epochs=1"]
    flags += [f"--config.data.name=npz:{folder / '4.npz'}", "--config.data.num_validation=0"]
    assert main.run(["train", f"--workdir={folder / 'run'}", *flags]) == 0
    return folder / "run"


OF_FOUR = {
    "evaluate --workdir={run} --data=npz:{run}/../5.npz": "this run takes 8x8x4; give images of 4 channels",
    "export --workdir={run} --format=stablehlo --with_preprocessing --out={out}/net.stablehlo": (
        "with_preprocessing: 4 channels; allowed: 1 or 3; export it without"
    ),
}


@pytest.mark.parametrize("words", OF_FOUR)
def test_advice_for_other_channels_can_be_followed(words, of_four, tmp_path, capsys):
    """Images were to be resized, and one that nobody had given was refused."""
    assert main.run([word.format(run=of_four, out=tmp_path) for word in words.split()]) == 2
    assert capsys.readouterr().err.endswith(f"{OF_FOUR[words]}\n")


@pytest.mark.parametrize("shape", [(9, 8, 4), (9, 8, 3), (8, 8, 1), (8, 8)])
def test_arrays_for_other_channels_are_asked_for_in_the_shape_of_the_network(shape, of_four):
    """Those of 4 channels were refused as not of 1 or 3."""
    trained, image = cnnjax.load_run(of_four), np.zeros(shape, np.uint8)
    for take in (trained.fit, lambda image: trained.predict([image])):
        with pytest.raises(UserError, match=r" is uint8 .*; allowed: uint8 \[8, 8, 4\], one or a batch"):
            take(image)


@pytest.mark.parametrize(("channels", "order"), [(1, {"channel_order": "grey"}), (4, {})])
def test_the_sidecar_names_no_order_of_channels_that_it_does_not_know(channels, order, tiny_run, of_four):
    run = cnnjax.load_run(tiny_run if channels == 1 else of_four)
    for whole in (False, True):
        given = sidecar.description(run, "onnx", "float32", None, whole, "")["input"]
        assert {key: given[key] for key in given if key == "channel_order"} == order


PREDICT_MISTAKES = {
    "predict x.png": "x.png is neither a file nor a folder",
    "predict --workdir={run} ": "an argument is empty",
    "report ": "an argument is empty",
    "predict": "no image; name files or folders",
    "predict {image} --workdir=nowhere": "nowhere is not a run folder",
    "predict {image} --workdir={run} --checkpoint=99": "unknown checkpoint '99'",
    "predict {image} --workdir={run} --dtype=float16": "unknown dtype 'float16'",
    "predict {image} --workdir={run} --explain=cam": "unknown method 'cam'",
    "predict {image} --workdir={run} --explain=occlusion --layer=conv1": "occlusion has no layer",
    "predict {image} --workdir={run} --explain --layer=conv9": "unknown layer 'conv9'",
    "predict {image} --workdir={run} --explain --layer=head": "Grad-CAM needs a map",
    "predict {image} --workdir={run} --class_names={image}": "class_names=",
    "predict {image} --workdir={run} --explain --out={image}": "is not a folder",
    "report": "no run folder",
    "report nowhere": "nowhere is not a run folder",
    "report {run} {run} --out=x.txt": "ends in .html",
    "export --workdir={run} --format=caffe --out=x": "unknown --format 'caffe'",
    "export --workdir={run}": "--out is missing; name a file, as in --out=model.safetensors",
    "export --workdir={run} --format=stablehlo --out=x.onnx": "end in .stablehlo",
    "export --workdir={run} --out=nowhere/x.safetensors": "nowhere is not a folder",
}


@pytest.mark.parametrize("command", PREDICT_MISTAKES)
def test_a_mistake_is_told_in_one_line(command, tiny_run, pictures, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command.format(image=pictures / "0.png", run=tiny_run).split(" ")
    assert main.run(words) == 2
    error = capsys.readouterr().err
    assert PREDICT_MISTAKES[command] in error
    assert error.count("\n") == 1


def test_an_imported_network_predicts_with_its_own_preprocessing(tmp_path, capsys):
    """The short side to 256, the middle 224, ImageNet's colours: by hand on an image of two tones."""
    from cnnjax.models import init_variables
    from cnnjax.models.weights import files, to_torch

    model = create_model("squeezenet1_1")
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (224, 224, 3)))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.float32(draw.normal(0, 0.05, x.shape)), shapes)
    files.write(tmp_path / "weights.safetensors", to_torch(variables, model))
    words = ["import", str(tmp_path / "weights.safetensors"), "--model=squeezenet1_1"]
    assert main.run(["weights", *words, f"--workdir={tmp_path / 'run'}"]) == 0
    run = cnnjax.load_run(tmp_path / "run")
    assert (run.image_shape, run.input_shape, len(run.class_names)) == ((256, 256, 3), (224, 224, 3), 1000)
    image = np.zeros((300, 400, 3), np.uint8)
    image[150:] = 255
    prepared = np.asarray(run.prepare(run.fit(image)[None]))[0]
    np.testing.assert_allclose(
        prepared[0, 0], (0 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-4
    )
    np.testing.assert_allclose(
        prepared[-1, 0], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-4
    )


def test_a_run_from_before_the_record_held_its_preprocessing_still_loads(trained, tiny_run, tmp_path):
    import shutil

    old = tmp_path / "old"
    shutil.copytree(tiny_run, old)
    record = json.loads((old / "record.json").read_text())
    del record["data"]["image_shape"], record["data"]["eval_augment"]
    (old / "record.json").write_text(json.dumps(record))
    again = cnnjax.load_run(old)
    assert (again.augment.steps, again.image_shape, again.class_names) == (
        trained.augment.steps,
        trained.image_shape,
        trained.class_names,
    )


def test_the_comparison_groups_seeds_and_tells_what_differs(tiny_run, tmp_path, monkeypatch):
    """Copies of one run under other seeds and another learning rate: three runs of two configs."""
    import shutil

    paths = []
    for name, seed, rate in (("a", 0, 0.03), ("b", 1, 0.03), ("c", 0, 0.5)):
        path = tmp_path / name
        shutil.copytree(tiny_run, path)
        config = Run.open(path).config()
        config.seed, config.optimizer.learning_rate = seed, rate
        (path / "config.json").write_text(config_lib.to_json(config))
        test = json.loads((path / "test.json").read_text())
        test["accuracy"] = 0.5 + 0.1 * seed
        (path / "test.json").write_text(json.dumps(test))
        paths.append(path)
    with np.load(paths[2] / "predictions.npz") as arrays:
        changed = dict(arrays)
    changed["prediction"] = (changed["prediction"] + (np.arange(37) == 5)) % 3
    np.savez(paths[2] / "predictions.npz", **changed)
    groups = comparison.make_groups([Run.open(path) for path in paths])
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "b"], ["c"]]
    assert main.run(["report", *map(str, paths), f"--out={tmp_path / 'all.html'}"]) == 0
    page = (tmp_path / "all.html").read_text()
    assert "2 configs, 3 runs" in page
    assert "55.00 ± 7.07" in page
    assert "optimizer.learning_rate" in page
    assert "<th>seed</th>" not in page
    assert page.count("<figure>") == 1  # the one image on which they disagree
    assert page.count("<svg") == len(comparison.COMPARED)
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://matplotlib.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


@pytest.mark.parametrize("form", ["safetensors", "stablehlo"])
@pytest.mark.parametrize("half", [False, True])
def test_an_export_is_read_back_and_gives_the_same_logits(form, half, trained, tmp_path):
    file = tmp_path / f"net{export.FORMATS[form].suffix}"
    done = export.export(trained, form, file, half=half)
    assert done.difference <= (export.HALF_TOLERANCE if half else export.TOLERANCE)
    assert done.num_bytes == file.stat().st_size
    facts = json.loads((tmp_path / f"{file.name}.json").read_text())
    assert facts["preprocessing"][-1]["name"] == "normalize"
    assert facts["class_names"] == list(trained.class_names)
    assert facts["config"]["batch_size"] == 16
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([file.name, f"{file.name}.json"])


def test_onnx_is_compared_with_products_of_whole_float32(trained, tmp_path):
    """Those of GPUs and TPUs are rounded to fewer bits by default, and differ by more than is allowed."""
    needs_extra("onnx")
    seen = set()

    def noted(call, args, kwargs, context):
        seen.add(jax.config.jax_default_matmul_precision)
        return call(*args, **kwargs)

    with nn.intercept_methods(noted):
        export.export(trained, "onnx", tmp_path / "net.onnx")
    assert seen == {"highest"}


def test_onnx_takes_batches_of_any_size_in_operations_that_others_know(trained, tmp_path, monkeypatch):
    """One test, since the converter takes seconds to load: any batch, one size, half weights, a refusal."""
    needs_extra("onnx")
    import jax2onnx as converter
    import onnx
    import onnxruntime as runtime

    wide = with_network(trained, "simple_cnn(widths=(32, 64))")
    done = export.export(wide, "onnx", tmp_path / "net.onnx")
    assert done.num_bytes == (tmp_path / "net.onnx").stat().st_size
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert (kinds.count("MaxPool"), kinds.count("Conv")) == (2, 2)
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert [type(given.shape[0]), *given.shape[1:]] == [str, *trained.input_shape]
    for size in (1, 5):
        image = np.random.default_rng(size).normal(size=(size, *trained.input_shape)).astype(np.float32)
        (logits,) = session.run([returned.name], {given.name: image})
        wanted = wide.model.apply(wide.variables, image)
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    half = export.export(wide, "onnx", tmp_path / "half.onnx", half=True)
    assert half.num_bytes < 0.6 * done.num_bytes
    assert half.difference <= export.HALF_TOLERANCE
    export.export(trained, "onnx", tmp_path / "two.onnx", batch_size=2)
    assert runtime.InferenceSession(tmp_path / "two.onnx").get_inputs()[0].shape == [2, *trained.input_shape]

    def refuse(*arguments, **names):
        raise KeyError("no plugin")

    monkeypatch.setattr(converter, "to_onnx", refuse)
    with pytest.raises(UserError, match=rf"jax2onnx \S+ with jax {jax.__version__} .*no plugin.*stablehlo"):
        export.export(trained, "onnx", tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()


def with_network(trained, spec):
    """The run with another network of random weights."""
    model = create_model(spec, num_classes=3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *trained.input_shape)))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.float32(draw.uniform(0.01, 0.1, x.shape)), shapes)
    return dataclasses.replace(trained, model=model, variables=variables)


def test_an_export_of_one_batch_size_takes_that_alone(tiny_run, tmp_path, capsys):
    file = tmp_path / "net.stablehlo"
    command = ["export", f"--workdir={tiny_run}", "--format=stablehlo", f"--out={file}", "--batch_size=2"]
    assert main.run(command) == 0
    said, facts = capsys.readouterr().out, json.loads(Path(f"{file}.json").read_text())
    assert "read back" in said and f"any jaxlib built until {facts['loads_until']} loads it" in said
    assert facts["input"]["shape"] == [2, 8, 8, 1] and facts["jaxlib"] == jaxlib.__version__
    read = export.FORMATS["stablehlo"].read(cnnjax.load_run(tiny_run), file)
    assert read(np.zeros((2, 8, 8, 1), np.float32)).shape == (2, 3)
    with pytest.raises(ValueError, match="shape"):
        read(np.zeros((3, 8, 8, 1), np.float32))


def test_the_day_until_which_an_export_loads_is_half_a_year_after_its_jaxlib():
    days = [
        sidecar.loads_until(version) for version in ("0.10.1", "0.10.2", "0.11.3.dev2", "0.12.0.1", "1.0")
    ]
    assert days == ["", "2026-11-15", "2026-11-15", "2027-01-28", "2027-01-28"]


def test_a_network_that_computes_in_bfloat16_is_exported_in_float32(trained, tmp_path):
    half = dataclasses.replace(trained, model=trained.model.clone(dtype=jnp.bfloat16))
    assert export.export(half, "stablehlo", tmp_path / "net.stablehlo").difference <= export.TOLERANCE
    image = np.random.default_rng(0).normal(size=(2, *trained.input_shape)).astype(np.float32)
    found = export.FORMATS["stablehlo"].read(trained, tmp_path / "net.stablehlo")(image)
    np.testing.assert_allclose(found, trained.model.apply(trained.variables, image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "stablehlo"])
def test_half_weights_take_half_the_bytes(form, trained, tmp_path):
    wide = with_network(trained, "simple_cnn(widths=(32, 64))")
    files = [tmp_path / f"{half}{export.FORMATS[form].suffix}" for half in (False, True)]
    full, half = (export.export(wide, form, file, half=i == 1).num_bytes for i, file in enumerate(files))
    assert half < 0.6 * full


def test_safetensors_come_back_exactly_with_their_preprocessing(trained, tmp_path):
    export.export(trained, "safetensors", tmp_path / "net.safetensors")
    again = cnnjax.load_model(weights=tmp_path / "net.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.variables, trained.variables)
    assert again.augment.steps == trained.augment.steps
    image = np.random.default_rng(0).integers(0, 255, (3, *trained.image_shape), dtype=np.uint8)
    found, wanted = (
        np.stack([p.probabilities for p in each.predict(image, batch_size=3)]) for each in (again, trained)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_stablehlo_takes_batches_of_any_size_without_this_package(trained, tmp_path):
    export.export(trained, "stablehlo", tmp_path / "net.stablehlo")
    image = np.asarray(trained.prepare(np.zeros((5, *trained.image_shape), np.uint8)))
    np.save(tmp_path / "image.npy", image)
    code = (
        "import sys, numpy as np; from jax import export\n"
        f"call = export.deserialize(bytearray(open({str(tmp_path / 'net.stablehlo')!r}, 'rb').read())).call\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, call(np.load({str(tmp_path / 'image.npy')!r})))\n"
        "assert 'cnnjax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    wanted = trained.model.apply(trained.variables, image)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), wanted, rtol=1e-4, atol=1e-5)


def test_an_export_that_differs_is_refused_and_leaves_nothing(trained, tmp_path, monkeypatch):
    wrong = export.FORMATS["safetensors"]._replace(
        read=lambda trained, path: lambda image: np.full((len(image), 3), 9.0)
    )
    monkeypatch.setitem(export.FORMATS, "safetensors", wrong)
    with pytest.raises(UserError, match="the logits differ"):
        export.export(trained, "safetensors", tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"\xef\xbb\xbfa\r\nb\r\n\r\nc\r\n", ("a", "b", "c")),
        (b"a\rb\rc", ("a", "b", "c")),
        ("a\u2028\x85x\n b\x0by \n犬".encode(), ("a\u2028\x85x", "b\x0by", "犬")),
        ("a\nb\nc".encode("utf-16"), "save it as UTF-8"),
        (b"caf\xe9\nb\nc", "save it as UTF-8"),
        (b"", "has 0 names"),
    ],
)
def test_a_file_of_class_names_is_utf8_with_any_ends_of_lines(trained, tmp_path, text, names):
    file = tmp_path / "names.txt"
    file.write_bytes(text)
    if isinstance(names, str):
        with pytest.raises(UserError, match=names):
            trained.with_class_names(file)
    else:
        assert trained.with_class_names(file).class_names == names
