"""The inverted residual, the block of the networks for phones and of EfficientNet, and its names in timm."""

from collections.abc import Callable

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.net import Activation, Constructor
from cnnjax.models.variants import place


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, squeeze-and-excitation if any, project (1x1); plus x if alike.

    Sandler et al. 2018, 1801.04381, figure 4; later papers and EfficientNet's call it MBConv.
    """

    features: int
    width: int  # of the depthwise convolution; if it is that of x, nothing is expanded
    kernel_size: int  # of the same
    strides: int
    unit: Constructor
    linear: Constructor
    squeeze_excite: Constructor | None = None
    drop_path: Activation = ops.activation("identity")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.unit(self.width, name="expand")(x) if self.width != x.shape[-1] else x
        y = self.unit(self.width, self.kernel_size, self.strides, groups=self.width, name="depthwise")(y)
        y = self.squeeze_excite(name="se")(y) if self.squeeze_excite else y
        y = self.linear(self.features, name="project")(y)
        return x + self.drop_path(y) if self.strides == 1 and y.shape == x.shape else y


def units(model: nn.Module, block: str) -> tuple[str, ...]:
    """The modules of a block such as 'stage2_block1' in order; each stage begins with its expansion."""
    return ("expand", "depthwise", "project")[model.stages[place(block)[0] - 1][0] == 1 :]


TIMM_LAYERS = {
    **{"stem/conv": "conv_stem", "stem/norm": "bn1", "last/conv": "conv_head", "last/norm": "bn2"},
    **{"head": "classifier", "se/fc1": "se.conv_reduce", "se/fc2": "se.conv_expand"},
}


def timm_name(path: str, model: nn.Module, units: Callable[..., tuple[str, ...]] = units) -> str:
    """'stage2_block1/project/conv' -> 'blocks.1.0.conv_pwl' in a model whose blocks have these units."""
    block, _, layer = path.partition("/")
    if not block.startswith("stage"):
        return TIMM_LAYERS[path]
    stage, i = place(block)
    if layer not in TIMM_LAYERS:
        unit, kind = layer.split("/")
        convolutions = [each for each in units(model, block) if each != "se"]
        number = convolutions.index(unit) + 1
        layer = f"bn{number}" if kind == "norm" else _timm_convolution(unit, convolutions)
    return f"blocks.{stage - 1}.{i - 1}.{TIMM_LAYERS.get(layer, layer)}"


def _timm_convolution(unit: str, units: list[str]) -> str:
    if len(units) == 1:
        return "conv"
    if unit == "project":
        return "conv_pw" if units[0] == "depthwise" else "conv_pwl"
    return {"expand": "conv_pw", "depthwise": "conv_dw", "fused": "conv_exp"}[unit]
