"""Commands killed at an operation on a file and started again; experiments/reliability tries all of them."""

import subprocess
import sys

import pytest

from tests import ROOT

SAMPLE = """
import sys
from pathlib import Path
from experiments.reliability import kills
place, name = Path(sys.argv[1]), sys.argv[2]
kills.prepare(place, run=False)
chosen = lambda count: [k for k in map(int, sys.argv[3:]) if k <= count]
tried = dict(kills.trials(name, kills.commands(place)[name], place, chosen))
assert tried, "no operations"
sys.exit("; ".join(f"operation {k}: {problem}" for k, problem in tried.items() if problem) or 0)
"""


SWEEP = pytest.param("sweep", (3, 9, 60), marks=pytest.mark.slow)


@pytest.mark.parametrize(("command", "operations"), [("train", (4,)), ("data prepare", (2, 5, 20)), SWEEP])
def test_a_killed_command_that_is_started_again_ends_as_if_nothing_had_been(command, operations, tmp_path):
    words = [sys.executable, "-c", SAMPLE, str(tmp_path), command, *map(str, operations)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
