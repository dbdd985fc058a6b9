"""Inside a peer's process: builds the requested work, then measures as long as each input line says."""

import dataclasses
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable

WARM_UP = 1  # call after the first that is not measured
Round = dict[str, float]  # what one measurement gives


class Unable(Exception):
    """The framework lacks the network or the dtype."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured: a step of training, or the way from uint8 images to probabilities in memory."""

    kind: str  # "train" or "predict"
    model: str  # by its name here
    batch_size: int
    dtype: str  # "float32", "bfloat16" or "int8", of what a net computes
    shape: tuple[int, int, int]  # [H, W, C] of an image
    num_classes: int
    mode: str = ""  # of the framework
    file: str = ""  # of int8: the network as ONNX with QuantizeLinear, float32 [B, H, W, C] -> logits


def serve(version: str, build: Callable[[Work], Callable[[], object]]) -> None:
    """Speaks with `process.Peer`; `build` returns one step, or one batch, done when it returns."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a framework prints is no answer
    fields = json.loads(sys.argv[1])
    work = Work(**fields | {"shape": tuple(fields["shape"])})
    start = time.perf_counter()
    try:
        call = build(work)
        call()
        first = time.perf_counter() - start
        for _ in range(WARM_UP):
            call()
    except Exception as error:  # of any framework: the bench says so and goes on with the next
        reason = " ".join(str(error).split())[:200]
        known = isinstance(error, Unable)
        print(json.dumps({"failed": reason if known else f"{type(error).__name__}: {reason}"}), file=out)
        return
    print(json.dumps({"version": version, "first_seconds": round(first, 2)}), file=out)
    for line in sys.stdin:
        print(json.dumps(measure(call, float(line), work.batch_size)), file=out)


def measure(call: Callable[[], object], seconds: float, batch_size: int) -> Round:
    """Images per second over at least so many seconds and two calls; milliseconds of the median call and of
    the slowest in a hundred; the process's peak of memory in bytes."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 2 or times[-1] - start < seconds:
        call()
        times.append(time.perf_counter())
    spent = sorted(b - a for a, b in zip([start, *times[:-1]], times, strict=True))
    return {
        "images_per_second": len(times) * batch_size / (times[-1] - start),
        "p50_ms": 1e3 * statistics.median(spent),
        "p99_ms": 1e3 * spent[min(len(spent) - 1, int(0.99 * len(spent)))],
        "peak_memory_bytes": peak_resident(),
    }


def peak_resident() -> int:
    """The largest resident size of this process so far, in bytes."""
    try:
        with open("/proc/self/status") as lines:  # getrusage counts what the process was forked from
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
