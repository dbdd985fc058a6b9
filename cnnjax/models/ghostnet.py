"""GhostNet: half of the channels come from ordinary convolutions, half from cheap ones of those.

Han, Wang, Tian, Guo, Xu, Xu 2020, "GhostNet: more features from cheap operations", 1911.11907, table 1. V2's
gates are rows and columns of the halved map: Tang, Han, Guo, Xu, Xu, Wang 2022, "GhostNetV2: enhance cheap
operation with long-range attention", 2211.12905, section 3; its first two blocks are V1's. Widths, all
multiples of 4, are timm's. Kernels are He-normal (fan-out), the classifier's LeCun-normal.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, Dense, SqueezeExcite, logits
from cnnjax.models.net import Constructor, Net, check_stem, divisible, he_fan_out
from cnnjax.models.variants import Rules, TorchNames, Variant, substitute, timm_preset

# Table 1, a stage a row; of each block kernel size, stride, hidden and output channels, and if it squeezes.
STAGES = (
    ((3, 1, 16, 16, False),),  # 112 112 16
    ((3, 2, 48, 24, False),),  # 56 56 24
    ((3, 1, 72, 24, False),),  # 56 56 24
    ((5, 2, 72, 40, True),),  # 28 28 40
    ((5, 1, 120, 40, True),),  # 28 28 40
    ((3, 2, 240, 80, False),),  # 14 14 80
    (
        (3, 1, 200, 80, False),  # 14 14 80
        (3, 1, 184, 80, False),
        (3, 1, 184, 80, False),
        (3, 1, 480, 112, True),  # 14 14 112
        (3, 1, 672, 112, True),
    ),
    ((5, 2, 672, 160, True),),  # 7 7 160
    (
        (5, 1, 960, 160, False),  # 7 7 160
        (5, 1, 960, 160, True),
        (5, 1, 960, 160, False),
        (5, 1, 960, 160, True),
    ),
)


class Ghost(nn.Module):
    """Figure 1b: a 1x1 convolution to half of the features, a depthwise 3x3 of these to the others."""

    features: int
    unit: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self._features(x)

    def _features(self, x: jax.Array) -> jax.Array:
        half = -(-self.features // 2)
        primary = self.unit(half, name="primary")(x)
        cheap = self.unit(half, 3, groups=half, name="cheap")(primary)
        return jnp.concatenate([primary, cheap], axis=-1)[..., : self.features]


class GatedGhost(Ghost):
    """V2's: gated by a 1x1, a row of 5 and a column of 5 of the halved map."""

    linear: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, (height, length) = self.features, x.shape[1:3]
        gate = self.linear(width, name="gate1")(ops.avg_pool(x, 2))
        gate = self.linear(width, (1, 5), groups=width, name="gate2")(gate)
        gate = nn.sigmoid(self.linear(width, (5, 1), groups=width, name="gate3")(gate))
        rows = np.arange(height) * gate.shape[1] // height  # the nearest pixel above and to the left
        columns = np.arange(length) * gate.shape[2] // length
        return self._features(x) * gate[:, rows][:, :, columns]


class GhostBottleneck(nn.Module):
    """Figure 3: widen, depthwise if strided, squeeze-and-excitation, narrow; plus a shortcut."""

    features: int
    hidden: int
    kernel_size: int
    strides: int
    widen: Constructor
    linear: Constructor
    squeeze_excite: Constructor | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strided = partial(self.linear, kernel_size=self.kernel_size, strides=self.strides)
        channels, width = x.shape[-1], self.hidden
        y = self.widen(width, name="ghost1")(x)
        if self.strides > 1:
            y = strided(width, groups=width, name="depthwise")(y)
        if self.squeeze_excite:
            y = self.squeeze_excite(divisible(width / 4, 4), name="se")(y)
        y = Ghost(self.features, self.linear, name="ghost2")(y)
        if self.strides != 1 or channels != self.features:
            x = strided(channels, groups=channels, name="shortcut1")(x)
            x = self.linear(self.features, name="shortcut2")(x)
        return y + x


class GhostNet(Net):
    """Takes images of any size (V2: from 33x33 on), 224x224 in the papers."""

    width: float = 1.0  # times all channels but those of the last dense layer
    stages: tuple[tuple[tuple[int, int, int, int, bool], ...], ...] = STAGES
    gated_from: int | None = None  # the stage from which V2's gates are
    stem: str = "imagenet"  # halves the size; "cifar" keeps it
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        unit = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train, act=ops.relu))
        linear = partial(ConvNorm, conv=conv, norm=self.norm_layer(BatchNorm, train))
        gated = partial(GatedGhost, unit=unit, linear=linear)
        squeeze_excite = partial(SqueezeExcite, gate=jax.nn.hard_sigmoid, dtype=self.dtype)
        x = image.astype(self.dtype)  # 224 224 3
        strides = 1 if check_stem(self.stem, image) == "cifar" else 2
        x = unit(divisible(16 * self.width, 4), 3, strides, name="stem")(x)  # 112 112 16
        for i, stage in enumerate(self.stages, 1):
            widen = gated if self.gated_from and i >= self.gated_from else partial(Ghost, unit=unit)
            for j, (kernel_size, strides, hidden, features, gate) in enumerate(stage, 1):
                features, hidden = (divisible(width * self.width, 4) for width in (features, hidden))
                block = partial(GhostBottleneck, features, hidden, kernel_size, strides, widen, linear)
                x = block(squeeze_excite if gate else None, name=f"stage{i}_block{j}")(x)
        x = unit(divisible(self.stages[-1][-1][2] * self.width, 4), name="last")(x)  # 7 7 960
        x = ops.global_avg_pool(x)  # 960
        x = ops.relu(Dense(1280, kernel_init=he_fan_out, dtype=self.dtype, name="dense")(x))  # 1280
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype)


def _row(source: str, width: float, gated_from: int | None = None) -> Variant:
    preset = timm_preset((224, 224, 3), 1000, interpolation="bicubic")
    return Variant(partial(GhostNet, width=width, gated_from=gated_from), source, preset)


V1, V2 = "Han et al. 2020, 1911.11907", "Tang et al. 2022, 2211.12905"
VARIANTS = {
    "ghostnet_050": _row(V1, 0.5),
    "ghostnet_100": _row(V1, 1.0),
    "ghostnet_130": _row(V1, 1.3),
    "ghostnetv2_100": _row(V2, 1.0, gated_from=3),
    "ghostnetv2_130": _row(V2, 1.3, gated_from=3),
    "ghostnetv2_160": _row(V2, 1.6, gated_from=3),
}

NAMES: Rules = {
    **{"^stem/conv": "conv_stem", "^stem/norm": "bn1", "^dense$": "conv_head", "^head$": "classifier"},
    r"^stage(\d+)_block(\d+)": lambda m: f"blocks.{int(m[1]) - 1}.{int(m[2]) - 1}",
    **{"depthwise/conv": "conv_dw", "depthwise/norm": "bn_dw", "fc1": "conv_reduce", "fc2": "conv_expand"},
    **{"primary": "primary_conv", "cheap": "cheap_operation", r"gate(\d)": r"short_conv\1"},
    r"(short\w+)(\d)/(conv|norm)": lambda m: f"{m[1]}.{2 * int(m[2]) - 2 + (m[3] == 'norm')}",
    **{"/last/conv": ".conv", "/last/norm": ".bn1", "/conv$": ".0", "/norm$": ".1"},
}


def _timm_name(path: str, model: GhostNet) -> str:
    """'last' is the only block of a stage there."""
    return substitute(NAMES)(re.sub("^last", f"stage{len(model.stages) + 1}_block1/last", path))


TORCH_NAMES = {GhostNet: TorchNames(_timm_name, convolved=(r".*/se/fc\d", "dense"))}
