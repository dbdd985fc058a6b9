"""EfficientNet B0 to B4: MobileNet's inverted residuals with squeeze-and-excitation, scaled together.

Tan, Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", 1905.11946, table 1
(B0) and section 3.3 (the others: width times 1.1^n, depth times 1.2^n, larger images); stochastic depth as in
section 5. Padding is half the kernel, as in torchvision (the released TensorFlow nets pad the bottom and
right by one more where the stride is 2), and so is batch normalization's epsilon, 1e-5. Kernels are He-normal
(fan-out), the classifier's uniform within 1 / sqrt(classes).
"""

import math
from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import BatchNorm, BatchNormAct, Conv, ConvNorm, DropPath, SqueezeExcite, logits
from cnnjax.models.net import Activation, Constructor, Net, check_stem, divisible, he_fan_out
from cnnjax.models.variants import Preset, TorchNames, Variant, place

head_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")

# Table 1: expansion, kernel size, stride of the first block, channels and blocks of each stage.
STAGES = (
    (1, 3, 1, 16, 1),  # 112 112 16
    (6, 3, 2, 24, 2),  # 56 56 24
    (6, 5, 2, 40, 2),  # 28 28 40
    (6, 3, 2, 80, 3),  # 14 14 80
    (6, 5, 1, 112, 3),  # 14 14 112
    (6, 5, 2, 192, 4),  # 7 7 192
    (6, 3, 1, 320, 1),  # 7 7 320
)


class MBConv(nn.Module):
    """Expand (1x1), depthwise, squeeze-and-excitation, project (1x1); a shortcut where shapes allow."""

    features: int
    expansion: int
    kernel_size: int
    strides: int
    unit: Constructor
    linear: Constructor
    squeeze_excite: Constructor
    drop_path: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, width = x.shape[-1], x.shape[-1] * self.expansion
        y = self.unit(width, name="expand")(x) if self.expansion > 1 else x
        y = self.unit(width, self.kernel_size, self.strides, groups=width, name="depthwise")(y)
        y = self.squeeze_excite(max(1, channels // 4), name="se")(y)
        y = self.linear(self.features, name="project")(y)
        return x + self.drop_path(y) if y.shape == x.shape else y


class EfficientNet(Net):
    """Takes images of any size from 1x1 on."""

    width: float = 1.0  # times the channels of each of `stages`
    depth: float = 1.0  # times the number of its blocks
    stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
    stem: str = "imagenet"  # halves the size; "cifar" keeps it
    dropout_rate: float = 0.2
    drop_path_rate: float = 0.2  # the last block's: it grows linearly from 0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        linear = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train))
        unit = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNormAct, train))
        squeeze_excite = partial(SqueezeExcite, act=nn.silu, kernel_init=he_fan_out, dtype=self.dtype)
        sizes = [math.ceil(self.depth * size) for *_, size in self.stages]
        strides = 1 if check_stem(self.stem, image) == "cifar" else 2
        x = image.astype(self.dtype)  # 224 224 3
        x = unit(divisible(32 * self.width), 3, strides, name="stem")(x)  # 112 112 32
        for i, (expansion, kernel_size, stride, width, _) in enumerate(self.stages):
            for j in range(sizes[i]):  # 112 112 16 to 7 7 320, see STAGES
                rate = self.drop_path_rate * (sum(sizes[:i]) + j) / sum(sizes)
                features, strides = divisible(width * self.width), stride if j == 0 else 1
                block = partial(MBConv, features, expansion, kernel_size, strides, unit, linear)
                x = block(squeeze_excite, DropPath(rate, train), name=f"stage{i + 1}_block{j + 1}")(x)
        x = unit(4 * x.shape[-1], name="last")(x)  # 7 7 1280
        x = ops.global_avg_pool(x)  # 1280
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=head_init)


def _row(width: float, depth: float, dropout_rate: float, sizes: tuple[int, int], *top: float) -> Variant:
    """`sizes` are those of the image and of resizing."""
    build = partial(EfficientNet, width=width, depth=depth, dropout_rate=dropout_rate)
    preset = Preset((sizes[0], sizes[0], 3), resize=sizes[1], interpolation="bicubic")
    (top1, top5), published = top, "ImageNet 1-crop, torchvision"
    return Variant(build, "Tan, Le 2019, 1905.11946", preset, top1, top5, published)


VARIANTS = {
    "efficientnet_b0": _row(1.0, 1.0, 0.2, (224, 256), 77.692, 93.532),
    "efficientnet_b1": _row(1.0, 1.1, 0.2, (240, 256), 78.642, 94.186),
    "efficientnet_b2": _row(1.1, 1.2, 0.3, (288, 288), 80.608, 95.310),
    "efficientnet_b3": _row(1.2, 1.4, 0.3, (300, 320), 82.008, 96.054),
    "efficientnet_b4": _row(1.4, 1.8, 0.4, (380, 384), 83.384, 96.594),
}


def _torch_name(path: str, model: EfficientNet) -> str:
    """'stage2_block1/project/conv' -> 'features.2.0.block.3.0'; without expansion one index less."""
    if path == "head":
        return "classifier.1"
    block, *unit, layer = path.split("/")
    index = {"conv": "0", "norm": "1"}.get(layer, layer)
    if not unit:
        return f"features.{0 if block == 'stem' else len(model.stages) + 1}.{index}"
    stage, i = place(block)
    within = ("expand", "depthwise", "se", "project").index(unit[0]) - (model.stages[stage - 1][0] == 1)
    return f"features.{stage}.{i - 1}.block.{within}.{index}"


TORCH_NAMES = {EfficientNet: TorchNames(_torch_name, convolved=(r".*/se/fc\d",))}
