"""Test protocols against views cut by hand and averaged in NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import config
from cnnjax.cli import main
from cnnjax.data.augment import chain as augment
from cnnjax.data.augment import views as protocols
from cnnjax.data.files import read_json
from cnnjax.errors import UserError
from cnnjax.runs import train
from cnnjax.runs.experiment import build

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
CROPPED = augment.parse("center_crop((7, 6))|scale", image_shape=(12, 10, 3))
WHOLE = augment.parse("scale", image_shape=(12, 10, 3))
KERNEL = RNG.normal(size=(7 * 6 * 3, 4)).astype(np.float32)


def apply(image):
    """Not the same for a mirrored or a moved image."""
    height, width = (jnp.arange(side, dtype=jnp.float32) for side in image.shape[1:3])
    weights = height[None, :, None, None] * width[None, None, :, None] ** 2
    return (image * weights).mean((1, 2)) / 3 + image[:, 0, 0]


def softmax_mean(views, weights):
    return sum(w * np.asarray(jax.nn.softmax(apply(v))) for v, w in zip(views, weights, strict=True))


def found(spec, chain):
    protocol = protocols.parse(spec, chain, (12, 10, 3))
    return np.asarray(jax.jit(lambda x: protocol(apply, x))(IMAGES))


def test_center_gives_the_networks_own_logits():
    np.testing.assert_allclose(found("center", CROPPED), apply(IMAGES[:, 2:9, 2:8] / 255), rtol=1e-5)


def test_ten_crop_is_five_places_both_ways():
    unit = IMAGES / np.float32(255)
    places = [(0, 0), (0, 4), (5, 0), (5, 4), (2, 2)]
    crops = [unit[:, top : top + 7, left : left + 6] for top, left in places]
    expected = softmax_mean([*crops, *(c[:, :, ::-1] for c in crops)], [0.1] * 10)
    np.testing.assert_allclose(np.exp(found("ten_crop", CROPPED)), expected, rtol=1e-5)


def test_alexnets_ten_crops_lie_in_the_corners_of_256():
    chain = augment.parse("center_crop(227)|scale", image_shape=(256, 256, 3))
    (views,) = protocols.parse("ten_crop", chain, (256, 256, 3)).views
    assert {place[:2] for place in views.places} == {(0, 0), (0, 29), (29, 0), (29, 29), (14, 14)}
    assert len(set(views.places)) == 10


def test_mirror_and_mirror_translate():
    unit = IMAGES / np.float32(255)
    expected = softmax_mean([unit, unit[:, :, ::-1]], [0.5, 0.5])
    np.testing.assert_allclose(np.exp(found("mirror", WHOLE)), expected, rtol=1e-5)
    padded = np.pad(unit, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    moved = [unit, padded[:, :-4, :-4], padded[:, 4:, 4:]]
    expected = softmax_mean([*moved, *(v[:, :, ::-1] for v in moved)], [0.25, 0.125, 0.125] * 2)
    np.testing.assert_allclose(np.exp(found("mirror_translate(pixels=2)", WHOLE)), expected, rtol=1e-5)


RESIZED = ["scale_jitter(64, sides=(64, 64))", "random_resized_crop((64, 48), area=(1.0, 1.0))"]


@pytest.mark.parametrize("step", RESIZED)
def test_views_are_of_the_image_as_the_steps_before_the_crop_leave_it(step):
    first = augment.parse(f"{step}|scale", image_shape=(96, 96, 3))
    height, width, _ = first.output_shape
    chain = augment.parse(f"{step}|center_crop(40)|scale", image_shape=(96, 96, 3))
    (views,) = protocols.parse("ten_crop", chain, (96, 96, 3)).views
    middle = ((height - 40) // 2, (width - 40) // 2)
    corners = {(0, 0), (0, width - 40), (height - 40, 0), (height - 40, width - 40)}
    assert {place[:2] for place in views.places} == {*corners, middle}
    scaled = protocols.parse("multi_scale((24,))", chain, (96, 96, 3))
    assert scaled.input_shapes == {(round(24 * height / width), 24, 3)}


@pytest.mark.parametrize(
    "protocol", ["center", "mirror", "mirror_translate", "ten_crop", "multi_scale((64,))"]
)
@pytest.mark.parametrize(
    "chain", ["center_crop(48)|center_crop(32)|scale", "center_crop(40)|mirror(0.0)|scale"]
)
def test_input_shapes_are_those_of_what_the_network_gets(protocol, chain):
    seen = set()

    def network(image):
        seen.add(image.shape[1:])
        return image.mean((1, 2))

    protocol = protocols.parse(protocol, augment.parse(chain, image_shape=(64, 64, 3)), (64, 64, 3))
    jax.eval_shape(lambda images: protocol(network, images), jnp.zeros((2, 64, 64, 3), jnp.uint8))
    assert protocol.input_shapes == seen


def test_multi_scale_looks_at_whole_images_of_each_size():
    protocol = protocols.parse("multi_scale(sides=(10, 20))", CROPPED, (12, 10, 3))
    assert protocol.input_shapes == {(12, 10, 3), (24, 20, 3)}
    unit = np.asarray(IMAGES / np.float32(255))
    only = np.exp(found("multi_scale((10,))", CROPPED))
    np.testing.assert_allclose(only, softmax_mean([unit, unit[:, :, ::-1]], [0.5, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(np.exp(protocol(apply, IMAGES)).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ten_crops", "ten_crop"),
        ("ten_crop(5)", "none"),
        ("mirror_translate(pixels=0)", "1 to"),
        ("mirror_translate(pixel=1)", "pixels"),
        ("multi_scale(sides=5)", "whole numbers"),
        ("ten_crop(", "not a name"),
    ],
)
def test_a_wrong_protocol_is_told_in_one_line(spec, words):
    with pytest.raises(UserError, match="protocol") as error:
        protocols.parse(spec, CROPPED, (12, 10, 3))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_size_too_small_for_a_later_crop_is_told():
    chain = augment.parse("center_crop(9)|center_crop(8)|scale", image_shape=(12, 10, 3))
    with pytest.raises(UserError, match=r"^protocol=multi_scale: augmentation center_crop: size = 8 .* 6x5;"):
        protocols.parse("multi_scale((12, 5))", chain, (12, 10, 3))


def test_ten_crop_needs_a_crop_and_multi_scale_a_net_without_a_fixed_size(tiny_config):
    with pytest.raises(UserError, match="center_crop"):
        protocols.parse("ten_crop", WHOLE, (12, 10, 3))
    side = build(tiny_config).train_source.image_shape[0]
    tiny_config.augment.eval = f"center_crop({side})|normalize"
    tiny_config.eval_protocol = f"multi_scale(sides=({side}, {2 * side}))"
    with pytest.raises(UserError, match="global average pooling"):
        build(tiny_config)


def test_the_protocol_is_recorded_with_the_result(tiny_config, tmp_path, capsys):
    tiny_config.total_epochs, tiny_config.optimizer.warmup_epochs = 1.0, 0.0
    tiny_config.eval_protocol = "mirror"
    result = train.train(tiny_config, tmp_path / "run")
    assert json.loads((tmp_path / "run/test.json").read_text())["protocol"] == "mirror"
    assert result.test["protocol"] == "mirror"
    assert len(np.load(tmp_path / "run/predictions.npz")["prediction"]) == 37
    losses = {}
    for spec in ("mirror", "center"):
        assert main.run(["evaluate", f"--workdir={tmp_path / 'run'}", f"--protocol={spec}", "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["protocol"] == spec
        losses[spec] = printed["loss"]
    assert losses["mirror"] == pytest.approx(result.test["loss"], rel=1e-5)
    assert losses["center"] != losses["mirror"]
    assert config.from_dict(read_json(tmp_path / "run/config.json")).eval_protocol == "mirror"
