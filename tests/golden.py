"""Torchvision's logits for weights that NumPy alone rebuilds, and how near ours are to them.

A folder of NAME.json (entries of the state dict, input size) and NAME.npy (float32 [2, 1000] logits) is read
from `$CNNJAX_GOLDEN`, or from `shared/reference/golden` beside the repository; where it is absent the tests
that need it are skipped, with the reason.
"""

import functools
import json
import os
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from cnnjax.models import create_model
from cnnjax.models.weights import convert
from tests import golden_timm
from tests.golden_timm import entry_value

FOLDER = Path(
    os.environ.get("CNNJAX_GOLDEN") or Path(__file__).parents[2] / "shared" / "reference" / "golden"
)
needs_golden = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no golden logits: set CNNJAX_GOLDEN to their folder"
)


@functools.cache
def record(name: str) -> dict:
    """{"input_size", "num_params", "entries": {name: shape}, "modules": {child: [mean, std, NCHW shape]}}."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The whole state dict of torchvision's `name`, in its order."""
    return {k: entry_value(name, k, tuple(shape)) for k, shape in record(name)["entries"].items()}


def images(name: str) -> np.ndarray:
    """The two standard normal images behind the golden logits, float32 [2, H, W, 3]."""
    size = record(name)["input_size"]
    return np.ascontiguousarray(golden_timm.images(size).transpose(0, 2, 3, 1))


def logits(name: str) -> np.ndarray:
    """Torchvision's logits in evaluation mode, float32 [2, 1000]."""
    return np.load(FOLDER / f"{name}.npy")


def relative_error(name: str, model: str | None = None) -> float:
    """norm(ours - golden) / norm(golden) for `model` (default: the same name) with the converted weights."""
    model = model or name
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="left out of the state dict: (aux1|AuxLogits)")
        variables = convert(state_dict(name), model)
    ours = np.asarray(jax.jit(create_model(model).apply)(variables, images(name)))
    return float(np.linalg.norm(ours - logits(name)) / np.linalg.norm(logits(name)))
