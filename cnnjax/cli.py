"""The command line: flags become one call each.

Exit codes: 0 done; 1 a disk that is full or cannot be used; 2 a mistake in what was asked, told in one line;
3 the loss was not finite; 128 + n the signal n (SIGINT 130, SIGTERM 143) ended training after a save.
"""

import errno
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging
from rich.console import Console
from rich.table import Table

from cnnjax import look
from cnnjax.errors import UserError, unknown
from cnnjax.terminal import parse_flags, print_table

USAGE = """usage: cnnjax COMMAND [--flag=value ...]

  train      train a network, or go on with a run       --config=FILE --config.a.b=value --workdir=DIR
  evaluate   metrics of a run on one split               --workdir=DIR --split=test --checkpoint=last
  predict    the classes of images                       --workdir=DIR IMAGE... --json --explain
  explore    a local page of a trained network           --workdir=DIR
  report     the page of a run, or of several compared   DIR...
  export     a network for other programs                --workdir=DIR --format=onnx --out=FILE
  data       the data sets, and whether they are here    --dir=DIR
  models     the networks, or the layers of one          [GLOB | NAME] --image_size=N
  weights    torch's weights in and out                  import FILE --model=NAME --workdir=DIR | export FILE
  bench      speed of a training step                    train --model=NAME --batch_size=B --against=torch

`cnnjax COMMAND --help` lists the flags of a command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    logging.set_verbosity(logging.ERROR)  # orbax reports each of its steps otherwise
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


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
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
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
    print(f"cnnjax: {message}", file=sys.stderr)
    return code


def _define_config(args: list[str], values: flags.FlagValues) -> list[str]:
    """Defines --config.a.b over the config of --config=FILE, or the default one; returns the rest."""
    from ml_collections import config_flags

    from cnnjax import config as config_lib

    while "--config" in args[:-1]:  # `--config FILE` as `--config=FILE`
        at = args.index("--config")
        args = [*args[:at], f"--config={args[at + 1]}", *args[at + 2 :]]
    files = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    config = config_lib.from_file(files[-1]) if files else config_lib.default()
    overrides = [arg for arg in args if not arg.startswith("--config=")]
    for arg in overrides:
        name, given, value = arg.removeprefix("-").removeprefix("-").partition("=")
        if arg.startswith("-") and name.startswith("config."):
            config_lib.check_override(name.removeprefix("config."), value if given else None)
    config_flags.DEFINE_config_dict(
        "config", config, "--config=FILE or --config.field=value", flag_values=values, sys_argv=overrides
    )
    return overrides


def train(args: list[str]) -> None:
    """Trains to the end, writes the report and prints the metrics of the test split."""

    from cnnjax import config as config_lib

    def define(values: flags.FlagValues) -> list[str]:
        flags.DEFINE_string("workdir", None, "run folder; runs/TIME_MODEL", flag_values=values)
        flags.DEFINE_bool("print_config", False, "print the config and stop", flag_values=values)
        return _define_config(args, values)

    values, _ = parse_flags("train", args, define)
    config = values.config
    config_lib.validate(config)
    if values.print_config:
        print(config)
        return
    from cnnjax import loop, report
    from cnnjax.progress import terminal

    name = config.model.partition("(")[0]
    workdir = values.workdir or time.strftime(f"runs/%Y-%m-%d_%H%M%S_{name}")
    result = loop.train(config, workdir, terminal())
    page = report.write(result.path)
    print_metrics(result.test, result.class_names)
    Console().print(f"run folder {result.path}, report {page}", highlight=False, soft_wrap=True)


def evaluate(args: list[str]) -> None:
    """Prints the metrics of a run on one split."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
        flags.DEFINE_string("split", "test", "train, validation or test", flag_values=values)
        flags.DEFINE_string("checkpoint", "last", "last, best, or a step", flag_values=values)
        flags.DEFINE_string("weights", "raw", "raw, or ema", flag_values=values)
        flags.DEFINE_string("data", None, "another data set of the same classes", flag_values=values)
        flags.DEFINE_bool("json", False, "print JSON", flag_values=values)

    values, _ = parse_flags("evaluate", args, define)
    if not values.workdir:
        raise UserError("--workdir is missing; name the run folder that `cnnjax train` left")
    from cnnjax import loop
    from cnnjax.runs import Run, plain

    found, _ = loop.evaluate(
        values.workdir,
        split=values.split,
        checkpoint=values.checkpoint,
        weights=values.weights,
        data=values.data,
    )
    if values.json:
        print(json.dumps(plain(found)))
    else:
        print_metrics(plain(found), Run.open(values.workdir).class_names())


def print_metrics(found: dict[str, Any], class_names: Sequence[str]) -> None:
    """Prints the metrics of one split as tables: the whole, the averages over classes, each class."""
    console = Console()
    whole = Table("metric", "value", title=f"{found['split']}, {found['count']} images")
    averages = Table("average", "precision", "recall", "F1")
    for prefix, words in (("", ""), ("ema_", "EMA ")):
        if f"{prefix}accuracy" not in found:
            continue
        whole.add_row(f"{words}accuracy", f"{100 * found[f'{prefix}accuracy']:.2f} %")
        whole.add_row(f"{words}top-5 accuracy", f"{100 * found[f'{prefix}top5_accuracy']:.2f} %")
        whole.add_row(f"{words}loss", f"{found[f'{prefix}loss']:.4f}")
        for kind in ("macro", "micro", "weighted"):
            averages.add_row(words + kind, *_scores(found[f"{prefix}{kind}"]))
    console.print(whole, averages)
    if len(found["per_class"]["f1"]) <= 20:
        classes = Table("class", "precision", "recall", "F1", "images")
        rows = zip(*(found["per_class"][k] for k in ("precision", "recall", "f1")), strict=True)
        for name, row, support in zip(class_names, rows, found["per_class"]["support"], strict=True):
            classes.add_row(name, *(f"{value:.4f}" for value in row), str(support))
        console.print(classes)


def _scores(row: dict[str, float]) -> list[str]:
    return [f"{row[name]:.4f}" for name in ("precision", "recall", "f1")]


def data(args: list[str]) -> None:
    """Lists the data sets."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("dir", None, "a folder to look in first", flag_values=values)

    values, _ = parse_flags("data", args, define)
    from cnnjax.data import datasets

    table = Table("name", "train", "test", "classes", "image", "found in")
    for row in datasets.describe(values.dir):
        cells = [row[name] for name in ("name", "train", "test", "classes", "image")]
        table.add_row(*map(str, cells), row["found"] or "not here")
    Console().print(table)
    print("Also by path: idx:FOLDER, folder:FOLDER, npz:FILE, tfds:NAME")


def models(args: list[str]) -> None:
    """Lists the networks that match a glob, or the layers of one that is named."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer(
            "image_size", None, "pixels, of one network; the preset's", 1, flag_values=values
        )

    values, words = parse_flags("models", args, define, max_names=1)
    from cnnjax.models import list_models, variants

    word = words[0] if words else "*"
    if word in variants() or "(" in word:
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


def in_units(count: int | None) -> str:
    """4089184256 as '4.089 G'; None, which could not be counted, as 'n/a'."""
    if count is None:
        return "n/a"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)


def in_pixels(field: tuple[float, float] | None) -> str:
    """A receptive field as '19', '19x7', 'all' or 'n/a'."""
    if field is None:
        return "n/a"
    height, width = ("all" if value == float("inf") else str(value) for value in field)
    return height if height == width else f"{height}x{width}"


def weights(args: list[str]) -> None:
    """Makes a run folder of a weights file, or writes the weights of a run under torch's names."""
    from cnnjax import config as config_lib

    def define(values: flags.FlagValues) -> list[str]:
        flags.DEFINE_string("model", None, "the network of the file", flag_values=values)
        flags.DEFINE_string("workdir", None, "the run folder", flag_values=values)
        return _define_config(args, values)

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


def bench(args: list[str]) -> None:
    """Measures speed: `bench train` a whole step."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("model", "simple_cnn", "a name or spec", flag_values=values)
        flags.DEFINE_integer("batch_size", 128, "images a step", flag_values=values)
        flags.DEFINE_string("dtype", "float32", "float32 or bfloat16", flag_values=values)
        flags.DEFINE_integer("image_size", None, "pixels; the preset's", flag_values=values)
        flags.DEFINE_integer("rounds", 5, "measurements", flag_values=values, lower_bound=1)
        flags.DEFINE_float("seconds", 4.0, "a measurement", flag_values=values, lower_bound=0.0)
        flags.DEFINE_string("against", None, "torch: in turn with PyTorch", flag_values=values)
        flags.DEFINE_bool("json", False, "print JSON", flag_values=values)

    values, words = parse_flags("bench", args, define, max_names=1)
    if words != ["train"]:
        raise unknown("bench", words[0] if words else "", ["train"])
    from cnnjax.bench import bench_train

    found = bench_train(
        values.model,
        batch_size=values.batch_size,
        dtype=values.dtype,
        image_size=values.image_size,
        rounds=values.rounds,
        seconds=values.seconds,
        against=values.against,
    )
    if values.json:
        print(json.dumps(found))
        return
    table = Table("measure", "value")
    for name, value in found.items():
        rows = value.items() if isinstance(value, dict) else [(name, value)]
        for key, item in rows:
            table.add_row(key if key == name else f"share: {key}", str(item))
    Console().print(table)


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": look.predict,
    "explore": look.explore,
    "report": look.report,
    "export": look.export,
    "data": data,
    "models": models,
    "weights": weights,
    "bench": bench,
}
