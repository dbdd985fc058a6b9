"""What a step computes, as `cnnjax compile` and `cnnjax models --memory` tell it."""

import json

import pytest

from cnnjax import config as config_lib
from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.models import create_model
from cnnjax.models.macs import count_macs
from cnnjax.ops import cpu
from cnnjax.profiling import forecast
from cnnjax.profiling.summary import totals

NET = "wrn_16_4(widen_factor=1, depth=%s)"


@pytest.mark.parametrize(
    ("topology", "fields", "net", "counted"),
    [
        ("h100:1", {}, NET % 10, True),
        ("h100:1", {"augment.train": "mirror|normalize(0.5, 0.25)"}, NET % 10, True),  # a loop draws numbers
        ("h100:1", {"accumulate_steps": 4}, NET % 10, False),
        ("h100:1", {}, NET % "22, scan_blocks=True, remat=True", False),
        ("cpu:1", {}, NET % 10, cpu.status().startswith("off")),
    ],
)
def test_flops_are_six_for_each_multiply_add_of_the_network(topology, fields, net, counted):
    """XLA counts the body of a loop once, and the package's own kernels as nothing."""
    plain = {"augment.train": "normalize(0.5, 0.25)", "augment.eval": "normalize(0.5, 0.25)"}
    values = {"model": net, "batch_size": 8, "mesh": "data:1", **plain, **fields}
    config = config_lib.assign(config_lib.default(), values)
    found = forecast.forecast(config, topology, source=forecast.blank_source((32, 32, 3), 10))
    facts = json.loads(json.dumps(forecast.facts(found), allow_nan=False))
    assert facts["flops"] == 6 * totals(net.replace(", scan_blocks=True, remat=True", ""))[1] * 8
    if counted:
        assert 0.8 < facts["xla_flops"] / facts["flops"] < 1.2 and facts["bytes_accessed"] > 0
    else:
        assert facts["xla_flops"] is None and facts["bytes_accessed"] is None
    if topology.startswith("h100"):
        assert facts["compute_seconds"] == facts["flops"] / 989e12


@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("taught", [False, True])
def test_flops_are_of_both_gradients_of_sam_and_of_the_teachers_forward_pass(
    sam, taught, tiny_config, tiny_run
):
    student, teacher = (f"simple_cnn(widths={widths}, kernel_size=3)" for widths in ((4, 4), (2, 3)))
    fields = {"model": student, "mesh": "data:1", "batch_size": 8, "optimizer.sam_rho": 0.05 * sam}
    fields |= {"loss.distill": f"distill({str(tiny_run)!r})" * taught}
    found = forecast.forecast(config_lib.assign(tiny_config, fields), "h100:1")
    own, other = (count_macs(create_model(net, num_classes=3), (8, 8, 1)) for net in (student, teacher))
    assert found.flops == 8 * (own * (12 if sam else 6) + 2 * other * taught)


@pytest.mark.parametrize("freeze", ["conv1", "until(1, all but head)"])
def test_of_a_step_with_frozen_parts_neither_flops_nor_time_is_told(freeze, tiny_config):
    config = config_lib.assign(tiny_config, {"mesh": "data:1", "batch_size": 8, "freeze": freeze})
    found = forecast.forecast(config, "h100:1", input_rate=100.0)
    facts = json.loads(json.dumps(forecast.facts(found), allow_nan=False))
    assert facts["flops"] is facts["compute_seconds"] is facts["step_seconds"] is facts["slowest"] is None
    assert facts["memory_bytes"] > 0


@pytest.mark.parametrize("name", ["cpu:0", "h100:0", "v5e:0x4", "cpu:100000", "h100:2049", "v6e:99x99"])
def test_a_topology_of_no_or_too_many_devices_is_refused_by_its_name(name):
    with pytest.raises(UserError, match=f"^--topology={name} must be of at least 1 and at most 2048 devices"):
        forecast.topology(name)


@pytest.mark.parametrize(("node", "known"), [(1, True), (0, False)])
def test_what_gpus_of_several_nodes_send_each_other_has_no_time(node, known, monkeypatch, capsys):
    """One device stands for more than a node has."""
    monkeypatch.setattr(forecast, "NODE", node)
    command = ["compile", "--topology=h100:1", "--image=32x32x3", "--config.model=simple_cnn(widths=(2, 3))"]
    assert main.run([*command, "--config.mesh=data:1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["compute_seconds"] > 0
    names = "network_seconds", "efficiency_alone", "efficiency_hidden", "step_seconds", "slowest", "hours"
    assert [facts[name] is not None for name in names] == [known] * len(names)
    if not known:
        assert main.run([*command, "--config.mesh=data:1"]) == 0
        shown = capsys.readouterr().out
        assert "nan" not in shown and shown.count("n/a") >= 3


def test_the_memory_of_a_model_comes_with_its_flops(capsys):
    assert main.run(["models", "simple_cnn", "--memory", "--batch_size=64"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FLOPs" in line]
    assert "1.09 G" in line
