"""The plain and residual nets of 6n + 2 layers for CIFAR-10.

He, Zhang, Ren, Sun 2015, "Deep residual learning for image recognition", arXiv:1512.03385, section 4.2 and
table 6: a 3x3 stem of 16 channels, three stages of n basic blocks with 16, 32, 64 channels on 32, 16, 8
pixels, global average pooling. Shortcuts are option A (no parameters). `ResNet` says how it is initialized.
The blocks of the net of 1202 layers are scanned, see `stages`.
"""

from functools import partial

from cnnjax.models.resnet import BasicBlock, ResNet
from cnnjax.models.variants import CIFAR, Variant


def _variant(depth: int, shortcut: str, top1: float | None = None) -> Variant:
    n = (depth - 2) // 6
    build = partial(
        ResNet,
        stage_sizes=(n, n, n),
        widths=(16, 32, 64),
        block=BasicBlock,
        shortcut=shortcut,
        stem="cifar",
        scan_blocks=n > 100,
    )
    return Variant(build, "He et al. 2015", CIFAR, top1, published="" if top1 is None else "CIFAR-10")


VARIANTS = {
    "plain20_cifar": _variant(20, "none"),
    "plain32_cifar": _variant(32, "none"),
    "plain44_cifar": _variant(44, "none"),
    "plain56_cifar": _variant(56, "none"),
    "plain110_cifar": _variant(110, "none"),
    "resnet20_cifar": _variant(20, "a", 91.25),
    "resnet32_cifar": _variant(32, "a", 92.49),
    "resnet44_cifar": _variant(44, "a", 92.83),
    "resnet56_cifar": _variant(56, "a", 93.03),
    "resnet110_cifar": _variant(110, "a", 93.39),  # mean of 5 runs, best 93.57
    "resnet1202_cifar": _variant(1202, "a", 92.07),
    "resnet20_cifar_option_b": _variant(20, "b"),
}
