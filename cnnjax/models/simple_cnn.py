"""SimpleCNN, the baseline network; LeNet-5, its ancestor; and a network without convolutions.

LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", fig. 2.
Deviations of `lenet5`: C3 sees all six maps of S2 (the paper connects each to some of them), subsampling is
plain average pooling without trained coefficients, tanh is not scaled by 1.7159, and the output layer is
linear where the paper has radial basis functions: the modern form with 61,706 parameters.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError, by_name
from cnnjax.models.layers import BatchNorm, Conv, Dense, logits
from cnnjax.models.net import POOLINGS, Net, he_normal
from cnnjax.models.variants import MNIST, Variant


def adaptive_pool(x: jax.Array, window: int) -> jax.Array:
    """Adaptive max pooling to a window'th of the image, rounded up: every pixel is covered."""
    return ops.adaptive_max_pool(x, (-(-x.shape[1] // window), -(-x.shape[2] // window)))


pooling_function = partial(by_name, "pooling", table=POOLINGS | {"adaptive": adaptive_pool})


class SimpleCNN(Net):
    """Two stages of convolution, batch normalization, activation and 2x2 pooling, then one dense layer.

    He-normal (fan-in) kernels, zero biases; `head` is LeCun-normal.
    """

    widths: tuple[int, ...] = (16, 32)
    kernel_size: int = 5
    activation: str = "relu"
    pooling: str = "max"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        pool, relu = pooling_function(self.pooling), self.activation == "relu"
        norm = self.norm_layer(BatchNorm, train, act=ops.activation(self.activation))
        x = image.astype(self.dtype)  # 28 28 1
        for i, width in enumerate(self.widths, 1):
            padding = self.kernel_size // 2
            x = Conv(width, self.kernel_size, padding=padding, dtype=self.dtype, name=f"conv{i}")(x)
            if train and relu and self.pooling == "max":  # in one pass
                x = norm(pool=2, name=f"norm{i}")(x)  # 14 14 16, then 7 7 32
            else:
                x = pool(norm(name=f"norm{i}")(x), 2)
        x = x.reshape(x.shape[0], -1)  # 1568
        return logits(x, self.num_classes, self.dtype)


class FullyConnected(Net):
    """Dense layers of these widths on the flattened image, with an activation after each; then `head`.

    LeCun, Bottou, Bengio, Haffner 1998, section III.A.3: one or two hidden layers, there with tanh. The first
    layer has a weight a pixel and neuron. He-normal kernels, zero biases; `head` is LeCun-normal.
    """

    widths: tuple[int, ...] = (300, 100)
    activation: str = "relu"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        activation = ops.activation(self.activation)
        x = image.reshape(image.shape[0], -1)  # 784
        for i, width in enumerate(self.widths, 1):
            x = activation(Dense(width, kernel_init=he_normal, dtype=self.dtype, name=f"dense{i}")(x))  # 300
        return logits(x, self.num_classes, self.dtype)


class LeNet5(Net):
    """LeNet-5 on 32x32; smaller images are zero-padded to 32x32 as the paper does with its digits.

    Glorot-uniform kernels, which suit tanh (the paper draws from a uniform of +-2.4 / fan-in), zero biases.
    """

    activation: str = "tanh"
    pooling: str = "average"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        activation, pool = ops.activation(self.activation), pooling_function(self.pooling)
        missing = [32 - image.shape[1], 32 - image.shape[2]]
        if min(missing) < 0:
            raise UserError(f"lenet5 takes images of at most 32x32, not {image.shape[1:3]}")
        pads = [(0, 0), *[(m // 2, m - m // 2) for m in missing], (0, 0)]
        init = nn.initializers.glorot_uniform()
        conv = partial(Conv, kernel_init=init, dtype=self.dtype)
        dense = partial(Dense, kernel_init=init, dtype=self.dtype)
        x = jnp.pad(image.astype(self.dtype), pads)  # 32 32 1
        x = activation(conv(6, 5, name="conv1")(x))  # 28 28 6
        x = pool(x, 2)  # 14 14 6
        x = activation(conv(16, 5, name="conv2")(x))  # 10 10 16
        x = pool(x, 2)  # 5 5 16
        x = x.reshape(x.shape[0], -1)  # 400
        x = activation(dense(120, name="dense1")(x))
        x = activation(dense(84, name="dense2")(x))
        return logits(x, self.num_classes, self.dtype, kernel_init=init)


_PAPER, _32 = "LeCun et al. 1998", dataclasses.replace(MNIST, input_size=(32, 32, 1))
_DENSE = f"{_PAPER}, the fully connected net"
VARIANTS = {
    "simple_cnn": Variant(SimpleCNN, "cnnjax's baseline network", MNIST),
    "lenet_300_100": Variant(FullyConnected, _DENSE, MNIST, 96.95, published="MNIST"),
    "lenet5": Variant(LeNet5, _PAPER, _32, 99.05, published="MNIST"),
}
