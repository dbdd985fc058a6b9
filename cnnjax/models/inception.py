"""Inception v2 and v3.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015, "Rethinking the Inception architecture for computer vision",
1512.00567; Ioffe, Szegedy 2015, "Batch normalization", 1502.03167.

`inception_v3`: 1512.00567 gives no widths inside its cells; these, and the order of the cells, are those of
the released network as torchvision has it. `aux_logits` is the auxiliary head on the last 17x17 cell.

`inception_v2`: GoogLeNet with each 5x5 as two 3x3 (section 3.1 there) and with batch normalization, as
1502.03167, figure 5, gives it width by width; 1512.00567 lists it as BN-Inception, and prints no widths for
its own "Inception-v2". The widths of 4c and 4d sum to 608, as in the released network, where the figure says
576. The first convolution is a full one (the paper's is separable); poolings of stride 2 are padded by one
(the released ones round up), so that odd sizes fit too.

Convolutions have no biases beside batch normalization. Kernels are drawn from a normal with standard
deviation 0.1, truncated at two of them, as in the released code.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.layers import conv_unit, logits
from cnnjax.models.net import Activation, Constructor, Dtype, Net
from cnnjax.models.variants import HALF, Preset, TorchNames, Variant, substitute

truncated = nn.initializers.truncated_normal
pool = partial(ops.max_pool, window=3, strides=2)
pool_same = partial(ops.max_pool, window=3, strides=1, padding=1)
average_same = partial(ops.avg_pool, window=3, strides=1, padding=1, count_padding=True)


def chain(unit: Constructor, x: jax.Array, name: str, *layers: tuple) -> jax.Array:
    """Units NAME_1, NAME_2, ... in turn, each of these features, kernel size, stride and padding."""
    for i, layer in enumerate(layers, 1):
        x = unit(*layer, name=f"{name}_{i}")(x)
    return x


class Part(nn.Module):
    """A part of a net, made of `unit`: convolution, normalization and ReLU."""

    unit: Constructor


class CellA(Part):
    """Figure 5: the 5x5 branch beside its factorization into two 3x3, on 35x35 maps."""

    projected: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = self.unit
        a = unit(64, name="branch1x1")(x)
        b = chain(unit, x, "branch5x5", (48,), (64, 5))
        c = chain(unit, x, "branch3x3dbl", (64,), (96, 3), (96, 3))
        d = unit(self.projected, name="branch_pool")(average_same(x))
        return jnp.concatenate([a, b, c, d], axis=-1)


class ReductionB(Part):
    """Figure 10: half the size by convolution and pooling side by side, 35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.unit(384, 3, 2, "valid", name="branch3x3")(x)
        b = chain(self.unit, x, "branch3x3dbl", (64,), (96, 3), (96, 3, 2, "valid"))
        return jnp.concatenate([a, b, pool(x)], axis=-1)


class CellC(Part):
    """Figure 6: 7x7 as 1x7 and 7x1, on 17x17 maps; `width` of the channels between them."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit, width = self.unit, self.width
        a = unit(192, name="branch1x1")(x)
        b = chain(unit, x, "branch7x7", (width,), (width, (1, 7)), (192, (7, 1)))
        twice = (width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7))
        c = chain(unit, x, "branch7x7dbl", (width,), *twice)
        d = unit(192, name="branch_pool")(average_same(x))
        return jnp.concatenate([a, b, c, d], axis=-1)


class ReductionD(Part):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = chain(self.unit, x, "branch3x3", (192,), (320, 3, 2, "valid"))
        seven = (192, (1, 7)), (192, (7, 1))
        b = chain(self.unit, x, "branch7x7x3", (192,), *seven, (192, 3, 2, "valid"))
        return jnp.concatenate([a, b, pool(x)], axis=-1)


class CellE(Part):
    """Figure 7: 1x3 and 3x1 side by side, on 8x8 maps."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = self.unit
        a = unit(320, name="branch1x1")(x)
        b = unit(384, name="branch3x3_1")(x)
        b1, b2 = unit(384, (1, 3), name="branch3x3_2a")(b), unit(384, (3, 1), name="branch3x3_2b")(b)
        c = chain(unit, x, "branch3x3dbl", (448,), (384, 3))
        c1, c2 = unit(384, (1, 3), name="branch3x3dbl_3a")(c), unit(384, (3, 1), name="branch3x3dbl_3b")(c)
        d = unit(192, name="branch_pool")(average_same(x))
        return jnp.concatenate([a, b1, b2, c1, c2, d], axis=-1)


class StemV3(Part):
    """The convolutions before the first cell, padded only where table 1 says so."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = self.unit
        x = unit(32, 3, 2, "valid", name="conv1a_3x3")(x)  # 149 149 32
        x = unit(32, 3, 1, "valid", name="conv2a_3x3")(x)  # 147 147 32
        x = unit(64, 3, name="conv2b_3x3")(x)  # 147 147 64
        x = pool(x)  # 73 73 64
        x = unit(80, name="conv3b_1x1")(x)  # 73 73 80
        x = unit(192, 3, 1, "valid", name="conv4a_3x3")(x)  # 71 71 192
        return pool(x)  # 35 35 192


class AuxiliaryHead(Part):
    """A classifier with batch normalization on the last 17x17 cell (section 4)."""

    unit2: Constructor
    num_classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ops.avg_pool(x, 5, 3)  # 5 5 768
        x = self.unit(128, name="conv0")(x)  # 5 5 128
        x = self.unit2(768, 5, 1, "valid", name="conv1")(x)  # 1 1 768
        x = ops.global_avg_pool(x)  # 768
        return logits(x, self.num_classes, self.dtype, kernel_init=truncated(0.001))


class InceptionV3(Net):
    """Inception v3; takes images from 75x75 on, 299x299 in the paper (with auxiliary head from 299)."""

    width: float = 1.0  # times all channels
    dropout_rate: float = 0.5
    aux_logits: bool = False  # with a head that sows float32 `aux_logits` [B, K] while training

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        unit = conv_unit(self, train, truncated(0.1), self.width)
        x = image.astype(self.dtype)  # 299 299 3
        x = StemV3(unit, name="stem")(x)  # 35 35 192
        x = CellA(unit, 32, name="mixed5b")(x)  # 35 35 256
        x = CellA(unit, 64, name="mixed5c")(x)  # 35 35 288
        x = CellA(unit, 64, name="mixed5d")(x)  # 35 35 288
        x = ReductionB(unit, name="mixed6a")(x)  # 17 17 768
        x = CellC(unit, 128, name="mixed6b")(x)  # 17 17 768
        x = CellC(unit, 160, name="mixed6c")(x)  # 17 17 768
        x = CellC(unit, 160, name="mixed6d")(x)  # 17 17 768
        x = CellC(unit, 192, name="mixed6e")(x)  # 17 17 768
        if self.aux_logits and (train or self.is_initializing()):
            unit2 = conv_unit(self, train, truncated(0.01), self.width)
            y = AuxiliaryHead(unit, unit2, self.num_classes, self.dtype, name="aux")(x)
            if train:
                self.sow("intermediates", "aux_logits", y)
        x = ReductionD(unit, name="mixed7a")(x)  # 8 8 1280
        x = CellE(unit, name="mixed7b")(x)  # 8 8 2048
        x = CellE(unit, name="mixed7c")(x)  # 8 8 2048
        x = ops.global_avg_pool(x)  # 2048
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=truncated(0.1))


class CellV2(Part):
    """GoogLeNet's cell with its 5x5 as two 3x3."""

    # 1x1, 1x1 before the 3x3, 3x3, 1x1 before the two 3x3, each of them, 1x1 after the pooling.
    widths: tuple[int, ...]
    pool: Activation = average_same

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width1, reduced3, width3, reduced_double, width_double, projected = self.widths
        a = self.unit(width1, name="branch1x1")(x)
        b = self.unit(reduced3, name="branch3x3_reduce")(x)
        b = self.unit(width3, 3, name="branch3x3")(b)
        c = self.unit(reduced_double, name="branch3x3dbl_reduce")(x)
        c = chain(self.unit, c, "branch3x3dbl", (width_double, 3), (width_double, 3))
        d = self.unit(projected, name="branch_pool")(self.pool(x))
        return jnp.concatenate([a, b, c, d], axis=-1)


class ReductionV2(Part):
    """Half the size; all input channels also leave through the pooling. `widths` as the cell's inner four."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        reduced3, width3, reduced_double, width_double = self.widths
        b = self.unit(reduced3, name="branch3x3_reduce")(x)
        b = self.unit(width3, 3, 2, name="branch3x3")(b)
        c = self.unit(reduced_double, name="branch3x3dbl_reduce")(x)
        c = chain(self.unit, c, "branch3x3dbl", (width_double, 3), (width_double, 3, 2))
        return jnp.concatenate([b, c, pool(x, padding=1)], axis=-1)


class StemV2(Part):
    """GoogLeNet's stem with batch normalization."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.unit(64, 7, 2, name="conv1")(x)  # 112 112 64
        x = pool(x, padding=1)  # 56 56 64
        x = self.unit(64, name="conv2")(x)  # 56 56 64
        x = self.unit(192, 3, name="conv3")(x)  # 56 56 192
        return pool(x, padding=1)  # 28 28 192


class InceptionV2(Net):
    """Inception v2; takes images of any size, 224x224 in the paper. `width` multiplies all channels."""

    width: float = 1.0
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        unit = conv_unit(self, train, truncated(0.1), self.width)
        x = image.astype(self.dtype)  # 224 224 3
        x = StemV2(unit, name="stem")(x)  # 28 28 192
        x = CellV2(unit, (64, 64, 64, 64, 96, 32), name="cell3a")(x)  # 28 28 256
        x = CellV2(unit, (64, 64, 96, 64, 96, 64), name="cell3b")(x)  # 28 28 320
        x = ReductionV2(unit, (128, 160, 64, 96), name="cell3c")(x)  # 14 14 576
        x = CellV2(unit, (224, 64, 96, 96, 128, 128), name="cell4a")(x)  # 14 14 576
        x = CellV2(unit, (192, 96, 128, 96, 128, 128), name="cell4b")(x)  # 14 14 576
        x = CellV2(unit, (160, 128, 160, 128, 160, 128), name="cell4c")(x)  # 14 14 608
        x = CellV2(unit, (96, 128, 192, 160, 192, 128), name="cell4d")(x)  # 14 14 608
        x = ReductionV2(unit, (128, 192, 192, 256), name="cell4e")(x)  # 7 7 1056
        x = CellV2(unit, (352, 192, 320, 160, 224, 128), name="cell5a")(x)  # 7 7 1024
        x = CellV2(unit, (352, 192, 320, 192, 224, 128), pool_same, name="cell5b")(x)  # 7 7 1024
        x = ops.global_avg_pool(x)  # 1024
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=truncated(0.1))


V2 = ("Ioffe, Szegedy 2015, 1502.03167, figure 5", Preset(), 74.8, 92.2, "ImageNet 1-crop")
V3_PRESET = Preset((299, 299, 3), resize=342, mean=HALF, std=HALF)
V3 = ("Szegedy et al. 2015, 1512.00567", V3_PRESET, 77.294, 93.450, "ImageNet 1-crop, torchvision V1")

VARIANTS = {
    "inception_v2": Variant(InceptionV2, *V2),
    "inception_v3": Variant(InceptionV3, *V3),
    "inception_v3_with_aux": Variant(partial(InceptionV3, aux_logits=True), *V3),
}

NAMES = {r"norm$": "bn", "^stem/conv": "Conv2d_", "^mixed": "Mixed_", "^aux/": "AuxLogits/", "head$": "fc"}
TORCH_NAMES = {InceptionV3: TorchNames(substitute(NAMES), extra=(r"AuxLogits\.",))}
