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
WAIT_SECONDS = 600  # the longest that a process waits for another's word
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
    """The step at which all processes stop, once one of them has caught a signal.

    A process that is told by another freezes at the step it has reached and says which that is; all go on to
    one step past the highest of them. So nobody waits for a step that another will not take part in.
    """

    def __init__(self, caught: Sequence[int], step: int):
        """`caught` fills with the signals of this process; `step` steps are done."""
        self._caught, self._step = caught, step
        self._frozen, self._decided, self._over = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._last, self._signum, self._told = -1, 0, False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Stop":
        if joined():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def at(self, step: int) -> int:
        """The signal to stop for after so many steps; 0 to go on."""
        if not joined():
            return self._caught[0] if self._caught else 0
        if self._caught and not self._told:
            self._told = True
            _client().key_value_set("cnnjax/stop", str(self._caught[0]), allow_overwrite=True)
        with self._lock:
            if not self._frozen.is_set():
                self._step = step
                return 0
        self._decided.wait(WAIT_SECONDS)
        return self._signum if step >= self._last else 0

    def _listen(self) -> None:
        signum = self._word("cnnjax/stop")
        if signum is None:
            return
        with self._lock:
            self._frozen.set()
            mine = self._step
        _client().key_value_set(f"cnnjax/at/{jax.process_index()}", str(mine))
        reached = [self._word(f"cnnjax/at/{i}") for i in range(jax.process_count())]
        if None not in reached:
            self._last, self._signum = max(reached) + 1, signum
            self._decided.set()

    def _word(self, key: str) -> int | None:
        """The number under a key, as soon as there is one; None where the run ends before."""
        # Asked for again and again: a thread that waits inside of JAX cannot be ended.
        while not self._over.wait(0.2):
            try:
                return int(_client().key_value_try_get(key))
            except jax.errors.JaxRuntimeError as error:
                if "NOT_FOUND" not in str(error):
                    return None  # the others are gone
        return None


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
