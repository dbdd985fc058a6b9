"""Seeds trained together: stopped together, and each with a record and notes of its own."""

import dataclasses
import shutil
import signal
import time

import jax
import pytest

from cnnjax import config as config_lib
from cnnjax.errors import UserError
from cnnjax.ops import cpu
from cnnjax.ops.portable import portable
from cnnjax.runs import manifest
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.experiment import build
from cnnjax.runs.folder import Run
from cnnjax.runs.log import Progress
from cnnjax.runs.seeds import train_together
from cnnjax.runs.signals import Interrupted
from cnnjax.training import parallel


@pytest.fixture
def configs(tiny_config) -> list[config_lib.ConfigDict]:
    """Of two seeds."""
    normalized = "normalize(mean=0.5, std=0.25)"
    tiny_config.augment.update({"train": f"mirror|{normalized}", "eval": normalized})
    tiny_config.log_every_steps = 1
    tiny_config.optimizer.name = "sgd"  # Adam makes whole steps of rounding noise
    return [config_lib.assign(tiny_config, {"seed": seed}) for seed in range(2)]


@pytest.mark.parametrize(("number", "step"), [(0, 3), (0, 5), (1, 5)])  # 5: before an evaluation
def test_a_signal_between_the_turns_of_a_step_loses_no_step_of_any_seed(
    number, step, configs, tmp_path, monkeypatch
):
    """It comes when a row of the first or of the last seed is written."""
    append = Run.append_metrics

    def append_then_signal(run: Run, row: dict) -> None:
        append(run, row)
        if (run.path.name, row["step"]) == (f"run{number}", step):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)  # another thread sees it

    folders = [tmp_path / "run0", tmp_path / "run1"]
    monkeypatch.setattr(Run, "append_metrics", append_then_signal)
    with pytest.raises(Interrupted) as told:
        train_together(configs, folders)
    for saved in (Checkpoints(folder / "checkpoints") for folder in folders):
        assert saved.steps() == [step]
        assert manifest.read(saved.folder(step))["position"]["position"] == step
    saved = ", ".join(f"saved step {step} of 10 in {folder}" for folder in folders)
    assert str(told.value) == f"SIGTERM: {saved}; the same command resumes there"


class Notes(Progress):
    """Keeps what is told."""

    def __init__(self):
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_each_seed_records_that_no_kernel_ran_and_tells_what_differs(configs, tmp_path):
    """Of several sessions too; what the seeds have in common is told once."""
    for config in configs:
        config.total_epochs = 0.2  # one step
    folders = [tmp_path / "run0", tmp_path / "run1"]
    train_together(configs, folders, before := Notes())
    for folder in folders:
        record = (run := Run.open(folder)).read_json("record.json")
        assert record["cpu_kernels"] == "off: for seeds trained together"
        run.write_json("record.json", {**record, "cpu_kernels": "oneDNN"})
        shutil.rmtree(folder / "checkpoints")
    assert sum("parameters" in line for line in before.told) == 1
    train_together(configs, folders, notes := Notes())
    differ = "resumed with CPU kernels off: for seeds trained together, before oneDNN: results may differ"
    assert any(line.startswith(differ) for line in notes.told)
    assert any(line.startswith(f"{folders[1]}: {differ}") for line in notes.told)


def test_a_run_on_several_devices_records_that_no_kernel_ran(tiny_config):
    several = jax.sharding.AbstractMesh((2, 1), parallel.AXES)
    experiment = dataclasses.replace(build(tiny_config), mesh=several)
    assert experiment.kernels == "off: for several devices"
    one = build(tiny_config)
    assert one.kernels == one.record_entries()["cpu_kernels"] == cpu.status()


@pytest.mark.skipif(cpu.status().startswith("off"), reason=f"CPU kernels {cpu.status()}")
@pytest.mark.parametrize(("within", "why"), [(cpu.paused, "for comparison"), (portable, "for export")])
def test_the_reason_is_that_of_the_pause(within, why):
    with within():
        assert cpu.status() == f"off: {why}"
        with cpu.chosen(False):
            assert cpu.status() == "off: as the config asks"
    assert cpu.status().startswith("oneDNN") and cpu.turns_unrolled(3) == 1
    with cpu.paused():
        assert cpu.turns_unrolled(3) == 3


def test_too_little_memory_for_several_seeds_names_that_remedy(configs, tmp_path):
    for config in configs:
        config.update({"model": "simple_cnn(widths=(4096, 1))", "batch_size": 2**20 - 1})
    with pytest.raises(UserError, match="batch_size=1048575, 2 seeds at once; train fewer seeds at once"):
        train_together(configs, [tmp_path / "run0", tmp_path / "run1"])
