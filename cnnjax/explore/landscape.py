"""Two-dimensional views of many dimensions: of embedded images, and of the loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cnnjax.errors import UserError
from cnnjax.models.forward import Variables

Loss = Callable[[Variables], Array]  # of variables; a number


def pca(features: np.ndarray, dims: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] along the directions of greatest variance, [N, dims], and each one's share, [dims]."""
    centred = np.asarray(features, np.float64) - np.mean(features, 0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    total = (sizes**2).sum()
    return left[:, :dims] * sizes[:dims], sizes[:dims] ** 2 / (total or 1.0)


def tsne(features: np.ndarray, *, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """A plane in which near features stay near (scikit-learn's t-SNE, started from PCA): float64 [N, 2].

    Source: van der Maaten, Hinton 2008, "Visualizing data using t-SNE".
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE needs scikit-learn; pip install scikit-learn, or use pca") from None
    if perplexity >= len(features):
        raise UserError(f"perplexity={perplexity} must be less than the {len(features)} points")
    plane = TSNE(init="pca", random_state=seed, perplexity=perplexity).fit_transform(np.asarray(features))
    return np.asarray(plane, np.float64)


def loss_on_line(loss: Loss, start: Variables, end: Variables, shares: np.ndarray) -> np.ndarray:
    """The loss at start + share * (end - start), batch statistics too, for each share: float64 [S].

    Source: Goodfellow, Vinyals, Saxe 2014, arXiv:1412.6544, section 2.
    """
    return _losses(lambda share: loss(jax.tree.map(lambda a, b: a + share * (b - a), start, end)), shares)


def _losses(loss: Callable[[Array], Array], places: np.ndarray) -> np.ndarray:
    """The loss at each of N places, compiled once: float64 [N]."""
    losses = jax.jit(lambda places: jax.lax.map(loss, places))(jnp.asarray(places, jnp.float32))
    return np.asarray(losses, np.float64)


def filter_direction(params: Variables, key: Array) -> Variables:
    """A random direction in which each filter has the norm of the parameters' own; biases and scales stay.

    Source: Li et al. 2017, arXiv:1712.09913, section 4.
    """
    leaves, structure = jax.tree.flatten(params)
    direction = []
    for i, leaf in enumerate(leaves):
        draw = jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        axes = tuple(range(leaf.ndim - 1))  # a filter is all that leads to one output
        size = jnp.sqrt((draw**2).sum(axes, keepdims=True))
        own = jnp.sqrt((leaf**2).sum(axes, keepdims=True))
        direction.append(draw * own / (size + 1e-12) if leaf.ndim > 1 else jnp.zeros_like(leaf))
    return jax.tree.unflatten(structure, direction)


def loss_on_plane(loss: Loss, variables: Variables, key: Array, shares: np.ndarray) -> np.ndarray:
    """The loss over two random filter-normalized directions around a network: float64 [S, S].

    The shares are steps along each direction, in norms of each filter; 0 is the network itself.
    """
    first, second = (filter_direction(variables["params"], jax.random.fold_in(key, i)) for i in range(2))

    def at(place: Array) -> Array:
        trees = variables["params"], first, second
        moved = jax.tree.map(lambda p, a, b: p + place[0] * a + place[1] * b, *trees)
        return loss({**variables, "params": moved})

    places = np.stack(np.meshgrid(shares, shares, indexing="ij"), -1).reshape(-1, 2)
    return _losses(at, places).reshape(len(shares), len(shares))
