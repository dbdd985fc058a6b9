"""Normalization: of each pixel over neighbouring channels, of each channel over the batch."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from cnnjax.errors import UserError
from cnnjax.ops.activations import Activation, identity, relu, silu
from cnnjax.ops.cpu import (
    make_batch_norm,
    make_layer_norm,
    make_response_norm,
    max_windows_and_places,
    scale_rows,
    takes,
)
from cnnjax.ops.mesh import axis_size
from cnnjax.ops.pooling import max_pool, widen


def local_response_norm(
    x: jax.Array, *, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divides each activation by (k + alpha * sum of n neighbouring channels' squares) ** beta.

    The paper's form: alpha is not divided by n (Krizhevsky, Sutskever, Hinton 2012, "ImageNet Classification
    with Deep Convolutional Neural Networks", section 3.3). The sum is clipped at the first and last channel.
    float [..., C] -> [..., C] of the dtype of x, in float32; UserError unless n is odd and k positive.
    """
    if n < 1 or n % 2 == 0:
        raise UserError(f"local response normalization over n {n} channels: n must be odd")
    if not k > 0:
        raise UserError(f"local response normalization with k {k}: k must be positive")
    if beta != 0.75:
        return (_widen(x) * _response_sum(x, n, k, alpha) ** -beta).astype(x.dtype)
    in_kernel = takes(x) and n < 4096 and x.ndim > 0
    return (_response_norm_on_cpu if in_kernel else _response_norm_in_xla)(x, n=n, k=k, alpha=alpha)


def _response_sum(x: jax.Array, n: int, k: float, alpha: float) -> jax.Array:
    channels, reach = x.shape[-1], n // 2
    squares = jnp.pad(jnp.square(_widen(x)), [(0, 0)] * (x.ndim - 1) + [(reach, reach)])
    terms = [lax.slice_in_dim(squares, i, i + channels, axis=-1) for i in range(n)]
    return k + alpha * functools.reduce(jnp.add, terms)


def _response_norm_in_xla(x: jax.Array, *, n: int, k: float, alpha: float) -> jax.Array:
    # Two roots are several times faster than a general power.
    root = lax.rsqrt(_response_sum(x, n, k, alpha))
    return (_widen(x) * (root * jnp.sqrt(root))).astype(x.dtype)


_response_norm_on_cpu = make_response_norm(_response_norm_in_xla)


def local_response_norm_caffe(
    x: jax.Array, *, n: int = 5, k: float = 1.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """`local_response_norm` as Caffe and torch compute it: alpha is divided by n, and k is 1 by default."""
    return local_response_norm(x, n=n, k=k, alpha=alpha / max(n, 1), beta=beta)  # which refuses n < 1


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """Normalizes each pixel by the mean and variance of its channels (Ba, Kiros, Hinton 2016, 1607.06450).

    x is float [..., C], scale and bias float32 [C]; y is of the dtype of x, computed in float32.
    """
    _check_channels(x, scale=scale, bias=bias)
    in_kernel = takes(x) and scale.dtype == bias.dtype == jnp.float32
    return (_layer_norm_on_cpu if in_kernel else _layer_norm_in_xla)(x, scale, bias, epsilon=epsilon)


def _layer_norm_in_xla(x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float) -> jax.Array:
    wide = _widen(x)
    centered = wide - wide.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + epsilon)
    return (centered * (inverse * _like(wide, scale)) + _like(wide, bias)).astype(x.dtype)


_layer_norm_on_cpu = make_layer_norm(_layer_norm_in_xla)


def batch_norm_train(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float = 1e-5,
    act: Activation = identity,
    pool: int = 1,
    groups: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes each channel by the mean and variance of this batch.

    Ioffe, Szegedy 2015, arXiv:1502.03167, algorithm 1. The variance is the mean of squared distances from the
    mean (two passes over x), so it is never negative and holds for channels whose mean is thousands of times
    their spread. On a mesh the statistics are those of the global batch, for one exchange between devices
    (Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances").
    The gradient takes two sums over x (the paper's section 3, in closed form); all orders have one.
    x is float [..., C], scale and bias float32 [C]; y is of the dtype of x; mean and biased variance over all
    axes but the last are float32 [C], averaged over groups (the variance within them, not between them).
    y ends with the activation `act`; `pool`, of [B, H, W, C], then takes `max_pool` with windows of `pool`
    pixels a side, gradient in reverse mode only. On a CPU ReLU, ReLU6, SiLU, hard swish, and windows of 2
    after ReLU are cheaper here than afterwards. `groups` of equal size, of consecutive examples, are each
    normalized by statistics of their own ("ghost batches", Hoffer et al. 2017, 1705.08741, algorithm 1).
    Raises: UserError if x holds no values, scale and bias are not [C], or x has no such groups.
    """
    _check_channels(x, scale=scale, bias=bias)
    if x.size == 0:
        raise UserError(f"batch normalization of x {x.shape}: no values to take a mean of")
    devices = axis_size("data")
    in_groups = functools.partial(batch_norm_in_groups, x, scale, bias, epsilon=epsilon)
    if groups != 1:
        y, mean, var = in_groups(groups=groups)
    elif devices > 1 and x.shape[0] % devices == 0:
        together = functools.partial(lax.with_sharding_constraint, shardings=P())
        y, mean, var = in_groups(groups=devices, gather=together)
    elif takes(x) and scale.dtype == bias.dtype == jnp.float32:
        even = x.ndim == 4 and x.shape[1] % 2 == x.shape[2] % 2 == x.shape[3] % 16 == 0
        name = _FUSED.get(act, "identity")
        inside = 2 if pool == 2 and even and act in (identity, relu) else 1
        y, mean, var = _batch_norm_on_cpu(x, scale, bias, epsilon=epsilon, act=name, pool=inside)
        pool, act = pool // inside, identity if act in _FUSED else act
    else:
        y, mean, var = _batch_norm_in_xla(x, scale, bias, epsilon=epsilon)
    y = _in_xla(act)(y)
    y = y if pool == 1 else max_pool(y, pool)
    return y, mean.astype(jnp.float32), var.astype(jnp.float32)


# The names that the kernels know activations by.
_FUSED: dict[Activation, str] = {
    identity: "identity", relu: "relu", jax.nn.relu6: "relu6", silu: "silu", jax.nn.hard_swish: "hard_swish"
}  # fmt: skip


def _in_xla(act: Activation) -> Activation:
    """ReLU that XLA computes in the pass before it, which `relu` does not let it."""
    return jax.nn.relu if act is relu else act


def _batch_norm_in_xla(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float,
    act: str = "identity",
    pool: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    y, mean, var = _normalize(_widen(x), scale, bias, epsilon, tuple(range(x.ndim - 1)), None)
    y = (y if act == "identity" else getattr(jax.nn, act)(y)).astype(x.dtype)
    if pool > 1:
        window = (pool, pool)
        y, _ = max_windows_and_places(y, window=window, strides=window, sides=((0, 0), (0, 0)))
    return y, mean.reshape(-1), var.reshape(-1)


Normalized = tuple[jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axes: tuple[int, ...],
    gather: Callable[[jax.Array], jax.Array] | None,
) -> Normalized:
    """y, mean and variance over `axes`; with `gather` over the first axis, the groups, too."""
    mean = x.mean(axes, keepdims=True)
    var = jnp.square(x - mean).mean(axes, keepdims=True)
    if gather:
        both = gather(jnp.concatenate([mean, var], -1).reshape(x.shape[0], -1))
        means, variances = jnp.split(both, 2, axis=-1)
        mean = means.mean(0, keepdims=True)
        var = variances.mean(0) + jnp.square(means - mean).mean(0)
        mean, var = _like(x, mean[0]), _like(x, var)
    return (x - mean) * (lax.rsqrt(var + epsilon) * _like(x, scale)) + _like(x, bias), mean, var


@_normalize.defjvp
def _normalize_tangents(
    epsilon: float,
    axes: tuple[int, ...],
    gather: Callable[[jax.Array], jax.Array] | None,
    primals: Sequence[jax.Array],
    tangents: Sequence[jax.Array],
) -> tuple[Normalized, Normalized]:
    # As distances from the mean sum to zero, the variance's tangent needs none of the mean's, and what is
    # added to all places is one vector. So the transpose, the gradient, sums dy and dy * centered, no more.
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    y, mean, var = _normalize(x, scale, bias, epsilon, axes, gather)
    centered, root, over = x - mean, lax.rsqrt(var + epsilon), (0, *axes) if gather else axes
    factor = root * _like(x, scale)
    dmean, dvar = dx.mean(over, keepdims=True), 2 * (centered * dx).mean(over, keepdims=True)
    dfactor = root * _like(x, dscale) - 0.5 * factor * jnp.square(root) * dvar
    return (y, mean, var), (
        dx * factor + centered * dfactor + (_like(x, dbias) - dmean * factor),
        dmean,
        dvar,
    )


def _like(x: jax.Array, vector: jax.Array) -> jax.Array:
    """A vector [C] with as many axes as x [..., C], and of its dtype."""
    return lax.expand_dims(vector.astype(x.dtype), range(x.ndim - 1))


_batch_norm_on_cpu = make_batch_norm(_batch_norm_in_xla)


def batch_norm_in_groups(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    groups: int,
    epsilon: float = 1e-5,
    gather: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`batch_norm_train` in groups; if `gather` brings their rows [2 C] together, by shared statistics."""
    if groups < 1 or x.shape[0] % groups:
        raise UserError(f"batch normalization of x {x.shape} in {groups} groups: they must divide the batch")
    wide = _widen(x).reshape(groups, x.shape[0] // groups, *x.shape[1:])
    y, mean, var = _normalize(wide, scale, bias, epsilon, tuple(range(1, wide.ndim - 1)), gather)
    y = y.astype(x.dtype).reshape(x.shape)
    return y, mean.reshape(-1, x.shape[-1]).mean(0), var.reshape(-1, x.shape[-1]).mean(0)


def batch_norm_inference(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    epsilon: float = 1e-5,
    act: Activation = identity,
    pool: int = 1,
) -> jax.Array:
    """Batch normalization with running statistics, in float32, all [C] (arXiv:1502.03167, algorithm 2)."""
    _check_channels(x, scale=scale, bias=bias, mean=mean, var=var)
    wide = _widen(x)
    factor = lax.rsqrt(var.astype(wide.dtype) + epsilon) * scale.astype(wide.dtype)
    y = (wide - _like(wide, mean)) * _like(wide, factor) + _like(wide, bias)
    y = _in_xla(act)(y.astype(x.dtype))
    return y if pool == 1 else max_pool(y, pool)


def scale_channels(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies each channel of [B, H, W, C] by a factor: float [C], or [B, C] for each image."""
    batch, channels = x.shape[0], x.shape[-1]
    groups = batch if factor.ndim == 2 else 1
    if factor.shape not in ((channels,), (batch, channels)):
        raise UserError(f"factor {factor.shape}: must be {(channels,)} or {(batch, channels)}, those of x")
    if takes(x, factor) and x.shape[:3] != (batch, 1, 1):
        rows = x if groups == batch else x[None]
        return scale_rows(rows, factor.reshape(groups, channels).astype(jnp.float32)).reshape(x.shape)
    wide = _widen(x)
    return (wide * factor.astype(wide.dtype).reshape(groups, 1, 1, channels)).astype(x.dtype)


def _widen(x: jax.Array) -> jax.Array:
    """x in float32, or in its own dtype where that is wider."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"normalization of x {x.dtype}: a float dtype is needed; use astype")
    return widen(x)


def _check_channels(x: jax.Array, **vectors: jax.Array) -> None:
    for name, vector in vectors.items():
        if vector.shape != x.shape[-1:]:
            raise UserError(f"{name} {vector.shape}: must be {x.shape[-1:]}, the channels of x")
