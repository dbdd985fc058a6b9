"""Squeeze-and-excitation networks: residual nets that weigh the channels of each block.

Hu, Shen, Sun 2017, "Squeeze-and-excitation networks", arXiv:1709.01507, table 1 (`seresnet50`,
`seresnext50_32x4d`), table 2 (101 and 152 layers) and figure 3 (the block, reduction 16). Nets with a `d` in
their name have the stem and shortcut of `resnet_d`. Widths, counts and names follow timm, whose basic blocks
squeeze to at least 8 channels. Deviations as in `resnet`.
"""

import dataclasses
from functools import partial

import jax

from cnnjax.models.layers import SqueezeExcite
from cnnjax.models.net import Constructor
from cnnjax.models.resnet import BasicBlock, Bottleneck, ResNet
from cnnjax.models.resnet_d import resnet_d
from cnnjax.models.variants import Variant, timm_preset


class SEBasicBlock(BasicBlock):
    """A basic block whose channels are weighed before the addition."""

    def gate(self, y: jax.Array) -> jax.Array:
        return SqueezeExcite(max(y.shape[-1] // 16, 8), dtype=y.dtype, name="se")(y)


class SEBottleneck(Bottleneck):
    """A bottleneck whose channels are weighed before the addition."""

    def gate(self, y: jax.Array) -> jax.Array:
        return SqueezeExcite(y.shape[-1] // 16, dtype=y.dtype, name="se")(y)


def _aggregated(groups: int, group_width: int) -> partial:
    return partial(SEBottleneck, groups=groups, group_width=group_width)


def _row(
    net: partial, block: Constructor, sizes: tuple[int, ...], size: int = 224, crop_pct: float = 0.875
) -> Variant:
    preset = timm_preset((size, size, 3), 1000, crop_pct, "bicubic")
    return Variant(partial(net, block=block, stage_sizes=sizes), "Hu et al. 2017", preset)


_net = partial(ResNet)
_26, _50, _101, _152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_seresnet50 = _row(_net, SEBottleneck, _50, 224, 0.95)
VARIANTS = {
    "seresnet18": _row(_net, SEBasicBlock, _26),
    "seresnet34": _row(_net, SEBasicBlock, _50),
    "seresnet50": dataclasses.replace(_seresnet50, top1=76.71, top5=93.38, published="ImageNet 1-crop"),
    "seresnet101": _row(_net, SEBottleneck, _101),
    "seresnet152": _row(_net, SEBottleneck, _152),
    "seresnet152d": _row(resnet_d, SEBottleneck, _152, 256, 0.95),
    "seresnext26d_32x4d": _row(resnet_d, _aggregated(32, 4), _26),
    "seresnext50_32x4d": _row(_net, _aggregated(32, 4), _50),
    "seresnext101_32x4d": _row(_net, _aggregated(32, 4), _101),
    "seresnext101_64x4d": _row(_net, _aggregated(64, 4), _101),
    "seresnext101_32x8d": _row(_net, _aggregated(32, 8), _101, 224, 0.95),
    "seresnext101d_32x8d": _row(resnet_d, _aggregated(32, 8), _101, 224, 0.95),
}
