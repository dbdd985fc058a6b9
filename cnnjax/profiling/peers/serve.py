"""Inside a peer's process: builds the requested work, then measures as long as each input line says."""

import dataclasses
import json
import operator
import os
import statistics
import sys
import time
from collections.abc import Callable

from cnnjax.data.machine import peak_resident

WARM_UP = 1  # call after the first that is not measured
AHEAD = 8  # steps that may wait on a device
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


def serve(
    version: str,
    build: Callable[[Work], Callable[[], object]],
    *,
    wait: Callable[[], object] | None = None,
    peak: Callable[[], int] = peak_resident,
) -> None:
    """Speaks with `process.Peer`; `build` returns one step, or one batch.

    A batch is done when it returns; so is a step, unless `wait` waits for what runs on a device. `peak` is
    as in `measure`.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a framework prints is no answer
    fields = json.loads(sys.argv[1])
    work = Work(**fields | {"shape": tuple(fields["shape"])})
    wait = wait if work.kind == "train" else None
    start = time.perf_counter()
    try:
        call = build(work)
        call()
        if wait:
            wait()
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
        print(json.dumps(measure(call, float(line), work.batch_size, wait=wait, peak=peak)), file=out)


def measure(
    call: Callable[[], object],
    seconds: float,
    batch_size: int,
    *,
    wait: Callable[[], object] | None = None,
    peak: Callable[[], int] = peak_resident,
) -> Round:
    """Images per second over at least so many seconds and two calls, and the peak of memory in bytes.

    Without `wait`, also milliseconds of the median call and of the slowest in a hundred. With it a call only
    starts its work, and every `AHEAD` calls and at the end `wait` waits for all of it.
    """
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 2 or times[-1] - start < seconds:
        call()
        if wait and len(times) % AHEAD == AHEAD - 1:
            wait()
        times.append(time.perf_counter())
    if wait:
        wait()
    total, spent = time.perf_counter() - start, sorted(map(operator.sub, times, [start, *times[:-1]]))
    slow = spent[min(len(spent) - 1, int(0.99 * len(spent)))]
    calls = {} if wait else {"p50_ms": 1e3 * statistics.median(spent), "p99_ms": 1e3 * slow}
    rate = {"images_per_second": len(times) * batch_size / total}
    return {**rate, **calls, "peak_memory_bytes": peak()}
