"""RepVGG: trained with three branches a layer, deployed as plain 3x3 convolutions.

Ding, Zhang, Ma, Han, Ding, Sun 2021, "RepVGG: making VGG-style ConvNets great again", arXiv:2101.03697,
section 3.3 and figure 4 (`fuse`), section 3.4 (sizes; `g4`: every second layer of a stage has 4 groups).
Names follow timm. Kernels are He-normal with fan-out, `head` is LeCun-normal.
"""

from functools import partial

import jax
import numpy as np
from flax import linen as nn
from flax.typing import Collection, VariableDict

from cnnjax import ops
from cnnjax.errors import by_name
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, logits
from cnnjax.models.net import Constructor, Net, he_fan_out
from cnnjax.models.stages import check_stages
from cnnjax.models.variants import Rules, TorchNames, Variant, substitute, timm_preset

EPSILON = 1e-5  # of batch normalization


class RepBlock(nn.Module):
    """The sum of a 3x3 and a 1x1 convolution and, where the shape stays, the input, each normalized; ReLU."""

    features: int
    strides: int
    groups: int
    conv: Constructor
    norm: Constructor

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = partial(ConvNorm, self.features, strides=self.strides, groups=self.groups)
        unit = partial(unit, conv=partial(self.conv, use_bias=False), norm=self.norm)
        y = unit(kernel_size=3, name="conv3x3")(x) + unit(kernel_size=1, name="conv1x1")(x)
        same = self.strides == 1 and x.shape[-1] == self.features
        return ops.relu(y + self.norm(name="identity")(x) if same else y)


class FusedBlock(RepBlock):
    """The same function as one 3x3 convolution and ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(self.conv, strides=self.strides, padding=1, groups=self.groups)
        return ops.relu(conv(self.features, 3, name="conv3x3")(x))


BLOCKS = {"training": RepBlock, "deployed": FusedBlock}


class RepVGG(Net):
    """Stem, stages of blocks, global average pooling, `head`. Takes images of any size."""

    stage_sizes: tuple[int, ...] = (4, 6, 16, 1)
    widths: tuple[int, ...] = (64, 128, 256, 1280)
    groups: int = 1  # of every second block of a stage
    form: str = "training"  # or "deployed", whose variables `fuse` gives

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, kernel_init=he_fan_out, dtype=self.dtype)
        norm = self.norm_layer(BatchNorm, train, epsilon=EPSILON)
        block = partial(by_name("form", self.form, BLOCKS), conv=conv, norm=norm)
        x = image.astype(self.dtype)  # 224 224 3
        x = block(min(64, self.widths[0]), 2, 1, name="stem")(x)  # 112 112 64
        for i, (width, size) in enumerate(check_stages(self.widths, self.stage_sizes), 1):
            for j in range(1, size + 1):  # of b0: 56 56 64, 28 28 128, 14 14 256, 7 7 1280
                groups = self.groups if j % 2 == 0 else 1
                x = block(width, 2 if j == 1 else 1, groups, name=f"stage{i}_block{j}")(x)
        return logits(ops.global_avg_pool(x), self.num_classes, self.dtype)


def fuse(variables: VariableDict) -> VariableDict:
    """The variables, of NumPy, with which the form "deployed" computes the same in evaluation (figure 4)."""
    params, stats = jax.device_get((variables["params"], variables["batch_stats"]))
    fused = {name: _fused(params[name], stats[name]) for name in stats}
    return {"params": {**params, **fused}, "batch_stats": {}}


def _fused(params: Collection, stats: Collection) -> Collection:
    """One convolution for the branches of a block."""
    kernel, bias = 0.0, 0.0

    def add(branch: np.ndarray, norm: Collection, moments: Collection) -> None:
        nonlocal kernel, bias
        scale = norm["scale"] / np.sqrt(moments["var"] + EPSILON)
        kernel, bias = kernel + branch * scale, bias + norm["bias"] - moments["mean"] * scale

    square = params["conv3x3"]["conv"]["kernel"]  # [3, 3, C / groups, features]
    add(square, params["conv3x3"]["norm"], stats["conv3x3"]["norm"])
    point = np.zeros_like(square)
    point[1, 1] = params["conv1x1"]["conv"]["kernel"][0, 0]
    add(point, params["conv1x1"]["norm"], stats["conv1x1"]["norm"])
    if "identity" in params:
        same, channels = np.zeros_like(square), np.arange(square.shape[3])
        same[1, 1, channels % square.shape[2], channels] = 1
        add(same, params["identity"], stats["identity"])
    return {"conv3x3": {"kernel": kernel, "bias": bias}}


def _row(sizes: tuple[int, ...], width: float, last_width: float, groups: int = 1) -> Variant:
    widths = (*(round(width * features) for features in (64, 128, 256)), round(last_width * 512))
    build = partial(RepVGG, stage_sizes=sizes, widths=widths, groups=groups)
    return Variant(build, "Ding et al. 2021, 2101.03697", timm_preset((224, 224, 3), 1000))


_a, _b = (2, 4, 14, 1), (4, 6, 16, 1)
VARIANTS = {
    "repvgg_a0": _row(_a, 0.75, 2.5),
    "repvgg_a1": _row(_a, 1, 2.5),
    "repvgg_a2": _row(_a, 1.5, 2.75),
    "repvgg_b0": _row(_b, 1, 2.5),
    "repvgg_b1": _row(_b, 2, 4),
    "repvgg_b1g4": _row(_b, 2, 4, groups=4),
    "repvgg_b2": _row(_b, 2.5, 5),
    "repvgg_b2g4": _row(_b, 2.5, 5, groups=4),
    "repvgg_b3": _row(_b, 3, 5),
    "repvgg_b3g4": _row(_b, 3, 5, groups=4),
}

_names: Rules = {
    r"^stage(\d+)_block(\d+)": lambda m: f"stages.{int(m[1]) - 1}.{int(m[2]) - 1}",
    **{"/conv3x3$": "/reparam_conv", "/conv3x3/": "/conv_kxk/", "/conv1x1/": "/conv_1x1/"},
    **{"/norm$": "/bn", "^head$": "head.fc"},
}
TORCH_NAMES = {RepVGG: TorchNames(substitute(_names))}
