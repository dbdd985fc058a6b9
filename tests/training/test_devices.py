"""One program on any number of devices: loss curves, checkpoints and communication, on 8 simulated ones."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.ops.normalization import batch_norm_in_groups
from cnnjax.profiling.compiled import Program, collectives
from cnnjax.runs.evaluate import evaluate
from cnnjax.training import parallel
from tests import ROOT
from tests.conftest import simulated
from tests.mesh_curves import GRADIENTS

EIGHT = {**simulated(8), "CNNJAX_CPU_KERNELS": "off"}


@pytest.fixture(scope="module")
def curves(tmp_path_factory) -> dict:
    """What `tests.mesh_curves` finds."""
    command = [sys.executable, "-m", "tests.mesh_curves", str(tmp_path_factory.mktemp("curves"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=EIGHT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["resnet", "sam", "alexnet", "inception"])
def test_every_mesh_and_sharding_gives_the_same_loss_curve(curves, net):
    one, *others = [row["losses"] for row in curves[net]]
    assert len(set(one)) == len(one) and others
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("net", GRADIENTS)
def test_every_mesh_and_sharding_gives_all_gradients_of_one_device(curves, net):
    assert curves["wrong gradients"][net] == []


@pytest.mark.slow
def test_statistics_of_a_device_are_those_of_a_group_of_its_examples(curves):
    (device,), (groups,) = curves["resnet device"], curves["resnet groups"]
    np.testing.assert_allclose(device["losses"], groups["losses"], rtol=1e-5)
    assert abs(device["losses"][-1] - curves["resnet"][0]["losses"][-1]) > 1e-4


@pytest.mark.slow
def test_parameters_and_optimizer_state_lie_in_parts(curves):
    one, fsdp, _, towers, _ = curves["alexnet"]
    assert fsdp["held"] < one["held"] / 5
    assert towers["held"] == pytest.approx(one["held"] / 2, rel=0.01)


@pytest.mark.slow
def test_towers_talk_only_where_they_must(curves):
    """conv3 and the dense layers see both towers; response normalization looks two channels across."""
    towers = curves["alexnet"][3]
    assert set(towers["layers"]) <= {"conv3", "dense1", "dense2", "head", "step"}
    # two normalizations, to each side, forward and backward
    assert towers["kinds"]["collective-permute"] == 8
    assert towers["kinds"]["all-gather"] == 3


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_restores_on_one_two_four_and_as_numpy(curves):
    assert curves["elastic"] == [True] * 6


EVALUATE = """
import sys, jax, numpy as np
from cnnjax.runs.evaluate import evaluate
assert jax.device_count() == int(sys.argv[1])
np.savez(sys.argv[3], **evaluate(sys.argv[2])[1])
"""


@pytest.mark.parametrize("devices", [2, 8])
def test_an_evaluation_has_one_row_an_image_on_any_number_of_devices(tiny_run, tmp_path, devices):
    """37 images in batches of 16, which the devices share; the last one is padded."""
    command = [sys.executable, "-c", EVALUATE, str(devices), str(tiny_run), str(tmp_path / "rows.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=simulated(devices))
    assert done.returncode == 0, done.stderr[-2000:]
    _, one = evaluate(tiny_run)
    with np.load(tmp_path / "rows.npz") as rows:
        assert set(rows) == set(one)
        for name, values in one.items():
            assert values.shape == (37,)
            if values.dtype == np.float32:
                np.testing.assert_allclose(rows[name], values, rtol=1e-5)
            else:
                np.testing.assert_array_equal(rows[name], values)


def test_a_batch_that_devices_do_not_divide_is_told(tiny_data, tmp_path):
    flags = [f"--workdir={tmp_path / 'run'}", "--config.batch_size=12", f"--config.data.name={tiny_data}"]
    done = subprocess.run(
        [sys.executable, "-m", "cnnjax", "train", *flags],
        capture_output=True,
        text=True,
        env=EIGHT,
    )
    assert done.returncode == 2
    assert "config.batch_size=12 is not divisible by the 8 devices on 'data'; use 8 or 16" in done.stderr
    assert json.dumps(done.stderr).count("\\n") == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mesh": "data:2,rows:2"}, "unknown config.mesh axis 'rows'"),
        ({"mesh": "data:0"}, "config.mesh='data:0': 'data:0' must be an axis and a number"),
        ({"mesh": "data:1,data:1"}, "must be an axis and a number"),
        ({"mesh": "data:4096"}, "config.mesh='data:4096' takes 4096 devices, but there are"),
        ({"sharding": "fdsp"}, "unknown config.sharding 'fdsp' .did you mean 'fsdp'"),
        ({"batch_norm": "groups(3)"}, "groups must divide the 16 examples of a microbatch"),
        ({"batch_norm": "local"}, "config.batch_norm='local' must be 'global', 'device' or 'groups.32.'"),
        (
            {"accumulate_steps": 3},
            "config.batch_size=16 is not divisible by accumulate_steps=3; use 15 or 18",
        ),
        ({"batch_norm": "groups(3)", "accumulate_steps": 2}, "groups must divide the 8 examples of a mic"),
    ],
)
def test_mistakes_are_told_before_anything_compiles(tiny_config, tmp_path, fields, words):
    from cnnjax.runs import train

    tiny_config.update(fields)
    with pytest.raises(UserError, match=words):
        train.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rules_cut_the_largest_dimension_that_the_devices_divide():
    mesh = jax.sharding.AbstractMesh((4, 2), parallel.AXES)

    def cut(sharding: str, path: str, *shape: int) -> tuple:
        return tuple(parallel.spec(path, shape, mesh, parallel.SHARDINGS[sharding]))

    assert cut("fsdp", "/params/conv1/kernel", 3, 3, 64, 128) == (None, None, None, "data")
    assert cut("fsdp", "/opt_state/0/trace/conv1/kernel", 3, 3, 128, 63) == (None, None, "data")
    assert cut("fsdp", "/params/conv1/bias", 128) == ()
    assert cut("towers", "/params/conv2/kernel", 5, 5, 48, 256) == (None, None, None, "model")
    assert cut("towers", "/params/head/kernel", 4096, 1000) == ("model",)
    assert cut("towers", "/params/head/bias", 1000) == ()
    assert cut("replicated", "/params/conv2/kernel", 5, 5, 48, 256) == ()


def test_groups_of_a_batch_are_normalized_each_by_its_own_statistics():
    x = jax.random.normal(jax.random.key(0), (6, 3, 3, 4)) * jnp.arange(1.0, 7.0)[:, None, None, None]
    scale, bias = jnp.full(4, 2.0), jnp.full(4, 0.5)
    y, mean, var = ops.batch_norm_train(x, scale, bias, groups=3)
    parts = [ops.batch_norm_train(part, scale, bias) for part in jnp.split(x, 3)]
    np.testing.assert_allclose(y, jnp.concatenate([part[0] for part in parts]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, sum(part[1] for part in parts) / 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, sum(part[2] for part in parts) / 3, rtol=1e-5)
    # put together they are those of the batch, far from zero too
    shifted = x + 3000.0
    together = batch_norm_in_groups(shifted, scale, bias, groups=3, gather=lambda rows: rows)
    for ours, whole in zip(together, ops.batch_norm_train(shifted, scale, bias), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-3)
    with pytest.raises(UserError, match="4 groups"):
        ops.batch_norm_train(x, scale, bias, groups=4)


def test_collectives_are_read_from_what_xla_prints():
    text = """
%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %sum = f32[8] all-reduce(%p), replica_groups=[2,4]<=[8], metadata={op_name="jit(f)/Net/stem/conv/add"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %loop = f32[8]{0} while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %start = (f32[2]{0}, bf16[3,8]{1,0}) all-gather-start(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
  %done = bf16[3,8]{1,0} all-gather-done(%start)
  %t = (f32[4], f32[6]) all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, metadata={op_name="head"}
  ROOT %alone = f32[8]{0} all-reduce(%x), replica_groups={{0},{1}}
}
"""
    found = list(collectives(text, ["stem/conv", "head"]))
    assert [(c.kind, c.layers, c.devices, c.count, c.tensors) for c in found] == [
        ("all-reduce", {"stem/conv": 32}, 4, 5, 1),
        ("all-gather", {"step": 48}, 2, 1, 1),
        ("all-reduce", {"head": 40}, 8, 1, 2),
    ]
    assert found[2].wire == 2 * 7 / 8 * 40


def test_a_combined_all_reduce_is_booked_on_all_layers_that_it_holds():
    """Each array goes to the layer that made it, also through what only passes it on."""
    text = """
ENTRY %main (x: f32[8]) -> f32[8] {
  %a = f32[4]{0} fusion(%x), kind=kLoop, metadata={op_name="jit(f)/transpose(jvp(Net))/stem/conv/mul"}
  %b = f32[6]{0:T(8,128)(2,1)} add(%x, %x), metadata={op_name="jit(f)/transpose(jvp(Net))/head/dot_general"}
  %c = f32[6]{0} bitcast(%b)
  %loss = f32[] reduce(%x), metadata={op_name="jit(f)/reduce_sum"}
  %s = (f32[4], f32[6], f32[]) all-reduce-start(%a, %c, %loss), replica_groups=[1,4]<=[4], channel_id=1
  ROOT %all = (f32[4]{0}, f32[6]{0:T(8,128)(2,1)}, f32[]) all-reduce-done(%s)
}
"""
    (found,) = collectives(text, ["stem/conv", "head"])
    assert found.layers == {"stem/conv": 16, "head": 24, "step": 4} and found.tensors == 3
    program = Program(0, 0, 0, 0.0, 0.0, (found,))
    assert program.by_kind() == {"all-reduce": (1, 2 * 3 / 4 * 44)}
    assert program.by_layer() == {"head": (1, 36.0), "stem/conv": (1, 24.0), "step": (1, 6.0)}


def compiled_for(topology: str, config: str, *flags: str) -> dict:
    """What `cnnjax compile` says of a config of ImageNet, without its images."""
    command = [sys.executable, "-m", "cnnjax", "compile", f"--topology={topology}", "--json"]
    command += [f"--config={config}", "--image=256x256x3", "--num_classes=1000", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_grouped_convolutions_on_eight_devices_gather_nothing_and_compute_an_eighth_each():
    one, eight = (compiled_for(f"h100:{n}", "configs/imagenet_alexnet.py") for n in (1, 8))
    assert set(eight["collectives"]) == {"all-reduce"}  # of gradients and metrics: no activation moves
    assert eight["collectives"]["all-reduce"]["bytes_sent"] < 1.01 * 2 * 7 / 8 * 4 * 60_965_224
    assert eight["flops"] == one["flops"] / 8
    # The optimizer's own FLOPs, for parameters that all devices hold, are not shared.
    assert one["xla_flops"] / 8 < eight["xla_flops"] < 1.03 * one["xla_flops"] / 8
    assert {"conv2", "conv4", "conv5", "dense1", "head"} <= set(eight["layers"])


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/imagenet_*.py")), ids=lambda file: file.stem)
def test_every_config_of_imagenet_compiles_without_its_images(config):
    size = ["--image=320x320x3"] if "inception" in config.stem else []
    found = compiled_for("h100:8", str(config), "--input_rate=1000", *size)
    batch = found["input_seconds"] * 1000
    assert found["slowest"] == "input" and found["step_seconds"] == batch / 1000
    assert 0 < found["compute_seconds"] < found["step_seconds"] and found["hours"] > 10


@pytest.mark.slow
def test_a_step_is_compiled_for_tpus_that_are_not_here(tiny_data):
    pytest.importorskip("libtpu", reason="the extra `tpu` is not here")
    flags = ["--config.model=simple_cnn(widths=(8, 8))", "--config.dtype=bfloat16", "--config.batch_size=64"]
    done = subprocess.run(
        [sys.executable, "-m", "cnnjax", "compile", "--topology=v5e:2x4", "--json", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["devices"] == 8 and found["memory_bytes"] > 0
    assert found["collectives"]["all-reduce"]["count"] > 0
    assert 0 < found["efficiency_alone"] <= found["efficiency_hidden"] <= 1


def test_memory_is_told_before_a_run_and_grows_with_the_batch(capsys):
    def temporaries(batch_size: int) -> float:
        command = ["models", "simple_cnn", "--memory", f"--batch_size={batch_size}"]
        assert main.run(command) == 0
        found = re.search(r"temporaries, bytes\W+([\d.]+) (\w)", capsys.readouterr().out)
        return float(found[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[found[2]]

    assert temporaries(512) > 3 * temporaries(64)


def test_out_of_memory_names_batch_model_estimate_and_remedies(tiny_config, tmp_path):
    from cnnjax.runs import train

    tiny_config.batch_size = 2**20 - 1
    tiny_config.model = "simple_cnn(widths=(4096, 1))"  # terabytes of channels, few parameters
    tiny_config.augment.train = "normalize"
    with pytest.raises(
        UserError, match="out of memory on .*batch_size=1048575.*needs .* GiB per device"
    ) as said:
        train.train(tiny_config, tmp_path / "run")
    for word in ("simple_cnn", "accumulate_steps", "fsdp", "--memory"):
        assert word in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("v5x:2x4", "unknown --topology"), ("v5e:8", "must give the shape"), ("cpu:99", "already runs with")],
)
def test_an_unknown_topology_is_told(name, words, capsys):
    jax.devices()
    assert main.run(["compile", f"--topology={name}"]) == 2
    assert words in capsys.readouterr().err
