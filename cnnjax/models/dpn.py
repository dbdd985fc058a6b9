"""Dual path networks: each block adds to some channels, as a ResNet, and appends others, as a DenseNet.

Chen, Li, Xiao, Jin, Yan, Feng 2017, "Dual path networks", arXiv:1707.01629, section 4 and table 1 (`dpn92`,
`dpn98`; `dpn131` in table 2); the others, batch normalization's epsilon of 1e-3 and all names are those of
the released nets and of timm. Blocks are pre-activated: normalization, ReLU, convolution. Kernels are
He-normal with fan-out, `head` is LeCun-normal.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, logits
from cnnjax.models.net import Constructor, Net, he_fan_out
from cnnjax.models.variants import Preset, Rules, TorchNames, Variant, substitute, timm_preset

WIDTHS = (64, 128, 256, 512)  # of the residual path, times `expansion`


class NormConv(nn.Module):
    """Normalization, ReLU and convolution."""

    features: int
    kernel_size: int
    conv: Constructor
    norm_relu: Constructor
    strides: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm_relu(name="norm")(x)
        padding = self.kernel_size // 2
        conv = partial(self.conv, strides=self.strides, padding=padding, groups=self.groups, name="conv")
        return conv(self.features, self.kernel_size)(x)


class OneEnd(nn.Module):
    """The end of a block: one 1x1 convolution for both paths."""

    residual: int
    appended: int
    conv: Constructor
    norm_relu: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.norm_relu(name="norm")(x)
        x = self.conv(self.residual + self.appended, 1, name="conv")(x)
        return x[..., : self.residual], x[..., self.residual :]


class TwoEnds(OneEnd):
    """The end of a block of `dpn68b`: a 1x1 convolution for each path."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.norm_relu(name="norm")(x)
        return self.conv(self.residual, 1, name="add")(x), self.conv(self.appended, 1, name="append")(x)


class DualPathBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1; adds to the first `residual` channels and appends `appended` to the others.

    The first block of a stage projects its input to the channels of both paths, 2 * `appended` of the second.
    """

    inner: int
    residual: int
    appended: int
    groups: int
    strides: int
    projects: bool
    unit: Constructor
    end: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        old = x
        if self.projects:
            old = self.unit(self.residual + 2 * self.appended, 1, strides=self.strides, name="project")(x)
        y = self.unit(self.inner, 1, name="unit1")(x)
        y = self.unit(self.inner, 3, strides=self.strides, groups=self.groups, name="unit2")(y)
        add, append = self.end(self.residual, self.appended, name="end")(y)
        return jnp.concatenate([old[..., : self.residual] + add, old[..., self.residual :], append], axis=-1)


class DPN(Net):
    """Stem, four stages of dual path blocks, global average pooling, `head`. Takes images of any size."""

    stage_sizes: tuple[int, ...] = (3, 4, 20, 3)
    appended: tuple[int, ...] = (16, 32, 24, 128)  # by each block of a stage
    inner: int = 96  # channels of the 3x3 convolutions in the first stage, later 2, 4 and 8 times as many
    groups: int = 32  # of those
    stem_width: int = 64
    stem_size: int = 7  # of its kernel
    expansion: int = 4
    end: Constructor = OneEnd

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm_relu = self.norm_layer(BatchNorm, train, act=ops.relu, epsilon=1e-3)
        unit = partial(NormConv, conv=conv, norm_relu=norm_relu)
        block = partial(DualPathBlock, unit=unit, end=partial(self.end, conv=conv, norm_relu=norm_relu))
        x = image.astype(self.dtype)  # 224 224 3
        x = ConvNorm(self.stem_width, self.stem_size, 2, conv=conv, norm=norm_relu, name="stem")(x)
        x = ops.max_pool(x, 3, 2, padding=1)  # 56 56 64
        for i, (size, appended) in enumerate(zip(self.stage_sizes, self.appended, strict=True)):
            # of dpn92: 56 56 336, 28 28 704, 14 14 1552, 7 7 2688
            stage = partial(block, self.inner << i, self.expansion * WIDTHS[i], appended, self.groups)
            for j in range(1, size + 1):
                strides = 2 if i > 0 and j == 1 else 1
                x = stage(strides, projects=j == 1, name=f"stage{i + 1}_block{j}")(x)
        x = ops.global_avg_pool(norm_relu(name="norm")(x))  # 2688
        return logits(x, self.num_classes, self.dtype)


def _row(net: partial, stage_sizes: tuple[int, ...], preset: Preset | None = None) -> Variant:
    build = partial(net, stage_sizes=stage_sizes)
    return Variant(build, "Chen et al. 2017, 1707.01629", preset or _mxnet)


# That of the weights released for MXNet.
_mxnet = dataclasses.replace(
    timm_preset((224, 224, 3), 1000, 0.875, "bicubic"),
    mean=(124 / 255, 117 / 255, 104 / 255),
    std=(1 / (0.0167 * 255),) * 3,
)
_small = partial(DPN, appended=(16, 32, 32, 64), inner=128, expansion=1, stem_width=10, stem_size=3)
_large = partial(DPN, appended=(16, 32, 32, 128), inner=160, groups=40, stem_width=128)
_107 = partial(DPN, appended=(20, 64, 64, 128), inner=200, groups=50, stem_width=128)
VARIANTS = {
    "dpn68": _row(_small, (3, 4, 12, 3)),
    "dpn68b": _row(
        partial(_small, end=TwoEnds), (3, 4, 12, 3), timm_preset((224, 224, 3), 1000, 0.95, "bicubic")
    ),
    "dpn92": _row(partial(DPN), (3, 4, 20, 3)),
    "dpn98": _row(partial(_large, stem_width=96), (3, 6, 20, 3)),
    "dpn131": _row(_large, (4, 8, 28, 3)),
    "dpn107": _row(_107, (4, 8, 20, 3)),
}

_names: Rules = {
    r"^stage(\d+)_block(\d+)": lambda m: f"features.conv{int(m[1]) + 1}_{m[2]}",
    **{"conv2_1/project": "conv2_1.c1x1_w_s1", "/project/": ".c1x1_w_s2.", "/unit1/": ".c1x1_a."},
    **{"/unit2/": ".c3x3_b.", "/end/add$": ".c1x1_c1", "/end/append$": ".c1x1_c2", "/end/": ".c1x1_c."},
    **{"^stem/": "features.conv1_1.", "^norm$": "features.conv5_bn_ac.norm", "norm$": "bn"},
    "^head$": "classifier",
}
TORCH_NAMES = {DPN: TorchNames(substitute(_names), convolved=("head",))}
