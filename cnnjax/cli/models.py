"""`cnnjax models` and `compile`: the networks, and what their steps cost.

The list is a file, so that it appears at once; what computes is imported where it is needed.
"""

import csv
import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated as Flag

from ml_collections import ConfigDict
from rich.table import Table

from cnnjax.cli.flags import Json, command
from cnnjax.cli.tables import in_pixels, in_units, print_result, print_tables
from cnnjax.errors import UserError, unknown_model

if TYPE_CHECKING:
    from cnnjax.models.weights.published import Published
    from cnnjax.profiling import forecast

NETWORKS = Path(__file__).parents[1] / "models" / "networks.csv"  # written by experiments/models/run.py
SHOWN_LAYERS = 20


@command("models", words=1)
def models(
    words: list[str],
    *,
    image_size: Flag[int | None, "pixels, for one network (default: its preset's)", 1] = None,
    memory: Flag[bool, "compile a training step and print its memory"] = False,
    batch_size: Flag[int | None, "batch size for --memory (default: 128)", 1] = None,
    dtype: Flag[str | None, "dtype for --memory: float32 or bfloat16 (default: float32)"] = None,
) -> None:
    """Lists the networks that match a glob, or the layers of one network."""
    for flag, value in {"batch_size": batch_size, "dtype": dtype}.items():
        if value and not memory:
            raise UserError(f"--{flag}={value} needs --memory; add it, or leave --{flag} out")
    word = words[0] if words else "*"
    with open(NETWORKS, newline="", encoding="utf-8") as file:
        networks = list(csv.DictReader(file))
    found = [row for row in networks if fnmatch.fnmatchcase(row["name"], word)]
    if memory:
        from cnnjax.profiling import forecast

        batch_size, dtype = batch_size or 128, dtype or "float32"
        cost = forecast.model_memory(word, batch_size, dtype=dtype, image_size=image_size)
        pixels = f", {image_size} pixels" if image_size else ""
        print_tables(*cost_tables(cost, f"{word}, batch {batch_size}{pixels}, {dtype}, AdamW"))
    elif "(" in word or [row["name"] for row in found] == [word]:
        from cnnjax.models.weights.published import published

        print_tables(layer_table(word, image_size))
        if rows := [row for row in published() if row.model == word]:
            print_tables(weights_table(rows))
    elif image_size and found:
        raise UserError(f"--image_size={image_size} needs the name of one network; {word} is {len(found)}")
    elif found:
        print_tables(model_table(found))
        print("Accuracies in per cent, as published. `cnnjax models NAME` shows the layers of one network.")
    else:
        raise unknown_model(word, [row["name"] for row in networks])


def accuracies(top1: float | None, top5: float | None) -> str:
    """As "76.13 / 92.86", "94.01" without a top-5 accuracy, "n/a / 89.93" without a top-1 accuracy."""
    first = "" if top1 is None and top5 is None else "n/a" if top1 is None else f"{top1:.2f}"
    return first if top5 is None else f"{first} / {top5:.2f}"


def model_table(rows: Sequence[dict[str, str]]) -> Table:
    """A row for each network."""
    table = Table("name", "parameters", "MACs", "input", "top-1 / top-5", "published on", "source")
    for row in rows:
        macs = None if row["macs"] == "n/a" else float(row["macs"])
        top = accuracies(*(float(row[k]) if row[k] else None for k in ("top1", "top5")))
        cells = f"{int(row['params']):,}", in_units(macs), row["input"], top, row["published"], row["source"]
        table.add_row(row["name"], *cells)
    return table


def weights_table(rows: "Sequence[Published]") -> Table:
    """A row for each set of weights of a network that has a name."""
    table = Table("--weights=", "top-1 / top-5", "MiB", "input", "license", title="weights by name")
    for row in rows:
        top = accuracies(row.top1, row.top5)
        name = f"{row.source}:{row.tag}{' (default)' * row.default}"
        table.add_row(name, top, f"{row.mb:,.1f}", str(row.preset.input_size[0]), row.license)
    return table


def layer_table(spec: str, image_size: int | None = None) -> Table:
    """A row for each layer of one network."""
    from cnnjax.models import variant
    from cnnjax.profiling.summary import summarize

    shape = variant(spec).preset.image_shape(image_size)
    summary = summarize(spec, shape)
    table = Table("layer", "output", "parameters", "MACs", "receptive field", title=f"{spec} on {shape}")
    for row in summary.layers:
        output = " ".join(map(str, row.output))
        table.add_row(row.name, output, f"{row.params:,}", in_units(row.macs), in_pixels(row.receptive_field))
    table.add_section()
    table.add_row("total", "", f"{summary.params:,}", in_units(summary.macs), "")
    return table


@command("compile")
def compile(
    *,
    config: ConfigDict,
    topology: Flag[str, "v5e:2x4, v6e:16x16, h100:8, cpu:8 ..."] = "cpu:8",
    image: Flag[str | None, "HxWxC: blank images of this size instead of the data set"] = None,
    num_classes: Flag[int, "classes of the blank images", 1] = 1000,
    num_examples: Flag[int, "images per epoch, with --image", 1] = 1_281_167,
    input_rate: Flag[float, "images per second read by all hosts (see `cnnjax bench data`)", 0.0] = 0.0,
    json: Json = False,
) -> None:
    """Compiles the training step of a config for other hardware, and prints what it needs there."""
    from cnnjax.profiling import forecast

    source = None
    if image:
        sides = [int(side) if side.isdecimal() else 0 for side in image.split("x")]
        if len(sides) != 3 or not all(sides):
            raise UserError(f"--image={image} must be height x width x channels, as in 256x256x3")
        source = forecast.blank_source((sides[0], sides[1], sides[2]), num_classes)
    cost = forecast.forecast(config, topology, source=source, input_rate=input_rate)
    tables, facts = cost_tables(cost, f"{config.model} on {topology}"), forecast.facts(cost)
    if image and (cost.slowest[0] or not math.isnan(cost.compute)):
        hours = config.total_epochs * num_examples / config.batch_size * cost.slowest[1] / 3600
        facts["hours"] = None if math.isnan(hours) else hours
        cells = f"{config.total_epochs:g} epochs of {num_examples:,}, minimum hours", _or_none(f"{hours:.2f}")
        tables[0].add_row(*cells)
    print_result(facts, json, *tables)


def _or_none(shown: str) -> str:
    """A number as it is shown, n/a in place of NaN."""
    return "n/a" if "nan" in shown else shown


def cost_tables(cost: "forecast.Forecast", title: str) -> list[Table]:
    """What a compiled step holds and moves on one device, how well it should scale, and its collectives."""
    program = cost.program
    table = Table("per device", "value", title=title)
    for name in ("memory", "arguments", "temporaries"):
        table.add_row(f"{name}, bytes", in_units(getattr(program, name)))
    table.add_row("FLOPs per step", in_units(cost.flops))
    accessed = None if math.isnan(program.bytes_accessed) else program.bytes_accessed
    table.add_row("bytes read and written", in_units(accessed))
    for kind, (count, wire) in program.by_kind().items():
        table.add_row(f"{count} x {kind}, bytes sent", in_units(wire))
    if not math.isnan(cost.compute):
        table.add_row("computation, minimum ms", f"{1e3 * cost.compute:.3f}")
        table.add_row("network, ms", _or_none(f"{1e3 * cost.network:.3f}"))
        hidden, alone = cost.efficiency_hidden, cost.efficiency_alone
        shown = _or_none(f"{100 * alone:.1f} % to {100 * hidden:.1f} %")
        table.add_row(f"efficiency on {cost.num_devices}", shown)
    if not math.isnan(cost.input):
        table.add_row("input, ms", f"{1e3 * cost.input:.3f}")
    if name := cost.slowest[0]:
        rate = cost.batch_size / cost.slowest[1]
        table.add_row("slowest", f"{name}: at most {rate:,.0f} images/s")
    table.add_row("compilation, s", f"{cost.compile_seconds:.1f}")
    layers = list(program.by_layer().items())
    if not layers:
        return [table]
    moved = Table("layer", "collectives", "bytes sent")
    for layer, (count, wire) in layers[:SHOWN_LAYERS]:
        moved.add_row(layer, str(count), in_units(wire))
    if rest := layers[SHOWN_LAYERS:]:
        count, wire = (sum(values) for values in zip(*(row for _, row in rest), strict=True))
        moved.add_row(f"{len(rest)} more layers", str(count), in_units(wire))
    return [table, moved]
