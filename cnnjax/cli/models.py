"""`cnnjax models`, `compile` and `weights`: the networks, their steps and their weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console
from rich.table import Table

from cnnjax.cli.flags import parse_flags, read_config
from cnnjax.cli.tables import in_pixels, in_units, print_table
from cnnjax.errors import UserError, unknown

if TYPE_CHECKING:
    from cnnjax.profiling.forecast import Forecast


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
        from cnnjax.cli.models import show
        from cnnjax.profiling.forecast import model_memory

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
    from cnnjax.profiling.summary import totals

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
    from cnnjax.profiling.summary import summarize

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

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("topology", "cpu:8", "v5e:2x4, v6e:16x16, cpu:8 ...", flag_values=values)
        flags.DEFINE_string("image", None, "256x256x3: blank images for the data set's", flag_values=values)
        flags.DEFINE_integer("classes", 1000, "of the blank images", 1, flag_values=values)
        flags.DEFINE_bool("json", False, "print JSON", flag_values=values)

    config, args = read_config(args)
    values, _ = parse_flags("compile", args, define)
    from cnnjax.profiling import forecast

    source = None
    if values.image:
        sides = values.image.split("x")
        if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
            raise UserError(f"--image={values.image} must be height x width x channels, as in 256x256x3")
        source = forecast.blank_source(tuple(map(int, sides)), values.classes)
    found = forecast.forecast(config, values.topology, source=source)
    if values.json:
        print(json.dumps(forecast.facts(found)))
    else:
        show(found, f"{config.model} on {values.topology}")


def weights(args: list[str]) -> None:
    """Makes a run folder of a weights file, or writes the weights of a run under torch's names."""
    from cnnjax import config as config_lib

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("model", None, "the network of the file", flag_values=values)
        flags.DEFINE_string("workdir", None, "the run folder", flag_values=values)

    config, args = read_config(args)
    values, words = parse_flags("weights", args, define, max_names=2)
    if len(words) != 2 or words[0] not in ("import", "export") or not values.workdir:
        raise UserError(
            "usage: cnnjax weights import FILE --model=NAME --workdir=DIR, or "
            "cnnjax weights export FILE --workdir=DIR"
        )
    from cnnjax.inference import weights as exchange

    if words[0] == "export":
        count = exchange.export_weights(values.workdir, words[1])
        print(f"wrote {count} tensors to {words[1]}")
        return
    config.model = values.model or config.model
    config_lib.validate(config)
    paths = exchange.import_weights(words[1], config, values.workdir)
    print(f"imported {len(paths)} parameter arrays into {values.workdir}")


SHOWN_LAYERS = 20


def show(found: Forecast, title: str) -> None:
    """Prints what a compiled step holds and moves on one device, and how well it should scale."""
    program = found.program
    table = Table("of one device", "value", title=title)
    for name in ("memory", "arguments", "results", "aliased", "temporaries"):
        table.add_row(f"{name}, bytes", in_units(getattr(program, name)))
    table.add_row("FLOPs of a step", in_units(program.flops))
    table.add_row("bytes read and written", in_units(program.bytes_accessed))
    for kind, (count, wire) in program.by_kind().items():
        table.add_row(f"{count} x {kind}, bytes sent", in_units(wire))
    if not math.isnan(found.compute):
        table.add_row("computation, ms at least", f"{1e3 * found.compute:.3f}")
        table.add_row("network, ms", f"{1e3 * found.network:.3f}")
        hidden, alone = found.efficiency_hidden, found.efficiency_alone
        table.add_row(f"efficiency on {found.num_devices}", f"{100 * alone:.1f} % to {100 * hidden:.1f} %")
    table.add_row("compiled in, s", f"{found.compile_seconds:.1f}")
    print_table(table)
    if layers := list(program.by_layer().items()):
        moved = Table("layer", "collectives", "bytes sent")
        for layer, (count, wire) in layers[:SHOWN_LAYERS]:
            moved.add_row(layer, str(count), in_units(wire))
        if rest := layers[SHOWN_LAYERS:]:
            count, wire = (sum(values) for values in zip(*(row for _, row in rest), strict=True))
            moved.add_row(f"{len(rest)} further layers", str(count), in_units(wire))
        print_table(moved)
