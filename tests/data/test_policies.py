"""RandAugment and TrivialAugment beside Pillow on real pictures; the alternating flip; what all promise."""

import itertools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnjax.data import batches as pipeline
from cnnjax.data.augment import geometry, policies
from cnnjax.data.augment.chain import Augmentation, parse
from cnnjax.data.augment.register import AUGMENTATIONS
from cnnjax.data.datasets import load
from cnnjax.data.sources.source import ArraySource
from cnnjax.errors import UserError
from tests import ROOT
from tests.conftest import simulated
from tests.data.test_augment import on

Image = pytest.importorskip("PIL.Image")
ImageEnhance, ImageOps = pytest.importorskip("PIL.ImageEnhance"), pytest.importorskip("PIL.ImageOps")
KEY = jax.random.key(3)


def photograph(size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """A real picture in colour, uint8 [H, W, 3]."""
    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as opened:
        return np.asarray(opened.convert("RGB").resize(size))


PILLOW = {
    "identity": lambda image, v: image,
    "shear_x": lambda i, v: i.transform(i.size, Image.Transform.AFFINE, (1, v, 0, 0, 1, 0)),
    "shear_y": lambda i, v: i.transform(i.size, Image.Transform.AFFINE, (1, 0, 0, v, 1, 0)),
    "translate_x": lambda i, v: i.transform(i.size, Image.Transform.AFFINE, (1, 0, v, 0, 1, 0)),
    "translate_y": lambda i, v: i.transform(i.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, v)),
    "rotate": lambda i, v: i.rotate(v),
    "brightness": lambda i, v: ImageEnhance.Brightness(i).enhance(float(np.float32(1) + np.float32(v))),
    "saturation": lambda i, v: ImageEnhance.Color(i).enhance(float(np.float32(1) + np.float32(v))),
    "contrast": lambda i, v: ImageEnhance.Contrast(i).enhance(float(np.float32(1) + np.float32(v))),
    "sharpness": lambda i, v: ImageEnhance.Sharpness(i).enhance(float(np.float32(1) + np.float32(v))),
    "posterize": lambda i, v: ImageOps.posterize(i, 8 - round(v)),
    "solarize": lambda i, v: ImageOps.solarize(i, 256 - v),
    "autocontrast": lambda i, v: ImageOps.autocontrast(i),
    "equalize": lambda i, v: ImageOps.equalize(i),
}
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
apply = jax.jit(policies.apply)


@pytest.mark.parametrize("name", policies.NAMES)
@pytest.mark.parametrize("channels", [3, 1])
def test_each_operation_is_pillows(name, channels):
    real = photograph() if channels == 3 else load("fashion_mnist_mini", "test").images[5]
    most = policies.OPERATIONS[name].narrow * (real.shape[1] if name.startswith("translate") else 1)
    signs = (1, -1) if policies.OPERATIONS[name].signed else (1,)
    for part, sign in itertools.product((0.2, 0.55, 1.0), signs):
        amount = most * part * sign
        ours = np.asarray(apply(real[None], jnp.full(1, policies.NAMES.index(name)), jnp.full(1, amount)))[0]
        theirs = PILLOW[name](Image.fromarray(real.squeeze()), amount)
        theirs = np.asarray(theirs).reshape(real.shape)
        if name in MOVES:  # a pixel on the border of two is cut otherwise in Pillow's fixed point
            assert (np.abs(ours.astype(int) - theirs) > 1).mean() < 0.01, (name, amount)
        else:  # autocontrast is of whole numbers, Pillow's of floating ones
            np.testing.assert_allclose(ours.astype(int), theirs, atol=int(name == "autocontrast"), rtol=0)
    still = apply(real[None], jnp.full(1, policies.NAMES.index(name)), jnp.zeros(1))
    if name not in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(still[0], real)


def test_operations_are_drawn_alike_and_with_both_signs():
    images = np.broadcast_to(photograph((16, 16)), (600, 16, 16, 3))
    out = np.asarray(on(jax.jit(policies.trivial_augment), KEY, images))
    assert out.dtype == np.uint8 and 0.05 < (out == images).all((1, 2, 3)).mean() < 0.35
    chosen = jnp.arange(600) % len(policies.NAMES)
    positive = jax.random.bernoulli(KEY, 0.5, (600,))
    amounts = np.asarray(policies._amounts(images.shape, chosen, jnp.ones(600), positive, "narrow"))
    by_name = {name: set(amounts[i :: len(policies.NAMES)].tolist()) for i, name in enumerate(policies.NAMES)}
    assert by_name["rotate"] == {-30.0, 30.0} and by_name["solarize"] == {256.0}
    np.testing.assert_allclose(sorted(by_name["translate_x"]), [-16 * 150 / 331, 16 * 150 / 331])
    twice = np.asarray(jax.jit(lambda key, x: on(policies.rand_augment, key, x, 0.3, 2))(KEY, images))
    assert 0.7 < (twice != images).any((1, 2, 3)).mean() < 1


def test_the_alternating_flip_shows_every_image_both_ways_in_two_epochs():
    """A hash of the example in the first epoch, then the other way round in each."""
    images = np.random.default_rng(0).integers(0, 256, (60, 2, 3, 1), dtype=np.uint8)
    source = ArraySource(images, np.arange(60, dtype=np.int32) % 3, ("a", "b", "c"), "x", "train")

    flip = jax.jit(geometry.alternating_flip)

    def flipped(kind, batch_size, key=KEY):
        """[4, 60]: whether each image is flipped in each of four epochs."""
        batches, seen = kind(source, batch_size, seed=7), np.zeros((4, 60), bool)
        for epoch in range(4):
            for _ in range(batches.steps_per_epoch):
                batch = next(batches)
                out = np.asarray(flip(KEY, batch | {"run_key": key})["image"])
                for index, image in zip(np.asarray(batch["index"]), out, strict=True):
                    seen[epoch, index] = not np.array_equal(image, images[index])
        return seen

    seen = flipped(pipeline.ResidentBatches, 16)
    assert 15 < seen[0].sum() < 45
    np.testing.assert_array_equal(seen[1], ~seen[0])
    np.testing.assert_array_equal(seen[2:], seen[:2])
    np.testing.assert_array_equal(flipped(pipeline.StreamBatches, 7), seen)
    assert not np.array_equal(flipped(pipeline.ResidentBatches, 16, jax.random.key(4)), seen)


def test_a_run_trains_with_the_alternating_flip_and_evaluates_without(tiny_config, tmp_path):
    from cnnjax.runs import experiment, train

    tiny_config.augment.train = "alternating_flip|normalize"
    tiny_config.total_epochs = 1.0
    assert np.isfinite(train.train(tiny_config, tmp_path).test["loss"])
    for call in ("alternating_flip", "mirror", "random_crop(8, padding=2)", "scale|mixup"):
        tiny_config.augment.eval = f"{call}|normalize"
        name = re.split(r"[|(]", call.removeprefix("scale|"))[0]
        with pytest.raises(UserError, match=rf"config\.augment\.eval=.*: {name} is for training"):
            experiment.build(tiny_config)
    with pytest.raises(UserError, match="alternating_flip needs index, epoch, run_key with the images"):
        parse("alternating_flip|scale", image_shape=(4, 4, 3)).preprocess(np.zeros((1, 4, 4, 3), np.uint8))


# Every augmentation, with arguments at which it does something, and those at which it must do nothing.
STRONG = {
    "alternating_flip": "alternating_flip",
    "brightness": "brightness(0.6)",
    "center_crop": "center_crop(20)",
    "contrast": "contrast(0.6)",
    "cutmix": "cutmix",
    "cutout": "cutout(8)",
    "hue": "hue(0.3)",
    "mirror": "mirror",
    "mixup": "scale|mixup(1.0)",
    "mixup_or_cutmix": "scale|mixup_or_cutmix(1.0)",
    "normalize": "normalize(0.4, 0.2)",
    "pca_color": "pca_color(0.5)",
    "rand_augment": "rand_augment(0.5)",
    "random_crop": "random_crop(24, padding=4, padding_mode='reflect')",
    "random_erasing": "random_erasing",
    "random_resized_crop": "random_resized_crop(16)",
    "saturation": "saturation(0.6)",
    "scale": "scale",
    "scale_jitter": "scale_jitter(20, sides=(24, 48))",
    "trivial_augment": "trivial_augment",
}
ZERO = [
    "brightness(0)",
    "contrast(0)",
    "cutmix(0)",
    "hue(0)",
    "mirror(0)",
    "scale|mixup(0)",
    "pca_color(0)",
    "rand_augment(0)",
    "random_crop((24, 28))",
    "center_crop((24, 28))",
    "random_erasing(0)",
    "saturation(0)",
    "random_resized_crop((24, 28), area=(1.0, 1.0), aspect=(1.1666666666666667, 1.1666666666666667))",
    "scale_jitter((24, 28), sides=(24, 24))",
    "trivial_augment(0)",
]


def chain_of(spec: str) -> Augmentation:
    floating = any(word in spec for word in ("scale|", "normalize", "pca_color")) or spec == "scale"
    covariance = np.cov(photograph().reshape(-1, 3).T / 255)
    spec = spec if floating else f"{spec}|scale"
    return parse(spec, image_shape=(24, 28, 3), num_classes=8, covariance=covariance)


def batch_of(count: int) -> dict:
    images = np.stack([np.roll(photograph((28, 24)), i, 1) for i in range(count)])
    index = jnp.arange(count)
    return {"image": images, "label": index, "index": index, "epoch": jnp.zeros_like(index), "run_key": KEY}


def test_the_list_is_that_of_the_augmentations():
    assert set(STRONG) == set(AUGMENTATIONS)


@pytest.mark.parametrize("spec", ZERO)
def test_nothing_happens_at_strength_zero(spec):
    batch = batch_of(4)
    out = jax.jit(chain_of(spec))(KEY, batch)
    np.testing.assert_allclose(out["image"], batch["image"] / 255, atol=1e-6)
    np.testing.assert_array_equal(out["label"], batch["label"])


@pytest.mark.parametrize("name", sorted(STRONG))
def test_dtype_range_and_the_sum_of_labels_are_kept(name):
    chain = chain_of(STRONG[name])
    batch = jax.jit(chain)(KEY, batch_of(4))
    out = batch["image"]
    assert out.dtype == jnp.float32 and out.shape == (4, *chain.output_shape) and np.isfinite(out).all()
    if "label" in AUGMENTATIONS[name].needs:
        np.testing.assert_allclose(batch["label"].sum(1), 1, atol=1e-5)
    else:
        np.testing.assert_array_equal(batch["label"], np.arange(4))
    if name not in ("normalize", "pca_color"):
        assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("name", sorted(STRONG))
def test_those_that_draw_are_known(name):
    """Evaluation refuses them: with another key they give other images."""
    chain = chain_of(STRONG[name])
    one, other = (chain(key, batch_of(8) | {"run_key": key})["image"] for key in jax.random.split(KEY))
    assert AUGMENTATIONS[name].draws == (not np.array_equal(one, other)) == (name in chain.training_only)


def compare(names: list[str]) -> None:
    """Eager, jit, vmap and a batch cut over the devices that there are give the same images and labels."""
    cut = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    for name in names:
        chain = chain_of(STRONG[name])
        arrays = {entry: array for entry, array in batch_of(8).items() if entry != "run_key"}

        def run(arrays, chain=chain):
            out = chain(KEY, arrays | {"run_key": KEY})
            return {entry: out[entry] for entry in ("image", "label")}

        expected = run(arrays)
        twice = jax.jit(jax.vmap(run))(jax.tree.map(lambda array: np.stack([array] * 2), arrays))
        others = [jax.jit(run)(arrays), jax.jit(run)(jax.device_put(arrays, cut))]
        for out in (*others, jax.tree.map(lambda array: array[1], twice)):  # bytes may round differently
            np.testing.assert_allclose(out["image"], expected["image"], atol=2 / 255, err_msg=name)
            np.testing.assert_allclose(out["label"], expected["label"], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_eager_jit_vmap_and_shards_give_the_same():
    code = (
        "import jax; from tests.data.test_policies import compare, STRONG; assert len(jax.devices()) == 2; "
        "compare(sorted(STRONG))"
    )
    subprocess.run([sys.executable, "-c", code], env=simulated(2), cwd=ROOT, check=True)


def test_the_contact_sheet_has_a_row_for_each_augmentation():
    from cnnjax.explore import augmentations

    specs = augmentations.examples_of_each((24, 28, 3))
    assert set(specs) == set(AUGMENTATIONS)
    grey = augmentations.examples_of_each((24, 28, 1))
    assert set(AUGMENTATIONS) - set(grey) == {"saturation", "hue"}
    images = batch_of(2)["image"]
    shown = {name: specs[name] for name in ("mirror", "mixup", "normalize", "alternating_flip")}
    titles = [axes.get_ylabel() for axes in augmentations.contact_sheet(images, shown).axes[::2]]
    assert titles == ["original", *shown]


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_are_no_colours_are_left_alone_by_operations_on_colours(channels):
    from cnnjax.explore import augmentations

    images = np.random.default_rng(0).integers(0, 256, (2, 24, 28, channels), np.uint8)
    colours = {"contrast", "saturation", "hue", "rand_augment", "trivial_augment"}
    assert set(AUGMENTATIONS) - set(augmentations.examples_of_each(images.shape[1:])) == colours
    sheet = augmentations.contact_sheet(images)
    assert len(sheet.axes) == 2 * (1 + len(AUGMENTATIONS) - len(colours))
    for name in sorted(colours - {"rand_augment", "trivial_augment"}):
        with pytest.raises(UserError, match=f"augmentation {name}: images have {channels} channels"):
            parse(f"{name}(0.2)|scale", image_shape=images.shape[1:], num_classes=2)
