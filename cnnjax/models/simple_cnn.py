"""SimpleCNN, the module's first network, LeNet-5, its ancestor, and a net without convolutions beside them.

LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", fig. 2.
Deviations of `lenet5`: C3 sees all six maps of S2 (the paper connects each to some of them), subsampling is
plain average pooling without trained coefficients, tanh is not scaled by 1.7159, and the output layer is
linear where the paper has radial basis functions: the modern form with 61,706 parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError, unknown
from cnnjax.models.layers import POOLINGS, BatchNorm, Conv, Dense, Dtype, he_normal, logits
from cnnjax.models.variants import Preset, Variant


def pooling_function(name: str) -> Callable[..., jax.Array]:
    """The pooling of `POOLINGS` by name, or "adaptive": called with images and a window."""
    if name == "adaptive":
        return _adaptive_pool
    if name not in POOLINGS:
        raise unknown("pooling", name, [*POOLINGS, "adaptive"])
    return POOLINGS[name]


def _adaptive_pool(x: jax.Array, window: int) -> jax.Array:
    """Adaptive max pooling to a window'th of the image, rounded up: every pixel is covered."""
    return ops.adaptive_max_pool(x, (-(-x.shape[1] // window), -(-x.shape[2] // window)))


class SimpleCNN(nn.Module):
    """Two stages of convolution, batch normalization, activation and 2x2 pooling, then one dense layer.

    He-normal (fan-in) kernels, zero biases; `head` is LeCun-normal.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (16, 32)
    kernel_size: int = 5
    activation: str = "relu"
    pooling: str = "max"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        activation, pool = ops.activation(self.activation), pooling_function(self.pooling)
        x = image.astype(self.dtype)  # 28 28 1
        for i, width in enumerate(self.widths, 1):
            padding = self.kernel_size // 2
            x = Conv(width, self.kernel_size, padding=padding, dtype=self.dtype, name=f"conv{i}")(x)
            in_norm = train and self.pooling == "max"  # pooled in the pass that normalizes
            norm = BatchNorm(
                train=train,
                act=activation,
                pool=2 if in_norm else 1,
                dtype=self.dtype,
                name=f"norm{i}",
            )
            x = norm(x)  # 28 28 16, then 14 14 32
            x = x if in_norm else pool(x, 2)  # 14 14 16, then 7 7 32
        x = x.reshape(x.shape[0], -1)  # 1568
        return logits(x, self.num_classes, self.dtype)


class FullyConnected(nn.Module):
    """Dense layers of these widths on the flattened image, with an activation after each; then `head`.

    LeCun, Bottou, Bengio, Haffner 1998, section III.A.3: one or two hidden layers, there with tanh. The first
    layer has a weight a pixel and neuron. He-normal kernels, zero biases; `head` is LeCun-normal.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (300, 100)
    activation: str = "relu"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        activation = ops.activation(self.activation)
        x = image.reshape(image.shape[0], -1)  # 784
        for i, width in enumerate(self.widths, 1):
            x = activation(Dense(width, kernel_init=he_normal, dtype=self.dtype, name=f"dense{i}")(x))  # 300
        return logits(x, self.num_classes, self.dtype)


class LeNet5(nn.Module):
    """LeNet-5 on 32x32; smaller images are zero-padded to 32x32 as the paper does with its digits.

    Glorot-uniform kernels, which suit tanh (the paper draws from a uniform of +-2.4 / fan-in), zero biases.
    """

    num_classes: int = 10
    activation: str = "tanh"
    pooling: str = "average"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        activation, pool = ops.activation(self.activation), pooling_function(self.pooling)
        missing = [32 - image.shape[1], 32 - image.shape[2]]
        if min(missing) < 0:
            raise UserError(f"lenet5 takes images of at most 32x32, not {image.shape[1:3]}")
        pads = [(0, 0), *[(m // 2, m - m // 2) for m in missing], (0, 0)]
        init = {"kernel_init": nn.initializers.glorot_uniform(), "dtype": self.dtype}
        x = jnp.pad(image.astype(self.dtype), pads)  # 32 32 1
        x = activation(Conv(6, 5, name="conv1", **init)(x))  # 28 28 6
        x = pool(x, 2)  # 14 14 6
        x = activation(Conv(16, 5, name="conv2", **init)(x))  # 10 10 16
        x = pool(x, 2)  # 5 5 16
        x = x.reshape(x.shape[0], -1)  # 400
        x = activation(Dense(120, name="dense1", **init)(x))
        x = activation(Dense(84, name="dense2", **init)(x))
        return logits(x, self.num_classes, self.dtype, kernel_init=init["kernel_init"])


VARIANTS = {
    "simple_cnn": Variant(
        SimpleCNN,
        "the module's own layout",
        Preset((28, 28, 1), 10, resize=None, mean=None, std=None),
    ),
    "lenet_300_100": Variant(
        FullyConnected,
        "LeCun et al. 1998, the fully connected net",
        Preset((28, 28, 1), 10, resize=None, mean=None, std=None),
        top1=96.95,
        published="MNIST",
    ),
    "lenet5": Variant(
        LeNet5,
        "LeCun et al. 1998",
        Preset((32, 32, 1), 10, resize=None, mean=None, std=None),
        top1=99.05,
        published="MNIST",
    ),
}
