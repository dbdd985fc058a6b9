"""GoogLeNet, the first Inception network.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich 2014, "Going deeper with
convolutions", 1409.4842, table 1; cells as in its figure 2 (b), `googlenet_naive` as in 2 (a).

The paper names neither padding nor the form of local response normalization; both follow Caffe's
bvlc_googlenet, whose layers have the paper's sizes: convolutions padded by half their kernel, poolings
rounded up, LRN in Caffe's form (alpha divided by n, k = 1), kernels uniform with variance 1 / fan-in and
biases 0.2. `googlenet_bn` has batch normalization after each convolution instead of LRN and biases
(1502.03167), and He-normal kernels. `googlenet_torchvision` is torchvision's net: a 3x3 kernel in the 5x5
branch, the last pooling 2x2, dropout 0.2, the auxiliary heads' pooling adaptive, images scaled to -1..1.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.models.layers import Conv, ConvNorm, Dense, Relu, conv_unit, logits
from cnnjax.models.net import Activation, Constructor, Dtype, Net, check_stem, he_normal, scaled
from cnnjax.models.variants import CIFAR, HALF, Preset, TorchNames, Variant, substitute

# Of each cell: 1x1, 1x1 before the 3x3, 3x3, 1x1 before the 5x5, 5x5, 1x1 after the pooling.
CELLS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY = {"4a": "aux1", "4d": "aux2"}

xavier_caffe = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
bias_caffe = nn.initializers.constant(0.2)
local_response_norm = partial(ops.local_response_norm_caffe, n=5, alpha=1e-4, beta=0.75)
pool = partial(ops.max_pool, window=3, strides=2, ceil=True)


class InceptionCell(nn.Module):
    """Four branches side by side, the larger kernels behind 1x1 reductions (figure 2 b)."""

    widths: tuple[int, ...]
    unit: Constructor
    kernel_size: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width1, reduced3, width3, reduced5, width5, projected = self.widths
        a = self.unit(width1, name="branch1x1")(x)
        b = self.unit(reduced3, name="branch3x3_reduce")(x)
        b = self.unit(width3, 3, name="branch3x3")(b)
        c = self.unit(reduced5, name="branch5x5_reduce")(x)
        c = self.unit(width5, self.kernel_size, name="branch5x5")(c)
        d = self.unit(projected, name="branch_pool")(ops.max_pool(x, 3, 1, padding=1))
        return jnp.concatenate([a, b, c, d], axis=-1)


class NaiveCell(InceptionCell):
    """Figure 2 (a): no 1x1 reductions, so all input channels also leave through the pooling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width1, _, width3, _, width5, _ = self.widths
        a = self.unit(width1, name="branch1x1")(x)
        b = self.unit(width3, 3, name="branch3x3")(x)
        c = self.unit(width5, self.kernel_size, name="branch5x5")(x)
        d = ops.max_pool(x, 3, 1, padding=1)
        return jnp.concatenate([a, b, c, d], axis=-1)


class ImageNetStem(nn.Module):
    """The layers before the first cell."""

    unit: Constructor
    response_norm: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.unit(64, 7, 2, name="conv1")(x)  # 112 112 64
        x = self.response_norm(pool(x))  # 56 56 64
        x = self.unit(64, 1, name="conv2")(x)  # 56 56 64
        x = self.unit(192, 3, name="conv3")(x)  # 56 56 192
        return pool(self.response_norm(x))  # 28 28 192


class CifarStem(ImageNetStem):
    """The same convolutions at the image's own size: a 3x3 for the 7x7/2, no pooling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.unit(64, 3, name="conv1")(x)  # 32 32 64
        x = self.unit(64, 1, name="conv2")(self.response_norm(x))  # 32 32 64
        x = self.unit(192, 3, name="conv3")(x)  # 32 32 192
        return self.response_norm(x)  # 32 32 192


class AuxiliaryHead(nn.Module):
    """A classifier on 4a or 4d (section 5)."""

    unit: Constructor
    dense: Constructor
    pool: Activation
    num_classes: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.pool(x)  # 4 4 512
        x = self.unit(128, name="conv")(x)  # 4 4 128
        x = x.reshape(x.shape[0], -1)  # 2048
        x = ops.relu(self.dense(1024, name="dense")(x))  # 1024
        x = nn.Dropout(0.7, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=xavier_caffe)


STEMS = {"imagenet": ImageNetStem, "cifar": CifarStem}
aux_pool = partial(ops.avg_pool, window=5, strides=3)


class GoogLeNet(Net):
    """Nine Inception cells; takes images from 31x31 on (imagenet; torchvision's 15x15) or 4x4 on (cifar).

    While training each auxiliary head sows its float32 logits [B, K] as intermediate `aux_logits`, which the
    paper weighs 0.3; its 5x5/3 pooling needs images from 79x79 on (cifar 10x10).
    """

    cell: Constructor = InceptionCell
    batch_norm: bool = False
    stem: str = "imagenet"  # "cifar" is for images that it would shrink to nothing
    width: float = 1.0  # times all channels
    last_pool: int = 3  # the window of the last max pooling
    dropout_rate: float = 0.4
    aux_pool: Activation = aux_pool  # to 4x4, before the auxiliary heads
    aux_logits: bool | tuple[str, ...] = False  # True: with both heads; or those on some of "4a", "4d"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        unit, stem = self._unit(train), STEMS[check_stem(self.stem, image)]
        response_norm = ops.activation("identity") if self.batch_norm else local_response_norm

        def cell(name: str) -> nn.Module:
            return self.cell(CELLS[name], unit, name=f"cell{name}")

        x = image.astype(self.dtype)  # 224 224 3
        x = stem(unit, response_norm, name="stem")(x)  # 28 28 192
        x = cell("3a")(x)  # 28 28 256
        x = cell("3b")(x)  # 28 28 480
        x = pool(x)  # 14 14 480
        x = cell("4a")(x)  # 14 14 512
        self._auxiliary("4a", x, unit, train)
        x = cell("4b")(x)  # 14 14 512
        x = cell("4c")(x)  # 14 14 512
        x = cell("4d")(x)  # 14 14 528
        self._auxiliary("4d", x, unit, train)
        x = cell("4e")(x)  # 14 14 832
        x = pool(x, window=self.last_pool)  # 7 7 832
        x = cell("5a")(x)  # 7 7 832
        x = cell("5b")(x)  # 7 7 1024
        x = ops.global_avg_pool(x)  # 1024
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=xavier_caffe)

    def _unit(self, train: bool) -> Constructor:
        """Convolution and ReLU, with biases or with batch normalization between the two."""
        if self.batch_norm:
            return conv_unit(self, train, he_normal, self.width)
        conv = partial(Conv, kernel_init=xavier_caffe, bias_init=bias_caffe, dtype=self.dtype)
        return scaled(partial(ConvNorm, conv=conv, norm=Relu), self.width)

    def _auxiliary(self, cell: str, x: jax.Array, unit: Constructor, train: bool) -> None:
        cells = tuple(AUXILIARY) if self.aux_logits is True else self.aux_logits or ()
        if not set(cells) <= set(AUXILIARY):
            raise UserError(f"aux_logits {self.aux_logits!r}: allowed are True, False or some of '4a', '4d'")
        if cell not in cells or not (train or self.is_initializing()):
            return
        dense = partial(Dense, kernel_init=xavier_caffe, bias_init=bias_caffe, dtype=self.dtype)
        head = partial(AuxiliaryHead, unit, scaled(dense, self.width), self.aux_pool)
        y = head(self.num_classes, self.dtype, name=AUXILIARY[cell])(x, train=train)
        if train:
            self.sow("intermediates", "aux_logits", y)


batch_norm = partial(GoogLeNet, batch_norm=True)
cell3x3, aux_pool4x4 = partial(InceptionCell, kernel_size=3), partial(ops.adaptive_avg_pool, output_size=4)
torchvision = partial(batch_norm, cell=cell3x3, last_pool=2, dropout_rate=0.2, aux_pool=aux_pool4x4)
small = partial(batch_norm, stem="cifar", width=0.25)
PAPER, ONE_CROP = "Szegedy et al. 2014, 1409.4842", "ImageNet 1-crop"
PUBLISHED = (PAPER, Preset(), None, 89.93, ONE_CROP)
WITH_BN = ("Szegedy et al. 2015, 1512.00567, table 3", Preset(), 73.2, None, ONE_CROP)
_torchvision = Preset(mean=HALF, std=HALF)
TORCHVISION = ("torchvision", _torchvision, 69.778, 89.530, f"{ONE_CROP}, torchvision V1")

VARIANTS = {
    "googlenet": Variant(GoogLeNet, *PUBLISHED),
    "googlenet_with_aux": Variant(partial(GoogLeNet, aux_logits=True), *PUBLISHED),
    "googlenet_bn": Variant(batch_norm, *WITH_BN),
    "googlenet_naive": Variant(partial(GoogLeNet, cell=NaiveCell), f"{PAPER}, figure 2a"),
    "googlenet_torchvision": Variant(torchvision, *TORCHVISION),
    "googlenet_torchvision_with_aux": Variant(partial(torchvision, aux_logits=True), *TORCHVISION),
    "googlenet_cifar": Variant(small, f"{PAPER}, a quarter as wide", CIFAR),
}

NAMES = {
    **{"norm$": "bn", "^stem/": "", "^cell": "inception", "branch1x1": "branch1", "branch_pool": "branch4.1"},
    **{"branch3x3_reduce": "branch2.0", "branch3x3": "branch2.1"},
    **{"branch5x5_reduce": "branch3.0", "branch5x5": "branch3.1"},
    **{r"^(aux\d)/dense$": r"\1.fc1", r"^(aux\d)/head$": r"\1.fc2", "^head$": "fc"},
}
FLATTENED = {"aux1/dense": (4, 4), "aux2/dense": (4, 4)}
TORCH_NAMES = {GoogLeNet: TorchNames(substitute(NAMES), flattened=FLATTENED, extra=(r"aux\d\.",))}
