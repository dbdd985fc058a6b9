"""The peer of `cnnjax bench train --against=torch`: the same step in PyTorch, as a process of its own.

It builds one model, says that it is ready, then measures for as many seconds as each line of its standard
input names. Eager, channels_last, SGD with momentum, synthetic images in memory; bfloat16 is autocast.
"""

import itertools
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional

# Names here that torchvision spells otherwise.
TORCHVISION_NAMES = {"alexnet_torchvision": "alexnet", "googlenet_torchvision": "googlenet"}
SIZES = {"alexnet_torchvision": 227, "inception_v3": 299}


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


def build(name: str) -> tuple[nn.Module, tuple[int, int, int], int]:
    """The model, its image shape (C, H, W) and number of classes."""
    if name == "simple_cnn":
        return simple_cnn(), (1, 28, 28), 10
    if name == "resnet20_cifar":
        return resnet20(), (3, 32, 32), 10
    # Lets the torchvision wheel import beside a CPU build of torch, which lacks its compiled operators.
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    theirs = TORCHVISION_NAMES.get(name, name)
    extra = {"aux_logits": False, "init_weights": False} if theirs in ("googlenet", "inception_v3") else {}
    size = SIZES.get(name, 224)
    return torchvision.models.get_model(theirs, weights=None, **extra), (3, size, size), 1000


def main(name: str, batch_size: int, dtype: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model, shape, classes = build(name)
    model = model.to(device, memory_format=torch.channels_last)
    if device == "cuda":
        model = torch.compile(model)
    image = torch.randn(batch_size, *shape, device=device).to(memory_format=torch.channels_last)
    label = torch.randint(0, classes, (batch_size,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = functional.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()

    finish = torch.cuda.synchronize if device == "cuda" else lambda: None

    for _ in range(3):
        step()
    finish()
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for line in sys.stdin:
        start, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - start < float(line):
            step()
            steps += 1
        finish()
        rate = steps * batch_size / (time.perf_counter() - start)
        print(json.dumps({"images_per_second": rate}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
