"""How far a heat map can be trusted: what its pixels do to the class, and whether it sees the weights."""

import functools
from collections.abc import Callable, Collection, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import Module
from jax import Array

from cnnjax.models.forward import Variables, trace, unrolled

AnyArray = Array | np.ndarray
Method = Callable[..., Array]  # (model, variables, image, label) -> a map [B, h, w]


def deletion_insertion(
    model: Module, variables: Variables, image: Array, label: Array, heat: Array, *, steps: int = 16
) -> tuple[Array, Array]:
    """The class probability as the hottest pixels are deleted, or inserted: each float32 [steps + 1, B].

    The heat is [B, H, W]; row i has the share i / steps of the pixels changed, hottest first, on ties in
    reading order. Deleted pixels become 0, the mean colour of normalized images; inserted ones replace those
    of the image blurred by `blurred`. A map that finds what matters gives a steep fall and a steep rise: a
    small mean of the first and a large one of the second. Source: Petsiuk, Das, Saenko 2018,
    arXiv:1806.07421, section 3.2.
    """
    flat = heat.reshape(heat.shape[0], -1)
    rank = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1).reshape(heat.shape)[..., None]
    soft, empty = blurred(image), jnp.zeros_like(image)

    def probability(x: Array) -> Array:
        logits = jnp.asarray(model.apply(variables, x))
        return jnp.take_along_axis(jax.nn.softmax(logits), label[:, None], axis=1)[:, 0]

    def both(count: Array) -> tuple[Array, Array]:
        hot = rank < count
        return probability(jnp.where(hot, empty, image)), probability(jnp.where(hot, image, soft))

    counts = jnp.round(jnp.linspace(0.0, flat.shape[1], steps + 1)).astype(jnp.int32)
    return jax.lax.map(both, counts)


def blurred(image: Array, *, share: float = 5 / 224) -> Array:
    """Images [B, H, W, C] blurred by a Gaussian whose standard deviation is that share of the longer side.

    The share is that of the authors of `deletion_insertion`, but at least a pixel.
    """
    spread = max(share * max(image.shape[1:3]), 1.0)

    def weights(size: int) -> np.ndarray:
        apart = np.subtract.outer(np.arange(size), np.arange(size)) / spread
        kernel = np.exp(-(apart**2) / 2)
        return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)

    rows, columns = weights(image.shape[1]), weights(image.shape[2])
    return jnp.einsum("hi,bijc,wj->bhwc", rows, image.astype(jnp.float32), columns).astype(image.dtype)


def randomized(variables: Variables, key: Array, modules: Collection[str] | None = None) -> Variables:
    """The variables with the params of some top modules redrawn, normal with their own mean and deviation."""
    params = dict(variables["params"])
    for i, (name, tree) in enumerate(sorted(params.items())):
        if modules is None or name in modules:
            leaves, structure = jax.tree.flatten(tree)
            keys = (jax.random.fold_in(jax.random.fold_in(key, i), j) for j in range(len(leaves)))
            drawn = [x.mean() + x.std() * jax.random.normal(next(keys), x.shape, x.dtype) for x in leaves]
            params[name] = jax.tree.unflatten(structure, drawn)
    return {**variables, "params": params}


def cascade(
    method: Method, model: Module, variables: Variables, image: Array, label: Array, key: Array
) -> dict[str, float]:
    """How similar a method's map stays as the modules are randomized one after another, from the head down.

    Gives each top module, in that order, the mean rank correlation with the original maps [B, h, w]. A method
    such as `grad_cam` whose correlation stays high shows the image, not what the network has learned.
    Source: Adebayo et al. 2018, arXiv:1810.03292, section 3.1.
    """
    modules = top_modules(model, variables, image)
    find = jax.jit(functools.partial(method, model))
    return {name: score for name, _, score in cascade_maps(find, variables, image, label, key, modules)}


def cascade_maps(
    find: Method, variables: Variables, image: AnyArray, label: AnyArray, key: Array, modules: Collection[str]
) -> Iterator[tuple[str, np.ndarray, float]]:
    """`cascade` step by step: (module, maps [B, h, w], correlation), of find(variables, image, label)."""
    own, params = np.asarray(find(variables, image, label)), dict(variables["params"])
    drawn = jax.jit(randomized)(variables, key)["params"]
    for name in modules:
        params[name] = drawn[name]
        changed = np.asarray(find({**variables, "params": params}, image, label))
        yield name, changed, float(np.mean(list(map(_rank_correlation, own, changed))))


def top_modules(model: Module, variables: Variables, image: Array) -> list[str]:
    """The top modules with parameters, from the head down."""
    traced = trace(unrolled(model), variables, image)
    order = dict.fromkeys(name.partition("/")[0].partition(":")[0] for name in reversed(traced.layers))
    return [name for name in order if name in variables["params"]]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, over all values of two arrays; 0 if one is constant."""
    from scipy import stats  # takes most of a second to import

    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0
    return float(stats.spearmanr(a.ravel(), b.ravel()).statistic)
