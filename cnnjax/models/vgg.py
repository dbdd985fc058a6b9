"""VGG: depth from 3x3 convolutions alone.

Simonyan, Zisserman 2014, 1409.1556, table 1, configurations A, B, D and E. Deviations, as in torchvision:
convolutions are He-normal (fan-out), dense layers N(0, 0.01), biases 0 (the paper starts the deep nets from
trained shallow ones), an adaptive average pooling to 7x7 before the dense layers, which changes nothing at
224x224, lets them take any input of 32x32 or more, and the `_bn` nets, of which the paper has none, normalize
after each convolution, whose biases stay.
"""

from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.models.layers import BatchNorm, Conv, ConvNorm, Dense, Relu, logits
from cnnjax.models.net import Net, he_fan_out
from cnnjax.models.variants import Preset, TorchNames, Variant, place


class VGG(Net):
    """Stages of `depths[i]` convolutions of `widths[i]` channels, each halved by 2x2 max pooling."""

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    dense_widths: tuple[int, int] = (4096, 4096)
    batch_norm: bool = False
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        least = 2 ** len(self.depths)
        if min(image.shape[1:3]) < least:
            raise UserError(f"image {image.shape[1:3]}: VGG takes at least {least}x{least} pixels")
        conv = partial(Conv, kernel_init=he_fan_out, dtype=self.dtype)
        norm = self.norm_layer(BatchNorm, train, act=ops.relu) if self.batch_norm else Relu
        normal = nn.initializers.normal(0.01)
        x = image  # 224 224 3
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for i in range(1, depth + 1):  # 224 224 64 | 112 112 128 | 56 56 256 | 28 28 512 | 14 14 512
                x = ConvNorm(width, 3, conv=conv, norm=norm, name=f"stage{stage}_conv{i}")(x)
            x = ops.max_pool(x, 2)  # 112 112 64 | 56 56 128 | 28 28 256 | 14 14 512 | 7 7 512
        x = ops.adaptive_avg_pool(x, 7)  # 7 7 512
        x = x.reshape(x.shape[0], -1)  # 25088
        for i, width in enumerate(self.dense_widths, 1):  # 4096, twice
            x = ops.relu(Dense(width, kernel_init=normal, dtype=self.dtype, name=f"dense{i}")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{i}")(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=normal)


def _row(configuration: str, depths: tuple[int, ...], norm: bool, top1: float, top5: float) -> Variant:
    build = partial(VGG, depths=depths, batch_norm=norm)
    source = f"Simonyan & Zisserman 2014, table 1 {configuration}; torchvision"
    return Variant(build, source, Preset(), top1, top5, "ImageNet 1-crop, torchvision V1")


VARIANTS = {
    "vgg11": _row("A", (1, 1, 2, 2, 2), False, 69.020, 88.628),
    "vgg13": _row("B", (2, 2, 2, 2, 2), False, 69.928, 89.246),
    "vgg16": _row("D", (2, 2, 3, 3, 3), False, 71.592, 90.382),
    "vgg19": _row("E", (2, 2, 4, 4, 4), False, 72.376, 90.876),
    "vgg11_bn": _row("A", (1, 1, 2, 2, 2), True, 70.370, 89.810),
    "vgg13_bn": _row("B", (2, 2, 2, 2, 2), True, 71.586, 90.374),
    "vgg16_bn": _row("D", (2, 2, 3, 3, 3), True, 73.360, 91.516),
    "vgg19_bn": _row("E", (2, 2, 4, 4, 4), True, 74.218, 91.842),
}


def _torch_name(path: str, model: VGG) -> str:
    """'stage2_conv1/norm' -> 'features.5': torch counts convolutions, norms, activations and poolings."""
    if not path.startswith("stage"):
        return {"dense1": "classifier.0", "dense2": "classifier.3", "head": "classifier.6"}[path]
    stage, conv = place(path)
    before = sum(model.depths[: stage - 1]) + conv - 1
    return f"features.{(3 if model.batch_norm else 2) * before + stage - 1 + path.endswith('norm')}"


def _timm_name(path: str, model: VGG) -> str:
    """The names of torch, but for the dense layers: two are convolutions."""
    dense = {"dense1": "pre_logits.fc1", "dense2": "pre_logits.fc2", "head": "head.fc"}
    return dense.get(path) or _torch_name(path, model)


FLATTENED = {"dense1": (7, 7)}
TORCH_NAMES = {
    VGG: (
        TorchNames(_torch_name, flattened=FLATTENED),
        TorchNames(_timm_name, flattened=FLATTENED, convolved=("dense.",)),
    )
}
