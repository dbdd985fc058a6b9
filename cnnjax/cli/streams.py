"""The standard streams of a command: closed ones, and full ones."""

import contextlib
import os
import select
import sys


def repair() -> None:
    """Makes closed streams /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # else the next file that is opened would take its number
            null = os.open(os.devnull, os.O_RDWR)  # until the end, where Python warns of files that it closes
            setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def broken() -> str | None:
    """Why the standard output can no longer be written, '' if nobody reads it; None if it can.

    It then goes to /dev/null, so that Python has nothing to report as it ends.
    """
    reason = None
    poll = select.poll()
    poll.register(1, 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):  # as after `| head`
        reason = ""
    else:
        try:
            print(end="", flush=True)
        except OSError as error:
            reason = error.strerror or str(error)
    if reason is not None:
        discard(1)
    return reason


def discard(fd: int) -> None:
    """Sends what is written to a file descriptor from now on to /dev/null."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
