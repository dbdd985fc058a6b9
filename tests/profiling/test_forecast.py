"""What a step computes, as `cnnjax compile` and `cnnjax models --memory` tell it."""

import json

import pytest

from cnnjax import config as config_lib
from cnnjax.cli import main
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


def test_the_memory_of_a_model_comes_with_its_flops(capsys):
    assert main.run(["models", "simple_cnn", "--memory", "--batch_size=64"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FLOPs" in line]
    assert "1.09 G" in line
