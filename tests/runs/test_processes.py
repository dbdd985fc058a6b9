"""Two real processes of two CPU devices each: the same run as one process, ended and restarted together."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cnnjax.cli import main
from cnnjax.errors import UserError
from cnnjax.runs import children, evaluate, processes
from cnnjax.runs import train as loop
from cnnjax.runs.checkpoints import Checkpoints
from experiments.reliability.place import tiny_arrays
from tests.conftest import simulated

MODEL = "resnet20_cifar(stage_sizes=(1,1), widths=(4,8))"
FIELDS = [
    f"--config.model={MODEL}",
    "--config.batch_size=16",
    "--config.eval_batch_size=15",
    "--config.data.num_validation=10",
    "--config.optimizer.name=sgd(momentum=0.9)",
    "--config.optimizer.learning_rate=0.03",
    "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=2",
]
CHECK = "--config.total_epochs=5"


@contextlib.contextmanager
def running(command: list[str], log: Path, env: dict[str, str]):
    """A process with its output in a file; if it still runs at the end, it and what it started are killed."""
    with (
        open(log, "w") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                for pid in (process.pid, *started_by(process)):  # the launcher first, as it may restart them
                    os.kill(pid, signal.SIGKILL)


def started_by(process: subprocess.Popen) -> list[int]:
    """The pids of what it started, where /proc tells."""
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def launched(workdir: Path, data: str, *, launch: str = "", seconds: int = 120, epochs: str = CHECK):
    """`cnnjax launch` of a tiny run, its output in LOG."""
    command = [sys.executable, "-m", "cnnjax", "launch", "--processes=2", *launch.split()]
    train = ["train", f"--workdir={workdir}", f"--hang_seconds={seconds}", f"--config.data.name={data}"]
    env = {**simulated(2), "PYTHONUNBUFFERED": "1"}
    return running([*command, "--", *train, *FIELDS, epochs], workdir.with_suffix(".log"), env)


def worker(launcher: subprocess.Popen, index: int) -> int:
    """The pid of one of the processes."""
    for pid in started_by(launcher):
        if f"--process_index={index}" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    raise AssertionError("no such worker")


def wait_for_steps(workdir: Path, count: int, launcher: subprocess.Popen) -> None:
    """Returns when so many rows of metrics are there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and launcher.poll() is None:
        with contextlib.suppress(OSError):
            if len((workdir / "metrics.jsonl").read_text().splitlines()) >= count:
                return
        time.sleep(0.05)
    raise AssertionError(workdir.with_suffix(".log").read_text()[-3000:])


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")


@needs_proc
@pytest.mark.slow
def test_two_processes_train_as_one_though_one_is_killed_and_all_restart(tiny_data, tmp_path, capfd):
    alone = tmp_path / "alone"
    assert main.run(["train", f"--workdir={alone}", f"--config.data.name={tiny_data}", *FIELDS, CHECK]) == 0
    two = tmp_path / "two"
    with launched(two, tiny_data, launch="--max_restarts=1") as launcher:
        wait_for_steps(two, 12, launcher)
        os.kill(worker(launcher, 1), signal.SIGKILL)
        assert launcher.wait(timeout=240) == 0, two.with_suffix(".log").read_text()[-3000:]
    log = two.with_suffix(".log").read_text()
    assert "restart 1 of 1" in log and "resuming" in log

    rows, others = (loop.Run.open(path).metrics() for path in (alone, two))
    for name in ("loss", "validation_loss"):
        curves = [[row[name] for row in run if name in row] for run in (rows, others)]
        np.testing.assert_allclose(*curves, rtol=1e-4)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    tests = [json.loads((path / "test.json").read_text()) for path in (alone, two)]
    assert tests[0]["count"] == tests[1]["count"] == 37
    assert tests[0]["confusion_matrix"] == tests[1]["confusion_matrix"]
    # the checkpoint is read, and evaluated, by one process with one device
    found, _ = evaluate.evaluate(two)
    assert found["loss"] == pytest.approx(tests[1]["loss"], rel=1e-4)
    states = [Checkpoints(path / "checkpoints") for path in (alone, two)]
    trees = [saved.read(saved.steps()[-1])["state"]["params"] for saved in states]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *trees)
    # process 1 wrote and printed nothing
    assert len(re.findall(r"^ *test, 37 images", log, re.MULTILINE)) == 1
    assert len(json.loads((two / "record.json").read_text())["devices"]) == 4


@needs_proc
@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step_and_a_hang_ends_all_with_stacks(tiny_data, tmp_path):
    folder, many = tmp_path / "run", "--config.total_epochs=2000"
    log = folder.with_suffix(".log")
    with launched(folder, tiny_data, epochs=many) as launcher:
        wait_for_steps(folder, 4, launcher)
        os.kill(worker(launcher, 1), signal.SIGTERM)
        assert launcher.wait(timeout=60) == 143, log.read_text()[-3000:]
    said = re.findall(r"process (\d) of 2: SIGTERM: saved step (\d+)", log.read_text())
    assert {index for index, _ in said} == {"0", "1"} and len({step for _, step in said}) == 1
    saved = Checkpoints(folder / "checkpoints")
    assert saved.steps()[-1] == int(said[0][1])

    # from there, until one process stands still
    with launched(folder, tiny_data, epochs=many, seconds=25) as launcher:
        wait_for_steps(folder, int(said[0][1]) + 5, launcher)
        stopped = worker(launcher, 1)
        os.kill(stopped, signal.SIGSTOP)
        started = time.monotonic()
        assert launcher.wait(timeout=120) != 0
        assert time.monotonic() - started < 110
        assert not Path(f"/proc/{stopped}").exists()
    text = log.read_text()
    assert "process 0 of 2" in text and "most recent call first" in text


BEGINNING = """
import json, sys, jax
from cnnjax.config import assign, default
from cnnjax.runs import processes
from cnnjax.runs.experiment import build
port, index, count, *configs = sys.argv[1:]
if count != "1":
    processes.join(f"127.0.0.1:{port}", int(count), int(index), hang_seconds=60)
sums = jax.jit(lambda leaves: [abs(leaf).sum() for leaf in leaves])
for fields in map(json.loads, configs):
    experiment = build(assign(default(), fields))
    state, places = experiment.init_state(), experiment.abstract_step_state
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, state, places))
    print("sums", [float(x) for x in sums(jax.tree.leaves((state.params, state.batch_stats, state.ema)))])
"""


@pytest.mark.slow
def test_processes_begin_with_the_same_given_weights_as_one(tiny_run, tmp_path):
    """What is drawn beside them, a new head or all but the whitening of airbench, spans the processes."""
    np.savez(tmp_path / "tiny.npz", **tiny_arrays(size=12))
    shared = {
        "data.name": f"npz:{tmp_path / 'tiny.npz'}",
        "data.num_validation": 10,
        "batch_size": 16,
        "ema_decay": 0.9,
    }
    given = {
        "init_from": str(tiny_run),
        "init_head": "new",
        "model": "simple_cnn(widths=(2, 3), kernel_size=3)",
    }
    nets = given, given | {"sharding": "fsdp"}, {"model": "airbench94(widths=(4, 8, 8))"}
    configs = [json.dumps(shared | net) for net in nets]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [tmp_path / f"{name}.log" for name in ("alone", "first", "second")]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        for log, index, count in zip(logs, "001", "122", strict=True):
            command = [sys.executable, "-c", BEGINNING, port, index, count, *configs]
            process = stack.enter_context(running(command, log, env))
            stack.callback(process.wait, timeout=240)
    lines = [re.findall(r"^sums \[(.*)\]$", log.read_text(), re.MULTILINE) for log in logs]
    alone, *both = [[[float(x) for x in line.split(", ")] for line in each] for each in lines]
    text = "\n".join(log.read_text() for log in logs)
    assert [len(each) for each in (alone, *both)] == [len(configs)] * 3, text[-3000:]
    for each in both:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), each, alone)


MANAGERS = {
    "Slurm": {
        "SLURM_JOB_ID": "{number}",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "{index}",
        "SLURM_LOCALID": "{index}",
    },
    "Open MPI": {
        "OMPI_MCA_orte_hnp_uri": "{job}.0;tcp://127.0.0.1,10.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "{index}",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{index}",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("manager", MANAGERS)
def test_processes_find_each_other_by_what_a_cluster_tells_them(manager, tiny_data, tmp_path):
    """The environment is that of `srun` and `mpirun`; the processes are started by hand."""
    number = os.getpid()  # the port is made of it
    train = ["train", "--distributed", f"--workdir={tmp_path / 'run'}", f"--config.data.name={tiny_data}"]
    command = [sys.executable, "-m", "cnnjax", *train, *FIELDS, "--config.total_epochs=2"]
    logs = [tmp_path / f"{index}.log" for index in range(2)]
    with contextlib.ExitStack() as stack:
        started = []
        for index, log in enumerate(logs):
            told = {
                name: value.format(number=number, index=index, job=number * 2**12)
                for name, value in MANAGERS[manager].items()
            }
            env = {**os.environ, "JAX_PLATFORMS": "cpu", **told}
            started.append(stack.enter_context(running(command, log, env)))
        codes = [process.wait(timeout=240) for process in started]
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)[-3000:]
    assert json.loads((tmp_path / "run" / "test.json").read_text())["count"] == 37
    assert len(json.loads((tmp_path / "run" / "record.json").read_text())["devices"]) == 2


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_launcher_sees_any_process_that_dies_and_ends_the_others_after_a_grace(dead, monkeypatch):
    """Also one that is not the first, whatever the first still waits for."""
    monkeypatch.setattr(children, "GRACE_SECONDS", 0.3)
    commands = [["sleep", "30"]] * 3
    commands[dead] = ["sh", "-c", "kill -9 $$"]
    started = time.monotonic()
    assert children.run(commands) == (128 + signal.SIGKILL, 0)
    assert time.monotonic() - started < 10


# Each process of a launched run says that it is there, and at SIGTERM ends with its own of the codes.
SAVING = """
import glob, os, signal, threading, time
from cnnjax.cli import main, train
train.COMMAND = ["-c", '''
import os, signal, sys, time
code = int(sys.argv[1].split(",")[int(sys.argv[-1][-1])])
signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
os.write(1, b"there\\\\n")  # at once, as the other writes to the same pipe
open("there" + sys.argv[-1][-1], "w").close()
time.sleep(60)
''']

def stop():
    while len(glob.glob("there?")) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop, daemon=True).start()
main.main(["launch", "--processes=2", "--max_restarts=2", "--", "train", "--workdir=x"])
"""


@pytest.mark.parametrize(
    ("codes", "code"), [((143, 143), 143), ((143, 1), 1), ((5, 143), 5), ((0, 143), 143)]
)
def test_a_launcher_that_got_a_signal_says_saved_only_if_all_were_and_never_restarts(codes, code, tmp_path):
    script = SAVING.replace("sys.argv[1]", repr(",".join(map(str, codes))))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "there\n" * 2), done.stderr


def test_alone_everything_is_the_first_process():
    assert processes.is_first() and not processes.joined() and processes.name() == ""
    assert processes.first_then_others(lambda: 1, lambda: 2) == 1
    caught: list[int] = []
    with processes.Stop(caught) as stop:
        assert stop.at() == 0
        caught.append(signal.SIGTERM)
        assert stop.at() == signal.SIGTERM


@pytest.mark.parametrize(("hang_seconds", "waited"), [(60, 600), (1800, 1800)])
def test_a_wait_for_process_0_is_as_long_as_a_hang_and_ends_in_one_line(hang_seconds, waited, monkeypatch):
    class Silent:
        def blocking_key_value_get(self, key, milliseconds):
            assert milliseconds == 1000 * waited
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out\nfor long")

    monkeypatch.setattr(processes, "_wait_seconds", processes.WAIT_SECONDS)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    processes.join("127.0.0.1:1", 2, 1, hang_seconds=hang_seconds)
    monkeypatch.setattr(processes, "joined", lambda: True)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "_store", Silent)
    with pytest.raises(UserError, match=rf"no word from process 0 within {waited} s \(DEADLINE.*") as told:
        processes.first_then_others(lambda: 1, lambda: 2)
    assert "\n" not in str(told.value)


HANGING = """
import os, signal, sys, time
from cnnjax.runs import processes
from cnnjax.runs.signals import caught_signals
with caught_signals() as caught, processes.Stop(caught, seconds=0.5) as stop:
    stop.runs["run"] = lambda: sys.argv[1]
    signal.raise_signal(signal.SIGTERM)
    time.sleep(100)
"""


@pytest.mark.parametrize(
    ("kept", "code", "words"),
    [("", processes.HUNG, "no step ended within 0.5 s"), ("saved step 3", 143, "SIGTERM: saved step 3")],
)
def test_a_process_that_hangs_is_ended_in_time(kept, code, words):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGING, kept], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert ("most recent call first" in done.stderr) == (code == processes.HUNG)
    assert time.monotonic() - began < 60


SILENT = """
import sys, time
from cnnjax.runs import processes
with processes.Stop([], hang_seconds=float(sys.argv[1])) as stop:
    for _ in range(4):
        time.sleep(0.5)
        stop.at()
    print("awake", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("seconds", "code"), [("0", 0), ("100", processes.HUNG)])
def test_a_run_without_a_step_is_ended_with_its_stacks(seconds, code):
    done = subprocess.run([sys.executable, "-c", SILENT, "5", seconds], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "awake\n"), done.stderr
    assert ("no step for 5 s (--hang_seconds)" in done.stderr) == bool(code)
    assert ("most recent call first" in done.stderr) == bool(code)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "--distributed"], "--workdir is missing"),
        (["launch", "--processes=2"], "usage: cnnjax launch"),
        (["launch", "--", "data"], "usage: cnnjax launch"),
        (["launch", "--processes=2", "train", "--workdir=q"], "put -- before train, as in cnnjax launch --"),
        (["launch", "train", "--config.seed=1"], "put -- before train, as in cnnjax launch -- train"),
        (["launch", "--", "train"], "--workdir is missing"),
        (["train", "--distributed", "--workdir=x", "--process_count=2"], "must be given together"),
    ],
)
def test_mistakes_are_told_before_any_process_starts(command, words, capsys):
    assert main.run(command) == 2
    assert words in capsys.readouterr().err


def test_an_index_outside_the_count_is_told():
    with pytest.raises(UserError, match="must be at least 0 and less than --process_count=2"):
        processes.join("127.0.0.1:1", 2, 2, hang_seconds=10)


LEAVING = """
import sys
from cnnjax.cli import main
from cnnjax.runs import processes
processes.join = lambda *_, **__: setattr(processes, "joined", lambda: True)
processes.leave = lambda code: print("left with", code)
sys.argv[1:] = ["train", "--workdir=x", "--config.data.name=npz:nowhere", *sys.argv[1:]]
main.main()
"""


@pytest.mark.parametrize(
    "flag", ["--distributed", "--distributed=true", "-distributed", "--distributed=1", ""]
)
def test_one_of_several_processes_leaves_them_however_the_flag_is_written(flag):
    words = [sys.executable, "-c", LEAVING, *flag.split()]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "left with 2\n" * bool(flag)), done.stderr
    assert ("process 0 of 1: config.data.name" in done.stderr) == bool(flag)
