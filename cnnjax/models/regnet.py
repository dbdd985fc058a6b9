"""RegNet: residual bottlenecks with group convolutions, whose widths grow by a linear rule.

Radosavovic, Kosaraju, Girshick, He, Dollar 2020, "Designing network design spaces", 2003.13678, section 3.3
and the figures of its models: RegNetX, and RegNetY with squeeze-and-excitation. Widths are fitted to the
groups as in torchvision (`regnet_...`), or to the nearest as in the authors' code (`regnetx_...` and
`regnety_...`, timm's names). Kernels are He-normal (fan-out), the classifier's N(0, 0.01), biases 0.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, SqueezeExcite, logits
from cnnjax.models.net import Constructor, check_stem, divisible, he_fan_out
from cnnjax.models.stages import StagedNet, check_stages, rest_of, run_blocks
from cnnjax.models.variants import Preset, Rules, TorchNames, Variant, substitute, timm_preset


class Bottleneck(nn.Module):
    """1x1, 3x3 in groups and 1x1, all of one width; a projection where the shape changes."""

    features: int
    strides: int
    group_width: int
    unit: Constructor
    linear: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = self.features // min(self.group_width, self.features)
        y = self.unit(self.features, name="conv1")(x)
        y = self.unit(self.features, 3, self.strides, groups=groups, name="conv2")(y)
        y = self.linear(self.features, name="conv3")(self.gate(y, x.shape[-1] / 4))
        if self.strides != 1 or x.shape[-1] != self.features:
            x = self.linear(self.features, 1, self.strides, name="shortcut")(x)
        return ops.relu(x + y)

    def gate(self, y: jax.Array, width: float) -> jax.Array:
        """What the group convolution's output goes through."""
        return y


class SEBottleneck(Bottleneck):
    """A bottleneck with squeeze-and-excitation, to a quarter of the channels that the block reads."""

    def gate(self, y: jax.Array, width: float) -> jax.Array:
        return SqueezeExcite(round(width), kernel_init=he_fan_out, dtype=y.dtype, name="se")(y)


class RegNet(StagedNet):
    """A strided convolution, stages that halve the size, global average pooling, `head`."""

    stage_sizes: tuple[int, ...] = (1, 2, 7, 12)
    widths: tuple[int, ...] = (32, 64, 160, 400)
    group_width: int = 16
    block: Constructor = Bottleneck
    stem: str = "imagenet"  # "cifar" leaves out the first two of the five halvings, for small images
    stem_width: int = 32

    def stages(self) -> list[tuple[int, int]]:
        return check_stages(self.widths, self.stage_sizes)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        small = check_stem(self.stem, image) == "cifar"
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        unit = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train, act=ops.relu))
        linear = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train))
        block = partial(self.block, group_width=self.group_width, unit=unit, linear=linear)
        x = unit(self.stem_width, 3, 1 if small else 2, name="stem")(image.astype(self.dtype))  # 112 112 32
        for i, (width, count) in enumerate(self.stages(), 1):
            # regnet_x_400mf: 56 56 32, 28 28 64, 14 14 160, 7 7 400
            strides = 1 if i == 1 and small else 2
            x = run_blocks(self, partial(block, width, strides), [f"stage{i}_block1"], x)
            x = run_blocks(self, partial(block, width, 1), rest_of(i, count), x)
        x = ops.global_avg_pool(x)  # 400
        return logits(x, self.num_classes, self.dtype, kernel_init=nn.initializers.normal(0.01))


# --- Variants: depth, w_0, w_a, w_m and the groups' width, the name in timm, then the published accuracy. ---

Growth = tuple[int, int, float, float, int]
Fit = Callable[[float, int], int]


def nearest(width: float, divisor: int) -> int:
    """The nearest multiple of a divisor, however much less than the width it is."""
    return round(width / divisor) * divisor


def linear_stages(growth: Growth, fit: Fit = divisible) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and sizes of the stages by equations 2 to 4 of the paper, in multiples of 8 and the groups'."""
    depth, w_0, w_a, w_m, group_width = growth
    steps = np.round(np.log((w_0 + w_a * np.arange(depth)) / w_0) / math.log(w_m))
    widths = (np.round(w_0 * w_m**steps / 8) * 8).astype(int).tolist()
    runs = [(width, len(list(run))) for width, run in itertools.groupby(widths)]
    return tuple(fit(width, min(group_width, width)) for width, _ in runs), tuple(n for _, n in runs)


_net: dict[str, Constructor] = {"x": RegNet, "y": partial(RegNet, block=SEBottleneck)}
_source, _torchvision = "Radosavovic et al. 2020, 2003.13678", "ImageNet 1-crop, torchvision V2"


def _build(kind: str, growth: Growth, fit: Fit = divisible) -> partial:
    widths, sizes = linear_stages(growth, fit)
    return partial(_net[kind], stage_sizes=sizes, widths=widths, group_width=growth[-1])


_V2, _SWAG = Preset(resize=232), Preset((384, 384, 3), resize=384, interpolation="bicubic")
TORCHVISION: dict[str, tuple[Growth, str, float, float]] = {
    "x_400mf": ((22, 24, 24.48, 2.54, 16), "004_tv", 74.864, 92.322),
    "x_800mf": ((16, 56, 35.73, 2.28, 16), "008", 77.522, 93.826),
    "x_1_6gf": ((18, 80, 34.01, 2.25, 24), "016", 79.668, 94.922),
    "x_3_2gf": ((25, 88, 26.31, 2.25, 48), "032", 81.196, 95.430),
    "x_8gf": ((23, 80, 49.56, 2.88, 120), "080", 81.682, 95.678),
    "x_16gf": ((22, 216, 55.59, 2.1, 128), "160", 82.716, 96.196),
    "x_32gf": ((23, 320, 69.86, 2.0, 168), "320", 83.014, 96.288),
    "y_400mf": ((16, 48, 27.89, 2.09, 8), "004", 75.804, 92.742),
    "y_800mf": ((14, 56, 38.84, 2.4, 16), "008_tv", 78.828, 94.502),
    "y_1_6gf": ((27, 48, 20.71, 2.65, 24), "016", 80.876, 95.444),
    "y_3_2gf": ((21, 80, 42.63, 2.66, 24), "032", 81.982, 95.972),
    "y_8gf": ((17, 192, 76.82, 2.19, 56), "080_tv", 82.828, 96.330),
    "y_16gf": ((18, 200, 106.23, 2.48, 112), "160", 82.886, 96.328),
    "y_32gf": ((20, 232, 115.89, 2.53, 232), "320", 83.368, 96.498),
    "y_128gf": ((27, 456, 160.83, 2.52, 264), "1280", 88.228, 98.682),
}
TIMM: dict[str, Growth] = {
    "x_002": (13, 24, 36.44, 2.49, 8),
    "x_004": (22, 24, 24.48, 2.54, 16),
    "x_006": (16, 48, 36.97, 2.24, 24),
    "x_040": (23, 96, 38.65, 2.43, 40),
    "x_064": (17, 184, 60.83, 2.07, 56),
    "x_120": (19, 168, 73.36, 2.37, 112),
    "y_002": (13, 24, 36.44, 2.49, 8),
    "y_006": (15, 48, 32.54, 2.32, 16),
    "y_008": (14, 56, 38.84, 2.4, 16),
    "y_040": (22, 96, 31.41, 2.24, 64),
    "y_064": (25, 112, 33.22, 2.27, 72),
    "y_080": (17, 192, 76.82, 2.19, 56),
    "y_120": (19, 168, 73.36, 2.37, 112),
}
VARIANTS: dict[str, Variant] = {}
for _name, (_growth, _timm, _top1, _top5) in TORCHVISION.items():
    _row = Variant(_build(_name[0], _growth), _source, _V2, _top1, _top5, _torchvision)
    VARIANTS[f"regnet_{_name}"] = dataclasses.replace(_row, timm=f"regnet{_name[0]}_{_timm}")
_row = VARIANTS["regnet_y_128gf"]
_published = "ImageNet 1-crop, torchvision SWAG"
VARIANTS["regnet_y_128gf"] = dataclasses.replace(_row, preset=_SWAG, published=_published)
for _name, _growth in TIMM.items():
    _preset = timm_preset((224, 224, 3), 1000, interpolation="bicubic")
    VARIANTS[f"regnet{_name}"] = Variant(_build(_name[0], _growth, nearest), _source, _preset)

NAMES: Rules = {  # torchvision's
    r"^stage(\d+)_block(\d+)/": lambda m: f"trunk_output.block{m[1]}.block{m[1]}-{int(m[2]) - 1}.",
    **{r"conv(\d)/": lambda m: f"f.{'abc'[int(m[1]) - 1]}.", "shortcut/": "proj.", "se/": "f.se."},
    **{"/?conv$": ".0", "/?norm$": ".1", r"\.\.": ".", "^head$": "fc"},
}
TIMM_NAMES: Rules = {
    r"^stage(\d+)_block(\d+)": r"s\1.b\2",
    **{"shortcut": "downsample", "norm$": "bn", "^head$": "head.fc"},
}
TORCH_NAMES = {
    RegNet: tuple(TorchNames(substitute(each), convolved=(r".*/se/fc\d",)) for each in (NAMES, TIMM_NAMES))
}
