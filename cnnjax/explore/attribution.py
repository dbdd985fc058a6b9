"""Which pixels speak for a class: gradients, class activation maps and occlusion, as pure functions.

Every function takes (model, variables, image, label): a linen module, its params and batch_stats, images as
the network takes them, float [B, H, W, C], and the class asked about, int [B]. They compile under `jax.jit`
with the model and the names as static arguments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax.linen import Module
from jax import Array

from cnnjax.errors import UserError, check_count
from cnnjax.models.forward import Layer, Trace, Variables, run, trace, unrolled

Weigh = Callable[[Array, Array], Array]  # (values of a layer, gradient by them) -> weights
Score = Callable[[Array, Array], Array]  # (logits [B, K], values of a layer [B, h, w, c]) -> a number


def class_logits(model: Module, variables: Variables, image: Array, label: Array) -> Array:
    """The logit of each image's class, float32 [B], in evaluation mode."""
    return _pick(jnp.asarray(model.apply(variables, image)), label)


def _pick(logits: Array, label: Array) -> Array:
    return jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]


def input_gradient(model: Module, variables: Variables, image: Array, label: Array) -> Array:
    """The derivative of each image's class logit by its pixels, [B, H, W, C]."""
    return jax.grad(lambda x: class_logits(model, variables, x, label).sum())(image)


def saliency(model: Module, variables: Variables, image: Array, label: Array) -> Array:
    """The size of the gradient at each pixel, the largest over channels: [B, H, W].

    Source: Simonyan, Vedaldi, Zisserman 2013, arXiv:1312.6034, section 3.1.
    """
    return jnp.abs(input_gradient(model, variables, image, label)).max(-1)


def smooth_grad(
    model: Module,
    variables: Variables,
    image: Array,
    label: Array,
    key: Array,
    *,
    samples: int = 25,
    noise: float = 0.15,
) -> Array:
    """The mean size of the gradient over copies with normal noise, a share of the image's range: [B, H, W].

    Source: Smilkov et al. 2017, arXiv:1706.03825. Deviation: sizes are averaged, as in the authors' figures,
    not signed gradients.
    """
    check_count("samples", samples, 1)
    spread = image.max((1, 2, 3), keepdims=True) - image.min((1, 2, 3), keepdims=True)

    def one(key: Array) -> Array:
        noisy = image + noise * spread * jax.random.normal(key, image.shape, image.dtype)
        return saliency(model, variables, noisy, label)

    return _mean(one, jax.random.split(key, samples))


def integrated_gradients(
    model: Module,
    variables: Variables,
    image: Array,
    label: Array,
    *,
    baseline: Array | float = 0.0,
    steps: int = 64,
) -> Array:
    """What each pixel adds to the class logit on the way from a baseline, an image or value: [B, H, W, C].

    The sum over pixels is the logit's difference between image and baseline, up to the error of the midpoint
    rule over `steps` points; 0 is the mean colour of normalized images. Source: Sundararajan, Taly, Yan 2017,
    arXiv:1703.01365, equation 1.
    """
    check_count("steps", steps, 1)
    way = image - jnp.asarray(baseline, image.dtype)
    shares = jnp.arange(0.5, steps, dtype=image.dtype) / steps
    return way * _mean(lambda share: input_gradient(model, variables, image - share * way, label), shares)


def _mean(function: Callable[[Array], Array], values: Array) -> Array:
    """The mean of the function over the values along the first axis, computed one after the other."""
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, values[0]))
    total, _ = jax.lax.scan(lambda total, value: (total + function(value), None), zeros, values)
    return total / len(values)


@jax.custom_vjp
def guided_relu(x: Array) -> Array:
    """ReLU whose gradient goes back only where both input and gradient are positive."""
    return jax.nn.relu(x)


guided_relu.defvjp(
    lambda x: (jax.nn.relu(x), x),
    lambda x, gradient: (jnp.where((x > 0) & (gradient > 0), gradient, 0.0).astype(x.dtype),),
)


def guided_gradient(
    model: Module, variables: Variables, image: Array, score: Score, layer: str | None = None
) -> Array:
    """The guided gradient of a score of the logits and a layer of `layers.layer_shapes`: [B, H, W, C].

    A score `values[..., unit].max((1, 2)).sum()` asks what excites a unit; layer None is the last map.
    Source: Springenberg et al. 2014, arXiv:1412.6806, section 3.4. Only ReLU has another gradient.
    """
    kept = (traced := trace(unrolled(model), variables, image)).layer(layer)

    def total(x: Array) -> Array:
        logits, (values,) = run(traced, variables, x, keep=[kept], rules={"relu": guided_relu})
        return score(logits, values)

    return jax.grad(total)(image)


def _cam(
    model: Module, variables: Variables, image: Array, label: Array, layer: str | None, weigh: Weigh
) -> Array:
    """ReLU of a layer's weighted sum over channels, `weigh(values, gradient)`: float32 [B, h, w]."""
    kept = _map_layer(traced := trace(unrolled(model), variables, image), layer)

    def total(delta: Array) -> tuple[Array, Array]:
        logits, (values,) = run(traced, variables, image, keep=[kept], add={kept.index: delta})
        return _pick(logits, label).sum(), values

    zeros = jnp.zeros((image.shape[0], *kept.shape), jnp.float32)
    gradient, values = jax.grad(total, has_aux=True)(zeros)
    values = values.astype(jnp.float32)
    return jax.nn.relu((weigh(values, gradient) * values).sum(-1))


def grad_cam(
    model: Module, variables: Variables, image: Array, label: Array, *, layer: str | None = None
) -> Array:
    """Where a map of `layers.layer_shapes` speaks for the class: float32 [B, h, w] of its size, at least 0.

    Layer None is the last map; UserError for another layer. Source: Selvaraju et al. 2016, arXiv:1610.02391,
    equations 1 and 2.
    """
    return _cam(model, variables, image, label, layer, lambda _, grad: grad.mean((1, 2), keepdims=True))


def grad_cam_plus_plus(
    model: Module, variables: Variables, image: Array, label: Array, *, layer: str | None = None
) -> Array:
    """Grad-CAM with a weight for each place, which finds several objects of a class: float32 [B, h, w].

    Source: Chattopadhay et al. 2017, arXiv:1710.11063, equations 10, 11 and 19, with the exponential of the
    logit as score; its positive factor, the same for all places of an image, is left out.
    """

    def weigh(values: Array, gradient: Array) -> Array:
        below = 2 * gradient**2 + values.sum((1, 2), keepdims=True) * gradient**3
        alpha = jnp.where(below == 0, 0.0, gradient**2 / jnp.where(below == 0, 1.0, below))
        return (alpha * jax.nn.relu(gradient)).sum((1, 2), keepdims=True)

    return _cam(model, variables, image, label, layer, weigh)


def hires_cam(
    model: Module, variables: Variables, image: Array, label: Array, *, layer: str | None = None
) -> Array:
    """Grad-CAM with the gradient of each place instead of the mean over places: float32 [B, h, w].

    It is Grad-CAM, up to a factor, for a linear classifier of averaged maps, and of use for dense layers, as
    in SimpleCNN, AlexNet and VGG. Source: Draelos, Carin 2020, arXiv:2011.08891, section 3.
    """
    return _cam(model, variables, image, label, layer, lambda _, gradient: gradient)


def layer_cam(
    model: Module, variables: Variables, image: Array, label: Array, *, layer: str | None = None
) -> Array:
    """The map weighted by the positive part of each place's own gradient: float32 [B, h, w].

    It stays sharp in early layers too. Source: Jiang, Zhang, Hou, Cheng, Wei 2021, "LayerCAM: Exploring
    Hierarchical Class Activation Maps for Localization", IEEE TIP 30, equations 5 to 7.
    """
    return _cam(model, variables, image, label, layer, lambda _, gradient: jax.nn.relu(gradient))


def score_cam(
    model: Module,
    variables: Variables,
    image: Array,
    label: Array,
    *,
    layer: str | None = None,
    channels: int | None = None,
) -> Array:
    """The map weighted by how likely the class is on the image masked by each channel: float32 [B, h, w].

    No gradient is used. `channels` is how many are tried, those with the largest spread first; None is all,
    each of which costs a forward pass. Source: Wang et al. 2020, arXiv:1910.01279, equations 4 to 6: masks
    scaled to 0..1, the softmax over channels of the class probabilities as weights (subtracting that of an
    empty image changes no softmax). Deviation: `channels`.
    """
    values = _map_of(model, variables, image, layer)
    check_count("channels", count := values.shape[-1] if channels is None else channels, 1)
    count = min(count, values.shape[-1])
    chosen = jax.lax.top_k(values.std((1, 2)), count)[1]  # [B, count]
    kept = jnp.take_along_axis(values, chosen[:, None, None, :], axis=3)

    def score(channel: Array) -> Array:
        mask = heatmap(jnp.take(kept, channel, axis=3), (image.shape[1], image.shape[2]))
        masked = image * mask[..., None].astype(image.dtype)
        return _pick(jax.nn.softmax(jnp.asarray(model.apply(variables, masked))), label)

    weights = jax.nn.softmax(jax.lax.map(score, jnp.arange(count)), axis=0)  # [count, B]
    return jax.nn.relu((weights.T[:, None, None, :] * kept).sum(-1))


def eigen_cam(
    model: Module, variables: Variables, image: Array, label: Array, *, layer: str | None = None
) -> Array:
    """The map along its first principal component, whatever the class: float32 [B, h, w].

    Source: Muhammad, Yeasin 2020, arXiv:2008.00299, section 3: the first right singular vector of the places
    by channels, not centred. A singular vector has no sign; the one is taken whose map has a positive sum.
    """
    del label  # asks what the layer sees most, not what speaks for a class
    values = _map_of(model, variables, image, layer)
    places = values.reshape(values.shape[0], -1, values.shape[-1])
    _, _, right = jnp.linalg.svd(places, full_matrices=False)
    projected = jnp.einsum("bpc,bc->bp", places, right[:, 0]).reshape(values.shape[:3])
    sign = jnp.where(projected.sum((1, 2), keepdims=True) < 0, -1.0, 1.0)
    return jax.nn.relu(sign * projected)


def _map_of(model: Module, variables: Variables, image: Array, layer: str | None) -> Array:
    """The values of a layer with several places, float32 [B, h, w, C]."""
    kept = _map_layer(traced := trace(unrolled(model), variables, image), layer)
    _, (values,) = run(traced, variables, image, keep=[kept])
    return values.astype(jnp.float32)


def _map_layer(traced: Trace, layer: str | None) -> Layer:
    kept = traced.layer(layer)
    if not kept.is_map:
        raise UserError(f"layer {kept.name!r} is {list(kept.shape)}; Grad-CAM needs a map of several places")
    return kept


METHODS = {
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
    "score_cam": score_cam,
    "eigen_cam": eigen_cam,
}


def heatmap(values: Array, size: tuple[int, int]) -> Array:
    """Maps [B, h, w] resized to [B, *size] (bilinear), each scaled to 0..1; a constant one becomes 0."""
    large = jax.image.resize(values, (values.shape[0], *size), "bilinear")
    low, high = large.min((1, 2), keepdims=True), large.max((1, 2), keepdims=True)
    scaled = (large - low) / jnp.where(high > low, high - low, 1.0)
    # A compiled division may be a product with the reciprocal, which can leave the highest value below 1.
    return jnp.where((large == high) & (high > low), 1.0, scaled)


def occlusion(
    model: Module,
    variables: Variables,
    image: Array,
    label: Array,
    *,
    window: int,
    stride: int,
    fill: float = 0.0,
) -> Array:
    """How far the class logit falls when a square is covered by a value: float32 [B, H, W].

    The squares of `window` pixels lie at multiples of `stride` and at the far edges, wholly inside the image;
    a pixel has the mean fall of those that cover it, and 0 if none does. The `fill` 0 is the mean colour of
    normalized images. Source: Zeiler, Fergus 2013, arXiv:1311.2901, section 4.2; there a square is one place.
    """
    height, width = image.shape[1:3]
    if not 0 < window <= min(height, width) or stride < 1:
        raise UserError(f"window={window}, stride={stride} do not fit into images of {height}x{width}")
    whole = class_logits(model, variables, image, label)
    rows, columns = _covered(height, window, stride), _covered(width, window, stride)

    def fall(square: tuple[Array, Array]) -> Array:
        mask = square[0][:, None] & square[1][None]
        covered = jnp.where(mask[None, :, :, None], jnp.asarray(fill, image.dtype), image)
        return whole - class_logits(model, variables, covered, label)

    pairs = jnp.repeat(rows, len(columns), axis=0), jnp.tile(columns, (len(rows), 1))
    falls = jax.lax.map(fall, pairs).T.reshape(image.shape[0], len(rows), len(columns))
    high, wide = (covered.astype(falls.dtype) for covered in (rows, columns))
    total = jnp.einsum("brc,rh,cw->bhw", falls, high, wide, precision="highest")
    return total / jnp.outer(high.sum(0), wide.sum(0)).clip(1)[None]


def _covered(size: int, window: int, stride: int) -> Array:
    """The pixels of an axis under a window at each position, the last at the end: bool [positions, size]."""
    starts = jnp.array(sorted({*range(0, size - window + 1, stride), size - window}))[:, None]
    at = jnp.arange(size)[None]
    return (at >= starts) & (at < starts + window)
