"""Residual networks, deep or wide, whose units are normalized and activated before each convolution.

He, Zhang, Ren, Sun 2016, "Identity mappings in deep residual networks", arXiv:1603.05027: the CIFAR nets of
tables 2 to 4, the ImageNet nets of table 5, and the five places of activation in its fig. 4 by the field
`order`. The blocks of the net of 1001 layers are scanned, see `stages`.

The stem ends with normalization and ReLU, so the first unit activates nothing before its two paths part,
and the last sum is activated once more (the paper's appendix). As in the authors' code
(KaimingHe/resnet-1k-layers) a projection is a bare 1x1 convolution that reads what the first convolution
reads; option A pads the sum itself. CIFAR's bottlenecks halve the image in the first 1x1 convolution as
there, ImageNet's in the 3x3 one as facebook/fb.resnet.torch, whose ResNet-200 gave the published figures
(with a normalization in projections). Kernels are He-normal with fan-out, `head` is LeCun-normal.

Zagoruyko, Komodakis 2016, "Wide residual networks", arXiv:1605.07146, table 1 with B(3,3) blocks: `wrn_D_K`
has depth D = 6n + 4 and K times the channels of a ResNet; projections as above. The ImageNet nets of its
section 3.5, `wide_resnet50_2` and `wide_resnet101_2`, are bottlenecks: see `resnet`.
"""

import dataclasses
from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError, by_name
from cnnjax.models.layers import BatchNorm, Conv, logits
from cnnjax.models.net import Constructor, he_fan_out
from cnnjax.models.resnet import option_a
from cnnjax.models.stages import StagedNet, check_stages, rest_of, run_blocks, stem
from cnnjax.models.variants import CIFAR, Preset, Variant


@dataclasses.dataclass(frozen=True)
class Order:
    """Where a unit does "", "relu", "norm" or "norm relu", besides between its convolutions."""

    before: str = ""  # the first convolution
    after: str = ""  # the last
    joined: str = ""  # on the sum, with the shortcut


# Fig. 4 (a) to (e).
ORDERS = {
    "original": Order(after="norm", joined="relu"),
    "norm_after_add": Order(joined="norm relu"),
    "relu_before_add": Order(after="norm relu"),
    "relu_preactivation": Order(before="relu", after="norm"),
    "full_preactivation": Order(before="norm relu"),
}


def activate(x: jax.Array, steps: str, norm: Constructor, norm_relu: Constructor, name: str) -> jax.Array:
    """Normalization `name`, ReLU, both in this order, or nothing."""
    if steps == "norm relu":
        return norm_relu(name=name)(x)
    if steps == "norm":
        return norm(name=name)(x)
    return ops.relu(x) if steps == "relu" else x


class Unit(nn.Module):
    """A residual unit (fig. 4): convolutions with normalization and ReLU between them, and a shortcut."""

    convolutions: tuple[tuple[int, int, int], ...]  # features, kernel size, stride
    order: Order
    project: bool  # where the shape changes; else option A
    conv: Constructor
    norm: Constructor
    norm_relu: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, stride = self.convolutions[-1][0], max(stride for _, _, stride in self.convolutions)
        norms, shortcut = (self.norm, self.norm_relu), x
        y = activate(x, self.order.before, *norms, "norm1")
        if stride != 1 or features != x.shape[-1]:
            conv = partial(self.conv, features, 1, stride, name="shortcut")
            shortcut = conv()(y) if self.project else option_a(x, features, stride)
        for i, (width, size, stride) in enumerate(self.convolutions, 1):
            if i > 1:
                y = self.norm_relu(name=f"norm{i}")(y)
            y = self.conv(width, size, stride, padding=size // 2, name=f"conv{i}")(y)
        y = activate(y, self.order.after, *norms, "norm_after")
        return activate(y + shortcut, self.order.joined, *norms, "norm_joined")


# The convolutions of a unit by its width and stride; the bottlenecks differ in the place of the stride.
UNITS = {
    "basic": lambda width, stride: ((width, 3, stride), (width, 3, 1)),
    "bottleneck": lambda width, stride: ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1)),
    "bottleneck_v1": lambda width, stride: ((width, 1, stride), (width, 3, 1), (4 * width, 1, 1)),
}


class PreactResNet(StagedNet):
    """Stem, stages of units, a last activation, global average pooling, `head`. Takes images of any size."""

    stage_sizes: tuple[int, ...] = (3, 24, 36, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)  # of the 3x3 convolutions
    unit: str = "bottleneck"  # a name of `UNITS`
    order: str = "full_preactivation"  # a name of `ORDERS`
    shortcut: str = "b"  # where the shape changes a projection; "a" is zeros in new channels
    stem: str = "imagenet"  # or "cifar", for images of 64 pixels or less

    def stages(self) -> list[tuple[int, int]]:
        return check_stages(self.widths, self.stage_sizes)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        order, convolutions = by_name("order", self.order, ORDERS), by_name("unit", self.unit, UNITS)
        project = by_name("shortcut", self.shortcut, {"a": False, "b": True})
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm = self.norm_layer(BatchNorm, train)
        norm_relu = partial(norm, act=ops.relu)
        unit = partial(Unit, project=project, conv=conv, norm=norm, norm_relu=norm_relu)
        x = image.astype(self.dtype)
        x = stem(self.stem, x, self.widths[0], conv, norm_relu)  # 56 56 64; CIFAR 32 32 16
        for i, (width, count) in enumerate(self.stages(), 1):
            # bottlenecks: 56 56 256, 28 28 512, 14 14 1024, 7 7 2048; on CIFAR 32 32 64, 16 16 128, 8 8 256
            active = dataclasses.replace(order, before="") if i == 1 else order
            first = partial(unit, convolutions(width, 1 if i == 1 else 2), active)
            x = run_blocks(self, first, [f"stage{i}_block1"], x)
            x = run_blocks(self, partial(unit, convolutions(width, 1), order), rest_of(i, count), x)
        x = activate(x, order.before, norm, norm_relu, "norm")
        x = ops.global_avg_pool(x)  # 2048; CIFAR 256
        return logits(x, self.num_classes, self.dtype)


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
        y = self.dropout(name="dropout")(self.norm_relu(name="norm2")(y))
        return x + self.conv(self.width, 3, padding=1, name="conv2")(y)


class WideResNet(StagedNet):
    """A convolution, three stages, a last activation, global average pooling, `head`. Takes any image."""

    depth: int = 28  # 6n + 4 for n blocks a stage
    widen_factor: int = 10
    dropout: float = 0.0  # the rate; in the paper 0.3 on CIFAR, 0.4 on SVHN

    def stages(self) -> list[tuple[int, int]]:
        widths = [width * self.widen_factor for width in (16, 32, 64)]
        return check_stages(widths, [(self.depth - 4) // 6] * 3)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise UserError(f"depth {self.depth}: a wide ResNet has 6n + 4 layers: 10, 16, 22, 28, 40, ...")
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm_relu = self.norm_layer(BatchNorm, train, act=ops.relu)
        dropout = partial(nn.Dropout, self.dropout, deterministic=not train)
        block = partial(WideBlock, conv=conv, norm_relu=norm_relu, dropout=dropout)
        x = conv(16, 3, padding=1, name="stem")(image)  # 32 32 16
        for i, (width, count) in enumerate(self.stages(), 1):  # wrn_28_10: 32 32 160, 16 16 320, 8 8 640
            x = run_blocks(self, partial(block, width, 1 if i == 1 else 2), [f"stage{i}_block1"], x)
            x = run_blocks(self, partial(block, width, 1), rest_of(i, count), x)
        x = norm_relu(name="norm")(x)
        x = ops.global_avg_pool(x)  # 640
        return logits(x, self.num_classes, self.dtype)


def _cifar(n: int, top1: float, unit: str, shortcut: str) -> Variant:
    small = partial(PreactResNet, widths=(16, 32, 64), stem="cifar")
    build = partial(small, stage_sizes=(n, n, n), unit=unit, shortcut=shortcut, scan_blocks=n > 100)
    return Variant(build, "He et al. 2016", CIFAR, top1, published="CIFAR-10")


def _imagenet(unit: str, *stage_sizes: int) -> Variant:
    return Variant(partial(PreactResNet, stage_sizes=stage_sizes, unit=unit), "He et al. 2016")


# CIFAR-10 accuracy with mean and std preprocessing; with ZCA whitening where the paper has nothing else.
_MEAN_STD = {(16, 4): 94.98, (40, 4): 95.47, (16, 8): 95.73, (28, 10): 96.00, (52, 1): 93.57}
_ZCA = {(40, 1): 93.15, (40, 2): 94.67, (22, 8): 95.62, (22, 10): 95.56, (40, 8): 95.34, (28, 12): 95.67}


def _wide(depth: int, k: int, top1: float, published: str, dropout: float = 0.0) -> Variant:
    build = partial(WideResNet, depth=depth, widen_factor=k, dropout=dropout)
    return Variant(build, "Zagoruyko & Komodakis 2016", CIFAR, top1, published=published)


_TABLES = {"CIFAR-10": _MEAN_STD, "CIFAR-10, ZCA": _ZCA}

VARIANTS = {
    "preact_resnet110_cifar": _cifar(18, 93.63, "basic", "a"),
    "preact_resnet164_cifar": _cifar(18, 94.54, "bottleneck_v1", "b"),
    "preact_resnet1001_cifar": _cifar(111, 95.08, "bottleneck_v1", "b"),
    "preact_resnet18": _imagenet("basic", 2, 2, 2, 2),
    "preact_resnet34": _imagenet("basic", 3, 4, 6, 3),
    "preact_resnet50": _imagenet("bottleneck", 3, 4, 6, 3),
    "preact_resnet101": _imagenet("bottleneck", 3, 4, 23, 3),
    "preact_resnet152": _imagenet("bottleneck", 3, 8, 36, 3),
    "preact_resnet200": Variant(
        PreactResNet, "He et al. 2016", Preset(), 78.34, 94.21, "ImageNet 1-crop, fb.resnet.torch"
    ),
    **{
        f"wrn_{depth}_{k}": _wide(depth, k, top1, published)
        for published, table in _TABLES.items()
        for (depth, k), top1 in table.items()
    },
    "wrn_40_10": _wide(40, 10, 96.2, "CIFAR-10, dropout 0.3", dropout=0.3),
}
