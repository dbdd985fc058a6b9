"""What single units answer to: filters, how often they are on, the patches and images they like best."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cnnjax.errors import UserError
from cnnjax.explore import attribution
from cnnjax.explore.layers import Layer, first_convolution, receptive_box, run, trace, unrolled

Box = tuple[int, int, int, int]
Batches = Iterable[jax.Array]  # of images as the network takes them, float [B, H, W, C]


def first_filters(model: nn.Module, variables: Any, image_shape: Sequence[int]) -> np.ndarray:
    """The kernels of the first convolution on the image, float32 [F, kh, kw, C].

    Raises:
      UserError: where the network has no convolution.
    """
    scope = first_convolution(model, variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    flat = traverse_util.flatten_dict(variables["params"])
    kernels = [x for path, x in flat.items() if path[: len(scope)] == scope and np.ndim(x) == 4]
    if not kernels:
        raise UserError("this network has no convolution on the image, so it has no filters to show")
    return np.asarray(kernels[0]).transpose(3, 0, 1, 2)


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


def statistics(model: nn.Module, variables: Any, batches: Batches, layer: str) -> UnitStatistics:
    """Mean, spread, maximum and share of positive values of a layer's units over a data set."""
    rows = []
    for values in _layer_values(model, variables, batches, layer):
        flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        rows.append((len(flat), flat.sum(0), (flat**2).sum(0), flat.max(0), (flat > 0).sum(0)))
    count = sum(row[0] for row in rows)
    total, squares, positive = (np.sum([row[i] for row in rows], 0) for i in (1, 2, 4))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return UnitStatistics(mean, std, np.max([row[3] for row in rows], 0), positive / count)


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Where each image excites each unit most: value float32 [N, C], place int32 [N, C, 2]."""

    layer: str
    value: np.ndarray
    place: np.ndarray


def peaks(model: nn.Module, variables: Any, batches: Batches, layer: str) -> Peaks:
    """The highest value of each unit on each image, and its row and column in the map."""
    values, places = [], []
    for batch in _layer_values(model, variables, batches, layer):
        batch = np.asarray(batch if batch.ndim == 4 else batch[:, None, None])
        flat = batch.reshape(batch.shape[0], -1, batch.shape[-1])
        best = flat.argmax(1)
        values.append(np.take_along_axis(flat, best[:, None], 1)[:, 0])
        places.append(np.stack(np.divmod(best, batch.shape[2]), -1))
    return Peaks(layer, np.concatenate(values), np.concatenate(places).astype(np.int32))


def _layer_values(model: nn.Module, variables: Any, batches: Batches, layer: str) -> Iterable[jax.Array]:
    model = unrolled(model)

    @jax.jit
    def values(variables: Any, image: jax.Array) -> jax.Array:
        traced = trace(model, variables, image)
        return run(traced, variables, image, keep=[traced.layer(layer)])[1][0].astype(jnp.float32)

    return (values(variables, batch) for batch in batches)


@dataclasses.dataclass(frozen=True)
class Patch:
    """One exciting patch: `box` is (top, left, bottom, right) in image number `index`."""

    index: int
    value: float
    box: Box


def best_patches(
    model: nn.Module, variables: Any, image_shape: Sequence[int], found: Peaks, unit: int, count: int = 9
) -> list[Patch]:
    """The patches, one an image, that excite a unit most, strongest first; each is its receptive field.

    Raises:
      UserError: for a unit that the layer does not have.
    Source: Zeiler, Fergus 2013, arXiv:1311.2901, section 4; Girshick et al. 2013, arXiv:1311.2524.
    """
    if not 0 <= unit < found.value.shape[1]:
        raise UserError(
            f"unit={unit} is not one of layer {found.layer!r}; allowed: 0 to {found.value.shape[1] - 1}"
        )
    order = np.argsort(-found.value[:, unit], kind="stable")[:count]
    return [
        Patch(
            int(i),
            float(found.value[i, unit]),
            receptive_box(model, variables, image_shape, found.layer, tuple(map(int, found.place[i, unit]))),
        )
        for i in order
    ]


def guided_views(
    model: nn.Module, variables: Any, image: jax.Array, layer: str, unit: int, boxes: Sequence[Box]
) -> list[np.ndarray]:
    """What of each patch a unit of a deep layer answers to: its guided gradient, float32 [h, w, C] each.

    Args:
      image: float [B, H, W, C] as the network takes them, such as the images of `best_patches`.
      boxes: of the patches, (top, left, bottom, right), one an image.

    Source: Springenberg et al. 2014, arXiv:1412.6806, section 3.4 and figure 4.
    """

    def peak(logits: jax.Array, values: jax.Array) -> jax.Array:
        unit_values = values[..., unit]
        return unit_values.reshape(unit_values.shape[0], -1).max(1).sum()

    found = np.asarray(attribution.guided_gradient(model, variables, image, peak, layer))
    return [one[top:bottom, left:right] for one, (top, left, bottom, right) in zip(found, boxes, strict=True)]


def maximize(
    model: nn.Module,
    variables: Any,
    image_shape: Sequence[int],
    unit: int,
    key: jax.Array,
    *,
    layer: str | None = None,
    steps: int = 128,
    step_size: float = 0.1,
    decay: float = 0.01,
    jitter: int = 2,
) -> jax.Array:
    """An image that excites a unit, found by climbing its gradient from noise: [H, W, C], normalized.

    Args:
      image_shape: [H, W, C].
      unit: of the layer; a class where the layer is None, as the logits then are.
      layer: see `layers.layer_shapes`; for a map the unit's mean over places is climbed.
      steps, step_size: of the ascent along the gradient of unit root mean square.
      decay: of the pixels at each step.
      jitter: the image is rolled by up to so many pixels at each step, against patterns of single pixels.
    Source: Erhan et al. 2009, "Visualizing higher-layer features of a deep network"; Simonyan et al. 2013,
      arXiv:1312.6034, section 2; jitter and decay as Mordvintsev et al. 2015, "Inceptionism".
    """
    model = unrolled(model)
    shape = (1, *image_shape)
    traced = trace(model, variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    keep = [] if layer is None else [traced.layer(layer)]
    _check_unit(keep, traced.jaxpr.out_avals[0].shape[-1], unit)

    def score(image: jax.Array) -> jax.Array:
        logits, values = run(traced, variables, image, keep=keep)
        return (values[0] if values else logits)[..., unit].mean()

    def climb(image: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)
        gradient = jax.grad(score)(jnp.roll(image, shift, (1, 2)))
        gradient = jnp.roll(gradient, -shift, (1, 2))
        size = jnp.sqrt((gradient**2).mean())
        return (1 - decay) * image + step_size * gradient / (size + 1e-8), None

    start_key, key = jax.random.split(key)
    start = 0.1 * jax.random.normal(start_key, shape)
    image, _ = jax.lax.scan(climb, start, jax.random.split(key, steps))
    return image[0]


def _check_unit(keep: list[Layer], num_classes: int, unit: int) -> None:
    count = keep[0].shape[-1] if keep else num_classes
    if not 0 <= unit < count:
        raise UserError(f"unit={unit}; allowed: 0 to {count - 1}")
