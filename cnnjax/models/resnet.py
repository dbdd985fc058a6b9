"""Residual networks, and what they grew into: wide and aggregated (`resnet_d`, `seresnet`, `res2net`: more).

He, Zhang, Ren, Sun 2015, "Deep residual learning for image recognition", arXiv:1512.03385, table 1; the plain
nets of its section 4.1 are those without shortcuts. `resnet*_cifar` have the 6n + 2 layers of section 4.2 and
table 6: a 3x3 stem of 16 channels, three stages of n basic blocks with 16, 32, 64 channels on 32, 16, 8
pixels, shortcuts of option A; the blocks of 1202 layers are scanned, see `stages`. `resnet*_cifar_centered`
are those of the weights of github.com/akamaster/pytorch_resnet_cifar10. Zagoruyko, Komodakis 2016,
arXiv:1605.07146 (`wide_resnet*`, section 3); Xie et al. 2016, arXiv:1611.05431, table 1 (`resnext*`). Widths,
counts and names follow torchvision.

Deviations: a bottleneck halves the image in its 3x3 convolution (v1.5, as torchvision), `resnet50_v1` and
its like in the first 1x1 as in the paper. Kernels are He-normal with fan-out, `head` is LeCun-normal.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError, by_name
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, logits, ones, zeros
from cnnjax.models.net import Constructor, he_fan_out
from cnnjax.models.stages import StagedNet, check_stages, rest_of, run_blocks, stem
from cnnjax.models.variants import CIFAR, Preset, Rules, TorchNames, Variant, substitute

Shortcut = Callable[[jax.Array, int, int], jax.Array]

# --- Shortcuts (section 4.1): x [B, H, W, C] as [B, H / stride, W / stride, features]. -------------------


def option_a(x: jax.Array, features: int, stride: int, **_: Constructor) -> jax.Array:
    """Every stride-th pixel, and zeros in the new channels: no parameters."""
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def option_a_centered(x: jax.Array, features: int, stride: int, **_: Constructor) -> jax.Array:
    """Option A with half of the zeros before the old channels, as pytorch_resnet_cifar10 pads them."""
    x = x[:, ::stride, ::stride]
    before = (features - x.shape[-1]) // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, features - x.shape[-1] - before)))


def option_b(x: jax.Array, features: int, stride: int, conv: Constructor, norm: Constructor) -> jax.Array:
    """A projection where the shape changes, else x itself."""
    same = stride == 1 and x.shape[-1] == features
    return x if same else option_c(x, features, stride, conv, norm)


def option_c(x: jax.Array, features: int, stride: int, conv: Constructor, norm: Constructor) -> jax.Array:
    """A projection in every block: 1x1 convolution and normalization."""
    return ConvNorm(features, 1, stride, conv=conv, norm=norm, name="shortcut")(x)


def option_d(x: jax.Array, features: int, stride: int, conv: Constructor, norm: Constructor) -> jax.Array:
    """Option B, whose projection reads the mean of stride x stride pixels (He et al. 2018, figure 2c)."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = ops.avg_pool(x, stride, ceil=True) if stride > 1 else x
    return ConvNorm(features, conv=conv, norm=norm, name="pooled_shortcut")(x)


def no_shortcut(x: jax.Array, features: int, stride: int, **_: Constructor) -> jax.Array:
    """Nothing is added: a plain net."""
    return jnp.zeros((), x.dtype)


Options = dict[str, Callable[..., jax.Array]]
SHORTCUTS: Options = {
    "a": option_a,
    "a_centered": option_a_centered,
    "b": option_b,
    "c": option_c,
    "d": option_d,
    "none": no_shortcut,
}


# --- Blocks (fig. 5): `last_norm` is the normalization before the addition. -------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    width: int
    stride: int
    conv: Constructor
    norm_relu: Constructor
    last_norm: Constructor
    shortcut: Shortcut

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.width, 3, self.stride, padding=1, name="conv1")(x)
        y = self.norm_relu(name="norm1")(y)
        y = self.last_norm(name="norm2")(self.conv(self.width, 3, padding=1, name="conv2")(y))
        return ops.relu(self.gate(y) + self.shortcut(x, self.width, self.stride))

    def gate(self, y: jax.Array) -> jax.Array:
        """What the residual goes through before the addition."""
        return y


class Bottleneck(BasicBlock):
    """1x1 down to the inner width, 3x3, 1x1 up to four times `width`."""

    groups: int = 1  # of the 3x3 convolution, ResNeXt's cardinality
    group_width: int = 64  # the channels of each in the first stage, later times `width` / 64
    strided: int = 2  # the number of the convolution with the stride

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner, features = self.groups * (self.width * self.group_width // 64), 4 * self.width
        strides = (self.stride, 1) if self.strided == 1 else (1, self.stride)
        y = self.conv(inner, 1, strides[0], name="conv1")(x)
        y = self.norm_relu(name="norm1")(y)
        y = self.conv(inner, 3, strides[1], padding=1, groups=self.groups, name="conv2")(y)
        y = self.norm_relu(name="norm2")(y)
        y = self.gate(self.last_norm(name="norm3")(self.conv(features, 1, name="conv3")(y)))
        return ops.relu(y + self.shortcut(x, features, self.stride))


class ResNet(StagedNet):
    """Stem, stages of residual blocks, global average pooling, `head`. Takes images of any size."""

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)  # of the 3x3 convolutions; the first is the stem's too
    block: Constructor = Bottleneck
    shortcut: str = "b"  # one of SHORTCUTS; "none": a plain net
    stem: str = "imagenet"  # or "deep"; or "cifar", for images of 64 pixels or less
    # Each block's last scale begins at 0, so that it is the identity (Goyal et al. 2017, arXiv:1706.02677,
    # section 5.1); not with shortcut "none".
    zero_init: bool = False

    def __post_init__(self) -> None:
        if self.zero_init and self.shortcut == "none":
            raise UserError("zero_init=True needs a shortcut: without one the net is constant; leave it out")
        super().__post_init__()

    def stages(self) -> list[tuple[int, int]]:
        return check_stages(self.widths, self.stage_sizes)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        shortcut = by_name("shortcut", self.shortcut, SHORTCUTS)
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm = self.norm_layer(BatchNorm, train)
        norm_relu = partial(norm, act=ops.relu)
        last_norm = partial(norm, scale_init=zeros if self.zero_init else ones)
        block = partial(self.block, conv=conv, norm_relu=norm_relu, last_norm=last_norm)
        block = partial(block, shortcut=partial(shortcut, conv=conv, norm=norm))
        x = stem(self.stem, image.astype(self.dtype), self.widths[0], conv, norm_relu)  # 56 56 64
        for i, (width, count) in enumerate(self.stages(), 1):
            # resnet18, 34: 56 56 64, 28 28 128, 14 14 256, 7 7 512; bottlenecks 4 times the channels
            x = run_blocks(self, partial(block, width, 1 if i == 1 else 2), [f"stage{i}_block1"], x)
            x = run_blocks(self, partial(block, width, 1), rest_of(i, count), x)
        x = ops.global_avg_pool(x)  # 512 or 2048
        return logits(x, self.num_classes, self.dtype)


# --- Variants: published accuracies with the data set and the number of crops of a test image. ------------

_basic = partial(ResNet, block=BasicBlock)
_deep = partial(ResNet, block=Bottleneck)
_v1 = partial(ResNet, block=partial(Bottleneck, strided=1))
_wide = partial(ResNet, block=partial(Bottleneck, group_width=128))
_18, _50, _101, _152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_he, _zagoruyko, _xie = "He et al. 2015", "Zagoruyko & Komodakis 2016", "Xie et al. 2016"
_v1_weights = "ImageNet 1-crop, torchvision V1"
_caffe = "ImageNet 1-crop, the paper's Caffe models"
_ten = "ImageNet 10-crop"


def _aggregated(groups: int, group_width: int) -> partial:
    return partial(ResNet, block=partial(Bottleneck, groups=groups, group_width=group_width))


def _row(build: partial, sizes: tuple[int, ...], source: str, scores: tuple = (), **fields: str) -> Variant:
    return Variant(partial(build, stage_sizes=sizes, **fields), source, Preset(), *scores)


def _cifar(depth: int, shortcut: str, top1: float | None = None) -> Variant:
    n = (depth - 2) // 6
    small = partial(_basic, widths=(16, 32, 64), stem="cifar")
    build = partial(small, stage_sizes=(n, n, n), shortcut=shortcut, scan_blocks=n > 100)
    return Variant(build, "He et al. 2015", CIFAR, top1, published="" if top1 is None else "CIFAR-10")


def _centered(depth: int, top1: float | None = None) -> Variant:
    """A net of pytorch_resnet_cifar10, whose weights are for pixels normalized as ImageNet's."""
    row = _cifar(depth, "a_centered", top1)
    preset = dataclasses.replace(CIFAR, mean=Preset().mean, std=Preset().std)
    return dataclasses.replace(row, preset=preset, published="CIFAR-10, weights of pytorch_resnet_cifar10")


_64x4d = _row(_aggregated(64, 4), _101, _xie, (83.246, 96.454, _v1_weights))
VARIANTS = {
    "plain18": _row(_basic, _18, _he, (72.06, None, _ten), shortcut="none"),
    "plain34": _row(_basic, _50, _he, (71.46, 89.98, _ten), shortcut="none"),
    "resnet18": _row(_basic, _18, _he, (69.758, 89.078, _v1_weights)),
    "resnet18_option_a": _row(_basic, _18, _he, (72.12, None, _ten), shortcut="a"),
    "resnet18_option_c": _row(_basic, _18, _he, shortcut="c"),
    "resnet34": _row(_basic, _50, _he, (73.314, 91.420, _v1_weights)),
    "resnet34_option_a": _row(_basic, _50, _he, (74.97, 92.24, _ten), shortcut="a"),
    "resnet34_option_c": _row(_basic, _50, _he, (75.81, 92.60, _ten), shortcut="c"),
    "resnet50": _row(_deep, _50, _he, (76.130, 92.862, _v1_weights)),
    "resnet101": _row(_deep, _101, _he, (77.374, 93.546, _v1_weights)),
    "resnet152": _row(_deep, _152, _he, (78.312, 94.046, _v1_weights)),
    "resnet50_v1": _row(_v1, _50, _he, (75.3, 92.2, _caffe)),
    "resnet101_v1": _row(_v1, _101, _he, (76.4, 92.9, _caffe)),
    "resnet152_v1": _row(_v1, _152, _he, (77.0, 93.3, _caffe)),
    "wide_resnet50_2": _row(_wide, _50, _zagoruyko, (78.468, 94.086, _v1_weights)),
    "wide_resnet101_2": _row(_wide, _101, _zagoruyko, (78.848, 94.284, _v1_weights)),
    "resnext50_32x4d": _row(_aggregated(32, 4), _50, _xie, (77.618, 93.698, _v1_weights)),
    "resnext101_32x8d": _row(_aggregated(32, 8), _101, _xie, (79.312, 94.526, _v1_weights)),
    "resnext101_64x4d": dataclasses.replace(_64x4d, preset=Preset(resize=232)),
    **{f"plain{depth}_cifar": _cifar(depth, "none") for depth in (20, 32, 44, 56, 110)},
    "resnet20_cifar": _cifar(20, "a", 91.25),
    "resnet32_cifar": _cifar(32, "a", 92.49),
    "resnet44_cifar": _cifar(44, "a", 92.83),
    "resnet56_cifar": _cifar(56, "a", 93.03),
    "resnet110_cifar": _cifar(110, "a", 93.39),  # mean of 5 runs, best 93.57
    "resnet1202_cifar": _cifar(1202, "a", 92.07),
    "resnet20_cifar_option_b": _cifar(20, "b"),
    "resnet20_cifar_centered": _centered(20, 91.73),
    "resnet32_cifar_centered": _centered(32, 92.63),
    "resnet44_cifar_centered": _centered(44, 93.1),
    "resnet56_cifar_centered": _centered(56, 93.39),
    "resnet110_cifar_centered": _centered(110, 93.68),
}

NAMES: Rules = {
    r"^stage(\d+)_block(\d+)": lambda m: f"layer{m[1]}.{int(m[2]) - 1}",
    **{"^stem/conv$": "conv1", "^stem/norm3?$": "bn1", "^head$": "fc"},
    r"^stem/(conv|norm)(\d)$": lambda m: f"conv1.{3 * int(m[2]) - 3 + (m[1] == 'norm')}",  # ReLUs count too
    r"norm(\d)$": r"bn\1",
    **{"pooled_shortcut/conv$": "downsample.1", "pooled_shortcut/norm$": "downsample.2"},
    **{"shortcut/conv$": "downsample.0", "shortcut/norm$": "downsample.1"},
}
UNTOLD = {
    "shortcut": {
        "a": "zeros behind the old channels",
        "a_centered": "zeros on both sides of them (files of pytorch_resnet_cifar10: resnet*_cifar_centered)",
    }
}
# The names of squeeze-and-excitation are timm's.
TORCH_NAMES = {ResNet: TorchNames(substitute(NAMES), convolved=(r".*/se/fc\d",), untold=UNTOLD)}
