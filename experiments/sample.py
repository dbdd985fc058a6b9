"""The few images that studies of size minute train on."""

from pathlib import Path

import numpy as np

from cnnjax.data.datasets import load
from cnnjax.data.files import replacing


def written(folder: Path, side: int) -> str:
    """The name of a set of the package's sample, written to a folder: in grey if 28 wide, else in colour."""
    file, edge = folder / f"sample_{side}.npz", (side - 28) // 2
    if not file.exists():
        arrays = {}
        for split in ("train", "test"):
            source = load("fashion_mnist_mini", split)
            images = np.stack([source[i]["image"] for i in range(128)])
            padded = np.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
            arrays[f"{split}_image"] = padded.repeat(3 if edge else 1, -1)
            arrays[f"{split}_label"] = np.array([source[i]["label"] for i in range(128)])
        with replacing(file) as part:
            np.savez(part, **arrays)
    return f"npz:{file}"
