"""The available peers, and a peer as a process that measures on request."""

import dataclasses
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cnnjax.errors import UserError, extra, unknown
from cnnjax.profiling.peers.serve import Round, Work

FAR = 2.0  # times slower than the fastest of those before it: no near rival
Row = dict[str, float | str]  # figures of a peer beside ours, or the reason under "failed"
Tell = Callable[[str], None]


class Framework(NamedTuple):
    """One value of `--against`."""

    module: str  # runs in the process
    needs: tuple[str, ...]  # modules
    kinds: tuple[str, ...] = ("train", "predict")
    modes: tuple[str, ...] = ("",)  # the first that is ready in time
    environment: Mapping[str, str] = {}


HERE = "cnnjax.profiling.peers"
TORCH = ("torch", "torchvision")
FRAMEWORKS = {
    "torch": Framework(f"{HERE}.torch", TORCH, modes=("eager",)),
    "torch_compile": Framework(f"{HERE}.torch", TORCH, modes=("max-autotune", "default")),
    "keras": Framework(f"{HERE}.keras", ("keras", "jax"), ("train",), environment={"KERAS_BACKEND": "jax"}),
    "keras_tensorflow": Framework(
        f"{HERE}.keras", ("keras", "tensorflow"), ("train",), environment={"KERAS_BACKEND": "tensorflow"}
    ),
    "openvino": Framework(f"{HERE}.openvino", ("openvino", *TORCH), ("predict",)),
    "onnxruntime": Framework(f"{HERE}.onnxruntime", ("onnxruntime", "onnx", *TORCH), ("predict",)),
}


class Failed(Exception):
    """Why a peer has no figures."""


class Peer:
    """A process that does the work; it must start, and answer, within `limit` seconds."""

    def __init__(self, framework: Framework, work: Work, limit: float):
        command = [sys.executable, "-m", framework.module, json.dumps(dataclasses.asdict(work))]
        self.errors, self.limit = tempfile.TemporaryFile(), limit  # noqa: SIM115, open as long as the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **framework.environment},
        )
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> Round:
        """See `serve.measure`."""
        try:
            print(seconds, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed(self._last_words()) from None
        return self._answer()

    def close(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout
        timer = threading.Timer(self.limit, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if not line:
            raise Failed(f"not ready in {self.limit:.0f} s" if late else self._last_words())
        found = json.loads(line)
        if "failed" in found:
            raise Failed(found["failed"])
        return found

    def _last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode(errors="replace").strip().splitlines()
        return f"ended with code {code}" + (f": {words[-1][:200]}" if words else "")


def share_memory() -> None:
    """Before JAX's devices start: else its processes take most of a GPU's memory at once, from all others."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def named(against: str | None, kind: str) -> list[str]:
    """The peers of a comma-separated list; each must be installed."""
    names = list(dict.fromkeys(against.split(","))) if against else []
    allowed = [name for name, framework in FRAMEWORKS.items() if kind in framework.kinds]
    for name in names:
        if name not in allowed:
            raise unknown("--against", name, allowed)
        if missing := [each for each in FRAMEWORKS[name].needs if not importlib.util.find_spec(each)]:
            raise UserError(f"--against={name} needs {' and '.join(missing)}: {extra('peers')}")
    return names


def alternate(
    names: Sequence[str],
    work: Work,
    measure: Callable[[float], Round],
    rounds: int,
    seconds: float,
    limit: float,
    tell: Tell,
) -> tuple[list[Round], dict[str, Row]]:
    """Our rounds, and the row of each peer: ours and the peer's take turns, one peer after the other.

    So there are never more than two of them in memory. One that is `FAR` slower than another is measured
    once. Without peers there are `rounds` of ours alone.
    """
    if not names:
        return [measure(seconds) for _ in range(rounds)], {}
    ours: list[Round] = []
    rows: dict[str, Row] = {}
    for name in names:
        pairs: list[tuple[Round, Round]] = []
        try:
            peer, mode = _start(FRAMEWORKS[name], work, limit)
            nearest = min((float(row["ratio"]) for row in rows.values() if "ratio" in row), default=math.inf)
            try:
                while len(pairs) < rounds and not (pairs and _ratio(*pairs[0]) > FAR * nearest):
                    ours.append(measure(seconds))
                    pairs.append((ours[-1], peer.measure(seconds)))
            finally:
                peer.close()
            rows[name] = _row(pairs) | peer.facts | ({"mode": mode} if mode else {})
            tell(f"{name}: ratio {rows[name]['ratio']}")
        except Failed as error:
            rows[name] = {"failed": str(error)}
            tell(f"{name}: {error}")
    return ours or [measure(seconds) for _ in range(rounds)], rows


def _start(framework: Framework, work: Work, limit: float) -> tuple[Peer, str]:
    """The peer in the first of its modes that is ready in time."""
    *others, last = framework.modes
    for mode in others:
        try:
            return Peer(framework, dataclasses.replace(work, mode=mode), limit), mode
        except Failed:
            pass
    return Peer(framework, dataclasses.replace(work, mode=last), limit), last


def _row(pairs: Sequence[tuple[Round, Round]]) -> Row:
    ratios = spread("ratio", [_ratio(*pair) for pair in pairs], 3)
    return {**ratios, "rounds": len(pairs), **summary([theirs for _, theirs in pairs])}


def _ratio(ours: Round, theirs: Round) -> float:
    return ours["images_per_second"] / theirs["images_per_second"]


def summary(rounds: Sequence[Round]) -> Row:
    """Medians of the rounds, images per second with their range, and peak memory."""
    values = {name: [each[name] for each in rounds] for name in rounds[0]}
    times = [name for name in values if name.endswith("_ms")]
    medians = {name: round(statistics.median(values[name]), 3) for name in times}
    rates = spread("images_per_second", values["images_per_second"], 2)
    return {**rates, **medians, "peak_memory_bytes": max(values["peak_memory_bytes"])}


def spread(name: str, values: Sequence[float], digits: int) -> dict[str, float]:
    """The median of repeated measurements under a name, with the smallest and the largest."""
    figures = {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


def best(rows: Mapping[str, Row]) -> Iterator[tuple[str, float | str]]:
    """The fastest peer next to ours, and our ratio to it; empty if none has figures."""
    measured = {name: row for name, row in rows.items() if "ratio" in row}
    if measured:
        name = min(measured, key=lambda each: measured[each]["ratio"])
        yield "best_peer", name
        for figure in ("ratio", "ratio_min", "ratio_max"):
            yield figure, measured[name][figure]
