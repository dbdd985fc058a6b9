"""Model summaries: multiply-adds from the jaxpr, layer by layer, and receptive fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnnjax import ops
from cnnjax.cli import main
from cnnjax.cli.models import NETWORKS
from cnnjax.models import create_model, list_models, variant
from cnnjax.models.layers import Conv
from cnnjax.models.macs import equation_macs
from cnnjax.models.net import POOLINGS
from cnnjax.ops.cpu.primitive import make_primitive
from cnnjax.profiling import summary
from cnnjax.profiling.summary import summarize
from experiments import results

# Billions of multiply-adds as torchvision 0.28 states them for its weights.
TORCHVISION = {
    "alexnet_torchvision": 0.714,
    "convnext_tiny": 4.456,
    "convnext_small": 8.684,
    "convnext_base": 15.355,
    "convnext_large": 34.361,
    "densenet121": 2.834,
    "densenet161": 7.728,
    "densenet169": 3.36,
    "densenet201": 4.291,
    "efficientnet_b0": 0.386,
    "efficientnet_b1": 0.687,
    "efficientnet_b2": 1.088,
    "efficientnet_b3": 1.827,
    "efficientnet_b4": 4.394,
    "efficientnet_v2_s": 8.366,
    "googlenet_torchvision": 1.498,
    "inception_v3": 5.713,
    "mnasnet1_0": 0.314,
    "mobilenet_v2": 0.301,
    "mobilenet_v3_large": 0.217,
    "regnet_x_8gf": 7.995,
    "regnet_y_400mf": 0.402,
    "regnet_y_8gf": 8.473,
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "resnext50_32x4d": 4.23,
    "resnext101_32x8d": 16.414,
    "resnext101_64x4d": 15.46,
    "shufflenet_v2_x1_0": 0.145,
    "squeezenet1_0": 0.819,
    "squeezenet1_1": 0.349,
    "vgg11": 7.609,
    "vgg11_bn": 7.609,
    "vgg13": 11.308,
    "vgg13_bn": 11.308,
    "vgg16": 15.47,
    "vgg16_bn": 15.47,
    "vgg19": 19.632,
    "vgg19_bn": 19.632,
    "wide_resnet50_2": 11.398,
    "wide_resnet101_2": 22.753,
}


@pytest.mark.parametrize("name", sorted(set(TORCHVISION) & set(list_models())))
def test_macs_agree_with_torchvision_within_one_per_cent(name):
    assert summarize(name).macs == pytest.approx(TORCHVISION[name] * 1e9, rel=0.01)


def test_simple_cnn_row_by_row():
    rows = {row.name: row for row in summarize("simple_cnn").layers}
    assert list(rows) == ["conv1", "norm1", "conv2", "norm2", "head"]
    assert [row.output for row in rows.values()] == [
        (28, 28, 16),
        (28, 28, 16),
        (14, 14, 32),
        (14, 14, 32),
        (10,),
    ]
    assert [row.params for row in rows.values()] == [25 * 16 + 16, 32, 25 * 16 * 32 + 32, 64, 15690]
    assert rows["conv1"].macs == 28 * 28 * 16 * 25
    assert rows["conv2"].macs == 14 * 14 * 32 * 25 * 16
    assert rows["norm1"].macs == 0
    assert rows["head"].macs == 15680
    # 5; pooled 6; 6 + 4 * 2 = 14; pooled 16; all 7 x 7 of them 16 + 6 * 4 = 40
    assert [rows[name].receptive_field for name in ("conv1", "conv2", "head")] == [(5, 5), (14, 14), (40, 40)]


def test_alexnet_has_the_layers_of_the_paper():
    rows = {row.name: row for row in summarize("alexnet").layers}
    assert [rows[f"conv{i}"].macs for i in (1, 2, 3, 4, 5)] == [
        105415200,
        223948800,
        149520384,
        112140288,
        74760192,
    ]
    assert [rows[f"conv{i}"].receptive_field[0] for i in (1, 2, 3, 4, 5)] == [11, 51, 99, 131, 163]


def test_params_of_the_rows_add_up_and_a_resnet_widens_its_view():
    found = summarize("resnet18")
    assert sum(row.params for row in found.layers) == found.params == 11689512
    assert sum(row.macs for row in found.layers) == found.macs
    rows = {row.name: row for row in found.layers}
    assert rows["stem/conv"].receptive_field == (7, 7)
    assert rows["stage1_block1/conv1"].receptive_field == (19, 19)
    assert rows["stage4_block2/conv2"].receptive_field == (435, 435)


def test_auxiliary_heads_are_not_counted():
    assert summarize("googlenet_with_aux").macs == summarize("googlenet").macs


def test_image_shape_scales_the_count():
    small = summarize("resnet18(stage_sizes=(1,), widths=(4,), stem='cifar')", (8, 8, 3)).macs
    large = summarize("resnet18(stage_sizes=(1,), widths=(4,), stem='cifar')", (16, 16, 3)).macs
    assert large - 4000 == 4 * (small - 4000)


@pytest.mark.parametrize("fields", [{"scan_blocks": True}, {"remat": True}])
def test_scanned_and_rematerialized_nets_have_the_table_of_unrolled_ones(fields):
    spec = "resnet20_cifar(stage_sizes=(3,), widths=(4,))"
    model = create_model(spec, **fields)
    assert summarize(model, (8, 8, 3)) == summarize(spec, (8, 8, 3))


class Scanned(nn.Module):
    """A convolution three times in a loop, with its own weights reused."""

    @nn.compact
    def __call__(self, image, *, train=False):
        kernel = self.param("kernel", nn.initializers.ones, (3, 3, 2, 2))

        def body(x, _):
            return ops.conv2d(x, kernel, padding=1), None

        return jax.lax.scan(body, image, None, length=3)[0]


def test_a_loop_counts_each_of_its_turns():
    (row,) = summarize(Scanned(), (5, 4, 2)).layers
    assert row.macs == 3 * (5 * 4 * 2 * 9 * 2)
    assert row.receptive_field == (7, 7)


class Foreign(nn.Module):
    """A net with a call that nothing can be said about."""

    @nn.compact
    def __call__(self, image, *, train=False):
        x = Conv(2, 3, name="conv")(image)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.asarray(x), shape, x)


@pytest.mark.parametrize(
    "spec, shape",
    [("lenet5", (32, 32, 1)), ("convnext_tiny(stage_sizes=(1, 1), widths=(4, 8))", (32, 32, 3))],
)
def test_the_table_of_a_bfloat16_net_is_that_of_float32(spec, shape):
    model = create_model(spec)
    assert summarize(model.clone(dtype=jnp.bfloat16), shape) == summarize(model, shape)


def test_a_kernel_of_this_package_that_has_no_rule_is_not_counted():
    x = jnp.ones((1, 8, 8, 32))
    (eqn,) = jax.make_jaxpr(make_primitive("unheard_of", jnp.sin).bind)(x).eqns
    assert equation_macs(eqn) is None


def test_what_cannot_be_counted_is_none_and_never_zero():
    found = summarize(Foreign(), (5, 5, 1))
    assert found.macs is None
    assert found.layers[0].macs == 3 * 3 * 2 * 9


# --- Receptive fields against what a gradient reaches ---------------------------------------------


class Pool(nn.Module):
    """Convolution, pooling of every kind, convolution, with positive weights so that no gradient cancels."""

    pooling: str
    window: int
    strides: int
    padding: int

    @nn.compact
    def __call__(self, image, *, train=False):
        conv = {"kernel_init": nn.initializers.ones, "use_bias": False}
        x = Conv(1, (3, 2), dilation=(2, 1), name="conv1", **conv)(image)
        x = POOLINGS[self.pooling](x, self.window, self.strides, self.padding)
        return Conv(1, 3, strides=2, name="conv2", **conv)(x)


@pytest.mark.parametrize("pooling", ["average", "l2", "center_weighted"])
@pytest.mark.parametrize("window, strides, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 0)])
def test_receptive_field_is_what_the_gradient_reaches(pooling, window, strides, padding):
    model = Pool(pooling, window, strides, padding)
    image = jnp.ones((1, 41, 43, 1))
    variables = model.init(jax.random.key(0), image)

    def middle(image):
        y = model.apply(variables, image)
        return y[0, y.shape[1] // 2, y.shape[2] // 2, 0]

    reached = np.argwhere(np.asarray(jax.grad(middle)(image))[0, :, :, 0] != 0)
    expected = tuple(reached.max(0) - reached.min(0) + 1)
    assert summarize(model, (41, 43, 1)).layers[-1].receptive_field == expected


def test_max_pooling_widens_the_field_as_average_pooling_does():
    fields = {
        pooling: summarize(Pool(pooling, 3, 2, 1), (41, 43, 1)).layers[-1].receptive_field
        for pooling in ("max", "min", "average")
    }
    assert len(set(fields.values())) == 1


def test_a_gate_over_all_channels_sees_the_whole_image():
    rows = {
        row.name: row
        for row in summarize("seresnet50(stage_sizes=(2,), widths=(64,), stem='cifar')", (32, 32, 3)).layers
    }
    assert rows["stage1_block1/conv3"].receptive_field == (5, 5)
    assert rows["stage1_block2/conv1"].receptive_field == (np.inf, np.inf)


# --- The command ----------------------------------------------------------------------------------


def test_models_lists_parameters_macs_and_published_accuracy(capsys):
    assert main.run(["models", "resnet1?"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "resnet18" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[:5] == ["resnet18", "11,689,512", "1.814 G", "224x224x3", "69.76 / 89.08"]
    assert cells[6] == "He et al. 2015"


def test_the_list_is_of_all_variants_and_their_counts():
    rows = {row["name"]: row for row in results.read(NETWORKS)}
    assert list(rows) == list_models()
    for name, row in rows.items():
        preset = variant(name).preset
        assert row["input"] == "x".join(map(str, preset.input_size))
        assert row["source"] == variant(name).source
    for name in ("simple_cnn", "lenet5", "resnet20_cifar"):
        params, macs = summary.totals(name)
        assert (rows[name]["params"], rows[name]["macs"]) == (str(params), str(macs))


def test_one_model_prints_its_layers(capsys):
    assert main.run(["models", "simple_cnn"]) == 0
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert ["conv2", "14 14 32", "12,832", "2.509 M", "14"] in rows
    assert rows[-1] == ["total", "", "29,034", "2.838 M", ""]
    assert main.run(["models", "wrn_16_4(widen_factor=1, depth=10)", "--image_size=16"]) == 0
    assert "4 4 64" in capsys.readouterr().out
    assert main.run(["models", "simple_cn"]) == 2
    assert "did you mean 'simple_cnn'?" in capsys.readouterr().err
    assert main.run(["models", "simple_cnn", "--image_size=0"]) == 2
