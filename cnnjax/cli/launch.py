"""Several processes of one command on this machine, ended and restarted together."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from cnnjax.runs.signals import caught_signals

# A restart would not help: a usage error, a non-finite loss, a signal.
FINAL = (0, 2, 3, 128 + signal.SIGINT, 128 + signal.SIGTERM)
GRACE_SECONDS = 30.0


def launch(
    command: Sequence[str], processes: int, *, max_restarts: int = 0, grace: float = GRACE_SECONDS
) -> int:
    """Runs `cnnjax COMMAND` in several connected processes; returns the exit code.

    If one fails, the others have `grace` seconds to end before they are killed. Then, up to `max_restarts`
    times, all are started again, and a training run resumes from its newest checkpoint.
    """
    for attempt in range(max_restarts + 1):
        code = _run_once(command, processes, grace)
        if code in FINAL or attempt == max_restarts:
            return code
        print(
            f"cnnjax: exit code {code}; restart {attempt + 1} of {max_restarts}", file=sys.stderr, flush=True
        )
    return code


def _run_once(command: Sequence[str], count: int, grace: float) -> int:
    port = _free_port()
    shared = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--process_count={count}"]
    children = []
    with caught_signals() as caught:
        try:
            for index in range(count):
                own = [sys.executable, "-m", "cnnjax", *command, *shared, f"--process_index={index}"]
                children.append(subprocess.Popen(own))
            return _wait(children, caught, grace)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


def _wait(children: Sequence[subprocess.Popen[bytes]], caught: list[int], grace: float) -> int:
    """Waits until all have ended, or one has failed and the grace is over; the first failure's exit code."""
    passed_on, failed, deadline = 0, 0, float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        if caught and not passed_on:
            passed_on = caught[0]
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(passed_on)
        bad = [child.returncode for child in children if child.returncode]
        if bad and not failed:
            failed, deadline = bad[0], time.monotonic() + grace
        time.sleep(0.1)
    failed = failed or next((child.returncode for child in children if child.returncode), 0)
    return 128 - failed if failed < 0 else failed


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
