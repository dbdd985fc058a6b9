"""Speed: images a second of a whole training step, alone or beside PyTorch, and where the time goes."""

import functools
import importlib.util
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment import chain as augment_lib
from cnnjax.errors import UserError, unknown
from cnnjax.models import create_model, variant
from cnnjax.ops import cpu
from cnnjax.runs.memory import device_memory
from cnnjax.training import optimizers, schedules
from cnnjax.training.state import init_state, run_init
from cnnjax.training.steps import batch_gradient, in_turn_on_cpu, train_step

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
    """A compiled training step of one model on images that lie on the device already.

    SGD with momentum and cross entropy; uint8 images are normalized in the step, as in training.
    """

    def __init__(self, spec: str, batch_size: int, dtype: str, image_size: int | None = None):
        """Compiles the step and runs it once; `image_size` in pixels, the preset's by default."""
        if dtype not in DTYPES:
            raise unknown("--dtype", dtype, DTYPES)
        if batch_size < 1:
            raise UserError(f"--batch_size={batch_size} must be at least 1")
        self.spec, self.batch_size, self.dtype = spec, batch_size, dtype
        preset = variant(spec).preset
        height, width, channels = preset.input_size
        shape = (image_size or height, image_size or width, channels)
        start = time.perf_counter()
        self._step = self._compile(shape, preset.num_classes)
        self.compile_seconds = time.perf_counter() - start
        self.step()
        self.first_step_seconds = time.perf_counter() - start

    def _compile(self, shape: tuple[int, int, int], num_classes: int) -> Callable:
        model = create_model(self.spec, dtype=jnp.dtype(self.dtype))
        schedule = schedules.make_schedule("constant", learning_rate=0.01, total_steps=10**6)
        tx = optimizers.make_optimizer("sgd", schedule)
        augment = augment_lib.parse("normalize(mean=0.5, std=0.25)", image_shape=shape)
        key = jax.random.key(0)
        self.state = run_init(functools.partial(init_state, model, tx, key, shape))
        draw = np.random.default_rng(0)
        self.batch = jax.device_put(
            {
                "image": draw.integers(0, 256, (self.batch_size, *shape), np.uint8),
                "label": draw.integers(0, num_classes, self.batch_size).astype(np.int32),
                "mask": np.ones(self.batch_size, np.float32),
            }
        )
        gradient = functools.partial(batch_gradient, model=model, augment=augment)
        step = functools.partial(train_step, tx=tx, gradient=gradient)
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.state, self.batch, key).compile()
        memory = device_memory(self.compiled)
        return lambda state: in_turn_on_cpu(self.compiled(state, self.batch, key), memory)

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
        """The part of the step's time that each kind of operation takes, largest first."""
        origin = dict(
            re.findall(r'%?([\w.\-]+) = [^\n]*metadata={[^}]*op_name="([^"]*)"', self.compiled.as_text())
        )
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for _ in range(steps):
                    self.step()
            file = next(Path(folder).rglob("*.xplane.pb"))
            planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        spent: Counter[str] = Counter()
        for event in (event for plane in planes for line in plane.lines for event in line.events):
            name = dict(event.stats).get("hlo_op")
            if name and not event.name.startswith("end:"):
                spent[_kind(origin.get(name, name))] += event.duration_ns
        return {kind: ns / spent.total() for kind, ns in spent.most_common()}


def _kind(origin: str) -> str:
    for kind, pattern in KINDS.items():
        if re.search(pattern, origin):
            return kind
    return "element-wise and copies"


def bench_train(
    spec: str,
    *,
    batch_size: int = 128,
    dtype: str = "float32",
    image_size: int | None = None,
    rounds: int = 5,
    seconds: float = 4.0,
    against: str | None = None,
) -> dict[str, Any]:
    """Measures a training step; with `against="torch"` in turn with PyTorch's, in the same minutes.

    Returns:
      model, dtype, batch, images_per_second (median of the rounds), images_per_second_min and _max,
      compile_seconds, first_step_seconds, peak_memory_bytes, cpu_kernels, device, shares; with a peer also
      its images per second and `ratio`, the median over rounds of ours to theirs.

    Raises:
      UserError: for an unknown model, dtype or peer, or a peer that is not installed.
    """
    peer = start_peer(against, spec, batch_size, dtype) if against else None
    try:
        bench = TrainBench(spec, batch_size, dtype, image_size)
        bench.rate(min(seconds, 1.0))
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(bench.rate(seconds))
            if peer:
                theirs.append(peer(seconds))
    finally:
        if peer:
            peer.process.terminate()
    found = {
        "model": spec,
        "dtype": dtype,
        "batch": batch_size,
        "images_per_second": round(statistics.median(ours), 2),
        "images_per_second_min": round(min(ours), 2),
        "images_per_second_max": round(max(ours), 2),
        "compile_seconds": round(bench.compile_seconds, 2),
        "first_step_seconds": round(bench.first_step_seconds, 2),
        "peak_memory_bytes": peak_memory(),
        "cpu_kernels": cpu.status(),
        "device": jax.devices()[0].device_kind,
        "shares": {kind: round(share, 3) for kind, share in bench.shares().items()},
    }
    if theirs:
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        found["torch_images_per_second"] = round(statistics.median(theirs), 2)
        found["ratio"] = round(statistics.median(ratios), 3)
        found["ratio_min"], found["ratio_max"] = round(min(ratios), 3), round(max(ratios), 3)
    return found


def peak_memory() -> int:
    """Bytes: the device's peak where it keeps count, else the largest resident size of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    in_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats.get("peak_bytes_in_use") or in_kib * (1 if sys.platform == "darwin" else 1024)


class Peer:
    """A process that measures PyTorch's training step when asked; idle in between."""

    def __init__(self, spec: str, batch_size: int, dtype: str):
        command = [sys.executable, "-m", "cnnjax.profiling.torch_peer", spec, str(batch_size), dtype]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(command, **pipes, text=True)
        self._answer()

    def __call__(self, seconds: float) -> float:
        """Images a second."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self._answer()["images_per_second"]

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            reason = self.process.stderr.read().strip().splitlines()
            raise UserError(f"--against=torch failed: {reason[-1] if reason else 'no answer'}")
        return json.loads(line)


def start_peer(name: str, spec: str, batch_size: int, dtype: str) -> Peer:
    """The peer of `--against`."""
    if name != "torch":
        raise unknown("--against", name, ["torch"])
    missing = [module for module in ("torch", "torchvision") if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(f"--against=torch needs {' and '.join(missing)}: pip install 'cnnjax[peers]'")
    return Peer(spec, batch_size, dtype)
