"""What the residual nets share: their stems, and how the blocks of a stage are run.

A stage of n blocks is n modules `stageI_block1` .. `stageI_blockN`. From the second on they are alike, so
they can run as one scanned block: compiled once instead of n - 1 times, with the same parameters and
statistics. Their variables may come one block at a time or, so that a step of hundreds of layers has few
arguments, stacked by `stack_blocks`.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.models.layers import ConvNorm, check_stem

Constructor = Callable[..., nn.Module]


def stem(kind: str, image: jax.Array, width: int, conv: Constructor, norm: Constructor) -> jax.Array:
    """The module `stem` on images [B, H, W, C]: convolution, normalization, ReLU.

    Args:
      kind: "imagenet", 7x7 of stride 2 and then 3x3 max pooling of stride 2, or "cifar", 3x3 of stride 1;
        `check_stem` says when it warns and what it raises.
    """
    unit = partial(ConvNorm, conv=conv, norm=norm, name="stem")
    if check_stem(kind, image) == "cifar":
        return unit(width, 3)(image)
    return ops.max_pool(unit(width, 7, 2)(image), 3, 2, padding=1)


def stages(net: nn.Module) -> list[tuple[int, int]]:
    """(width, number of blocks) of each stage of a net with fields `widths` and `stage_sizes`.

    Raises:
      UserError: if the two differ in length, or a number is below 1.
    """
    if len(net.widths) != len(net.stage_sizes) or min((*net.widths, *net.stage_sizes)) < 1:
        raise UserError(
            f"widths {net.widths} and stage_sizes {net.stage_sizes}: as many of each, all at least 1"
        )
    return list(zip(net.widths, net.stage_sizes, strict=True))


def scanned_blocks(net: nn.Module) -> list[list[str]]:
    """The names of the equal blocks of each stage; [] for a net that does not scan them."""
    counts = [count for _, count in stages(net)] if getattr(net, "scan_blocks", False) else []
    return [_equal_blocks(f"stage{i}", count) for i, count in enumerate(counts, 1) if count > 2]


def stack_blocks(tree: Any, blocks: list[list[str]]) -> Any:
    """A tree of variables, gradients or optimizer state with the leaves of equal blocks stacked.

    Blocks 2 to 9 of stage 1 become `stage1_block2_to_9`. `unstack_blocks` is the inverse.
    """

    def stack(found: dict[str, Any], names: list[str]) -> dict[str, Any]:
        return {_joined(names): _stacked([found[name] for name in names])}

    return _replace(tree, [(names, partial(stack, names=names)) for names in blocks])


def unstack_blocks(tree: Any, blocks: list[list[str]]) -> Any:
    """The inverse of `stack_blocks`."""

    def unstack(found: dict[str, Any], names: list[str]) -> dict[str, Any]:
        stacked = found[_joined(names)]
        return {name: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, name in enumerate(names)}

    return _replace(tree, [([_joined(names)], partial(unstack, names=names)) for names in blocks])


def _replace(tree: Any, rules: list[tuple[list[str], Callable[[dict], dict]]]) -> Any:
    """In every dict of a tree, the entries that a rule names by what it makes of them."""

    def here(node: Any) -> bool:
        return isinstance(node, dict) and any(names[0] in node for names, _ in rules)

    def replaced(node: Any) -> Any:
        if not here(node):
            return node
        for names, make in rules:
            kept = {key: value for key, value in node.items() if key not in set(names)}
            node = kept | make(node) if len(kept) < len(node) else node
        return node

    return jax.tree.map(replaced, tree, is_leaf=here)


def run_stage(
    net: nn.Module, x: jax.Array, name: str, count: int, first: Constructor, rest: Constructor
) -> jax.Array:
    """Runs block 1 and count - 1 further, equal blocks of one stage, from within a compact method of `net`.

    Args:
      net: gives `scan_blocks` and `remat`: with the latter a block's activations are computed again in the
        backward pass instead of kept, so memory holds one block and the borders of the others.
      x: float [B, H, W, C].
      name: "stage1" for modules `stage1_block1`, `stage1_block2`, ...
      first, rest: constructors of a block that lack only its name.
    """
    x = _block(net, first(name=f"{name}_block1"), x)
    names = _equal_blocks(name, count)
    if len(names) > 1 and net.is_initializing():
        _init(net, rest(name=None, parent=None), names, x)
    if len(names) > 1 and (net.scan_blocks or net.is_initializing()):
        for alike in _runs(net, names):
            x = _scan(net, rest(name=None, parent=None), alike, x)
        return x
    for block_name in names:
        x = _block(net, rest(name=block_name), x)
    return x


def _equal_blocks(stage: str, count: int) -> list[str]:
    return [f"{stage}_block{j}" for j in range(2, count + 1)]


def _joined(names: list[str]) -> str:
    return f"{names[0]}_to_{names[-1].rpartition('_block')[2]}"


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _init(net: nn.Module, block: nn.Module, names: list[str], x: jax.Array) -> None:
    """Draws the variables of all named blocks at once, so that one block is traced instead of hundreds."""
    keys = jax.random.split(net.make_rng("params"), len(names))
    shape, dtype = x.shape, x.dtype
    init = jax.jit(jax.vmap(lambda key: block.init(key, jnp.zeros(shape, dtype))))
    for collection, stacked in init(keys).items():
        for i, name in enumerate(names):
            net.put_variable(collection, name, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))


def _block(net: nn.Module, block: nn.Module, x: jax.Array) -> jax.Array:
    if net.remat and not net.is_initializing():
        return nn.remat(lambda module, x: module(x))(block, x)
    return block(x)


def _runs(net: nn.Module, names: list[str]) -> list[list[str]]:
    """The names cut where the next block has other frozen normalizations, and so is another computation."""

    def frozen(name: str) -> Any:
        return jax.tree.structure(net.get_variable("frozen", name, {}))

    return [list(run) for _, run in itertools.groupby(names, frozen)]


def _scan(net: nn.Module, block: nn.Module, names: list[str], x: jax.Array) -> jax.Array:
    """Runs one detached block over the variables of the named ones, and stores their statistics.

    Dropout draws other masks than the unrolled blocks do, and nothing inside is captured or sown. On CPUs
    a convolution inside a loop of XLA is far slower than outside: this is for accelerators and for depth.
    """

    joined = _joined(names)
    come_stacked = net.has_variable("params", joined)

    def stacked(collection: str) -> Any:
        if come_stacked:
            return net.get_variable(collection, joined, {})
        return _stacked([net.get_variable(collection, name, {}) for name in names])

    moving = net.is_mutable_collection("batch_stats")
    keys = jax.random.split(net.make_rng("dropout"), len(names)) if net.has_rng("dropout") else None

    def body(x: jax.Array, each: Any) -> tuple[jax.Array, Any]:
        variables, key = each
        rngs = {} if key is None else {"dropout": key}
        if not moving:
            return block.apply(variables, x, rngs=rngs), {}
        y, updates = block.apply(variables, x, rngs=rngs, mutable=["batch_stats"])
        return y, updates["batch_stats"]

    if net.remat:
        body = jax.checkpoint(body, prevent_cse=False)
    variables = {name: stacked(name) for name in ("params", "batch_stats", "frozen")}
    x, updates = jax.lax.scan(body, x, (variables, keys))
    if moving and not net.is_initializing():
        found = {joined: updates} if come_stacked else unstack_blocks({joined: updates}, [names])
        for name, statistics in found.items():
            net.put_variable("batch_stats", name, statistics)
    return x
