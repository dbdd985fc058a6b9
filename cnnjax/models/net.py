"""What every network is built on: types, initial values, its fields, and what its fields may name."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from cnnjax import ops
from cnnjax.errors import UserError, check, check_count, check_fraction, unknown
from cnnjax.ops.activations import Activation

Dtype = jax.typing.DTypeLike
Initializer = Callable[..., Array]
Constructor = Callable[..., nn.Module]

HEAD = "head"  # the name of a network's last layer, and of auxiliary ones below theirs

# Fan-out keeps the gradient's scale through a ReLU (He et al. 2015, 1502.01852, section 2.2).
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Fan-in keeps the activation's scale through a ReLU (same, eq. 10).
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# What torch draws by default: uniform within 1 / sqrt(fan-in) of zero.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Net(nn.Module):
    """The fields of every network: image float [B, H, W, C] -> float32 logits [B, num_classes]."""

    num_classes: int = 1000
    norm_groups: int = 1  # `groups` of its batch normalizations
    dtype: Dtype = jnp.float32  # of computation; parameters are float32

    def __post_init__(self) -> None:
        for field in ("dropout_rate", "drop_path_rate", "dropout"):
            check_fraction(field, getattr(self, field, 0.0))
        for field in ("width", "depth", "stem_width", "last_width"):
            if (value := getattr(self, field, None)) is not None:
                check(field, value, "greater than 0", lambda v: v > 0)
        for field in ("norm_groups", "widen_factor"):
            check_count(field, getattr(self, field, 1), 1)
        super().__post_init__()

    def norm_layer(self, layer: Constructor, train: bool, **fields: object) -> Constructor:
        """The constructor of a normalization of this net."""
        return partial(layer, train=train, groups=self.norm_groups, dtype=self.dtype, **fields)


def scaled(layer: Constructor, width: float) -> Constructor:
    """The constructor `layer` with its first argument, the number of features, multiplied by `width`."""
    return lambda features, *args, **fields: layer(max(round(width * features), 1), *args, **fields)


def divisible(width: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to a width, never less than 90 % of it, which must be above 0."""
    check("width", width, "greater than 0", lambda v: v > 0)
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


POOLINGS: dict[str, Callable[..., Array]] = {
    "max": ops.max_pool,
    "average": ops.avg_pool,
    "min": ops.min_pool,
    "l2": ops.l2_pool,
    "center_weighted": ops.center_weighted_pool,
    "strided": ops.subsample,
}
# Krizhevsky's form of local response normalization, Caffe's and torch's, and none at all.
RESPONSE_NORMS: dict[str, Activation] = {
    "paper": ops.local_response_norm,
    "caffe": ops.local_response_norm_caffe,
    "none": ops.activation("identity"),
}


def check_stem(stem: str, image: Array, stems: Sequence[str] = ("imagenet", "cifar")) -> str:
    """The stem, one of `stems`; warns where one other than "cifar" gets images of 64 pixels or fewer."""
    if stem not in stems:
        raise unknown("stem", stem, stems)
    if stem != "cifar" and min(image.shape[1:3]) <= 64:
        message = f'the ImageNet stem leaves little of images of {image.shape[1:3]}: use stem="cifar"'
        warnings.warn(message, stacklevel=3)
    return stem


def require_size(image: Array, size: int, model: str) -> None:
    """Raises UserError unless image [B, H, W, C] has the size that a fully connected net is built for."""
    if image.shape[1:3] != (size, size):
        takes = f"{model} takes {size}x{size} because of its dense layers"
        raise UserError(f"image {image.shape[1:3]}: {takes}: resize, or build it with another image_size")
