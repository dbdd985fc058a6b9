"""What torchvision or timm computes for weights that NumPy alone rebuilds: tests/models/golden/whole/.

python -m tests.golden_whole SIZE OURS=torchvision:NAME OURS=timm:NAME:0.5 ...

Needs torch and one of the two libraries, not cnnjax. Each net has 10 classes, the weights of `entry_value`
and four images of SIZE pixels a side: of 12 draws those whose gradients change least with the last digits of
float32, as the sign of one value before a ReLU can change a gradient by a per cent. A number behind the name
is a factor of the scales of normalization, without which logits of some deep nets change by a per cent with
the last digits in torch itself. OURS.npz holds, computed in float64:

    weights    the reference's name of the net, which its weights depend on, and the factor of its scales
    images     size and seed of the images
    entries    the state dict: "NAME 64x3x3x3"
    logits     float32 [4, 10], in evaluation mode
    gradients  float32 [entries, 2]: norm of an entry's gradient and its inner product with cos(0, 1, 2, ...),
               for the loss sum(logits * cos(0, 1, 2, ...)) in training mode: batch statistics, no dropout.
               A running mean has its value after that step here, a running variance zeros.
"""

import sys
from pathlib import Path

import numpy as np

from tests.golden_timm import entry_value

FOLDER = Path(__file__).parent / "models" / "golden" / "whole"
BATCH, CLASSES = 4, 10


def weights(name: str, shapes: dict[str, tuple[int, ...]], factor: float = 1.0) -> dict[str, np.ndarray]:
    """A whole state dict of `entry_value`, its scales times a factor."""
    values = {entry: entry_value(name, entry, shape) for entry, shape in shapes.items()}
    scales = {k for k, v in values.items() if k.endswith("weight") and v.ndim == 1}
    return {k: np.float32(factor) * v if k in scales else v for k, v in values.items()}


def image_batch(count: int, size: int, seed: int = 0) -> np.ndarray:
    """float32 [count, 3, size, size], standard normal."""
    draw = np.random.Generator(np.random.PCG64(seed))
    return draw.standard_normal((count, 3, size, size)).astype(np.float32)


def waves(shape: tuple[int, ...]) -> np.ndarray:
    """cos(0, 1, 2, ...) in that shape, float64: what tells one order of values from another."""
    return np.cos(np.arange(np.prod(shape))).reshape(shape)


def create(library: str, name: str, factor: float = 1.0, classes: int = CLASSES):
    """The net in torch, float64, without dropout."""
    import torch

    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=classes)
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    for module in model.modules():
        if hasattr(module, "p"):  # of dropout and stochastic depth
            module.p = 0.0
    values = weights(name, {k: tuple(v.shape) for k, v in model.state_dict().items()}, factor)
    fill(model, {k: torch.from_numpy(np.asarray(v)) for k, v in values.items()})
    return model.double()


def fill(model, values: dict) -> None:
    """What `load_state_dict` does, which some nets refuse for a plain dict."""
    for entry, value in model.state_dict().items():
        value.copy_(values[entry])


def gradients(model, image: np.ndarray) -> np.ndarray:
    """The rows of `gradients` for float64 images; the statistics of the model stay as they are."""
    import torch

    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.zero_grad()
    (model.train()(torch.from_numpy(image)) * torch.from_numpy(waves((BATCH, CLASSES)))).sum().backward()
    rows = []
    for entry, value in _entries(model):
        value = value.detach() if entry.endswith("running_mean") else value.grad
        array = np.zeros(1) if value is None else value.numpy()
        rows.append((np.linalg.norm(array), (array * waves(array.shape)).sum()))
    fill(model, before)
    return np.array(rows)


def _entries(model) -> list[tuple]:
    import torch

    return [(k, v) for k, v in model.state_dict(keep_vars=True).items() if v.dtype == torch.float64]


def firmness(model, size: int, seed: int) -> float:
    """How much the gradients change when the images do by a millionth or so."""
    image = image_batch(BATCH, size, seed).astype(np.float64)
    noise = [3e-6 * image_batch(BATCH, size, 100 + i) for i in range(2)]
    rows = gradients(model, image)
    return max(np.linalg.norm(gradients(model, image + each) - rows) for each in noise) / np.linalg.norm(rows)


def golden(size: int, library: str, name: str, factor: str = "1") -> dict[str, np.ndarray]:
    import torch

    model = create(library, name, float(factor))
    change, seed = min((firmness(model, size, seed), seed) for seed in range(12))
    print(f"{name}: images {seed}, changed by a millionth, change the gradients by {change:.1e}")
    image = image_batch(BATCH, size, seed).astype(np.float64)
    return {
        "weights": np.array([name, factor]),
        "images": np.array((size, seed)),
        "entries": np.array([f"{k} {'x'.join(map(str, v.shape))}" for k, v in _entries(model)]),
        "logits": model.eval()(torch.from_numpy(image)).detach().numpy().astype(np.float32),
        "gradients": gradients(model, image).astype(np.float32),
    }


def main() -> None:
    size = int(sys.argv[1])
    FOLDER.mkdir(exist_ok=True)
    for argument in sys.argv[2:]:
        ours, _, reference = argument.partition("=")
        np.savez_compressed(FOLDER / f"{ours}.npz", **golden(size, *reference.split(":")))
        print(ours, (FOLDER / f"{ours}.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
