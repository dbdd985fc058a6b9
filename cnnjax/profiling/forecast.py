"""Predicts what a training step needs on other hardware, by compiling it without running it.

XLA's own compiler for TPUs comes with the extra `tpu` and compiles on any Linux machine.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import resource
import time
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.sources.source import ArraySource, Source, numbered_names
from cnnjax.errors import UserError, extra, unknown
from cnnjax.models import create_model, variant
from cnnjax.ops import cpu
from cnnjax.profiling.compiled import Collective, Program, inspect, layer_paths
from cnnjax.runs.experiment import build
from cnnjax.runs.step import lower_step, out_of_memory
from cnnjax.training.chips import CHIPS, GPUS, NODE, TPUS, Chip

MOST_DEVICES = 2048  # of a topology: XLA takes more CPU devices for those of several processes
# libtpu's compiler walks a long program by recursion, and the 1 MiB of its threads is too little for
# ResNet-50 on v6e. 1 GiB is the most that it allows; only touched pages become memory.
DEEP_STACKS = f"--xla_internal_thread_stack_size_bytes={2**30} --default_thread_stack_size={2**30}"


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A compiled step and, for a chip with known figures, the seconds that it should take (else NaN).

    `flops` are those of a step on one device: 6 for each multiply-add of the network and image, 2 forward and
    4 backward, 12 with SAM, and 2 for each of a teacher; None if a part is frozen, and `compute` is NaN. Else
    that is the larger of these over peak and XLA's count of bytes over memory bandwidth; for a GPU, whose
    program was compiled for CPUs, and where XLA has no count, it is the FLOPs alone. `network` is the time of
    all collectives in sequence, at the published rate, and NaN for GPUs of several nodes; `input` is the time
    to read a batch. The efficiency of many chips relative to one ranges from `efficiency_alone` (nothing is
    hidden behind the computation) to `efficiency_hidden` (all that fits is). A real computation takes longer,
    which hides more.
    """

    program: Program
    flops: float | None
    num_devices: int
    compile_seconds: float
    compute: float = math.nan
    network: float = math.nan
    input: float = math.nan
    batch_size: int = 0

    @property
    def slowest(self) -> tuple[str, float]:
        """Which of the three takes longest, and its seconds; ("", NaN) if that is not known."""
        if math.isnan(self.network) != math.isnan(self.compute):
            return "", math.nan
        times = {name: getattr(self, name) for name in ("compute", "network", "input")}
        known = {name: seconds for name, seconds in times.items() if not math.isnan(seconds)}
        return max(known.items(), key=lambda item: item[1]) if known else ("", math.nan)

    @property
    def efficiency_alone(self) -> float:
        return self.compute / (self.compute + self.network)

    @property
    def efficiency_hidden(self) -> float:
        return self.compute / float(np.maximum(self.compute, self.network))  # NaN if either is


def topology(name: str) -> tuple[Sequence[jax.Device], Chip | None, tuple[int, ...]]:
    """The devices, the chip and the shape that a name such as 'v5e:2x4', 'h100:8' or 'cpu:8' means.

    GPUs that are absent have no compiler: their step is partitioned for as many CPU devices.
    """
    kind, _, shape = name.partition(":")
    if kind not in (*TPUS, *GPUS, "cpu"):
        names = [*(f"{chip}:2x4" for chip in TPUS), *(f"{chip}:8" for chip in (*GPUS, "cpu"))]
        raise unknown("--topology", name, names)
    sides = tuple(map(int, shape.split("x"))) if re.fullmatch(r"\d{1,9}(x\d{1,9})*", shape) else ()
    if len(sides) != (2 if kind in TPUS else 1):
        raise UserError(f"--topology={name} must give the shape, as in 'v5e:2x4', 'h100:8' or 'cpu:8'")
    if not 1 <= math.prod(sides) <= MOST_DEVICES:
        raise UserError(f"--topology={name} must be of at least 1 and at most {MOST_DEVICES} devices")
    if kind in TPUS:
        return _tpus(name), CHIPS[kind], sides
    with contextlib.suppress(RuntimeError):  # too late once the devices have been counted
        jax.config.update("jax_num_cpu_devices", sides[0])
    if len(devices := jax.devices("cpu")) < sides[0]:
        raise UserError(f"--topology={name}: this process already runs with {len(devices)} CPU devices")
    return devices[: sides[0]], CHIPS.get(kind), sides


def _tpus(name: str) -> Sequence[jax.Device]:
    if not importlib.util.find_spec("libtpu"):
        raise UserError(f"--topology={name} needs the compiler for TPUs, on Linux: {extra('tpu')}")
    from jax.experimental import topologies

    # It asks the cloud's metadata server what machine it runs on, unless told that there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nobody takes a chip
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        given = os.environ.get("LIBTPU_INIT_ARGS", "")  # its flags count, as the later ones
        os.environ["LIBTPU_INIT_ARGS"] = f"{DEEP_STACKS} {given}".strip()
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # the runtime raises several kinds
        raise UserError(f"--topology={name}: {' '.join(str(error).split())[:200]}") from None


def forecast(
    config: ConfigDict, name: str, *, source: Source | None = None, input_rate: float = 0.0
) -> Forecast:
    """Compiles the training step of a config, with images like `source`'s, for a topology it must fit.

    `input_rate` is the images per second that the pipelines of all hosts deliver; 0 if unknown.
    """
    devices, chip, sides = topology(name)
    if source is not None:  # which has statistics of its own
        config = config_lib.assign(config, {"data.name": source.name})
    experiment = build(config, devices=devices, source=source)
    start = time.perf_counter()
    # Without the kernels of this machine's CPU for a chip.
    with cpu.chosen(chip is None), out_of_memory(name, config.model, config.batch_size):
        compiled = lower_step(experiment).compile()
    seconds = time.perf_counter() - start
    program = inspect(compiled, layer_paths(experiment.abstract_state.params))
    reading = config.batch_size / input_rate if input_rate else math.nan
    size, known = experiment.mesh.size, {"input": reading, "batch_size": config.batch_size}
    flops = experiment.flops()
    flops = None if flops is None else flops * config.batch_size / size
    found = Forecast(program, flops, size, seconds, **known)
    if chip is None:
        return found
    compute = math.nan if flops is None else flops / chip.flops
    if len(sides) > 1 and not math.isnan(compute + program.bytes_accessed):  # compiled for this very chip
        compute = max(compute, program.bytes_accessed / chip.memory_bandwidth)
    network = sum(each.count * collective_seconds(each, chip, sides) for each in program.collectives)
    if name.partition(":")[0] in GPUS and size > NODE:
        network = math.nan
    return dataclasses.replace(found, compute=compute, network=network)


def collective_seconds(each: Collective, chip: Chip, sides: tuple[int, ...]) -> float:
    """Seconds of one collective: its bytes over the network's bandwidth, and the latency of its hops."""
    # A ring along each side of the slice, both ways round: half of it in hops, an all-reduce twice that.
    hops = 1 if each.kind == "collective-permute" else sum(side // 2 for side in sides)
    return each.wire / chip.network + hops * chip.hop * (2 if each.kind == "all-reduce" else 1)


def blank_source(image_shape: tuple[int, int, int], num_classes: int, num_examples: int = 64) -> ArraySource:
    """A source that repeats one noise image, to compile a step without the data set."""
    noise = np.random.default_rng(0).integers(0, 256, image_shape, np.uint8)
    image = np.broadcast_to(noise, (num_examples, *image_shape))
    names = numbered_names(num_classes)
    return ArraySource(image, np.zeros(num_examples, np.int32), names, name="blank", split="train")


def model_memory(
    spec: str, batch_size: int, *, dtype: str = "float32", image_size: int | None = None
) -> Forecast:
    """The memory of a training step of one model, compiled for one CPU device; None is its preset's size."""
    preset = variant(spec).preset
    config = config_lib.default()
    config.update({"model": spec, "batch_size": batch_size, "dtype": dtype, "mesh": "data:1"})
    config.augment.train = config.augment.eval = "normalize(mean=0.5, std=0.25)"
    classes = create_model(spec).num_classes
    return forecast(config, "cpu:1", source=blank_source(preset.image_shape(image_size), classes))


def facts(found: Forecast) -> dict[str, object]:
    """A forecast as plain numbers, for JSON and CSV; None if the chip, or XLA, has no figures."""
    program = found.program
    predicted = {"compute_seconds": found.compute, "network_seconds": found.network}
    slowest, at_least = found.slowest
    predicted |= {"input_seconds": found.input, "step_seconds": at_least}
    predicted |= {"efficiency_alone": found.efficiency_alone, "efficiency_hidden": found.efficiency_hidden}
    predicted |= {"xla_flops": program.flops, "bytes_accessed": program.bytes_accessed}
    return {
        "devices": found.num_devices,
        "memory_bytes": program.memory,
        "argument_bytes": program.arguments,
        "temporary_bytes": program.temporaries,
        "flops": found.flops,
        "collectives": {kind: {"count": n, "bytes_sent": b} for kind, (n, b) in program.by_kind().items()},
        "layers": {layer: {"count": n, "bytes_sent": b} for layer, (n, b) in program.by_layer().items()},
        "slowest": slowest or None,
        **{name: None if math.isnan(value) else value for name, value in predicted.items()},
        "compile_seconds": round(found.compile_seconds, 1),
    }
