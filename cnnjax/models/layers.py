"""The layers that every family is made of: float32 parameters; `dtype` is that of computation and output."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from cnnjax import ops
from cnnjax.errors import UserError, check_fraction
from cnnjax.models.net import HEAD, Activation, Constructor, Dtype, Initializer, Net, he_normal, scaled
from cnnjax.ops.activations import identity
from cnnjax.ops.shapes import Padding, Size, pair

ones, zeros, lecun_normal = nn.initializers.ones, nn.initializers.zeros, nn.initializers.lecun_normal()


def check_widths(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises a UserError that names the layer whose kernel [..., in, out] has no inputs or no outputs."""
    if min(shape[-2:]) < 1:
        counts = f"{shape[-2]} inputs and {shape[-1]} outputs"
        raise UserError(f"layer {'/'.join(layer.path)} has {counts}; widen the model")


class Conv(nn.Module):
    """2-D convolution of `[B, H, W, C]`, padded as in `ops.conv2d`; parameters `kernel` HWIO and `bias`."""

    features: int
    kernel_size: Size
    strides: Size = 1
    padding: Padding = "valid"
    groups: int = 1
    dilation: Size = 1
    use_bias: bool = True
    kernel_init: Initializer = he_normal
    bias_init: Initializer = zeros
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*pair(self.kernel_size, "kernel_size"), x.shape[-1] // self.groups, self.features)
        check_widths(self, shape)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", self.bias_init, shape[-1:], jnp.float32) if self.use_bias else None
        bias = bias if bias is None else bias.astype(self.dtype)
        conv = partial(ops.conv2d, strides=self.strides, padding=self.padding, dilation=self.dilation)
        return conv(x.astype(self.dtype), kernel, bias, groups=self.groups)


class Dense(nn.Module):
    """A fully connected layer on the last axis; parameters `kernel` [in, out] and `bias` [out].

    The result is of `out_dtype`, float32 without a rounding of the sums, or else of `dtype`.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = lecun_normal
    bias_init: Initializer = zeros
    dtype: Dtype = jnp.float32
    out_dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_widths(self, (x.shape[-1], self.features))
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        return ops.dense(x.astype(self.dtype), kernel, bias, dtype=self.out_dtype)


class LayerNorm(nn.Module):
    """Normalization of each pixel over its channels, in float32; parameters `scale` and `bias`."""

    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", zeros, x.shape[-1:], jnp.float32)
        return ops.layer_norm(x.astype(self.dtype), scale, bias, epsilon=self.epsilon)


class BatchNorm(nn.Module):
    """Batch normalization over B, H, W (Ioffe & Szegedy 2015, 1502.03167), then `act` and pooling.

    Statistics are float32: those of the global batch, or of each of `groups` equal parts of it. `momentum` is
    the decay of the old running value (PyTorch's momentum is one minus it). The running variance is the
    biased one, as in the paper's training step; PyTorch stores the unbiased one. A layer named in the
    collection `frozen` keeps its statistics and normalizes with them in training too. On a CPU ReLU, ReLU6,
    SiLU, hard swish, and pooling by 2 after ReLU are in the same pass.
    """

    train: bool = False
    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = ones
    bias_init: Initializer = zeros
    dtype: Dtype = jnp.float32
    act: Activation = identity
    pool: int = 1  # pixels a side of the windows of the maximum pooling after it

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x, epsilon, act, pool = x.astype(self.dtype), self.epsilon, self.act, self.pool
        if not self.train or self.has_variable("frozen", "statistics"):
            norm = partial(ops.batch_norm_inference, epsilon=epsilon, act=act, pool=pool)
            return norm(x, scale, bias, mean.value, var.value)
        train = partial(ops.batch_norm_train, epsilon=epsilon, act=act, pool=pool, groups=self.groups)
        y, batch_mean, batch_var = train(x, scale, bias)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


class Relu(nn.Module):
    """ReLU alone: what stands for `BatchNorm` and ReLU in nets without normalization."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return ops.relu(x)


class ConvNorm(nn.Module):
    """Convolution `conv`, then `norm`, which holds the activation: the unit that most later nets repeat."""

    features: int
    kernel_size: Size = 1
    strides: Size = 1
    padding: Padding | None = None  # half the kernel on each side, which keeps the size at stride 1
    groups: int = 1
    conv: Constructor = Conv  # with dtype, biases and initializers filled in, as is `norm`
    norm: Constructor = partial(BatchNorm, act=ops.relu)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width = pair(self.kernel_size, "kernel_size")
        padding = (height // 2, width // 2) if self.padding is None else self.padding
        conv = partial(self.conv, strides=self.strides, padding=padding, groups=self.groups)
        return self.norm(name="norm")(conv(self.features, self.kernel_size, name="conv")(x))


def conv_unit(
    net: Net, train: bool, kernel_init: Initializer, width: float = 1.0, act: Activation = ops.relu
) -> Constructor:
    """Convolution without bias, BatchNorm and `act`; `width` multiplies the features.

    BatchNorm's epsilon is 1e-3, as in the authors' code for Inception and MobileNet v1 (TensorFlow-Slim).
    """
    conv = partial(Conv, use_bias=False, kernel_init=kernel_init, dtype=net.dtype)
    norm = net.norm_layer(BatchNorm, train, act=act, epsilon=1e-3)
    return scaled(partial(ConvNorm, conv=conv, norm=norm), width)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that a small bottleneck computes from all channels' means.

    Hu, Shen, Sun 2017, 1709.01507, section 3. Float [B, H, W, C] -> the same shape.
    """

    squeeze_features: int  # C / r there, r = 16
    act: Activation = ops.relu
    gate: Activation = jax.nn.sigmoid
    kernel_init: Initializer = he_normal
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        gate = self.act(dense(self.squeeze_features, name="fc1")(ops.global_avg_pool(x)))
        gate = self.gate(dense(x.shape[-1], name="fc2")(gate))
        return ops.scale_channels(x, gate)


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of whole examples at `rate`, scales those kept by 1 / (1 - rate).

    Huang et al. 2016, 1603.09382, section 3; there the branch is scaled at test time instead. Draws from
    the "dropout" stream; the identity when not training.
    """

    rate: float
    train: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_fraction("rate", self.rate)
        if not self.train or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0], 1, 1, 1))
        return jnp.where(mask, x / keep, 0).astype(x.dtype)


def logits(
    x: Array, num_classes: int, dtype: Dtype, use_bias: bool = True, kernel_init: Initializer = lecun_normal
) -> Array:
    """The classifier `head`: dense to `num_classes`; its float32 sums whatever the compute dtype."""
    head = Dense(num_classes, use_bias, kernel_init, dtype=dtype, out_dtype=jnp.float32, name=HEAD)
    return head(x)
