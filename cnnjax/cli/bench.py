"""The command `cnnjax bench`: what is fast and what is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from absl import flags
from rich.table import Table

from cnnjax.cli.flags import parse_flags
from cnnjax.cli.tables import print_table
from cnnjax.errors import unknown

if TYPE_CHECKING:
    from cnnjax.profiling.benchmark import Figures


def bench(args: list[str]) -> None:
    """Measures speed: `train` a whole step, `data` the input pipeline."""
    kinds = {"train": _train, "data": _data}
    kind, *rest = args or [""]
    if kind in ("-h", "--help"):
        kind, rest = "train", args
    if kind not in kinds:
        raise unknown("bench", kind, kinds)
    kinds[kind](rest)


def _data(args: list[str]) -> None:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("data", None, "folder:PATH of JPEG files; made-up ones", flag_values=values)
        flags.DEFINE_integer("images", 50_000, "to watch memory over", flag_values=values, lower_bound=1)
        flags.DEFINE_string("model", "alexnet", "whose step is compared", flag_values=values)
        flags.DEFINE_integer("rounds", 5, "measurements", flag_values=values, lower_bound=1)
        flags.DEFINE_float("seconds", 3.0, "a measurement", flag_values=values, lower_bound=0.0)
        flags.DEFINE_bool("json", False, "print JSON", flag_values=values)

    values, _ = parse_flags("bench data", args, define)
    from cnnjax.profiling.input_pipeline import bench_data

    figures = bench_data(
        values.data,
        rounds=values.rounds,
        seconds=values.seconds,
        images=values.images,
        step_model=values.model,
    )
    _print(figures, as_json=values.json)


def _train(args: list[str]) -> None:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("model", "simple_cnn", "a name or spec", flag_values=values)
        flags.DEFINE_integer("batch_size", 128, "images a step", flag_values=values)
        flags.DEFINE_string("dtype", "float32", "float32 or bfloat16", flag_values=values)
        flags.DEFINE_integer("image_size", None, "pixels; the preset's", flag_values=values)
        flags.DEFINE_integer("rounds", 5, "measurements", flag_values=values, lower_bound=1)
        flags.DEFINE_float("seconds", 4.0, "a measurement", flag_values=values, lower_bound=0.0)
        flags.DEFINE_string("against", None, "torch: in turn with PyTorch", flag_values=values)
        flags.DEFINE_bool("json", False, "print JSON", flag_values=values)

    values, _ = parse_flags("bench train", args, define)
    from cnnjax.profiling.benchmark import bench_train

    figures = bench_train(
        values.model,
        batch_size=values.batch_size,
        dtype=values.dtype,
        image_size=values.image_size,
        rounds=values.rounds,
        seconds=values.seconds,
        against=values.against,
    )
    _print(figures, as_json=values.json)


def _print(figures: Figures, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    table = Table("measure", "value")
    for name, value in figures.items():
        if isinstance(value, dict):
            for key, item in value.items():
                table.add_row(f"share: {key}", str(item))
        else:
            table.add_row(name, str(value))
    print_table(table)
