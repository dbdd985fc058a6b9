"""The command line: flags become one call each.

Exit codes: 0 done; 1 a disk that is full or cannot be used; 2 a mistake in what was asked, told in one line;
3 the loss was not finite; 4 a process hung; 128 + n the signal n (SIGINT 130, SIGTERM 143) ended training
with nothing lost.
"""

import errno
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging
from rich.console import Console
from rich.table import Table

from cnnjax import look, replay, speed
from cnnjax.errors import UserError, unknown
from cnnjax.tables import in_pixels, in_units, print_metrics, print_table
from cnnjax.terminal import define_config, parse_flags

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
  bench      speed of a training step, of the kernels    ops | train --model=NAME --against=torch

`cnnjax COMMAND --help` lists the flags of a command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    logging.set_verbosity(logging.FATAL)  # orbax reports its steps, and stacks of errors that it raises too
    warnings.showwarning = _warn
    args = sys.argv[1:] if argv is None else list(argv)
    if "--distributed" not in args:
        sys.exit(run(args))
    from cnnjax import processes

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
        return COMMANDS[args[0]](args[1:]) or 0
    except UserError as error:
        return _fail(error, 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG):
            raise
        return _fail(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was under way that could be saved", 130)
    except RuntimeError as error:
        from cnnjax.loop import NonFiniteLoss
        from cnnjax.signals import Interrupted

        if isinstance(error, Interrupted):
            return _fail(error, 128 + error.signum)
        if isinstance(error, NonFiniteLoss):
            return _fail(error, 3)
        raise


def _fail(message: object, code: int) -> int:
    processes = sys.modules.get("cnnjax.processes")
    print(f"cnnjax: {processes.name() if processes else ''}{message}", file=sys.stderr)
    return code


def _warn(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Tells a warning that is meant for users in one line; where others come from, in two as ever."""
    one_line = f"cnnjax: {message}\n" if category is UserWarning else None
    sys.stderr.write(one_line or warnings.formatwarning(message, category, *place[:2]))


def train(args: list[str]) -> None:
    """Trains to the end, writes the report and prints the metrics of the test split."""

    from cnnjax import config as config_lib

    def define(values: flags.FlagValues) -> list[str]:
        flags.DEFINE_string("workdir", None, "run folder; runs/TIME_MODEL", flag_values=values)
        flags.DEFINE_bool("print_config", False, "print the config and stop", flag_values=values)
        flags.DEFINE_float("stop_seconds", 60.0, "from a signal to the end", 1.0, flag_values=values)
        flags.DEFINE_bool("distributed", False, "one of several processes", flag_values=values)
        flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
        flags.DEFINE_integer("process_count", None, "how many", 1, flag_values=values)
        flags.DEFINE_integer("process_index", None, "which this is, from 0", 0, flag_values=values)
        flags.DEFINE_integer("hang_seconds", 1800, "without a step end the run", 1, flag_values=values)
        return define_config(args, values)

    values, _ = parse_flags("train", args, define)
    config = values.config
    config_lib.validate(config)
    if values.print_config:
        print(config)
        return
    from cnnjax import compile_cache, loop, processes, report
    from cnnjax.progress import Silent, terminal

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
    board = terminal() if processes.is_first() else Silent()
    result = loop.train(config, workdir, board, stop_seconds=values.stop_seconds)
    if not processes.is_first():
        return
    page = report.write(result.path)
    print_metrics(result.test, result.class_names)
    Console().print(f"run folder {result.path}, report {page}", highlight=False, soft_wrap=True)


def sweep(args: list[str]) -> None:
    """Trains several configs with several seeds."""
    from cnnjax import sweep_command

    sweep_command.command(args)


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
    from cnnjax.launch import launch as start

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
    from cnnjax import compile_cache, loop
    from cnnjax.runs import Run, plain

    compile_cache.enable()
    found, _ = loop.evaluate(
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


def data(args: list[str]) -> None:
    """Lists the data sets, prepares one, or says what is in it."""
    from cnnjax import data_commands

    values, words = parse_flags("data", args, data_commands.define, max_names=2)
    if not words:
        data_commands.list_datasets(values.dir)
    elif words[0] == "prepare" and len(words) == 2:
        data_commands.prepare_dataset(words[1], values)
    elif words[0] == "inspect" and len(words) == 2:
        data_commands.inspect_dataset(words[1], values)
    else:
        raise UserError(
            "usage: cnnjax data, or cnnjax data prepare NAME --out=DIR --short_side=256 --format=raw, or "
            "cnnjax data inspect NAME --out=FILE.png"
        )


def models(args: list[str]) -> None:
    """Lists the networks that match a glob, or the layers of one that is named."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer(
            "image_size", None, "pixels, of one network; the preset's", 1, flag_values=values
        )
        flags.DEFINE_bool("memory", False, "of a training step, compiled", flag_values=values)
        flags.DEFINE_integer("batch_size", 128, "of --memory", 1, flag_values=values)
        flags.DEFINE_string("dtype", "float32", "of --memory: or bfloat16", flag_values=values)

    values, words = parse_flags("models", args, define, max_names=1)
    from cnnjax.models import list_models, variants

    word = words[0] if words else "*"
    if values.memory:
        from cnnjax.forecast import model_memory, show

        found = model_memory(word, values.batch_size, dtype=values.dtype)
        show(found, f"{word}, batch {values.batch_size}, {values.dtype}, AdamW")
    elif word in variants() or "(" in word:
        print_layers(word, values.image_size)
    elif names := list_models(word):
        print_models(names)
    else:
        raise unknown("model", word, variants())


def print_models(names: Sequence[str]) -> None:
    """Prints a row for each network."""
    from rich.progress import track

    from cnnjax.models import variants
    from cnnjax.summary import totals

    table = Table("name", "parameters", "MACs", "input", "top-1 / top-5", "published on", "source")
    console = Console(stderr=True)
    rows = track(totals(names), "counting", len(names), console=console, transient=True)
    for name, (params, macs) in zip(names, rows, strict=True):
        row = variants()[name]
        size = "x".join(map(str, row.preset.input_size))
        top = " / ".join(f"{value:.2f}" for value in (row.top1, row.top5) if value is not None)
        table.add_row(name, f"{params:,}", in_units(macs), size, top, row.published, row.source)
    print_table(table)
    print("Accuracies in per cent, as published. `cnnjax models NAME` shows the layers of one network.")


def print_layers(spec: str, image_size: int | None = None) -> None:
    """Prints the layers of one network."""
    from cnnjax.models import variant
    from cnnjax.summary import summarize

    height, width, channels = variant(spec).preset.input_size
    shape = (image_size or height, image_size or width, channels)
    found = summarize(spec, shape)
    table = Table("layer", "output", "parameters", "MACs", "receptive field", title=f"{spec} on {shape}")
    for row in found.layers:
        output = " ".join(map(str, row.output))
        table.add_row(row.name, output, f"{row.params:,}", in_units(row.macs), in_pixels(row.receptive_field))
    table.add_section()
    table.add_row("in all", "", f"{found.params:,}", in_units(found.macs), "")
    print_table(table)


def compile_step(args: list[str]) -> None:
    """Compiles the training step of a config for devices that need not be here, and says what it needs."""

    def define(values: flags.FlagValues) -> list[str]:
        flags.DEFINE_string("topology", "cpu:8", "v5e:2x4, v6e:16x16, cpu:8 ...", flag_values=values)
        flags.DEFINE_string("image", None, "256x256x3: blank images for the data set's", flag_values=values)
        flags.DEFINE_integer("classes", 1000, "of the blank images", 1, flag_values=values)
        flags.DEFINE_bool("json", False, "print JSON", flag_values=values)
        return define_config(args, values)

    values, _ = parse_flags("compile", args, define)
    from cnnjax import forecast

    source = None
    if values.image:
        sides = values.image.split("x")
        if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
            raise UserError(f"--image={values.image} must be height x width x channels, as in 256x256x3")
        source = forecast.blank_source(tuple(map(int, sides)), values.classes)
    found = forecast.forecast(values.config, values.topology, source=source)
    if values.json:
        print(json.dumps(forecast.facts(found)))
    else:
        forecast.show(found, f"{values.config.model} on {values.topology}")


def weights(args: list[str]) -> None:
    """Makes a run folder of a weights file, or writes the weights of a run under torch's names."""
    from cnnjax import config as config_lib

    def define(values: flags.FlagValues) -> list[str]:
        flags.DEFINE_string("model", None, "the network of the file", flag_values=values)
        flags.DEFINE_string("workdir", None, "the run folder", flag_values=values)
        return define_config(args, values)

    values, words = parse_flags("weights", args, define, max_names=2)
    if len(words) != 2 or words[0] not in ("import", "export") or not values.workdir:
        raise UserError(
            "usage: cnnjax weights import FILE --model=NAME --workdir=DIR, or "
            "cnnjax weights export FILE --workdir=DIR"
        )
    from cnnjax import exchange

    if words[0] == "export":
        count = exchange.export_weights(values.workdir, words[1])
        print(f"wrote {count} tensors to {words[1]}")
        return
    config = values.config
    config.model = values.model or config.model
    config_lib.validate(config)
    paths = exchange.import_weights(words[1], config, values.workdir)
    print(f"imported {len(paths)} parameter arrays into {values.workdir}")


def checkpoint(args: list[str]) -> int:
    """Lists, verifies or prunes the checkpoints of a run; 1 where one of them is damaged."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
        flags.DEFINE_integer("keep", 2, "of prune: the newest that stay", 1, flag_values=values)

    values, words = parse_flags("checkpoint", args, define, max_names=1)
    if words not in (["list"], ["verify"], ["prune"]) or not values.workdir:
        raise UserError("usage: cnnjax checkpoint list | verify | prune --workdir=DIR")
    from cnnjax import upkeep

    if words == ["prune"]:
        print(f"removed {', '.join(upkeep.prune(values.workdir, values.keep)) or 'nothing'}")
        return 0
    table = Table("step", "files", "bytes", "accuracy %", "state")
    rows = upkeep.describe(values.workdir, verify=words == ["verify"])
    for row in rows:
        table.add_row(*map(str, row.values()))
    print_table(table)
    return int(any("damaged" in row["state"] for row in rows))


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "sweep": sweep,
    "launch": launch,
    "evaluate": evaluate,
    "predict": look.predict,
    "explore": look.explore,
    "report": look.report,
    "export": look.export,
    "data": data,
    "models": models,
    "compile": compile_step,
    "weights": weights,
    "checkpoint": checkpoint,
    "replay": replay.replay,
    "bench": speed.bench,
}
