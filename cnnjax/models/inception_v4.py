"""Inception v4 and Inception-ResNet v2.

Szegedy, Ioffe, Vanhoucke, Alemi 2016, "Inception-v4, Inception-ResNet and the impact of residual connections
on learning", 1602.07261. `inception_v4` is its figure 9, with the stem of figure 3, the cells of figures 4 to
6 and the reductions of figures 7 and 8.

`inception_resnet_v2` is the released network: residual cells of figures 16, 17 and 19, each scaled down and
added (section 3.3), reductions of figures 7 and 18. Where the paper has v4's stem and 5, 10 and 5 cells, it
has v3's stem, a cell like v3's, and 10, 20 and 10 cells, the last unscaled and without ReLU; then a 1x1
convolution.

Branches are numbered from the left, as timm does. Convolutions have no biases beside batch normalization;
kernels are He-normal (fan-in), the classifier's LeCun-normal.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.inception import Part, StemV3, chain, pool
from cnnjax.models.layers import Conv, conv_unit, logits
from cnnjax.models.net import Activation, Constructor, Net, he_normal
from cnnjax.models.variants import Rules, TorchNames, Variant, inception_preset, substitute

average_same = partial(ops.avg_pool, window=3, strides=1, padding=1)  # of the pixels inside the image
ACROSS, DOWN = (1, 7), (7, 1)


def side_by_side(*maps: jax.Array) -> jax.Array:
    return jnp.concatenate(maps, axis=-1)


class Stem(Part):
    """Figure 3."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = self.unit
        x = unit(32, 3, 2, "valid", name="conv1")(x)  # 149 149 32
        x = unit(32, 3, 1, "valid", name="conv2")(x)  # 147 147 32
        x = unit(64, 3, name="conv3")(x)  # 147 147 64
        x = side_by_side(pool(x), unit(96, 3, 2, "valid", name="mixed3_conv")(x))  # 73 73 160
        a = chain(unit, x, "mixed4_branch0", (64,), (96, 3, 1, "valid"))
        b = chain(unit, x, "mixed4_branch1", (64,), (64, ACROSS), (64, DOWN), (96, 3, 1, "valid"))
        x = side_by_side(a, b)  # 71 71 192
        return side_by_side(unit(192, 3, 2, "valid", name="mixed5_conv")(x), pool(x))  # 35 35 384


class CellA(Part):
    """Figure 4, on 35x35 maps."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.unit(96, name="branch0")(x)
        b = chain(self.unit, x, "branch1", (64,), (96, 3))
        c = chain(self.unit, x, "branch2", (64,), (96, 3), (96, 3))
        d = self.unit(96, name="branch3_pool")(average_same(x))
        return side_by_side(a, b, c, d)


class ReductionA(Part):
    """Figure 7, from 35x35 to 17x17: `widths` k, l, m, n of its table 1."""

    widths: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, l, m, n = self.widths  # noqa: E741  # the paper's letters
        a = self.unit(n, 3, 2, "valid", name="branch0")(x)
        b = chain(self.unit, x, "branch1", (k,), (l, 3), (m, 3, 2, "valid"))
        return side_by_side(a, b, pool(x))


class CellB(Part):
    """Figure 5, on 17x17 maps."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.unit(384, name="branch0")(x)
        b = chain(self.unit, x, "branch1", (192,), (224, ACROSS), (256, DOWN))
        twice = (192, DOWN), (224, ACROSS), (224, DOWN), (256, ACROSS)
        c = chain(self.unit, x, "branch2", (192,), *twice)
        d = self.unit(128, name="branch3_pool")(average_same(x))
        return side_by_side(a, b, c, d)


class ReductionB(Part):
    """Figure 8, from 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = chain(self.unit, x, "branch0", (192,), (192, 3, 2, "valid"))
        b = chain(self.unit, x, "branch1", (256,), (256, ACROSS), (320, DOWN), (320, 3, 2, "valid"))
        return side_by_side(a, b, pool(x))


class CellC(Part):
    """Figure 6, on 8x8 maps: two branches end in 1x3 and 3x1 side by side."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = self.unit
        a = unit(256, name="branch0")(x)
        b = unit(384, name="branch1_0")(x)
        b1, b2 = unit(256, (1, 3), name="branch1_1a")(b), unit(256, (3, 1), name="branch1_1b")(b)
        c = unit(384, name="branch2_0")(x)
        c = unit(448, (3, 1), name="branch2_1")(c)
        c = unit(512, (1, 3), name="branch2_2")(c)
        c1, c2 = unit(256, (1, 3), name="branch2_3a")(c), unit(256, (3, 1), name="branch2_3b")(c)
        d = unit(256, name="branch3_pool")(average_same(x))
        return side_by_side(a, b1, b2, c1, c2, d)


class InceptionV4(Net):
    """Inception v4; takes images from 75x75 on, 299x299 in the paper. `width` multiplies all channels."""

    width: float = 1.0
    cells: tuple[int, int, int] = (4, 7, 3)  # A, B and C
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        unit = conv_unit(self, train, he_normal, self.width)
        count_a, count_b, count_c = self.cells
        x = image.astype(self.dtype)  # 299 299 3
        x = Stem(unit, name="stem")(x)  # 35 35 384
        for i in range(1, count_a + 1):
            x = CellA(unit, name=f"cell_a{i}")(x)  # 35 35 384
        x = ReductionA(unit, (192, 224, 256, 384), name="reduction_a")(x)  # 17 17 1024
        for i in range(1, count_b + 1):
            x = CellB(unit, name=f"cell_b{i}")(x)  # 17 17 1024
        x = ReductionB(unit, name="reduction_b")(x)  # 8 8 1536
        for i in range(1, count_c + 1):
            x = CellC(unit, name=f"cell_c{i}")(x)  # 8 8 1536
        x = ops.global_avg_pool(x)  # 1536
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype)


# --- With residual connections ----------------------------------------------------------------------------


class FirstCell(Part):
    """The cell before the residual ones, v3's with other widths: 35 35 192 to 35 35 320."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.unit(96, name="branch0")(x)
        b = chain(self.unit, x, "branch1", (48,), (64, 5))
        c = chain(self.unit, x, "branch2", (64,), (96, 3), (96, 3))
        d = self.unit(64, name="branch3_pool")(average_same(x))
        return side_by_side(a, b, c, d)


class ResidualCell(Part):
    """x and `scale` times its branches, a 1x1 convolution and then chains of units; `act` of their sum."""

    width0: int
    branches: tuple[tuple[tuple, ...], ...]
    project: Constructor
    scale: float
    act: Activation = ops.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        chains = [chain(self.unit, x, f"branch{i}", *units) for i, units in enumerate(self.branches, 1)]
        y = side_by_side(self.unit(self.width0, name="branch0")(x), *chains)
        y = self.project(x.shape[-1], 1, name="project")(y)
        return self.act(y * self.scale + x)


CELL_A = partial(ResidualCell, width0=32, branches=(((32,), (32, 3)), ((32,), (48, 3), (64, 3))))  # figure 16
CELL_B = partial(ResidualCell, width0=192, branches=(((128,), (160, ACROSS), (192, DOWN)),))  # figure 17
CELL_C = partial(ResidualCell, width0=192, branches=(((192,), (224, (1, 3)), (256, (3, 1))),))  # figure 19


class ResidualReductionB(Part):
    """Figure 18, from 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = chain(self.unit, x, "branch0", (256,), (384, 3, 2, "valid"))
        b = chain(self.unit, x, "branch1", (256,), (288, 3, 2, "valid"))
        c = chain(self.unit, x, "branch2", (256,), (288, 3), (320, 3, 2, "valid"))
        return side_by_side(a, b, c, pool(x))


class InceptionResNetV2(Net):
    """Inception-ResNet v2; takes images from 75x75 on, 299x299 in the paper."""

    width: float = 1.0  # times all channels
    cells: tuple[int, int, int] = (10, 20, 9)  # residual cells A, B and C but for the last
    dropout_rate: float = 0.2

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        unit = conv_unit(self, train, he_normal, self.width)
        project = partial(Conv, dtype=self.dtype)
        cell_a, cell_b, cell_c = (partial(cell, unit, project=project) for cell in (CELL_A, CELL_B, CELL_C))
        count_a, count_b, count_c = self.cells
        x = image.astype(self.dtype)  # 299 299 3
        x = StemV3(unit, name="stem")(x)  # 35 35 192
        x = FirstCell(unit, name="mixed5b")(x)  # 35 35 320
        for i in range(1, count_a + 1):
            x = cell_a(scale=0.17, name=f"cell_a{i}")(x)  # 35 35 320
        x = ReductionA(unit, (256, 256, 384, 384), name="reduction_a")(x)  # 17 17 1088
        for i in range(1, count_b + 1):
            x = cell_b(scale=0.1, name=f"cell_b{i}")(x)  # 17 17 1088
        x = ResidualReductionB(unit, name="reduction_b")(x)  # 8 8 2080
        for i in range(1, count_c + 1):
            x = cell_c(scale=0.2, name=f"cell_c{i}")(x)  # 8 8 2080
        x = cell_c(scale=1.0, act=ops.activation("identity"), name="last_cell")(x)  # 8 8 2080
        x = unit(1536, name="last")(x)  # 8 8 1536
        x = ops.global_avg_pool(x)  # 1536
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype)


PAPER = "Szegedy et al. 2016, 1602.07261"
VARIANTS = {
    "inception_v4": Variant(InceptionV4, PAPER, inception_preset(0.875)),
    "inception_resnet_v2": Variant(InceptionResNetV2, PAPER, inception_preset(0.8975)),
}

UNITS: Rules = {
    "norm$": "bn",
    r"branch3_pool": "branch3.1",
    r"^((?:cell_[ab]|reduction|mixed|stem/mixed).*branch\d)_(\d)": lambda m: f"{m[1]}.{int(m[2]) - 1}",
}


def _v4_name(path: str, model: InceptionV4) -> str:
    """'cell_b2/branch1_3/conv' -> 'features.12.branch1.2.conv': stem, cells and reductions are counted."""
    if path == "head":
        return "last_linear"
    a, b, _ = model.cells
    before = {"stem.conv": -1, "stem.mixed": 0, "cell_a": 5, "cell_b": 6 + a, "cell_c": 7 + a + b}
    before |= {"reduction_a": 6 + a, "reduction_b": 7 + a + b}
    pattern = r"^(stem\.[a-z]+|cell_.|reduction_.)(\d*)[_.]"
    return re.sub(pattern, lambda m: f"features.{before[m[1]] + int(m[2] or 0)}.", substitute(UNITS)(path))


NAMES_RESNET: Rules = {
    **UNITS,
    r"^(cell_c\d+/|last_cell/)branch1_(\d)": lambda m: f"{m[1]}branch1.{int(m[2]) - 1}",
    "project$": "conv2d",
    r"^stem/conv(\d\w)_\dx\d": r"conv2d_\1",
    "^mixed5b": "mixed_5b",
    **{"^cell_a": "repeat.", "^cell_b": "repeat_1.", "^cell_c": "repeat_2."},
    r"^(repeat\w*\.)(\d+)": lambda m: f"{m[1]}{int(m[2]) - 1}",
    "^reduction_a": "mixed_6a",
    "^reduction_b": "mixed_7a",
    "^last_cell": "block8",
    "^last/": "conv2d_7b.",
    "^head": "classif",
}
TORCH_NAMES = {
    InceptionV4: TorchNames(_v4_name),
    InceptionResNetV2: TorchNames(substitute(NAMES_RESNET)),
}
