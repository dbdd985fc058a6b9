"""Networks in 8-bit integers against the same in float32."""

import json
import logging
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import cnnjax
from cnnjax.cli import main
from cnnjax.data import datasets
from cnnjax.errors import UserError
from cnnjax.inference import export, int8
from cnnjax.inference.model import untrained
from cnnjax.models import create_model
from cnnjax.ops import cpu
from tests.conftest import needs_extra
from tests.inference.test_fused import SIDES, SPOILT, spoilt, variables_of

kernels = pytest.mark.skipif(not cpu.takes(), reason=f"CPU kernels {cpu.status()}")
vnni = pytest.mark.skipif(bool(cpu.lacks_int8()), reason=cpu.lacks_int8())


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory):
    """A SimpleCNN after an epoch of the sample that ships with the package."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    fields = {"data.name": "fashion_mnist_mini", "model": "simple_cnn", "total_epochs": 1, "batch_size": 32}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    assert main.run(["train", f"--workdir={folder}", *words, "--config.optimizer.learning_rate=0.002"]) == 0
    return folder


def differences(name):
    """Of logits on other images than those of the calibration, by their spread; the layers of the program."""
    model, shape = create_model(name), (SIDES[name], SIDES[name], 3)
    variables = variables_of(model, shape)
    images = np.random.default_rng(1).standard_normal((24, *shape), np.float32)
    network, number = int8.calibrated(lambda x: model.apply(variables, x), images[:16])
    found = jax.jit(network.apply)(number, images[16:])
    with cpu.paused():
        wanted = np.asarray(jax.jit(model.apply)(variables, images[16:]))
    return np.std(found - wanted) / wanted.std(), network.fused.steps


@vnni
def test_logits_are_near_those_of_float32():
    difference, steps = differences("resnet20_cifar")
    products = [step for step in steps if step.kind in ("conv", "dense")]
    assert [step.scales is None for step in products] == [False] * (len(products) - 1) + [True]
    assert 0 < difference < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the ImageNet stem leaves little")
@vnni
@pytest.mark.parametrize("name", SIDES)
def test_each_network_has_integers_for_its_convolutions(name):
    difference, steps = differences(name)
    whole = [step.scales is not None for step in steps if step.kind == "conv" and step.shape[:2] != (1, 1)]
    assert all(whole)
    assert whole or name == "lenet_300_100"  # which has no convolution
    assert 0 < difference < 0.35  # of random weights, whose layers have outliers that trained ones have not


@vnni
def test_accuracy_is_that_of_float32_within_a_point(sample_run, capsys):
    assert main.run(["evaluate", f"--workdir={sample_run}", "--dtype=int8", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["float32"]["accuracy"] > 0.6  # it has learned
    assert 0 < abs(scores["loss"] - scores["float32"]["loss"]) < 0.02
    assert abs(scores["accuracy"] - scores["float32"]["accuracy"]) <= 0.01
    assert scores["agreement"] >= 0.98
    # The same through `predict`, whose images do not come from the evaluation's batches.
    source = datasets.load("fashion_mnist_mini", "test")
    images, labels = source.images[:200], source.labels[:200]
    whole, own = (cnnjax.load_run(sample_run, dtype=dtype) for dtype in ("int8", "float32"))
    found, wanted = (np.stack([p.probabilities for p in x.predict(images)]) for x in (whole, own))
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.98
    assert 0 < abs(found - wanted).max() < 0.1
    assert (found.argmax(1) == labels).mean() > 0.6
    assert whole.model.agreement >= 0.98 and whole.model.count == 256


@vnni
def test_the_command_tells_agreement_and_takes_a_folder_for_calibration(
    tiny_run, tiny_data, tmp_path, capsys
):
    from PIL import Image

    source = datasets.load(tiny_data, "test")
    for i in range(12):
        Image.fromarray(source[i]["image"][..., 0]).save(tmp_path / f"{i}.png")
    command = ["predict", f"--workdir={tiny_run}", "--json", str(tmp_path)]
    rows = {}
    for words in (["--dtype=float32"], ["--dtype=int8", f"--calibration={tmp_path}"]):
        assert main.run([*command, *words]) == 0
        said = capsys.readouterr()
        rows[words[0]] = [json.loads(line)["classes"][0] for line in said.out.splitlines()]
    assert "int8 and float32 agree on " in said.err and " of 12 calibration images" in said.err
    own, whole = rows.values()
    assert [x["class"] for x in own] == [x["class"] for x in whole]
    assert 0 < max(abs(a["probability"] - b["probability"]) for a, b in zip(own, whole, strict=True)) < 0.05


@vnni
def test_an_image_that_widens_a_range_alone_does_not_coarsen_all_others():
    """One of 256 images is a hundred times as large: ranges are means over batches."""
    model, shape = create_model("simple_cnn(widths=(8, 8))"), (16, 16, 3)
    variables = variables_of(model, shape)
    images = np.random.default_rng(0).standard_normal((256, *shape), np.float32)
    outlier = images.copy()
    outlier[7] *= 100
    first = [
        int8.calibrated(lambda x: model.apply(variables, x), x)[0].fused.steps[1] for x in (images, outlier)
    ]
    assert first[0].kind == "conv"
    assert first[1].code.scale < 10 * first[0].code.scale


@vnni
def test_mistakes_are_told_in_one_line(tiny_run, tmp_path, capsys):
    image = tmp_path / "x.png"
    image.write_bytes(b"no image")
    words = {
        "--dtype=bfloat16 --calibration=x": "calibration needs dtype=int8, not bfloat16",
        "--dtype=int8 --calibration=nowhere": "calibration: unknown data set 'nowhere'",
        f"--dtype=int8 --calibration={tmp_path}": "calibration: ",
        "--dtype=int4": "unknown dtype 'int4'",
    }
    for flags, wanted in words.items():
        assert main.run(["predict", str(image), f"--workdir={tiny_run}", *flags.split(" ")]) == 2
        error = capsys.readouterr().err
        assert wanted in error and error.count("\n") == 1
    with pytest.raises(UserError, match="weights simple_cnn come without; name a folder of images or a data"):
        untrained("simple_cnn").with_dtype("int8")
    whole = cnnjax.load_run(tiny_run, dtype="int8")
    with pytest.raises(UserError, match="classes, not features"):
        whole.features(np.zeros(whole.image_shape, np.uint8))
    with pytest.raises(UserError, match="computes in int8 already"):
        whole.with_dtype("float32")


@vnni
@pytest.mark.parametrize("case", [*SPOILT, ("conv1", "kernel", 3e38, True)])
def test_numbers_that_are_not_finite_are_refused_before_they_are_integers(case):
    trained, images = spoilt(*case[:3])
    with pytest.raises(UserError, match=r"dtype=int8: .*not finite.*use float32"):
        trained.with_dtype("int8", images)


@kernels
def test_a_processor_without_integers_is_told_which_have_them(tiny_run, tmp_path):
    command = [
        sys.executable,
        "-m",
        "cnnjax",
        "predict",
        str(tmp_path),
        f"--workdir={tiny_run}",
        "--dtype=int8",
    ]
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, capture_output=True, text=True, env=limited)
    assert done.returncode == 2
    assert "this processor has none of AVX512_VNNI, AVX_VNNI and AMX" in done.stderr
    assert "use bfloat16 or float32" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_dense_layers_before_the_last_are_exported_in_integers(tmp_path):
    needs_extra("onnx")
    images = np.random.default_rng(1).integers(0, 256, (16, 28, 28, 1), np.uint8)
    done = export.export(
        untrained("lenet_300_100"), "onnx", tmp_path / "a.onnx", dtype="int8", calibration=images
    )
    assert done.agreement > 0.8


def test_an_export_to_onnx_has_integers_around_its_layers(sample_run, tmp_path, capsys):
    """Weights of each channel in 8 bits, the last dense layer in float32, batches of any size."""
    needs_extra("onnx")
    import onnx
    import onnxruntime as runtime

    file = tmp_path / "net.onnx"
    words = [f"--workdir={sample_run}", "--format=onnx", f"--out={file}", "--dtype=int8"]
    assert main.run(["export", *words]) == 0
    assert "int8 and float32 agree on " in capsys.readouterr().out
    assert json.loads((tmp_path / "net.onnx.json").read_text())["weights"] == "int8"
    graph = onnx.load(file).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 2 and not {"Sub", "Mul", "Sqrt"} & set(kinds)  # BatchNorm is folded
    read = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            x, kernel = (read[name] for name in node.input[:2])
            assert weights[kernel.input[0]].dtype == np.int8 and abs(weights[kernel.input[0]]).max() <= 64
            assert weights[x.input[1]].shape == ()
            assert weights[kernel.input[1]].shape == weights[kernel.input[0]].shape[:1]
    trained, source = cnnjax.load_run(sample_run), datasets.load("fashion_mnist_mini", "test")
    session = runtime.InferenceSession(file)
    for count in (1, 100):
        images = np.asarray(trained.prepare(source.images[:count]))
        (logits,) = session.run(None, {session.get_inputs()[0].name: images})
        wanted = trained.model.apply(trained.variables, images)
        assert (logits.argmax(1) == wanted.argmax(1)).mean() >= 0.97
        assert 0 < abs(logits - wanted).max() < 0.05 * abs(wanted).max()


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_an_export_is_quiet_and_leaves_loggers_as_they_were(level, tmp_path, capfd, monkeypatch):
    needs_extra("onnx")
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", None)  # of the process; it cannot be read
    monkeypatch.setattr(logging.root.manager, "disable", level)
    images = np.random.default_rng(1).integers(0, 256, (8, 28, 28, 1), np.uint8)
    network = untrained("simple_cnn(widths=(2, 3))")
    export.export(network, "onnx", tmp_path / "net.onnx", dtype="int8", calibration=images)
    assert logging.root.manager.disable == level
    assert not capfd.readouterr().err


def test_mistakes_of_an_export_in_integers_are_told_in_one_line(tiny_run, tmp_path, capsys):
    for flags, wanted in {
        "--format=stablehlo --dtype=int8": "dtype=int8: allowed with format onnx",
        "--format=onnx --dtype=int8 --half": "without half and with_preprocessing",
        "--format=onnx --dtype=bfloat16": "unknown dtype 'bfloat16'",
        "--format=onnx --calibration=x": "calibration needs dtype=int8",
    }.items():
        out = tmp_path / f"net.{flags[9:].split(' ')[0]}"
        assert main.run(["export", f"--workdir={tiny_run}", *flags.split(" "), f"--out={out}"]) == 2
        error = capsys.readouterr().err
        assert wanted in error and error.count("\n") == 1
