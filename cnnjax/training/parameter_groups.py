"""Which parameters move, how fast, and which decay, by patterns found in their paths ('stem/conv/kernel')."""

import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from flax.typing import Collection

from cnnjax.errors import UserError

Scales = Sequence[tuple[str, float]]


def path_name(path: jax.tree_util.KeyPath) -> str:
    """A path of JAX's trees as 'stem/conv/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_pattern(argument: str, pattern: str) -> None:
    """Raises a UserError that names the argument unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{argument}={pattern!r} is no regular expression: {error}") from None


def decay_mask(params: optax.Params, decay: str = "kernels") -> optax.Params:
    """Which leaves decay, as a tree of bools of the structure of `params`.

    `decay` is 'kernels' (leaves named `kernel`: no bias, no scale of a normalization), 'all', or a pattern;
    one that is no regular expression or matches no path raises UserError.
    """
    check_pattern("decay", decay)
    pattern = {"kernels": r"(^|/)kernel$", "all": ""}.get(decay, decay)
    mask = jax.tree.map_with_path(lambda path, _: re.search(pattern, path_name(path)) is not None, params)
    if decay != "kernels" and not any(jax.tree.leaves(mask)):
        paths = ", ".join(path_name(path) for path, _ in jax.tree.leaves_with_path(params)[:4])
        raise UserError(f"decay={decay!r} must match a parameter path; paths: {paths}, ...")
    return mask


def decayed_paths(params: optax.Params, decay: str = "kernels") -> list[str]:
    """The paths of the leaves that decay, for the run record; the arguments of `decay_mask`."""
    mask = jax.tree.leaves_with_path(decay_mask(params, decay))
    return [path_name(path) for path, decays in mask if decays]


def is_frozen(path: str, freeze: str) -> bool:
    """Whether a pattern freezes the leaf at a path; '' freezes nothing."""
    return bool(freeze) and re.search(freeze, path) is not None


def frozen_paths(params: Collection, freeze: str) -> list[str]:
    """The paths that do not move, for the run record; UserError if the pattern freezes none or all."""
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
    """The parameters with the frozen ones behind `stop_gradient`, so that their gradient is not computed."""
    return jax.tree.map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path_name(path), freeze) else x, params
    )


def parse_scales(learning_rate_scales: str) -> Scales:
    """Reads 'stem|stage1: 0.1, head: 10' as pairs of a pattern and a factor of the learning rate."""
    scales = []
    for part in filter(None, (part.strip() for part in learning_rate_scales.split(","))):
        pattern, _, factor = (word.strip() for word in part.rpartition(":"))
        try:
            scales.append((pattern, float(factor)))
        except ValueError:
            scales.append((pattern, math.nan))
        if not pattern or not 0 <= scales[-1][1] < math.inf:
            must = "must be a pattern, a colon and a factor of at least 0, as in 'stem|stage1: 0.1, head: 10'"
            raise UserError(f"learning_rate_scales={learning_rate_scales!r}: {part!r} {must}")
        check_pattern("learning_rate_scales", pattern)
    return scales


def with_groups(
    tx: optax.GradientTransformationExtraArgs, *, freeze: str = "", scales: Scales = ()
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, without state for frozen leaves; the first pattern that matches a path scales it."""
    check_pattern("freeze", freeze)

    def scaled(path: jax.tree_util.KeyPath, update: jax.Array) -> jax.Array:
        return next((f for pattern, f in scales if re.search(pattern, path_name(path))), 1.0) * update

    def label(path: jax.tree_util.KeyPath, _: jax.Array) -> str:
        return "frozen" if is_frozen(path_name(path), freeze) else "moves"

    if scales:
        tx = optax.chain(tx, optax.stateless(lambda updates, _: jax.tree.map_with_path(scaled, updates)))
    if freeze:
        groups = {"moves": tx, "frozen": optax.set_to_zero()}
        tx = optax.partition(groups, lambda params: jax.tree.map_with_path(label, params))
    return optax.with_extra_args_support(tx)
