"""How a command begins and ends: signals at any moment, odd streams, places that cannot be used."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cnnjax.cli import main
from cnnjax.runs import signals
from tests import ROOT

# The command, which gets a signal at the moment when it imports a module.
AT_IMPORT = """
import signal, sys, time
module, signum = sys.argv[1], int(sys.argv[2])
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            signal.raise_signal(signum)
            time.sleep(20)
sys.meta_path.insert(0, Finder())
from cnnjax.__main__ import main
sys.argv[1:] = sys.argv[3:]
main()
"""


@pytest.mark.parametrize(
    ("command", "module", "signum"),
    [
        ("--help", "cnnjax.cli.main", signal.SIGINT),
        ("--help", "cnnjax.cli.main", signal.SIGTERM),
        ("train --print_config", "absl.flags", signal.SIGINT),
        ("train", "jax", signal.SIGTERM),
        ("data", "rich.table", signal.SIGTERM),
        ("models simple_cnn", "flax.linen", signal.SIGINT),
        ("data", "glob", signal.SIGTERM),  # while the module that removes unfinished files is imported
    ],
)
def test_a_signal_ends_every_command_in_one_line_while_it_imports(command, module, signum, tmp_path):
    line = [sys.executable, "-c", AT_IMPORT, module, str(int(signum)), *command.split()]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 128 + signum
    assert done.stderr == f"cnnjax: {signum.name}: interrupted; nothing to save\n"
    assert not list(tmp_path.iterdir())


def test_a_signal_while_python_itself_ends_changes_nothing():
    code = "import atexit, os, signal, sys, time; atexit.register(time.sleep, 0.5)"
    code += "; atexit.register(os.kill, os.getpid(), signal.SIGTERM); sys.argv[1:] = ['--help']"
    code += "; from cnnjax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "usage" in done.stdout


@pytest.fixture
def python_handler():
    """Python's own handler of SIGINT, which is absent if these tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_comes_too_late_for_a_run_is_not_lost(python_handler):
    with pytest.raises(KeyboardInterrupt), signals.caught_signals() as caught:
        signal.raise_signal(signal.SIGINT)
        while not caught:
            time.sleep(0.001)
    with signals.caught_signals() as caught:
        signal.raise_signal(signal.SIGINT)
        while not caught:
            time.sleep(0.001)
        caught.clear()  # as who has dealt with it does
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_of_another_thread_are_left_alone(python_handler):
    seen: list[list[int]] = []

    def run() -> None:
        with signals.caught_signals() as caught:
            seen.append(caught)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [[]] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Ends by a signal while it writes a file and a process that it has started runs.
HALFWAY = """
import os, signal, subprocess, sys, time
from pathlib import Path
from cnnjax.runs import signals
signals.end_at_once()
from cnnjax.data.files import replacing, scratch_folder
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with replacing(Path(sys.argv[1])) as part, scratch_folder() as folder:
    part.write_text("half")
    print(child.pid, folder, flush=True)
    signal.raise_signal(signal.SIGTERM)
    time.sleep(20)
"""


def test_a_signal_leaves_no_unfinished_files_and_no_processes(tmp_path):
    line = [sys.executable, "-c", HALFWAY, str(tmp_path / "x.txt")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143
    child, folder = done.stdout.split()
    assert not list(tmp_path.iterdir()) and not Path(folder).exists()
    if sys.platform == "linux":
        for _ in range(100):
            if not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes():
                break
            time.sleep(0.05)
        else:
            pytest.fail("the child runs on")


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> dict[str, str]:
    """Places where nothing can be read or written, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "file").write_text("x")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("gone/gone")
    return {
        "a name too long": str(folder / ("x" * 300)),
        "a path too long": str(folder) + "/x" * 3000,
        "below a file": str(folder / "file" / "x"),
        "a NUL": f"{folder}/a\0b",
        "a loop of links": str(folder / "loop" / "x"),
        "a link to nothing": str(folder / "nowhere" / "x"),
        "of the system": "/proc/x/y",
    }


PLACES = [
    *("a name too long", "a path too long", "below a file", "a NUL", "a loop of links", "a link to nothing"),
    "of the system",
]
DOORS = {
    "train": ["train", "--workdir={}", "--config.data.name={data}", "--config.data.num_validation=10"],
    "train --config": ["train", "--config={}"],
    "train data": ["train", "--config.data.name=folder:{}", "--workdir={tmp}/run"],
    "train npz": ["train", "--config.data.name=npz:{}", "--workdir={tmp}/run"],
    "train init_from": [
        *("train", "--config.data.name={data}", "--config.init_from={}"),
        "--workdir={tmp}/run",
    ],
    "sweep": ["sweep", "--out={}", "--config.data.name={data}", "--config.data.num_validation=10"],
    "evaluate": ["evaluate", "--workdir={}"],
    "evaluate --data": ["evaluate", "--workdir={run}", "--data=folder:{}"],
    "predict": ["predict", "--workdir={run}", "{}"],
    "predict --workdir": ["predict", "--workdir={}", "{file}"],
    "predict --out": ["predict", "--workdir={run}", "--explain", "--out={}", "{file}"],
    "predict --class_names": ["predict", "--workdir={run}", "--class_names={}", "{file}"],
    "report": ["report", "{}"],
    "report --out": ["report", "{run}", "--out={}.html"],
    "export": ["export", "--workdir={run}", "--out={}.safetensors"],
    "export --workdir": ["export", "--workdir={}", "--out={tmp}/x.safetensors"],
    "weights import": ["weights", "import", "{}", "--model=resnet18", "--workdir={tmp}/imported"],
    "data prepare": ["data", "prepare", "{data}", "--out={}"],
    "data inspect": ["data", "inspect", "{data}", "--out={}.png"],
    "data --dir": ["data", "inspect", "mnist", "--dir={}"],
    "checkpoint": ["checkpoint", "verify", "--workdir={}"],
    "replay": ["replay", "--workdir={}"],
    "explore": ["explore", "--workdir={}", "--port=0"],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("door", DOORS)
def test_a_place_that_cannot_be_used_is_told_in_one_line(
    door, place, odd, tiny_run, tiny_data, tmp_path, capfd, monkeypatch
):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    words = [
        word.replace("{}", odd[place]).format(run=tiny_run, data=tiny_data, tmp=tmp_path, file="image.png")
        for word in DOORS[door]
    ]
    code = main.run(words)
    error = capfd.readouterr().err
    assert code == (1 if "cannot be written or read: " in error else 2), error  # who says so is the system
    assert error.startswith("cnnjax: ") and error.count("\n") == 1, error


DAMAGED = {  # the file that is damaged, the command, its exit code
    "predict": ("image.png", "predict --workdir={run} {image}", 2),
    "evaluate": ("manifest.json", "evaluate --workdir={run}", 2),
    "record": ("record.json", "evaluate --workdir={run}", 2),
    "config": ("config.json", "report {run}", 2),
    "list": ("manifest.json", "checkpoint list --workdir={run}", 1),
    "verify": ("manifest.json", "checkpoint verify --workdir={run}", 1),
    "unwritable": ("image.png", "data inspect fashion_mnist_mini --out=/proc/x.png", 1),
}


@pytest.mark.filterwarnings("ignore:checkpoint .* skipped")
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_ends_with_2_and_what_the_system_refuses_with_1(case, tiny_run, tmp_path, capfd):
    name, command, code = DAMAGED[case]
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (image := run / "image.png").touch()
    for file in run.rglob(name):
        file.write_bytes(b"\x89")
    assert main.run(command.format(run=run, image=image).split()) == code
    assert capfd.readouterr().err.count("\n") == (case not in ("list", "verify"))


STREAMS = {
    "full": ("{} > /dev/full", 1, "cnnjax: the output cannot be written: No space left on device\n"),
    "closed output": ("{} >&-", 0, ""),
    "closed input": ("{} <&- >/dev/null", 0, ""),
    "closed input, strict": ("PYTHONWARNINGS=error {} <&- >/dev/null", 0, ""),
    "no streams": ("{} <&- >&- 2>&-", 0, ""),
    "nobody reads": ("{} | true; exit ${{PIPESTATUS[0]}}", 1, ""),
    "ascii": ("PYTHONIOENCODING=ascii {} > /dev/null", 0, ""),
    "C": ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {} > /dev/null", 0, ""),
    "narrow": ("COLUMNS=20 {} > /dev/null", 0, ""),
    "no width": ("COLUMNS=0 TERM=dumb {} > /dev/null", 0, ""),
    "no home": ("env -u HOME {} > /dev/null", 0, ""),
    "folder gone": ("mkdir x; cd x; rmdir ../x; {} > /dev/null", 0, ""),
    "mistake, full": ("{} --oops 2> /dev/full", 2, ""),
    "mistake, closed": ("{} --oops 2>&-", 2, ""),
    "dropped preload": ("LD_PRELOAD=/nowhere.so {} 2> /dev/null > /dev/null", 0, ""),
}


@pytest.mark.parametrize("case", STREAMS)
def test_odd_streams_and_surroundings(case, tmp_path):
    script, code, error = STREAMS[case]
    slow = "import sys, time; time.sleep(0.3); " if case == "nobody reads" else ""
    program = (
        f"{slow}from cnnjax.__main__ import main; import sys; sys.argv = ['cnnjax', *sys.argv[1:]]; main()"
    )
    command = f'{sys.executable} -c "{program}" data'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script.format(command)], capture_output=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr.decode()) == (code, error)
    assert "oops" not in done.stdout.decode()
