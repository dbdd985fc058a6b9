"""Prediction from uint8 arrays in one call of the kernels against JAX and numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data.augment import chain, views
from cnnjax.errors import UserError
from cnnjax.inference.direct import direct
from cnnjax.inference.fused import fuse
from cnnjax.inference.model import untrained
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
        fused.program.predictor(*np.ones((2, 3)))(images[:, :2])


@kernels
def test_other_preprocessing_is_left_to_jax():
    augment = chain.parse("scale", image_shape=(4, 4, 3))
    fused = fuse(lambda x: x.reshape(x.shape[0], -1) @ np.ones((48, 5), np.float32), (4, 4, 3), jnp.float32)
    assert direct(fused.program, views.parse("center", augment, (4, 4, 3)), (4, 4, 3)) is None


@pytest.mark.parametrize("top", [1, 2, 3, 5])
def test_of_equal_probabilities_the_first_class_comes_first(top):
    """Of a network whose last weights are 0."""
    model = untrained("simple_cnn")
    params = model.variables["params"]
    zero = {**model.variables, "params": {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])}}
    images = np.zeros((2, *model.image_shape), np.uint8)
    for found in dataclasses.replace(model, variables=zero).predict(images, top=top):
        assert [name for name, _ in found.top] == list(model.class_names[:top])


@pytest.mark.parametrize("wrong", [{"top": 0}, {"top": -1}, {"batch_size": 0}, {"batch_size": -1}])
def test_counts_below_one_are_refused(wrong):
    model = untrained("simple_cnn")
    image = np.zeros(model.image_shape, np.uint8)
    for call in (model.predict, lambda image, **given: [*model.stream([image], **given)]):
        with pytest.raises(UserError, match=r"(top|batch_size)=(0|-1)"):
            call(image, **wrong)
