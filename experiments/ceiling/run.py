"""The ceiling of JPEG copies of CIFAR-10: the same ResNet-20 by PyTorch, with the public recipe, on them.

    python experiments/ceiling/run.py --data=folder:PATH              # 200 epochs; goes on where it stopped
    python experiments/ceiling/run.py --data=folder:PATH --epochs=60  # the same shape, shortened

He et al. 2015 by its public implementation in PyTorch (akamaster/pytorch_resnet_cifar10, 91.73 % on the
originals): SGD with momentum 0.9 at 0.1, divided by 10 at half and at three quarters, weight decay 0.0001 on
all, batch 128, padded crops and the mirror, all 50,000 images; the last epoch counts. It needs
`pip install -e '.[peers]'`.
"""

import argparse
import datetime
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np

import cnnjax
from cnnjax.data.files import replacing
from experiments import results, speeds, studies

RESULTS = HERE / "results.csv"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the public recipe
BATCH, SEED = 128, 0


def arrays(data: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3] and labels."""
    source = cnnjax.load_dataset(data, split)
    items = [source[i] for i in range(len(source))]
    return np.stack([item["image"] for item in items]), np.array([item["label"] for item in items])


def build():
    """ResNet-20 as in the paper: 6n + 2 layers, n = 3, shortcuts of option A, zeros on both sides."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.stride, self.more = stride, outputs - inputs

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            sides = (self.more // 2, self.more // 2)
            short = x[:, :, :: self.stride, :: self.stride]
            return torch.relu(y + nn.functional.pad(short, (0, 0, 0, 0, *sides)))

    widths = [16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(a, b, 2 if b > a else 1) for a, b in zip([16, *widths], widths, strict=False)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net.to(memory_format=torch.channels_last)


def augmented(images, draw):
    """A batch, each padded by 4, cropped and mirrored by its own draw."""
    import torch

    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    corners = draw.integers(0, 9, (len(images), 2))
    rows = [p[:, y : y + 32, x : x + 32] for p, (y, x) in zip(padded, corners, strict=True)]
    mirrored = draw.random(len(images)) < 0.5
    return torch.stack([row.flip(2) if flip else row for row, flip in zip(rows, mirrored, strict=True)])


def train(data: str, epochs: int) -> dict[str, object]:
    """Trains to the end from the last epoch that was saved; returns the row."""
    import torch

    torch.manual_seed(SEED)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    images, labels = arrays(data, "train")
    net = build()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = [epochs // 2, epochs * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, steps, 0.1)
    name = re.sub(r"\W+", "_", data)
    saved, first = studies.ROOT / "runs" / f"ceiling_{name}_{epochs}.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        net.load_state_dict(state["net"])
        sgd.load_state_dict(state["sgd"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"]
    for epoch in range(first, epochs):
        draw, start, wrong = np.random.default_rng((SEED, epoch)), time.monotonic(), 0
        net.train()
        for chosen in np.array_split(draw.permutation(len(images)), round(len(images) / BATCH)):
            batch = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
            batch = augmented((batch - mean) / std, draw).contiguous(memory_format=torch.channels_last)
            logits, target = net(batch), torch.from_numpy(labels[chosen]).long()
            loss = torch.nn.functional.cross_entropy(logits, target)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            wrong += int((logits.argmax(1) != target).sum())
        schedule.step()
        error = 100 * wrong / len(images)
        print(f"epoch {epoch + 1}: {error:.2f} % wrong, {time.monotonic() - start:.0f} s", flush=True)
        parts = {"net": net, "sgd": sgd, "schedule": schedule}
        with replacing(saved) as part:
            torch.save({**{k: v.state_dict() for k, v in parts.items()}, "epoch": epoch + 1}, part)
    return {
        "net": "ResNet-20 (PyTorch)",
        "data": data,
        "epochs": epochs,
        "seed": SEED,
        "training_error": f"{wrong / len(images):.4f}" if first < epochs else "",
        "test_accuracy": f"{accuracy(net, data):.4f}",
        "machine": speeds.this_machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def accuracy(net, data: str) -> float:
    """On the test split."""
    import torch

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    images, labels = arrays(data, "test")
    net.eval()
    right = 0
    with torch.no_grad():
        for i in range(0, len(images), 500):
            batch = torch.from_numpy(images[i : i + 500]).permute(0, 3, 1, 2).float() / 255
            right += int((net((batch - mean) / std).argmax(1).numpy() == labels[i : i + 500]).sum())
    return right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python experiments/ceiling/run.py")
    parser.add_argument("--data", default=f"records:{studies.COPIES}", help="as --config.data.name")
    parser.add_argument("--epochs", type=int, default=200, help="of the whole schedule")
    given = parser.parse_args()
    wanted = given.data, str(given.epochs)
    if not any((row["data"], row["epochs"]) == wanted for row in results.read(RESULTS)):
        results.append(RESULTS, train(given.data, given.epochs))


if __name__ == "__main__":
    studies.start(main)
