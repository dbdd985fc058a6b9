"""Augmentations against NumPy, their keys, and the errors of the string that chains them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjax.data.augment import color, geometry, register
from cnnjax.data.augment.chain import parse
from cnnjax.data.augment.register import ARGUMENTS, AUGMENTATIONS, Operation, operation
from cnnjax.errors import UserError

RNG = np.random.default_rng(0)


def on(augment, key, images, *args, **kwargs):
    """The images that an augmentation makes of images."""
    return augment(key, {"image": jnp.asarray(images)}, *args, **kwargs)["image"]


def numbered(batch: int, height: int, width: int) -> np.ndarray:
    """uint8 [B, H, W, 3]: channels row, column and image, so that each pixel says where it was."""
    image, row, column = np.meshgrid(*map(np.arange, (batch, height, width)), indexing="ij")
    return np.stack([row, column, image], -1).astype(np.uint8)


def test_mirror_flips_or_keeps_each_image_as_a_whole():
    images = RNG.integers(0, 256, (64, 3, 5, 2), dtype=np.uint8)
    out = np.asarray(on(geometry.mirror, jax.random.key(0), images))
    flipped = [np.array_equal(o, i[:, ::-1]) for o, i in zip(out, images, strict=True)]
    kept = [np.array_equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48
    assert out.dtype == np.uint8


def test_mirror_at_probability_one_is_numpys_flip_and_at_zero_the_identity():
    images = RNG.normal(size=(8, 3, 4, 1)).astype(np.float32)
    key = jax.random.key(1)
    np.testing.assert_array_equal(on(geometry.mirror, key, images, 1.0), images[:, :, ::-1])
    np.testing.assert_array_equal(on(geometry.mirror, key, images, 0.0), images)


@settings(max_examples=8, deadline=None)
@given(
    height=st.integers(3, 6),
    width=st.integers(3, 6),
    size=st.integers(1, 5),
    padding=st.integers(0, 2),
    mode=st.sampled_from(["zero", "reflect"]),
    seed=st.integers(0, 1000),
)
def test_random_crop_is_a_window_of_numpys_padded_image(height, width, size, padding, mode, seed):
    size = min(size, height + 2 * padding, width + 2 * padding)
    images = RNG.integers(1, 256, (4, height, width, 2), dtype=np.uint8)
    out = np.asarray(on(geometry.random_crop, jax.random.key(seed), images, size, padding, mode))
    pad = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    padded = np.pad(images, pad, mode="constant" if mode == "zero" else "reflect")
    assert out.shape == (4, size, size, 2) and out.dtype == np.uint8
    for image, cut in zip(padded, out, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
        windows = windows.transpose(0, 1, 3, 4, 2).reshape(-1, *cut.shape)
        assert (windows == cut).all((1, 2, 3)).any()


def test_every_crop_place_and_mirror_occurs_about_equally_often():
    """Views of 4x4 from 6x6: 3 rows, 3 columns, mirrored or not."""
    images = jnp.asarray(np.tile(numbered(1, 6, 6), (3600, 1, 1, 1)))
    views = on(parse("random_crop(4)|mirror|scale", image_shape=(6, 6, 3)), jax.random.key(3), images)
    corners = np.round(np.asarray(views)[:, 0, [0, -1], :2] * 255).astype(int).reshape(-1, 4)
    found, counts = np.unique(corners, axis=0, return_counts=True)
    assert len(found) == 3 * 3 * 2
    assert counts.min() > 130 and counts.max() < 280  # 200 expected, sigma 14


def test_views_of_a_227_crop_from_256():
    """Shifts of 0..28 give the course's 29 * 29 * 2 = 1682; all the places there are, 30 * 30 * 2 = 1800."""
    shifts = 256 - 227
    assert shifts * shifts * 2 == 1682
    images = np.zeros((2048, 256, 1, 1), np.uint8) + np.arange(256, dtype=np.uint8)[None, :, None, None]
    crop = jax.jit(lambda key, x: on(geometry.random_crop, key, x, (227, 1))[:, 0, 0, 0])
    starts = np.unique(crop(jax.random.key(0), images))
    np.testing.assert_array_equal(starts, np.arange(shifts + 1))
    assert len(starts) ** 2 * 2 == 1800


@pytest.mark.parametrize(("size", "top", "left"), [(2, 1, 2), ((3, 4), 1, 1), ((5, 6), 0, 0)])
def test_center_crop_takes_the_middle(size, top, left):
    images = numbered(2, 5, 6)
    out = np.asarray(on(geometry.center_crop, jax.random.key(0), images, size))
    height, width = size if isinstance(size, tuple) else (size, size)
    np.testing.assert_array_equal(out, images[:, top : top + height, left : left + width])


def test_scale_and_normalize_against_numpy():
    images = RNG.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    unit = images / np.float64(255)
    expected = (unit - mean) / std
    key = jax.random.key(0)
    scaled = on(color.scale, key, images)
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, unit, atol=1e-7)
    for x in (images, scaled):
        normalized = on(color.normalize, key, x, mean, std)
        assert normalized.dtype == jnp.float32
        np.testing.assert_allclose(normalized, expected, atol=3e-6)


@pytest.mark.parametrize(
    "spec",
    [
        "mirror(0)",
        "random_crop((5, 6))",
        "random_crop((5, 6), padding_mode='reflect')",
        "center_crop((5, 6))",
    ],
)
def test_identity_at_strength_zero(spec):
    images = numbered(4, 5, 6)
    out = on(parse(f"{spec}|scale", image_shape=(5, 6, 3)), jax.random.key(7), images)
    np.testing.assert_array_equal(out, parse("scale", image_shape=(5, 6, 3)).preprocess(images))


def test_same_key_same_images_other_key_other_images_and_jit_equals_eager():
    chain = parse(
        "random_crop(8, padding=2)|mirror|normalize", image_shape=(8, 8, 3), mean=(0.3,), std=(0.2,)
    )
    images = RNG.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    one, again, other = (np.asarray(on(chain, jax.random.key(s), images)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(on(jax.jit(chain), jax.random.key(1), images), one, atol=1e-6)
    keys = jax.random.split(jax.random.key(0), 2)
    pair = on(jax.vmap(chain), keys, jnp.stack([images, images]))
    np.testing.assert_allclose(pair[1], on(chain, keys[1], images), atol=1e-6)


@pytest.mark.parametrize("spec", ["normalize(mean=0.5,std=0.25)", "center_crop(2)|scale", "mirror|scale"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, bool])
def test_pixels_of_another_type_are_refused_not_read_on_another_scale(spec, dtype):
    chain = parse(spec, image_shape=(4, 4, 3))
    images = np.full((1, 4, 4, 3), 1, dtype)
    for call in (chain.preprocess, jax.jit(chain.preprocess)):
        with pytest.raises(UserError, match="images; allowed: uint8 pixels"):
            call(images)


def test_two_of_the_same_operation_draw_apart():
    """Two fair flips with one key would cancel; with their own they leave half the images flipped."""
    images = numbered(64, 2, 3)
    out = on(parse("mirror|mirror|scale", image_shape=(2, 3, 3)), jax.random.key(0), images)
    flipped = np.asarray(out)[:, 0, 0, 1] > 0
    assert 16 < flipped.sum() < 48


def chain_of(name):
    """One augmentation on images [8, 8, 3], with values for the arguments that have no default."""
    op = AUGMENTATIONS[name]
    given = {"size": "6", "mean": "0.5", "std": "0.25", "strength": "0.4", "hue": "0.1", "num_classes": "5"}
    given["covariance"] = "((1, 0, 0), (0, 1, 0), (0, 0, 1))"
    needed = [f"{a}={given[a]}" for a, p in op.parameters.items() if p.default is p.empty]
    call = f"{name}({', '.join(needed)})"
    spec = (call if op.gives else f"{call}|scale") if "uint8" in op.takes else f"scale|{call}"
    return parse(spec, image_shape=(8, 8, 3), num_classes=5)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_every_operation_has_checked_arguments_and_says_its_shape(name):
    op, chain = AUGMENTATIONS[name], chain_of(name)
    assert set(op.parameters) <= set(ARGUMENTS)
    assert op.apply.__doc__
    assert chain.training_only == ((name,) if op.draws or op.needs else ())
    row = jax.ShapeDtypeStruct((2,), jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8), "label": row, "index": row, "epoch": row}
    out = jax.eval_shape(chain, jax.random.key(0), batch | {"run_key": jax.random.key(0)})
    assert out["label"].shape == ((2, 5) if "label" in op.needs else (2,))
    assert out["image"].shape == (2, *chain.output_shape) and out["image"].dtype == jnp.float32
    assert set(out) == {*batch, "run_key"}


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_draws_and_dtypes_are_the_same_where_jax_has_64_bits(name):
    """Also with labels of rows, as another mix before it leaves them."""
    row = np.arange(4, dtype=np.int32)
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for label in (row, np.eye(4, 5)) if "label" in AUGMENTATIONS[name].needs else (row,):
        found = []
        for wide in (False, True):
            with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
                batch = {
                    "image": image,
                    "label": label,
                    "index": row,
                    "epoch": row,
                    "run_key": jax.random.key(0),
                }
                out = jax.jit(chain_of(name))(jax.random.key(1), jax.tree.map(jnp.asarray, batch))
                found.append([out["image"], out["label"]])
        for narrow, wide in zip(*found, strict=True):
            assert narrow.dtype == wide.dtype != jnp.float64
            np.testing.assert_array_equal(narrow, wide)


def test_the_name_of_an_augmentation_is_not_taken_again(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "mirror", before := AUGMENTATIONS["mirror"])

    def mirror(key, batch):
        return batch

    with pytest.raises(RuntimeError, match=r"'mirror' is claimed twice, by .*geometry and .*test_augment"):
        operation()(mirror)
    assert AUGMENTATIONS["mirror"] is before
    operation()(before.apply)  # as when its module is loaded again


def test_an_argument_without_a_row_is_refused_when_it_is_registered(monkeypatch):
    monkeypatch.setattr(register, "AUGMENTATIONS", {})

    def shear(key, batch, probability=0.5, degrees=10):
        return batch

    with pytest.raises(
        RuntimeError, match=r"shear: its argument degrees has no row in `ARGUMENTS`.*register"
    ):
        operation()(shear)
    assert register.AUGMENTATIONS == {}


def test_output_shape_and_normalised_spec():
    chain = parse(
        " random_crop(size = 24, padding=0) | mirror( 0.5 )|normalize",
        image_shape=(28, 30, 1),
        mean=(0.2,),
        std=(0.3,),
    )
    assert chain.output_shape == (24, 24, 1)
    assert chain.spec == "random_crop(24)|mirror|normalize"
    assert parse(chain.spec, image_shape=(28, 30, 1), mean=(0.2,), std=(0.3,)) == chain
    assert parse("normalize(std=0.5, mean=[0.1])", image_shape=(2, 2, 1)).spec == "normalize((0.1,), 0.5)"


def test_the_rest_of_the_batch_goes_along_and_an_augmentation_may_change_it(monkeypatch):
    def swap(key, batch):
        return batch | {"image": batch["image"][::-1], "label": batch["label"][::-1]}

    monkeypatch.setitem(AUGMENTATIONS, "swap", Operation(swap, needs=("label",)))
    batch = {"image": numbered(3, 2, 2), "label": jnp.eye(3), "other": jnp.arange(3)}
    plain = parse("scale", image_shape=(2, 2, 3))(jax.random.key(0), batch)
    np.testing.assert_array_equal(plain["label"], batch["label"])
    np.testing.assert_array_equal(plain["other"], batch["other"])
    chain = parse("swap|scale", image_shape=(2, 2, 3))
    mixed = chain(jax.random.key(0), batch)
    np.testing.assert_array_equal(mixed["label"], batch["label"][::-1])
    np.testing.assert_allclose(mixed["image"], batch["image"][::-1] / np.float32(255), rtol=1e-6)
    with pytest.raises(UserError, match="augmentation swap needs label with the images"):
        chain.preprocess(batch["image"])


def test_a_jittered_crop_may_be_as_wide_as_the_smallest_image():
    wide = "scale_jitter((20, 30), sides=(20, 40))|scale"
    assert parse(wide, image_shape=(32, 48, 3)).output_shape == (20, 30, 3)
    with pytest.raises(UserError, match=r"allowed: at most 30x20, or larger sides"):
        parse(wide, image_shape=(48, 32, 3))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("miror|scale", ["augmentation", "'miror'", "did you mean 'mirror'", "random_crop"]),
        ("random_crop(24, paddin=2)|scale", ["random_crop", "'paddin'", "did you mean 'padding'"]),
        (
            "random_crop(40, padding=2)|scale",
            ["size = 40", "28x28", "padding 2", "at most 32x32"],
        ),
        ("center_crop(29)|scale", ["center_crop", "size = 29", "at most 28x28"]),
        ("random_crop(20)|random_crop(24)|scale", ["random_crop", "size = 24", "at most 20x20"]),
        (
            "scale_jitter(28)|scale_jitter(224, sides=(192, 256))|scale",
            ["size = 224", "(192, 256)", "192x192"],
        ),
        ("scale_jitter((20, 31), sides=(30, 60))|scale", ["scale_jitter", "size = (20, 31)", "30x30"]),
        ("random_crop(0)|scale", ["random_crop", "size = 0", ">= 1"]),
        ("random_crop(2.5)|scale", ["random_crop", "size = 2.5", "whole number"]),
        ("random_crop(True)|scale", ["random_crop", "size = True", "whole number"]),
        ("random_crop|scale", ["random_crop", "size is missing"]),
        ("random_crop(28, -1)|scale", ["random_crop", "padding = -1", ">= 0"]),
        ("random_crop(28, 2, 'mirror')|scale", ["padding_mode = 'mirror'", "'zero' or 'reflect'"]),
        ("random_crop(28, 28, 'reflect')|scale", ["random_crop", "padding = 28", "at most 27"]),
        ("random_crop(28, size=28)|scale", ["random_crop", "size is given twice"]),
        ("mirror(1.5)|scale", ["mirror", "probability = 1.5", "[0, 1]"]),
        ("mirror('often')|scale", ["mirror", "probability = 'often'", "[0, 1]"]),
        ("scale(2)", ["scale", "1 values", "none"]),
        ("normalize((0.1, 0.2), 1)", ["normalize", "mean = (0.1, 0.2)", "2 channels", "allowed: 1"]),
        ("normalize(0.1, 0)", ["normalize", "std = 0", "> 0"]),
        ("normalize(0.1, 1e999)", ["normalize", "std = inf"]),
        ("normalize(mean=0.1)", ["normalize", "std is missing"]),
        ("scale|scale", ["scale", "uint8 pixels", "they are unit", "or remove it"]),
        ("", ["normalize or scale", "uint8"]),
        ("mirror", ["normalize or scale", "uint8"]),
        ("mirror||scale", ["augmentation"]),
        ("mirror(__import__('os').getpid())|scale", ["augmentation", "__import__"]),
        ("mirror(probability=p)|scale", ["augmentation", "probability=p"]),
        ("(" * 300, ["augmentation"]),
    ],
)
def test_errors_name_the_operation_the_value_and_what_is_allowed(spec, words):
    with pytest.raises(UserError) as error:
        parse(spec, image_shape=(28, 28, 1))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "name", [name for name, each in AUGMENTATIONS.items() if "num_classes" in each.parameters]
)
@pytest.mark.parametrize("given", [1, 2, 4, 20])
def test_another_number_of_classes_than_the_data_has_is_refused(name, given):
    """With 1 the labels were spread over all logits; a wrong mean or std is the user's choice."""
    with pytest.raises(UserError, match=rf"{name}: num_classes = {given}; allowed: 3, as the data set has"):
        parse(f"scale|{name}(num_classes={given})", image_shape=(8, 8, 3), num_classes=3)
    for known in (3, None):
        parse(f"scale|{name}(num_classes=3)", image_shape=(8, 8, 3), num_classes=known)
