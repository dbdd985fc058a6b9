"""Torchvision's logits for weights that NumPy alone rebuilds, and how near ours are to them.

    python -m tests.golden [NAME ...]    # with torch 2.13 and torchvision 0.28, not cnnjax

writes tests/models/golden/torchvision/NAME.npz for the nets of NETS, computed in float64:
    size     of the two images
    entries  JSON, the shape of each entry of the state dict: {"conv1.weight": [64, 3, 7, 7], ...}
    logits   float32 [2, 1000], in evaluation mode
"""

import json
import sys
import warnings

import numpy as np

from tests import golden_timm, golden_whole

FOLDER = golden_timm.FOLDER / "torchvision"
NETS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3"),
    *("mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "squeezenet1_1"),
    *("vgg11", "vgg16_bn", "wide_resnet50_2"),
)


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The whole state dict of torchvision's `name`, in its order."""
    with np.load(FOLDER / f"{name}.npz") as file:
        entries = json.loads(file["entries"].item())
    return golden_whole.weights(name, {entry: tuple(shape) for entry, shape in entries.items()})


def relative_error(name: str, model: str | None = None) -> float:
    """norm(ours - golden) / norm(golden) for `model` (default: the same name) with the converted weights."""
    import jax

    from cnnjax.models import create_model
    from cnnjax.models.weights import convert

    model = model or name
    with np.load(FOLDER / f"{name}.npz") as file:
        size, logits = int(file["size"]), file["logits"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="left out of the state dict: (aux1|AuxLogits)")
        variables = convert(state_dict(name), model)
    ours = jax.jit(create_model(model).apply)(variables, golden_timm.images(size).transpose(0, 2, 3, 1))
    return float(np.linalg.norm(ours - logits) / np.linalg.norm(logits))


def write(name: str) -> None:
    import torch

    size = 299 if name == "inception_v3" else 224
    model = golden_whole.create("torchvision", name, classes=1000).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(golden_timm.images(size)).double()).numpy().astype(np.float32)
    entries = json.dumps({k: list(v.shape) for k, v in model.state_dict().items()})
    np.savez_compressed(FOLDER / f"{name}.npz", size=size, entries=entries, logits=logits)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in sys.argv[1:] or NETS:
        write(each)
