"""Speed: images a second of a whole training step, alone or beside PyTorch, and where the time goes."""

import functools
import importlib.util
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.files import scratch_folder
from cnnjax.errors import UserError, unknown
from cnnjax.models import create_model, variant
from cnnjax.ops import cpu
from cnnjax.runs.step import device_memory
from cnnjax.training import optimizers, schedules
from cnnjax.training.steps import batch_gradient, in_turn_on_cpu, init_state, run_init, train_step

Figures = dict[str, int | float | str | dict[str, float]]
DTYPES = ("float32", "bfloat16")
# What a profiled operation is, by the innermost JAX function that made it; the first match counts.
KINDS = {
    "convolution": r"conv_general_dilated|conv",
    "dense": r"dot_general",
    "pooling": r"pool|reduce_window|select_and",
    "normalization": r"norm|rsqrt",
    "optimizer": r"optimizer|trace|adam|scale_by",
}


class TrainBench:
    """A compiled training step of one model, SGD with momentum, on uint8 images that lie on the device."""

    def __init__(self, spec: str, batch_size: int, dtype: str, image_size: int | None = None):
        if dtype not in DTYPES:
            raise unknown("--dtype", dtype, DTYPES)
        if batch_size < 1:
            raise UserError(f"--batch_size={batch_size} must be at least 1")
        self.batch_size = batch_size
        preset, start = variant(spec).preset, time.perf_counter()
        height, width, channels = preset.input_size
        shape = (image_size or height, image_size or width, channels)
        model = create_model(spec, dtype=jnp.dtype(dtype))
        schedule = schedules.make_schedule("constant", learning_rate=0.01, total_steps=10**6)
        tx = optimizers.make_optimizer("sgd", schedule)
        augment = augment_lib.parse("normalize(mean=0.5, std=0.25)", image_shape=shape)
        self.state = run_init(functools.partial(init_state, model, tx, jax.random.key(0), shape))
        gradient = functools.partial(batch_gradient, model=model, augment=augment)
        step = functools.partial(train_step, tx=tx, gradient=gradient)
        draw, key = np.random.default_rng(0), jax.random.key(0)
        image = draw.integers(0, 256, (batch_size, *shape), np.uint8)
        label = draw.integers(0, preset.num_classes, batch_size).astype(np.int32)
        batch = jax.device_put({"image": image, "label": label, "mask": np.ones(batch_size, np.float32)})
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.state, batch, key).compile()
        memory, run = device_memory(self.compiled), cpu.settled(self.compiled)
        self._step = lambda state: in_turn_on_cpu(run(state, batch, key), memory)
        self.compile_seconds = time.perf_counter() - start
        self.step()
        self.first_step_seconds = time.perf_counter() - start

    def step(self) -> None:
        """One step, done when it returns."""
        self.state, metrics = self._step(self.state)
        jax.block_until_ready((self.state, metrics))

    def rate(self, seconds: float) -> float:
        """Images a second over at least so many seconds, and at least two steps."""
        start, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - start < seconds:
            self.state, metrics = self._step(self.state)
            steps += 1
            if steps % 8 == 0:
                metrics.loss.block_until_ready()  # bounds the steps that wait on the device
        jax.block_until_ready((self.state, metrics))
        return steps * self.batch_size / (time.perf_counter() - start)

    def shares(self, steps: int = 3) -> dict[str, float]:
        """The share of the step's time that each kind of operation takes, largest first."""
        text = self.compiled.as_text() or ""
        origin = dict(re.findall(r'%?([\w.\-]+) = [^\n]*metadata={[^}]*op_name="([^"]*)"', text))
        with scratch_folder() as folder:
            with jax.profiler.trace(str(folder)):
                for _ in range(steps):
                    self.step()
            file = next(folder.rglob("*.xplane.pb"))
            planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        spent: Counter[str] = Counter()
        for event in (event for plane in planes for line in plane.lines for event in line.events):
            name = str(dict(event.stats).get("hlo_op", ""))
            if name and not event.name.startswith("end:"):
                kinds = (kind for kind, made in KINDS.items() if re.search(made, origin.get(name, name)))
                spent[next(kinds, "element-wise and copies")] += event.duration_ns
        return {kind: ns / spent.total() for kind, ns in spent.most_common()}


def bench_train(
    spec: str,
    *,
    batch_size: int = 128,
    dtype: str = "float32",
    image_size: int | None = None,
    rounds: int = 5,
    seconds: float = 4.0,
    against: str | None = None,
) -> Figures:
    """Measures a training step; with `against="torch"` in turn with PyTorch's, in the same minutes.

    The figures are model, dtype, batch, images_per_second (median of the rounds, with _min and _max),
    compile_seconds, first_step_seconds, peak_memory_bytes, cpu_kernels, device, shares; with a peer also its
    images per second and `ratio`, the median over rounds of ours to theirs. A peer must be installed.
    """
    peer, ours, theirs = Peer(against, spec, batch_size, dtype) if against else None, [], []
    try:
        bench = TrainBench(spec, batch_size, dtype, image_size)
        for _ in range(cpu.SETTLING_STEPS):
            bench.step()
        bench.rate(min(seconds, 1.0))
        for _ in range(rounds):
            ours.append(bench.rate(seconds))
            theirs += [peer(seconds)] if peer else []
    finally:
        if peer:
            peer.process.terminate()
    device = jax.devices()[0]
    figures: Figures = {
        **{"model": spec, "dtype": dtype, "batch": batch_size},
        **with_range("images_per_second", ours, 2),
        "compile_seconds": round(bench.compile_seconds, 2),
        "first_step_seconds": round(bench.first_step_seconds, 2),
        # The device's peak where it keeps count, else that of this process.
        "peak_memory_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use") or peak_resident(),
        "cpu_kernels": cpu.status(),
        "device": device.device_kind,
        "shares": {kind: round(share, 3) for kind, share in bench.shares().items()},
    }
    if theirs:
        figures["torch_images_per_second"] = round(statistics.median(theirs), 2)
        figures |= with_range("ratio", [a / b for a, b in zip(ours, theirs, strict=True)], 3)
    return figures


def with_range(name: str, values: list[float], digits: int) -> dict[str, float]:
    """The median of repeated measurements under a name, with the smallest and the largest."""
    figures = {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


def calls_per_second(call: Callable[[], object], seconds: float) -> float:
    """How often a function can be called, measured over at least so many seconds and two calls."""
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - start)


def peak_resident() -> int:
    """Bytes: the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Peer:
    """A process that measures PyTorch's training step when asked; `name` is that of `--against`."""

    def __init__(self, name: str, spec: str, batch_size: int, dtype: str):
        if name != "torch":
            raise unknown("--against", name, ["torch"])
        if missing := [module for module in ("torch", "torchvision") if not importlib.util.find_spec(module)]:
            raise UserError(f"--against=torch needs {' and '.join(missing)}: pip install 'cnnjax[peers]'")
        command = [sys.executable, "-m", "cnnjax.profiling.torch_peer", spec, str(batch_size), dtype]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._answer()

    def __call__(self, seconds: float) -> float:
        """Images a second."""
        print(seconds, file=self.process.stdin, flush=True)
        return self._answer()["images_per_second"]

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout and self.process.stderr
        if line := self.process.stdout.readline():
            return json.loads(line)
        reason = self.process.stderr.read().strip().splitlines() or ["no answer"]
        raise UserError(f"--against=torch failed: {reason[-1]}")
