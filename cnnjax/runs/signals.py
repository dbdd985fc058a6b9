"""Signals that end a run, seen at once whatever the main thread does, so that it can save first."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(RuntimeError):
    """A signal `signum` ended training, after a save."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """A list that a thread fills with SIGINT and SIGTERM as they come; the second ends the process."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may set handlers
        return
    read, write = socket.socketpair()
    write.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(read, caught), daemon=True)
    watcher.start()
    # The interpreter writes a signal's number to the socket at once; handlers wait for the main thread.
    wakeup = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    before = {s: signal.signal(s, lambda *_: None) for s in SIGNALS}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(wakeup)
        write.close()
        watcher.join()
        read.close()


def _watch(read: socket.socket, caught: list[int]) -> None:
    while numbers := read.recv(64):
        for signum in (n for n in numbers if n in SIGNALS):
            if caught:
                os._exit(128 + signum)
            caught.append(signum)
