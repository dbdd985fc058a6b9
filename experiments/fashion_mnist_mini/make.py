"""Makes cnnjax/data/fashion_mnist_mini.npz: 600 + 100 images of each class of Fashion-MNIST.

Run: python experiments/fashion_mnist_mini/make.py
Train images come from the official train split, test images from the official test split, drawn by
`hold_out` with seed 0 and kept in the official order. The file is the same on every run.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np

from cnnjax.data.datasets import MINI, hold_out, load

PER_CLASS = {"train": 600, "test": 100}


def sample() -> dict[str, np.ndarray]:
    """{split}_image uint8 [N, 28, 28] and {split}_label uint8 [N]."""
    arrays = {}
    for split, per_class in PER_CLASS.items():
        source = load("fashion_mnist", split)
        _, drawn = hold_out(source.labels, per_class * source.num_classes, seed=0)
        arrays[f"{split}_image"] = source.images[drawn, :, :, 0]
        arrays[f"{split}_label"] = source.labels[drawn].astype(np.uint8)
    return arrays


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An npz as np.savez_compressed writes it, with one fixed date, at the highest compression."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else MINI
    write(target, sample())
    print(f"{target}: {target.stat().st_size} bytes")
