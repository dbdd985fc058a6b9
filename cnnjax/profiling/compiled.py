"""Memory, FLOPs and collectives by layer of a program compiled by XLA, for one device."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator

import jax
from flax import traverse_util
from flax.typing import Collection

from cnnjax.ops import cpu

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip
BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}
# HLO's text: an instruction's name, and of a collective the shape of its result, its kind and the rest.
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*$", re.MULTILINE)
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-done)?\((.*)$")
COLLECTIVE_START = re.compile(rf" (?:{'|'.join(KINDS)})-start\((.*)$")
PASSED_ON = "bitcast|convert|copy|get-tuple-element|reshape|transpose|fusion"
SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
OTHER = "step"  # where a collective belongs to no layer: gradients combined, metrics


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of communication, `count` times per step.

    `layers` are the bytes of its result on a device by layer, of several if XLA has combined `tensors`
    arrays; `wire` are the bytes that each of `devices` sends in a ring.
    """

    kind: str
    layers: dict[str, int]
    devices: int
    count: int = 1
    tensors: int = 1

    @property
    def size(self) -> int:
        return sum(self.layers.values())

    @property
    def wire(self) -> float:
        n, part = self.devices, (self.devices - 1) / self.devices
        shares = {"reduce-scatter": n - 1, "all-reduce": 2 * part, "all-gather": part, "all-to-all": part}
        return self.size * shares.get(self.kind, 1.0)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program takes on one device; `memory` are all the bytes that it holds while it runs."""

    memory: int
    arguments: int
    temporaries: int
    flops: float  # this and the next are XLA's own counts, NaN if they are not of the whole program
    bytes_accessed: float
    collectives: tuple[Collective, ...]

    def by_kind(self) -> dict[str, tuple[int, float]]:
        """(count, bytes sent) of each kind of collective."""
        return self._sums(lambda each: {each.kind: each.size})

    def by_layer(self) -> dict[str, tuple[int, float]]:
        """(count, bytes sent) by layer, most bytes first."""
        return dict(sorted(self._sums(lambda each: each.layers).items(), key=lambda item: -item[1][1]))

    def _sums(self, parts: Callable[[Collective], dict[str, int]]) -> dict[str, tuple[int, float]]:
        sums: dict[str, tuple[int, float]] = {}
        for each in self.collectives:
            for name, size in parts(each).items():
                count, wire = sums.get(name, (0, 0.0))
                share = size / each.size if each.size else 0.0
                sums[name] = count + each.count, wire + each.count * each.wire * share
        return sums


def inspect(compiled: jax.stages.Compiled, layers: Iterable[str] = ()) -> Program:
    """Reads a compiled program; `layers` are the module paths by which collectives are grouped."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory, "the backend tells the memory of what it compiles"
    text = compiled.as_text() or ""
    cost = cost if _counts_all(text) else {}
    return Program(
        memory=cpu.device_memory(compiled),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=cost.get("flops", math.nan),
        bytes_accessed=cost.get("bytes accessed", math.nan),
        collectives=tuple(collectives(text, layers)),
    )


def _counts_all(text: str) -> bool:
    """Whether XLA's counts are of all layers: to it a loop runs once, and a kernel of cnnjax does nothing."""
    times = _times(computations := _computations(text))
    looped = "\n".join(line for name, n in times.items() if n > 1 for line in computations.get(name, ()))
    kernels = 'custom_call_target="cnnjax_' in text
    return not kernels and not re.search(r" (?:convolution|dot|custom-call)\(", looped)


def layer_paths(params: Collection) -> set[str]:
    """The paths of the modules that hold parameters."""
    return {"/".join(path[:-1]) for path in traverse_util.flatten_dict(params)}


def collectives(text: str, layers: Iterable[str] = ()) -> Iterator[Collective]:
    """The collectives in a module of optimized HLO text, those in loops counted as often as they run."""
    known, times = set(layers), _times(computations := _computations(text))
    starts = {match[1]: match[0] for match in INSTRUCTION.finditer(text)}
    for name, lines in computations.items():
        for found in filter(None, map(COLLECTIVE.search, lines)):
            shape, kind, done, rest = found.groups()
            operands = _operands(rest)
            if done:  # what it started with tells its devices and layers
                started = COLLECTIVE_START.search(starts.get(operands[0], "") if operands else "")
                rest = started[1] if started else ""
                operands = _operands(rest)
            sizes, devices = [_bytes(*each) for each in SHAPE.findall(shape)], _group_size(rest)
            if devices > 1:
                own = _layer(rest, known)
                origins = [_origin(each, starts, known) for each in operands]
                if len(origins) != len(sizes) or len(sizes) == 1:
                    origins = [own if own != OTHER or not origins else origins[0]] * len(sizes)
                shares: dict[str, int] = {}
                for layer, size in zip(origins, sizes, strict=True):
                    shares[layer] = shares.get(layer, 0) + size
                yield Collective(kind, shares, devices, times.get(name, 1), len(sizes))


def _operands(rest: str) -> list[str]:
    """The names of what an instruction takes, of the text behind its parenthesis."""
    return re.findall(r"%([\w.\-]+)", re.split(r"\)(?:,|\s*$)", rest, maxsplit=1)[0])


def _origin(name: str, starts: dict[str, str], known: set[str]) -> str:
    """The layer that made an array, through instructions that only pass it on."""
    for _ in range(10):
        line = starts.get(name, "")
        if (layer := _layer(line, known)) != OTHER:
            return layer
        passed = re.search(rf" (?:{PASSED_ON})\((.*)$", line)
        if not passed or not (operands := _operands(passed[1])):
            break
        name = operands[0]
    return OTHER


def _computations(text: str) -> dict[str, list[str]]:
    """{name: lines} of each computation."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            lines = computations[found[1]] = []
        else:
            lines.append(line)
    return computations


def _times(computations: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation that a loop, or something in it, calls is run."""
    calls: dict[str, list[tuple[str, int]]] = {}
    for name, lines in computations.items():
        for line in lines:
            trips = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
            for callee in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
                count = int(trips[1]) if trips and f"body=%{callee}" in line else 1
                calls.setdefault(callee, []).append((name, count))

    def of(name: str, depth: int = 0) -> int:
        callers = calls.get(name, []) if depth <= 50 else []
        return max((of(caller, depth + 1) * count for caller, count in callers), default=1)

    return {name: of(name) for name in calls}


def _bytes(dtype: str, dims: str) -> int:
    """The size of an array written as 'bf16[3,8]'; 0 of a token."""
    digits = re.match(r"[a-z]+(\d+)", dtype)
    bits = BITS.get(dtype) or int(digits[1] if digits else 0)
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8


def _group_size(attributes: str) -> int:
    """How many devices of a replica group: XLA writes it as lists, as [groups, size], or by mesh axes."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    return 2 if "source_target_pairs=" in attributes else 0


def _layer(attributes: str, known: set[str]) -> str:
    """The module that the collective's `op_name` lies in, the longest known path; `OTHER` without one."""
    found = re.search(r'op_name="([^"]*)"', attributes)
    parts = [part for part in (found[1].split("/") if found else []) if "(" not in part]
    paths = ("/".join(parts[a:b]) for b in range(len(parts), 0, -1) for a in range(b))
    return next((path for path in paths if path in known), OTHER)
