"""Prediction from uint8 arrays in one call of the kernels against JAX and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data.augment import chain, views
from cnnjax.inference.direct import direct
from cnnjax.inference.fused import fuse
from cnnjax.inference.model import most_likely
from cnnjax.ops import cpu

kernels = pytest.mark.skipif(not cpu.takes(), reason=f"CPU kernels {cpu.status()}")
STEPS = "center_crop((4, 3))|normalize(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))"


@kernels
@pytest.mark.parametrize("steps", [STEPS, "normalize(mean=0.5, std=0.25)"])
def test_images_are_cropped_and_normalized_as_by_the_protocol(steps):
    augment = chain.parse(steps, image_shape=(7, 6, 3))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 7, 6, 3), np.uint8)
    kernel = rng.standard_normal((np.prod(augment.output_shape), 40), np.float32)

    def network(x):
        return x.reshape(x.shape[0], -1) @ kernel

    fused = fuse(network, augment.output_shape, jnp.float32)
    center, mirror = (views.parse(name, augment, (7, 6, 3)) for name in ("center", "mirror"))
    for count in (1, 5):
        found = direct(fused.program, center, (7, 6, 3))(images[:count])
        wanted = jax.nn.softmax(network(augment.preprocess(images[:count])))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    assert direct(fused.program, mirror, (7, 6, 3)) is None
    with pytest.raises(ValueError, match="the network takes uint8"):
        fused.program.predict(images[:, :2], *np.ones((2, 3), np.float32))


@kernels
def test_other_preprocessing_is_left_to_jax():
    augment = chain.parse("scale", image_shape=(4, 4, 3))
    fused = fuse(lambda x: x.reshape(x.shape[0], -1) @ np.ones((48, 5), np.float32), (4, 4, 3), jnp.float32)
    assert direct(fused.program, views.parse("center", augment, (4, 4, 3)), (4, 4, 3)) is None


@pytest.mark.parametrize(("classes", "top"), [(10, 5), (1000, 5), (1000, 1), (3, 5), (41, 10)])
def test_the_most_likely_classes_come_in_order(classes, top):
    rows = np.random.default_rng(0).random((7, classes), np.float32)
    np.testing.assert_array_equal(most_likely(rows, top), np.argsort(-rows, axis=1)[:, :top])


def test_of_equal_probabilities_the_first_class_comes_first():
    rows = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(most_likely(rows, 2), [[0, 1], [0, 1]])
