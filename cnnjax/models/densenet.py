"""DenseNet: each layer reads the maps of all layers before it in its block.

Huang, Liu, van der Maaten, Weinberger 2016, "Densely connected convolutional networks", 1608.06993, table 1
(ImageNet) and section 4 (CIFAR); all are BC nets: bottlenecks of four times the growth rate, and transitions
that halve the channels. `densenet_bc_DEPTH_GROWTH` are for CIFAR: three blocks of (depth - 4) / 6 layers.
He-normal kernels (fan-in), the classifier's from the uniform of +-1 / sqrt(fan-in) with bias 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import BatchNorm, Conv, logits
from cnnjax.models.net import Constructor, Net, check_stem, he_normal, torch_uniform
from cnnjax.models.variants import CIFAR, Preset, TorchNames, Variant, substitute


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3: appends `growth_rate` maps to those it reads."""

    growth_rate: int
    conv: Constructor
    norm_relu: Constructor
    dropout: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm_relu(name="norm1")(x)
        y = self.conv(4 * self.growth_rate, 1, name="conv1")(y)
        y = self.norm_relu(name="norm2")(y)
        y = self.conv(self.growth_rate, 3, padding=1, name="conv2")(y)
        return jnp.concatenate([x, self.dropout(y)], axis=-1)


class Transition(nn.Module):
    """Half the channels and half the size."""

    conv: Constructor
    norm_relu: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(x.shape[-1] // 2, 1, name="conv")(self.norm_relu(name="norm")(x))
        return ops.avg_pool(y, 2)


class ImageNetStem(nn.Module):
    """A quarter of the size."""

    width: int
    conv: Constructor
    norm_relu: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.width, 7, 2, padding=3, name="conv")(x)  # 112 112 64
        x = self.norm_relu(name="norm")(x)
        return ops.max_pool(x, 3, 2, padding=1)  # 56 56 64


class CifarStem(ImageNetStem):
    """One convolution: the first layer has its own normalization."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.width, 3, padding=1, name="conv")(x)  # 32 32 24


STEMS = {"imagenet": ImageNetStem, "cifar": CifarStem}


class DenseNet(Net):
    """Blocks of dense layers; takes images from 29x29 on (imagenet) or 4x4 on (cifar, three blocks)."""

    stage_sizes: tuple[int, ...] = (6, 12, 24, 16)  # dense layers of each block
    growth_rate: int = 32  # the maps that each adds
    stem_width: int = 64
    stem: str = "imagenet"  # or "cifar", which keeps the size
    dropout_rate: float = 0.0  # after each 3x3 convolution; the paper: 0.2 without augmentation, else none

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, use_bias=False, kernel_init=he_normal, dtype=self.dtype)
        norm_relu = self.norm_layer(BatchNorm, train, act=ops.relu)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        stem = STEMS[check_stem(self.stem, image)]
        x = image.astype(self.dtype)  # 224 224 3
        x = stem(self.stem_width, conv, norm_relu, name="stem")(x)  # 56 56 64
        for i, size in enumerate(self.stage_sizes, 1):  # of densenet121:
            if i > 1:  # 28 28 128, 14 14 256, 7 7 512
                x = Transition(conv, norm_relu, name=f"transition{i - 1}")(x)
            for j in range(1, size + 1):  # 56 56 256, 28 28 512, 14 14 1024, 7 7 1024
                x = DenseLayer(self.growth_rate, conv, norm_relu, dropout, name=f"stage{i}_block{j}")(x)
        x = norm_relu(name="norm")(x)  # 7 7 1024
        x = ops.global_avg_pool(x)  # 1024
        return logits(x, self.num_classes, self.dtype, kernel_init=torch_uniform)


PAPER = "Huang et al. 2016, 1608.06993"


def _imagenet(stage_sizes: tuple[int, ...], growth_rate: int, top1: float, top5: float) -> Variant:
    build = partial(DenseNet, stage_sizes=stage_sizes, growth_rate=growth_rate, stem_width=2 * growth_rate)
    return Variant(build, PAPER, Preset(), top1, top5, "ImageNet 1-crop, torchvision V1")


def _cifar(depth: int, growth_rate: int, top1: float | None = None) -> Variant:
    small = partial(DenseNet, growth_rate=growth_rate, stem_width=2 * growth_rate, stem="cifar")
    build = partial(small, stage_sizes=((depth - 4) // 6,) * 3)
    return Variant(build, PAPER, CIFAR, top1=top1, published="CIFAR-10" if top1 else "")


VARIANTS = {
    "densenet121": _imagenet((6, 12, 24, 16), 32, 74.434, 91.972),
    "densenet169": _imagenet((6, 12, 32, 32), 32, 75.600, 92.806),
    "densenet201": _imagenet((6, 12, 48, 32), 32, 76.896, 93.370),
    "densenet161": _imagenet((6, 12, 36, 24), 48, 77.138, 93.560),
    "densenet_bc_40_12": _cifar(40, 12),
    "densenet_bc_100_12": _cifar(100, 12, 95.49),
    "densenet_bc_250_24": _cifar(250, 24, 96.38),
    "densenet_bc_190_40": _cifar(190, 40, 96.54),
}

NAMES = {
    **{r"^stem/(\w+)$": r"\g<1>0", r"^stage(\d+)_block(\d+)/": r"denseblock\1.denselayer\2."},
    **{"^norm$": "norm5", "^(?!head$)": "features.", "^head$": "classifier"},
}
OLD_NAMES = (r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2")
TORCH_NAMES = {DenseNet: TorchNames(substitute(NAMES), old_names=OLD_NAMES)}
