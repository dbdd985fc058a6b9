"""AlexNet, the network that won ILSVRC 2012, its re-implementations, ZFNet, and a small one for CIFAR-10.

Krizhevsky, Sutskever, Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks",
sections 3 and 5 and fig. 2. The towers of its two GPUs are the two groups of conv2, conv4 and conv5: the
first half of the channels of every layer is the first tower.

Deviations and choices where the paper is silent or wrong:

- the input is 227x227: with 224, as printed, no padding gives 55x55 maps;
- response normalization sums over the neighbours in both towers (the paper's N counts all kernels);
- `caffenet` is BVLC's reference model: pooling before normalization, in Caffe's form; fc6 and fc7 start at
  a standard deviation of 0.01 as in the paper (0.005 there);
- `alexnet_torchvision` is the single-tower net of Krizhevsky 2014 (1404.5997) as torchvision has it; biases
  start at 0 (torch draws them).

The presets keep the paper's pixels, 0..255 less the mean: kernels drawn from N(0, 0.01) need them.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from cnnjax import ops
from cnnjax.errors import UserError, by_name
from cnnjax.models.layers import Conv, Dense, logits
from cnnjax.models.net import (
    POOLINGS,
    RESPONSE_NORMS,
    Activation,
    Dtype,
    Initializer,
    Net,
    require_size,
    torch_uniform,
)
from cnnjax.models.variants import CIFAR, RAW_PIXELS, Preset, TorchNames, Variant, substitute
from cnnjax.ops.mesh import axis_size

ORDERS = (("norm", "pool"), ("pool", "norm"))
normal = nn.initializers.normal


def across_towers(norm: Activation, x: jax.Array) -> jax.Array:
    """`norm(x)`, over five channels around each: of those on several devices only the outer two are sent."""
    towers = axis_size("model")
    if towers == 1 or x.shape[-1] % towers or x.shape[-1] // towers < 2:
        return norm(x)

    def local(x: jax.Array) -> jax.Array:
        from_left = jax.lax.ppermute(x[..., -2:], "model", [(i, i + 1) for i in range(towers - 1)])
        from_right = jax.lax.ppermute(x[..., :2], "model", [(i + 1, i) for i in range(towers - 1)])
        return norm(jnp.concatenate([from_left, x, from_right], -1))[..., 2:-2]

    data = axis_size("data")
    channels = PartitionSpec("data" if data > 1 and x.shape[0] % data == 0 else None, None, None, "model")
    return jax.shard_map(local, in_specs=channels, out_specs=channels)(x)


class AlexNet(Net):
    """Five convolutions and three dense layers: N(0, 0.01) kernels, 227x227 input."""

    groups: int = 2  # the number of towers
    response_norm: str = "paper"  # a name of `RESPONSE_NORMS`
    order: tuple[str, str] = ("norm", "pool")  # what follows conv1 and conv2
    pool_window: int = 3  # overlaps at stride 2; 2 does not
    dropout_rate: float = 0.5
    std: float = 0.01  # the kernels' at first; a narrow net needs more to start
    bias: float = 1.0  # that of conv2, conv4, conv5, dense1 and dense2 at first; the others start at 0
    widths: tuple[int, ...] = (96, 256, 384, 384, 256, 4096, 4096)  # of the seven hidden layers
    image_size: int = 227

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        require_size(image, self.image_size, "AlexNet")
        if tuple(self.order) not in ORDERS:
            raise UserError(f"order {self.order!r}: allowed are {ORDERS[0]} and {ORDERS[1]}")
        response_norm = by_name("response_norm", self.response_norm, RESPONSE_NORMS)
        norm = partial(across_towers, response_norm)
        pool = partial(ops.max_pool, window=self.pool_window, strides=2)
        first, second = (norm, pool) if self.order[0] == "norm" else (pool, norm)
        init, bias_init, relu = normal(self.std), nn.initializers.constant(self.bias), ops.relu
        conv = partial(Conv, kernel_init=init, dtype=self.dtype)
        grouped = partial(conv, groups=self.groups, bias_init=bias_init)
        dense = partial(Dense, kernel_init=init, bias_init=bias_init, dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        c1, c2, c3, c4, c5, d1, d2 = self.widths

        x = relu(conv(c1, 11, strides=4, padding=0, name="conv1")(image))  # 227 227 3 to 55 55 96
        x = second(first(x))  # 27 27 96
        x = relu(grouped(c2, 5, padding=2, name="conv2")(x))  # 27 27 256
        x = second(first(x))  # 13 13 256
        x = relu(conv(c3, 3, padding=1, name="conv3")(x))  # 13 13 384
        x = relu(grouped(c4, 3, padding=1, name="conv4")(x))  # 13 13 384
        x = relu(grouped(c5, 3, padding=1, name="conv5")(x))  # 13 13 256
        x = pool(x)  # 6 6 256
        x = x.reshape(x.shape[0], -1)  # 9216
        x = dropout(name="dropout1")(relu(dense(d1, name="dense1")(x)))  # 4096
        x = dropout(name="dropout2")(relu(dense(d2, name="dense2")(x)))  # 4096
        return logits(x, self.num_classes, self.dtype, kernel_init=init)


class AlexNetTorchvision(Net):
    """One tower, narrower, without normalization, kernels by torch's default; any input of at least 63x63."""

    dropout_rate: float = 0.5
    widths: tuple[int, ...] = (64, 192, 384, 256, 256, 4096, 4096)  # of the seven hidden layers

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        if min(image.shape[1:3]) < 63:
            raise UserError(f"image {image.shape[1:3]}: AlexNet takes at least 63x63 pixels")
        conv = partial(Conv, kernel_init=torch_uniform, dtype=self.dtype)
        dense = partial(Dense, kernel_init=torch_uniform, dtype=self.dtype)
        relu, widths = ops.relu, self.widths
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        x = relu(conv(widths[0], 11, strides=4, padding=2, name="conv1")(image))  # 224 224 3 to 55 55 64
        x = ops.max_pool(x, 3, 2)  # 27 27 64
        x = relu(conv(widths[1], 5, padding=2, name="conv2")(x))  # 27 27 192
        x = ops.max_pool(x, 3, 2)  # 13 13 192
        x = relu(conv(widths[2], 3, padding=1, name="conv3")(x))  # 13 13 384
        x = relu(conv(widths[3], 3, padding=1, name="conv4")(x))  # 13 13 256
        x = relu(conv(widths[4], 3, padding=1, name="conv5")(x))  # 13 13 256
        x = ops.max_pool(x, 3, 2)  # 6 6 256
        x = ops.adaptive_avg_pool(x, 6)  # 6 6 256
        x = dropout(name="dropout1")(x.reshape(x.shape[0], -1))  # 9216
        x = dropout(name="dropout2")(relu(dense(widths[5], name="dense1")(x)))  # 4096
        x = relu(dense(widths[6], name="dense2")(x))  # 4096
        return logits(x, self.num_classes, self.dtype, kernel_init=torch_uniform)


class ZFNet(Net):
    """AlexNet with a finer first layer, found by looking at what its layers see: one tower, 224x224.

    Zeiler, Fergus 2013, 1311.2901, fig. 3 and section 3. The figure's map sizes 110, 55, 26, 13, 6 need the
    padding of conv1 and the poolings that round up, which the paper leaves out. Its "weights of 10^-2" are
    taken as N(0, 0.01), its "contrast normalization across feature maps", after pooling, as AlexNet's.
    """

    response_norm: str = "paper"
    dropout_rate: float = 0.5
    widths: tuple[int, ...] = (96, 256, 384, 384, 256, 4096, 4096)
    image_size: int = 224

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        require_size(image, self.image_size, "ZFNet")
        norm = by_name("response_norm", self.response_norm, RESPONSE_NORMS)
        conv = partial(Conv, kernel_init=normal(0.01), dtype=self.dtype)
        dense = partial(Dense, kernel_init=normal(0.01), dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        relu, widths = ops.relu, self.widths

        x = relu(conv(widths[0], 7, strides=2, padding=1, name="conv1")(image))  # 224 224 3 to 110 110 96
        x = norm(ops.max_pool(x, 3, 2, ceil=True))  # 55 55 96
        x = relu(conv(widths[1], 5, strides=2, padding=0, name="conv2")(x))  # 26 26 256
        x = norm(ops.max_pool(x, 3, 2, ceil=True))  # 13 13 256
        x = relu(conv(widths[2], 3, padding=1, name="conv3")(x))  # 13 13 384
        x = relu(conv(widths[3], 3, padding=1, name="conv4")(x))  # 13 13 384
        x = relu(conv(widths[4], 3, padding=1, name="conv5")(x))  # 13 13 256
        x = ops.max_pool(x, 3, 2, ceil=True)  # 6 6 256
        x = x.reshape(x.shape[0], -1)  # 9216
        x = dropout(name="dropout1")(relu(dense(widths[5], name="dense1")(x)))  # 4096
        x = dropout(name="dropout2")(relu(dense(widths[6], name="dense2")(x)))  # 4096
        return logits(x, self.num_classes, self.dtype, kernel_init=normal(0.01))


class AlexNetCifar(Net):
    """Krizhevsky's small CIFAR net: three 5x5 convolutions, each pooled by half, and one dense layer.

    Layout and initial standard deviations are those of cuda-convnet's 18 % net as Caffe's cifar10_full has
    them; poolings round their sizes up. Deviation: response normalization is across channels, not within one.
    """

    activation: str = "relu"  # a name of `ops.ACTIVATIONS`
    poolings: tuple[str, ...] = ("max", "average", "average")  # names of `POOLINGS`
    pool_window: int = 3  # 2 does not overlap
    response_norm: str = "paper"  # a name of `RESPONSE_NORMS`
    groups: int = 1  # 2 splits the first two layers into towers, as in the net of 2012
    widths: tuple[int, ...] = (32, 32, 64)
    stds: tuple[float, ...] = (1e-4, 0.01, 0.01, 0.01)  # of the four kernels; biases start at 0
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        activation = ops.activation(self.activation)
        norm = by_name("response_norm", self.response_norm, RESPONSE_NORMS)
        pools, x = [by_name("pooling", name, POOLINGS) for name in self.poolings], image
        for i, (width, std, pool) in enumerate(zip(self.widths, self.stds[:-1], pools, strict=True), 1):
            conv = partial(Conv, width, 5, padding=2, kernel_init=normal(std), dtype=self.dtype)
            x = activation(
                conv(groups=self.groups if i == 2 else 1, name=f"conv{i}")(x)
            )  # 32 32 32 | 16 16 32 | 8 8 64
            x = pool(x, self.pool_window, 2, ceil=True)  # 16 16 32 | 8 8 32 | 4 4 64
            x = norm(x) if i < len(pools) else x
        x = x.reshape(x.shape[0], -1)  # 1024
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=normal(self.stds[-1]))


class LocalConv(nn.Module):
    """A 3x3 convolution whose kernels differ from place to place: `kernel` [H, W, 9 C, features]."""

    features: int
    kernel_init: Initializer
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, channels = x.shape
        shape = (height, width, 9 * channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32).astype(self.dtype)
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return jnp.einsum("bhwi,hwio->bhwo", jnp.concatenate(windows, -1), kernel) + bias[None, None, None]


class AlexNetCifarLocal(Net):
    """Krizhevsky's better CIFAR net: two 5x5 convolutions, two locally connected layers, one dense layer.

    cuda-convnet's layers-conv-local-13pct and, with response normalization over nine channels, -11pct
    (Krizhevsky et al. 2012, section 3.3: 13 and 11 % without and with it). It takes 24x24 crops.
    """

    response_norm: bool = True
    pool_window: int = 3  # 2 does not overlap
    widths: tuple[int, ...] = (64, 64, 64, 32)
    stds: tuple[float, ...] = (1e-4, 0.01, 0.04, 0.04, 0.01)  # of the five kernels; biases start at 0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        norm = partial(ops.local_response_norm_caffe, n=9, alpha=0.001) if self.response_norm else lambda x: x
        pool = partial(ops.max_pool, window=self.pool_window, strides=2, ceil=True)
        w, inits, relu = self.widths, [normal(std) for std in self.stds], ops.relu
        conv = partial(Conv, kernel_size=5, padding=2, dtype=self.dtype)
        local = partial(LocalConv, dtype=self.dtype)

        x = relu(conv(w[0], kernel_init=inits[0], name="conv1")(image))  # 24 24 64
        x = norm(pool(x))  # 12 12 64
        x = pool(norm(relu(conv(w[1], kernel_init=inits[1], name="conv2")(x))))  # 6 6 64
        x = relu(local(w[2], inits[2], name="local3")(x))  # 6 6 64
        x = relu(local(w[3], inits[3], name="local4")(x))  # 6 6 32
        return logits(x.reshape(x.shape[0], -1), self.num_classes, self.dtype, kernel_init=inits[4])


PRESET = Preset((227, 227, 3), std=RAW_PIXELS)
CIFAR_PRESET = dataclasses.replace(CIFAR, mean=(0.4914, 0.4822, 0.4465), std=RAW_PIXELS)
PAPER, ONE_CROP = "Krizhevsky et al. 2012", "ImageNet 1-crop"
LOCAL_PRESET = dataclasses.replace(CIFAR_PRESET, input_size=(24, 24, 3), resize=32)
TORCHVISION = ("Krizhevsky 2014, torchvision", Preset(), 56.522, 79.066, f"{ONE_CROP}, torchvision V1")
caffenet = partial(AlexNet, response_norm="caffe", order=("pool", "norm"))

VARIANTS = {
    "alexnet": Variant(AlexNet, PAPER, PRESET, 59.3, 81.8, "ImageNet 10-crop"),
    "alexnet_one_tower": Variant(partial(AlexNet, groups=1), f"{PAPER}, without groups", PRESET),
    "caffenet": Variant(caffenet, "Jia et al. 2014, BVLC reference CaffeNet", PRESET, 57.4, 80.4, ONE_CROP),
    "alexnet_torchvision": Variant(AlexNetTorchvision, *TORCHVISION),
    "zfnet": Variant(ZFNet, "Zeiler & Fergus 2013", Preset(std=RAW_PIXELS), 61.6, 83.5, "ImageNet 10-crop"),
    "alexnet_cifar": Variant(AlexNetCifar, "Krizhevsky 2012, cuda-convnet; Caffe cifar10_full", CIFAR_PRESET),
    "alexnet_cifar_local": Variant(AlexNetCifarLocal, "Krizhevsky 2012, cuda-convnet", LOCAL_PRESET),
}

NAMES = {
    **{f"conv{i}": f"features.{place}" for i, place in enumerate((0, 3, 6, 8, 10), 1)},
    **{"dense1": "classifier.1", "dense2": "classifier.4", "head": "classifier.6"},
}
TORCH_NAMES = {AlexNetTorchvision: TorchNames(substitute(NAMES), flattened={"dense1": (6, 6)})}
