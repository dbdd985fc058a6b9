"""A device that JAX is told to use and that is not there: one line from every command that computes."""

import json
import os
import subprocess
import sys

import pytest

from cnnjax.cli import main
from cnnjax.errors import one_line

# Each command that computes, but `launch` and `study`, which start `train`.
COMPUTE = {
    "train": ["--config.data.name={data}", "--config.data.num_validation=10", "--workdir={out}"],
    "sweep": ["--config.data.name={data}", "--config.data.num_validation=10", "--out={out}"],
    "evaluate": ["--workdir={run}"],
    "predict": ["--workdir={run}", "{run}"],
    "explore": ["--workdir={run}", "--port=0"],
    "probe": ["--workdir={run}"],
    "export": ["--workdir={run}", "--out={out}"],
    "models": ["simple_cnn"],
    "compile": ["--config.data.name={data}", "--config.data.num_validation=10", "--topology=cpu:1"],
    "weights": ["export", "{out}", "--workdir={run}"],
    "push": ["--workdir={run}", "--out={out}"],
    "replay": ["--workdir={run}", "--step=1"],
    "bench": ["train", "--model=simple_cnn"],
}
NOTHING = ["launch", "study", "report", "data", "checkpoint", "completion"]
ALL = """
import contextlib, io, json, sys
from cnnjax.cli import main
for words in json.load(sys.stdin):
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main.run(words)
    print(json.dumps([code, told.getvalue()]))
"""


def told(commands: list[list[str]], **variables: str) -> list[list]:
    """The exit code of each command, and what it wrote to the standard error."""
    env = os.environ | {"CNNJAX_COMPILE_CACHE": "on"} | variables
    run = [sys.executable, "-c", ALL]
    done = subprocess.run(run, input=json.dumps(commands), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU here")
@pytest.mark.parametrize("variable", ["JAX_PLATFORMS=cuda", "JAX_PLATFORMS=bogus", "JAX_PLATFORM_NAME=cuda"])
def test_a_device_that_is_not_here_is_told_in_one_line(variable, tiny_run, tiny_data, tmp_path):
    assert {*COMPUTE, *NOTHING} == {*main.COMMANDS}
    out = tmp_path / "out"
    lines = [
        [command, *(word.format(run=tiny_run, data=tiny_data, out=out) for word in words)]
        for command, words in COMPUTE.items()
    ]
    name, _, value = variable.partition("=")
    for line, (code, error) in zip(lines, told(lines, **{"JAX_PLATFORMS": "", name: value}), strict=True):
        assert code == 2 and error.count("\n") == 1, (line, error)
        assert error.startswith(f"cnnjax: {variable}: no such device here") and "allowed: cpu" in error, line
    assert not out.exists()


def test_each_of_several_processes_tells_it_in_one_line(tiny_data, tmp_path):
    train = ["train", f"--workdir={tmp_path / 'run'}", f"--config.data.name={tiny_data}"]
    command = [sys.executable, "-m", "cnnjax", "launch", "--processes=2", "--max_restarts=1", "--", *train]
    env = os.environ | {"JAX_PLATFORMS": "bogus"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    starts = sorted(line.partition("=bogus: no such device")[0] for line in done.stderr.splitlines())
    assert starts == [f"cnnjax: process {index} of 2: JAX_PLATFORMS" for index in (0, 1)], done.stderr
    assert not list(tmp_path.iterdir())


def test_what_computes_nothing_asks_for_no_device():
    lines = [["--help"], ["train", "--help"], ["train", "--print_config"], ["models", "*_cnn"], ["data"]]
    assert told(lines, JAX_PLATFORMS="bogus") == [[0, ""]] * len(lines)


def test_an_error_without_words_is_named_by_its_type():
    assert one_line(AssertionError()) == "AssertionError"
    assert one_line(ValueError("two\nlines")) == "two lines"
