"""Damaged and unusual files of a run folder and of a sweep, given to every command that reads them.

A trial damages one file of a copy and runs one command in this process. It may end as without the damage,
with a warning, or with one line that says what is wrong; it fails by another error, by more lines, or by not
ending.
"""

import contextlib
import copy
import functools
import gc
import io
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnjax.cli import main
from experiments.reliability.place import tiny_arrays, tiny_data

Damage = Callable[[Path], object]
SECONDS = 60  # after which a command counts as hanging
TINY = (
    *("--config.model=simple_cnn(widths=(2,), kernel_size=3)", "--config.batch_size=16"),
    *("--config.eval_batch_size=16", "--config.total_epochs=2", "--config.log_every_steps=2"),
    *("--config.optimizer.warmup_epochs=0.5", "--config.data.num_validation=10"),
)
FIELD = "optimizer.learning_rate"
COMMANDS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "--workdir={run}", "--json"),
    "evaluate best": ("evaluate", "--workdir={run}", "--checkpoint=best"),
    "predict": ("predict", "--workdir={run}", "{place}/image.png", "--json"),
    "report": ("report", "{run}"),
    "report of two": ("report", "{run}", "{place}/sound", "--out={new}/both.html"),
    "explore": ("explore", "--workdir={run}", "--port={port}"),
    "export": ("export", "--workdir={run}", "--out={new}/x.safetensors"),
    "weights export": ("weights", "export", "{new}/y.safetensors", "--workdir={run}"),
    "checkpoint list": ("checkpoint", "list", "--workdir={run}"),
    "checkpoint verify": ("checkpoint", "verify", "--workdir={run}"),
    "checkpoint prune": ("checkpoint", "prune", "--workdir={run}", "--keep=1"),
    "replay": ("replay", "--workdir={run}", "--json"),
    "train": ("train", "--workdir={run}", "--config.data.name={data}", *TINY),
    "init_from": (
        "train",
        "--workdir={new}/new",
        "--config.data.name={data}",
        *TINY,
        "--config.init_from={run}",
    ),
    "sweep": ("sweep", "--out={run}", "--config.data.name={data}", *TINY, "--set", f"{FIELD}=0.01"),
}
SWEPT = ("results.csv", "sweep.json")  # files of the sweep's folder; the others are those of its run
WRONG: tuple[Any, ...] = (
    *(None, [], {}, "", "x", "1", -1, 0, 0.5, True, 10**17, 10**30, float("nan"), float("inf")),
    *([None], [[1]], {"a": {"b": 1}}, "\ud800", "a\nb", "x" * 10_000),
)


class Hang(BaseException):
    """A command did not end."""


def make_place(place: Path) -> str:
    """A finished run, the same without its last checkpoint, a sweep of one run, an image; the data's name."""
    data, run = tiny_data(place), place / "sound"
    Image.fromarray(tiny_arrays()["train_image"][0, ..., 0]).save(place / "image.png")
    swept = ("sweep", f"--out={place / 'swept'}", "--set", f"{FIELD}=0.01")
    for args in (("train", f"--workdir={run}"), swept):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main.run([*args, f"--config.data.name={data}", *TINY]) == 0
    (run / "nonfinite.json").write_text(json.dumps({"7": {"step": 7, "indices": [1, 2]}}), "utf-8")
    shutil.copytree(run, place / "unfinished")
    shutil.rmtree(place / "unfinished" / "checkpoints" / "10")
    return data


def files_of(run: Path) -> list[str]:
    """The names below a run folder that a trial may damage; of the checkpoints those of the newest."""
    newest = max((run / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    largest = max((newest / "tree").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    files = [largest, *(file for file in sorted((newest / "tree").iterdir()) if file.is_file())]
    files += [newest, newest / "tree", newest / "manifest.json"]
    names = ["config.json", "record.json", "metrics.jsonl", "test.json", "predictions.npz", "nonfinite.json"]
    return [*names, ".lock", "checkpoints", *(str(file.relative_to(run)) for file in files)]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every entry of a JSON value; of a list the first."""
    pairs = enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else pairs:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _entries(text: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of JSON text with one entry missing, or of another kind."""
    value = json.loads(text)
    for path in _places(value):
        for wrong in ("missing", *WRONG):
            changed = copy.deepcopy(value)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = wrong
            if wrong == "missing":
                del inner[path[-1]]
            yield f"{'.'.join(map(str, path))}={wrong!r:.20}", json.dumps(changed).encode()


def contents(file: Path, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of what a damaged file may hold."""
    data = file.read_bytes()
    yield "empty", b""
    for tenth in range(1, 10):
        yield f"cut at {tenth}/10", data[: len(data) * tenth // 10]
    yield "random bytes", draw.randbytes(len(data))
    for number in range(5):
        at = draw.randrange(len(data) or 1)
        yield f"byte {number} changed", data[:at] + draw.randbytes(1) + data[at + 1 :]
    yield "twice", data + data
    yield "not UTF-8", b"\xff\xfe\xfd" + data
    yield "zeros", bytes(len(data))
    if file.suffix == ".json":
        for whole in (
            b"null",
            b"[]",
            b"{}",
            b"5",
            b'"x"',
            b"NaN",
            b"[" * 10**5,
            b'{"a":' * 900 + b"1" + b"}" * 900,
        ):
            yield f"whole={whole[:10].decode()}", whole
        yield from _entries(data.decode())
    elif file.suffix == ".jsonl":
        head, middle, *rest = data.decode().splitlines()
        for name, line in _entries(middle):
            yield f"line 2 {name}", "\n".join([head, line.decode(), *rest, ""]).encode()
        for bad in ("{", "null", "[]", "5", "\0\0\0", "", "x" * 10**6, "[" * 10**5):
            yield f"line 2 is {bad[:10]}", "\n".join([head, bad, *rest, ""]).encode()
    elif file.suffix == ".npz":
        yield from _arrays(data)
    elif file.suffix == ".csv":
        head, row = data.decode().splitlines()
        cells = [b"x", b"nan", b"-1", b'"', b"\0", b"x" * 200_000, b"\n", b"1,2"]
        for column in range(len(head.split(","))):
            for cell in cells:
                parts = row.split(",")
                parts[column] = "CELL"
                yield f"{column}={cell[:9]!r}", f"{head}\n{','.join(parts)}\n".encode().replace(b"CELL", cell)
        yield "other columns", b"a,b\n1,2\n"


def _arrays(data: bytes) -> Iterator[tuple[str, bytes]]:
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    for name, values in arrays.items():
        wrong = (
            values[:3],
            values[None],
            values.astype("U3"),
            values.astype("c8"),
            -values.astype("f4") * 1e6,
        )
        for number, other in enumerate((*wrong, np.zeros((0,), values.dtype), np.full_like(values, 99))):
            yield f"{name} {number}", _npz({**arrays, name: other})
        yield f"{name} missing", _npz({key: values for key, values in arrays.items() if key != name})
    yield "objects", _npz({**arrays, "label": np.array([{}] * len(arrays["label"]), object)})


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def kinds(file: Path, other: Path) -> Iterator[tuple[str, Damage]]:
    """(name, what puts it there) of what is no file of its own; `other` is the file of another run."""
    yield "pipe", os.mkfifo
    yield "folder", Path.mkdir
    yield "missing", lambda path: None
    for name, target in (
        ("device", "/dev/zero"),
        ("dangling", "none"),
        ("loop", file.name),
        ("out", "/etc/passwd"),
    ):
        yield f"link {name}", functools.partial(Path.symlink_to, target=target)
    if other.is_file():
        yield "another run's", functools.partial(shutil.copy, other)
        yield "link to another run's", functools.partial(Path.symlink_to, target=other)
    yield "sparse 1 GB", lambda path: (path.write_bytes(b""), os.truncate(path, 2**30))
    yield "mode 0", lambda path: (path.write_bytes(b"{}"), path.chmod(0))  # root may read it all the same


def damages(file: Path) -> Iterator[tuple[str, Damage]]:
    """(name, what writes it) of damaged contents of a file; none of a folder."""
    for name, data in contents(file, random.Random(file.name)) if file.is_file() else ():
        yield name, functools.partial(Path.write_bytes, data=data)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def attempt(args: list[str]) -> tuple[str, str]:
    """How a command ended ("done", "told" by a warning, "refused" in one line, "failed"), and its words."""
    out, err = io.StringIO(), io.StringIO()

    def end(signum: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with (
            warnings.catch_warnings(record=True) as told,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            warnings.simplefilter("always")
            code = main.run(args)
    except Hang:
        return "failed", f"it did not end within {SECONDS} s"
    except BaseException:
        return "failed", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    lines = [line for line in err.getvalue().splitlines() if line.startswith("cnnjax: ")]
    words = "; ".join(str(each.message) for each in told if each.category is UserWarning)
    foreign = [str(each.message) for each in told if "cnnjax" in each.filename and not words]
    listed = args[0] == "checkpoint" and code == 1  # its table names the damaged ones
    if foreign or code not in (0, 1, 2, 3) or len(lines) != int(code != 0 and not listed):
        return "failed", f"exit code {code}\n{err.getvalue()}{foreign}"
    if code:
        return "refused", out.getvalue() if listed else lines[0]
    return ("told" if words else "done"), words


def trials(place: Path, command: str, count: int, seed: int) -> Iterator[tuple[str, str, Damage]]:
    """(file, name, damage) of `count` trials of a command, drawn evenly over files, half of them no files."""
    draw, known = random.Random(f"{command} {seed}"), {}
    root, other = place / _base(command), place / "sound"
    (swept,) = (path for path in (place / "swept" / "runs").iterdir() if path.is_dir())
    if command == "sweep":
        names = [*SWEPT, *SWEPT, *(f"runs/{swept.name}/{name}" for name in files_of(swept))]
    else:
        names, other = files_of(root), swept
    for _ in range(count):
        name = draw.choice(names)
        if name not in known:
            elsewhere = other / name.removeprefix(f"runs/{swept.name}/")
            known[name] = list(kinds(root / name, elsewhere)), list(damages(root / name))
        yield name, *draw.choice(draw.choice([each for each in known[name] if each]))


def _base(command: str) -> str:
    return {"sweep": "swept", "train": "unfinished"}.get(command, "sound")


def trial(place: Path, data: str, command: str, name: str, damage: Damage) -> tuple[str, str]:
    """How a command ended on a copy in which one file is damaged, see `attempt`."""
    with tempfile.TemporaryDirectory(dir=place) as folder, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # so that `explore` ends when it has all but begun to serve
        target, port = Path(folder) / "run", taken.getsockname()[1]
        shutil.copytree(place / _base(command), target, symlinks=True)
        if name not in SWEPT:
            (target / "results.csv").unlink(missing_ok=True)  # so that a sweep reads the run again
        _remove(target / name)
        damage(target / name)
        values = {"run": target, "new": folder, "place": place, "data": data, "port": port}
        ended, words = attempt([word.format(**values) for word in COMMANDS[command]])
        if command == "explore" and f"port={port} cannot be opened" in words:
            return "done", ""
        return ended, words.replace(folder, "")


def damage(place: Path, data: str, command: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Tries a command on `count` damaged folders; prints what failed."""
    began, ends = time.monotonic(), Counter[str]()
    gc.collect()
    gc.freeze()  # so that no trial looks through all that the ones before left in the caches of jax
    for name, what, put in trials(place, command, count, seed):
        ended, words = trial(place, data, command, name, put)
        ends[ended] += 1
        if ended == "failed":
            print(f"{command}, {name}: {what}\n{words}", flush=True)
    seconds = round(time.monotonic() - began, 1)
    facts = {"inputs": count, "refused": ends["refused"], "failed": ends["failed"], "seconds": seconds}
    return {"test": "damage", "case": command, **facts}
