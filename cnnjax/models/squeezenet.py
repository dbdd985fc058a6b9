"""SqueezeNet: AlexNet's accuracy with fifty times fewer parameters.

Iandola et al. 2016, 1602.07360, table 1 (1.0); 1.1 is the authors' cheaper release: a smaller first
convolution and earlier pooling. Kernels are He-uniform, the head's N(0, 0.01), biases 0, as in torchvision
(the paper's released nets start from Glorot-uniform).
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import Conv, ConvNorm, Relu
from cnnjax.models.net import Dtype, Net, check_stem
from cnnjax.models.variants import Preset, TorchNames, Variant, place

he_uniform, normal = nn.initializers.he_uniform(), nn.initializers.normal(0.01)


class Fire(nn.Module):
    """`squeeze` channels by 1x1, then four times as many by 1x1 beside four times as many by 3x3."""

    squeeze: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(Conv, kernel_init=he_uniform, dtype=self.dtype)
        x = ops.relu(conv(self.squeeze, 1, name="squeeze")(x))
        expand1x1 = conv(4 * self.squeeze, 1, name="expand1x1")(x)
        expand3x3 = conv(4 * self.squeeze, 3, padding=1, name="expand3x3")(x)
        return ops.relu(jnp.concatenate([expand1x1, expand3x3], axis=-1))


class SqueezeNet(Net):
    """A stem, stages of fire modules with 3x3/2 pooling before each, a 1x1 convolution and its mean."""

    stem: str = "imagenet"  # "cifar" is 3x3 at stride 1 without pooling, for small images
    stem_kernel: int = 7
    stem_width: int = 96
    # The squeeze channels of each stage's fire modules.
    squeezes: tuple[tuple[int, ...], ...] = ((16, 16, 32), (32, 48, 48, 64), (64,))
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        cifar = check_stem(self.stem, image) == "cifar"
        kernel, strides, padding = (3, 1, 1) if cifar else (self.stem_kernel, 2, 0)
        conv = partial(Conv, kernel_init=he_uniform, dtype=self.dtype)
        stem = ConvNorm(self.stem_width, kernel, strides, padding, conv=conv, norm=Relu, name="stem")
        x = stem(image)  # 109 109 96 (1.0, input 224); 111 111 64 (1.1)
        for stage, squeezes in enumerate(self.squeezes, 1):
            if stage > 1 or not cifar:
                x = ops.max_pool(x, 3, 2, ceil=True)  # 54, 27, 13 (1.0); 55, 27, 13 (1.1)
            for i, squeeze in enumerate(squeezes, 1):
                x = Fire(squeeze, dtype=self.dtype, name=f"stage{stage}_fire{i}")(x)  # 13 13 512
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        x = ops.relu(conv(self.num_classes, 1, kernel_init=normal, name="head")(x))  # 13 13 1000
        return ops.global_avg_pool(x.astype(jnp.float32))  # 1000


SOURCE, ONE_CROP = "Iandola et al. 2016, SqueezeNet {}; torchvision", "ImageNet 1-crop, torchvision V1"
squeezes = ((16, 16), (32, 32), (48, 48, 64, 64))
v1_1 = partial(SqueezeNet, stem_kernel=3, stem_width=64, squeezes=squeezes)

VARIANTS = {
    "squeezenet1_0": Variant(SqueezeNet, SOURCE.format("1.0"), Preset(), 58.092, 80.420, ONE_CROP),
    "squeezenet1_1": Variant(v1_1, SOURCE.format("1.1"), Preset(), 58.178, 80.624, ONE_CROP),
}


def _torch_name(path: str, model: SqueezeNet) -> str:
    """'stage2_fire1/squeeze' -> 'features.7.squeeze': torch counts fire modules and poolings."""
    if not path.startswith("stage"):
        return {"stem/conv": "features.0", "head": "classifier.1"}[path]
    block, _, layer = path.partition("/")
    stage, fire = place(block)
    return f"features.{2 + sum(map(len, model.squeezes[: stage - 1])) + fire + stage - 1}.{layer}"


TORCH_NAMES = {SqueezeNet: TorchNames(_torch_name)}
