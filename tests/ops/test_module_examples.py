"""The course module's own numbers: features, sizes, pooling, parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.ops.activations import activation
from cnnjax.ops.convolution import conv2d
from cnnjax.ops.pooling import max_pool
from cnnjax.ops.shapes import conv_output_size, pool_output_size

NINE = ".###. .#.#. .###. ...#. ...#. ..#.. .#..."
SIX = "...#. ..#.. .#... .#... .###. .#.#. .###."
EIGHT = ".###. .#.#. .###. ..... .###. .#.#. .###."
SEVEN = ".###. ...#. ...#. ..#.. ..#.. .#... .#..."
X = "......... .#.....#. ..#...#.. ...#.#... ....#.... ...#.#... ..#...#.. .#.....#. ........."
BENT_X = "......... ......#.. .#...#... ..##.#... ....#.... ...#.##.. ...#...#. ..#...... ........."
O = "......... ..#####.. .#.....#. .#.....#. .#.....#. .#.....#. .#.....#. ..#####.. ........."  # noqa: E741

LOOPY = np.array([[1, 1, 1], [1, -1, 1], [1, 1, 1]]) / 9


def picture(rows):
    """Ink is 1, paper is -1: float32 [H, W]."""
    return np.array([[1 if c == "#" else -1 for c in row] for row in rows.split()], np.float32)


def feature_map(image, feature):
    kernel = jnp.asarray(feature, jnp.float32)[:, :, None, None]
    return np.asarray(conv2d(jnp.asarray(image)[None, :, :, None], kernel)[0, :, :, 0])


def test_the_loopy_filter_on_the_nine():
    """The module's map, cut to two digits, wherever nine terms of +-1 can sum to it.

    In the last two rows it prints -0.22 twice, though nine odd numbers never sum to -2, and once
    -0.33 for -5/9: those three cells hold the true sums here.
    """
    found = feature_map(picture(NINE), LOOPY)
    ninths = [[-1, 9, -1], [-5, 1, -3], [-3, 3, -3], [-5, -1, -5], [-3, -5, -3]]
    np.testing.assert_allclose(found, np.array(ninths) / 9, atol=1e-6)
    printed = np.array(
        [
            [-0.11, 1, -0.11],
            [-0.55, 0.11, -0.33],
            [-0.33, 0.33, -0.33],
            [np.nan, -0.11, np.nan],
            [-0.33, np.nan, -0.33],
        ]
    )
    cut = np.trunc(found * 100 + np.sign(found) * 1e-3) / 100
    np.testing.assert_allclose(cut[~np.isnan(printed)], printed[~np.isnan(printed)], atol=1e-6)
    rectified = np.asarray(activation("relu")(jnp.asarray(found)))
    np.testing.assert_allclose(
        rectified, [[0, 1, 0], [0, 1 / 9, 0], [0, 1 / 3, 0], [0, 0, 0], [0, 0, 0]], atol=1e-6
    )


@pytest.mark.parametrize(
    ("image", "loops"),
    [
        (picture(NINE), [(0, 1)]),
        (picture(SIX), [(4, 1)]),
        (picture(EIGHT), [(0, 1), (4, 1)]),
        (np.hstack([picture(NINE), picture(SIX)]), [(0, 1), (4, 6)]),
        (picture(SEVEN), []),
    ],
    ids=["9", "6", "8", "96", "7"],
)
def test_the_same_filter_finds_every_loop_wherever_it_is(image, loops):
    found = np.argwhere(feature_map(image, LOOPY) > 0.99)
    assert [tuple(place) for place in found] == loops


def test_two_crosses_match_by_features_though_not_by_pixels():
    features = [picture(rows) / 9 for rows in ("#.. .#. ..#", "#.# .#. #.#", "..# .#. #..")]
    best = {
        name: [feature_map(picture(rows), feature).max() for feature in features]
        for name, rows in {"x": X, "bent": BENT_X, "o": O}.items()
    }
    assert (picture(X) != picture(BENT_X)).sum() == 16
    np.testing.assert_allclose(best["x"], [1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(best["bent"], [7 / 9, 1, 7 / 9], atol=1e-6)
    assert max(best["o"]) < 0.6


def test_max_pooling_of_the_four_by_four_example():
    x = jnp.array([[5, 1, 3, 4], [8, 2, 9, 2], [1, 3, 0, 1], [2, 2, 2, 0]], jnp.float32)
    np.testing.assert_array_equal(max_pool(x[None, :, :, None], 2)[0, :, :, 0], [[8, 9], [3, 2]])


@pytest.mark.parametrize(("size", "padding", "expected"), [(6, 0, 4), (9, 1, 9), (9, 0, 7)])
def test_output_sizes(size, padding, expected):
    assert conv_output_size(size, 3, 1, (padding, padding)) == expected
    y = conv2d(jnp.ones((1, size, size, 1)), jnp.ones((3, 3, 1, 1)), padding=padding)
    assert y.shape == (1, expected, expected, 1)


def test_simple_cnn_sizes():
    assert conv_output_size(28, 5, 1, (2, 2)) == 28
    assert pool_output_size(28, 2, 2) == 14
    assert pool_output_size(14, 2, 2) == 7


@pytest.mark.parametrize(("side", "weights"), [(28, 2352), (200, 120000)])
def test_a_fully_connected_neuron_explodes_and_a_filter_does_not(side, weights):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    flat = jax.eval_shape(lambda x: x.reshape(1, -1), image)
    assert flat.shape == (1, weights)
    kernel = jax.ShapeDtypeStruct((5, 5, 3, 1), jnp.float32)
    y = jax.eval_shape(lambda x, k: conv2d(x, k, padding="same"), image, kernel)
    assert y.shape == (1, side, side, 1)
    assert np.prod(kernel.shape) == 75
