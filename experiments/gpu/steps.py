"""Training steps beside PyTorch's on one device: rate, share of peak, memory; and a profile."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

import jax

from cnnjax.data.files import scratch_folder
from cnnjax.errors import one_line
from cnnjax.ops import cpu
from cnnjax.profiling.benchmark import TrainBench
from cnnjax.profiling.summary import summarize
from cnnjax.training.chips import memory_peak

Say = Callable[..., None]
TOY = ("simple_cnn", 8, 28)
ROUNDS, PATIENCE = 5, 1.5  # alternations, and seconds of each


class Peer:
    """A process that measures PyTorch's step when asked; it gets ready while this one compiles."""

    def __init__(self, model: str, batch: int, size: int):
        command = [sys.executable, "-m", "experiments.gpu.torch_step", model, str(batch), str(size)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def answer(self) -> dict[str, float]:
        """What it says next; a RuntimeError with its last words if it has ended."""
        assert self.process.stdout and self.process.stderr
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["no answer"])[-1][:200])

    def measure(self, seconds: float) -> dict[str, float]:
        """Its images per second and memory."""
        print(seconds, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()


def train_flops(model: str, size: int) -> float:
    """FLOPs of a training step for one image: forward once, backward twice, 2 for a multiply-add."""
    channels = 1 if model == TOY[0] else 3
    return 6.0 * (summarize(model, (size, size, channels)).macs or 0)


def compare(say: Say, peak: float, nets: Sequence[tuple[str, int, int]], *, toy: bool) -> None:
    """Each net (name, batch, size) in turn with the peer; one that fails has a row, and the next begins."""
    seconds = 0.05 if toy else PATIENCE
    for model, batch, size in nets:
        # The peer knows no toy: it is as small as torchvision's nets allow.
        peer = Peer(
            "resnet50" if toy else model.removesuffix("_torchvision"),
            2 if toy else batch,
            64 if toy else size,
        )
        try:
            one(say, peak, (model, batch, size), peer, seconds)
        except Exception as error:
            say(case=model, measure="failed", note=f"{type(error).__name__}: {one_line(error)[:200]}")
        finally:
            peer.close()
        jax.clear_caches()


def one(say: Say, peak: float, net: tuple[str, int, int], peer: Peer, seconds: float) -> None:
    """The rows of one net; ours are written even if the peer fails."""
    model, batch, size = net
    bench = TrainBench(model, batch, "bfloat16", size)
    for _ in range(cpu.SETTLING_STEPS):
        bench.step()
    try:
        ready, why = peer.answer(), ""
    except RuntimeError as error:
        ready, why = {}, str(error)
    bench.rate(seconds)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(bench.rate(seconds))
        if ready:
            theirs.append(peer.measure(seconds))
    words = f"batch {batch}, {size} pixels, bfloat16, {min(ours):.5g} to {max(ours):.5g}"
    say(case=model, measure="images/s", value=round(median(ours), 1), note=words)
    if peak:
        say(
            case=model,
            measure="share of peak",
            value=round(median(ours) * train_flops(model, size) / peak, 4),
        )
    say(
        case=model,
        measure="memory, bytes",
        value=memory_peak(jax.devices()[0]),
        note="the most of all nets so far",
    )
    say(case=model, measure="compiled in, s", value=round(bench.compile_seconds, 1))
    if not theirs:
        return say(case=model, measure="no PyTorch", note=why)
    rates = [each["images_per_second"] for each in theirs]
    ratios = [a / b for a, b in zip(ours, rates, strict=True)]
    note = f"torch {ready['torch']}, {min(rates):.5g} to {max(rates):.5g}"
    say(case=model, measure="PyTorch, images/s", value=round(median(rates), 1), note=note)
    note = f"{min(ratios):.3f} to {max(ratios):.3f}"
    say(case=model, measure="ratio to PyTorch", value=round(median(ratios), 3), note=note)
    say(case=model, measure="PyTorch, memory, bytes", value=int(max(each["memory"] for each in theirs)))


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
    for event in (event for plane in planes for line in plane.lines for event in line.events):
        name = str(dict(event.stats).get("hlo_op", ""))
        if name and not event.name.startswith("end:"):
            spent[f"{name} ({event.name})" if event.name != name else name] += event.duration_ns
    say(case=model, measure="step, ms", value=round(1e3 * wall / steps, 3))
    say(case=model, measure="in operations, share of the time", value=round(spent.total() / 1e9 / wall, 3))
    for name, ns in spent.most_common(shown):
        say(case=model, measure="share of operations", value=round(ns / spent.total(), 4), note=name[:160])
    for kind, share in bench.shares().items():
        say(case=model, measure="share of kind", value=round(share, 4), note=kind)
