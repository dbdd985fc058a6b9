"""ShuffleNet v2: units that pass half of their channels on as they are, and then shuffle all of them.

Ma, Zhang, Zheng, Sun 2018, "ShuffleNet V2: practical guidelines for efficient CNN architecture design",
1807.11164, figure 3 (c, d) and table 5. Kernels and the classifier are torch's default, uniform within 1 /
sqrt(fan-in).
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, logits
from cnnjax.models.net import Constructor, check_stem, torch_uniform
from cnnjax.models.stages import StagedNet, check_stages, rest_of, run_blocks
from cnnjax.models.variants import Preset, TorchNames, Variant, place


def shuffle(left: jax.Array, right: jax.Array) -> jax.Array:
    """Two maps [B, H, W, C] of alternating channels as one [B, H, W, 2 C]: left, right, left, right, ..."""
    return jnp.stack((left, right), axis=-1).reshape(*left.shape[:-1], -1)


class Unit(nn.Module):
    """Figure 3 (c): 1x1, 3x3 depthwise and 1x1 of the second half of the channels."""

    features: int
    unit: Constructor
    linear: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kept, y = jnp.split(x, 2, axis=-1)
        return shuffle(kept, self.branch(y, 1))

    def branch(self, y: jax.Array, strides: int) -> jax.Array:
        """[B, H, W, C] -> [B, H / strides, W / strides, features / 2]."""
        half = self.features // 2
        y = self.unit(half, name="conv1")(y)
        y = self.linear(half, 3, strides, groups=half, name="depthwise")(y)
        return self.unit(half, name="conv2")(y)


class DownUnit(Unit):
    """Figure 3 (d): both branches read all channels, at half the size: the other is 3x3 depthwise and 1x1."""

    strides: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        left = self.linear(channels, 3, self.strides, groups=channels, name="left_depthwise")(x)
        left = self.unit(self.features // 2, name="left_conv")(left)
        return shuffle(left, self.branch(x, self.strides))


class ShuffleNetV2(StagedNet):
    """A strided convolution, maximum pooling, three stages, a 1x1 convolution, average pooling, `head`."""

    stage_sizes: tuple[int, ...] = (4, 8, 4)
    widths: tuple[int, ...] = (116, 232, 464)
    stem: str = "imagenet"  # "cifar" leaves out the first two of the five halvings, for small images
    stem_width: int = 24
    last_width: int = 1024

    def stages(self) -> list[tuple[int, int]]:
        if any(width % 2 for width in self.widths):
            raise UserError(f"widths {self.widths}: each must be even, as units split their channels in half")
        return check_stages(self.widths, self.stage_sizes)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        small = check_stem(self.stem, image) == "cifar"
        conv = partial(Conv, use_bias=False, kernel_init=torch_uniform, dtype=self.dtype)
        unit = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train, act=ops.relu))
        linear = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train))
        x = unit(self.stem_width, 3, 1 if small else 2, name="stem")(image.astype(self.dtype))  # 112 112 24
        x = x if small else ops.max_pool(x, 3, 2, padding=1)  # 56 56 24
        for i, (width, count) in enumerate(self.stages(), 1):  # 28 28 116, 14 14 232, 7 7 464
            x = run_blocks(self, partial(DownUnit, width, unit, linear), [f"stage{i}_block1"], x)
            x = run_blocks(self, partial(Unit, width, unit, linear), rest_of(i, count), x)
        x = unit(self.last_width, name="last")(x)  # 7 7 1024
        x = ops.global_avg_pool(x)  # 1024
        return logits(x, self.num_classes, self.dtype, kernel_init=torch_uniform)


def _row(widths: tuple[int, int, int], resize: int, top1: float, top5: float, last: int = 1024) -> Variant:
    build, preset = partial(ShuffleNetV2, widths=widths, last_width=last), Preset(resize=resize)
    return Variant(build, "Ma et al. 2018, 1807.11164", preset, top1, top5, "ImageNet 1-crop, torchvision V1")


VARIANTS = {
    "shufflenet_v2_x0_5": _row((48, 96, 192), 256, 60.552, 81.746),
    "shufflenet_v2_x1_0": _row((116, 232, 464), 256, 69.362, 88.316),
    "shufflenet_v2_x1_5": _row((176, 352, 704), 232, 72.996, 91.086),
    "shufflenet_v2_x2_0": _row((244, 488, 976), 232, 76.230, 93.006, last=2048),
}

# The place of each convolution in its branch there.
FIRST = {"left_depthwise": 0, "left_conv": 2, "conv1": 0, "depthwise": 3, "conv2": 5}


def _torch_name(path: str, model: ShuffleNetV2) -> str:
    """'stage1_block2/depthwise/norm' -> 'stage2.1.branch2.4'."""
    if path == "head":
        return "fc"
    block, *unit, layer = path.split("/")
    norm = int(layer == "norm")
    if not unit:
        return f"{'conv1' if block == 'stem' else 'conv5'}.{norm}"
    stage, i = place(block)
    branch = 1 if unit[0].startswith("left") else 2
    return f"stage{stage + 1}.{i - 1}.branch{branch}.{FIRST[unit[0]] + norm}"


TORCH_NAMES = {ShuffleNetV2: TorchNames(_torch_name)}
