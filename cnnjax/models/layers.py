"""The layers that every family is made of: convolution, dense, batch normalization, pooling by name.

Parameters and batch statistics are float32; `dtype` is that of the computation and of the output.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops

Dtype = Any
Initializer = Callable[..., jax.Array]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]

# Fan-out keeps the gradient's scale through a ReLU (He et al. 2015, 1502.01852, section 2.2).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Fan-in keeps the activation's scale through a ReLU (same, eq. 10).
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
zeros = nn.initializers.zeros
ones = nn.initializers.ones


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """An int for both axes, or (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


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
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            bias = bias.astype(self.dtype)
        return ops.conv2d(
            x.astype(self.dtype),
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            groups=self.groups,
            dilation=self.dilation,
        )


class Dense(nn.Module):
    """A fully connected layer on the last axis; parameters `kernel` [in, out] and `bias` [out]."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = zeros
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = jnp.matmul(
            x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return y.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalization over B, H, W (Ioffe & Szegedy 2015, 1502.03167).

    Statistics are those of the global batch, in float32. `momentum` is the decay of the old running
    value (PyTorch's momentum is one minus it). The running variance is the biased one, as in the paper's
    training step; PyTorch stores the unbiased one.
    """

    train: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = ones
    bias_init: Initializer = zeros
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = x.astype(self.dtype)
        if not self.train:
            return ops.batch_norm_inference(
                x, scale, bias, mean.value, var.value, epsilon=self.epsilon
            )
        y, batch_mean, batch_var = ops.batch_norm_train(x, scale, bias, epsilon=self.epsilon)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


POOLINGS: dict[str, Callable[..., jax.Array]] = {
    "max": ops.max_pool,
    "average": ops.avg_pool,
    "min": ops.min_pool,
    "l2": ops.l2_pool,
    "center_weighted": ops.center_weighted_pool,
}


def logits(x: jax.Array, num_classes: int, dtype: Dtype, **fields: Any) -> jax.Array:
    """The classifier `head`: dense to `num_classes`, float32 whatever the compute dtype."""
    return Dense(num_classes, dtype=dtype, name="head", **fields)(x).astype(jnp.float32)
