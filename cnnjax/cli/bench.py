"""The command `cnnjax bench`: what is fast and what is not."""

import functools
from typing import Annotated as Flag

from rich.table import Table

from cnnjax.cli.flags import Json, command
from cnnjax.cli.tables import print_result
from cnnjax.errors import by_name
from cnnjax.profiling.benchmark import Figures, bench_train
from cnnjax.profiling.input_pipeline import bench_data


def bench(args: list[str]) -> int:
    """Measures speed: `train` a whole step, `data` the input pipeline."""
    kinds = {"train": _train, "data": _data}
    kind, *rest = args or [""]
    if kind in ("-h", "--help"):
        kind, rest = "train", args
    return by_name("bench", kind, kinds)(rest)


@command("bench data")
def _data(
    *,
    data: Flag[str | None, "folder:PATH of JPEG files (default: synthetic ones)"] = None,
    images: Flag[int, "images over which memory is watched", 1] = 50_000,
    model: Flag[str, "model whose step is compared"] = "alexnet",
    rounds: Flag[int, "number of measurements", 1] = 5,
    seconds: Flag[float, "seconds per measurement", 0.0] = 3.0,
    json: Json = False,
) -> None:
    """Measures the input pipeline."""
    _print(bench_data(data, rounds=rounds, seconds=seconds, images=images, step_model=model), json)


@command("bench train")
def _train(
    *,
    model: Flag[str, "a name or spec"] = "simple_cnn",
    batch_size: Flag[int, "images per step"] = 128,
    dtype: Flag[str, "float32 or bfloat16"] = "float32",
    image_size: Flag[int | None, "pixels (default: the preset's)"] = None,
    rounds: Flag[int, "number of measurements", 1] = 5,
    seconds: Flag[float, "seconds per measurement", 0.0] = 4.0,
    against: Flag[str | None, "torch: alternate with PyTorch"] = None,
    json: Json = False,
) -> None:
    """Measures whole training steps."""
    step = functools.partial(bench_train, model, batch_size=batch_size, dtype=dtype, image_size=image_size)
    _print(step(rounds=rounds, seconds=seconds, against=against), json)


def _print(figures: Figures, json: bool) -> None:
    table = Table("measure", "value")
    for name, value in figures.items():
        rows = {f"share: {k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        for row in rows.items():
            table.add_row(*map(str, row))
    print_result(figures, json, table)
