"""`cnnjax train`: one run, or one process of it."""

import time
from typing import Annotated as Flag

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.cli.flags import StopSeconds, command, given
from cnnjax.cli.tables import metrics_tables, print_tables

SHARED_FOLDER = "the processes of a run share one folder"


@command("train")
def train(
    *,
    config: ConfigDict,
    workdir: Flag[str | None, "run folder (default: runs/TIME_MODEL)"] = None,
    print_config: Flag[bool, "print the config and exit"] = False,
    stop_seconds: StopSeconds = 60.0,
    distributed: Flag[bool, "this is one of several processes"] = False,
    coordinator: Flag[str | None, "HOST:PORT of process 0"] = None,
    process_count: Flag[int | None, "number of processes", 1] = None,
    process_index: Flag[int | None, "index of this process", 0] = None,
    hang_seconds: Flag[int, "abort after this many seconds without a step", 1] = 1800,
) -> None:
    """Trains to the end, writes the report and prints the metrics of the test split."""
    if print_config:
        config_lib.validate(config)
        print(config_lib.describe(config))
        return
    from cnnjax.cli.progress import terminal
    from cnnjax.explore import report
    from cnnjax.runs import compile_cache, processes
    from cnnjax.runs import train as loop
    from cnnjax.runs.log import Progress

    if distributed:
        given("workdir", workdir, SHARED_FOLDER)
        processes.join(coordinator, process_count, process_index, hang_seconds=hang_seconds)
    compile_cache.enable()
    workdir = workdir or time.strftime(f"runs/%Y-%m-%d_%H%M%S_{config.model.partition('(')[0]}")
    board = terminal() if processes.is_first() else Progress()
    result = loop.train(
        config, workdir, board, stop_seconds=stop_seconds, hang_seconds=hang_seconds if distributed else None
    )
    if processes.is_first():
        page = report.write(result.path)
        print_tables(*metrics_tables(result.test, result.class_names))
        print(f"run folder {result.path}, report {page}")
