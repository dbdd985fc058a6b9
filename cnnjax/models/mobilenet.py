"""MobileNet v1 and v2: convolutions split into one filter a channel (depthwise) and 1x1 mixing (pointwise).

Howard et al. 2017, 1704.04861, table 1 (v1); Sandler et al. 2018, 1801.04381, table 2 (v2). Deviations:
strided convolutions pad one pixel on every side (TensorFlow's 'same' pads the bottom and right alone); v1's
last block has stride 1 (the table prints 2, but its output stays 7x7), its kernels are He-normal (fan-in) and
its head's N(0, 0.01), of which the paper says nothing. v2 is torchvision's: kernels He-normal (fan-out), the
head's N(0, 0.01), dropout 0.2.
"""

from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.inverted_residual import InvertedResidual, timm_name, units
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, conv_unit, logits
from cnnjax.models.net import Constructor, Net, check_stem, divisible, he_fan_out, he_normal
from cnnjax.models.variants import Preset, TorchNames, Variant, place


class SeparableBlock(nn.Module):
    """v1's block: 3x3 depthwise and 1x1 pointwise, each normalized, then ReLU."""

    features: int
    strides: int
    unit: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        x = self.unit(channels, 3, self.strides, groups=channels, name="depthwise")(x)
        return self.unit(self.features, name="pointwise")(x)


class MobileNetV1(Net):
    """A strided convolution, 13 separable blocks, global average pooling and one dense layer.

    BatchNorm's epsilon is 0.001, as in the authors' TensorFlow code.
    """

    stem: str = "imagenet"  # "cifar" leaves out the first two of the five halvings, for small images
    width: float = 1.0  # times all channels
    # Channels, blocks, and the stride of the first block.
    stages: tuple[tuple[int, int, int], ...] = (
        (64, 1, 1),
        (128, 2, 2),
        (256, 2, 2),
        (512, 6, 2),
        (1024, 2, 2),
    )

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        halvings_left_out = 2 if check_stem(self.stem, image) == "cifar" else 0
        unit = conv_unit(self, train, he_normal)
        x = unit(divisible(32 * self.width), 3, 1 if halvings_left_out else 2, name="stem")(image)
        for stage, (channels, blocks, stride) in enumerate(self.stages, 1):  # 112 112 32
            for i in range(1, blocks + 1):  # 112 112 64 | 56 56 128 | 28 28 256 | 14 14 512 | 7 7 1024
                strides = stride if i == 1 and stage > halvings_left_out else 1
                name = f"stage{stage}_block{i}"
                x = SeparableBlock(divisible(channels * self.width), strides, unit, name=name)(x)
        x = ops.global_avg_pool(x)  # 1024
        return logits(x, self.num_classes, self.dtype, kernel_init=nn.initializers.normal(0.01))


class MobileNetV2(Net):
    """A strided convolution, 17 inverted residuals, a 1x1 convolution, average pooling, one dense layer."""

    stem: str = "imagenet"  # "cifar" leaves out the first two of the five halvings, for small images
    width: float = 1.0  # times all channels
    # The paper's t, c, n, s: expansion, channels, blocks, and the stride of the first block.
    stages: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    last_width: int = 1280
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        halvings_left_out = 2 if check_stem(self.stem, image) == "cifar" else 0
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        unit = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train, act=nn.relu6))
        linear = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train))
        x = unit(divisible(32 * self.width), 3, 1 if halvings_left_out else 2, name="stem")(image)
        for stage, (expansion, channels, blocks, stride) in enumerate(self.stages, 1):  # 112 112 32
            for i in range(1, blocks + 1):  # 112 16 | 56 24 | 28 32 | 14 64 | 14 96 | 7 160 | 7 320
                strides = stride if i == 1 and stage > halvings_left_out else 1
                features, width = divisible(channels * self.width), expansion * x.shape[-1]
                block = partial(InvertedResidual, features, width, 3, strides, unit, linear)
                x = block(name=f"stage{stage}_block{i}")(x)
        x = unit(divisible(self.last_width * max(1.0, self.width)), name="last")(x)  # 7 7 1280
        x = ops.global_avg_pool(x)  # 1280
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=nn.initializers.normal(0.01))


def _v1(width: float, top1: float) -> Variant:  # of table 6
    build = partial(MobileNetV1, width=width)
    return Variant(build, f"Howard et al. 2017, width {width}", top1=top1, published="ImageNet 1-crop")


V2 = ("Sandler et al. 2018; torchvision", Preset(), 71.878, 90.286, "ImageNet 1-crop, torchvision V1")
VARIANTS = {
    "mobilenet_v1": _v1(1.0, 70.6),
    "mobilenet_v1_075": _v1(0.75, 68.4),
    "mobilenet_v1_050": _v1(0.5, 63.7),
    "mobilenet_v1_025": _v1(0.25, 50.6),
    "mobilenet_v2": Variant(MobileNetV2, *V2, timm="mobilenetv2_100"),
}


def _torch_name(path: str, model: MobileNetV2) -> str:
    """'stage2_block1/project/conv' -> 'features.2.conv.2'; without expansion one index less."""
    if path == "head":
        return "classifier.1"
    *block, layer = path.split("/")
    index, depths = int(layer == "norm"), [blocks for _, _, blocks, _ in model.stages]
    if block in (["stem"], ["last"]):
        return f"features.{0 if block == ['stem'] else sum(depths) + 1}.{index}"
    stage, i = place(block[0])
    unit = units(model, block[0]).index(block[1])
    within = f"{unit + index}" if block[1] == "project" else f"{unit}.{index}"
    return f"features.{sum(depths[: stage - 1]) + i}.conv.{within}"


TORCH_NAMES = {MobileNetV2: (TorchNames(_torch_name), TorchNames(timm_name))}
