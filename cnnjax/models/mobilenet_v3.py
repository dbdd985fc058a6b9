"""MobileNet v3: v2's inverted residuals at widths that a search chose, with gates and hard swish.

Howard et al. 2019, "Searching for MobileNetV3", 1905.02244, tables 1 (large) and 2 (small).
Squeeze-and-excitation has a quarter of the depthwise channels, rounded to eights, and a hard sigmoid. Padding
is half the kernel, as in torchvision; the nets released for TensorFlow, `tf_...` as in timm, pad the bottom
and right by one more where the stride is 2. Batch normalization's epsilon is 1e-3 as there, but 1e-5 in the
nets that timm trained. Kernels are He-normal (fan-out), those of dense layers N(0, 0.01).
"""

from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import by_name
from cnnjax.models.inverted_residual import InvertedResidual, timm_name
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, Dense, SqueezeExcite, logits
from cnnjax.models.net import Net, check_stem, divisible, he_fan_out
from cnnjax.models.variants import HALF, Preset, TorchNames, Variant, place, timm_preset
from cnnjax.ops.shapes import Padding

small_normal = nn.initializers.normal(0.01)

# The tables' kernel size, output channels, squeeze-and-excitation, nonlinearity (ReLU or hard swish) and
# stride of the first block, and the expanded channels of each block.
Stages = tuple[tuple[int, int, bool, str, int, tuple[int, ...]], ...]
LARGE = (
    (3, 16, False, "RE", 1, (16,)),  # 112 112 16
    (3, 24, False, "RE", 2, (64, 72)),  # 56 56 24
    (5, 40, True, "RE", 2, (72, 120, 120)),  # 28 28 40
    (3, 80, False, "HS", 2, (240, 200, 184, 184)),  # 14 14 80
    (3, 112, True, "HS", 1, (480, 672)),  # 14 14 112
    (5, 160, True, "HS", 2, (672, 960, 960)),  # 7 7 160
)
SMALL = (
    (3, 16, True, "RE", 2, (16,)),  # 56 56 16
    (3, 24, False, "RE", 2, (72, 88)),  # 28 28 24
    (5, 40, True, "HS", 2, (96, 240, 240)),  # 14 14 40
    (5, 48, True, "HS", 1, (120, 144)),  # 14 14 48
    (5, 96, True, "HS", 2, (288, 576, 576)),  # 7 7 96
)


class MobileNetV3(Net):
    """A strided convolution, inverted residuals, a 1x1 convolution, average pooling and two dense layers."""

    stages: Stages = LARGE
    hidden_width: int = 1280  # of the first dense layer
    stem: str = "imagenet"  # "cifar" leaves out the first two of the five halvings, for small images
    width: float = 1.0  # times all channels but `hidden_width`
    dropout_rate: float = 0.2
    padding: Padding | None = None  # None: half the kernel on each side
    epsilon: float = 1e-3  # of batch normalization
    momentum: float = 0.99

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        halvings_left_out = 2 if check_stem(self.stem, image) == "cifar" else 0
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        layer = partial(ConvNorm, conv=conv, padding=self.padding)
        norm = self.norm_layer(BatchNorm, train, epsilon=self.epsilon, momentum=self.momentum)
        linear, hard = partial(layer, norm=norm), partial(layer, norm=partial(norm, act=nn.hard_swish))
        units = {"RE": partial(layer, norm=partial(norm, act=ops.relu)), "HS": hard}
        squeeze = partial(SqueezeExcite, gate=nn.hard_sigmoid, kernel_init=he_fan_out, dtype=self.dtype)
        x = hard(divisible(16 * self.width), 3, 1 if halvings_left_out else 2, name="stem")(image)
        halvings = 1  # 112 112 16
        for stage, (kernel_size, channels, gated, act, stride, widths) in enumerate(self.stages, 1):
            halvings += stride == 2
            for i, expanded in enumerate(widths, 1):  # 112 112 16 to 7 7 160, see LARGE and SMALL
                strides = stride if i == 1 and halvings > halvings_left_out else 1
                features, wide = divisible(channels * self.width), divisible(expanded * self.width)
                gate = partial(squeeze, divisible(wide // 4)) if gated else None
                unit = by_name("nonlinearity", act, units)
                block = partial(InvertedResidual, features, wide, kernel_size, strides, unit, linear, gate)
                x = block(name=f"stage{stage}_block{i}")(x)
        x = hard(6 * x.shape[-1], name="last")(x)  # 7 7 960 or 576
        dense = Dense(self.hidden_width, kernel_init=small_normal, dtype=self.dtype, name="dense")
        x = nn.hard_swish(dense(ops.global_avg_pool(x)))  # 1280 or 1024
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=small_normal)


_large, _small = partial(MobileNetV3), partial(MobileNetV3, stages=SMALL, hidden_width=1024)
_source, _published = "Howard et al. 2019, 1905.02244", "ImageNet 1-crop, torchvision "


def _timm(build: partial) -> Variant:
    """A net that timm trained."""
    build = partial(build, epsilon=1e-5, momentum=0.9)
    return Variant(build, _source, timm_preset((224, 224, 3), 1000, 0.875, "bicubic"))


def _tensorflow(build: partial) -> Variant:
    """The net as released for TensorFlow."""
    build = partial(build, padding="same", momentum=0.9)
    return Variant(build, _source, timm_preset((224, 224, 3), 1000, mean=HALF, std=HALF))


VARIANTS = {
    "mobilenet_v3_large": Variant(_large, _source, Preset(resize=232), 75.274, 92.566, _published + "V2"),
    "mobilenet_v3_small": Variant(_small, _source, Preset(), 67.668, 87.402, _published + "V1"),
    "mobilenetv3_large_100": _timm(_large),
    "mobilenetv3_small_100": _timm(_small),
    "tf_mobilenetv3_large_100": _tensorflow(_large),
    "tf_mobilenetv3_small_100": _tensorflow(_small),
}


def units(model: MobileNetV3, block: str) -> tuple[str, ...]:
    """The modules of a block such as 'stage2_block1' in order."""
    stage, i = place(block)
    _, channels, gated, _, _, widths = model.stages[stage - 1]
    if i == 1:  # reads what the stage before it, or the stem, gives
        channels = model.stages[stage - 2][1] if stage > 1 else 16
    expand = ("expand",) * (divisible(widths[i - 1] * model.width) != divisible(channels * model.width))
    return (*expand, "depthwise", *("se",) * gated, "project")


def _torch_name(path: str, model: MobileNetV3) -> str:
    """'stage2_block1/project/conv' -> 'features.2.block.2.0'; units that a block lacks have no index."""
    if path in ("dense", "head"):
        return "classifier.0" if path == "dense" else "classifier.3"
    block, *unit, layer = path.split("/")
    index = {"conv": "0", "norm": "1"}.get(layer, layer)
    sizes = [len(widths) for *_, widths in model.stages]
    if not unit:
        return f"features.{0 if block == 'stem' else sum(sizes) + 1}.{index}"
    stage, i = place(block)
    return f"features.{sum(sizes[: stage - 1]) + i}.block.{units(model, block).index(unit[0])}.{index}"


def _timm_name(path: str, model: MobileNetV3) -> str:
    """As in EfficientNet; the last convolution is a stage there, and the hidden layer its head."""
    last = f"blocks.{len(model.stages)}.0"
    fixed = {"last/conv": f"{last}.conv", "last/norm": f"{last}.bn1", "dense": "conv_head"}
    return fixed.get(path) or timm_name(path, model, units)


TORCH_NAMES = {
    MobileNetV3: (
        TorchNames(_torch_name, convolved=(r".*/se/fc\d",)),
        TorchNames(_timm_name, convolved=(r".*/se/fc\d", "dense")),
    )
}
