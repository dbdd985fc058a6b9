"""ConvNeXt: a ResNet with the habits of vision transformers.

Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, "A ConvNet for the 2020s", 2201.03545, table 9 and section 3.1
of its appendix. V2: Woo, Debnath, Hu, Chen, Liu, Kweon, Xie 2023, "ConvNeXt V2: co-designing and scaling
ConvNets with masked autoencoders", 2301.00808, without its masked training. Kernels are drawn from a normal
with standard deviation 0.02 (the authors truncate it at +-2, a hundred deviations away); biases are 0, layer
scale begins at 1e-6; GELU is exact, not the tanh approximation.
"""

import abc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import Conv, ConvNorm, Dense, DropPath, LayerNorm, logits
from cnnjax.models.net import Constructor, Net, check_stem
from cnnjax.models.stages import check_stages
from cnnjax.models.variants import Preset, Rules, TorchNames, Variant, place, substitute, timm_preset

normal = nn.initializers.normal(0.02)
PATCH = {"imagenet": 4, "cifar": 2}  # the side of a patch that the stem turns into one pixel


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, then two dense layers on each pixel with GELU between them."""

    conv: Constructor
    dense: Constructor
    norm: Constructor
    drop_path: nn.Module
    layer_scale_init: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = self.norm(name="norm")(self.conv(width, 7, padding=3, groups=width, name="conv")(x))
        y = ops.gelu(self.dense(4 * width, name="dense1")(y))
        y = self.dense(width, name="dense2")(y)
        scale_init = nn.initializers.constant(self.layer_scale_init)
        scale = self.param("layer_scale", scale_init, (width,), jnp.float32)
        return x + self.drop_path(ops.scale_channels(y, scale))


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its norm over the image, relative to the mean of all channels' norms; plus x.

    Woo et al. 2023, 2301.00808, section 3.3, algorithm 1. Float [B, H, W, C] -> the same shape and dtype.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        norms = ops.l2_pool(x.astype(jnp.float32), x.shape[1:3])  # [B, 1, 1, C]
        relative = norms / (norms.mean(-1, keepdims=True) + self.epsilon)
        y = x.astype(jnp.float32) * relative * scale[None, None, None] + bias[None, None, None]
        return x + y.astype(x.dtype)


class BlockV2(nn.Module):
    """V2's: global response normalization after GELU, and no layer scale."""

    conv: Constructor
    dense: Constructor
    norm: Constructor
    drop_path: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = self.norm(name="norm")(self.conv(width, 7, padding=3, groups=width, name="conv")(x))
        y = GlobalResponseNorm(name="grn")(ops.gelu(self.dense(4 * width, name="dense1")(y)))
        return x + self.drop_path(self.dense(width, name="dense2")(y))


class Downsample(nn.Module):
    """Half the size by a 2x2 convolution of stride 2 after LayerNorm."""

    width: int
    conv: Constructor
    norm: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.width, 2, 2, padding="valid", name="conv")(self.norm(name="norm")(x))


class Stages(Net, abc.ABC):
    """What both versions share; takes images from 32x32 on (imagenet) or 16x16 on (cifar)."""

    stage_sizes: tuple[int, ...] = (3, 3, 9, 3)  # blocks of each stage
    widths: tuple[int, ...] = (96, 192, 384, 768)
    stem: str = "imagenet"  # a name of `PATCH`
    drop_path_rate: float = 0.1  # the last block's: it grows linearly from 0

    @abc.abstractmethod
    def block(self) -> Constructor:
        """A block that lacks its layers and its name."""

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, kernel_init=normal, dtype=self.dtype)
        dense = partial(Dense, kernel_init=normal, dtype=self.dtype)
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        stages = check_stages(self.widths, self.stage_sizes)
        rates = iter(np.linspace(0, self.drop_path_rate, sum(self.stage_sizes)).tolist())
        patch = PATCH[check_stem(self.stem, image)]
        x = image.astype(self.dtype)  # 224 224 3
        x = ConvNorm(self.widths[0], patch, patch, "valid", conv=conv, norm=norm, name="stem")(x)  # 56 56 96
        for i, (width, size) in enumerate(stages, 1):
            if i > 1:
                x = Downsample(width, conv, norm, name=f"downsample{i - 1}")(x)
            for j in range(1, size + 1):  # 56 56 96, 28 28 192, 14 14 384, 7 7 768
                drop_path = DropPath(next(rates), train)
                x = self.block()(conv, dense, norm, drop_path, name=f"stage{i}_block{j}")(x)
        x = norm(name="norm")(ops.global_avg_pool(x))  # 768
        return logits(x, self.num_classes, self.dtype, kernel_init=normal)


class ConvNeXt(Stages):
    """The first version."""

    layer_scale_init: float = 1e-6  # of the branches

    def block(self) -> Constructor:
        return partial(Block, layer_scale_init=self.layer_scale_init)


class ConvNeXtV2(Stages):
    """The second version."""

    def block(self) -> Constructor:
        return BlockV2


def _row(depth: int, width: int, drop_path_rate: float, resize: int, *top: float) -> Variant:
    widths, sizes = (width, 2 * width, 4 * width, 8 * width), (3, 3, depth, 3)
    build = partial(ConvNeXt, stage_sizes=sizes, widths=widths, drop_path_rate=drop_path_rate)
    (top1, top5), published = top, "ImageNet 1-crop, torchvision V1"
    return Variant(build, "Liu et al. 2022, 2201.03545", Preset(resize=resize), top1, top5, published)


V2_PRESET = timm_preset((224, 224, 3), 1000, interpolation="bicubic")
V2_HUGE = timm_preset((384, 384, 3), 1000, 1.0, "bicubic", "squash")


def _v2(sizes: tuple[int, ...], width: int, drop_path_rate: float, preset: Preset = V2_PRESET) -> Variant:
    widths = (width, 2 * width, 4 * width, 8 * width)
    build = partial(ConvNeXtV2, stage_sizes=sizes, widths=widths, drop_path_rate=drop_path_rate)
    return Variant(build, "Woo et al. 2023, 2301.00808", preset)


VARIANTS = {
    "convnext_tiny": _row(9, 96, 0.1, 236, 82.520, 96.146),
    "convnext_small": _row(27, 96, 0.4, 230, 83.616, 96.650),
    "convnext_base": _row(27, 128, 0.5, 232, 84.062, 96.870),
    "convnext_large": _row(27, 192, 0.5, 232, 84.414, 96.976),
    "convnextv2_atto": _v2((2, 2, 6, 2), 40, 0.1),
    "convnextv2_femto": _v2((2, 2, 6, 2), 48, 0.1),
    "convnextv2_pico": _v2((2, 2, 6, 2), 64, 0.1),
    "convnextv2_nano": _v2((2, 2, 8, 2), 80, 0.1),
    "convnextv2_tiny": _v2((3, 3, 9, 3), 96, 0.2),
    "convnextv2_base": _v2((3, 3, 27, 3), 128, 0.1),
    "convnextv2_large": _v2((3, 3, 27, 3), 192, 0.2),
    "convnextv2_huge": _v2((3, 3, 27, 3), 352, 0.3, V2_HUGE),
}


def _torch_name(path: str, model: ConvNeXt) -> str:
    """'stage2_block3/dense1' -> 'features.3.2.block.3', 'downsample1/conv' -> 'features.2.1'."""
    block, _, layer = path.rpartition("/")
    match place(block):
        case [stage, i]:
            layers = {"conv": "block.0", "norm": "block.2", "dense1": "block.3", "dense2": "block.5"}
            return f"features.{2 * stage - 1}.{i - 1}.{layers.get(layer, layer)}"
        case [i]:
            return f"features.{2 * i}.{('norm', 'conv').index(layer)}"
    fixed = {"stem/conv": "features.0.0", "stem/norm": "features.0.1", "norm": "classifier.0"}
    return fixed.get(path, "classifier.2")


TIMM: Rules = {
    **{"^stem/conv": "stem.0", "^stem/norm": "stem.1", "^norm$": "head.norm", "^head$": "head.fc"},
    r"^downsample(\d)/": r"stages.\1.downsample.",
    r"^stage(\d+)_block(\d+)/": lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}.",
    **{"downsample.norm": "downsample.0", "downsample.conv": "downsample.1", r"\.conv$": ".conv_dw"},
    **{r"dense(\d)": r"mlp.fc\1", "grn": "mlp.grn", "layer_scale": "gamma"},
}
TIMM_NAMES = TorchNames(substitute(TIMM))
TORCH_NAMES = {ConvNeXt: (TorchNames(_torch_name), TIMM_NAMES), ConvNeXtV2: TIMM_NAMES}
