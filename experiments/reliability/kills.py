"""Kills commands at each of their operations on files, one after the other, and starts them again.

Each command runs in a copy of this process, which ends as `kill -9` would before its k-th operation that
creates, writes, renames or removes a file of the work folder. The same command must then end well, with the
same files of results as without a kill, and leave nothing unfinished.
"""

import gc
import hashlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax.cli import main
from cnnjax.models import create_model, init_variables
from cnnjax.models.weights import files, to_torch
from cnnjax.runs.log import MEASURED
from experiments.reliability.place import Fork, tiny_data

EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.truncate"}
NET = "squeezenet1_1(stem='cifar', stem_width=8, squeezes=((2,),(4,)), num_classes=3)"
KILLED, LONGEST = 9, 300  # exit code; seconds that a command may take
TIMES = {*MEASURED, "compile_seconds"}
SMALL = (
    *("--config.model=simple_cnn(widths=(2, 3), kernel_size=3)", "--config.batch_size=16"),
    *("--config.eval_batch_size=16", "--config.data.num_validation=10", "--config.total_epochs=1"),
    *(
        "--config.optimizer.warmup_epochs=0.5",
        "--config.checkpoint_every_steps=2",
        "--config.keep_checkpoints=1",
    ),
)


def prepare(folder: Path, *, run: bool = True) -> None:
    """Makes what the commands read: a small data set, with `run` also a run on it and a file of weights."""
    data = tiny_data(folder)
    for module in (
        "cli.boards",
        "cli.progress",
        "cli.data",
        "cli.export",
        "explore.report",
        "inference.export",
    ):
        importlib.import_module(f"cnnjax.{module}")  # once for all copies of this process
    words = ["train", f"--workdir={folder}/run", f"--config.data.name={data}", *SMALL]
    log = folder / "log"
    if run and (
        attempt(words, folder / "none", 0, log)[0] or Fork(lambda: _write_weights(folder), log).wait()
    ):
        raise SystemExit(f"no run, or no weights:\n{log.read_text('utf-8')[-3000:]}")
    gc.collect()
    gc.freeze()  # so that no copy looks through all that is imported, again and again


def _write_weights(folder: Path) -> None:
    """A file of weights of `NET` under torch's names."""
    model = create_model(NET)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (32, 32, 3)))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    files.write(folder / "net.safetensors", to_torch(variables, model))


def commands(folder: Path) -> dict[str, list[str]]:
    """By name the words of a command that works below a folder {}, and reads what `prepare` made."""
    data, run = f"npz:{folder}/data.npz", f"{folder}/run"
    train = [f"--config.data.name={data}", *SMALL]
    return {
        "train": ["train", "--workdir={}/run", *train],
        "sweep": ["sweep", "--out={}/sweep", "--seeds=2", *train],
        "data prepare": ["data", "prepare", data, "--out={}/records"],
        "data inspect": ["data", "inspect", data, "--out={}/sheet.png"],
        "export": ["export", f"--workdir={run}", "--out={}/model.safetensors"],
        "report": ["report", run, run, "--out={}/comparison.html"],
        "weights import": [
            *("weights", "import", f"{folder}/net.safetensors", f"--model={NET}", "--workdir={}/run"),
        ],
    }


def watch(folder: Path, limit: int) -> list[int]:
    """From now on counts the operations in a folder; one is not done any more when the count is the limit."""
    count, below = [0], f"{folder}{os.sep}"

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if not os.path.abspath(os.fsdecode(args[0])).startswith(below):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return  # to read
        count[0] += 1
        if count[0] == limit:
            os._exit(KILLED)

    sys.addaudithook(hook)
    return count


def attempt(words: Sequence[str], folder: Path, limit: int, log: Path) -> tuple[int, int]:
    """The exit code of a command in a copy of this process, and how many operations it did, -1 if killed."""
    counted = folder.with_suffix(".count")
    counted.unlink(missing_ok=True)

    def call() -> int:
        count = watch(folder, limit)
        code = main.run([word.replace("{}", str(folder)) for word in words])
        counted.write_text(str(count[0]), "utf-8")
        return code

    fork = Fork(call, log)
    if (code := fork.wait(LONGEST)) is None:
        fork.kill()
        code = -KILLED
    return code, int(counted.read_text("utf-8")) if counted.exists() else -1


def outcome(folder: Path) -> dict[str, object]:
    """What a command left: names of files, with what is in those that hold results, but for times."""
    left: dict[str, object] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        name = str(file.relative_to(folder))
        if "tensorboard" in name or "/tree/" in name:
            continue
        data: object = None
        if file.name == "metrics.jsonl":
            rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            data = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                data = {key: arrays[key].tobytes() for key in arrays}
        elif file.name in ("test.json", "config.json") or file.suffix in (".safetensors", ".array_record"):
            data = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name == "results.csv":
            data = [line.split(",")[:8] for line in file.read_text("utf-8").splitlines()]
        left[name] = data
    return left


def trials(
    name: str, words: Sequence[str], place: Path, chosen: Callable[[int], Sequence[int]]
) -> Iterator[tuple[int, str]]:
    """(k, what is wrong or '') for each of the chosen of all operations of a command."""
    log, whole = place / f"{name}.log", place / f"{name} whole"
    whole.mkdir(parents=True)
    code, count = attempt(words, whole, 0, log)
    if code:
        raise SystemExit(f"{name} failed:\n{log.read_text('utf-8')[-3000:]}")
    expected = outcome(whole)
    for k in chosen(count):
        folder = place / f"{name} {k}"
        folder.mkdir()
        log.unlink(missing_ok=True)
        first, _ = attempt(words, folder, k, log)
        second, _ = attempt(words, folder, 0, log)
        problem = ""
        if first not in (KILLED, 0):
            problem = f"ended with {first} before the kill"
        elif second:
            problem = f"ended with {second} when started again: {log.read_text('utf-8')[-300:]}"
        elif (left := outcome(folder)) != expected:
            names = sorted(n for n in left.keys() | expected.keys() if left.get(n) != expected.get(n))
            problem = f"other results: {names}"
        yield k, problem
        if not problem:
            shutil.rmtree(folder)
