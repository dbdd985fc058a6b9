"""MobileNet v3, MnasNet, RegNet, ShuffleNet v2, EfficientNet V2: what their papers print, names in torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.models import create_model, names_in_torch, variable_shapes
from cnnjax.models.regnet import TIMM, TORCHVISION, linear_stages, nearest
from cnnjax.models.shufflenet import shuffle

pytestmark = pytest.mark.filterwarnings("ignore:the ImageNet stem")


def shapes(name: str, size: int) -> dict[str, tuple[int, ...]]:
    """The output [H, W, C] of each module at the top."""
    model = create_model(name)

    def run():
        image = jnp.zeros((1, size, size, 3))
        return model.init_with_output(jax.random.key(0), image, capture_intermediates=True, mutable=True)[1]

    found = jax.eval_shape(run)["intermediates"]
    return {module: value["__call__"][0].shape[1:] for module, value in found.items() if "__call__" in value}


SHAPES = {
    "mobilenet_v3_large": {
        "stem": (112, 112, 16),
        "stage2_block2": (56, 56, 24),
        "stage3_block3": (28, 28, 40),
        "stage4_block4": (14, 14, 80),
        "stage5_block2": (14, 14, 112),
        "stage6_block3": (7, 7, 160),
        "last": (7, 7, 960),
        "dense": (1280,),
    },
    "mobilenet_v3_small": {
        "stem": (112, 112, 16),
        "stage1_block1": (56, 56, 16),
        "stage5_block3": (7, 7, 96),
        "last": (7, 7, 576),
        "dense": (1024,),
    },
    "mnasnet1_0": {
        "stage1_block1": (112, 112, 16),
        "stage2_block3": (56, 56, 24),
        "stage4_block3": (14, 14, 80),
        "stage6_block4": (7, 7, 192),
        "last": (7, 7, 1280),
    },
    "shufflenet_v2_x1_0": {
        "stem": (112, 112, 24),
        "stage1_block1": (28, 28, 116),
        "stage2_block1": (14, 14, 232),
        "stage3_block1": (7, 7, 464),
        "last": (7, 7, 1024),
    },
    "efficientnet_v2_s": {
        "stem": (112, 112, 24),
        "stage3_block4": (28, 28, 64),
        "stage5_block9": (14, 14, 160),
        "stage6_block15": (7, 7, 256),
        "last": (7, 7, 1280),
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_stages_have_the_shapes_that_the_papers_print(name):
    found = shapes(name, 224)
    assert {module: found.get(module) for module in SHAPES[name]} == SHAPES[name]


def test_regnet_widths_follow_the_linear_rule_of_the_paper():
    assert linear_stages(TIMM["x_004"], nearest) == ((32, 64, 160, 384), (1, 2, 7, 12))
    assert linear_stages(TIMM["y_120"], nearest) == ((224, 448, 896, 2240), (2, 5, 11, 1))
    assert linear_stages(TORCHVISION["x_400mf"][0]) == ((32, 64, 160, 400), (1, 2, 7, 12))
    assert linear_stages(TORCHVISION["y_128gf"][0]) == ((528, 1056, 2904, 7392), (2, 7, 17, 1))


def test_shuffled_channels_alternate_between_the_branches():
    left, right = jnp.zeros((1, 1, 1, 3)), jnp.ones((1, 1, 1, 3))
    np.testing.assert_array_equal(shuffle(left, right)[0, 0, 0], [0, 1, 0, 1, 0, 1])
    model = create_model("shufflenet_v2_x0_5(stem='cifar', stage_sizes=(2,), widths=(8,))")
    image = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    run = partial(model.init_with_output, capture_intermediates=True, mutable=True)
    _, found = jax.jit(run)(jax.random.key(1), image)
    first, second = (found["intermediates"][f"stage1_block{i}"]["__call__"][0] for i in (1, 2))
    np.testing.assert_array_equal(second[..., ::2], first[..., :4])  # the first half is passed on


def test_the_first_files_of_mnasnet_have_a_stem_of_full_width():
    for name, stem, first in (("mnasnet0_5", 16, 8), ("mnasnet0_5_v1", 32, 16)):
        found = shapes(name, 64)
        assert (found["stem"][-1], found["stage1_block1"][-1], found["stage2_block1"][-1]) == (
            stem,
            first,
            16,
        )


ENTRIES = {
    "efficientnet_v2_s": (
        {
            "stage1_block1/fused/conv": "features.1.0.block.0.0",
            "stage2_block1/project/norm": "features.2.0.block.1.1",
            "stage4_block2/se/fc2": "features.4.1.block.2.fc2",
            "last/norm": "features.7.1",
        },
        {
            "stage1_block1/fused/conv": "blocks.0.0.conv",
            "stage2_block1/fused/conv": "blocks.1.0.conv_exp",
            "stage2_block1/project/norm": "blocks.1.0.bn2",
            "stage4_block2/se/fc2": "blocks.3.1.se.conv_expand",
        },
    ),
    "mobilenet_v3_large": (
        {
            "stage1_block1/project/conv": "features.1.block.1.0",
            "stage3_block1/se/fc1": "features.4.block.2.fc1",
            "stage6_block3/project/norm": "features.15.block.3.1",
            "last/conv": "features.16.0",
            "dense": "classifier.0",
        },
        {
            "stage1_block1/project/conv": "blocks.0.0.conv_pw",
            "last/conv": "blocks.6.0.conv",
            "dense": "conv_head",
        },
    ),
    "mnasnet1_0": (
        {
            "stage1_block1/project/norm": "layers.7",
            "stage2_block3/depthwise/conv": "layers.8.2.layers.3",
            "last/norm": "layers.15",
        },
        {"stage2_block3/depthwise/norm": "blocks.1.2.bn2"},
    ),
    "regnet_y_8gf": (
        {
            "stage3_block10/conv2/conv": "trunk_output.block3.block3-9.f.b.0",
            "stage2_block1/shortcut/norm": "trunk_output.block2.block2-0.proj.1",
            "stage2_block1/se/fc1": "trunk_output.block2.block2-0.f.se.fc1",
        },
        {
            "stage3_block10/conv2/conv": "s3.b10.conv2.conv",
            "stage2_block1/shortcut/norm": "s2.b1.downsample.bn",
        },
    ),
    "shufflenet_v2_x1_5": (
        {
            "stage1_block2/depthwise/norm": "stage2.1.branch2.4",
            "stage3_block1/left_conv/conv": "stage4.0.branch1.2",
        },
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_names_of_torchvision_and_timm(name):
    model = create_model(name)
    for family, wanted in zip(names_in_torch(model), ENTRIES[name], strict=True):
        assert {path: family.rename(path, model) for path in wanted} == wanted


# Networks with a strided block that neither adds channels nor, on a map of one pixel, changes the size.
STRIDED = [
    "repvgg_a0(stage_sizes=(1, 2), widths=(4, 4))",
    "xception41(entry=(((4, 4, 4), 2), ((4, 4, 4), 2)), middle=(), stem_widths=(4, 4))",
    "xception41p(entry=(((4, 4, 4), 2), ((4, 4, 4), 2)), middle=(), stem_widths=(4, 4))",
    "ghostnet_100(stages=(((3, 2, 16, 16, False),),))",
    "mobilenet_v2(stages=((1, 32, 1, 2),), last_width=8)",
    "efficientnet_lite0(stages=((1, 3, 2, 32, 1),))",
    "efficientnet_b0(stages=((1, 3, 2, 32, 1),))",
]


@pytest.mark.parametrize("spec", STRIDED)
def test_a_strided_block_has_no_plain_shortcut_whatever_the_size_of_the_image(spec):
    """As in torch, which decides by stride and channels: else parameters depend on the image."""
    model = create_model(spec)
    tiny, usual = (variable_shapes(model, (size, size, 3)) for size in (1, 32))
    assert jax.tree.map(jnp.shape, tiny) == jax.tree.map(jnp.shape, usual)
    if spec.startswith(("mobilenet", "efficientnet")):  # whose shortcut has no parameters
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tiny)
        zeros["params"]["stem"]["norm"]["bias"] = jnp.ones(32)
        _, state = model.apply(zeros, jnp.ones((1, 1, 1, 3)), capture_intermediates=True, mutable=True)
        assert state["intermediates"]["stem"]["__call__"][0].max() > 0
        assert not state["intermediates"]["stage1_block1"]["__call__"][0].any()
