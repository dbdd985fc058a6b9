"""EfficientNet-Lite 0 to 4: EfficientNet for integer arithmetic, without squeeze-and-excitation.

Liu 2020, as released for TensorFlow (tensorflow/tpu, models/official/efficientnet/lite); EfficientNet is Tan,
Le 2019, 1905.11946. ReLU6 stands for SiLU; the stem's 32 channels, the last 1280, and the single blocks of
the first and the last stage are not scaled. `tf_efficientnet_lite*` are the released nets: strided layers pad
the bottom and right by one more, and batch normalization's epsilon is 1e-3; `efficientnet_lite*`, timm's, pad
half the kernel, with 1e-5. Kernels are He-normal (fan-out), the head's uniform within 1 / sqrt(classes).
"""

from functools import partial

from flax import linen as nn

from cnnjax.models.efficientnet import EfficientNet, units
from cnnjax.models.inverted_residual import timm_name
from cnnjax.models.net import Activation
from cnnjax.models.variants import HALF, TorchNames, Variant, timm_preset


class EfficientNetLite(EfficientNet):
    """Takes images of any size from 1x1 on."""

    act: Activation = nn.relu6
    squeeze_excite: bool = False
    scale_ends: bool = False
    last_width: int | None = 1280


def _row(size: int, tensorflow: bool) -> Variant:
    width, depth, rate, side, crop_pct = SIZES[size]
    build = partial(EfficientNetLite, width=width, depth=depth, dropout_rate=rate)
    if not tensorflow:
        return Variant(build, SOURCE, timm_preset((side, side, 3), 1000, crop_pct, "bicubic"))
    build = partial(build, padding="same", epsilon=1e-3)
    interpolation = "bicubic" if size < 3 else "bilinear"
    crop_pct = 0.92 if size == 4 else crop_pct
    preset = timm_preset((side, side, 3), 1000, crop_pct, interpolation, mean=HALF, std=HALF)
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


TORCH_NAMES = {EfficientNetLite: TorchNames(partial(timm_name, units=units))}
