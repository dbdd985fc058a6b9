"""The peer: a training step in PyTorch as one would run it on a GPU, in a process of its own.

channels_last, autocast to bfloat16, `torch.compile` on a GPU, SGD with momentum, images that lie on the
device. It says when it is ready, then measures for as many seconds as each line of its standard input names.
"""

import importlib.util
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional

from cnnjax.profiling.peers.torch_nets import load_torchvision


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width, and the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(
                nn.Conv2d(width, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        projection = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(*(projection if stride > 1 or inputs != outputs else ()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50 with strides in the 3x3, for machines without torchvision."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
    ]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, 64 << stage, 2 if stage and not block else 1))
            inputs = 4 * (64 << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def build(name: str) -> nn.Module:
    """A network by torchvision's name, of 1000 classes."""
    if name == "resnet50" and not importlib.util.find_spec("torchvision"):
        return resnet50()
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return load_torchvision().models.get_model(name, weights=None, **extra)


def main(name: str, batch_size: int, size: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    model = build(name).to(device, memory_format=torch.channels_last)
    if device == "cuda":
        model = torch.compile(model)
    image = torch.randn(batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    label = torch.randint(0, 1000, (batch_size,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()

    def finish() -> int:
        """Waits for the device; the most bytes that it held."""
        if device == "cpu":
            return 0
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    start = time.perf_counter()
    for _ in range(3):
        step()
    finish()
    print(json.dumps({"torch": torch.__version__, "ready": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        start, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - start < float(line):
            step()
            steps += 1
            if steps % 8 == 0:
                finish()  # as many steps wait on the device as of the other framework
        memory = finish()
        rate = steps * batch_size / (time.perf_counter() - start)
        print(json.dumps({"images_per_second": rate, "memory": memory}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
