"""Network in Network: a small perceptron slides where a filter did, and means replace the dense layers.

Lin, Chen, Yan 2013, 1312.4400, section 3 and fig. 2; the widths, which the paper does not print, are those of
the authors' released nets (cuda-convnet for CIFAR, Caffe for ImageNet). `nin_imagenet` takes 0..255 less the
mean. Deviation: `nin_cifar` takes images normalized by channel, not contrast-normalized and whitened.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import Conv
from cnnjax.models.net import Dtype, Net
from cnnjax.models.variants import CIFAR, RAW_PIXELS, Preset, Variant


class MLPConv(nn.Module):
    """A convolution and 1x1 convolutions, each with a ReLU: a perceptron of `widths` at every place."""

    widths: tuple[int, ...]
    kernel_size: int
    strides: int = 1
    padding: int = 0
    std: float = 0.05  # of the first kernel, drawn normal; that of the others is 0.05
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths, 1):
            normal = nn.initializers.normal(self.std if i == 1 else 0.05)
            window = (self.kernel_size, self.strides, self.padding) if i == 1 else (1, 1, 0)
            x = ops.relu(Conv(width, *window, kernel_init=normal, dtype=self.dtype, name=f"conv{i}")(x))
        return x


def class_means(x: jax.Array, num_classes: int, std: float, dtype: Dtype) -> jax.Array:
    """`head`, a 1x1 convolution to one map a class, ReLU, and each map's mean: float32 [B, K]."""
    normal = nn.initializers.normal(std)
    x = ops.relu(Conv(num_classes, 1, kernel_init=normal, dtype=dtype, name="head")(x))
    return ops.global_avg_pool(x.astype(jnp.float32))


class NiNCifar(Net):
    """Three perceptron convolutions for 32x32 images (any size of 4x4 or more); poolings round up."""

    widths: tuple[tuple[int, ...], ...] = ((192, 160, 96), (192, 192, 192), (192, 192))
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        first, second, third = self.widths
        x = MLPConv(first, 5, padding=2, dtype=self.dtype, name="mlpconv1")(image)  # 32 32 96
        x = ops.max_pool(x, 3, 2, ceil=True)  # 16 16 96
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout1")(x)
        x = MLPConv(second, 5, padding=2, dtype=self.dtype, name="mlpconv2")(x)  # 16 16 192
        x = ops.avg_pool(x, 3, 2, ceil=True)  # 8 8 192
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout2")(x)
        x = MLPConv(third, 3, padding=1, dtype=self.dtype, name="mlpconv3")(x)  # 8 8 192
        return class_means(x, self.num_classes, 0.05, self.dtype)  # 8 8 10, then 10


class NiN(Net):
    """Four perceptron convolutions, AlexNet's as to windows, for 224x224 images (any of 39x39 or more)."""

    widths: tuple[tuple[int, ...], ...] = ((96, 96, 96), (256, 256, 256), (384, 384, 384), (1024, 1024))
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        first, second, third, fourth = self.widths
        x = MLPConv(first, 11, 4, std=0.01, dtype=self.dtype, name="mlpconv1")(image)  # 54 54 96
        x = ops.max_pool(x, 3, 2, ceil=True)  # 27 27 96
        x = MLPConv(second, 5, padding=2, dtype=self.dtype, name="mlpconv2")(x)  # 27 27 256
        x = ops.max_pool(x, 3, 2, ceil=True)  # 13 13 256
        x = MLPConv(third, 3, padding=1, std=0.01, dtype=self.dtype, name="mlpconv3")(x)  # 13 13 384
        x = ops.max_pool(x, 3, 2, ceil=True)  # 6 6 384
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        x = MLPConv(fourth, 3, padding=1, dtype=self.dtype, name="mlpconv4")(x)  # 6 6 1024
        return class_means(x, self.num_classes, 0.01, self.dtype)  # 6 6 1000, then 1000


VARIANTS = {
    "nin_cifar": Variant(NiNCifar, "Lin et al. 2013", CIFAR, top1=91.19, published="CIFAR-10"),
    "nin_imagenet": Variant(NiN, "Lin et al. 2013, the authors' Caffe net", Preset(std=RAW_PIXELS)),
}
