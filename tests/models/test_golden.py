"""The smallest net of each family of torchvision and timm: the reference's logits, and slowly its gradients.

The files of golden/whole/ are written by tests/golden_whole.py, which says what they hold.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnnjax.models import create_model, variant
from cnnjax.models.weights.torch import convert_into
from tests.golden_whole import BATCH, CLASSES, FOLDER, image_batch, waves, weights

NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
LONG = ("efficientnet_v2_s", "mnasnet1_0", "mobilenetv3_small_100", "tf_mobilenetv3_small_100")  # to compile
pytestmark = pytest.mark.filterwarnings("ignore:the ImageNet stem")


@dataclasses.dataclass
class Golden:
    """A golden file, and the net without dropout and stochastic depth."""

    model: nn.Module
    image: np.ndarray  # [B, H, W, C]
    state: dict[str, np.ndarray]
    logits: np.ndarray
    gradients: np.ndarray

    def variables(self, state: dict[str, np.ndarray]) -> dict:
        return convert_into(state, self.model, self.image.shape[1:])


def read(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        golden = dict(file)
    entries = (entry.split() for entry in golden["entries"].tolist())
    shapes = {entry: tuple(map(int, shape.split("x"))) for entry, shape in entries}
    name_there, factor = golden["weights"].tolist()
    state = weights(name_there, shapes, float(factor))
    rates = {"dropout_rate": 0.0, "drop_path_rate": 0.0}
    allowed = inspect.signature(variant(name).build).parameters
    model = create_model(name, num_classes=CLASSES, **{k: v for k, v in rates.items() if k in allowed})
    image = image_batch(BATCH, *golden["images"].tolist()).transpose(0, 2, 3, 1)
    return Golden(model, image, state, golden["logits"], golden["gradients"])


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in NAMES]
)
def test_logits_are_the_references(name):
    golden = read(name)
    logits = jax.jit(golden.model.apply)(golden.variables(golden.state), golden.image)
    assert relative(np.asarray(logits), golden.logits) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_running_means_of_a_training_step_are_the_references(name):
    golden = read(name)
    place = golden.variables(
        {k: np.full(v.shape, i, np.float32) for i, (k, v) in enumerate(golden.state.items())}
    )
    wave = golden.variables({k: waves(v.shape) for k, v in golden.state.items()})

    @jax.jit
    def step(variables, image, wave):
        def loss(params):
            given = {**variables, "params": params}
            logits, updates = golden.model.apply(given, image, train=True, mutable=["batch_stats"])
            return (logits * jnp.asarray(waves(logits.shape), jnp.float32)).sum(), updates

        gradients, updates = jax.grad(loss, has_aux=True)(variables["params"])
        found = {"params": gradients, "batch_stats": updates.get("batch_stats", {})}
        return jax.tree.map(lambda x, y: jnp.array([jnp.sqrt((x**2).sum()), (x * y).sum()]), found, wave)

    rows = np.zeros_like(golden.gradients)
    found = jax.tree.leaves_with_path(step(golden.variables(golden.state), golden.image, wave))
    for (path, row), leaf in zip(found, jax.tree.leaves(place), strict=True):
        if path[-1].key != "var":
            rows[int(leaf.flat[0])] = row
    # A bias before another normalization has no gradient; a hundredth of the largest norm stands for it.
    scale = golden.gradients[:, 0] + 0.01 * golden.gradients[:, 0].max()
    error = np.abs(rows - golden.gradients).max(1) / scale
    assert error.max() < 1e-3, list(golden.state)[int(error.argmax())]
    assert relative(rows, golden.gradients) < 1e-4
