"""ResNet-D: residual nets that lose less at the start and in the shortcuts.

He, Zhang, Zhang, Zhang, Xie, Li 2018, "Bag of tricks for image classification with convolutional neural
networks", arXiv:1812.01187, section 4: three 3x3 convolutions as stem (figure 2b, ResNet-C), a shortcut that
averages 2x2 pixels before its projection (figure 2c, ResNet-D); figure 2a is `resnet50` itself. Other depths,
widths and names follow timm. Deviations as in `resnet`.
"""

from functools import partial

from cnnjax.models.net import Constructor
from cnnjax.models.resnet import BasicBlock, Bottleneck, ResNet
from cnnjax.models.variants import Variant, timm_preset

resnet_d: partial = partial(ResNet, stem="deep", shortcut="d")


def _row(block: Constructor, sizes: tuple[int, ...], size: int = 224, crop_pct: float = 0.875) -> Variant:
    preset = timm_preset((size, size, 3), 1000, crop_pct, "bicubic")
    return Variant(partial(resnet_d, block=block, stage_sizes=sizes), "He et al. 2018, 1812.01187", preset)


VARIANTS = {
    "resnet18d": _row(BasicBlock, (2, 2, 2, 2)),
    "resnet26d": _row(Bottleneck, (2, 2, 2, 2)),
    "resnet34d": _row(BasicBlock, (3, 4, 6, 3)),
    "resnet50d": _row(Bottleneck, (3, 4, 6, 3)),
    "resnet101d": _row(Bottleneck, (3, 4, 23, 3), 256, 0.95),
    "resnet152d": _row(Bottleneck, (3, 8, 36, 3), 256, 0.95),
    "resnet200d": _row(Bottleneck, (3, 24, 36, 3), 256, 0.95),
}
