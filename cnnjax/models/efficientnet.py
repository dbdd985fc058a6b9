"""EfficientNet B0 to B7 and V2: inverted residuals with squeeze-and-excitation, scaled together.

Tan, Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", 1905.11946, table 1
(B0) and section 3.3 (the others: width times 1.1^n, depth times 1.2^n, larger images); stochastic depth as in
section 5. Tan, Le 2021, "EfficientNetV2: smaller models and faster training", 2104.00298, figure 2 and
table 4: early blocks have one convolution in place of two. Padding is half the kernel, as in torchvision; the
nets released for TensorFlow, `tf_...` as in timm, pad the bottom and right by one more where the stride is 2.
Batch normalization's epsilon is torchvision's: 1e-5, and TensorFlow's 1e-3 from B5 on, in V2 and in `tf_...`.
Kernels are He-normal (fan-out), the classifier's uniform within 1 / sqrt(classes).
"""

import dataclasses
import math
from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.inverted_residual import InvertedResidual, timm_name
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, DropPath, SqueezeExcite, logits
from cnnjax.models.net import Activation, Constructor, Net, check_stem, divisible, he_fan_out
from cnnjax.models.variants import HALF, Preset, TorchNames, Variant, place, timm_preset
from cnnjax.ops.shapes import Padding

head_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")

# Table 1: expansion, kernel size, stride of the first block, channels and blocks of each stage.
Stages = tuple[tuple[int, int, int, int, int], ...]
STAGES = (
    (1, 3, 1, 16, 1),  # 112 112 16
    (6, 3, 2, 24, 2),  # 56 56 24
    (6, 5, 2, 40, 2),  # 28 28 40
    (6, 3, 2, 80, 3),  # 14 14 80
    (6, 5, 1, 112, 3),  # 14 14 112
    (6, 5, 2, 192, 4),  # 7 7 192
    (6, 3, 1, 320, 1),  # 7 7 320
)
# V2, the same columns; the first three stages are of fused blocks.
V2_S = (
    (1, 3, 1, 24, 2),  # 192 192 24
    (4, 3, 2, 48, 4),  # 96 96 48
    (4, 3, 2, 64, 4),  # 48 48 64
    (4, 3, 2, 128, 6),  # 24 24 128
    (6, 3, 1, 160, 9),  # 24 24 160
    (6, 3, 2, 256, 15),  # 12 12 256
)
V2_M = (
    (1, 3, 1, 24, 3),  # 240 240 24
    (4, 3, 2, 48, 5),  # 120 120 48
    (4, 3, 2, 80, 5),  # 60 60 80
    (4, 3, 2, 160, 7),  # 30 30 160
    (6, 3, 1, 176, 14),  # 30 30 176
    (6, 3, 2, 304, 18),  # 15 15 304
    (6, 3, 1, 512, 5),  # 15 15 512
)
V2_L = (
    (1, 3, 1, 32, 4),  # 240 240 32
    (4, 3, 2, 64, 7),  # 120 120 64
    (4, 3, 2, 96, 7),  # 60 60 96
    (4, 3, 2, 192, 10),  # 30 30 192
    (6, 3, 1, 224, 19),  # 30 30 224
    (6, 3, 2, 384, 25),  # 15 15 384
    (6, 3, 1, 640, 7),  # 15 15 640
)


class FusedMBConv(InvertedResidual):
    """`InvertedResidual` with one convolution for the first two, or for all if nothing is expanded."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        expands = self.width != x.shape[-1]
        fused = partial(self.unit, kernel_size=self.kernel_size, strides=self.strides, name="fused")
        y = fused(self.width if expands else self.features)(x)
        y = self.linear(self.features, name="project")(y) if expands else y
        return x + self.drop_path(y) if self.strides == 1 and y.shape == x.shape else y


class EfficientNet(Net):
    """Takes images of any size from 1x1 on."""

    width: float = 1.0  # times the channels of the stem and of each of `stages`
    depth: float = 1.0  # times the number of its blocks
    stages: Stages = STAGES
    fused_stages: int = 0  # the first of them, of V2
    stem: str = "imagenet"  # halves the size; "cifar" keeps it
    stem_width: int = 32
    last_width: int | None = None  # None: four times the last stage's
    dropout_rate: float = 0.2
    drop_path_rate: float = 0.2  # times i / n of block i of n, from 0 on
    padding: Padding | None = None  # None: half the kernel on each side
    epsilon: float = 1e-5  # of batch normalization
    momentum: float = 0.9
    act: Activation = ops.silu
    squeeze_excite: bool = True
    scale_ends: bool = True  # the stem's width, and the depth of the first and the last stage

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm = self.norm_layer(BatchNorm, train, epsilon=self.epsilon, momentum=self.momentum)
        layer = partial(ConvNorm, conv=conv, padding=self.padding)
        unit, linear = partial(layer, norm=partial(norm, act=self.act)), partial(layer, norm=norm)
        squeeze = partial(SqueezeExcite, act=self.act, kernel_init=he_fan_out, dtype=self.dtype)
        sizes = [math.ceil(self.depth * size) for *_, size in self.stages]
        stem_width = divisible(self.stem_width * self.width)
        if not self.scale_ends:
            stem_width, sizes[0], sizes[-1] = self.stem_width, self.stages[0][-1], self.stages[-1][-1]
        strides = 1 if check_stem(self.stem, image) == "cifar" else 2
        x = image.astype(self.dtype)  # 224 224 3
        x = unit(stem_width, 3, strides, name="stem")(x)  # 112 112 32
        for i, (expansion, kernel_size, stride, width, _) in enumerate(self.stages):
            kind = FusedMBConv if i < self.fused_stages else InvertedResidual
            for j in range(sizes[i]):  # 112 112 16 to 7 7 320, see STAGES
                rate = self.drop_path_rate * (sum(sizes[:i]) + j) / sum(sizes)
                features, channels = divisible(width * self.width), x.shape[-1]
                block = partial(kind, features, expansion * channels, kernel_size, stride if j == 0 else 1)
                gate = partial(squeeze, max(1, channels // 4)) if self.squeeze_excite else None
                block = partial(block, unit, linear, gate)
                x = block(DropPath(rate, train), name=f"stage{i + 1}_block{j + 1}")(x)
        x = unit(self.last_width or 4 * x.shape[-1], name="last")(x)  # 7 7 1280
        x = ops.global_avg_pool(x)  # 1280
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=head_init)


_torchvision = "ImageNet 1-crop, torchvision V1"
_tf_norm = partial(EfficientNet, epsilon=1e-3, momentum=0.99)
_v2 = partial(EfficientNet, fused_stages=3, last_width=1280, epsilon=1e-3)


def _row(
    width: float,
    depth: float,
    rate: float,
    sizes: tuple[int, int],
    top: tuple[float, float],
    net: Constructor = EfficientNet,
) -> Variant:
    """`sizes` are those of the image and of resizing."""
    build = partial(net, width=width, depth=depth, dropout_rate=rate)
    preset = Preset((sizes[0], sizes[0], 3), resize=sizes[1], interpolation="bicubic")
    return Variant(build, "Tan, Le 2019, 1905.11946", preset, *top, _torchvision)


def _row_v2(stages: Stages, rate: float, preset: Preset, top: tuple[float, float]) -> Variant:
    build = partial(_v2, stages=stages, stem_width=stages[0][3], dropout_rate=rate)
    return Variant(build, "Tan, Le 2021, 2104.00298", preset, *top, _torchvision)


def _timm(row: Variant, preset: Preset, timm: str = "", **fields: object) -> Variant:
    """A variant of timm that normalizes or pads otherwise."""
    return Variant(partial(row.build, **fields), row.source, preset, timm=timm)


def _tensorflow(row: Variant, preset: Preset) -> Variant:
    """The net as released for TensorFlow."""
    return _timm(row, preset, padding="same", epsilon=1e-3, momentum=0.9)


_v2_l = Preset((480, 480, 3), resize=480, interpolation="bicubic", mean=HALF, std=HALF)
VARIANTS = {
    "efficientnet_b0": _row(1.0, 1.0, 0.2, (224, 256), (77.692, 93.532)),
    "efficientnet_b1": _row(1.0, 1.1, 0.2, (240, 255), (79.838, 94.934)),
    "efficientnet_b2": _row(1.1, 1.2, 0.3, (288, 288), (80.608, 95.310)),
    "efficientnet_b3": _row(1.2, 1.4, 0.3, (300, 320), (82.008, 96.054)),
    "efficientnet_b4": _row(1.4, 1.8, 0.4, (380, 384), (83.384, 96.594)),
    "efficientnet_b5": _row(1.6, 2.2, 0.4, (456, 456), (83.444, 96.628), net=_tf_norm),
    "efficientnet_b6": _row(1.8, 2.6, 0.5, (528, 528), (84.008, 96.916), net=_tf_norm),
    "efficientnet_b7": _row(2.0, 3.1, 0.5, (600, 600), (84.122, 96.908), net=_tf_norm),
    "efficientnet_v2_s": _row_v2(V2_S, 0.2, Preset((384, 384, 3), resize=384), (84.228, 96.878)),
    "efficientnet_v2_m": _row_v2(V2_M, 0.3, Preset((480, 480, 3), resize=480), (85.112, 97.156)),
    "efficientnet_v2_l": _row_v2(V2_L, 0.4, _v2_l, (85.808, 97.788)),
}
VARIANTS["efficientnet_b1"] = dataclasses.replace(
    VARIANTS["efficientnet_b1"],
    preset=Preset((240, 240, 3), resize=255),
    published="ImageNet 1-crop, torchvision V2",
)
VARIANTS["efficientnet_b5"] = dataclasses.replace(VARIANTS["efficientnet_b5"], timm="-")
_b5 = timm_preset((448, 448, 3), 1000, 1.0, "bicubic", "squash")
_PERCENT = (87.5, 88.2, 89.0, 90.4, 92.2, 93.4, 94.2, 94.9)  # of the side that is cut, B0 to B7
_SIDES = (224, 240, 260, 300, 380, 456, 528, 600)
VARIANTS["efficientnet_b5_timm"] = _timm(
    VARIANTS["efficientnet_b5"], _b5, timm="efficientnet_b5", epsilon=1e-5, momentum=0.9
)
for _i, (_side, _percent) in enumerate(zip(_SIDES, _PERCENT, strict=True)):
    _preset = timm_preset((_side, _side, 3), 1000, _percent / 100, "bicubic")
    VARIANTS[f"tf_efficientnet_b{_i}"] = _tensorflow(VARIANTS[f"efficientnet_b{_i}"], _preset)
for _size, _side in {"s": 384, "m": 480, "l": 480}.items():
    _preset = timm_preset((_side, _side, 3), 1000, 1.0, "bicubic", mean=HALF, std=HALF)
    VARIANTS[f"tf_efficientnetv2_{_size}"] = _tensorflow(VARIANTS[f"efficientnet_v2_{_size}"], _preset)


def units(model: EfficientNet, block: str) -> tuple[str, ...]:
    """The modules of a block such as 'stage2_block1' in order."""
    stage, _ = place(block)
    expands = model.stages[stage - 1][0] > 1
    if stage <= model.fused_stages:
        return ("fused", "project")[: 1 + expands]
    gate = ("se",) if model.squeeze_excite else ()
    return ("expand", "depthwise", *gate, "project")[not expands :]


def _torch_name(path: str, model: EfficientNet) -> str:
    """'stage2_block1/project/conv' -> 'features.2.0.block.3.0'; without expansion one index less."""
    if path == "head":
        return "classifier.1"
    block, *unit, layer = path.split("/")
    index = {"conv": "0", "norm": "1"}.get(layer, layer)
    if not unit:
        return f"features.{0 if block == 'stem' else len(model.stages) + 1}.{index}"
    stage, i = place(block)
    return f"features.{stage}.{i - 1}.block.{units(model, block).index(unit[0])}.{index}"


TORCH_NAMES = {
    EfficientNet: (
        TorchNames(_torch_name, convolved=(r".*/se/fc\d",)),
        TorchNames(partial(timm_name, units=units), convolved=(r".*/se/fc\d",)),
    )
}
