"""Small Inception nets for 32x32 images whose cells differ in one factorized convolution alone.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015, "Rethinking the Inception architecture for computer vision",
1512.00567, section 3. The branch with the largest kernel is

- `inception_cifar_5x5`: one nxn convolution, n = 5;
- `inception_cifar_3x3`: (n - 1) / 2 convolutions 3x3 with ReLU between them (section 3.1);
- `inception_cifar_3x3_linear`: the same without ReLU between them (figure 2: 77.2 % with, 76.2 % without);
- `inception_cifar_1xn`: 1xn, then nx1, each with ReLU (section 3.2).

All see the same n x n pixels; with c channels in and out they have 25, 18, 18 and 10 c^2 weights for n = 5,
and 49, 27, 27 and 14 for n = 7. Batch normalization stands before each ReLU and where one is left out. The
net around the cells is this project's own. Kernels are He-normal, the classifier's LeCun-normal.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError, by_name
from cnnjax.models.layers import conv_unit, logits
from cnnjax.models.net import Constructor, Net, he_normal
from cnnjax.models.variants import CIFAR, Variant
from cnnjax.ops.shapes import Size

Units = tuple[tuple[Constructor, Size], ...]  # and their kernel sizes
# The units of the branch that sees n x n pixels; `linear` is `unit` without its ReLU.
LARGE: dict[str, Callable[[int, Constructor, Constructor], Units]] = {
    "nxn": lambda n, unit, linear: ((unit, n),),
    "3x3": lambda n, unit, linear: ((unit, 3),) * (n // 2),
    "3x3_linear": lambda n, unit, linear: (*((linear, 3),) * (n // 2 - 1), (unit, 3)),
    "1xn": lambda n, unit, linear: ((unit, (1, n)), (unit, (n, 1))),
}


class Large(nn.Module):
    """The branch with the largest kernel: its units in turn, all of `width` features."""

    width: int
    units: Units

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (unit, kernel_size) in enumerate(self.units, 1):
            x = unit(self.width, kernel_size, name=f"conv{i}")(x)
        return x


class Cell(nn.Module):
    """GoogLeNet's cell with four branches of the same width, one of them the `large` units."""

    width: int
    large: Units
    unit: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit, width = self.unit, self.width
        a = unit(width, name="branch1x1")(x)
        b = unit(width, name="branch3x3_reduce")(x)
        b = unit(width, 3, name="branch3x3")(b)
        c = unit(width, name="branch_large_reduce")(x)
        c = Large(width, self.large, name="branch_large")(c)
        d = unit(width, name="branch_pool")(ops.max_pool(x, 3, 1, padding=1))
        return jnp.concatenate([a, b, c, d], axis=-1)


class InceptionCifar(Net):
    """Stages of cells, each but the first at half the size; takes images from 4x4 on (three stages)."""

    large: str = "nxn"  # the branch with the largest kernel: a name of `LARGE`
    kernel_size: int = 5  # its n, odd
    widths: tuple[int, ...] = (16, 32, 64)  # channels of each of the four branches, stage by stage
    stage_size: int = 2  # cells of a stage

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size {self.kernel_size}: allowed are odd numbers from 3 on")
        unit = conv_unit(self, train, he_normal)
        linear = conv_unit(self, train, he_normal, act=ops.activation("identity"))
        large = by_name("large", self.large, LARGE)(self.kernel_size, unit, linear)
        x = image.astype(self.dtype)  # 32 32 3
        x = unit(2 * self.widths[0], 3, name="stem")(x)  # 32 32 32
        for i, width in enumerate(self.widths, 1):
            if i > 1:
                x = ops.max_pool(x, 2)  # 16 16 64, then 8 8 128
            for j in range(1, self.stage_size + 1):  # 32 32 64, then 16 16 128, then 8 8 256
                x = Cell(width, large, unit, name=f"stage{i}_block{j}")(x)
        x = ops.global_avg_pool(x)  # 256
        return logits(x, self.num_classes, self.dtype)


linear3x3 = partial(InceptionCifar, large="3x3_linear")
PAPER = "Szegedy et al. 2015, 1512.00567"
VARIANTS = {
    "inception_cifar_5x5": Variant(InceptionCifar, PAPER, CIFAR),
    "inception_cifar_3x3": Variant(partial(InceptionCifar, large="3x3"), f"{PAPER}, section 3.1", CIFAR),
    "inception_cifar_3x3_linear": Variant(linear3x3, f"{PAPER}, figure 2", CIFAR),
    "inception_cifar_1xn": Variant(partial(InceptionCifar, large="1xn"), f"{PAPER}, section 3.2", CIFAR),
}
