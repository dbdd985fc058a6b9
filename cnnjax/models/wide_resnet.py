"""Wide residual networks: few, wide pre-activation units.

Zagoruyko, Komodakis 2016, "Wide residual networks", arXiv:1605.07146, table 1 with B(3,3) blocks: `wrn_D_K`
has depth D = 6n + 4 and K times the channels of a ResNet. As in the authors' code a projection is a bare
1x1 convolution of the activated input. Kernels are He-normal with fan-out, `head` is LeCun-normal. The
ImageNet nets of its section 3.5, `wide_resnet50_2` and `wide_resnet101_2`, are bottlenecks: see `resnet`.
"""

from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.models.layers import BatchNormRelu, Conv, logits
from cnnjax.models.net import Constructor, he_fan_out
from cnnjax.models.stages import StagedNet, check_stages, rest_of, run_blocks
from cnnjax.models.variants import CIFAR, Variant


class WideBlock(nn.Module):
    """Two 3x3 convolutions, normalized and activated before each; `dropout` between them (fig. 1 d)."""

    width: int
    stride: int
    conv: Constructor
    norm_relu: Constructor
    dropout: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm_relu(name="norm1")(x)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = self.conv(self.width, 1, self.stride, name="shortcut")(y)
        y = self.conv(self.width, 3, self.stride, padding=1, name="conv1")(y)
        y = self.norm_relu(name="norm2")(y)
        y = self.dropout(name="dropout")(y)
        return x + self.conv(self.width, 3, padding=1, name="conv2")(y)


class WideResNet(StagedNet):
    """A convolution, three stages, a last activation, global average pooling, `head`. Takes any image size.

    `depth` is 6n + 4 for n blocks a stage; the paper's `dropout` rate is 0.3 on CIFAR, 0.4 on SVHN.
    """

    depth: int = 28
    widen_factor: int = 10
    dropout: float = 0.0

    def stages(self) -> list[tuple[int, int]]:
        widths = [width * self.widen_factor for width in (16, 32, 64)]
        return check_stages(widths, [(self.depth - 4) // 6] * 3)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise UserError(f"depth {self.depth}: a wide ResNet has 6n + 4 layers: 10, 16, 22, 28, 40, ...")
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm_relu = self.norm_layer(BatchNormRelu, train)
        dropout = partial(nn.Dropout, self.dropout, deterministic=not train)
        block = partial(WideBlock, conv=conv, norm_relu=norm_relu, dropout=dropout)
        x = conv(16, 3, padding=1, name="stem")(image)  # 32 32 16
        for i, (width, count) in enumerate(self.stages(), 1):  # wrn_28_10: 32 32 160, 16 16 320, 8 8 640
            x = run_blocks(self, partial(block, width, 1 if i == 1 else 2), [f"stage{i}_block1"], x)
            x = run_blocks(self, partial(block, width, 1), rest_of(i, count), x)
        x = norm_relu(name="norm")(x)
        x = ops.global_avg_pool(x)  # 640
        return logits(x, self.num_classes, self.dtype)


# CIFAR-10 accuracy with mean and std preprocessing; with ZCA whitening where the paper has nothing else.
_MEAN_STD = {(16, 4): 94.98, (40, 4): 95.47, (16, 8): 95.73, (28, 10): 96.00, (52, 1): 93.57}
_ZCA = {(40, 1): 93.15, (40, 2): 94.67, (22, 8): 95.62, (22, 10): 95.56, (40, 8): 95.34, (28, 12): 95.67}
_DROPOUT = {(40, 10): 96.2}


def _variant(depth: int, k: int, top1: float, published: str) -> Variant:
    build = partial(WideResNet, depth=depth, widen_factor=k)
    return Variant(build, "Zagoruyko & Komodakis 2016", CIFAR, top1, published=published)


_TABLES = {"CIFAR-10": _MEAN_STD, "CIFAR-10, ZCA": _ZCA, "CIFAR-10, dropout 0.3": _DROPOUT}
VARIANTS = {
    f"wrn_{depth}_{k}": _variant(depth, k, top1, published)
    for published, table in _TABLES.items()
    for (depth, k), top1 in table.items()
}
