"""Single units: filters, how often they are active, the patches and images that excite them most."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen import Module
from jax import Array

from cnnjax.errors import UserError, check_count
from cnnjax.explore.layers import Box, receptive_box
from cnnjax.models import forward
from cnnjax.models.forward import Shape, Variables

Batches = Iterable[Array]  # of images as the network takes them, float [B, H, W, C]


def first_filters(model: Module, variables: Variables, image_shape: Shape) -> np.ndarray:
    """The kernels of the first convolution on the image, float32 [F, kh, kw, C]."""
    scope = forward.first_convolution(model, variables, forward.image_struct(image_shape))
    flat = traverse_util.flatten_dict(variables["params"])
    for path, kernel in flat.items():
        if path[: len(scope)] == scope and np.ndim(kernel) == 4:
            return np.asarray(kernel).transpose(3, 0, 1, 2)
    raise UserError("this network has no convolution on the image, so it has no filters to show")


@dataclasses.dataclass(frozen=True)
class UnitStatistics:
    """Of each of C units over all places of all images, float64 [C]."""

    mean: np.ndarray
    std: np.ndarray
    maximum: np.ndarray
    positive: np.ndarray  # the share of places with a value above 0

    @property
    def dead(self) -> np.ndarray:
        """Indices of the units that were never above 0."""
        return np.flatnonzero(self.positive == 0)


def statistics(model: Module, variables: Variables, batches: Batches, layer: str) -> UnitStatistics:
    """Mean, spread, maximum and share of positive values of a layer's units over a data set."""
    rows, count = [], 0
    for values in _layer_values(model, variables, batches, layer):
        flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        rows.append([flat.sum(0), (flat**2).sum(0), (flat > 0).sum(0), flat.max(0)])
        count += len(flat)
    check_count("batches", len(rows), 1)
    total, squares, positive, _ = np.sum(rows, 0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return UnitStatistics(mean, std, np.max(rows, 0)[-1], positive / count)


@dataclasses.dataclass(frozen=True)
class Peaks:
    """See `peaks`."""

    layer: str
    value: np.ndarray  # float32 [N, C]
    place: np.ndarray  # int32 [N, C, 2]


def peaks(model: Module, variables: Variables, batches: Batches, layer: str) -> Peaks:
    """The highest value of each unit on each image, and its row and column in the map."""
    highest, places = [], []
    for values in map(np.asarray, _layer_values(model, variables, batches, layer)):
        flat = values.reshape(values.shape[0], -1, values.shape[-1])
        best = flat.argmax(1)
        highest.append(flat.max(1))
        places.append(np.stack(np.divmod(best, values.shape[2] if values.ndim == 4 else 1), -1))
    check_count("batches", len(highest), 1)
    return Peaks(layer, np.concatenate(highest), np.concatenate(places).astype(np.int32))


def _layer_values(model: Module, variables: Variables, batches: Batches, layer: str) -> Iterable[Array]:
    values = jax.jit(lambda variables, image: forward.feature_maps(model, variables, image, [layer])[layer])
    return (values(variables, batch) for batch in batches)


@dataclasses.dataclass(frozen=True)
class Patch:
    """A patch of image number `index`, and the value of a unit there."""

    index: int
    value: float
    box: Box


def best_patches(
    model: Module, variables: Variables, image_shape: Shape, peaks: Peaks, unit: int, count: int = 9
) -> list[Patch]:
    """The patches, one an image, that excite a unit most, strongest first; each is its receptive field.

    Source: Zeiler, Fergus 2013, arXiv:1311.2901, section 4; Girshick et al. 2013, arXiv:1311.2524.
    """
    patches = []
    for i in strongest(peaks, unit, count):
        row, column = map(int, peaks.place[i, unit])
        box = receptive_box(model, variables, image_shape, peaks.layer, (row, column))
        patches.append(Patch(int(i), float(peaks.value[i, unit]), box))
    return patches


def strongest(peaks: Peaks, unit: int, count: int = 9) -> list[int]:
    """Numbers of the images that excite a unit most, strongest first."""
    _check_unit(unit, peaks.value.shape[1])
    return np.argsort(-peaks.value[:, unit], kind="stable")[:count].tolist()


def maximize(
    model: Module,
    variables: Variables,
    image_shape: Shape,
    unit: int,
    key: Array,
    *,
    layer: str | None = None,
    steps: int = 128,
    step_size: float = 0.1,
    decay: float = 0.01,
    jitter: int = 2,
) -> Array:
    """An image that excites a unit, found by gradient ascent from noise: [H, W, C], normalized.

    Of a map of `layers.layer_shapes` the unit's mean over places is maximized; layer None is the logits, so
    units are classes. `step_size` is that of the gradient, scaled to a root mean square of 1, `decay` that of
    pixels at each step; `jitter` is the most pixels to roll the image by, against patterns of single pixels.
    Source: Erhan et al. 2009, "Visualizing higher-layer features of a deep network"; Simonyan et al. 2013,
    arXiv:1312.6034, section 2; jitter and decay as Mordvintsev et al. 2015, "Inceptionism".
    """
    traced = forward.trace(forward.unrolled(model), variables, forward.image_struct(image_shape))
    keep = [] if layer is None else [traced.layer(layer)]
    _check_unit(unit, keep[0].shape[-1] if keep else traced.jaxpr.out_avals[0].shape[-1])

    def score(image: Array) -> Array:
        logits, values = forward.run(traced, variables, image, keep=keep)
        return (values[0] if values else logits)[..., unit].mean()

    def climb(image: Array, key: Array) -> tuple[Array, None]:
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)
        gradient = jnp.roll(jax.grad(score)(jnp.roll(image, shift, (1, 2))), -shift, (1, 2))
        size = jnp.sqrt((gradient**2).mean())
        return (1 - decay) * image + step_size * gradient / (size + 1e-8), None

    start_key, key = jax.random.split(key)
    start = 0.1 * jax.random.normal(start_key, (1, *image_shape), jnp.float32)
    image, _ = jax.lax.scan(climb, start, jax.random.split(key, steps))
    return image[0]


def _check_unit(unit: int, count: int) -> None:
    if not 0 <= unit < count:
        raise UserError(f"unit={unit}; allowed: 0 to {count - 1}")
