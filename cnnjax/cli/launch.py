"""`cnnjax launch`: several processes of one training run on this machine, ended and restarted together."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Annotated as Flag

from cnnjax.cli.flags import ANY_NUMBER, command
from cnnjax.cli.train import SHARED_FOLDER
from cnnjax.errors import UserError
from cnnjax.runs.signals import caught_signals

# A restart would not help: a usage error, a non-finite loss, a signal.
FINAL = (0, 2, 3, 128 + signal.SIGINT, 128 + signal.SIGTERM)
GRACE_SECONDS = 30.0  # for the others to end if one has failed


@command("launch", words=ANY_NUMBER)
def launch(
    words: list[str],
    *,
    processes: Flag[int, "number of processes", 1] = 1,
    max_restarts: Flag[int, "restarts after a crash", 0] = 0,
) -> int:
    """Runs `cnnjax train` in several processes on this machine."""
    if words[:1] != ["train"]:
        raise UserError("usage: cnnjax launch --processes=N [--max_restarts=M] -- train --workdir=DIR ...")
    if not any(word.startswith("--workdir") for word in words):
        raise UserError(f"--workdir is missing; {SHARED_FOLDER}")
    code = _run_once(words, processes)
    for restart in range(1, max_restarts + 1):
        if code in FINAL:
            break
        print(f"cnnjax: exit code {code}; restart {restart} of {max_restarts}", file=sys.stderr, flush=True)
        code = _run_once(words, processes)
    return code


def _run_once(command: Sequence[str], count: int) -> int:
    """The exit code of connected processes; a training run resumes from its newest checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--process_count={count}"]
    children = []
    with caught_signals() as caught:
        try:
            for index in range(count):
                own = [sys.executable, "-m", "cnnjax", *command, *shared, f"--process_index={index}"]
                children.append(subprocess.Popen(own))
            return _wait(children, caught)
        finally:
            for child in children:
                child.kill()  # if it still runs
                child.wait()


def _wait(children: Sequence[subprocess.Popen[bytes]], caught: list[int]) -> int:
    """Waits until all have ended, or one has failed and the grace is over; the first failure's exit code."""
    passed_on, failed, deadline = 0, 0, float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        if caught and not passed_on:
            passed_on = caught[0]
            for child in children:
                child.send_signal(passed_on)
        bad = [child.returncode for child in children if child.returncode]
        if bad and not failed:
            failed, deadline = bad[0], time.monotonic() + GRACE_SECONDS
        time.sleep(0.1)
    failed = failed or next((child.returncode for child in children if child.returncode), 0)
    return 128 - failed if failed < 0 else failed
