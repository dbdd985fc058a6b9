"""The study of a GPU, at toy size on this CPU, and on a machine that lacks what only data and runs need."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cnnjax.errors import UserError
from cnnjax.models import create_model, variable_shapes
from experiments.gpu import parts, run, steps
from tests import ROOT

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
# tensorstore is what orbax.checkpoint imports.
LACKING = (
    "grain",
    "simplejpeg",
    "isal",
    "ml_collections",
    "tensorflow_datasets",
    "tensorstore",
    "safetensors",
)


OURS = ("images/s", "share of peak", "memory, bytes", "compiled in, s")


def rows_of(out) -> dict[str, list[dict[str, str]]]:
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    return {part: [row for row in rows if row["part"] == part] for part in {row["part"] for row in rows}}


def dry_run(tmp_path, *flags: str, lacking: tuple[str, ...] = (), timeout: float = 180) -> tuple[str, dict]:
    """What it prints and its rows by part, each part in a process that cannot import what is lacking."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED.format(names=set(lacking)))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [
        sys.executable,
        "experiments/gpu/run.py",
        "--dry_run",
        f"--out={tmp_path / 'rows.csv'}",
        *flags,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, rows_of(tmp_path / "rows.csv")


def test_parity_and_profile_need_no_package_of_data_or_runs(tmp_path):
    said, rows = dry_run(tmp_path, "--only=parity,profile,input,airbench", lacking=LACKING)
    assert "airbench needs grain, isal, simplejpeg, ml_collections, orbax.checkpoint, safetensors\n" in said
    (command,) = (line.split() for line in said.splitlines() if "pip install" in line)
    assert "--target=experiments/gpu/carried" in command and "--no-deps" in command
    packages = {"grain", "isal", "simplejpeg", "ml-collections", "orbax-checkpoint", "safetensors"}
    assert {word for word in command[2:] if word[:2] != "--"} == packages  # what they need is here
    for part in ("input", "airbench"):
        assert [row["measure"] for row in rows[part]] == ["not run"]
        assert "missing: grain" in rows[part][0]["note"]
    assert "DIFFERS" not in str(rows) and "agrees" in str(rows["parity"])
    for part in ("parity", "profile"):
        assert rows[part][-1]["measure"] == "seconds" and not rows[part][-1]["note"], rows[part][-1]
    assert {row["device"] for row in rows["parity"]} == {"cpu"}


def test_the_rows_of_a_net_do_not_wait_for_the_next_one(monkeypatch, capsys):
    monkeypatch.setattr(parts, "TOY_PARITY", (("simple_cnn", 28), ("no_net", 28)))
    with pytest.raises(UserError, match="no_net"):
        parts.parity(toy=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["case"] for row in rows] == ["simple_cnn"] * 6


def test_airbench_tells_of_a_seed_before_the_next_one_and_trains_on_all_images(monkeypatch):
    begun, at_first = [], []

    class Watched(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            begun.append(self)

    def say(**row) -> None:
        at_first.append((row["case"], begun[0].poll()))

    monkeypatch.setattr(subprocess, "Popen", Watched)
    monkeypatch.setattr(parts, "say", say)
    parts.airbench(toy=True, data="")
    assert [case for case, _ in at_first] == [f"fashion_mnist_mini, seed {seed}" for seed in (0, 0, 1, 1)]
    assert at_first[0][1] is None  # it goes on
    fields = dict(word.split("=", 1) for word in begun[0].args if word.startswith("--config."))
    assert fields["--config.data.num_validation"] == "0"
    assert fields["--config.eval_every_epochs"] == fields["--config.total_epochs"]


HANGING = """
import sys, time
while "torch_step" in sys.orig_argv[2]:
    time.sleep(1)
"""


def test_a_peer_that_is_not_ready_in_time_costs_no_row_of_ours(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.chdir(ROOT)
    rows: list[dict[str, object]] = []
    steps.compare(lambda **row: rows.append(row), 1e12, (steps.TOY,) * 2, toy=True, until=time.time() + 5)
    assert [row["measure"] for row in rows] == [*OURS, "no PyTorch"] * 2
    assert "no answer in" in rows[-1]["note"]


def test_parity_is_of_a_net_with_auxiliary_heads_too():
    (name,) = (name for name, _ in parts.PARITY if "googlenet" in name)
    assert {"aux1", "aux2"} <= variable_shapes(create_model(name), (224, 224, 3), name)["params"].keys()


def needed(package: str, extras: tuple[str, ...] = ()) -> set[str]:
    """The package, and all that its metadata asks for, except what comes with jax."""
    found = {package}
    for asked in map(Requirement, requires(package) or ()):
        name = canonicalize_name(asked.name)
        wanted = not asked.marker or any(asked.marker.evaluate({"extra": each}) for each in ("", *extras))
        if wanted and name not in ("jax", "jaxlib", "numpy", "scipy", "ml-dtypes", "opt-einsum"):
            found |= needed(name, tuple(asked.extras))
    return found


@pytest.mark.parametrize("module", run.CARRY)
def test_what_is_carried_for_a_module_is_all_that_its_package_needs(module):
    own, *others = run.CARRY[module].split()
    assert needed(own) <= {own, *others}
    assert {*run.RUNS} - {*run.STEP} == run.CARRY.keys()


@pytest.mark.slow
def test_all_parts_run_at_toy_size_within_three_minutes(tmp_path):
    _, rows = dry_run(tmp_path)
    assert set(rows) == set(run.PARTS)
    assert any(row["measure"] == "test accuracy" for row in rows["airbench"])
    assert [row["measure"] for row in rows["input"]].count("images/s on the device") == 2
    for name in ("resnet50", "nets") if importlib.util.find_spec("torch") else ():
        assert "images/s" in {row["measure"] for row in rows[name]}
    for part in rows.values():
        assert "failed" not in {row["measure"] for row in part}, part
        assert part[-1]["measure"] in ("seconds", "not run")
        assert part[-1]["note"].startswith("missing: torch") or not part[-1]["note"], part[-1]


def test_a_part_that_takes_too_long_is_ended_and_its_row_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(run.PARTS, "device", run.Part(1, 1, ("jax",)))
    table = run.Table(tmp_path / "rows.csv")
    run.run_part("device", table, toy=False, options=[])
    (row,) = rows_of(tmp_path / "rows.csv")["device"][-1:]
    assert row["note"] == "stopped after its 1 s" and 1 <= float(row["value"]) < 30


def test_all_parts_fit_into_eight_minutes_and_as_toys_into_three():
    assert sum(part.seconds for part in run.PARTS.values()) <= 480
    assert sum(part.toy_seconds for part in run.PARTS.values()) <= 180
