"""The command line: flags become one call each.

Exit codes: 0 done; 1 a disk that is full or cannot be used; 2 a mistake in what was asked, told in one line;
3 the loss was not finite; 4 a process hung; 128 + n the signal n (SIGINT 130, SIGTERM 143) ended training
with nothing lost.
"""

import errno
import importlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from absl import logging

from cnnjax.errors import UserError, unknown

USAGE = """usage: cnnjax COMMAND [--flag=value ...]

  train      train a network, or go on with a run       --config=FILE --config.a.b=value --workdir=DIR
  sweep      several configs and seeds, in one table     --set FIELD=A,B,C --seeds=N --random=M --out=DIR
  launch     several processes of one training run       --processes=N --max_restarts=M -- train --workdir=DIR
  evaluate   metrics of a run on one split               --workdir=DIR --split=test --checkpoint=last
  predict    the classes of images                       --workdir=DIR IMAGE... --json --explain
  explore    a local page of a trained network           --workdir=DIR
  report     the page of a run, or of several compared   DIR...
  export     a network for other programs                --workdir=DIR --format=onnx --out=FILE
  data       the data sets; one as records of one size   prepare NAME --out=DIR | inspect NAME --out=FILE.png
  models     the networks, or the layers of one          [GLOB | NAME] --image_size=N --memory --batch_size=B
  compile    what a step needs on devices not here       --config=FILE --topology=v5e:2x4 | cpu:8
  weights    torch's weights in and out                  import FILE --model=NAME --workdir=DIR | export FILE
  checkpoint the checkpoints of a run, each file checked  list | verify | prune --workdir=DIR --keep=N
  replay     a step whose loss was not finite, by layer    --workdir=DIR --step=N
  bench      speed of a training step, of the input     train --model=NAME --against=torch | data

`cnnjax COMMAND --help` lists the flags of a command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    logging.set_verbosity(logging.FATAL)  # orbax reports its steps, and stacks of errors that it raises too
    warnings.showwarning = _warn
    args = sys.argv[1:] if argv is None else list(argv)
    if "--distributed" not in args:
        sys.exit(run(args))
    from cnnjax.runs import processes

    try:
        code = run(args)
    except Exception:
        print(f"cnnjax: {processes.name()}failed", file=sys.stderr)
        traceback.print_exc()
        code = 1
    processes.leave(code)


def run(args: list[str]) -> int:
    """Runs one command; returns the exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    try:
        if args[0] not in COMMANDS:
            raise unknown("command", args[0], COMMANDS)
        file, name = COMMANDS[args[0]]
        return getattr(importlib.import_module(f"cnnjax.cli.{file}"), name)(args[1:]) or 0
    except UserError as error:
        return _fail(error, 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG):
            raise
        return _fail(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was under way that could be saved", 130)
    except RuntimeError as error:
        from cnnjax.runs.log import NonFiniteLoss
        from cnnjax.runs.signals import Interrupted

        if isinstance(error, Interrupted):
            return _fail(error, 128 + error.signum)
        if isinstance(error, NonFiniteLoss):
            return _fail(error, 3)
        raise


def _fail(message: object, code: int) -> int:
    processes = sys.modules.get("cnnjax.runs.processes")
    print(f"cnnjax: {processes.name() if processes else ''}{message}", file=sys.stderr)
    return code


def _warn(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Tells a warning that is meant for users in one line; where others come from, in two as ever."""
    one_line = f"cnnjax: {message}\n" if category is UserWarning else None
    sys.stderr.write(one_line or warnings.formatwarning(message, category, *place[:2]))


# name: (file of this folder, function). A command's libraries are imported when it runs, not before.
COMMANDS = {
    "train": ("train", "train"),
    "sweep": ("sweep", "command"),
    "launch": ("train", "launch"),
    "evaluate": ("train", "evaluate"),
    "predict": ("predict", "predict"),
    "explore": ("predict", "explore"),
    "report": ("predict", "report"),
    "export": ("predict", "export"),
    "data": ("data", "data"),
    "models": ("models", "models"),
    "compile": ("models", "compile_step"),
    "weights": ("models", "weights"),
    "checkpoint": ("train", "checkpoint"),
    "replay": ("replay", "replay"),
    "bench": ("bench", "bench"),
}
