"""Weights in and out: strict conversion, exact round trips, and files that may be damaged or hostile."""

import contextlib
import errno
import json
import re
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnjax.errors import UserError
from cnnjax.models import create_model, family_table, init_variables, resnet
from cnnjax.models.resnet import ResNet
from cnnjax.models.variants import TorchNames, substitute
from cnnjax.models.weights import files
from cnnjax.models.weights import torch as torch_names

# A small member of each family that has torch's names.
TINY = {
    "AlexNetTorchvision": ("alexnet_torchvision(widths=(2, 3, 4, 3, 2, 5, 6))", 224),
    "VGG": ("vgg11_bn(widths=(2, 3, 4, 3, 2), dense_widths=(5, 6))", 224),
    "SqueezeNet": ("squeezenet1_1(squeezes=((2, 3), (2,)))", 64),
    "MobileNetV2": ("mobilenet_v2(width=0.25)", 32),
    "GoogLeNet": ("googlenet_torchvision_with_aux(width=0.125)", 224),
    "InceptionV3": ("inception_v3_with_aux(width=0.125)", 299),
    "ResNet": ("seresnet50(stage_sizes=(2, 1), widths=(16, 16))", 32),
    "Res2Net": ("res2net50d(stage_sizes=(2, 1), widths=(16, 16))", 32),
    "DPN": ("dpn68b(stage_sizes=(2, 1), appended=(4, 8), inner=32)", 32),
    "RepVGG": ("repvgg_b1g4(stage_sizes=(2, 1), widths=(4, 8))", 32),
    "DenseNet": ("densenet121(stage_sizes=(2, 1), growth_rate=2, stem_width=4)", 32),
    "EfficientNet": ("efficientnet_v2_s(width=0.125, depth=0.2)", 32),
    "MobileNetV3": ("mobilenet_v3_small(width=0.25)", 32),
    "MnasNet": ("mnasnet0_5(width=0.25)", 32),
    "RegNet": ("regnet_y_400mf(stage_sizes=(1, 2), widths=(8, 16))", 32),
    "ShuffleNetV2": ("shufflenet_v2_x0_5(stage_sizes=(2, 1), widths=(8, 16))", 32),
    "ConvNeXt": ("convnext_tiny(stage_sizes=(1, 2), widths=(4, 6))", 32),
    "ConvNeXtV2": ("convnextv2_atto(stage_sizes=(1, 2), widths=(4, 6))", 32),
    "InceptionV4": ("inception_v4(width=0.125)", 75),
    "InceptionResNetV2": ("inception_resnet_v2(width=0.125, cells=(2, 2, 1))", 75),
    "Xception": ("xception(width=0.02, middle=2)", 35),
    "AlignedXception": ("xception41p(entry=(((4, 4, 4), 2),), middle=((4, 4, 4),))", 32),
    "EfficientNetLite": ("efficientnet_lite0(width=0.125)", 32),
    "GhostNet": ("ghostnetv2_100(width=0.25)", 64),
}


def random_variables(model, size: int) -> dict:
    """Random values for every leaf of a model; nothing is computed."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (size, size, 3)))
    return jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape).astype(np.float32), shapes)


def tiny_resnet() -> tuple:
    model = create_model("resnet18(stage_sizes=(1,), widths=(4,), stem='cifar')", num_classes=3)
    return model, random_variables(model, 8)


# --- Conversion -----------------------------------------------------------------------------------


def test_every_family_has_a_round_trip():
    assert set(TINY) == {family.__name__ for family in family_table("TORCH_NAMES")}


@pytest.mark.parametrize("family", TINY)
@pytest.mark.filterwarnings("ignore:the ImageNet stem")
def test_to_torch_and_back_is_exact(family):
    spec, size = TINY[family]
    model = create_model(spec)
    assert type(model).__name__ == family
    variables = random_variables(model, size)
    state_dict = torch_names.to_torch(variables, model)
    assert len(state_dict) == len(jax.tree.leaves(variables))  # no two leaves share a name
    back = torch_names.convert_into(state_dict, model, (size, size, 3))
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize(
    "spec",
    [
        "mnasnet0_5(stages=((3, 3, 1, 16, 1), (3, 3, 2, 24, 2)), last_width=16)",
        "mnasnet0_5(stages=((1, 3, 1, 16, 2), (1, 3, 2, 24, 2)), last_width=16)",
        "mobilenet_v2(width=0.1, stages=((6, 16, 2, 1), (1, 24, 2, 2)), last_width=16)",
        "mobilenet_v3_large(width=0.1, hidden_width=16)",
        "mobilenet_v3_small(width=0.1, hidden_width=104)",
        "efficientnet_b0(width=0.1, stages=((6, 3, 1, 16, 2), (1, 3, 2, 24, 2)))",
        "efficientnet_v2_s(width=0.1, depth=0.1, fused_stages=2)",
        "efficientnet_lite0(width=0.1)",
    ],
)
@pytest.mark.filterwarnings("ignore:the ImageNet stem")
def test_every_leaf_has_a_name_of_its_own_whatever_the_stages(spec):
    """In every spelling of its family: each is tried, and one name for two leaves is an error."""
    model = create_model(spec)
    variables = random_variables(model, 64)
    again = torch_names.convert_into(torch_names.to_torch(variables, model), model, (64, 64, 3))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.filterwarnings("ignore:the ImageNet stem")
def test_a_block_that_expands_nothing_begins_with_its_depthwise_convolution():
    """At this width torchvision's second block too has as many channels as it reads."""
    model = create_model("mobilenet_v3_small(width=0.1, hidden_width=104)")
    names = torch_names.to_torch(random_variables(model, 32), model)
    assert names["features.2.block.0.0.weight"].shape == (8, 1, 3, 3)
    assert names["features.3.block.0.0.weight"].shape == (8, 1, 3, 3)
    assert names["features.5.block.0.0.weight"].shape == (24, 8, 1, 1)


def test_two_leaves_of_one_name_are_refused(monkeypatch):
    model, variables = tiny_resnet()
    monkeypatch.setitem(family_table("TORCH_NAMES"), ResNet, TorchNames(substitute({r"norm\d": "norm"})))
    with pytest.raises(UserError, match="one name, stage1_block1.norm.*norm1/.* and .*norm2/"):
        torch_names.to_torch(variables, model)


def test_layouts_are_torchs():
    model, variables = tiny_resnet()
    state_dict = torch_names.to_torch(variables, model)
    kernel = variables["params"]["stage1_block1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(state_dict["layer1.0.conv1.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(state_dict["fc.weight"], variables["params"]["head"]["kernel"].T)
    mean = variables["batch_stats"]["stem"]["norm"]["mean"]
    np.testing.assert_array_equal(state_dict["bn1.running_mean"], mean)


def test_all_that_is_wrong_is_listed_at_once_and_nothing_loaded():
    model, variables = tiny_resnet()
    state_dict = torch_names.to_torch(variables, model)
    del state_dict["conv1.weight"], state_dict["layer1.0.bn2.bias"]
    state_dict["layer9.0.conv1.weight"] = np.zeros(2)
    state_dict["fc.weight"] = np.zeros((7, 4), np.float32)
    with pytest.raises(UserError) as caught:
        torch_names.convert_into(state_dict, model, (8, 8, 3))
    message = str(caught.value)
    assert "missing conv1.weight [4, 3, 3, 3]" in message
    assert "missing layer1.0.bn2.bias" in message
    assert "unexpected layer9.0.conv1.weight" in message
    assert "fc.weight is [7, 4], here [3, 4]" in message
    assert "(4 entries)" in message


def test_of_several_spellings_the_one_that_fits_is_read_and_the_first_written(monkeypatch):
    model, variables = tiny_resnet()
    first = torch_names.to_torch(variables, model)
    names = {r"^stage(\d+)_block(\d+)/": r"stages.\1.\2.", "^stem/": "stem.", "^head$": "head.fc"}
    timm = TorchNames(substitute(names))
    monkeypatch.setitem(family_table("TORCH_NAMES"), ResNet, timm)
    other = torch_names.to_torch(variables, model)
    assert "stages.1.1.conv1.weight" in other and "head.fc.bias" in other
    monkeypatch.setitem(family_table("TORCH_NAMES"), ResNet, (resnet.TORCH_NAMES[ResNet], timm))
    assert torch_names.to_torch(variables, model).keys() == first.keys() != other.keys()
    for state_dict in (first, other):
        back = torch_names.convert_into(state_dict, model, (8, 8, 3))
        jax.tree.map(np.testing.assert_array_equal, back, variables)
    del other["head.fc.bias"]
    with pytest.raises(UserError, match=r"\(1 entries\): missing head.fc.bias"):
        torch_names.convert_into(other, model, (8, 8, 3))


def test_dense_layers_and_1x1_convolutions_are_the_same():
    model = create_model("seresnet50(stage_sizes=(1,), widths=(16,), stem='cifar', num_classes=3)")
    variables = random_variables(model, 32)
    state_dict = torch_names.to_torch(variables, model)
    assert state_dict["layer1.0.se.fc1.weight"].shape == (4, 64, 1, 1)
    state_dict["layer1.0.se.fc1.weight"] = state_dict["layer1.0.se.fc1.weight"][..., 0, 0]
    state_dict["fc.weight"] = state_dict["fc.weight"][..., None, None]
    back = torch_names.convert_into(state_dict, model, (32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_auxiliary_heads_are_dropped_by_name_where_the_model_has_none():
    model = create_model("googlenet_torchvision_with_aux(width=0.125)")
    variables = random_variables(model, 224)
    state_dict = torch_names.to_torch(variables, model)
    bare = create_model("googlenet_torchvision(width=0.125)")
    with pytest.warns(UserWarning, match=r"left out of the state dict: aux1\..* and 13 more"):
        found = torch_names.convert_into(state_dict, bare, (224, 224, 3))
    assert not any(name.startswith("aux") for name in found["params"])
    with pytest.raises(UserError, match=r"missing aux1"):
        torch_names.convert_into(torch_names.to_torch(found, bare), model, (224, 224, 3))


WRAPPED = {
    "DataParallel": lambda name: f"module.{name}",
    "torch.compile of it": lambda name: f"_orig_mod.module.{name}",
    "twice": lambda name: f"module.module._orig_mod.model.{name}",
    "of a part": lambda name: name.replace("layer1.0.", "layer1._orig_mod.0.module."),
    "Lightning": lambda name: f"model.backbone.{name}",
    "any": lambda name: f"trunk.0.{name}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_prefixes_and_wrappers_of_names_make_no_difference(wrapper, tmp_path):
    model, variables = tiny_resnet()
    wrap = WRAPPED[wrapper]
    state_dict = {wrap(name): value for name, value in torch_names.to_torch(variables, model).items()}
    state_dict[wrap("bn1.num_batches_tracked")] = np.array(3)
    files.write(tmp_path / "net.safetensors", state_dict)
    back = torch_names.convert_into(files.read(tmp_path / "net.safetensors"), model, (8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_counters_and_other_networks_beside_the_model_are_left_out_and_named():
    model, variables = tiny_resnet()
    net = torch_names.to_torch(variables, model)
    counters = {"n_averaged": np.array(5), "total_ops": np.zeros(1), "module.layer1.total_params": np.ones(1)}
    averaged = {f"module.{name}": value for name, value in net.items()} | counters
    with pytest.warns(
        UserWarning, match=r"left out of the state dict: n_averaged, total_ops, layer1\.total_p"
    ):
        back = torch_names.convert_into(averaged, model, (8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    queries = {f"encoder_q.{name}": value for name, value in net.items()}
    keys = {f"encoder_k.{name}": 0 * value for name, value in net.items()}
    for both in (queries | keys | {"queue": np.zeros((4, 8))}, net | keys | {"n": np.array(1)}):
        with pytest.warns(UserWarning, match=r"left out of the state dict: encoder_k\.\S+, .* and 13 more"):
            back = torch_names.convert_into(both, model, (8, 8, 3))
        jax.tree.map(np.testing.assert_array_equal, back, variables)
    deeper = queries | {"encoder_q.layer1.1.conv1.weight": np.zeros((4, 4, 3, 3))}
    with pytest.raises(UserError, match=r"\(1 entries\): unexpected encoder_q\.layer1\.1\.conv1\.weight"):
        torch_names.convert_into(deeper, model, (8, 8, 3))


def renamed_head(net: dict, name: str) -> dict:
    return {key.replace("fc.", f"{name}."): value for key, value in net.items()}


def test_a_head_of_another_name_is_found_where_shapes_leave_no_doubt():
    model, variables = tiny_resnet()
    net = torch_names.to_torch(variables, model)
    backbone = {f"backbone.{name}": value for name, value in net.items()}
    names = ("linear", "classifier", "head", "head.fc", "last_linear", "top")
    for state_dict in [renamed_head(net, name) for name in names] + [renamed_head(backbone, "head.fc")]:
        back = torch_names.convert_into(state_dict, model, (8, 8, 3))
        jax.tree.map(np.testing.assert_array_equal, back, variables)
    other = create_model("resnet18(stage_sizes=(1,), widths=(4,), stem='cifar')", num_classes=7)
    assert torch_names.num_classes(renamed_head(net, "linear"), other, (8, 8, 3)) == 3
    assert (
        torch_names.num_classes(renamed_head(net, "top"), other, (8, 8, 3)) is None
    )  # of any name, any size
    two = {f"{name}.{leaf}": net[f"fc.{leaf}"] for name in ("a", "b") for leaf in ("weight", "bias")}
    doubt = {name: value for name, value in net.items() if not name.startswith("fc.")} | two
    with pytest.raises(
        UserError, match=r"missing fc\.weight \[3, 4\] \(there [ab]\.weight\?\); unexpected a"
    ):
        torch_names.convert_into(doubt, model, (8, 8, 3))
    assert torch_names.num_classes(doubt, model, (8, 8, 3)) is None


@pytest.mark.parametrize("heads", [{}, {"fc.0.weight": np.ones((8, 4)), "fc.0.bias": np.ones(8)}])
def test_without_the_head_it_may_be_missing_or_of_any_size(heads):
    model, variables = tiny_resnet()
    net = {
        name: x for name, x in torch_names.to_torch(variables, model).items() if not name.startswith("fc.")
    }
    with pytest.warns(UserWarning, match="fc.0") if heads else contextlib.nullcontext():
        back = torch_names.convert_into(net | heads, model, (8, 8, 3), head=False)
    assert "head" not in back["params"]
    jax.tree.map(np.testing.assert_array_equal, back["params"]["stem"], variables["params"]["stem"])


def test_of_many_misfits_the_first_five_are_told_with_the_nearest_names():
    model, variables = tiny_resnet()
    net = torch_names.to_torch(variables, model)
    other = {name.replace("layer1.0.bn", "layer1.0.norm"): value for name, value in net.items()}
    with pytest.raises(UserError) as caught:
        torch_names.convert_into(other, model, (8, 8, 3))
    message = str(caught.value)
    assert (
        "(16 entries): missing layer1.0.bn1.running_mean [4] (there layer1.0.norm1.running_mean?); "
        in message
    )
    assert message.count(";") == 5 and message.endswith("; and 11 more")


def test_endless_names_take_no_time():
    model, variables = tiny_resnet()
    net = torch_names.to_torch(variables, model)
    hostile = {"." * 10**6 + str(i): np.zeros((4, 4, 3, 3)) for i in range(10)}
    hostile |= {"module." * 10**5 + "conv1.weight": np.zeros((4, 3, 3, 3))}
    with pytest.raises(UserError, match=r"unexpected \.\.\."):
        torch_names.convert_into(net | hostile, model, (8, 8, 3))


def test_densenet_files_of_torchvisions_first_releases_have_other_names():
    spec = "densenet121(stage_sizes=(1, 1), growth_rate=4, stem_width=8)"
    model = create_model(spec)
    variables = init_variables(model, jax.random.key(0), (64, 64, 3))
    new = torch_names.to_torch(jax.device_get(variables), model)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): v for name, v in new.items()}
    assert old.keys() != new.keys()
    back = torch_names.convert_into(old, model, (64, 64, 3))
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(variables))


@pytest.mark.parametrize(
    ("there", "here", "named"),
    [
        ("resnet50_v1", "resnet50", "differs in block$"),
        ("tf_efficientnet_b0", "efficientnet_b0", "padding='same', not padding=None; epsilon=0.001, not"),
        ("alexnet", "caffenet", "response_norm='paper', not response_norm='caffe'; order="),
        (
            "preact_resnet50(order='original')",
            "preact_resnet50(order='relu_before_add')",
            "order='original', not",
        ),
        ("mobilenet_v2", "mobilenet_v2(stem='cifar')", "stem='imagenet', not stem='cifar'"),
        ("resnet50", "resnet50(zero_init=True, remat=True, norm_groups=2, dtype='bfloat16')", ""),
        ("resnext50_32x4d", "resnext50_32x4d(num_classes=3, scan_blocks=True)", ""),
        ("wrn_40_10", "wrn_40_10(dropout=0.0)", ""),
        ("alexnet", "alexnet(std=0.1, bias=0.0, dropout_rate=0.1)", ""),
        ("simple_cnn", "simple_cnn(widths=(2, 3))", ""),  # which does not fit, so that loading fails
    ],
)
def test_a_network_of_the_same_shapes_that_means_something_else_is_told(there, here, named):
    """To fields that matter in training at most, nothing is said."""
    with pytest.warns(UserWarning, match=named) if named else contextlib.nullcontext():
        torch_names.require_same(there, create_model(here))


# --- safetensors ----------------------------------------------------------------------------------

DTYPES = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.int64,
    np.int32,
    np.int8,
    np.uint8,
    np.bool_,
]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        max_size=4,
    )
)
def test_safetensors_come_back_as_they_were(tmp_path, tensors):
    draw = np.random.default_rng(0)
    arrays = {name: draw.integers(0, 2, shape).astype(dtype) for name, (dtype, shape) in tensors.items()}
    files.write(tmp_path / "x.safetensors", arrays)
    found = files.read(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_model_goes_out_to_safetensors_with_torch_names_and_comes_back(tmp_path):
    model, variables = tiny_resnet()
    files.write(tmp_path / "net.safetensors", torch_names.to_torch(variables, model))
    state_dict = files.read(tmp_path / "net.safetensors")
    assert {"conv1.weight", "layer1.0.bn2.running_var", "fc.bias"} <= set(state_dict)
    back = torch_names.convert_into(state_dict, model, (8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    header = (tmp_path / "net.safetensors").read_bytes()[8:]
    assert json.JSONDecoder().raw_decode(header.decode("latin-1"))[0]["__metadata__"] == {"format": "pt"}


def safetensors_file(path, header, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(begin: int, end: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


UNREAD = r"bad\.safetensors: a is of dtype {}, which is neither read nor written; allowed: float64, .*uint8$"
SCALAR = '{"dtype":"F32","shape":[],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "header, data, length, message",
    [
        ({}, b"", 10 * 10**9, "header too large"),
        ({}, b"", 2**64 - 1, "header too large"),
        (b"", b"", None, "EOF while parsing"),
        (b"[" * 100000, b"", None, "not a whole"),
        (b"[]", b"", None, "not a whole"),
        (b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":1}', b"1234", None, "not a whole"),
        (f'{{"a":{SCALAR},"a":{SCALAR}}}'.encode(), b"1234", None, "a name occurs twice"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None, "invalid offset for tensor `b`"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), None, "invalid offset for tensor `b`"),
        ({"a": entry(0, 8)}, bytes(6), None, "file not fully covered"),
        ({"a": entry(0, 8)}, bytes(9), None, "file not fully covered"),
        ({"a": entry(0, 8, (2**62, 2**62))}, bytes(8), None, "overflow computing buffer size"),
        ({"a": entry(0, 0, (0, 2**62, 2**62))}, b"", None, "too big"),
        ({"a": entry(0, 8, (-1, -2))}, bytes(8), None, "integer `-1`"),
        ({"a": entry(0, 8, dtype="F5")}, bytes(8), None, "unknown variant `F5`, expected one of .*`F64`"),
        ({"a": entry(0, 8, (8,), "F8_E4M3")}, bytes(8), None, UNREAD.format("F8_E4M3")),
        ({"a": entry(0, 8, (16,), "F4")}, bytes(8), None, UNREAD.format("F4")),
        ({"a": entry(0, 8, (1,), "C64")}, bytes(8), None, UNREAD.format("C64")),
        ({"a": 5}, b"", None, "not a whole"),
    ],
)
def test_damaged_and_hostile_safetensors_are_refused_by_name(tmp_path, header, data, length, message):
    safetensors_file(tmp_path / "bad.safetensors", header, data, length)
    with pytest.raises(UserError, match=message) as caught:
        files.read(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a weights file; allowed: safetensors"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "pointer of Git LFS; fetch the file with `git lfs pull`",
        ),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzipped; unpack it"),
        (b"{}", "not an index of sharded weights: it has no weight_map"),
        (b'{"weight_map": {"a": 1}}', "not an index of sharded weights: it has no weight_map"),
        (b"{" * 10**5, "not an index of sharded weights"),
    ],
)
def test_files_that_stand_in_the_place_of_weights_are_named(tmp_path, content, message):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read(tmp_path / "weights")
    assert "weights " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x", "x.th", "x.pth", "x.txt", "x.json"])
def test_the_content_says_what_a_file_is_not_its_suffix(tmp_path, name):
    files.write(tmp_path / "net.safetensors", {f"layer{i}": np.arange(3) for i in range(10)})
    (tmp_path / "net.safetensors").rename(tmp_path / name)
    assert len(files.read(tmp_path / name)) == 10


def test_other_paths_and_dtypes_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such weight file"):
        files.read(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"end in \.safetensors"):
        files.write(tmp_path / "x.pth", {})
    with pytest.raises(UserError, match="a is of dtype complex64"):
        files.write(tmp_path / "x.safetensors", {"a": np.zeros(2, np.complex64)})
    assert not list(tmp_path.glob("x.safetensors*"))


# --- Sharded files --------------------------------------------------------------------------------


def save_sharded(folder, **shards: dict) -> None:
    """Files of a row of arrays, by their names without '.safetensors', and the index."""
    places = {}
    for name, arrays in shards.items():
        files.write(folder / f"{name}.safetensors", arrays)
        places |= dict.fromkeys(arrays, f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_sharded_files_are_read_by_their_index(tmp_path):
    a, b = {"x": np.arange(3)}, {"y": np.ones((2, 2), np.float16), "z": np.zeros(1)}
    save_sharded(tmp_path, one=a, two=b)
    index = tmp_path / "model.safetensors.index.json"
    found = files.read(index)
    assert list(found) == ["x", "y", "z"]
    for name, value in (a | b).items():
        np.testing.assert_array_equal(found[name], value)
    files.write(tmp_path / "two.safetensors", {"y": b["y"]})
    with pytest.raises(UserError, match=r"index\.json: two\.safetensors lacks z; download the files again"):
        files.read(index)
    files.write(tmp_path / "two.safetensors", b | {"w": b["z"]})
    with pytest.raises(UserError, match=r"two\.safetensors contains, but the index lacks, w; download"):
        files.read(index)
    (tmp_path / "two.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(UserError, match=r"two\.safetensors is not a whole safetensors file"):
        files.read(index)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match=r"its file two\.safetensors is missing; put it next to"):
        files.read(index)


@pytest.mark.parametrize("name", ["one.safetensors", "x" * 300], ids=["forbidden", "long"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_file_that_cannot_be_read_is_told(tmp_path, monkeypatch, name, sharded):
    save_sharded(tmp_path, one={"a": np.zeros(1)})
    index, opened = tmp_path / "model.safetensors.index.json", Path.open
    index.write_text(json.dumps({"weight_map": {"a": name}}))

    def refuse(path, *args, **fields):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **fields)

    monkeypatch.setattr(Path, "open", refuse)
    for entry in [""] if sharded else ["", "#ema"]:
        reason = "File name too long" if len(name) > 255 else "Permission denied"
        with pytest.raises(UserError, match=f"{name} cannot be read: {reason}$"):
            files.read(index if sharded else f"{tmp_path / name}{entry}")


@pytest.mark.parametrize(
    "place", ["../x.safetensors", "/etc/passwd", "a/x", "..", ".", "", "x\0", "a\\x", "é"]
)
def test_an_index_leads_nowhere_else(tmp_path, place):
    folder = tmp_path / "folder"
    folder.mkdir()
    files.write(tmp_path / "x.safetensors", {"a": np.zeros(1)})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(UserError, match="must be next to it, without a folder"):
        files.read(index)
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(UserError, match="which is not a file of tensors"):
        files.read(index)
