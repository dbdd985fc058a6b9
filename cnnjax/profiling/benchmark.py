"""Speed of training steps and of prediction, alone or next to other frameworks, and where the time goes."""

import functools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.files import scratch_folder
from cnnjax.data.sources.source import Shape
from cnnjax.errors import UserError, unknown
from cnnjax.models import DTYPES, create_model, variable_shapes, variant
from cnnjax.ops import cpu
from cnnjax.profiling.peers import process
from cnnjax.profiling.peers.process import Tell
from cnnjax.profiling.peers.serve import WARM_UP, Round, Work, measure
from cnnjax.training import optimizers, schedules
from cnnjax.training.chips import memory_peak
from cnnjax.training.steps import batch_gradient, init_state, run_init, train_step

Figures = dict[str, object]  # by name: numbers and words, and more of these
# What a profiled operation is, by the JAX functions that made it, of convolutions and dense layers by the
# innermost, whose modules convert and add biases too; the first match counts.
KINDS = {
    "convolution": r"conv(?!ert)[^/]*$",
    "dense": r"(dot_general|dense)[^/]*$",
    "pooling": r"pool|reduce_window|select_and",
    "normalization": r"norm|rsqrt|/identity/",
    "optimizer": r"optimizer|trace|adam|scale_by",
}


class TrainBench:
    """A compiled training step of one model, SGD with momentum, on uint8 images in device memory."""

    def __init__(self, spec: str, batch_size: int, dtype: str, image_size: int | None = None):
        check(batch_size, dtype)
        self.batch_size = batch_size
        preset, start = variant(spec).preset, time.perf_counter()
        height, width, channels = preset.input_size
        shape = (image_size or height, image_size or width, channels)
        model = create_model(spec, dtype=jnp.dtype(dtype))
        self.image_shape, self.num_classes = shape, model.num_classes
        variable_shapes(model, shape, f"model={spec!r}")
        schedule = schedules.make_schedule("constant", learning_rate=0.01, total_steps=10**6)
        tx = optimizers.make_optimizer("sgd", schedule)
        augment = augment_lib.parse("normalize(mean=0.5, std=0.25)", image_shape=shape)
        self.state = run_init(functools.partial(init_state, model, tx, jax.random.key(0), shape))
        gradient = functools.partial(batch_gradient, model=model, augment=augment)
        step = functools.partial(train_step, tx=tx, gradient=gradient)
        draw, key = np.random.default_rng(0), jax.random.key(0)
        image = draw.integers(0, 256, (batch_size, *shape), np.uint8)
        label = draw.integers(0, model.num_classes, batch_size).astype(np.int32)
        batch = jax.device_put({"image": image, "label": label, "mask": np.ones(batch_size, np.float32)})
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.state, batch, key).compile()
        run = cpu.settled(self.compiled)
        self._step = lambda state: run(state, batch, key)
        self.compile_seconds = time.perf_counter() - start
        self.step()
        self.first_step_seconds = time.perf_counter() - start

    def step(self) -> None:
        """Runs one step to its end."""
        self._start()
        self._wait()

    def rate(self, seconds: float) -> float:
        """Images a second over at least so many seconds, and at least two steps."""
        return measure(self._start, seconds, self.batch_size, wait=self._wait)["images_per_second"]

    def _start(self) -> None:
        self.state, self._metrics = self._step(self.state)

    def _wait(self) -> None:
        jax.block_until_ready((self.state, self._metrics))

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
        for name, _, ns in operations(planes):
            spent[kind_of(origin.get(name, name))] += ns
        return {kind: ns / spent.total() for kind, ns in spent.most_common()}


def operations(planes: Iterable[jax.profiler.ProfilePlane]) -> list[tuple[str, str, int]]:
    """Name, event and nanoseconds of each operation of a profile: of devices, if they tell of any.

    The host's planes may then tell of the same operations a second time.
    """
    found: dict[bool, list[tuple[str, str, int]]] = {True: [], False: []}
    for plane in planes:
        for event in (event for line in plane.lines for event in line.events):
            name = str(dict(event.stats).get("hlo_op", ""))
            if name and not event.name.startswith("end:"):
                found["/device:" in plane.name].append((name, event.name, round(event.duration_ns)))
    return found[True] or found[False]


def bench_train(
    spec: str,
    *,
    batch_size: int = 128,
    dtype: str = "float32",
    image_size: int | None = None,
    rounds: int = 5,
    seconds: float = 4.0,
    against: str | None = None,
    limit: float = 180.0,
    tell: Tell = lambda text: None,
) -> Figures:
    """Measures a training step, alternating with those of other frameworks.

    Args:
      against: comma-separated names of `peers.process.FRAMEWORKS`; each must be installed.
      limit: seconds for a peer to start, and to answer.
      tell: called with one line about each peer when it ends.

    Returns:
      model, dtype, batch, images_per_second (median of the rounds, with _min and _max), peak_memory_bytes,
      compile_seconds, first_step_seconds, cpu_kernels, device, shares; with peers also best_peer, ratio
      (median over rounds of ours to the best peer's) and under `peers` each one's figures, or why it failed.
    """
    names = process.named(against, "train")
    bench = TrainBench(spec, batch_size, dtype, image_size)
    for _ in range(cpu.SETTLING_STEPS):
        bench.step()
    bench.rate(min(seconds, 1.0))

    def measured(seconds: float) -> Round:
        return {"images_per_second": bench.rate(seconds), "peak_memory_bytes": memory_peak(jax.devices()[0])}

    work = Work("train", spec, batch_size, dtype, bench.image_shape, bench.num_classes)
    ours, rows = process.alternate(names, work, measured, rounds, seconds, limit, tell)
    return {
        **{"model": spec, "dtype": dtype, "batch": batch_size},
        **process.summary(ours),
        "compile_seconds": round(bench.compile_seconds, 2),
        "first_step_seconds": round(bench.first_step_seconds, 2),
        "cpu_kernels": cpu.status(),
        "device": jax.devices()[0].device_kind,
        "shares": {kind: round(share, 3) for kind, share in bench.shares().items()},
        **compared(rows),
    }


class Predicting(Protocol):
    """The part of `inference.model.TrainedModel` that is measured."""

    @property
    def spec(self) -> str: ...

    @property
    def image_shape(self) -> Shape: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def predict(self, images: np.ndarray, *, batch_size: int) -> Sequence[object]:
        """Classifies uint8 [B, H, W, C]."""


def bench_predict(
    trained: Predicting,
    *,
    batch_size: int = 32,
    dtype: str = "float32",
    rounds: int = 5,
    seconds: float = 4.0,
    against: str | None = None,
    limit: float = 180.0,
    tell: Tell = lambda text: None,
    file: str = "",
) -> Figures:
    """Measures `predict` on uint8 images in memory, alternating with other frameworks.

    Ours returns `Prediction`s with the five most likely classes, theirs only the array of probabilities. In
    int8 they run `file`, the network in ONNX, from normalized images to logits.
    Arguments and figures are those of `bench_train`, plus p50_ms and p99_ms, the median and the 99th
    percentile of a call in milliseconds; first_call_seconds includes compilation.
    """
    check(batch_size, dtype, (*DTYPES, "int8"))
    names = process.named(against, "predict")
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *trained.image_shape), np.uint8)
    call, start = functools.partial(trained.predict, images, batch_size=batch_size), time.perf_counter()
    call()
    first = time.perf_counter() - start
    for _ in range(WARM_UP):
        call()
    work = Work(
        "predict", trained.spec, batch_size, dtype, trained.image_shape, len(trained.class_names), file=file
    )
    peak = functools.partial(memory_peak, jax.devices()[0])
    measured = functools.partial(measure, call, batch_size=batch_size, peak=peak)
    ours, rows = process.alternate(names, work, measured, rounds, seconds, limit, tell)
    return {
        **{"model": trained.spec, "dtype": dtype, "batch": batch_size},
        **process.summary(ours),
        "first_call_seconds": round(first, 2),
        "cpu_kernels": cpu.status(),
        "device": jax.devices()[0].device_kind,
        **compared(rows),
    }


def kind_of(origin: str) -> str:
    """What an operation is, by the names of the functions that it comes from."""
    kinds = (kind for kind, made in KINDS.items() if re.search(made, origin))
    return next(kinds, "element-wise and copies")


def compared(rows: Mapping[str, process.Row]) -> Figures:
    """The figures of the comparison with peers."""
    return {**dict(process.best(rows)), "peers": dict(rows)} if rows else {}


def check(batch_size: int, dtype: str, dtypes: Sequence[str] = DTYPES) -> None:
    """Raises a UserError."""
    if dtype not in dtypes:
        raise unknown("--dtype", dtype, dtypes)
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size} must be at least 1")


def calls_per_second(call: Callable[[], object], seconds: float) -> float:
    """How often a function can be called, measured over at least so many seconds and two calls."""
    return measure(call, seconds, 1)["images_per_second"]
