"""The command line: finds the command, runs it, and turns errors into exit codes.

Exit codes: 0 done; 1 the system cannot read or write a file, a disk or the output, or `checkpoint list` or
`verify` found a damaged one; 2 a mistake in what is given, a damaged file too; 3 the loss was not finite; 4 a
process hung; 128 + n signal n (SIGINT 130, SIGTERM 143) ended it, with nothing lost. One line says why, none
if nobody reads the output.
"""

import contextlib
import importlib
import importlib.metadata
import os
import platform
import sys
import traceback
import types
import warnings
from collections.abc import Iterator, Sequence

from absl import logging

import cnnjax
from cnnjax.cli import streams, terminal
from cnnjax.errors import SKIPPING, BadImage, UserError, one_line, unknown, visible
from cnnjax.runs.signals import Interrupted, end_at_once

_DEFAULT_FORMAT = warnings.formatwarning
USAGE = """usage: cnnjax COMMAND [--flag=value ...]

  train       train a network, or resume a run: --config=NAME --workdir=DIR
  sweep       train several configs and seeds, in one table: --set FIELD=A,B
  study       repeat one of the project's studies: NAME --size=hour
  launch      one training run in several processes: -- train --workdir=DIR
  evaluate    metrics of a run on one split: --workdir=DIR --split=test
  predict     classify images: --workdir=DIR IMAGE... --explain=METHOD
  explore     a local page to look inside a network: --workdir=DIR
  report      report of a run or sweep, or a comparison: DIR...
  probe       linear probe and nearest neighbours: --model=NAME --data=NAME
  export      a network for other programs: --format=onnx --out=FILE
  data        list, prepare or inspect data sets: inspect NAME
  models      the networks, or the layers of one: [GLOB | NAME]
  compile     predicted cost of a step on other hardware: --topology=v5e:2x4
  weights     import or export PyTorch weights: import FILE --model=NAME
  push        upload a network to the Hugging Face Hub: hf:USER/NAME
  checkpoint  list, verify or prune checkpoints: list --workdir=DIR
  replay      repeat a non-finite step, layer by layer: --step=N
  bench       speed of a step, predict or the input: train --model=NAME
  completion  tab completion for your shell: bash | zsh | fish

--model=NAME --weights=torchvision uses pretrained weights instead of the run
of --workdir=DIR. `cnnjax COMMAND --help` lists all flags of a command, with
examples. Every command takes --offline to use no network.
`cnnjax --version` prints the versions."""
COMMANDS = [line.split()[0] for line in USAGE.splitlines() if line.startswith("  ")]
OFFLINE, VARIABLE = {"--offline", "-offline"}, "CNNJAX_OFFLINE"  # read in `data.web`
# Files of the commands that share one. A command's libraries are imported when it runs, not before.
SHARED = {"launch": "train", "report": "explore", "compile": "models", "weights": "export"}
SHARED |= {"checkpoint": "evaluate", "replay": "evaluate"}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    streams.repair()
    end_at_once()
    logging.set_verbosity(logging.FATAL)  # silence Orbax's per-step logging and its stacks of handled errors
    warnings.formatwarning = _format_warning
    terminal.guard()
    args = sys.argv[1:] if argv is None else list(argv)
    try:
        code = run(args)
    except Exception:
        if not (processes := _joined()):
            raise
        print(f"cnnjax: {processes.name()}failed", file=sys.stderr)
        traceback.print_exc()
        code = 1
    if processes := _joined():
        processes.leave(code)
    sys.exit(code)


def _joined() -> types.ModuleType | None:
    """The module of several processes, if this is one of them."""
    module = sys.modules.get("cnnjax.runs.processes")
    return module if module and module.joined() else None


def run(args: list[str]) -> int:
    """Runs one command; returns the exit code."""
    before = sys.stdout, sys.stderr
    terminal.guard()
    try:
        with _offline(args):
            code = _run([word for word in args if word not in OFFLINE])
        print(end="", flush=True)  # now, since Python itself would report a closed pipe as it ends
        return code
    except BadImage as error:  # the rooms below know no flags
        flag = "--" if "prepare" in args else "--config.data."
        return _fail(str(error).replace(f" {SKIPPING}", f" {flag}{SKIPPING}"), 2)
    except UserError as error:
        return _fail(error, 2)
    except OSError as error:
        reason = error.strerror or one_line(error)
        if (output := streams.broken()) is not None:
            return _fail(f"the output cannot be written: {output}", 1) if output else 1
        if isinstance(error, ConnectionError) and not error.filename:
            raise  # of a worker
        return _fail(f"{error.filename or 'a file'} cannot be written or read: {reason}", 1)
    except Interrupted as error:
        return _fail(error, 128 + error.signum)
    except (AssertionError, RuntimeError) as error:
        from cnnjax.runs import devices
        from cnnjax.runs.log import NonFiniteLoss

        if isinstance(error, NonFiniteLoss):
            return _fail(error, 3)
        try:
            devices.check()
        except UserError as reason:  # JAX starts its devices wherever they are first used
            return _fail(reason, 2)
        raise
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def _offline(args: list[str]) -> Iterator[None]:
    """Forbids the network to this command and its processes, if the flag of all commands says so."""
    before = os.environ.get(VARIABLE)
    if OFFLINE & {*args}:
        os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None) if before is None else os.environ.update({VARIABLE: before})


def _run(args: list[str]) -> int:
    if args and args[0] in ("-V", "--version", "version"):
        print(version())
        return 0
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] not in COMMANDS:
        raise unknown("command", args[0], COMMANDS)
    module = importlib.import_module(f"cnnjax.cli.{SHARED.get(args[0], args[0])}")
    return getattr(module, args[0])(args[1:])


def version() -> str:
    """'cnnjax 0.1.0, jax 0.10.2, flax 0.12.8, Python 3.11.7', of what is installed."""
    parts = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax")]
    return ", ".join([f"cnnjax {cnnjax.__version__}", *parts, f"Python {platform.python_version()}"])


def _fail(message: object, code: int) -> int:
    processes = _joined()
    try:
        line = f"cnnjax: {processes.name() if processes else ''}{visible(message)}\n"
        print(line, end="", file=sys.stderr, flush=True)  # one write, which no other process cuts
    except OSError:
        streams.discard(2)
    return code


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning for users in one line, any other with its place in the code."""
    plain = category is UserWarning
    return (
        f"cnnjax: {visible(message)}\n"
        if plain
        else _DEFAULT_FORMAT(message, category, filename, lineno, line)
    )
