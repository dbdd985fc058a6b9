"""What the protocols share: a tiny data set, and commands in processes forked from this one."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

SECONDS = 120  # after which a command counts as hanging


def tiny_arrays(num_train: int = 90, num_test: int = 37, size: int = 8) -> dict[str, np.ndarray]:
    """Three classes of noisy bars: the row of the bar tells the class."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", num_train), ("test", num_test)):
        label = np.arange(count) % 3
        image = draw.integers(0, 90, (count, size, size, 1))
        image[np.arange(count), 1 + 2 * label] += 150
        arrays |= {f"{split}_image": image.astype(np.uint8), f"{split}_label": label.astype(np.uint8)}
    return arrays


def tiny_data(folder: Path) -> str:
    """Writes the tiny data set; the name under which it is loaded."""
    np.savez(folder / "data.npz", **tiny_arrays())
    return f"npz:{folder / 'data.npz'}"


class Fork:
    """A call in a forked process, its output in a file; its exit code is what the call returns."""

    def __init__(self, call: Callable[[], object], log: Path):
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(call, log)

    def _run(self, call: Callable[[], object], log: Path) -> NoReturn:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for fd in (1, 2):
            os.dup2(file, fd)
        code = 70
        try:
            code = int(call() or 0)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = SECONDS) -> int | None:
        """The exit code, negative for a signal; None if it has not ended by then."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return None

    def kill(self) -> None:
        """Ends it, and waits for that."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
