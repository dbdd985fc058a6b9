"""MnasNet-B1: inverted residuals whose sizes a search chose for accuracy and for time on a phone.

Tan et al. 2018, "MnasNet: platform-aware neural architecture search for mobile", 1807.11626, section 6 and
table 1; the layers of B1, which has no squeeze-and-excitation, and its widths are torchvision's. Padding is
half the kernel; the running statistics' momentum is 0.9997, as in TensorFlow's. Kernels are He-normal
(fan-out), the classifier's uniform within sqrt(3 / classes).
"""

from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.inverted_residual import InvertedResidual, timm_name, units
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, logits
from cnnjax.models.net import Net, check_stem, divisible, he_fan_out
from cnnjax.models.variants import Preset, TorchNames, Variant, place

head_init = nn.initializers.variance_scaling(1.0, "fan_out", "uniform")

# Expansion, kernel size, stride of the first block, channels and blocks of each stage.
STAGES = (
    (1, 3, 1, 16, 1),  # 112 112 16
    (3, 3, 2, 24, 3),  # 56 56 24
    (3, 5, 2, 40, 3),  # 28 28 40
    (6, 5, 2, 80, 3),  # 14 14 80
    (6, 3, 1, 96, 2),  # 14 14 96
    (6, 5, 2, 192, 4),  # 7 7 192
    (6, 3, 1, 320, 1),  # 7 7 320
)


class MnasNet(Net):
    """A strided convolution, 17 inverted residuals, a 1x1 convolution, average pooling, one dense layer."""

    stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
    stem: str = "imagenet"  # "cifar" leaves out the first two of the five halvings, for small images
    width: float = 1.0  # times the channels of each stage
    stem_width: float = 1.0  # times those of the stem and of the first stage instead
    last_width: int = 1280
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        halvings_left_out = 2 if check_stem(self.stem, image) == "cifar" else 0
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm = self.norm_layer(BatchNorm, train, momentum=0.9997)
        unit = partial(ConvNorm, conv=conv, norm=partial(norm, act=ops.relu))
        linear = partial(ConvNorm, conv=conv, norm=norm)
        x = unit(divisible(32 * self.stem_width), 3, 1 if halvings_left_out else 2, name="stem")(image)
        for stage, (expansion, kernel_size, stride, channels, blocks) in enumerate(self.stages, 1):
            features = divisible(channels * (self.stem_width if stage == 1 else self.width))
            for i in range(1, blocks + 1):  # 112 112 16 to 7 7 320, see STAGES
                strides = stride if i == 1 and stage > halvings_left_out else 1
                block = partial(InvertedResidual, features, expansion * x.shape[-1], kernel_size, strides)
                x = block(unit, linear, name=f"stage{stage}_block{i}")(x)
        x = unit(self.last_width, name="last")(x)  # 7 7 1280
        x = ops.global_avg_pool(x)  # 1280
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=head_init)


def _row(
    width: float,
    resize: int,
    top: tuple[float, float | None],
    stem_width: float | None = None,
    timm: str = "",
) -> Variant:
    build = partial(MnasNet, width=width, stem_width=width if stem_width is None else stem_width)
    preset, published = Preset(resize=resize), "ImageNet 1-crop, torchvision V1"
    return Variant(build, "Tan et al. 2018, 1807.11626", preset, *top, published, timm=timm)


VARIANTS = {
    "mnasnet0_5": _row(0.5, 256, (67.734, 87.490)),
    "mnasnet0_75": _row(0.75, 232, (71.180, 90.496)),
    "mnasnet1_0": _row(1.0, 256, (73.456, 91.510), timm="mnasnet_100"),
    "mnasnet1_3": _row(1.3, 232, (76.506, 93.522)),
    # Files of torchvision's first version, whose stem and first stage were those of width 1.
    "mnasnet0_5_v1": _row(0.5, 256, (67.592, None), stem_width=1.0),
}


def _torch_name(path: str, model: MnasNet) -> str:
    """'stage2_block1/project/conv' -> 'layers.8.0.layers.6'; a first block that expands nothing, outside."""
    if path == "head":
        return "classifier.1"
    block, *unit, layer = path.split("/")
    norm = layer == "norm"
    match place(block):
        case [1, 1] if "expand" not in units(model, block):
            return f"layers.{3 + 3 * (unit[0] == 'project') + norm}"
        case [stage, i]:
            within = 3 * ("expand", "depthwise", "project").index(unit[0]) + norm
            return f"layers.{6 + stage}.{i - 1}.layers.{within}"
    return f"layers.{(0 if block == 'stem' else len(model.stages) + 7) + norm}"


TORCH_NAMES = {MnasNet: (TorchNames(_torch_name), TorchNames(timm_name))}
