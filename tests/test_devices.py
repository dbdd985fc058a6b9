"""One program on any number of devices: the loss curve, the evaluation and the checkpoint agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnjax import loop
from tests.test_cli import TINY

# Adam turns the rounding noise in the gradient of a bias before BatchNorm, which is zero, into whole steps.
SGD = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.05"]


def train_on(devices: int, data: str, workdir: Path) -> tuple[list[dict], dict]:
    """Metrics and test scores of the tiny run on simulated CPU devices."""
    command = [sys.executable, "-m", "cnnjax", "train", f"--workdir={workdir}", f"--config.data.name={data}"]
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [*command, *TINY, *SGD, "--config.log_every_steps=1"],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    run = loop.Run.open(workdir)
    assert len(run.read_json("record.json")["devices"]) == devices
    return run.metrics(), run.read_json("test.json")


@pytest.mark.slow
def test_one_two_and_eight_devices_train_the_same(tiny_data, tmp_path):
    rows, test = train_on(1, tiny_data, tmp_path / "1")
    for devices in (2, 8):
        others, other = train_on(devices, tiny_data, tmp_path / str(devices))
        losses = [[row["loss"] for row in run if "loss" in row] for run in (rows, others)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
        assert other["count"] == test["count"] == 37
        assert other["loss"] == pytest.approx(test["loss"], rel=1e-4)
    # the checkpoint of 8 devices is evaluated on one
    found, _ = loop.evaluate(tmp_path / "8")
    assert found["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_batch_that_devices_do_not_divide_is_told(tiny_data, tmp_path):
    code = (
        "import sys; from cnnjax import cli; "
        "sys.exit(cli.run(['train', '--config.batch_size=12', '--config.data.name=' + sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_data],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 2
    assert "config.batch_size=12 is not divisible by the 8 devices on 'data'; take 8 or 16" in done.stderr
    assert json.dumps(done.stderr).count("\\n") == 1
