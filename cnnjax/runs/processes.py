"""Many processes that run one program: joining, agreeing on when to stop, and ending together.

Alone, a process is the first of one: everything here then does nothing, or what it does at once.
"""

import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from cnnjax.errors import UserError

HUNG = 4  # exit code
GRACE_SECONDS = 2.0  # from SIGTERM until a process ends that has nothing to save
WAIT_SECONDS = 600  # the longest that a process waits for another's word
_GONE = -1  # in place of a number: the run ends, or the others have
_turns = itertools.count()
_T = TypeVar("_T")


def join(coordinator: str | None, count: int | None, index: int | None, *, hang_seconds: int) -> None:
    """Makes this process one of several, before anything is computed.

    Args:
      coordinator: "host:port" of process 0; None, like the two others, for what Slurm, Open MPI, Kubernetes
        or a TPU pod tells.
      count, index: how many processes there are, and which one this is.
      hang_seconds: see `watch`; a process that has not been heard of for twice as long, or 100 seconds, is
        taken for dead.

    Raises:
      UserError: where the others cannot be found.
    """
    if {coordinator, count, index} & {None} and {coordinator, count, index} != {None}:
        raise UserError("--coordinator, --process_count and --process_index are given together, or none")
    if count is not None and not 0 <= index < count:
        raise UserError(f"--process_index={index} must be at least 0 and less than --process_count={count}")
    faulthandler.enable(sys.__stderr__)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=max(10, hang_seconds),
            heartbeat_timeout_seconds=max(10, min(100, 2 * hang_seconds)),
            shutdown_timeout_seconds=max(10, hang_seconds),
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {' '.join(str(error).split())[:200]}; outside of Slurm, Open MPI, Kubernetes "
            "and TPU pods give --coordinator=HOST:PORT, --process_count and --process_index"
        ) from None


def joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not joined() or jax.process_index() == 0


def name() -> str:
    """'process 1 of 2: ' before what a process says; '' where there is one."""
    return f"process {jax.process_index()} of {jax.process_count()}: " if joined() else ""


def leave(code: int) -> None:
    """Ends this process: with the others where all of them end, at once where it has failed."""
    if joined() and code not in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a farewell would wait for processes that wait for this one
    sys.exit(code)


def first_then_others(first: Callable[[], _T], other: Callable[[], _T]) -> _T:
    """`first()` in process 0, and when that is done `other()` in the others; its error is an error of all."""
    if not joined():
        return first()
    key = f"cnnjax/turn/{next(_turns)}"
    if is_first():
        try:
            result = first()
        except Exception as error:
            _client().key_value_set(key, f"error {error}")
            raise
        _client().key_value_set(key, "done")
        return result
    word = _client().blocking_key_value_get(key, 1000 * WAIT_SECONDS)
    if word.startswith("error "):
        raise UserError(f"process 0: {word.removeprefix('error ')}")
    return other()


class Stop:
    """The moment at which all processes stop, once one of them has caught a signal.

    A run calls `at` after each step and each batch of an evaluation, the same times in each process. One that
    is told of a signal freezes at the call it has reached and says which that is; all go on to one call past
    the highest of them. So nobody waits for a step that another will not take part in.

    Where a process does not come to `at` in time, as it compiles or hangs, a thread ends it.
    """

    def __init__(self, caught: Sequence[int], *, seconds: float | None = None):
        """`caught` fills with the signals of this process.

        `seconds` is the most from a signal to the end of the process; None leaves that to `at`, as in a
        notebook. `kept`, which the run sets, is called from another thread: it waits for a save in the
        background and says what of the run is kept, '' where a step would be lost.
        """
        self.kept: Callable[[], str] = lambda: "no step was done yet; the same command begins again"
        self._caught, self._seconds = caught, seconds
        self._frozen, self._decided, self._over = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._calls, self._last, self._signum = 0, -1, 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Stop":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def at(self) -> int:
        """The signal to stop for, here and now; 0 to go on."""
        if not joined():
            return self._caught[0] if self._caught else 0
        with self._lock:
            self._calls += 1
            calls = self._calls
            if not self._frozen.is_set():
                return 0
        self._decided.wait(WAIT_SECONDS)
        return self._signum if calls >= self._last else 0

    def _run(self) -> None:
        signum = self._first_signal()
        if signum == _GONE:
            return
        start = time.monotonic()
        if joined():
            self._agree(signum)
        if self._seconds is None:
            return
        # Alone, and with nothing to lose, no need to wait for the end of a compilation.
        if not joined() and not self._over.wait(min(GRACE_SECONDS, self._seconds)) and (kept := self.kept()):
            self._end(signum, kept)
        last = start + self._seconds + (GRACE_SECONDS if joined() and is_first() else 0)  # others need it
        if not self._over.wait(max(0.0, last - time.monotonic())):
            self._end(signum, self.kept())

    def _first_signal(self) -> int:
        """The signal of this process or of another, as soon as there is one."""
        # Asked for again and again: a thread that waits inside of JAX cannot be ended.
        while not self._over.wait(0.1):
            if self._caught:
                if joined():
                    _client().key_value_set("cnnjax/stop", str(self._caught[0]), allow_overwrite=True)
                return self._caught[0]
            if joined() and (found := _number("cnnjax/stop")) is not None:
                return found
        return _GONE

    def _agree(self, signum: int) -> None:
        with self._lock:
            self._frozen.set()
            mine = self._calls
        _client().key_value_set(f"cnnjax/at/{jax.process_index()}", str(mine))
        reached = [self._calls_of(i) for i in range(jax.process_count())]
        if _GONE not in reached:
            self._last, self._signum = max(reached) + 1, signum
            self._decided.set()

    def _calls_of(self, index: int) -> int:
        while not self._over.wait(0.1):
            if (found := _number(f"cnnjax/at/{index}")) is not None:
                return found
        return _GONE

    def _end(self, signum: int, kept: str) -> None:
        """Ends the process from a thread beside the main one."""
        where = f"cnnjax: {name()}{signal.Signals(signum).name}: "
        if kept:
            sys.stderr.write(f"{where}{kept}\n")
            sys.stderr.flush()
            os._exit(128 + signum)
        sys.stderr.write(
            f"{where}no step ended within {self._seconds:g} s (--stop_seconds); what was saved before is "
            "unharmed, later steps are lost; the stacks of the threads follow\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        os._exit(HUNG)


def _number(key: str) -> int | None:
    """The number under a key that all processes share; None as long as there is none, or `_GONE`."""
    try:
        return int(_client().key_value_try_get(key))
    except jax.errors.JaxRuntimeError as error:
        return None if "NOT_FOUND" in str(error) else _GONE  # the others are gone


class Watch:
    """Ends the process with the stacks of all its threads where it has been silent for too long."""

    def __init__(self, seconds: float, where: str):
        self._seconds, self._where, self._last = seconds, where, time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def beat(self) -> None:
        self._last = time.monotonic()

    def _run(self) -> None:
        while (left := self._last + self._seconds - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
        sys.stderr.write(
            f"cnnjax: {self._where}no step for {self._seconds:g} s (--hang_seconds): this process hangs, or "
            "one that it waits for; the stacks of its threads follow\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        os._exit(HUNG)


_watch: Watch | None = None


def watch(seconds: float) -> None:
    """From now on `beat` must be heard every so many seconds."""
    global _watch
    _watch = Watch(seconds, name())


def beat() -> None:
    """Work goes on."""
    if _watch:
        _watch.beat()


def _client() -> Any:
    """JAX's key-value store that all processes share; it has no public name yet."""
    from jax._src import distributed

    return distributed.global_state.client
