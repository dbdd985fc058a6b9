"""Training steps beside PyTorch's on one device: rate, share of peak, memory; and a profile."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import jax

from cnnjax.data.files import scratch_folder
from cnnjax.errors import one_line
from cnnjax.ops import cpu
from cnnjax.profiling.benchmark import TrainBench, operations
from cnnjax.profiling.summary import summarize
from cnnjax.training.chips import memory_peak

Say = Callable[..., None]
TOY = ("simple_cnn", 8, 28)
ROUNDS, PATIENCE = 5, 0.6  # measurements alone and alternations, and seconds of each: 10 s a net of its 28
MARGIN = 2.0  # seconds before the part is ended


class NoAnswer(Exception):
    """Why a peer has no figures."""


class Peer:
    """A process that measures PyTorch's step when asked; it gets ready while this one compiles."""

    def __init__(self, model: str, batch: int, size: int):
        command = [sys.executable, "-m", "experiments.gpu.torch_step", model, str(batch), str(size)]
        self.errors, pipe = tempfile.TemporaryFile("w+"), subprocess.PIPE  # noqa: SIM115, a pipe may fill up
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)

    def answer(self, limit: float) -> dict[str, float]:
        """What it says next; NoAnswer with its last words if it has ended, as it must after so long."""
        assert self.process.stdout
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        line, late = self.process.stdout.readline(), not timer.is_alive()
        timer.cancel()
        if line:
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().strip().splitlines() or ["no words"]
        raise NoAnswer(f"no answer in {limit:.0f} s more" if late else words[-1][:200])

    def measure(self, seconds: float, limit: float) -> dict[str, float]:
        """Its images per second and memory."""
        print(seconds, file=self.process.stdin, flush=True)
        return self.answer(limit)

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def stopped(peers: Sequence[Peer]) -> Iterator[None]:
    """They wait, so that what is measured inside has the machine."""
    for peer in peers:
        peer.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for peer in peers:
            peer.process.send_signal(signal.SIGCONT)


def train_flops(model: str, size: int) -> float:
    """FLOPs of a training step for one image: forward once, backward twice, 2 for a multiply-add."""
    channels = 1 if model == TOY[0] else 3
    return 6.0 * (summarize(model, (size, size, channels)).macs or 0)


def compare(say: Say, peak: float, nets: Sequence[tuple[str, int, int]], *, toy: bool, until: float) -> None:
    """Each net (name, batch, size) in turn with the peer; one that fails has a row, and the next begins.

    Each has its share of the time until `until`, in seconds since the epoch; the next net's peer gets ready
    meanwhile, as PyTorch may take longer to compile.
    """
    peers: list[Peer] = []
    try:
        for number, net in enumerate(nets):
            for model, batch, size in nets[len(peers) : number + 2]:
                # The peer knows no toy: it is as small as torchvision's nets allow.
                small = ("resnet50", 2, 32)
                peers.append(Peer(*(small if toy else (model.removesuffix("_torchvision"), batch, size))))
            share = (until - MARGIN - time.time()) / (len(nets) - number)
            try:
                one(say, peak, net, peers[number:], 0.05 if toy else PATIENCE, time.time() + share)
            except NoAnswer as error:
                say(case=net[0], measure="no PyTorch", note=str(error))
            except Exception as error:
                say(case=net[0], measure="failed", note=f"{type(error).__name__}: {one_line(error)[:200]}")
            peers[number].close()
            jax.clear_caches()
    finally:
        for peer in peers:
            peer.close()


def one(
    say: Say, peak: float, net: tuple[str, int, int], peers: Sequence[Peer], seconds: float, until: float
) -> None:
    """The rows of one net: ours, which wait for no peer, then the comparison with the first one."""
    model, batch, size = net
    bench = TrainBench(model, batch, "bfloat16", size)
    for _ in range(cpu.SETTLING_STEPS):
        bench.step()
    with stopped(peers):
        bench.rate(seconds)
        alone = [bench.rate(seconds) for _ in range(ROUNDS)]
    rate = median(alone)
    words = f"batch {batch}, {size} pixels, bfloat16, {min(alone):.5g} to {max(alone):.5g}"
    say(case=model, measure="images/s", value=round(rate, 1), note=words)
    if peak:
        say(case=model, measure="share of peak", value=round(rate * train_flops(model, size) / peak, 4))
    memory = memory_peak(jax.devices()[0])
    say(case=model, measure="memory, bytes", value=memory, note="the most of all nets so far")
    say(case=model, measure="compiled in, s", value=round(bench.compile_seconds, 1))
    peer, *others = peers
    ready = peer.answer(max(1.0, until - time.time() - 3 * ROUNDS * seconds))
    with stopped(others):
        pairs, start = [], time.time()
        while len(pairs) < ROUNDS and (not pairs or time.time() + (time.time() - start) / len(pairs) < until):
            pairs.append((bench.rate(seconds), peer.measure(seconds, max(1.0, until - time.time()))))
    rates = [theirs["images_per_second"] for _, theirs in pairs]
    ratios = [ours / rate for (ours, _), rate in zip(pairs, rates, strict=True)]
    note = f"torch {ready['torch']}, {min(rates):.5g} to {max(rates):.5g}"
    say(case=model, measure="PyTorch, images/s", value=round(median(rates), 1), note=note)
    note = f"{len(ratios)} alternations, {min(ratios):.3f} to {max(ratios):.3f}"
    say(case=model, measure="ratio to PyTorch", value=round(median(ratios), 3), note=note)
    say(case=model, measure="PyTorch, memory, bytes", value=int(max(each["memory"] for _, each in pairs)))


def profile(say: Say, *, toy: bool, steps: int = 5, shown: int = 15) -> None:
    """The operations of a step that take the most time, and the share of it in which the device is busy."""
    model, batch, size = TOY if toy else ("resnet50", 256, 224)
    bench = TrainBench(model, batch, "bfloat16", size)
    for _ in range(3):
        bench.step()
    with scratch_folder() as folder:
        with jax.profiler.trace(str(folder)):
            start = time.perf_counter()
            for _ in range(steps):
                bench.step()
            wall = time.perf_counter() - start
        file = str(next(folder.rglob("*.xplane.pb")))
        planes = list(jax.profiler.ProfileData.from_file(file).planes)
    spent: Counter[str] = Counter()
    for name, event, ns in operations(planes):
        spent[f"{name} ({event})" if event != name else name] += ns
    say(case=model, measure="step, ms", value=round(1e3 * wall / steps, 3))
    say(case=model, measure="in operations, share of the time", value=round(spent.total() / 1e9 / wall, 3))
    for name, ns in spent.most_common(shown):
        say(case=model, measure="share of operations", value=round(ns / spent.total(), 4), note=name[:160])
    for kind, share in bench.shares().items():
        say(case=model, measure="share of kind", value=round(share, 4), note=kind)
