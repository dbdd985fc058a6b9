"""Res2Net: residual blocks whose 3x3 convolution is a chain of smaller ones, each seeing more of the image.

Gao, Cheng, Zhao, Zhang, Yang, Torr 2019, "Res2Net: a new multi-scale backbone architecture",
arXiv:1904.01169, section 3.1 and figure 2b; `26w_4s` is a width of 26 and a scale of 4. `res2next50` has 8
groups of 4 channels; nets with a `d` in their name have the stem and shortcut of `resnet_d`. Blocks that
change the shape, the widths and names follow the released code and timm. Deviations as in `resnet`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.net import Constructor
from cnnjax.models.resnet import NAMES, BasicBlock, ResNet
from cnnjax.models.variants import Rules, TorchNames, Variant, substitute, timm_preset


class MultiScaleBlock(BasicBlock):
    """1x1, then `scale` parts of the channels, a 3x3 for all but the last, 1x1 up to four times `width`.

    Each part first adds the result of the part before it. In a block that changes the shape none does, and
    the last part is averaged to the new size.
    """

    scale: int = 4
    part_width: int = 26  # the channels of a part in the first stage, later times `width` / 64
    groups: int = 1  # of the 3x3 convolutions, each `part_width` wide

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner, features = self.groups * (self.width * self.part_width // 64), 4 * self.width
        changes_shape = self.stride > 1 or x.shape[-1] != features
        y = self.norm_relu(name="norm1")(self.conv(self.scale * inner, 1, name="conv1")(x))
        *parts, last = jnp.split(y, self.scale, axis=-1)
        done: list[jax.Array] = []
        for i, part in enumerate(parts, 1):
            part = part + done[-1] if done and not changes_shape else part
            conv = self.conv(inner, 3, self.stride, padding=1, groups=self.groups, name=f"conv2_{i}")
            done.append(self.norm_relu(name=f"norm2_{i}")(conv(part)))
        if changes_shape:
            last = ops.avg_pool(last, 3, self.stride, padding=1, count_padding=True)
        y = self.conv(features, 1, name="conv3")(jnp.concatenate([*done, last], axis=-1))
        y = self.gate(self.last_norm(name="norm3")(y))
        return ops.relu(y + self.shortcut(x, features, self.stride))


class Res2Net(ResNet):
    """A residual net of multi-scale blocks."""

    block: Constructor = MultiScaleBlock


def _row(net: partial, part_width: int, scale: int, groups: int = 1, depth: int = 6) -> Variant:
    """`depth` is the number of blocks of the third stage."""
    block = partial(MultiScaleBlock, scale=scale, part_width=part_width, groups=groups)
    build = partial(net, block=block, stage_sizes=(3, 4, depth, 3))
    return Variant(build, "Gao et al. 2019, 1904.01169", timm_preset((224, 224, 3), 1000))


_net, _d = partial(Res2Net), partial(Res2Net, stem="deep", shortcut="d")
VARIANTS = {
    "res2net50_26w_4s": _row(_net, 26, 4),
    "res2net50_26w_6s": _row(_net, 26, 6),
    "res2net50_26w_8s": _row(_net, 26, 8),
    "res2net50_48w_2s": _row(_net, 48, 2),
    "res2net50_14w_8s": _row(_net, 14, 8),
    "res2net50d": _row(_d, 26, 4),
    "res2net101_26w_4s": _row(_net, 26, 4, depth=23),
    "res2net101d": _row(_d, 26, 4, depth=23),
    "res2next50": _row(_net, 4, 4, groups=8),
}

_parts: Rules = {
    r"conv2_(\d)$": lambda m: f"convs.{int(m[1]) - 1}",
    r"norm2_(\d)$": lambda m: f"bns.{int(m[1]) - 1}",
}
TORCH_NAMES = {Res2Net: TorchNames(substitute({**_parts, **NAMES}))}
