"""State dicts, the dicts of names to tensors, in whatever torch saved: beside anything, under any keys."""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from cnnjax.errors import UserError, unknown
from cnnjax.models.weights.pickles import Built, Malformed, Value
from cnnjax.models.weights.torch_files import Tensor

AVERAGED = re.compile(
    r"(?i)(?<![a-z])(?:ema|swa|target)(?![a-z])|averag|teacher|shadow"
)  # followers of a net
NO_WEIGHTS = re.compile(r"(?i)optim|sched|scaler|exp_avg|momentum_buffer")
MAX_ENTRIES = 2**18  # of modules, which may share parts and so be far more than the pickle holds
MAX_PATH = 400  # characters


class StateDict(NamedTuple):
    """One dict in a file."""

    path: str  # the keys that lead to it, 'ema.state_dict'; '' is the whole
    tensors: dict[str, Tensor]
    others: list[str]  # names of entries that are no tensors


def find(saved: Value, path: str = "") -> tuple[StateDict, list[str]]:
    """The state dict at `path`, by default the largest, and the paths of others of about its size.

    Among those the plain one is taken, not its running average. An optimizer's state is none. UserError if
    there is none.
    """
    found = list(_all(saved))
    if path:
        if fits := [each for each in found if each.path == path]:
            return fits[0], []
        raise unknown("state dict in it", path, (each.path for each in found))
    found = [each for each in found if not NO_WEIGHTS.search(each.path)]
    if not found:
        raise UserError("contains no dict of names to tensors; in torch, save model.state_dict()")
    most = max(len(each.tensors) for each in found)
    large = [each for each in found if 2 * len(each.tensors) >= most]
    best = max(large, key=lambda each: (not AVERAGED.search(each.path), len(each.tensors)))
    return best, [each.path for each in large if each is not best]


def _all(saved: Value) -> Iterator[StateDict]:
    """Every dict with tensors and every outermost module, each once."""
    seen: set[int] = set()
    count, left = itertools.count(), [("", saved)]
    while left:
        path, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_module(value):
            yield StateDict(path, _module(value, count), [])
        elif isinstance(value, Built):
            left += [(path, value.state), (path, value.items)]
        elif isinstance(value, dict) or type(value) in (list, tuple):
            children = value if isinstance(value, dict) else dict(enumerate(value))
            names = {str(name): each for name, each in children.items() if len(str(name)) < MAX_PATH}
            tensors = {name: each for name, each in names.items() if isinstance(each, Tensor)}
            if tensors and isinstance(value, dict):
                yield StateDict(path, tensors, [name for name in names if name not in tensors])
            below = [
                (f"{path}.{name}".lstrip("."), each) for name, each in names.items() if not _is_leaf(each)
            ]
            left += [each for each in reversed(below) if len(each[0]) < MAX_PATH]


def _is_leaf(value: Value) -> bool:
    return not (isinstance(value, dict | Built) or type(value) in (list, tuple))


def _is_module(value: Value) -> bool:
    """Whether a value is a whole torch.nn.Module, as `torch.save(model)` writes it."""
    state = value.state if isinstance(value, Built) else None
    parts = ("_parameters", "_buffers", "_modules")
    return isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in parts)


def _module(outermost: Built, count: Iterator[int]) -> dict[str, Tensor]:
    """What the module's state_dict() would hold."""
    entries: dict[str, Tensor] = {}
    left = [("", outermost)]
    while left:
        prefix, module = left.pop()
        own = module.state["_parameters"] | module.state["_buffers"]
        if next(itertools.islice(count, len(own), None)) > MAX_ENTRIES:
            raise Malformed("a module of more modules than it can have")
        entries |= {prefix + name: each for name, each in _named(own) if isinstance(each, Tensor)}
        parts = [(f"{prefix}{name}.", each) for name, each in _named(module.state["_modules"])]
        left += [part for part in reversed(parts) if _is_module(part[1]) and len(part[0]) < MAX_PATH]
    return entries


def _named(values: dict) -> Iterator[tuple[str, Value]]:
    return ((name, each) for name, each in values.items() if isinstance(name, str) and len(name) < MAX_PATH)
