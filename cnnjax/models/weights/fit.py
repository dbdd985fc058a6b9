"""Which entries of a state dict are a model's, whatever their prefix, their wrappers and the head's name.

What names and shapes leave in doubt is not guessed but is a problem of the fit.
"""

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cnnjax.models.weights.state_dicts import AVERAGED

Shape = tuple[int, ...]

# What stands in the middle of names too: of torch.nn.DataParallel, torch.compile, FSDP and checkpointing.
WRAPPERS = re.compile(r"\b(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
HEADS = re.compile(r"(?:.*\.)?(?:fc|head|linear|classifier|last_linear|logits|output)\.weight")
LONG = 400  # characters; names of so many are compared with none
MOST = 5  # problems, or names, that a message lists
LIKE = 0.9  # of a model's entries: so many under a prefix are another copy of it


class Fit(NamedTuple):
    """The entries of a state dict as a model calls them."""

    arrays: dict[str, np.ndarray]  # of the right shapes if there is no problem
    left_out: list[str]  # entries there that are not the model's: counters, another network's
    problems: list[str]


def first(things: Sequence[str], separator: str = ", ") -> str:
    """The first few, and how many more there are."""
    more = f"{separator}and {len(things) - MOST} more" if len(things) > MOST else ""
    return f"{separator.join(things[:MOST])}{more}"


def fit(
    state_dict: Mapping[str, np.ndarray],
    wanted: Mapping[str, Shape],
    head: Sequence[str] = (),
    extra: Sequence[str] = (),
    optional: Collection[str] = (),
) -> Fit:
    """Finds the entries `wanted`, of these shapes.

    Args:
      head: the weight and the bias of the last layer, which may have another name there.
      extra: patterns of entries that the model may be built without.
      optional: wanted names that may be missing or of any shape.
    """
    given = _unwrapped(state_dict)
    prefix, others = _prefixes(given, wanted)
    own = {name: name.removeprefix(prefix) for name in given if name.startswith(prefix)}
    own = {name: short for name, short in own.items() if short in wanted or not name.startswith(others)}
    places = {short: name for name, short in own.items() if short in wanted}
    left = {name: array.shape for name, array in given.items() if own.get(name) not in places}
    places |= _other_head(left, wanted, [name for name in head if name not in places])
    arrays = {short: _shaped(given[name], wanted[short]) for short, name in places.items()}
    taken = {*places.values()}
    left = {name: shape for name, shape in left.items() if name not in taken}
    # Other networks, counters and what the model may lack have no place here; all else should have one.
    passed = [
        n for n in left if n not in own or given[n].size <= 1 or any(re.match(p, own[n]) for p in extra)
    ]
    strict = {name: shape for name, shape in left.items() if name not in passed}
    found = {name: array.shape for name, array in arrays.items() if name not in optional}
    needed = {name: shape for name, shape in wanted.items() if name not in optional}
    return Fit(arrays, passed, misfits(found | strict, needed))


def misfits(given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    """What is missing, unexpected or of another shape, an entry each; some of each kind come first."""
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    both = [name for name in wanted if name in given and given[name] != wanted[name]]
    near = {name: _nearest(name, wanted[name], {n: given[n] for n in unexpected}) for name in missing[:MOST]}
    kinds = (
        [f"missing {name} {list(wanted[name])}{near.get(name, '')}" for name in missing],
        [f"unexpected {name}" for name in unexpected],
        [f"{name} is {list(given[name])}, here {list(wanted[name])}" for name in both],
    )
    return [problem for row in itertools.zip_longest(*kinds) for problem in row if problem]


def _nearest(name: str, shape: Shape, unexpected: Mapping[str, Shape]) -> str:
    """The unexpected name most like a missing one, if one is of its shape."""
    alike = [n for n, its in unexpected.items() if whole(its) == whole(shape) and len(n) < LONG]
    near = difflib.get_close_matches(name, alike[:1000], 1, 0.3)
    return f" (there {near[0]}?)" if near else ""


def whole(shape: Shape) -> Shape:
    """A shape without ones at its end: a 1x1 convolution is a dense layer, a scale [C, 1, 1] one of [C]."""
    while shape[-1:] == (1,):
        shape = shape[:-1]
    return shape


def _shaped(array: np.ndarray, shape: Shape) -> np.ndarray:
    return array.reshape(shape) if whole(array.shape) == whole(shape) else array


def _unwrapped(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without the wrappers' components, unless two would be the same; no counts of batches."""
    kept = {name: array for name, array in state_dict.items() if not name.endswith("num_batches_tracked")}
    bare = {WRAPPERS.sub("", name): array for name, array in kept.items()}
    return bare if len(bare) == len(kept) else kept


def _prefixes(given: Collection[str], wanted: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """What stands before most of the wanted names, '' by default, and before other copies of them."""
    counts: Counter[str] = Counter()
    for name in (name for name in given if len(name) < LONG):
        ends = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:end] for end in ends if name[end:] in wanted)
    best = max(counts, key=lambda prefix: (counts[prefix], not AVERAGED.search(prefix)), default="")
    if counts[best] * 2 < len(wanted):
        best = ""
    return best, tuple(each for each in counts if each != best and counts[each] >= LIKE * len(wanted))


def _other_head(
    left: Mapping[str, Shape], wanted: Mapping[str, Shape], head: Sequence[str]
) -> dict[str, str]:
    """Where a head that is missing is under another name: {"fc.weight": "linear.weight"}, if that is sure.

    It is the only layer left that reads what the head reads and gives its classes, or any number of them
    under a name that heads have.
    """
    weight = next((name for name in head if len(wanted[name]) > 1), None)
    if not weight:
        return {}
    biases = [name for name in head if name != weight]
    layers = [
        name
        for name, shape in left.items()
        if name.endswith("weight")
        and len(shape) > 1
        and whole(shape)[1:] == whole(wanted[weight])[1:]
        and all(left.get(f"{name.removesuffix('weight')}bias") == shape[:1] for _ in biases)
    ]
    exact = [name for name in layers if left[name][0] == wanted[weight][0]]
    sure = exact or [name for name in layers if HEADS.fullmatch(name)]
    if len(sure) != 1:
        return {}
    return {weight: sure[0]} | {bias: f"{sure[0].removesuffix('weight')}bias" for bias in biases}
