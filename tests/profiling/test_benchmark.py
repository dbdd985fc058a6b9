"""The benchmark measures a real step and says all that is promised."""

import json
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import cnnjax
from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.inference.model import untrained
from cnnjax.ops import cpu
from cnnjax.profiling import input_pipeline
from cnnjax.profiling.benchmark import TrainBench, bench_train, kind_of, operations
from cnnjax.profiling.forecast import model_memory
from experiments.cpu_speed import bench_ops
from experiments.data_speed import listing as data_listing
from experiments.data_speed import run as data_speed
from experiments.data_speed.bench_read import bench_read

KEYS = "model dtype batch images_per_second compile_seconds first_step_seconds peak_memory_bytes cpu_kernels"


def test_bench_train_prints_json_with_all_keys(capsys):
    flags = ["--model=simple_cnn(widths=(2,2))", "--batch_size=4", "--rounds=2", "--seconds=0.01", "--json"]
    assert main.run(["bench", "train", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(KEYS.split()) <= set(found)
    assert found["images_per_second_min"] <= found["images_per_second"] <= found["images_per_second_max"]
    assert found["first_step_seconds"] >= found["compile_seconds"] > 0
    assert found["peak_memory_bytes"] > 10**7
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)


def test_the_step_trains():
    bench = TrainBench("simple_cnn(widths=(2, 2))", 4, "bfloat16", image_size=12)
    before = int(bench.state.step)
    assert bench.rate(0.0) > 0
    assert int(bench.state.step) == before + 2


def test_a_bench_has_the_classes_of_its_spec():
    bench = TrainBench("simple_cnn(widths=(2, 2), num_classes=2)", 16, "float32", image_size=12)
    assert bench.num_classes == 2
    assert not np.isnan(
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(bench.state.params)])
    ).any()
    assert int(bench.state.step) == 1
    assert model_memory("simple_cnn(widths=(2, 2), num_classes=20)", 4).program.memory
    assert len(untrained("simple_cnn(widths=(2, 2), num_classes=20)").class_names) == 20


@pytest.mark.parametrize(
    ("origin", "kind"),
    [
        ("jit(step)/jvp(Net)/conv1/conv_general_dilated", "convolution"),
        ("jit(step)/transpose(jvp(Net))/conv2/cnnjax_conv_kernel_gradient", "convolution"),
        ("jit(step)/jvp(Net)/conv1/convert_element_type", "element-wise and copies"),
        ("jit(step)/transpose(jvp(Net))/conv1/cnnjax_channel_sum", "element-wise and copies"),
        ("jit(step)/convert_element_type", "element-wise and copies"),
        ("jit(step)/jvp(Net)/dense1/convert_element_type", "element-wise and copies"),
        ("jit(step)/jvp(Net)/dense1/dot_general", "dense"),
        ("jit(step)/jvp(Net)/head/cnnjax_dense", "dense"),
        ("jit(step)/jvp(Net)/norm1/mul", "normalization"),
        ("jit(step)/jvp(Net)/stage1_block2/identity/mul", "normalization"),  # of RepVGG
        ("jit(step)/jvp()/cnnjax_max_pool", "pooling"),
        ("convolution.3", "convolution"),  # of XLA, without a name of JAX
        ("convert.3", "element-wise and copies"),
    ],
)
def test_what_an_operation_is_follows_from_what_made_it(origin, kind):
    assert kind_of(origin) == kind


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "float16"}, "unknown --dtype 'float16'"),
        ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
        ({"against": "tensorflow"}, "unknown --against 'tensorflow'"),
    ],
)
def test_mistakes_are_told(fields, words):
    with pytest.raises(UserError, match=words):
        bench_train("simple_cnn", **fields)


def test_bench_predict_prints_json_with_all_keys(capsys):
    flags = ["--model=simple_cnn(widths=(2,2))", "--batch_size=3", "--rounds=2", "--seconds=0.01", "--json"]
    assert main.run(["bench", "predict", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {
        *["model", "dtype", "batch", "images_per_second", "peak_memory_bytes", "first_call_seconds"]
    } <= set(found)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["batch"] == 3 and found["first_call_seconds"] > 0


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--dtype=float16", "unknown --dtype 'float16'"),
        ("--batch_size=0", "--batch_size"),
        (
            "--against=keras",
            "unknown --against 'keras'",
        ),
    ],
)
def test_mistakes_of_bench_predict_are_told(flag, words, capsys):
    assert main.run(["bench", "predict", "--model=simple_cnn(widths=(2,2))", flag]) == 2
    assert words in capsys.readouterr().err


def test_each_kernel_is_measured_beside_xla(monkeypatch):
    if cpu.status().startswith("off"):
        pytest.skip(f"no kernels: {cpu.status()}")
    shapes = ((2, 6, 6, 32),)
    small = {"max pool": (lambda x: cnnjax.ops.max_pool(x, 3, 2), shapes)}
    monkeypatch.setattr(bench_ops, "cases", lambda: small)
    rows = list(bench_ops.bench_ops(rounds=1, seconds=0.0))
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert all(row["xla_ms"] > 0 and row["kernel_ms"] > 0 and row["ratio"] > 0 for row in rows)


def test_bench_data_measures_the_input(monkeypatch, capsys):
    monkeypatch.setattr(input_pipeline, "RAW", 16)
    monkeypatch.setattr(input_pipeline, "MADE_UP", 6)
    monkeypatch.setattr(input_pipeline, "BATCH", 4)
    flags = ["--rounds=1", "--seconds=0", "--images=8", "--model=simple_cnn(widths=(2,2))"]
    assert main.run(["bench", "data", "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == "made up" and found["memory_images"] == 8
    assert all(found[name] > 0 for name in found if "per_second" in name or "ratio" in name)
    assert found["augment_share"] > 0
    assert len(list(data_speed.rows(found))) == 5
    assert main.run(["bench", "data", "--data=fashion_mnist_mini"]) == 2
    assert "must be folder:PATH of JPEG files" in capsys.readouterr().err


def test_the_study_of_the_input_says_which_of_its_targets_are_met():
    (row, *_) = data_speed.read_rows()
    words = ("images", "device", "jax", "grain", "simplejpeg", "machine")
    found = {name: value if name in words else float(value) for name, value in row.items() if value}
    for name in ("images_per_second", "alone_images_per_second", "ratio_min", "ratio_max", "rounds"):
        found[f"records_{name}"] = found[f"jpeg_{name}"]
    good = {"jpeg_ratio": 0.9, "records_ratio": 0.9, "raw_images_per_second": 6000.0, "augment_share": 0.01}
    assert all(met for *_, met in data_speed.rows(found | good | {"memory_growth_bytes": 0}))
    bad = {"jpeg_ratio": 0.8, "records_ratio": 0.89, "raw_images_per_second": 5999.0, "augment_share": 0.1}
    assert not any(met for *_, met in data_speed.rows(found | bad | {"memory_growth_bytes": 2**30}))


def test_a_listing_is_measured_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    row = data_listing.measure("zip", 2000)
    assert row["images"] == 2000 and row["seconds"] > 0 and not [*tmp_path.iterdir()]
    folder = data_listing.make("folder", 2000, tmp_path)
    assert data_listing.opened(str(folder))["images"] == 2000
    slow = {**row, "seconds": 1.0}
    assert "< 0.0 s and 0 MB: missed" in data_listing.table([slow])
    assert "< 10.0 s and 300 MB: met" in data_listing.table([{**slow, "images": 1_300_000, "bytes": 2e8}])


def test_the_cases_of_bench_ops_fit_their_operations():
    for function, shapes in bench_ops.cases().values():
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        assert jax.eval_shape(function, *arrays).shape[0] == shapes[0][0]


def test_an_unknown_bench_is_told(capsys):
    assert main.run(["bench", "trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_reading_is_measured_both_ways_on_the_same_files(tmp_path):
    draw = np.random.default_rng(0)
    for i in range(7):
        image = draw.integers(0, 255, (20 + i, 24, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{'ab'[i % 2]}_{i}.jpg")
    found = bench_read(str(tmp_path), size=16, rounds=1, batch_size=4)
    assert found["images"] == 7
    assert found["ratio"] == pytest.approx(found["predict"] / found["train"], rel=0.01)
    (tmp_path / "b_1.jpg").write_bytes(b"no image")
    for folder, words in ((tmp_path, "b_1.jpg: not an image"), (tmp_path / "gone", "is not a folder")):
        with pytest.raises(UserError, match=words):
            bench_read(str(folder), size=16)


PLANE = """planes {{ name: "{name}" stat_metadata {{ key: 1 value {{ id: 1 name: "hlo_op" }} }}
  event_metadata {{ key: 1 value {{ id: 1 name: "kernel" }} }}
  lines {{ events {{ metadata_id: 1 duration_ps: {ns}000
    stats {{ metadata_id: 1 str_value: "conv.1" }} }} }} }}
"""


@pytest.mark.parametrize("names", [("/host:CPU",), ("/host:CPU", "/device:GPU:0")])
def test_operations_of_a_device_are_not_those_of_the_host_again(names):
    text = "".join(PLANE.format(name=name, ns=7 + i) for i, name in enumerate(names))
    planes = jax.profiler.ProfileData.from_text_proto(text).planes
    assert list(operations(planes)) == [("conv.1", "kernel", 6.0 + len(names))]
