"""Colour, resizing and mixing augmentations against Pillow, colorsys and NumPy."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cnnjax.data.augment import color, geometry
from cnnjax.data.augment.chain import parse
from cnnjax.data.augment.register import AUGMENTATIONS
from cnnjax.errors import UserError
from tests.data.test_augment import on

KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 12, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "reference"), [("brightness", "Brightness"), ("contrast", "Contrast"), ("saturation", "Color")]
)
def test_colour_jitter_is_pillows_enhancement(name, reference):
    factors = np.asarray(jax.random.uniform(KEY, (4, 1, 1, 1), minval=0.4, maxval=1.6)).ravel()
    assert factors.min() >= 0.4 and factors.max() <= 1.6 and len(set(factors)) == 4
    apply = AUGMENTATIONS[name].apply
    out = on(apply, KEY, IMAGES, 0.6)
    assert out.dtype == jnp.uint8
    for image, factor, ours in zip(IMAGES, factors, out, strict=True):
        theirs = np.asarray(getattr(ImageEnhance, reference)(Image.fromarray(image)).enhance(float(factor)))
        np.testing.assert_array_equal(ours, theirs)
    unit = on(apply, KEY, (IMAGES / 255).astype(np.float32), 0.6)
    np.testing.assert_allclose(unit, np.asarray(out) / 255, atol=2 / 255)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_compiled_colour_jitter_is_pillows_at_every_factor(name, monkeypatch):
    """A multiply-add that rounds once would differ at factors such as 0.97."""
    factors = np.concatenate([np.arange(100) / 50, RNG.uniform(0, 2, 100)]).astype(np.float32)
    images = RNG.integers(0, 256, (200, 24, 20, 3), dtype=np.uint8)
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: jnp.asarray(factors)[:, None, None, None])
    out = on(jax.jit(AUGMENTATIONS[name].apply, static_argnums=2), KEY, images, 1.0)
    enhance = getattr(ImageEnhance, {"saturation": "Color"}.get(name, name.title()))
    for image, factor, ours in zip(images, factors, out, strict=True):
        theirs = np.asarray(enhance(Image.fromarray(image)).enhance(float(factor)))
        np.testing.assert_array_equal(ours, theirs, f"{factor}")


def test_hue_turns_the_colour_circle():
    turn = np.asarray(jax.random.uniform(KEY, (4, 1, 1), minval=-0.3, maxval=0.3)).ravel()
    out = np.asarray(on(color.hue, KEY, (IMAGES / 255).astype(np.float32), 0.3))
    for image, angle, ours in zip(IMAGES, turn, out, strict=True):
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255]
        theirs = [colorsys.hsv_to_rgb((h + angle) % 1, s, v) for h, s, v in hsv]
        np.testing.assert_allclose(ours.reshape(-1, 3), theirs, atol=1e-4)


def test_pca_colour_shifts_each_image_along_the_components():
    pixels = (IMAGES / 255).reshape(-1, 3)
    covariance = tuple(map(tuple, np.cov(pixels.T, bias=True)))
    shift = np.asarray(on(color.pca_color, KEY, IMAGES, 0.1, covariance)) - IMAGES / 255
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], shift.shape), atol=1e-6)
    values, vectors = np.linalg.eigh(covariance)
    alpha = shift[:, 0, 0] @ vectors / values
    np.testing.assert_allclose(alpha, 0.1 * jax.random.normal(KEY, (4, 3)), atol=1e-3)


@pytest.mark.parametrize("size", [(5, 4), (24, 30)])
def test_a_resized_crop_of_the_whole_is_pillows_resize(size):
    pillow = pytest.importorskip("PIL.Image")
    images = RNG.integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    out = on(geometry.random_resized_crop, KEY, images, size, area=(1.0, 1.0), aspect=(1.0, 1.0))
    for image, ours in zip(images, out, strict=True):
        theirs = pillow.fromarray(image).resize(size[::-1], pillow.Resampling.BILINEAR)
        np.testing.assert_allclose(np.asarray(ours, int), np.asarray(theirs, int), atol=1)


def test_resized_crops_are_windows_of_the_drawn_area_and_aspect():
    row, column = np.mgrid[0:64, 0:64].astype(np.float32)
    images = np.broadcast_to(np.stack([row, column], -1), (300, 64, 64, 2))
    out = np.asarray(
        on(geometry.random_resized_crop, KEY, images, 8, area=(0.1, 0.3), aspect=(0.5, 2.0), antialias=False)
    )
    height = (out[:, 6, 4, 0] - out[:, 1, 4, 0]) / 5 * 8
    width = (out[:, 4, 6, 1] - out[:, 4, 1, 1]) / 5 * 8
    part, ratio = height * width / 64**2, width / height
    assert 0.095 < part.min() < 0.12 and 0.28 < part.max() < 0.305
    assert 0.49 < ratio.min() < 0.6 and 1.7 < ratio.max() < 2.05
    assert abs(np.log(ratio).mean()) < 0.1
    jittered = np.asarray(on(geometry.scale_jitter, KEY, images, 56, sides=(64, 120)))
    scale = 50 / (jittered[:, 53, 9, 0] - jittered[:, 3, 9, 0])
    assert 0.99 < scale.min() < 1.1 and 1.7 < scale.max() < 1.9


def test_erasing_and_cutout_make_one_black_rectangle():
    images = np.full((200, 16, 16, 1), 7, np.uint8)
    holes = np.asarray(on(geometry.random_erasing, KEY, images, 0.5, area=(0.1, 0.2)))[..., 0] == 0
    erased = holes.any((1, 2))
    assert 70 < erased.sum() < 130
    for hole in holes[erased]:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    share = holes[erased].mean((1, 2))
    assert share.min() > 0.06 and share.max() < 0.26
    cut = (np.asarray(on(geometry.cutout, KEY, images, 6))[..., 0] == 0).sum((1, 2))
    assert cut.max() == 36 and cut.min() >= 9


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_images_are(name):
    """Image i is i everywhere in channel i: the mean of a mixed image's channels is its label."""
    rows = jnp.eye(6)
    batch = {"image": jnp.broadcast_to(rows[:, None, None, :], (6, 8, 8, 6)), "label": jnp.arange(6)}
    mix = AUGMENTATIONS[name].apply
    mixed = mix(jax.random.key(1), batch, 1.0, num_classes=6)
    targets = mixed["label"]
    np.testing.assert_allclose(mixed["image"].mean((1, 2)), targets, atol=1e-5)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert 0.02 < float(targets.max(1).min()) < 1
    of_rows = mix(jax.random.key(1), batch | {"label": rows}, 1.0, num_classes=6)
    np.testing.assert_array_equal(of_rows["label"], targets)
    same = mix(KEY, batch, 0.0, num_classes=6)
    np.testing.assert_array_equal(same["image"], batch["image"])
    np.testing.assert_array_equal(same["label"], batch["label"])


def test_one_of_mixup_and_cutmix_is_drawn_for_a_batch():
    """MixUp blends ones with zeros everywhere, CutMix leaves every pixel a one or a zero."""
    batch = {"image": jnp.eye(4)[:, None, None, :] * jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
    mix = jax.jit(lambda key: AUGMENTATIONS["mixup_or_cutmix"].apply(key, batch, 1.0, num_classes=4))
    cut = []
    for key in jax.random.split(KEY, 40):
        mixed = mix(key)
        np.testing.assert_allclose(mixed["image"].mean((1, 2)), mixed["label"], atol=1e-5)
        cut.append(bool(((mixed["image"] == 0) | (mixed["image"] == 1)).all()))
    assert 10 < sum(cut) < 30


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mixup_or_cutmix"])
def test_mixing_needs_labels_and_the_number_of_classes(name):
    chain = parse(f"scale|{name}", image_shape=(12, 10, 3), num_classes=4)
    with pytest.raises(UserError, match=f"augmentation {name} needs label with the images"):
        chain.preprocess(IMAGES)
    with pytest.raises(UserError, match=f"augmentation {name}: num_classes is missing"):
        parse(f"scale|{name}", image_shape=(12, 10, 3))


def test_strength_zero_is_the_identity_and_jit_vmap_and_eager_agree():
    chain = parse(
        "brightness(0)|contrast(0)|saturation(0)|hue(0)|random_erasing(0)|scale", image_shape=(12, 10, 3)
    )
    np.testing.assert_allclose(on(chain, KEY, IMAGES), IMAGES / 255, atol=1e-6)
    spec = "random_resized_crop(8)|brightness(0.4)|pca_color(0.1)|normalize(0.5, 0.2)|mixup|cutmix"
    facts = {"image_shape": (12, 10, 3), "num_classes": 4, "covariance": np.eye(3) * 0.05}
    chain, batch = parse(spec, **facts), {"image": IMAGES, "label": jnp.arange(4)}
    eager, compiled = chain(KEY, batch), jax.jit(chain)(KEY, batch)
    for name in ("image", "label"):
        np.testing.assert_allclose(eager[name], compiled[name], atol=0.04)  # bytes may round differently
    assert parse(chain.spec, **facts) == chain
