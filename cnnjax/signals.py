"""Signals that end a run: caught, so that it can save first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(RuntimeError):
    """A signal ended training, after a save; `signum` is the signal."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """The signals SIGINT and SIGTERM that have come; a second one ends the process at once."""
    caught: list[int] = []

    def note(signum: int, _frame: Any) -> None:
        if caught:
            os._exit(128 + signum)
        caught.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may set handlers
        return
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
