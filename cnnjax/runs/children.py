"""Processes that a command starts: they get its signals, and end with it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from cnnjax.runs import signals

GRACE_SECONDS = 30.0  # for the others to end if one has failed
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def run(commands: Sequence[Sequence[str]], variables: Sequence[Mapping[str, str]] = ()) -> tuple[int, int]:
    """Runs commands side by side, with environment variables for each; their exit code, and a signal or 0.

    A signal that comes meanwhile is passed on once, and each process decides how it ends: the code is 128 + n
    if all that failed ended by that signal, else that of the first other failure.
    """
    children: list[subprocess.Popen[bytes]] = []
    with signals.caught_signals() as caught:
        try:
            for number, command in enumerate(commands):
                own = os.environ | (variables[number] if variables else {})
                with signals.blocked():  # until it watches them; a group of its own, as Ctrl-C is passed on
                    children.append(
                        subprocess.Popen(command, env=own, process_group=0, preexec_fn=_end_with_parent)
                    )
            return _wait(children, caught)
        finally:
            _kill(children)


def _wait(children: Sequence[subprocess.Popen[bytes]], caught: list[int]) -> tuple[int, int]:
    """Waits until all have ended, or one has failed and the grace is over; see `run`."""
    told, deadline, failed = list[int](), float("inf"), dict[int, int]()
    while None in [child.poll() for child in children] and time.monotonic() < deadline:
        if caught:
            told.append(caught.pop())
            for child in children:
                child.send_signal(told[-1])
        failed = _failures(children, failed)
        if failed and deadline == float("inf"):
            deadline = time.monotonic() + GRACE_SECONDS
        time.sleep(0.1)
    _kill(children)
    codes = list(_failures(children, failed).values())
    others = [code for code in codes if code - 128 not in told]
    return next(iter(others + codes), 0), told[-1] if told else 0


def _failures(children: Sequence[subprocess.Popen[bytes]], before: Mapping[int, int]) -> dict[int, int]:
    """The exit codes of those that failed by process id, in the order in which they were seen."""
    codes = {child.pid: child.returncode for child in children if child.returncode}
    return {**before, **{pid: 128 - code if code < 0 else code for pid, code in codes.items()}}


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()  # if it still runs
        child.wait()


def _end_with_parent() -> None:
    """Lets this process get SIGTERM when the one that started it is killed, where the system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
