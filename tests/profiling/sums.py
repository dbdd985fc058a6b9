"""A peer of `cnnjax bench` that only sums numbers, or fails as its net is named."""

import time
from collections.abc import Callable

import numpy as np

from cnnjax.profiling.peers.serve import Unable, Work, serve


def build(work: Work) -> Callable[[], object]:
    print("a framework's own words")
    if work.model == "unknown":
        raise Unable("no such net")
    if work.model == "wrong":
        np.zeros(2) + np.zeros(3)
    if work.model == "dead":
        raise SystemExit("out of memory")
    if work.model == "autotuned" and work.mode == "thorough":
        raise Unable("no such mode")
    if work.model == "slow":
        time.sleep(60)
    if work.mode == "far":
        return lambda: time.sleep(0.1)
    return lambda: (time.sleep(0.002), np.ones(work.shape).sum())


if __name__ == "__main__":
    serve("1.2", build)
