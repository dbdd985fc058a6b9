"""The command `cnnjax bench`: what is fast and what is not."""

import functools
from pathlib import Path
from typing import Annotated as Flag

import numpy as np
from rich.table import Table

from cnnjax.cli.flags import Json, command
from cnnjax.cli.tables import print_result, say
from cnnjax.data.files import scratch_folder
from cnnjax.errors import by_name
from cnnjax.profiling.benchmark import Figures, bench_predict, bench_train, check
from cnnjax.profiling.input_pipeline import bench_data
from cnnjax.profiling.peers.process import FRAMEWORKS, named, share_memory


def _peers(kind: str) -> str:
    return ",".join(name for name, framework in FRAMEWORKS.items() if kind in framework.kinds)


def bench(args: list[str]) -> int:
    """Measures speed: `train` a whole step, `predict` a network in use, `data` the input pipeline."""
    kinds = {"train": _train, "predict": _predict, "data": _data}
    kind, *rest = args or [""]
    if kind in ("-h", "--help"):
        print(f"usage: cnnjax bench {' | '.join(kinds)} [--FLAG=VALUE ...]\n\n{bench.__doc__}\n")
        print("`cnnjax bench train --help` lists its flags; so do the others.")
        return 0
    return by_name("bench", kind, kinds)(rest)


@command("bench data")
def _data(
    *,
    data: Flag[str | None, "folder:PATH of JPEG files (default: synthetic ones)"] = None,
    images: Flag[int, "images over which memory is measured", 1] = 50_000,
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
    image_size: Flag[int | None, "pixels (default: the preset's)", 1] = None,
    rounds: Flag[int, "number of measurements", 1] = 5,
    seconds: Flag[float, "seconds per measurement", 0.0] = 4.0,
    against: Flag[str | None, f"other frameworks to alternate with: {_peers('train')}"] = None,
    peer_seconds: Flag[float, "seconds that a peer may take to start", 1.0] = 180.0,
    json: Json = False,
) -> None:
    """Measures whole training steps."""
    if against:
        share_memory()
    step = functools.partial(bench_train, model, batch_size=batch_size, dtype=dtype, image_size=image_size)
    _print(step(rounds=rounds, seconds=seconds, against=against, limit=peer_seconds, tell=_tell), json)


@command("bench predict")
def _predict(
    *,
    model: Flag[str, "a name or spec"] = "resnet50",
    batch_size: Flag[int, "images per call"] = 32,
    dtype: Flag[str, "float32, bfloat16 or int8"] = "float32",
    rounds: Flag[int, "number of measurements", 1] = 5,
    seconds: Flag[float, "seconds per measurement", 0.0] = 4.0,
    against: Flag[str | None, f"other frameworks to alternate with: {_peers('predict')}"] = None,
    peer_seconds: Flag[float, "seconds that a peer may take to start", 1.0] = 180.0,
    json: Json = False,
) -> None:
    """Measures prediction of uint8 images in memory, with random weights."""
    from cnnjax.inference.model import DTYPES, untrained

    check(batch_size, dtype, DTYPES)
    if named(against, "predict"):
        share_memory()
    call = functools.partial(bench_predict, untrained(model, dtype), batch_size=batch_size, dtype=dtype)
    with scratch_folder() as folder:
        file = _onnx_int8(model, batch_size, folder / "int8.onnx") if dtype == "int8" and against else ""
        _print(
            call(rounds=rounds, seconds=seconds, against=against, limit=peer_seconds, tell=_tell, file=file),
            json,
        )


def _onnx_int8(model: str, batch_size: int, path: Path) -> str:
    """Writes the file that frameworks run in int8: that of `cnnjax export --format=onnx --dtype=int8`."""
    from cnnjax.inference import onnx_int8
    from cnnjax.inference.export import FORMATS
    from cnnjax.inference.model import untrained

    trained = untrained(model)
    raw = np.random.default_rng(0).integers(0, 256, (batch_size, *trained.image_shape), np.uint8)
    FORMATS["onnx"].write(trained, path, batch_size)
    onnx_int8.quantize(path, np.asarray(trained.prepare(raw)), batch_size)
    return str(path)


def _tell(text: str) -> None:
    say(text, error=True)


def _print(figures: Figures, json: bool) -> None:
    table, peers = Table("measure", "value"), figures.get("peers")
    for name, value in figures.items():
        if name == "peers":
            continue
        rows = {f"share: {k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        for row in rows.items():
            table.add_row(*map(str, row))
    tables = [table]
    if isinstance(peers, dict):
        tables.append(Table("beside", *peers))
        for name in dict.fromkeys(name for row in peers.values() for name in row):
            tables[1].add_row(name, *(str(row.get(name, "")) for row in peers.values()))
    print_result(figures, json, *tables)
