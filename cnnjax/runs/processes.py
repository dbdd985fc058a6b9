"""Several processes that run one program: joining, agreeing on when to stop, and ending in time.

A process alone is the first of one: nothing here then waits for another.
"""

import contextlib
import faulthandler
import functools
import importlib.util
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import distributed

from cnnjax.errors import UserError, extra, one_line, visible
from cnnjax.runs import node, signals

ADDRESS, HOST_PORT = "JAX_COORDINATOR_ADDRESS", r"(\[.+\]|[^:]+):\d+"  # JAX reads the variable
HUNG = 4  # exit code
NO_STEP = "no step was completed"
GRACE_SECONDS = 2.0  # from SIGTERM until a process ends that has nothing to save
WAIT_SECONDS = 600  # the longest that a process waits for another's word, unless `join` is given more
_wait_seconds = WAIT_SECONDS
_turns = itertools.count()  # every process takes the same turns, so the numbers agree
_T = TypeVar("_T")


def join(coordinator: str | None, count: int | None, index: int | None, *, hang_seconds: int) -> None:
    """Makes this process one of several, before anything is computed.

    `coordinator` is "host:port" of process 0; all three are None if Slurm, Open MPI, Kubernetes or a TPU pod
    says them, and are not asked for if they are given. The process takes all GPUs of its machine, or of
    several there its share, see `node.own_gpus`; $JAX_LOCAL_DEVICE_IDS names others. A process that is silent
    for twice `hang_seconds` (see `Stop`), or for 100, counts as dead.
    """
    if {coordinator, count, index} & {None} and {coordinator, count, index} != {None}:
        raise UserError("--coordinator, --process_count and --process_index must be given together")
    if (given := coordinator or os.environ.get(ADDRESS, "")) and not re.fullmatch(HOST_PORT, given):
        source = "--coordinator" if coordinator else ADDRESS
        raise UserError(f"{source}={given} must be HOST:PORT of process 0, as in 10.0.0.1:8476")
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(f"--process_index={index} must be at least 0 and less than --process_count={count}")
    global _wait_seconds
    _wait_seconds = max(WAIT_SECONDS, hang_seconds)
    faulthandler.enable(2)  # whatever stands for sys.stderr
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # None would be one GPU, that of the place among the processes of a machine; [] is all.
    own = None if os.environ.get("JAX_LOCAL_DEVICE_IDS") else node.own_gpus()
    detection, patience = _detection(coordinator), max(10, hang_seconds)
    try:
        jax.distributed.initialize(
            *(coordinator, count, index, own),
            cluster_detection_method=detection,
            initialization_timeout=patience,
            heartbeat_timeout_seconds=max(10, min(100, 2 * hang_seconds)),
            shutdown_timeout_seconds=patience,
        )
    except Exception as error:  # what asks a cluster raises whatever its client does
        plain = isinstance(error, (ValueError, RuntimeError))  # else the words alone may say little
        cause = one_line(error) if plain else f"{type(error).__name__}: {one_line(error)}"
        advice = (
            "with a free port" if coordinator else "or start it by srun, mpirun, a JobSet or on a TPU pod"
        )
        flags = "give --coordinator=HOST:PORT of process 0, --process_count and --process_index"
        raise UserError(f"--distributed: {cause}; {flags}, {advice}") from None


def _detection(coordinator: str | None) -> str | None:
    """Which cluster JAX asks; a UserError for a pod of Kubernetes without the package that asks there."""
    if coordinator:
        return "deactivate"
    others = any(name in os.environ for name in ("SLURM_PROCID", "OMPI_MCA_orte_hnp_uri", "TPU_WORKER_ID"))
    pod = "KUBERNETES_SERVICE_HOST" in os.environ and not others
    if pod and not importlib.util.find_spec("kubernetes"):
        advice = f"{extra('kubernetes')}, or give --coordinator, --process_count and --process_index"
        raise UserError(f"--distributed: this Kubernetes pod lacks the package kubernetes; {advice}")
    return None


def joined() -> bool:
    """Whether this process is one of several."""
    # Not jax.process_count(), which starts the devices, and fails if that fails.
    return jax.distributed.is_initialized() and distributed.global_state.num_processes > 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not joined() or jax.process_index() == 0


def name() -> str:
    """The prefix of what a process prints: 'process 1 of 2: ', or '' if it is alone."""
    state = distributed.global_state
    return f"process {state.process_id} of {state.num_processes}: " if joined() else ""


def leave(code: int) -> NoReturn:
    """Exits: together with the others if all end, at once if this one has failed."""
    if joined() and code not in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a farewell would wait for processes that wait for this one
    sys.exit(code)


def first_then_others(first: Callable[[], _T], other: Callable[[], _T]) -> _T:
    """`first()` in process 0, then `other()` in the others; an error in process 0 is raised in all.

    UserError in a process that has waited too long, at least `WAIT_SECONDS`, or `hang_seconds` of `join`.
    """
    if not joined():
        return first()
    key = f"cnnjax/turn/{next(_turns)}"
    if is_first():
        try:
            result = first()
        except Exception as error:
            _store().key_value_set(key, f"error {visible(error)}")
            raise
        _store().key_value_set(key, "done")
        return result
    try:
        word = _store().blocking_key_value_get(key, 1000 * _wait_seconds)
    except jax.errors.JaxRuntimeError as error:
        hint = "see what it printed, or raise --hang_seconds"
        problem = f"{name()}no word from process 0 within {_wait_seconds} s ({one_line(error)})"
        raise UserError(f"{problem}; {hint}") from None
    if word.startswith("error "):
        raise UserError(f"process 0: {word.removeprefix('error ')}")
    return other()


class Stop:
    """Decides when a run stops for a signal, and ends a process that does not stop, or hangs.

    A run calls `at` after each step and each batch of an evaluation, equally often in each process. Once one
    process has caught a signal, each freezes at the call it has reached and publishes its number; all go on
    to one call past the highest: nobody waits for a step that another does not take. A thread ends a process
    that does not reach that call in time, as while it compiles, or does not call `at` for too long.
    """

    def __init__(
        self,
        caught: Sequence[int],
        again: str = "the same command",
        *,
        seconds: float | None = None,
        hang_seconds: float | None = None,
    ):
        """Starts nothing yet. `runs` has by folder what says what a run under way has saved: `NO_STEP`, or ''
        if a step would be lost.

        `caught` fills with the signals of this process; `again` is what resumes the run. The limits, None for
        none: `seconds` from a signal to the end of the process, and `hang_seconds` from one call of `at` to
        the next.
        """
        self.again = again
        self.runs: dict[Path, Callable[[], str]] = {}
        self._caught, self._seconds, self._hang_seconds = caught, seconds, hang_seconds
        self._frozen, self._decided, self._over = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._calls, self._last, self._signum = 0, -1, 0
        self._last_call = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Stop":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def kept(self) -> str:
        """What is kept if the process ends now; '' if a run would lose a step."""
        saved = {kept() for kept in tuple(self.runs.values())} or {NO_STEP}
        resumes = "starts again" if saved == {NO_STEP} else "resumes there"
        return f"{', '.join(sorted(saved))}; {self.again} {resumes}" if all(saved) else ""

    def interrupted(self, signum: int) -> signals.Interrupted:
        """The error that ends a run for a signal; it says what is kept."""
        return signals.Interrupted(signum, f"{signal.Signals(signum).name}: {self.kept()}")

    def at(self) -> int:
        """The signal to stop for at this call; 0 to continue."""
        self._last_call = time.monotonic()
        if not joined():
            return self._caught[0] if self._caught else 0
        with self._lock:
            self._calls += 1
            calls = self._calls
            if not self._frozen.is_set():
                return 0
        self._decided.wait(_wait_seconds)
        return self._signum if calls >= self._last else 0

    def _run(self) -> None:
        with contextlib.suppress(_Over):
            signum = self._poll(self._first_signal)
            start = time.monotonic()
            if joined():
                with contextlib.suppress(_Over):  # the others may have ended; this process still must
                    self._agree(signum)
            if self._seconds is not None:
                self._end_in_time(signum, start + self._seconds)
            self._poll(lambda: None)

    def _poll(self, read: Callable[[], int | None]) -> int:
        """The first number that `read` returns; polled, as a thread that waits inside JAX cannot be ended."""
        while not self._over.wait(0.1):
            if self._hang_seconds and time.monotonic() - self._last_call > self._hang_seconds:
                limit = f"{self._hang_seconds:g} s (--hang_seconds)"
                _abort(f"{name()}no step for {limit}: this process hangs, or waits for one that does")
            if (number := read()) is not None:
                return number
        raise _Over

    def _first_signal(self) -> int | None:
        """The signal of this process, which the others then see, or that of another."""
        if self._caught:
            if joined():
                _store().key_value_set("cnnjax/stop", str(self._caught[0]), allow_overwrite=True)
            return self._caught[0]
        return _shared_number("cnnjax/stop") if joined() else None

    def _agree(self, signum: int) -> None:
        with self._lock:
            self._frozen.set()
            mine = self._calls
        _store().key_value_set(f"cnnjax/at/{jax.process_index()}", str(mine))
        keys = [f"cnnjax/at/{index}" for index in range(jax.process_count())]
        self._last = 1 + max(self._poll(functools.partial(_shared_number, key)) for key in keys)
        self._signum = signum
        self._decided.set()

    def _end_in_time(self, signum: int, deadline: float) -> None:
        """Ends the process at the deadline; earlier if it is alone and nothing is lost by that."""
        grace = min(GRACE_SECONDS, deadline - time.monotonic())
        if joined():
            deadline += GRACE_SECONDS if is_first() else 0  # the others need process 0 to the end
        elif not self._over.wait(max(0.0, grace)) and (kept := self.kept()):
            self._exit(signum, kept)
        if not self._over.wait(max(0.0, deadline - time.monotonic())):
            self._exit(signum, self.kept())

    def _exit(self, signum: int, kept: str) -> None:
        """Ends the process, from this thread beside the main one."""
        prefix = f"{name()}{signal.Signals(signum).name}: "
        if not kept:
            line = f"{prefix}no step ended within {self._seconds:g} s (--stop_seconds)"
            _abort(f"{line}; earlier checkpoints are intact, later steps are lost")
        signals.leave(128 + signum, f"cnnjax: {prefix}{visible(kept)}\n")


class _Over(Exception):
    """There is no more to wait for: the run or the other processes have ended."""


def _abort(message: str) -> NoReturn:
    """Ends a process that hangs, with the stacks of its threads; `faulthandler`'s own timer exits with 1."""
    line = f"cnnjax: {message}; stack traces follow\n"
    signals.leave(HUNG, line, lambda: faulthandler.dump_traceback(2, all_threads=True))


def _store() -> Any:
    """JAX's key-value store that all processes share; it has no public name yet."""
    return distributed.global_state.client


def _shared_number(key: str) -> int | None:
    """The number under a key of all processes; None if there is none yet, `_Over` without the others."""
    try:
        return int(_store().key_value_try_get(key))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise _Over from None
