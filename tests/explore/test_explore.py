"""What a network has learned: each method against a computation of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cnnjax.errors import UserError
from cnnjax.explore import (
    attribution,
    explain,
    faithfulness,
    landscape,
    layers,
    markup,
    plots,
    units,
)
from cnnjax.models import create_model, forward, init_variables, variant
from cnnjax.models.layers import Conv, Dense
from cnnjax.training import metrics

SHAPE = (12, 12, 1)


def build(spec, shape=SHAPE, seed=0, **fields):
    """A model and random variables for it, drawn without compiling anything."""
    model = create_model(spec, **fields)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), shape))
    draw = np.random.default_rng(seed)

    def value(leaf):
        if len(leaf.shape) < 2:
            return jnp.asarray(draw.uniform(0.5, 1, leaf.shape), leaf.dtype)
        return jnp.asarray(draw.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape), leaf.dtype)

    return model, jax.tree.map(value, shapes)


def values(model, variables, image, *names):
    return jax.jit(lambda v, x: layers.feature_maps(model, v, x, names))(variables, image)


def attributed(method, model, variables, image, label=None, **options):
    label = LABEL if label is None else label
    return jax.jit(functools.partial(method, model, **options))(variables, image, label)


@pytest.fixture(scope="module")
def tiny():
    return build("simple_cnn(widths=(4, 6), kernel_size=3)", num_classes=3)


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, *SHAPE)), jnp.float32)


LABEL = jnp.array([2, 0])


class Pooled(nn.Module):
    """Convolution, ReLU, global average, linear: Grad-CAM has a closed form."""

    @nn.compact
    def __call__(self, image, *, train=False):
        x = jax.nn.relu(Conv(5, 3, name="conv")(image))
        return Dense(3, name="head")(x.mean((1, 2)))


def test_layers_are_named_in_order_and_hold_what_the_modules_give(tiny, image):
    model, variables = tiny
    found = layers.layer_shapes(model, variables, SHAPE)
    assert list(found) == [
        *("conv1", "norm1", "norm1:out"),
        *("conv2", "norm2", "norm2:out", "norm2:vector", "head"),
    ]
    assert found["norm1:out"] == (6, 6, 4)
    assert found["head"] == (3,)
    maps = values(model, variables, image, *found)
    capture = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    _, captured = jax.jit(capture)(variables, image)
    for name in ("conv1", "norm2", "head"):
        (wanted,) = captured["intermediates"][name]["__call__"]
        np.testing.assert_allclose(maps[name], wanted, rtol=1e-5, atol=1e-6)
    assert float(maps["norm2"].min()) == 0  # its ReLU belongs to it
    with pytest.raises(UserError, match="unknown layer 'conv'"):
        layers.feature_maps(model, variables, image, ["conv"])


def test_blocks_have_names_and_run_gives_the_logits(image):
    model, variables = build("resnet20_cifar(widths=(4, 8), stage_sizes=(2, 1))", (8, 8, 1))
    small = image[:, :8, :8]
    traced = forward.trace(forward.unrolled(model), variables, small)
    assert {"stem", "stage1_block2/conv1", "stage2_block1"} <= set(traced.layers)
    assert traced.last_map.name == "stage2_block1"
    logits = jax.jit(lambda v, x: forward.run(traced, v, x)[0])(variables, small)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, small), rtol=1e-4, atol=1e-5)


def test_a_receptive_box_is_what_changes_the_place(tiny):
    model, variables = tiny
    for layer, place in (("conv1", (0, 5)), ("conv2", (3, 2)), ("norm2:out", (1, 1))):
        top, left, bottom, right = layers.receptive_box(model, variables, SHAPE, layer, place)

        def value(x, layer=layer, place=place):
            return layers.feature_maps(model, variables, x, [layer])[layer][0, place[0], place[1]].sum()

        draws = np.random.default_rng(1).normal(size=(6, 1, *SHAPE)).astype(np.float32)
        gradient = jax.jit(jax.vmap(jax.grad(value)))(draws)
        seen = np.argwhere(np.any(gradient[:, 0, ..., 0] != 0, 0))
        assert (top, left) == tuple(seen.min(0))
        assert (bottom, right) == tuple(seen.max(0) + 1)


def test_grad_cam_of_a_pooled_linear_net_is_the_weighted_map(image):
    """There the weights are those of the class over the number of places (Selvaraju et al., section 3.1)."""
    model = Pooled()
    variables = model.init(jax.random.key(0), image)
    maps = np.maximum(np.asarray(values(model, variables, image, "conv")["conv"]), 0)
    weights = np.asarray(variables["params"]["head"]["kernel"])[:, np.asarray(LABEL)].T / 100
    wanted = np.maximum(np.einsum("bhwc,bc->bhw", maps, weights), 0)
    for method in (attribution.grad_cam, attribution.hires_cam):
        found = attributed(method, model, variables, image)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_grad_cam_and_its_second_form_in_numpy(tiny, image):
    """From values of the map and numerical derivatives of the logit by them."""
    model, variables = tiny
    traced = forward.trace(model, variables, image)
    last = traced.last_map
    assert last.name == "norm2:out"
    value = np.asarray(values(model, variables, image, "norm2:out")["norm2:out"], np.float64)
    # The classifier is linear in this map, so its derivative by the map is the head's own kernel.
    kernel = np.asarray(variables["params"]["head"]["kernel"], np.float64).reshape(3, 3, 6, 3)
    gradient = np.moveaxis(kernel[..., np.asarray(LABEL)], -1, 0)
    wanted = np.maximum((gradient.mean((1, 2), keepdims=True) * value).sum(-1), 0)
    found = attributed(attribution.grad_cam, model, variables, image)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    alpha = gradient**2 / (2 * gradient**2 + value.sum((1, 2), keepdims=True) * gradient**3)
    weights = (alpha * np.maximum(gradient, 0)).sum((1, 2), keepdims=True)
    second = np.maximum((weights * value).sum(-1), 0)
    found = attributed(attribution.grad_cam_plus_plus, model, variables, image)
    np.testing.assert_allclose(found, second, rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="needs a map of several places"):
        attribution.grad_cam(model, variables, image, LABEL, layer="head")


def test_grad_cam_changes_when_weights_are_drawn_anew(image):
    """A map that survived random weights would not be about the network (Adebayo et al. 2018, 1810.03292)."""
    model = Pooled()
    maps = [
        np.asarray(attributed(attribution.grad_cam, model, model.init(jax.random.key(seed), image), image))
        for seed in range(3)
    ]
    correlation = np.corrcoef([m.ravel() for m in maps]) - np.eye(3)
    assert np.abs(correlation).max() < 0.9


def test_layer_cam_of_a_pooled_linear_net_weighs_by_the_positive_class_weights(image):
    """There the gradient by a place that is above 0 is the class's weight over the number of places."""
    model = Pooled()
    variables = model.init(jax.random.key(0), image)
    maps = np.maximum(np.asarray(values(model, variables, image, "conv")["conv"]), 0)
    weights = np.asarray(variables["params"]["head"]["kernel"])[:, np.asarray(LABEL)].T / 100
    wanted = np.einsum("bhwc,bc->bhw", maps, np.maximum(weights, 0))
    found = attributed(attribution.layer_cam, model, variables, image)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_score_cam_asks_the_network_about_the_image_behind_each_map(image):
    model = Pooled()
    variables = model.init(jax.random.key(0), image)
    maps = np.asarray(values(model, variables, image, "conv")["conv"])
    maps = np.maximum(maps, 0)
    scores = np.zeros((5, 2))
    for channel in range(5):
        mask = attribution.heatmap(jnp.asarray(maps[..., channel]), (12, 12))
        shares = jax.nn.softmax(jax.jit(model.apply)(variables, image * mask[..., None]))
        scores[channel] = shares[np.arange(2), np.asarray(LABEL)]
    weights = np.exp(scores) / np.exp(scores).sum(0)
    found = attributed(attribution.score_cam, model, variables, image)
    np.testing.assert_allclose(found, np.einsum("bhwc,cb->bhw", maps, weights), rtol=1e-3, atol=1e-6)
    few = attributed(attribution.score_cam, model, variables, image, channels=1)
    widest = maps.std((1, 2)).argmax(1)
    np.testing.assert_allclose(few, maps[[0, 1], ..., widest], rtol=1e-5)  # the softmax of one is 1


def test_eigen_cam_is_the_first_component_whatever_the_class(image):
    model = Pooled()
    variables = model.init(jax.random.key(0), image)
    maps = np.maximum(np.asarray(values(model, variables, image, "conv")["conv"]), 0)
    found = attributed(attribution.eigen_cam, model, variables, image)
    np.testing.assert_array_equal(
        found, attributed(attribution.eigen_cam, model, variables, image, 1 - LABEL // 2)
    )
    for each, heat in zip(maps, found, strict=True):
        places = each.reshape(-1, 5)
        _, vectors = np.linalg.eigh(places.T @ places)
        wanted = (places @ vectors[:, -1]).reshape(10, 10)
        wanted = np.maximum(wanted * np.sign(wanted.sum()), 0)
        np.testing.assert_allclose(heat, wanted, rtol=1e-3, atol=1e-4)


def test_deletion_and_insertion_change_the_hottest_pixels_first(tiny, image):
    model, variables = tiny
    heat = jnp.asarray(np.random.default_rng(3).uniform(size=(2, 12, 12)), jnp.float32)
    find = functools.partial(faithfulness.deletion_insertion, model, steps=4)
    deletion, insertion = jax.jit(find)(variables, image, LABEL, heat)
    soft = faithfulness.blurred(image)

    def probability(x):
        shares = jax.nn.softmax(jax.jit(model.apply)(variables, x))
        return np.asarray(shares)[np.arange(2), np.asarray(LABEL)]

    hottest = np.zeros((2, 144, 1), bool)
    for i, each in enumerate(np.asarray(heat).reshape(2, -1)):
        hottest[i, np.argsort(-each)[:36]] = True
    hottest = jnp.asarray(hottest.reshape(2, 12, 12, 1))
    for row, x, y in ((0, image, soft), (4, 0 * image, image)):
        np.testing.assert_allclose(deletion[row], probability(x), rtol=1e-4)
        np.testing.assert_allclose(insertion[row], probability(y), rtol=1e-4)
    np.testing.assert_allclose(deletion[1], probability(jnp.where(hottest, 0, image)), rtol=1e-4)
    np.testing.assert_allclose(insertion[1], probability(jnp.where(hottest, image, soft)), rtol=1e-4)
    flat = jnp.ones((1, 12, 12, 1))
    np.testing.assert_allclose(faithfulness.blurred(flat), flat, rtol=1e-5)


def test_the_cascade_of_random_weights_tells_what_a_map_is_about(image):
    """Of Grad-CAM of a pooled net; of one that does not look at the network it finds that it does not."""
    model = Pooled()
    variables = model.init(jax.random.key(0), image)
    find = functools.partial(faithfulness.cascade, model=model, variables=variables)
    found = find(attribution.grad_cam, image=image, label=LABEL, key=jax.random.key(1))
    assert list(found) == ["head", "conv"]
    assert found["conv"] < 0.8
    edges = find(
        lambda model, variables, image, label: jnp.abs(image).sum(-1),
        image=image,
        label=LABEL,
        key=jax.random.key(1),
    )
    assert edges == pytest.approx({"head": 1, "conv": 1})
    drawn = faithfulness.randomized(variables, jax.random.key(2), ["head"])["params"]
    np.testing.assert_array_equal(drawn["conv"]["kernel"], variables["params"]["conv"]["kernel"])
    assert not np.allclose(drawn["head"]["kernel"], variables["params"]["head"]["kernel"])


def torch_squeezenet(torch, num_classes):
    """SqueezeNet 1.1 with torchvision's names, from the layers of torch alone."""
    nn = torch.nn

    class Fire(nn.Module):
        def __init__(self, channels, squeeze, expand):
            super().__init__()
            self.squeeze = nn.Conv2d(channels, squeeze, 1)
            self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
            self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

        def forward(self, x):
            x = self.squeeze(x).relu()
            return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)

    def pool():
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    layers = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool()]
    layers += [Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192)]
    layers += [Fire(384, 64, 256), Fire(512, 64, 256)]
    head = nn.Sequential(nn.Dropout(), nn.Conv2d(512, num_classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": head}).eval()


def test_grad_cam_equals_torch_on_its_weights():
    torch = pytest.importorskip("torch", reason="torch is not here: the extra `peers`")
    from cnnjax.models.weights.torch import convert_into

    torch.manual_seed(0)
    theirs, ours = torch_squeezenet(torch, 7), create_model("squeezenet1_1", num_classes=7)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=(2 / max(1, parameter[0].numel())) ** 0.5)
    draw = np.random.default_rng(0).normal(size=(1, 63, 63, 3)).astype(np.float32)
    maps = theirs["features"](torch.from_numpy(draw.transpose(0, 3, 1, 2)))
    maps.retain_grad()
    logits = theirs["classifier"](maps).flatten()
    logits[logits.argmax()].backward()
    value, gradient = maps.detach().numpy(), maps.grad.numpy()
    alpha = gradient**2 / (2 * gradient**2 + value.sum((2, 3), keepdims=True) * gradient**3 + 1e-30)
    weights = {
        attribution.grad_cam: gradient.mean((2, 3), keepdims=True),
        attribution.grad_cam_plus_plus: (alpha * np.maximum(gradient, 0)).sum((2, 3), keepdims=True),
        attribution.hires_cam: gradient,
    }
    variables = convert_into({k: v.numpy() for k, v in theirs.state_dict().items()}, ours, (63, 63, 3))
    label = jnp.array([int(logits.argmax())])
    for method, weight in weights.items():
        wanted = np.maximum((weight * value).sum(1), 0)
        assert wanted.max() > 0
        found = attributed(method, ours, variables, jnp.asarray(draw), label)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * wanted.max())


def test_integrated_gradients_add_up_to_the_difference_of_logits(tiny, image):
    model, variables = tiny
    method = functools.partial(attribution.integrated_gradients, model, variables)
    for baseline in (0.0, -1.0):
        found = jax.jit(functools.partial(method, baseline=baseline, steps=128))(image, LABEL)
        start = jnp.full_like(image, baseline)
        ends = [attributed(attribution.class_logits, model, variables, x) for x in (image, start)]
        np.testing.assert_allclose(found.sum((1, 2, 3)), ends[0] - ends[1], atol=0.01)


def test_saliency_is_the_gradient_and_smooth_grad_without_noise_too(tiny, image):
    model, variables = tiny
    found = attributed(attribution.saliency, model, variables, image)
    step = jnp.zeros_like(image).at[0, 5, 6, 0].set(1e-2)
    logits = [attributed(attribution.class_logits, model, variables, image + s * step)[0] for s in (1, -1)]
    assert float(found[0, 5, 6]) == pytest.approx(abs(float(logits[0] - logits[1])) / 2e-2, rel=0.05)
    method = functools.partial(attribution.smooth_grad, key=jax.random.key(0), samples=4)
    smooth = attributed(method, model, variables, image, noise=0.0)
    np.testing.assert_allclose(smooth, found, rtol=1e-4, atol=1e-6)
    smooth = attributed(method, model, variables, image, noise=0.1)
    assert np.corrcoef(smooth[0].ravel(), found[0].ravel())[0, 1] > 0.3
    assert not np.allclose(smooth, found, rtol=1e-2)


def test_guided_gradients_drop_what_is_negative():
    kernel = jnp.array([[1.0, -1.0]])

    def score(x):
        return (attribution.guided_relu(x @ kernel) @ jnp.array([[2.0], [-3.0]])).sum()

    np.testing.assert_array_equal(jax.grad(score)(jnp.array([[1.0], [-1.0]])), [[2.0], [0.0]])


def test_guided_gradient_replaces_every_relu(tiny, image):
    """Of a value behind two of them, with weights of both signs, against the network by hand."""
    model, variables = tiny
    weights = np.random.default_rng(1).normal(size=(2, 6, 6, 6)).astype(np.float32)

    def score(logits, values):
        return (weights * values).sum()

    def by_hand(x, relu):
        params, stats = variables["params"], variables["batch_stats"]
        for i, width in enumerate(model.widths, 1):
            x = Conv(width, 3, padding=1).apply({"params": params[f"conv{i}"]}, x)
            norm = {
                k: leaf[None, None, None] for k, leaf in {**params[f"norm{i}"], **stats[f"norm{i}"]}.items()
            }
            x = (x - norm["mean"]) / jnp.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
            x = relu(x) if i == 2 else nn.max_pool(relu(x), (2, 2), (2, 2))
        return score(None, x)

    found = jax.jit(lambda x: attribution.guided_gradient(model, variables, x, score, "norm2"))(image)
    wanted, plain = (
        jax.jit(jax.grad(functools.partial(by_hand, relu=relu)))(image)
        for relu in (attribution.guided_relu, jax.nn.relu)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(wanted - plain).max() > 0.1 < np.abs(wanted).max()


class Watcher(nn.Module):
    """Its logits are the sums over 2 x 2 pixels at `place`, and nothing else."""

    place: tuple[int, int]

    @nn.compact
    def __call__(self, image, *, train=False):
        top, left = self.place
        seen = image[:, top : top + 2, left : left + 2, 0].sum((1, 2))
        return jnp.stack([seen, -seen], -1)


@pytest.mark.parametrize("place", [(0, 0), (9, 4), (4, 13), (7, 7), (17, 16), (18, 18)])
def test_occlusion_is_hot_where_the_network_looks_and_nowhere_else(place):
    """Also in the far corner, which the squares at multiples of 2 of 3 pixels do not reach by themselves."""
    image, label = jnp.ones((1, 20, 20, 1)), jnp.array([0])
    heat = np.asarray(explain.OF_PIXELS["occlusion"](Watcher(place), {}, image, label))[0]
    assert heat.shape == (20, 20)
    rows, columns = np.indices(heat.shape)
    middle = [(heat * at).sum() / heat.sum() for at in (rows, columns)]
    np.testing.assert_allclose(middle, np.add(place, 0.5), atol=0.75)
    assert heat[place[0] : place[0] + 2, place[1] : place[1] + 2].max() == heat.max() > 0
    reached = np.argwhere(heat > 0)
    assert (reached.min(0) > np.array(place) - 3).all() and (reached.max(0) < np.array(place) + 4).all()


def test_occlusion_is_the_fall_of_the_logit(tiny, image):
    model, variables = tiny
    found = attributed(attribution.occlusion, model, variables, image, window=4, stride=4, fill=0.5)
    assert found.shape == (2, 12, 12)
    covered = image.at[:, 4:8, 8:12].set(0.5)
    whole, less = (attributed(attribution.class_logits, model, variables, x) for x in (image, covered))
    expected = np.broadcast_to((whole - less)[:, None, None], (2, 4, 4))
    np.testing.assert_allclose(found[:, 4:8, 8:12], expected, rtol=1e-3, atol=1e-5)
    apart = attributed(attribution.occlusion, model, variables, image, window=1, stride=7, fill=0.5)
    assert (np.asarray(apart != 0).any((1, 2)).all()) and not np.asarray(apart)[:, 1:7].any()
    with pytest.raises(UserError, match="window=13"):
        attribution.occlusion(model, variables, image, LABEL, window=13, stride=1)


def test_a_heatmap_fills_zero_to_one_and_nothing_stays_nothing():
    maps = jnp.stack([jnp.arange(4.0).reshape(2, 2), jnp.zeros((2, 2))])
    heat = attribution.heatmap(maps, (6, 8))
    assert heat.shape == (2, 6, 8)
    assert (float(heat[0].min()), float(heat[0].max()), float(heat[1].max())) == (0, 1, 0)


def test_best_patches_hold_what_excites_the_unit(tiny):
    model, variables = tiny
    draw = np.random.default_rng(1)
    images = jnp.asarray(draw.normal(size=(10, *SHAPE)), jnp.float32)
    found = units.peaks(model, variables, [images[:5], images[5:]], "conv1")
    value = np.asarray(values(model, variables, images, "conv1")["conv1"])
    np.testing.assert_allclose(found.value, value.max((1, 2)), rtol=1e-5)
    best = units.best_patches(model, variables, SHAPE, found, unit=2, count=3)
    assert [p.index for p in best] == list(np.argsort(-value.max((1, 2))[:, 2])[:3])
    row, column = np.argwhere(value[best[0].index, ..., 2] == value[best[0].index, ..., 2].max())[0]
    top, left, bottom, right = best[0].box
    assert top <= row < bottom and left <= column < right and bottom - top <= 3
    with pytest.raises(UserError, match="unit=4"):
        units.best_patches(model, variables, SHAPE, found, unit=4)


def test_statistics_find_dead_units(tiny, image):
    model, variables = tiny
    norm = variables["params"]["norm1"] | {"bias": jnp.array([0.0, -1e6, 0.0, 0.0])}
    broken = {**variables, "params": variables["params"] | {"norm1": norm}}
    found = units.statistics(model, broken, [image[:1], image[1:]], "norm1")
    assert list(found.dead) == [1]
    value = values(model, broken, image, "norm1")["norm1"]
    np.testing.assert_allclose(found.mean, value.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found.std, value.std((0, 1, 2)), rtol=1e-3, atol=1e-6)


def test_64_bits_elsewhere_change_no_dtype(tiny, image):
    model, variables = tiny
    with jax.enable_x64(True):
        assert units.maximize(model, variables, SHAPE, 1, jax.random.key(0), steps=1).dtype == "float32"
        heat = attribution.integrated_gradients(model, variables, image, LABEL, steps=2)
        drawn = faithfulness.randomized(variables, jax.random.key(0))
        direction = landscape.filter_direction(variables["params"], jax.random.key(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((heat, drawn, direction))} == {"float32"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda *given: attribution.smooth_grad(*given, jax.random.key(0), samples=0), "samples=0 must be"),
        (lambda *given: attribution.integrated_gradients(*given, steps=0), "steps=0 must be"),
        (lambda *given: attribution.score_cam(*given, channels=-1), "channels=-1 must be"),
        (lambda *given: units.statistics(*given[:2], [], "conv1"), "batches=0 must be"),
        (lambda *given: units.peaks(*given[:2], [], "conv1"), "batches=0 must be"),
    ],
)
def test_nothing_to_average_is_told(call, words, tiny, image):
    with pytest.raises(UserError, match=words):
        call(*tiny, image, LABEL)


def test_maximization_excites_the_unit_far_more_than_noise(tiny):
    model, variables = tiny
    for layer, unit in ((None, 1), ("conv2", 3)):
        climb = functools.partial(units.maximize, model, image_shape=SHAPE, layer=layer, steps=24)
        image = jax.jit(functools.partial(climb, unit=unit))(variables=variables, key=jax.random.key(0))
        noise = jax.random.normal(jax.random.key(1), (16, *SHAPE)) * image.std()
        name = layer or "head"
        high, usual = (
            np.asarray(values(model, variables, x, name)[name])[..., unit] for x in (image[None], noise)
        )
        assert high.mean() > usual.reshape(16, -1).mean(1).max()
    with pytest.raises(UserError, match="unit=3; allowed: 0 to 2"):
        units.maximize(model, variables, SHAPE, 3, jax.random.key(0))


def test_first_filters_are_the_first_kernel(tiny):
    model, variables = tiny
    found = units.first_filters(model, variables, SHAPE)
    np.testing.assert_array_equal(found[1], variables["params"]["conv1"]["kernel"][..., 1])


def test_penultimate_features_give_the_logits(tiny, image):
    for model, variables in (tiny, (Pooled(), Pooled().init(jax.random.key(0), image))):
        features = jax.jit(functools.partial(layers.penultimate, model))(variables, image)
        head = variables["params"]["head"]
        logits = features @ head["kernel"] + head["bias"][None]
        np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, image), rtol=1e-3, atol=1e-5)


def test_pca_is_scikit_learns_and_tsne_keeps_clusters():
    decomposition = pytest.importorskip("sklearn.decomposition")
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = draw.normal(size=(60, 8)) + 12 * np.eye(8)[labels]
    found, shares = landscape.pca(features)
    theirs = decomposition.PCA(2).fit(features)
    np.testing.assert_allclose(np.abs(found), np.abs(theirs.transform(features)), atol=1e-6)
    np.testing.assert_allclose(shares, theirs.explained_variance_ratio_, rtol=1e-6)
    plane = landscape.tsne(features, perplexity=10)
    centres = np.stack([plane[labels == k].mean(0) for k in range(3)])
    nearest = np.linalg.norm(plane[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == labels).mean() > 0.95
    with pytest.raises(UserError, match="perplexity=60"):
        landscape.tsne(features, perplexity=60)


def test_losses_on_a_line_and_on_a_plane():
    def loss(variables):
        return (variables["params"]["w"] ** 2).sum() + 0 * variables["batch_stats"]["m"].sum()

    start, end = (
        {"params": {"w": jnp.full((2, 2), v)}, "batch_stats": {"m": jnp.ones(2)}} for v in (0.0, 1.0)
    )
    found = landscape.loss_on_line(loss, start, end, np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(found, [0, 1, 4])
    direction = landscape.filter_direction(end["params"], jax.random.key(0))["w"]
    np.testing.assert_allclose(np.linalg.norm(direction, axis=0), [2**0.5, 2**0.5], rtol=1e-5)
    plane = landscape.loss_on_plane(loss, end, jax.random.key(0), np.array([-0.5, 0.0, 0.5]))
    first, second = (
        landscape.filter_direction(end["params"], jax.random.fold_in(jax.random.key(0), i))["w"]
        for i in (0, 1)
    )
    wanted = [[((1 + a * first + b * second) ** 2).sum() for b in (-0.5, 0, 0.5)] for a in (-0.5, 0, 0.5)]
    np.testing.assert_allclose(plane, wanted, rtol=1e-5)
    assert np.abs(plane - plane.T).max() > 0.1  # so rows and columns are told apart


def test_every_picture_can_be_drawn(tiny, image):
    draw = np.random.default_rng(0)
    heat = draw.uniform(size=(12, 12))
    byte = np.uint8(draw.integers(0, 255, SHAPE))
    found = {"label": np.array([0, 1]), "prediction": np.array([0, 0]), "confidence": np.array([0.9, 0.6])}
    figures = [
        plots.map_grid(draw.normal(size=(6, 6, 5)), columns=3),
        plots.filter_grid(units.first_filters(*tiny, SHAPE)),
        plots.heat_row(byte, {"one": heat, "two": heat}),
        plots.boxes(byte, [(0, 0, 3, 3)]),
        plots.patch_row([byte], [(0, 0, 3, 3)], ["1.5"]),
        plots.curves({"a": ([0, 1], [2, 3])}, "x", "y"),
        plots.points(draw.normal(size=(9, 2)), np.arange(9) % 3, ["a", "b", "c"]),
        plots.confusion(np.eye(3, dtype=int), ["a", "b", "c"]),
        plots.reliability(metrics.calibration(found)),
        plots.plane(draw.uniform(size=(4, 4)), np.linspace(-1, 1, 4)),
    ]
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert np.asarray(canvas.buffer_rgba())[..., :3].std() > 0
    blended = plots.blend(byte, np.zeros((12, 12)))
    np.testing.assert_array_equal(blended, np.broadcast_to(byte, (12, 12, 3)))


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_are_no_colours_are_drawn_as_their_mean(channels):
    image = np.random.default_rng(0).integers(0, 255, (12, 12, channels), np.uint8)
    mean = image.mean(-1, keepdims=True).astype(np.uint8)
    heat = np.linspace(0, 1, 144).reshape(12, 12)
    assert markup.png(image) == markup.png(mean)
    np.testing.assert_array_equal(plots.blend(image, heat), plots.blend(mean, heat))
    canvases = [FigureCanvasAgg(plots.image_grid([each])) for each in (image, mean)]
    for canvas in canvases:
        canvas.draw()
    drawn = (np.asarray(canvas.buffer_rgba(), int) for canvas in canvases)
    np.testing.assert_allclose(*drawn, atol=2)  # one mean is of bytes, the other was rounded to one


FAMILIES = {  # by network: the map that Grad-CAM looks at, and the features before the classifier
    "lenet5": ("conv2:out", (5, 5, 16), 84),
    "vgg11": ("stage5_conv2:out", (7, 7, 512), 4096),
    "alexnet": ("conv5:out", (6, 6, 256), 4096),
    "nin_cifar": ("mlpconv3", (8, 8, 192), 192),
    "resnet18": ("stage4_block2", (7, 7, 512), 512),
    "wrn_16_4": ("norm", (8, 8, 256), 256),
    "squeezenet1_1": ("stage3_fire4", (13, 13, 512), 512),
}
SLOW_FAMILIES = {
    "googlenet": ("cell5b", (7, 7, 1024), 1024),
    "inception_v3": ("mixed7c", (8, 8, 2048), 2048),
    "densenet121": ("norm", (7, 7, 1024), 1024),
    "mobilenet_v1_025": ("stage5_block2/pointwise/norm", (7, 7, 256), 256),
    "efficientnet_b0": ("last/norm", (7, 7, 1280), 1280),
    "convnext_tiny": ("stage4_block3", (7, 7, 768), 768),
    "airbench94": ("stage3", (3, 3, 256), 256),
}


@pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES)]
)
def test_every_family_has_a_sensible_default_layer(name):
    """At the network's own size, by shapes alone: nothing is computed."""
    model, shape = create_model(name), variant(name).preset.input_size
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), shape))
    image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    label = jax.ShapeDtypeStruct((2,), jnp.int32)
    layer, size, features = (FAMILIES | SLOW_FAMILIES)[name]
    found = forward.trace(model, variables, forward.image_struct(shape)).last_map
    assert (found.name, found.shape) == (layer, size)
    heat = jax.eval_shape(functools.partial(attribution.grad_cam, model), variables, image, label)
    assert heat.shape == (2, *size[:2])
    kept = jax.eval_shape(functools.partial(layers.penultimate, model), variables, image)
    assert kept.shape == (2, features)
    assert forward.first_convolution(model, variables, image)
    top, left, bottom, right = layers.receptive_box(model, variables, shape, None, (1, 1))
    assert 0 <= top < bottom <= shape[0]
    assert 0 <= left < right <= shape[1]
