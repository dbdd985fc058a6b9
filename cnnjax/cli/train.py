"""`cnnjax train`, `evaluate`, `checkpoint` and `launch`: one run, and its checkpoints."""

import json
import time

from absl import flags
from rich.console import Console
from rich.table import Table

from cnnjax.cli.flags import parse_flags, read_config
from cnnjax.cli.tables import print_metrics, print_table
from cnnjax.errors import UserError


def train(args: list[str]) -> None:
    """Trains to the end, writes the report and prints the metrics of the test split."""

    from cnnjax import config as config_lib

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "run folder; runs/TIME_MODEL", flag_values=values)
        flags.DEFINE_bool("print_config", False, "print the config and stop", flag_values=values)
        flags.DEFINE_float("stop_seconds", 60.0, "from a signal to the end", 1.0, flag_values=values)
        flags.DEFINE_bool("distributed", False, "one of several processes", flag_values=values)
        flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
        flags.DEFINE_integer("process_count", None, "how many", 1, flag_values=values)
        flags.DEFINE_integer("process_index", None, "which this is, from 0", 0, flag_values=values)
        flags.DEFINE_integer("hang_seconds", 1800, "without a step end the run", 1, flag_values=values)

    config, args = read_config(args)
    fields = f"\nfields of the config, as in --config.seed=1:\n{config_lib.describe(config)}"
    values, _ = parse_flags("train", args, define, more_help=fields)
    if values.print_config:
        config_lib.validate(config)
        print(config_lib.describe(config))
        return
    from cnnjax.cli.progress import terminal
    from cnnjax.explore import report
    from cnnjax.runs import compile_cache, processes
    from cnnjax.runs import train as loop
    from cnnjax.runs.progress import Progress

    if values.distributed:
        if not values.workdir:
            raise UserError("--workdir is missing; the processes of a run share one folder")
        processes.join(
            values.coordinator, values.process_count, values.process_index, hang_seconds=values.hang_seconds
        )
        processes.watch(values.hang_seconds)
    compile_cache.enable()
    name = config.model.partition("(")[0]
    workdir = values.workdir or time.strftime(f"runs/%Y-%m-%d_%H%M%S_{name}")
    board = terminal() if processes.is_first() else Progress()
    result = loop.train(config, workdir, board, stop_seconds=values.stop_seconds)
    if not processes.is_first():
        return
    page = report.write(result.path)
    print_metrics(result.test, result.class_names)
    Console().print(f"run folder {result.path}, report {page}", highlight=False, soft_wrap=True)


def launch(args: list[str]) -> int:
    """Runs a command in several processes on this machine."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("processes", 1, "how many", 1, flag_values=values)
        flags.DEFINE_integer("max_restarts", 0, "after a crash", 0, flag_values=values)

    cut = args.index("--") if "--" in args else len(args)
    command = args[cut + 1 :]
    values, _ = parse_flags("launch", args[:cut], define)
    if command[:1] != ["train"]:
        raise UserError("usage: cnnjax launch --processes=N [--max_restarts=M] -- train --workdir=DIR ...")
    if not any(word.startswith("--workdir") for word in command):
        raise UserError("--workdir is missing; the processes of a run share one folder")
    from cnnjax.cli.launch import launch as start

    return start(command, values.processes, max_restarts=values.max_restarts)


def evaluate(args: list[str]) -> None:
    """Prints the metrics of a run on one split."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
        flags.DEFINE_string("split", "test", "train, validation or test", flag_values=values)
        flags.DEFINE_string("checkpoint", "last", "last, best, or a step", flag_values=values)
        flags.DEFINE_string("weights", "raw", "raw, or ema", flag_values=values)
        flags.DEFINE_string("data", None, "another data set of the same classes", flag_values=values)
        flags.DEFINE_string("protocol", None, "the run's, or center, ten_crop ...", flag_values=values)
        flags.DEFINE_bool("json", False, "print JSON", flag_values=values)

    values, _ = parse_flags("evaluate", args, define)
    if not values.workdir:
        raise UserError("--workdir is missing; name the run folder that `cnnjax train` left")
    from cnnjax.runs import compile_cache
    from cnnjax.runs import evaluate as evaluate_lib
    from cnnjax.runs.folder import Run, plain

    compile_cache.enable()
    found, _ = evaluate_lib.evaluate(
        values.workdir,
        split=values.split,
        checkpoint=values.checkpoint,
        weights=values.weights,
        data=values.data,
        protocol=values.protocol,
    )
    if values.json:
        print(json.dumps(plain(found)))
    else:
        print_metrics(plain(found), Run.open(values.workdir).class_names())


def checkpoint(args: list[str]) -> int:
    """Lists, verifies or prunes the checkpoints of a run; 1 where one of them is damaged."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
        flags.DEFINE_integer("keep", 2, "of prune: the newest that stay", 1, flag_values=values)

    values, words = parse_flags("checkpoint", args, define, max_names=1)
    if words not in (["list"], ["verify"], ["prune"]) or not values.workdir:
        raise UserError("usage: cnnjax checkpoint list | verify | prune --workdir=DIR")
    from cnnjax.runs import upkeep

    if words == ["prune"]:
        print(f"removed {', '.join(upkeep.prune(values.workdir, values.keep)) or 'nothing'}")
        return 0
    table = Table("step", "files", "bytes", "accuracy %", "state")
    rows = upkeep.describe(values.workdir, verify=words == ["verify"])
    for row in rows:
        table.add_row(*map(str, row.values()))
    print_table(table)
    return int(any("damaged" in row["state"] for row in rows))
