"""The values of a forward pass by name (see `models.forward`), and the pixels that a place of them sees."""

import numpy as np
from flax.linen import Module

from cnnjax.models.forward import Shape, Variables, image_struct, trace, unrolled
from cnnjax.models.forward import feature_maps as feature_maps
from cnnjax.models.forward import layer_shapes as layer_shapes
from cnnjax.models.forward import penultimate as penultimate
from cnnjax.profiling.receptive_fields import Field, field_size
from cnnjax.profiling.summary import image_fields

Box = tuple[int, int, int, int]  # (top, left, bottom, right) in pixels; the last two are exclusive


def receptive_box(
    model: Module, variables: Variables, image_shape: Shape, layer: str | None, place: tuple[int, int]
) -> Box:
    """The pixels of the image that one place of a layer sees; all of them if it is unknown which."""
    traced = trace(unrolled(model), variables, image_struct(image_shape))
    jaxpr = traced.jaxpr.jaxpr
    field = image_fields(jaxpr)[jaxpr.eqns[traced.layer(layer).index].outvars[0]]
    return field_box(field, image_shape, place)


def field_box(field: Field | None, image_shape: Shape, place: tuple[int, int]) -> Box:
    """The pixels of the image [H, W, C] in the receptive field of a place; all of them if it is unknown."""
    box = []
    for axis, (size, span_size) in enumerate(zip(image_shape, field_size(field) or (), strict=False)):
        if field is None or not np.isfinite(span_size):
            box.append((0, size))
            continue
        shift = sum(step * place[a - 1] for a, step in field[axis].steps if a in (1, 2))
        low, high = int(field[axis].low + shift), int(field[axis].high + shift) + 1
        box.append((min(max(low, 0), size - 1), max(min(high, size), 1)))
    (top, bottom), (left, right) = box or ((0, image_shape[0]), (0, image_shape[1]))
    return top, left, bottom, right


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of an image [H, W, ...] inside a box."""
    top, left, bottom, right = box
    return image[top:bottom, left:right]
