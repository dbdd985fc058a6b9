"""Xception: Inception's cells taken to their limit, convolutions of one filter a channel and then 1x1.

Chollet 2016, "Xception: deep learning with depthwise separable convolutions", 1610.02357, figure 5. The nets
with a number are the aligned ones of Chen et al. 2018, 1802.02611, figure 4: a strided convolution for each
pooling, three separable convolutions a block, normalization between depthwise and pointwise; those with
a p are timm's, with normalization and ReLU before the convolutions.

Names, padding (strided layers by one pixel on every side; none in the stem of `xception`) and the epsilons of
batch normalization are timm's. Kernels are He-normal (fan-out), the classifier's LeCun-normal.
"""

from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import check_count
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, DropPath, logits
from cnnjax.models.net import Activation, Constructor, Net, he_fan_out
from cnnjax.models.variants import Rules, TorchNames, Variant, inception_preset, place, substitute

Widths = tuple[int, ...]


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution."""

    features: int
    conv: Constructor
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = self.conv(width, 3, self.strides, padding=1, groups=width, name="depthwise")(x)
        return self.conv(self.features, 1, name="pointwise")(x)


class Block(nn.Module):
    """ReLU, separable convolution, normalization for each of `widths`; pooled; plus a shortcut."""

    widths: Widths
    strides: int
    conv: Constructor
    norm: Constructor
    first_act: Activation = ops.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, shortcut = self.first_act(x), x
        for i, width in enumerate(self.widths, 1):
            y = ops.relu(y) if i > 1 else y
            y = self.norm(name=f"norm{i}")(Separable(width, self.conv, name=f"conv{i}")(y))
        if self.strides == 1:
            return y + shortcut
        unit = partial(ConvNorm, conv=self.conv, norm=self.norm, name="shortcut")
        return ops.max_pool(y, 3, self.strides, padding=1) + unit(y.shape[-1], 1, self.strides)(shortcut)


class Xception(Net):
    """Takes images from 7x7 on, 299x299 in the paper. `width` multiplies all channels."""

    width: float = 1.0
    middle: int = 8  # blocks of the middle flow
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        check_count("middle", self.middle, 0)
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm = self.norm_layer(BatchNorm, train)
        norm_relu = partial(norm, act=ops.relu)
        unit = partial(ConvNorm, conv=conv, norm=norm_relu)
        w = [max(round(self.width * width), 1) for width in (32, 64, 128, 256, 728, 1024, 1536, 2048)]
        first = partial(Block, first_act=ops.activation("identity"))
        x = image.astype(self.dtype)  # 299 299 3
        x = unit(w[0], 3, 2, "valid", name="stem1")(x)  # 149 149 32
        x = unit(w[1], 3, 1, "valid", name="stem2")(x)  # 147 147 64
        x = first((w[2], w[2]), 2, conv, norm, name="block1")(x)  # 74 74 128
        x = Block((w[3], w[3]), 2, conv, norm, name="block2")(x)  # 37 37 256
        x = Block((w[4], w[4]), 2, conv, norm, name="block3")(x)  # 19 19 728
        for i in range(4, 4 + self.middle):
            x = Block((w[4],) * 3, 1, conv, norm, name=f"block{i}")(x)  # 19 19 728
        x = Block((w[4], w[5]), 2, conv, norm, name=f"block{4 + self.middle}")(x)  # 10 10 1024
        x = norm_relu(name="norm3")(Separable(w[6], conv, name="conv3")(x))  # 10 10 1536
        x = norm_relu(name="norm4")(Separable(w[7], conv, name="conv4")(x))  # 10 10 2048
        x = ops.global_avg_pool(x)  # 2048
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype)


# --- Aligned ----------------------------------------------------------------------------------------------


class NormedSeparable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, each normalized by `norm`, which may hold a ReLU."""

    features: int
    conv: Constructor
    norm: Constructor
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit, width = partial(ConvNorm, conv=self.conv, norm=self.norm), x.shape[-1]
        x = unit(width, 3, self.strides, groups=width, name="depthwise")(x)
        return unit(self.features, name="pointwise")(x)


class AlignedBlock(nn.Module):
    """ReLU before each of three normalized separable convolutions, the last strided; plus a shortcut."""

    widths: Widths
    strides: int
    conv: Constructor
    norm: Constructor
    norm_relu: Constructor
    drop_path: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for i, width in enumerate(self.widths, 1):
            strides = self.strides if i == 3 else 1
            y = NormedSeparable(width, self.conv, self.norm, strides, name=f"conv{i}")(ops.relu(y))
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            unit = partial(ConvNorm, conv=self.conv, norm=self.norm, name="shortcut")
            x = unit(y.shape[-1], 1, self.strides)(x)
        return self.drop_path(y) + x


class AlignedEnd(AlignedBlock):
    """The last block: ReLU after each normalization, and no shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths, 1):
            x = NormedSeparable(width, self.conv, self.norm_relu, name=f"conv{i}")(x)
        return x


class PreactBlock(AlignedBlock):
    """Normalization and ReLU before three separable convolutions; the shortcut leaves after the first."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, y = self._branch(x)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(y.shape[-1], 1, self.strides, name="shortcut")(x)
        return self.drop_path(y) + x

    def _branch(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = y = self.norm_relu(name="norm1")(x)
        for i, width in enumerate(self.widths, 1):
            y = self.norm_relu(name=f"norm{i}")(y) if i > 1 else y
            y = Separable(width, self.conv, self.strides if i == 3 else 1, name=f"conv{i}")(y)
        return x, y


class PreactEnd(PreactBlock):
    """The last block: no shortcut, and a ReLU after it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.relu(self._branch(x)[1])


# The widths and stride of each block before the middle flow.
ENTRY = (((128,) * 3, 2), ((256,) * 3, 2), ((728,) * 3, 2))
LONG_ENTRY = (((128,) * 3, 2), ((256,) * 3, 1), ((256,) * 3, 2), ((728,) * 3, 1), ((728,) * 3, 2))


class AlignedXception(Net):
    """Takes images of any size, 299x299 in timm."""

    entry: tuple[tuple[Widths, int], ...] = ENTRY
    middle: tuple[Widths, ...] = ((728,) * 3,) * 8
    end: tuple[Widths, Widths] = ((728, 1024, 1024), (1536, 1536, 2048))
    stem_widths: tuple[int, int] = (32, 64)
    blocks: tuple[Constructor, Constructor] = (AlignedBlock, AlignedEnd)  # all but the last, and the last
    epsilon: float = 1e-3  # of batch normalization
    drop_path_rate: float = 0.0  # the last block's: it grows linearly from 0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        norm = self.norm_layer(BatchNorm, train, epsilon=self.epsilon)
        norm_relu = partial(norm, act=ops.relu)
        unit = partial(ConvNorm, conv=conv, norm=norm_relu)
        rows = [*self.entry, *((widths, 1) for widths in self.middle), (self.end[0], 2), (self.end[1], 1)]
        x = image.astype(self.dtype)  # 299 299 3
        x = unit(self.stem_widths[0], 3, 2, name="stem1")(x)  # 150 150 32
        if self.blocks[0] is PreactBlock:
            x = conv(self.stem_widths[1], 3, padding=1, name="stem2")(x)  # 150 150 64
        else:
            x = unit(self.stem_widths[1], 3, name="stem2")(x)  # 150 150 64
        for i, (widths, strides) in enumerate(rows):  # 75 75 128 | 38 38 256 | 19 19 728 | 10 10 1024, 2048
            drop_path = DropPath(self.drop_path_rate * i / (len(rows) - 1), train)
            block = self.blocks[i == len(rows) - 1]
            x = block(widths, strides, conv, norm, norm_relu, drop_path, name=f"block{i + 1}")(x)
        return logits(ops.global_avg_pool(x), self.num_classes, self.dtype)


def _aligned(crop_pct: float, middle: int, net: Constructor = AlignedXception) -> Variant:
    build = partial(net, middle=((728,) * 3,) * middle)
    return Variant(build, "Chen et al. 2018, 1802.02611; timm", inception_preset(crop_pct))


_preact = partial(AlignedXception, blocks=(PreactBlock, PreactEnd))
VARIANTS = {
    "xception": Variant(
        Xception, "Chollet 2016, 1610.02357", inception_preset(0.8975), timm="legacy_xception"
    ),
    "xception41": _aligned(0.903, 8),
    "xception65": _aligned(0.94, 16),
    "xception71": _aligned(0.903, 16, partial(AlignedXception, entry=LONG_ENTRY)),
    "xception41p": _aligned(0.94, 8, partial(_preact, epsilon=1e-5)),
    "xception65p": _aligned(0.94, 16, _preact),
}


def _torch_name(path: str, model: Xception) -> str:
    """'block2/conv1/depthwise' -> 'block2.rep.1.conv1': a ReLU, convolution and normalization each time."""
    block, *layer = path.replace("depthwise", "conv1").split("/")
    if block == "head":
        return "fc"
    if block.startswith("stem"):
        return f"{'bn' if layer == ['norm'] else 'conv'}{block[-1]}"
    if not block.startswith("block"):  # conv3, norm3, conv4, norm4
        return ".".join((block.replace("norm", "bn"), *layer))
    if layer[0] == "shortcut":
        return f"{block}.skip{'bn' if layer[1] == 'norm' else ''}"
    index = 3 * (place(layer[0])[0] - 1) + layer[0].startswith("norm") + (block != "block1")
    return ".".join((block, "rep", str(index), *layer[1:]))


ALIGNED: Rules = {
    **{r"^stem(\d)/norm$": r"stem\1/bn", r"^stem(\d)": lambda m: f"stem/{int(m[1]) - 1}"},
    r"^block(\d+)": lambda m: f"blocks/{int(m[1]) - 1}",
    r"(conv\d)/([dp])\w+wise/norm$": r"stack/\1/bn_\2w",  # depthwise, pointwise
    r"(conv\d)/([dp])\w+wise(/conv)?$": r"stack/\1/conv_\2w",
    **{r"/norm1$": "/norm", r"/norm(\d)$": r"/stack/conv\1/norm", "shortcut/norm": "shortcut/bn"},
    "^head$": "head/fc",
}
TORCH_NAMES = {Xception: TorchNames(_torch_name), AlignedXception: TorchNames(substitute(ALIGNED))}
