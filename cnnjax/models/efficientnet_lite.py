"""EfficientNet-Lite 0 to 4: EfficientNet for integer arithmetic, without squeeze-and-excitation.

Liu 2020, as released for TensorFlow (tensorflow/tpu, models/official/efficientnet/lite); EfficientNet is Tan,
Le 2019, 1905.11946. ReLU6 stands for SiLU; the stem's 32 channels, the last 1280, and the single blocks of
the first and the last stage are not scaled. `tf_efficientnet_lite*` are the released nets: strided layers pad
the bottom and right by one more, and batch normalization's epsilon is 1e-3; `efficientnet_lite*`, timm's, pad
half the kernel, with 1e-5. Kernels are He-normal (fan-out), the head's uniform within 1 / sqrt(classes).
"""

import math
from functools import partial

import jax
from flax import linen as nn

from cnnjax import ops
from cnnjax.models.efficientnet import STAGES, head_init
from cnnjax.models.inverted_residual import InvertedResidual, timm_name
from cnnjax.models.layers import BatchNorm, BatchNormAct, Conv, ConvNorm, DropPath, logits
from cnnjax.models.net import Net, check_stem, divisible, he_fan_out
from cnnjax.models.variants import TorchNames, Variant, timm_preset
from cnnjax.ops.shapes import Padding


class EfficientNetLite(Net):
    """Takes images of any size from 1x1 on."""

    width: float = 1.0  # times the channels of each of `stages`
    depth: float = 1.0  # times the number of its blocks, but for the first and the last stage
    stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
    stem: str = "imagenet"  # halves the size; "cifar" keeps it
    dropout_rate: float = 0.2
    drop_path_rate: float = 0.2  # times i / n of block i of n, from 0 on
    padding: Padding | None = None  # None: half the kernel on each side
    epsilon: float = 1e-5  # of batch normalization

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        layer = partial(ConvNorm, conv=conv, padding=self.padding)
        norm = self.norm_layer(BatchNorm, train, epsilon=self.epsilon)
        norm_relu6 = self.norm_layer(BatchNormAct, train, epsilon=self.epsilon, act=nn.relu6)
        unit, linear = partial(layer, norm=norm_relu6), partial(layer, norm=norm)
        sizes = [math.ceil(self.depth * size) for *_, size in self.stages]
        sizes[0], sizes[-1] = self.stages[0][-1], self.stages[-1][-1]
        strides = 1 if check_stem(self.stem, image) == "cifar" else 2
        x = image.astype(self.dtype)  # 224 224 3
        x = unit(32, 3, strides, name="stem")(x)  # 112 112 32
        for i, (expansion, kernel_size, stride, width, _) in enumerate(self.stages):
            for j in range(sizes[i]):  # 112 112 16 to 7 7 320, see STAGES
                rate = self.drop_path_rate * (sum(sizes[:i]) + j) / sum(sizes)
                features, strides = divisible(width * self.width), stride if j == 0 else 1
                block = partial(InvertedResidual, features, expansion * x.shape[-1], kernel_size, strides)
                block = partial(block, unit, linear, drop_path=DropPath(rate, train))
                x = block(name=f"stage{i + 1}_block{j + 1}")(x)
        x = unit(1280, name="last")(x)  # 7 7 1280
        x = ops.global_avg_pool(x)  # 1280
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return logits(x, self.num_classes, self.dtype, kernel_init=head_init)


def _row(size: int, tensorflow: bool) -> Variant:
    width, depth, rate, side, crop_pct = SIZES[size]
    build = partial(EfficientNetLite, width=width, depth=depth, dropout_rate=rate)
    if not tensorflow:
        return Variant(build, SOURCE, timm_preset((side, side, 3), 1000, crop_pct, "bicubic"))
    build = partial(build, padding="same", epsilon=1e-3)
    gray, interpolation = (0.5, 0.5, 0.5), "bicubic" if size < 3 else "bilinear"
    crop_pct = 0.92 if size == 4 else crop_pct
    preset = timm_preset((side, side, 3), 1000, crop_pct, interpolation, mean=gray, std=gray)
    return Variant(build, SOURCE, preset)


SOURCE = "Liu 2020; Tan, Le 2019, 1905.11946"
# Width, depth, dropout, the side of images and how much of the middle that is.
SIZES = (
    (1.0, 1.0, 0.2, 224, 0.875),
    (1.0, 1.1, 0.2, 240, 0.882),
    (1.1, 1.2, 0.3, 260, 0.890),
    (1.2, 1.4, 0.3, 300, 0.904),
    (1.4, 1.8, 0.3, 380, 0.922),
)
VARIANTS = {
    **{f"efficientnet_lite{size}": _row(size, tensorflow=False) for size in range(5)},
    **{f"tf_efficientnet_lite{size}": _row(size, tensorflow=True) for size in range(5)},
}


TORCH_NAMES = {EfficientNetLite: TorchNames(timm_name)}
