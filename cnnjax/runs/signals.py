"""Signals, seen at once by a thread whatever the main one does: they end a process, or a run that saves.

Handlers raise nothing, so that no foreign code is interrupted. Imports little: the command watches first.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_acts: list[Callable[[int], None]] = []  # the last one is what a signal does now
_ending = threading.Lock()


class Interrupted(RuntimeError):
    """A signal `signum` ended training, after a save."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def end_at_once() -> None:
    """From now on SIGINT and SIGTERM end this process in one line, but for `caught_signals`."""
    if not _acts:
        _watch(lambda signum: end(signum, "interrupted; nothing to save"))


def ignore() -> None:
    """From now on no signal changes what a command has ended with, while Python itself ends."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """A list that fills with SIGINT and SIGTERM as they come; the second ends the process.

    One that is still in the list at the end has come too late, and does what it does outside.
    """
    caught: list[int] = []

    def catch(signum: int) -> None:
        if caught:
            end(signum, "ended by a second signal; earlier checkpoints are intact")
        caught.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may set handlers
        return
    stop = _watch(catch)
    try:
        yield caught
    finally:
        stop()
    if caught and _acts:
        _acts[-1](caught[0])
    elif caught:
        signal.raise_signal(caught[0])


@contextlib.contextmanager
def blocked(signals: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Processes and threads that start meanwhile see the signals only when they watch them, if ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(act: Callable[[int], None]) -> Callable[[], None]:
    """Lets `act` see each signal, in a thread, until the function that is returned is called."""
    _acts.append(act)
    if len(_acts) > 1:
        for signum in SIGNALS:
            signal.signal(signum, signal.getsignal(signum))  # again: jax.distributed takes SIGTERM for itself
        return lambda: _acts.remove(act)
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while numbers := os.read(read, 64):
            for signum in (n for n in numbers if n in SIGNALS):
                _acts[-1](signum)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    # The interpreter writes a signal's number to the pipe at once; handlers wait for the main thread.
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = {s: signal.signal(s, lambda *_: None) for s in SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # see `blocked`

    def stop() -> None:
        signal.set_wakeup_fd(wakeup)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(write)
        watcher.join()
        os.close(read)
        _acts.remove(act)

    return stop


def end(signum: int, message: str) -> NoReturn:
    """Ends the process by a signal, from any thread, with a line that says why."""
    leave(128 + signum, f"cnnjax: {signal.Signals(signum).name}: {message}\n")


def leave(code: int, line: str, last: Callable[[], None] = lambda: None) -> NoReturn:
    """Ends the process and those that it started, from any thread; unfinished files are removed.

    `last` is called after the line is written.
    """
    _ending.acquire()  # never released: a second thread that ends the process waits for the first
    with contextlib.suppress(OSError):
        if terminal := next((fd for fd in (1, 2) if os.isatty(fd)), None):
            os.write(terminal, b"\x1b[?25h\n")  # a progress bar hides the cursor
        os.write(2, line.encode(errors="backslashreplace"))
        last()
    try:
        if files := sys.modules.get("cnnjax.data.files"):
            files.remove_unfinished()
        for child in _children():
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGTERM)
    finally:
        os._exit(code)  # whatever fails: a module may be halfway through its import


def _children() -> list[int]:
    """The processes that this one has started, where the system lists them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", encoding="utf-8") as file:
                found += map(int, file.read().split())
    return found
