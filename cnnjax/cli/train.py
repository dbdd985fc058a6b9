"""`cnnjax train`: one run, or one process of it; `launch`: several, ended and restarted together."""

import contextlib
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated as Flag

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.cli.flags import ANY_NUMBER, StopSeconds, command, given
from cnnjax.cli.help import describe
from cnnjax.cli.tables import Console, metrics_tables, print_tables, say
from cnnjax.errors import UserError
from cnnjax.runs import children

if TYPE_CHECKING:
    from cnnjax.cli.progress import Lines
    from cnnjax.data.sources.source import Listed
    from cnnjax.runs.train import Result

SHARED_FOLDER = "the processes of a run share one folder"
# A restart would not help: a usage error, a non-finite loss, a signal.
FINAL = (0, 2, 3, 128 + signal.SIGINT, 128 + signal.SIGTERM)
COMMAND = ["-m", "cnnjax"]
HANG_SECONDS = 1800


@command("train")
def train(
    *,
    config: ConfigDict,
    fields: frozenset[str],
    from_file: bool,
    data: Flag[
        str | None, "your images: a folder, or as config.data.name; other defaults are chosen to suit"
    ] = None,
    weights: Flag[str | None, "pretrained weights for --data: torchvision, hf:USER/NAME, a file"] = None,
    workdir: Flag[str | None, "run folder (default: runs/TIME_MODEL)"] = None,
    print_config: Flag[bool, "print the config and exit"] = False,
    stop_seconds: StopSeconds = 60.0,
    profile_steps: Flag[str, "FIRST:END: write an xprof trace of these steps into WORKDIR/profile"] = "",
    distributed: Flag[bool, "this is one of several processes"] = False,
    coordinator: Flag[str | None, "HOST:PORT of process 0"] = None,
    process_count: Flag[int | None, "number of processes", 1] = None,
    process_index: Flag[int | None, "index of this process", 0] = None,
    hang_seconds: Flag[int | None, "abort after this many seconds without a step (default: 1800)", 1] = None,
) -> None:
    """Trains to the end, writes the report and prints the metrics of the test split."""
    if weights and not data:
        raise UserError("--weights needs --data; without it use --config.init_from")
    shared = {"coordinator": coordinator, "process_count": process_count, "process_index": process_index}
    for flag, value in {**shared, "hang_seconds": hang_seconds}.items():
        if value is not None and not distributed:
            raise UserError(f"--{flag}={value} needs --distributed; add it, or leave --{flag} out")
    console = Console()
    listed: Listed = {}
    status = console.status("importing JAX")
    if console.is_terminal and not (print_config or distributed):
        status.start()  # before what takes seconds
    try:
        if data:
            from cnnjax.runs.own_images import suited

            config, line = suited(config, data, weights or "", listed, fields, from_file, workdir)
            say(line)
        if print_config:
            config_lib.validate(config)
            print(describe(config))
            return
        from cnnjax.cli.progress import Bar, Lines
        from cnnjax.runs import compile_cache, processes
        from cnnjax.runs import train as loop
        from cnnjax.runs.log import Progress

        if distributed:
            given("workdir", workdir, SHARED_FOLDER)
            hang_seconds = hang_seconds or HANG_SECONDS
            processes.join(coordinator, process_count, process_index, hang_seconds=hang_seconds)
        compile_cache.enable()
        board = Bar(console, status) if console.is_terminal else Lines(console)
        run = functools.partial(loop.train, profile_steps=profile_steps, listed=listed)
        run = functools.partial(run, stop_seconds=stop_seconds, hang_seconds=hang_seconds)
        with _folder(workdir, config, listed) as (folder, again):
            result = run(config, folder, board if processes.is_first() else Progress(), again=again)
        if processes.is_first():
            _print_result(result, board, listed)
    finally:
        status.stop()


@contextlib.contextmanager
def _folder(workdir: str | None, config: ConfigDict, listed: "Listed") -> Iterator[tuple[str, str]]:
    """The run folder, and what resumes a run there: without --workdir each run makes one of its own."""
    if workdir:
        yield workdir, "the same command"
        return
    from cnnjax.runs.inputs import list_images

    list_images(config, listed)
    own = _new_folder(config)
    try:
        yield own, f"the same command with --workdir={own}"
    finally:
        with contextlib.suppress(OSError):  # it is not empty: it holds a run
            Path(own).rmdir()
            Path(own).parent.rmdir()


def _new_folder(config: ConfigDict) -> str:
    """Makes a folder that no other process has, named by the time."""
    stem = time.strftime(f"runs/%Y-%m-%d_%H%M%S_{config.model.partition('(')[0]}")
    for own in (stem, *(f"{stem}_{n}" for n in range(2, 1000))):
        try:
            Path(own).mkdir(parents=True)
        except FileExistsError:
            continue  # of a run that began in the same second
        except OSError as error:
            raise UserError(f"{own} cannot be written: {error.strerror}; choose a --workdir") from None
        return own
    raise UserError(f"{stem} and its like exist; choose a --workdir")


def _print_result(result: "Result", board: "Lines", listed: "Listed") -> None:
    """The metrics of the test split, and where the report is."""
    from cnnjax.explore import report

    board.stage("drawing the report")
    page = report.write(result.path, listed)
    board.stop()
    if result.test:
        print_tables(*metrics_tables(result.test, result.class_names))
    else:
        say("no test score, as the data set has no labelled test split")
    say(f"run folder {result.path}, report {page}")


@command("launch", words=ANY_NUMBER)
def launch(
    words: list[str],
    *,
    processes: Flag[int, "number of processes", 1] = 1,
    max_restarts: Flag[int, "restarts after a crash", 0] = 0,
) -> int:
    """Runs `cnnjax train` in several processes on this machine."""
    if words[:1] != ["train"]:
        raise UserError("usage: cnnjax launch --processes=N [--max_restarts=M] -- train --workdir=DIR ...")
    if not any(word.startswith("--workdir") for word in words):
        raise UserError(f"--workdir is missing; {SHARED_FOLDER}")
    if own := os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        advice = "unset it, and name the GPUs that processes share in CUDA_VISIBLE_DEVICES"
        raise UserError(f"JAX_LOCAL_DEVICE_IDS={own} is of one process, which `cnnjax launch` sets; {advice}")
    code, told = _run_once(words, processes)
    for restart in range(1, max_restarts + 1):
        if code in FINAL or told:
            break
        print(f"cnnjax: exit code {code}; restart {restart} of {max_restarts}", file=sys.stderr, flush=True)
        code, told = _run_once(words, processes)
    return code


def _run_once(command: Sequence[str], count: int) -> tuple[int, int]:
    """The exit code of connected processes, and the signal that they were sent or 0.

    A training run resumes from its newest checkpoint.
    """
    from cnnjax.runs import node

    visible, given = node.visible_gpus(), f"--processes={count}"
    gpus = [node.share(visible, index, count, given) for index in range(count)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--process_count={count}"]
    own = [sys.executable, *COMMAND, *command, *shared]
    variables = [{"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, each))} if each else {} for each in gpus]
    return children.run([[*own, f"--process_index={index}"] for index in range(count)], variables)
