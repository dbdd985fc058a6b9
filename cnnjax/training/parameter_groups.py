"""Freezing, learning rate factors and weight decay, by patterns in parameter paths ('stem/conv/kernel')."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from flax.typing import Collection

from cnnjax.errors import UserError, parse_call
from cnnjax.models.pyramid import stage_name

Scales = Sequence[tuple[str, float]]
DECAYS: dict[str, Callable[[str], str]] = {"layer_decay": str, "stage_decay": stage_name}


class Freeze(NamedTuple):
    """A pattern of the paths to freeze, "" for none, and for how many epochs."""

    pattern: str = ""
    epochs: float = math.inf

    def steps(self, steps_per_epoch: float) -> float:
        """The time in whole steps, or infinity."""
        if self.epochs == math.inf:
            return math.inf
        return math.ceil(round(self.epochs * steps_per_epoch, 6))  # 1.1 * 100 is a little over 110


def path_name(path: jax.tree_util.KeyPath) -> str:
    """A path of JAX's trees as 'stem/conv/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_pattern(argument: str, pattern: str) -> None:
    """Raises a UserError that names the argument unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{argument}={pattern!r} is not a regular expression: {error}") from None


def decay_mask(params: optax.Params, decay: str = "kernels", freeze: str = "") -> optax.Params:
    """Which leaves have weight decay: a tree of bools with the structure of `params`.

    `decay` is 'kernels' (leaves named `kernel`: no bias, no scale of a normalization), 'all', or a pattern;
    an invalid regular expression, or one that matches no path, raises UserError. If leaves that match
    `freeze` may have been left out of `params`, a pattern may match nothing of the rest.
    """
    check_pattern("decay", decay)
    pattern = {"kernels": r"(^|/)kernel$", "all": ""}.get(decay, decay)
    mask = jax.tree.map_with_path(lambda path, _: re.search(pattern, path_name(path)) is not None, params)
    if decay != "kernels" and not freeze and not any(jax.tree.leaves(mask)):
        paths = ", ".join(path_name(path) for path, _ in jax.tree.leaves_with_path(params)[:4])
        raise UserError(f"decay={decay!r} must match a parameter path; paths: {paths}, ...")
    return mask


def decayed_paths(params: optax.Params, decay: str = "kernels") -> list[str]:
    """The paths of the leaves with weight decay, for the run record; arguments as for `decay_mask`."""
    mask = jax.tree.leaves_with_path(decay_mask(params, decay))
    return [path_name(path) for path, decays in mask if decays]


def is_frozen(path: str, freeze: str) -> bool:
    """Whether a pattern freezes the leaf at a path; '' freezes nothing."""
    return bool(freeze) and re.search(freeze, path) is not None


def frozen_paths(params: Collection, freeze: str) -> list[str]:
    """The frozen paths, for the run record; UserError if the pattern freezes none or all."""
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    frozen = [path for path in paths if is_frozen(path, freeze)]
    if freeze and len(frozen) in (0, len(paths)):
        which, some = "every" if frozen else "no", ", ".join(paths[:6])
        raise UserError(f"freeze={freeze!r} matches {which} parameter path; paths: {some}, ...")
    return frozen


def frozen_collection(batch_stats: Collection, freeze: str) -> Collection:
    """The collection `frozen` of a model: BatchNorms that train with their running statistics, unchanged."""
    paths = traverse_util.flatten_dict(batch_stats, sep="/")
    modules = {path.rpartition("/")[0] for path in paths if is_frozen(path, freeze)}
    marks = {f"{module}/statistics": jnp.ones((), bool) for module in modules}
    return traverse_util.unflatten_dict(marks, sep="/")


def stop_frozen(params: Collection, freeze: str) -> Collection:
    """Puts frozen parameters behind `stop_gradient`, so that their gradients are not computed."""
    return jax.tree.map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path_name(path), freeze) else x, params
    )


def parse_freeze(freeze: str) -> Freeze:
    """Reads a pattern, 'all but PATTERN', or one of them for a time, as in 'until(2, all but head)'."""
    limited = re.fullmatch(r"until\((.*?),(.*)\)", freeze.strip())
    epochs, pattern = limited.groups() if limited else ("inf", freeze)
    try:
        value = float(epochs)
    except ValueError:
        value = math.nan
    if not value > 0 or (limited and not (value < math.inf and pattern.strip())):
        raise UserError(f"freeze={freeze!r} must be a pattern, or a time in epochs and one: 'until(2, stem)'")
    if kept := re.fullmatch(r"\s*all but\s+(.+?)\s*", pattern):
        check_pattern("freeze", kept[1])
        pattern = f"^(?!.*(?:{kept[1]}))"
    check_pattern("freeze", pattern)
    return Freeze(pattern.strip(), value)


def parse_scales(learning_rate_scales: str, layers: Mapping[str, str] | None = None) -> Scales:
    """Reads 'layer_decay(0.75), head: 10' as pairs of a pattern and a factor of the learning rate.

    A part is a pattern with its factor, or `layer_decay(d)`: the last layer has factor 1, each earlier one d
    times the factor of the next; with `stage_decay(d)` all layers of a stage have the same factor. `layers`
    comes from `pyramid.module_layers`. The patterns come first, as the first match counts.
    """
    scales, decaying = list[tuple[str, float]](), list[tuple[str, float]]()
    for part in filter(None, (part.strip() for part in learning_rate_scales.split(","))):
        if re.match(r"\w+\(", part) and ":" not in part:
            decaying += _decaying(part, layers or {})
            continue
        pattern, _, factor = (word.strip() for word in part.rpartition(":"))
        try:
            scales.append((pattern, float(factor)))
        except ValueError:
            scales.append((pattern, math.nan))
        if not pattern or not 0 <= scales[-1][1] < math.inf:
            must = "must be a pattern, a colon and a factor of at least 0, as in 'stem|stage1: 0.1, head: 10'"
            or_call = f"{must}, or layer_decay(0.75)"
            raise UserError(f"learning_rate_scales={learning_rate_scales!r}: {part!r} {or_call}")
        check_pattern("learning_rate_scales", pattern)
    return scales + decaying


def check_scales(params: Collection, learning_rate_scales: str) -> None:
    """Raises a UserError if a pattern of its own matches no path; those of `layer_decay` need not."""
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    for pattern, _ in parse_scales(learning_rate_scales):
        if not any(re.search(pattern, path) for path in paths):
            problem = f"{pattern!r} matches no parameter path; paths: {', '.join(paths[:6])}, ..."
            raise UserError(f"learning_rate_scales={learning_rate_scales!r}: {problem}")


def _decaying(call: str, layers: Mapping[str, str]) -> Scales:
    """The factor of each module at the top of a model, for `layer_decay(0.75)` or `stage_decay(0.75)`."""
    name, args, values = parse_call(call, "learning_rate_scales")
    number = args[0] if len(args) == 1 and not values else 0
    if name not in DECAYS or not isinstance(number, int | float) or not 0 < number <= 1:
        allowed = "a factor above 0, at most 1, as in 'layer_decay(0.75)' or 'stage_decay(0.5)'"
        raise UserError(f"learning_rate_scales={call!r} must be {allowed}")
    groups = {module: DECAYS[name](layer) for module, layer in layers.items()}
    order = [*dict.fromkeys(groups.values())]
    depth = {group: len(order) - 1 - place for place, group in enumerate(order)}
    return [(f"^{re.escape(module)}(/|$)", number ** depth[group]) for module, group in groups.items()]


def with_groups(
    tx: optax.GradientTransformationExtraArgs,
    *,
    freeze: str = "",
    scales: Scales = (),
    until: float = math.inf,
) -> optax.GradientTransformationExtraArgs:
    """Adds freezing and learning rate factors to an optimizer; of several patterns the first match counts.

    Frozen leaves have no optimizer state, unless they train from step `until` on.
    """
    check_pattern("freeze", freeze)

    def scaled(path: jax.tree_util.KeyPath, update: jax.Array) -> jax.Array:
        return next((f for pattern, f in scales if re.search(pattern, path_name(path))), 1.0) * update

    if scales:
        tx = optax.chain(tx, optax.stateless(lambda updates, _: jax.tree.map_with_path(scaled, updates)))
    if freeze and until == math.inf:
        tx = partitioned(freeze, tx, optax.set_to_zero())
    elif freeze:
        tx = optax.chain(tx, partitioned(freeze, optax.identity(), held(optax.identity(), until)))
    return optax.with_extra_args_support(tx)


def partitioned(
    freeze: str, moving: optax.GradientTransformation, frozen: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """One transformation for the leaves whose paths match a pattern, and another for the rest."""

    def label(path: jax.tree_util.KeyPath, _: jax.Array) -> str:
        return "frozen" if is_frozen(path_name(path), freeze) else "moves"

    groups = {"moves": moving, "frozen": frozen}
    return optax.partition(groups, lambda params: jax.tree.map_with_path(label, params))


def held(tx: optax.GradientTransformation, until: float) -> optax.GradientTransformationExtraArgs:
    """The same, but updates are zeros before step `until`, which finds it as it was initialized.

    `update` takes `step`; without it steps are updates.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> tuple[jax.Array, optax.OptState]:
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(
        updates: optax.Updates,
        state: tuple[jax.Array, optax.OptState],
        params: optax.Params | None = None,
        **more: jax.Array,
    ) -> tuple[optax.Updates, tuple[jax.Array, optax.OptState]]:
        count, inner = more.get("step", state[0]), state[1]  # its own leaves skipped steps out
        new, after = tx.update(updates, inner, params, **more)
        moves = count >= until
        new = jax.tree.map(lambda x: jnp.where(moves, x, jnp.zeros_like(x)), new)
        after = jax.tree.map(lambda x, old: jnp.where(moves, x, old), after, inner)
        return new, (optax.safe_increment(count), after)

    return optax.GradientTransformationExtraArgs(init, update)
