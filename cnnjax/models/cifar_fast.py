"""The networks of the CIFAR-10 speed runs: 94, 95 and 96 % in seconds on one GPU.

Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2404.00498, section 3; widths and
details from the author's scripts airbench94, airbench95, airbench96 (cifar10-airbench), which report the
accuracies here as means of 1000, 200 and 400 runs with mirrored and translated views at test time.

Training starts with `whiten/kernel` from training images (`whitened`). The recipe trains neither
it nor the scales of the normalizations: `FROZEN` is the pattern of those paths, to be frozen as in
configs/cifar10_airbench.py. They count as parameters there and here.
"""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import VariableDict

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.models.layers import BatchNorm, Conv, logits
from cnnjax.models.net import Constructor, Dtype, Net, torch_uniform
from cnnjax.models.variants import CIFAR, Variant

FROZEN = r"whiten/kernel|stage\d/norm\d/scale"
gelu = ops.gelu  # the scripts' is the exact one, by the error function


def whitening_kernel(images: jax.Array, *, kernel_size: int = 2, epsilon: float = 5e-4) -> jax.Array:
    """Filters that decorrelate the patches of images, and their negatives: float32 HWIO, O = 2 * size^2 * C.

    The eigenvectors of the patches' second moments, the largest eigenvalue first, each divided by the root of
    its eigenvalue plus `epsilon` (2404.00498, section 3; Page 2019, "How to train your ResNet 8"). Images are
    float [B, H, W, C], normalized as the network will see them; 5000 are plenty.
    """
    _, height, width, channels = images.shape
    rows, columns, size = height - kernel_size + 1, width - kernel_size + 1, kernel_size**2 * channels
    places = itertools.product(range(kernel_size), repeat=2)
    shifted = [images[:, i : i + rows, j : j + columns] for i, j in places]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, size).astype(jnp.float32)
    moments = jnp.matmul(patches.T, patches, precision=jax.lax.Precision.HIGHEST) / patches.shape[0]
    values, vectors = jnp.linalg.eigh(moments)
    filters = (vectors / jnp.sqrt(values + epsilon)[None])[:, ::-1]
    kernel = jnp.concatenate([filters, -filters], axis=-1)
    return kernel.reshape(kernel_size, kernel_size, channels, 2 * size)


def identity_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """HWIO kernel whose first filters pass each input channel on; the others are torch's default draw."""
    height, width, inputs, _ = shape
    kernel = torch_uniform(key, shape, dtype)
    passed = jnp.zeros((height, width, inputs, min(inputs, shape[-1])), dtype)
    passed = passed.at[height // 2, width // 2].set(jnp.eye(inputs, passed.shape[-1], dtype=dtype))
    return kernel.at[..., : passed.shape[-1]].set(passed)


class Group(nn.Module):
    """Convolution, 2x2 max pooling, and a second convolution, each normalized, then GELU."""

    features: int
    conv: Constructor
    norm: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ops.max_pool(self.conv(self.features, name="conv1")(x), 2)
        x = gelu(self.norm(name="norm1")(x))
        return gelu(self.norm(name="norm2")(self.conv(self.features, name="conv2")(x)))


class ResidualGroup(Group):
    """A `Group` with a third convolution and a shortcut around the last two."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ops.max_pool(self.conv(self.features, name="conv1")(x), 2)
        x = shortcut = gelu(self.norm(name="norm1")(x))
        x = gelu(self.norm(name="norm2")(self.conv(self.features, name="conv2")(x)))
        return gelu(self.norm(name="norm3")(self.conv(self.features, name="conv3")(x)) + shortcut)


class CifarFast(Net):
    """A whitening convolution, three groups that halve the map, its maximum, and one scaled dense layer.

    3x3 kernels start as the identity of their input channels, the rest uniform within 1 / sqrt(fan-in). Takes
    any input of 10x10 or more (the scripts pool 3x3 at the end, which is all of the map of a 32x32 image).
    Grey images belong in one channel: repeated in three, whitening leaves channels of rounding noise, whose
    normalization (epsilon 1e-12, as published) can make the first gradients overflow.
    """

    widths: tuple[int, ...] = (64, 256, 256)
    group: type[nn.Module] = Group
    momentum: float = 0.6  # of the running statistics
    scale: float = 1 / 9  # of the logits

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        if min(image.shape[1:3]) < 10:
            raise UserError(f"image {image.shape[1:3]}: CifarFast takes at least 10x10 pixels")
        init = partial(Conv, kernel_init=identity_uniform, dtype=self.dtype)
        conv = partial(init, kernel_size=3, padding=1, use_bias=False)
        norm = self.norm_layer(BatchNorm, train, momentum=self.momentum, epsilon=1e-12)
        filters = 2 * 2**2 * image.shape[-1]  # each whitening filter and its negative

        x = gelu(init(filters, 2, name="whiten")(image))  # 31 31 24
        for stage, width in enumerate(self.widths, 1):
            x = self.group(width, conv, norm, name=f"stage{stage}")(x)  # 15 15 64 | 7 7 256 | 3 3 256
        x = ops.global_max_pool(x)  # 256
        x = logits(x, self.num_classes, self.dtype, use_bias=False, kernel_init=torch_uniform)
        return x * self.scale


def whitened(images: jax.Array) -> VariableDict:
    """What training starts from: the whitening kernel of images as the network takes them."""
    return {"params": {"whiten": {"kernel": whitening_kernel(images)}}}


PRESET = dataclasses.replace(CIFAR, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def _row(name: str, top1: float, **fields) -> Variant:
    source, published = f"Jordan 2024, {name}", "CIFAR-10, 6 views"
    return Variant(partial(CifarFast, **fields), source, PRESET, top1, None, published, whitened)


VARIANTS = {
    "airbench94": _row("airbench94", 94.01),
    "airbench95": _row("airbench95", 95.01, widths=(128, 384, 384)),
    "airbench96": _row("airbench96", 96.03, widths=(128, 384, 512), group=ResidualGroup, momentum=0.9),
}
