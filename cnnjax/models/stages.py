"""What the residual nets share: their stems, and how the blocks of a stage are run.

A stage of n blocks is n modules `stageI_block1` .. `stageI_blockN`. From the second on they are alike, so
they can run as one scanned block, compiled once, with the same parameters and statistics. Their variables may
come by block or, so that a step of hundreds of layers has few arguments, stacked by `stack_blocks`.
"""

import abc
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Collection, VariableDict

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.models.layers import ConvNorm
from cnnjax.models.net import Constructor, Net, check_stem
from cnnjax.ops import cpu

Tree = TypeVar("Tree")
Names = Sequence[str]
Node = dict[str, Collection]
Rngs = dict[str, jax.Array]


class StagedNet(Net, abc.ABC):
    """A net whose blocks come in stages."""

    scan_blocks: bool = False  # compile the equal blocks of a stage once and run them in a loop
    # Compute activations again in the backward pass: memory holds those of one block, on a CPU if scanned.
    remat: bool = False

    @abc.abstractmethod
    def stages(self) -> list[tuple[int, int]]:
        """(width, number of blocks) of each stage."""


def check_stages(widths: Sequence[int], stage_sizes: Sequence[int]) -> list[tuple[int, int]]:
    """`StagedNet.stages` of a net that is given both; UserError if they differ in length or hold a 0."""
    if len(widths) != len(stage_sizes) or min((*widths, *stage_sizes)) < 1:
        raise UserError(f"widths {widths} and stage_sizes {stage_sizes}: as many of each, all at least 1")
    return list(zip(widths, stage_sizes, strict=True))


class DeepStem(nn.Module):
    """Three 3x3 convolutions instead of one of 7x7 (He et al. 2018, arXiv:1812.01187, figure 2b)."""

    width: int
    conv: Constructor
    norm_relu: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate((self.width // 2, self.width // 2, self.width), 1):  # 112 112 32, 32, 64
            x = self.conv(width, 3, 2 if i == 1 else 1, padding=1, name=f"conv{i}")(x)
            x = self.norm_relu(name=f"norm{i}")(x)
        return x


def stem(kind: str, image: jax.Array, width: int, conv: Constructor, norm: Constructor) -> jax.Array:
    """The module `stem`, `norm` holding a ReLU.

    "imagenet" is a convolution 7x7/2, "deep" three of 3x3, both before 3x3/2 max pooling; "cifar" is 3x3.
    """
    unit = partial(ConvNorm, conv=conv, norm=norm, name="stem")
    if check_stem(kind, image, ("imagenet", "deep", "cifar")) == "cifar":
        return unit(width, 3)(image)
    deep = kind == "deep"
    x = DeepStem(width, conv, norm, name="stem")(image) if deep else unit(width, 7, 2)(image)
    return ops.max_pool(x, 3, 2, padding=1)


def run_blocks(net: StagedNet, block: Constructor, names: Names, x: jax.Array) -> jax.Array:
    """Runs equal blocks, which lack only these names, in turn from within the compact method of `net`."""
    starting = net.is_initializing()
    if len(names) > 1 and starting:
        _init(net, block(parent=None), names, x)
    if len(names) > 1 and (starting or net.scan_blocks):
        # Blocks with other frozen normalizations are another computation.
        frozen = {name: jax.tree.structure(net.get_variable("frozen", name, {})) for name in names}
        for _, alike in itertools.groupby(names, frozen.__getitem__):
            x = _scan(net, block(parent=None), list(alike), x)
        return x
    for name in names:
        module = block(name=name)
        x = _remat(module, x) if net.remat and not starting else module(x)
    return x


def rest_of(stage: int, count: int) -> list[str]:
    """The names of the blocks of a stage after its first."""
    return [f"stage{stage}_block{j}" for j in range(2, count + 1)]


def scanned_blocks(net: nn.Module) -> list[list[str]]:
    """The names of the equal blocks of each stage; [] for a net that does not scan them."""
    if not (isinstance(net, StagedNet) and net.scan_blocks):
        return []
    return [rest_of(i, count) for i, (_, count) in enumerate(net.stages(), 1) if count > 2]


def stack_blocks(tree: Tree, blocks: Sequence[Names]) -> Tree:
    """A tree of variables, gradients or optimizer state with equal blocks stacked: `stage1_block2_to_9`."""

    def stack(node: Node) -> None:
        for names in blocks:
            if names[0] in node:
                node[_joined(names)] = _stacked([node.pop(name) for name in names])

    return _in_dicts(tree, {names[0] for names in blocks}, stack)


def unstack_blocks(tree: Tree, blocks: Sequence[Names]) -> Tree:
    """The inverse of `stack_blocks`."""

    def unstack(node: Node) -> None:
        for names in blocks:
            if _joined(names) in node:
                node |= _unstacked(node.pop(_joined(names)), names)

    return _in_dicts(tree, {_joined(names) for names in blocks}, unstack)


def _in_dicts(tree: Tree, keys: set[str], change: Callable[[Node], None]) -> Tree:
    """The tree with every dict that has one of the keys changed."""

    def changed(node: Node | jax.Array) -> Node | jax.Array:
        if isinstance(node, dict):
            change(node := dict(node))
        return node

    return jax.tree.map(changed, tree, is_leaf=lambda x: isinstance(x, dict) and not keys.isdisjoint(x))


def _joined(names: Names) -> str:
    return f"{names[0]}_to_{names[-1].rpartition('_block')[2]}"


def _stacked(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstacked(tree: Tree, names: Names) -> dict[str, Tree]:
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i, name in enumerate(names)}


_remat = nn.remat(lambda module, x: module(x))


def _init(net: nn.Module, block: nn.Module, names: Names, x: jax.Array) -> None:
    """Draws the variables of all named blocks at once, so that one block is traced instead of hundreds."""
    keys, shape, dtype = jax.random.split(net.make_rng("params"), len(names)), x.shape, x.dtype
    init = jax.jit(jax.vmap(lambda key: block.init(key, jnp.zeros(shape, dtype))))
    for collection, stacked in init(keys).items():
        for name, variables in _unstacked(stacked, names).items():
            net.put_variable(collection, name, variables)


def _scan(net: StagedNet, block: nn.Module, names: Names, x: jax.Array) -> jax.Array:
    """Runs one detached block over the variables of the named ones, and stores their statistics.

    Dropout draws other masks than the unrolled blocks do, and nothing inside is captured or sown. Short
    loops are unrolled where XLA is slow inside of them, but not what is to be computed again: outside of a
    loop XLA:CPU keeps the first values. Initial values need no convolution.
    """
    come_stacked = net.has_variable("params", _joined(names))

    def variables_of(collection: str) -> Collection:
        if come_stacked:
            return net.get_variable(collection, _joined(names), {})
        return _stacked([net.get_variable(collection, name, {}) for name in names])

    moving = net.is_mutable_collection("batch_stats")
    streams = ["dropout"] if net.has_rng("dropout") else []
    keys = {stream: jax.random.split(net.make_rng(stream), len(names)) for stream in streams}

    def body(x: jax.Array, each: tuple[VariableDict, Rngs]) -> tuple[jax.Array, Collection]:
        variables, rngs = each
        y, updates = block.apply(variables, x, rngs=rngs, mutable=["batch_stats"] if moving else [])
        return y, updates.get("batch_stats", {})

    if net.remat:
        body = jax.checkpoint(body, prevent_cse=False)
    variables = {name: variables_of(name) for name in ("params", "batch_stats", "frozen")}
    unroll = 1 if net.remat or net.is_initializing() else cpu.turns_unrolled(len(names))
    x, updates = jax.lax.scan(body, x, (variables, keys), unroll=unroll)
    if moving and not net.is_initializing():
        new = {_joined(names): updates} if come_stacked else _unstacked(updates, names)
        for name, statistics in new.items():
            net.put_variable("batch_stats", name, statistics)
    return x
