"""The layers that every family is made of: convolution, dense, batch normalization, pooling by name.

Parameters and batch statistics are float32; `dtype` is that of the computation and of the output.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError, unknown
from cnnjax.models.placement import in_towers, norm_fields

Dtype = Any
Initializer = Callable[..., jax.Array]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]

# Fan-out keeps the gradient's scale through a ReLU (He et al. 2015, 1502.01852, section 2.2).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Fan-in keeps the activation's scale through a ReLU (same, eq. 10).
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# What torch draws by default: uniform within 1 / sqrt(fan-in) of zero.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
zeros = nn.initializers.zeros
ones = nn.initializers.ones


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """An int for both axes, or (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def check_widths(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises a UserError that names the layer whose kernel [..., in, out] has no inputs or no outputs."""
    inputs, outputs = shape[-2:]
    if min(inputs, outputs) < 1:
        name = "/".join(layer.path)
        raise UserError(f"layer {name} has {inputs} inputs and {outputs} outputs; widen the model")


class Conv(nn.Module):
    """2-D convolution of `[B, H, W, C]` with `features` kernels; parameters `kernel` HWIO and `bias`.

    `padding` is as in `ops.conv2d`: 'valid', 'same', pixels, or pairs per side.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = "valid"
    groups: int = 1
    dilation: int | tuple[int, int] = 1
    use_bias: bool = True
    kernel_init: Initializer = he_normal
    bias_init: Initializer = zeros
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*pair(self.kernel_size), x.shape[-1] // self.groups, self.features)
        check_widths(self, shape)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            bias = bias.astype(self.dtype)
        convolve = functools.partial(
            ops.conv2d, strides=self.strides, padding=self.padding, dilation=self.dilation
        )
        return in_towers(convolve, x.astype(self.dtype), kernel, bias, self.groups)


class Dense(nn.Module):
    """A fully connected layer on the last axis; parameters `kernel` [in, out] and `bias` [out]."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = zeros
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        check_widths(self, (x.shape[-1], self.features))
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return y.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalization over B, H, W (Ioffe & Szegedy 2015, 1502.03167).

    Statistics are those of the global batch, or of each group of it (see `placement`), in float32.
    `momentum` is the decay of the old running value (PyTorch's momentum is one minus it). The running
    variance is the biased one, as in the paper's training step; PyTorch stores the unbiased one. A layer
    named in the collection `frozen` keeps its statistics and normalizes with them in training too. `act`
    follows, then maximum pooling in windows of `pool` pixels a side; ReLU, and with it windows of 2, in the
    same pass.
    """

    train: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = ones
    bias_init: Initializer = zeros
    act: Callable[[jax.Array], jax.Array] = ops.activation("identity")
    pool: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = x.astype(self.dtype)
        if not self.train or self.has_variable("frozen", "statistics"):
            y = ops.batch_norm_inference(x, scale, bias, mean.value, var.value, epsilon=self.epsilon)
            return self._pooled(self.act(y))
        relu = self.act is jax.nn.relu
        y, batch_mean, batch_var = ops.batch_norm_train(
            x, scale, bias, epsilon=self.epsilon, relu=relu, pool=self.pool if relu else 1, **norm_fields()
        )
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y if relu else self._pooled(self.act(y))

    def _pooled(self, y: jax.Array) -> jax.Array:
        return y if self.pool == 1 else ops.max_pool(y, self.pool)


class ConvNorm(nn.Module):
    """Convolution `conv`, normalization `norm`, then `act`: the unit that most later nets repeat.

    `padding` None keeps the size at stride 1 (half the kernel on each side). `conv` and `norm` are
    constructors with their dtype, biases and initializers filled in already.
    """

    features: int
    kernel_size: int | tuple[int, int] = 1
    strides: int | tuple[int, int] = 1
    padding: Padding | None = None
    groups: int = 1
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    act: Callable[[jax.Array], jax.Array] = jax.nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = pair(self.kernel_size)
        padding = (height // 2, width // 2) if self.padding is None else self.padding
        x = self.conv(
            self.features,
            self.kernel_size,
            strides=self.strides,
            padding=padding,
            groups=self.groups,
            name="conv",
        )(x)
        return self.norm(act=self.act, name="norm")(x)


class Identity(nn.Module):
    """`act` alone: what stands for `norm` in nets without normalization."""

    act: Callable[[jax.Array], jax.Array] = ops.activation("identity")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.act(x)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that a small bottleneck computes from all channels' means.

    Hu, Shen, Sun 2017, 1709.01507, section 3: `squeeze_features` is C / r there (r = 16), `act` ReLU and
    `gate` the sigmoid. Parameters `fc1`, `fc2`, with biases; float [B, H, W, C] -> the same shape.
    """

    squeeze_features: int
    act: Callable[[jax.Array], jax.Array] = jax.nn.relu
    gate: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid
    kernel_init: Initializer = he_normal
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        gate = ops.global_avg_pool(x)
        gate = self.act(dense(self.squeeze_features, name="fc1")(gate))
        gate = self.gate(dense(x.shape[-1], name="fc2")(gate))
        return x * gate[:, None, None, :].astype(x.dtype)


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of whole examples at `rate`, scales those kept by 1 / (1 - rate).

    Huang et al. 2016, 1603.09382, section 3; there the branch is scaled at test time instead. Draws from
    the "dropout" stream; the identity when not training.
    """

    rate: float
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.train or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0], 1, 1, 1))
        return jnp.where(mask, x / keep, 0).astype(x.dtype)


def scaled(layer: Callable[..., nn.Module], width: float) -> Callable[..., nn.Module]:
    """The constructor `layer` with its first argument, the number of features, multiplied by `width`."""

    def build(features: int, *args: Any, **fields: Any) -> nn.Module:
        return layer(max(round(width * features), 1), *args, **fields)

    return build


POOLINGS: dict[str, Callable[..., jax.Array]] = {
    "max": ops.max_pool,
    "average": ops.avg_pool,
    "min": ops.min_pool,
    "l2": ops.l2_pool,
    "center_weighted": ops.center_weighted_pool,
    "strided": ops.subsample,
}


# Krizhevsky's form of local response normalization, Caffe's and torch's, and none at all.
RESPONSE_NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "paper": ops.local_response_norm,
    "caffe": ops.local_response_norm_caffe,
    "none": ops.activation("identity"),
}


def by_name(what: str, name: str, table: Mapping[str, Any]) -> Any:
    """The entry of a table such as `POOLINGS`; an unknown name is a UserError that lists them."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


STEMS = ("imagenet", "cifar")


def check_stem(stem: str, image: jax.Array) -> str:
    """The stem's name, one of `STEMS`; warns where "imagenet" gets images of 64 pixels or fewer.

    Raises:
      UserError: for another name.
    """
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
    if stem == "imagenet" and min(image.shape[1:3]) <= 64:
        warnings.warn(
            f'the ImageNet stem leaves little of images of {image.shape[1:3]}: use stem="cifar"', stacklevel=3
        )
    return stem


def require_size(image: jax.Array, size: int, model: str) -> None:
    """Raises UserError unless image [B, H, W, C] has the size that a fully connected net is built for."""
    if image.shape[1:3] != (size, size):
        raise UserError(
            f"image {image.shape[1:3]}: {model} takes {size}x{size} because of its dense layers: "
            f"resize the images, or build it with another image_size"
        )


def logits(x: jax.Array, num_classes: int, dtype: Dtype, **fields: Any) -> jax.Array:
    """The classifier `head`: dense to `num_classes`, float32 whatever the compute dtype."""
    return Dense(num_classes, dtype=dtype, name="head", **fields)(x).astype(jnp.float32)
