"""How a command begins and ends: signals at any moment, odd streams, places that cannot be used."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cnnjax.runs import signals

# The command, which gets a signal at the moment when it imports a module.
AT_IMPORT = """
import os, sys, time
module, signum = sys.argv[1], int(sys.argv[2])
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signum)
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
        ("models", "flax.linen", signal.SIGINT),
    ],
)
def test_a_signal_ends_every_command_in_one_line_while_it_imports(command, module, signum, tmp_path):
    line = [sys.executable, "-c", AT_IMPORT, module, str(int(signum)), *command.split()]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 128 + signum
    assert done.stderr == f"cnnjax: {signum.name}: interrupted; there was nothing to save\n"
    assert not list(tmp_path.iterdir())


def test_a_signal_that_comes_too_late_for_a_run_is_not_lost():
    with pytest.raises(KeyboardInterrupt), signals.caught_signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        while not caught:
            time.sleep(0.001)
    with signals.caught_signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        while not caught:
            time.sleep(0.001)
        caught.clear()  # as who has dealt with it does
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_of_another_thread_are_left_alone():
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
    os.kill(os.getpid(), signal.SIGTERM)
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
