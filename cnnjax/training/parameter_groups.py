"""Which parameters move, and how fast: frozen parts, and groups with a learning rate of their own.

Patterns are regular expressions searched for in paths such as 'stage1_block2/conv1/kernel'.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from cnnjax.errors import UserError

Scales = Sequence[tuple[str, float]]


def is_frozen(path: str, freeze: str) -> bool:
    """Whether a pattern freezes the leaf at a path; '' freezes nothing."""
    return bool(freeze) and re.search(freeze, path) is not None


def frozen_paths(params: Any, freeze: str) -> list[str]:
    """The paths that do not move, for the run record.

    Raises:
      UserError: where the pattern is none, or freezes nothing or everything.
    """
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    frozen = [path for path in paths if is_frozen(path, freeze)]
    if freeze and len(frozen) in (0, len(paths)):
        which = "every" if frozen else "no"
        raise UserError(
            f"config.freeze={freeze!r} matches {which} parameter path; paths: {', '.join(paths[:6])}, ..."
        )
    return frozen


def frozen_collection(batch_stats: Any, freeze: str) -> dict[str, Any]:
    """What `model.apply` takes as the collection `frozen`: the BatchNorms that keep their statistics.

    Such a layer normalizes with its running statistics in training too, and does not change them.
    """
    paths = traverse_util.flatten_dict(batch_stats)
    modules = {path[:-1] for path in paths if is_frozen("/".join(path), freeze)}
    return traverse_util.unflatten_dict({(*path, "statistics"): jnp.ones((), bool) for path in modules})


def parse_scales(text: str) -> Scales:
    """Reads 'stem|stage1: 0.1, head: 10' as pairs of a pattern and a factor of the learning rate.

    Raises:
      UserError: naming the part that cannot be read.
    """
    scales = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        pattern, _, factor = (word.strip() for word in part.rpartition(":"))
        try:
            scales.append((pattern, float(factor)))
        except ValueError:
            scales.append((pattern, math.nan))
        if not pattern or not 0 <= scales[-1][1] < math.inf:
            raise UserError(
                f"config.optimizer.learning_rate_scales={text!r}: {part!r} must be a pattern, a colon and a "
                "factor of at least 0, as in 'stem|stage1: 0.1, head: 10'"
            )
        _check_pattern("optimizer.learning_rate_scales", pattern)
    return scales


def with_groups(
    tx: optax.GradientTransformationExtraArgs, *, freeze: str = "", scales: Scales = ()
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with frozen leaves left alone and without state, and updates scaled by group.

    The first pattern that matches a path gives its factor; a path that none matches has 1.
    """
    _check_pattern("freeze", freeze)

    def scale(updates: Any, params: Any) -> Any:
        def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return next((f for pattern, f in scales if re.search(pattern, name)), 1.0) * leaf

        return jax.tree.map_with_path(scaled, updates)

    def labels(params: Any) -> Any:
        flat = traverse_util.flatten_dict(params)
        return traverse_util.unflatten_dict(
            {p: "frozen" if is_frozen("/".join(p), freeze) else "moves" for p in flat}
        )

    if scales:
        tx = optax.chain(tx, optax.stateless(scale))
    if freeze:
        tx = optax.multi_transform({"moves": tx, "frozen": optax.set_to_zero()}, labels)
    return optax.with_extra_args_support(tx)


def stop_frozen(params: Any, freeze: str) -> Any:
    """The parameters, the frozen ones behind `stop_gradient`, so that theirs is not even computed."""
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(
        {p: jax.lax.stop_gradient(x) if is_frozen("/".join(p), freeze) else x for p, x in flat.items()}
    )


def _check_pattern(field: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.{field}={pattern!r} is no regular expression: {error}") from None
