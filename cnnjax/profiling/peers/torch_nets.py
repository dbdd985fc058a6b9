"""The nets in PyTorch: of torchvision, and two of its own."""

import itertools
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional

from cnnjax.profiling.peers.serve import Unable

# Names here that torchvision spells otherwise.
TORCHVISION_NAMES = {"alexnet_torchvision": "alexnet", "googlenet_torchvision": "googlenet"}


def simple_cnn() -> nn.Module:
    """The module's first network."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(7 * 7 * 32, 10)),
    )


class Block(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        half = self.extra // 2
        return functional.relu(y + functional.pad(short, (0, 0, 0, 0, half, self.extra - half)))


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR, option A."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(inputs, outputs, outputs // inputs) for inputs, outputs in itertools.pairwise(widths)]
    stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def load_torchvision() -> ModuleType:
    """The library, also where its compiled operators, which no net has, do not fit this torch."""
    try:
        import torchvision
    except RuntimeError:  # it describes an operator that it could not load
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def build(name: str, num_classes: int) -> nn.Module:
    """The net of a name here, with random weights."""
    if own := {"simple_cnn": simple_cnn, "resnet20_cifar": resnet20}.get(name):
        return own()
    torchvision, theirs = load_torchvision(), TORCHVISION_NAMES.get(name, name)
    if theirs not in torchvision.models.list_models(module=torchvision.models):
        raise Unable("no such net")
    extra = {"aux_logits": False, "init_weights": False} if theirs in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(theirs, weights=None, num_classes=num_classes, **extra)
