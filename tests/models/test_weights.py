"""Weights in and out: strict conversion, exact round trips, and files that may be damaged or hostile."""

import collections
import io
import json
import os
import pickle
import re
import struct
import sys
import types
import zipfile

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
from cnnjax.models.weights import files, torch_files
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
    "DenseNet": ("densenet121(stage_sizes=(2, 1), growth_rate=2, stem_width=4)", 32),
    "EfficientNet": ("efficientnet_b0(width=0.125)", 32),
    "ConvNeXt": ("convnext_tiny(stage_sizes=(1, 2), widths=(4, 6))", 32),
    "ConvNeXtV2": ("convnextv2_atto(stage_sizes=(1, 2), widths=(4, 6))", 32),
    "InceptionV4": ("inception_v4(width=0.125)", 75),
    "InceptionResNetV2": ("inception_resnet_v2(width=0.125, cells=(2, 2, 1))", 75),
    "Xception": ("xception(width=0.02, middle=2)", 35),
    "AlignedXception": ("xception41p(entry=(((4, 4, 4), 2),), middle=((4, 4, 4),))", 32),
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
    with pytest.warns(UserWarning, match=r"dropped, the model is built without: .*aux1\.fc1\.weight"):
        found = torch_names.convert_into(state_dict, bare, (224, 224, 3))
    assert not any(name.startswith("aux") for name in found["params"])
    with pytest.raises(UserError, match=r"missing aux1"):
        torch_names.convert_into(torch_names.to_torch(found, bare), model, (224, 224, 3))


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
        (f'{{"a":{SCALAR},"a":{SCALAR}}}'.encode(), b"1234", None, "a name stands twice"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None, "invalid offset for tensor `b`"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), None, "invalid offset for tensor `b`"),
        ({"a": entry(0, 8)}, bytes(6), None, "file not fully covered"),
        ({"a": entry(0, 8)}, bytes(9), None, "file not fully covered"),
        ({"a": entry(0, 8, (2**62, 2**62))}, bytes(8), None, "overflow computing buffer size"),
        ({"a": entry(0, 0, (0, 2**62, 2**62))}, b"", None, "too big"),
        ({"a": entry(0, 8, (-1, -2))}, bytes(8), None, "integer `-1`"),
        ({"a": entry(0, 8, dtype="F5")}, bytes(8), None, "unknown variant `F5`, expected one of .*`F64`"),
        ({"a": entry(0, 8, (8,), "F8_E4M3")}, bytes(8), None, "float8_e4m3"),
        ({"a": entry(0, 8, (1,), "C64")}, bytes(8), None, "a is of dtype complex64; allowed: float64"),
        ({"a": 5}, b"", None, "not a whole"),
    ],
)
def test_damaged_and_hostile_safetensors_are_refused_by_name(tmp_path, header, data, length, message):
    safetensors_file(tmp_path / "bad.safetensors", header, data, length)
    with pytest.raises(UserError, match=message) as caught:
        files.read(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_paths_and_dtypes_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such weight file"):
        files.read(tmp_path / "none.pth")
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"weight files end in \.safetensors"):
        files.read(tmp_path / "x.npz")
    with pytest.raises(UserError, match=r"end in \.safetensors"):
        files.write(tmp_path / "x.pth", {})
    with pytest.raises(UserError, match="a is of dtype complex64"):
        files.write(tmp_path / "x.safetensors", {"a": np.zeros(2, np.complex64)})
    assert not list(tmp_path.glob("x.safetensors*"))


# --- torch.save, written here with the standard library alone -------------------------------------

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "BoolStorage": np.bool_,
}


class Stored:
    """A storage: torch writes it as a persistent id."""

    def __init__(self, values: np.ndarray, key: str):
        self.values, self.key = values, key


class FakeTensor:
    """Pickles as torch's tensors do: a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, stored: Stored, shape, strides, offset: int = 0):
        self.state = (stored, offset, tuple(shape), tuple(strides), False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.state


class Saver(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Stored):
            name = next(n for n, dtype in STORAGES.items() if dtype == value.values.dtype)
            return ("storage", getattr(sys.modules["torch"], name), value.key, "cpu", value.values.size)
        return None


@pytest.fixture
def fake_torch(monkeypatch):
    """Modules with torch's names, so that pickle writes them."""

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    utils._rebuild_tensor_v2, torch._utils = _rebuild_tensor_v2, utils
    for name in STORAGES:
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def pickled(value, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    Saver(file, protocol).dump(value)
    return file.getvalue()


def save_zip(
    path, value, storages: dict[str, bytes], protocol: int = 2, compression=zipfile.ZIP_STORED, order="little"
):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("net/data.pkl", pickled(value, protocol))
        archive.writestr("net/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"net/data/{key}", data)
        archive.writestr("net/version", "3\n")


def save_legacy(path, value, stored: list[Stored]):
    parts = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled({"little_endian": True})]
    parts += [pickled(value), pickled([s.key for s in stored])]
    for s in stored:
        parts.append(struct.pack("<q", s.values.size) + s.values.tobytes())
    path.write_bytes(b"".join(parts))


def grid(dtype=np.float32, key: str = "0") -> Stored:
    return Stored(np.arange(24).astype(dtype), key)


@pytest.mark.parametrize("dtype", STORAGES.values())
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_state_dict_of_torch_is_read_without_torch(tmp_path, fake_torch, dtype, protocol):
    stored = grid(dtype)
    value = collections.OrderedDict(
        whole=FakeTensor(stored, (4, 6), (6, 1)),
        transposed=FakeTensor(stored, (6, 4), (1, 6)),
        part=FakeTensor(stored, (2, 3), (6, 1), offset=8),
        scalar=FakeTensor(stored, (), (), offset=5),
        empty=FakeTensor(stored, (0, 3), (3, 1)),
    )
    save_zip(tmp_path / "net.pth", value, {"0": stored.values.tobytes()}, protocol)
    save_legacy(tmp_path / "old.pth", value, [stored])
    whole = stored.values.reshape(4, 6)
    for name in ("net.pth", "old.pth"):
        found = files.read(tmp_path / name)
        assert list(found) == list(value)
        assert {array.dtype for array in found.values()} == {np.dtype(dtype)}
        np.testing.assert_array_equal(found["whole"], whole)
        np.testing.assert_array_equal(found["transposed"], whole.T)
        np.testing.assert_array_equal(found["part"], whole[1:3, 2:5])
        np.testing.assert_array_equal(found["scalar"], whole[0, 5])
        assert found["empty"].shape == (0, 3)


def test_files_of_big_endian_machines_are_read_and_views_in_them_do_not_fill_the_memory(tmp_path, fake_torch):
    stored = grid()
    value = {"w": FakeTensor(stored, (4, 6), (6, 1)), "t": FakeTensor(stored, (2, 3), (1, 6), 5)}
    storages = {"0": stored.values.byteswap().tobytes()}
    save_zip(tmp_path / "net.pth", value, storages, order="big")
    found = files.read(tmp_path / "net.pth")
    np.testing.assert_array_equal(found["w"], stored.values.reshape(4, 6))
    np.testing.assert_array_equal(found["t"], [[5, 11, 17], [6, 12, 18]])
    stored = Stored(np.zeros(10**6, np.float32), "0")
    views = {f"w{i}": FakeTensor(stored, (10**6,), (1,)) for i in range(1000)}
    save_zip(tmp_path / "bomb.pth", views, {"0": stored.values.tobytes()}, order="big")
    with pytest.raises(UserError, match="larger than the file"):
        files.read(tmp_path / "bomb.pth")


def test_a_state_dict_inside_a_checkpoint_is_found_and_its_common_prefix_dropped(tmp_path, fake_torch):
    stored, moments = grid(), grid(key="1")
    weights = {"module.fc.weight": FakeTensor(stored, (4, 6), (6, 1))}
    checkpoint = {
        "epoch": 3,
        "best": 76.5,
        "arch": "resnet50",
        "state_dict": weights,
        "optimizer": {
            "state": {0: FakeTensor(moments, (4, 6), (6, 1))},
            "groups": [{"lr": 0.1, "params": [0]}],
        },
    }
    storages = {s.key: s.values.tobytes() for s in (stored, moments)}
    save_zip(tmp_path / "best.pth", checkpoint, storages)
    save_legacy(tmp_path / "old.tar", checkpoint, [stored, moments])
    for name in ("best.pth", "old.tar"):
        found = files.read(tmp_path / name)
        assert list(found) == ["fc.weight"]
        np.testing.assert_array_equal(found["fc.weight"], stored.values.reshape(4, 6))


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("save", ["zip", "legacy"])
def test_a_file_that_asks_for_more_is_refused_and_nothing_runs(tmp_path, fake_torch, save):
    marker = tmp_path / "executed"
    value = {"fc.weight": Evil(os.system, f"touch {marker}")}
    if save == "zip":
        save_zip(tmp_path / "evil.pth", value, {})
    else:
        save_legacy(tmp_path / "evil.pth", value, [])
    with pytest.raises(UserError, match=rf"evil\.pth: asks for '{os.system.__module__}\.system'"):
        files.read(tmp_path / "evil.pth")
    assert not marker.exists()


class Options:
    """Pickles as an argparse.Namespace does: a call of its class, then its attributes."""

    def __init__(self, **values):
        self.__dict__.update(values)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("key", torch_files.WRAPPERS)
def test_anything_else_beside_the_state_dict_is_skipped_and_nothing_runs(tmp_path, fake_torch, key, protocol):
    stored = grid()
    marker = tmp_path / "executed"
    checkpoint = {
        "args": Options(lr=0.1, marker=marker),
        "evil": [Evil(os.system, f"touch {marker}")],
        "best": np.float64(76.5),
        "array": np.arange(3),
        "sets": [{1, 2}, frozenset({3}), {("a", "b"): 4}],
        "queue": collections.deque([1, 2]),
        "counts": collections.defaultdict(int, {"a": 1}),
        "complex": 1j,
        key: collections.OrderedDict({"fc.weight": FakeTensor(stored, (4, 6), (6, 1))}),
        "step": FakeTensor(stored, (), ()),
    }
    save_zip(tmp_path / "best.th", checkpoint, {"0": stored.values.tobytes()}, protocol)
    save_legacy(tmp_path / "old", checkpoint, [stored])
    for name in ("best.th", "old"):
        found = files.read(tmp_path / name)
        assert list(found) == ["fc.weight"]
        np.testing.assert_array_equal(found["fc.weight"], stored.values.reshape(4, 6))
    assert not marker.exists()


def test_dicts_that_python_2_wrote_are_read(tmp_path, fake_torch):
    stored = grid()
    pairs = [["a", FakeTensor(stored, (24,), (1,))], ["b", FakeTensor(stored, (2,), (1,))]]
    save_zip(tmp_path / "net.pth", Evil(collections.OrderedDict, pairs), {"0": stored.values.tobytes()})
    found = files.read(tmp_path / "net.pth")
    np.testing.assert_array_equal(found["a"], stored.values)
    np.testing.assert_array_equal(found["b"], stored.values[:2])


@pytest.mark.parametrize(
    "value, name",
    [
        (Evil(eval, "1"), "builtin.*eval"),
        (Evil(getattr, {}, "clear"), "getattr"),
        (zipfile.ZipFile, "zipfile.*ZipFile"),
        (types.SimpleNamespace(a=1), "SimpleNamespace"),
        ({1, 2}, "set"),
        (b"bytes", "encode"),
    ],
)
def test_any_other_global_is_named(tmp_path, fake_torch, value, name):
    save_zip(tmp_path / "net.pth", {"x": value}, {})
    with pytest.raises(UserError, match=f"asks for '.*{name}'"):
        files.read(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "shape, strides, offset",
    [
        ((4, 6), (6, 1), 1),
        ((25,), (1,), 0),
        ((2**40,), (0,), 0),
        ((2**31, 2**31), (0, 0), 0),
        ((-4, -6), (6, 1), 0),
        ((4, 6), (-6, 1), 20),
        ((4, 6), (6,), 0),
        ((4.0,), (1,), 0),
        ((2,), (2**61,), 0),
        ((4,), (1,), -1),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, fake_torch, shape, strides, offset):
    stored = grid()
    value = {"w": FakeTensor(stored, shape, strides, offset)}
    save_zip(tmp_path / "net.pth", value, {"0": stored.values.tobytes()})
    with pytest.raises(UserError, match=r"net\.pth is not a whole file of torch\.save"):
        files.read(tmp_path / "net.pth")


def test_many_large_views_of_one_storage_do_not_fill_the_memory(tmp_path, fake_torch):
    stored = Stored(np.zeros(10**6, np.float32), "0")
    value = {f"w{i}": FakeTensor(stored, (1000, 1000), (1, 1000)) for i in range(1000)}
    save_zip(tmp_path / "net.pth", value, {"0": stored.values.tobytes()})
    with pytest.raises(UserError, match="larger than the file"):
        files.read(tmp_path / "net.pth")


def test_what_is_no_state_dict_is_told(tmp_path, fake_torch):
    stored = grid()
    tensor = FakeTensor(stored, (24,), (1,))
    storages = {"0": stored.values.tobytes()}
    for value, message in (
        ({"a": 1}, "holds entries that are no tensors: a"),
        ({"a": tensor, "b": "text"}, "no tensors: b"),
        ([tensor], "holds no state dict"),
        ({}, "holds no state dict"),
    ):
        save_zip(tmp_path / "net.pth", value, storages)
        with pytest.raises(UserError, match=message):
            files.read(tmp_path / "net.pth")
    save_zip(tmp_path / "short.pth", {"a": tensor}, {"0": b"1234"})
    with pytest.raises(UserError, match="has 4 bytes, not those of 24 values"):
        files.read(tmp_path / "short.pth")
    save_zip(tmp_path / "bomb.pth", {"a": tensor}, storages, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        files.read(tmp_path / "bomb.pth")
    save_zip(tmp_path / "none.pth", {"a": tensor}, {})
    with pytest.raises(UserError, match="not a whole file"):
        files.read(tmp_path / "none.pth")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_a_user_error_or_does_no_harm(tmp_path, fake_torch, data):
    stored = grid()
    value = {"w": FakeTensor(stored, (4, 6), (6, 1)), "t": FakeTensor(stored, (6, 4), (1, 6))}
    if data.draw(st.booleans()):
        save_zip(tmp_path / "net.pth", value, {"0": stored.values.tobytes()})
    else:
        save_legacy(tmp_path / "net.pth", value, [stored])
    content = bytearray((tmp_path / "net.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    (tmp_path / "net.pth").write_bytes(content)
    try:
        found = files.read(tmp_path / "net.pth")
    except UserError as error:
        assert "net.pth" in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in found.values())


def test_densenet_files_of_torchvisions_first_releases_have_other_names():
    spec = "densenet121(stage_sizes=(1, 1), growth_rate=4, stem_width=8)"
    model = create_model(spec)
    variables = init_variables(model, jax.random.key(0), (64, 64, 3))
    new = torch_names.to_torch(jax.device_get(variables), model)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): v for name, v in new.items()}
    assert old.keys() != new.keys()
    back = torch_names.convert_into(old, model, (64, 64, 3))
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(variables))


def test_many_names_for_one_tensor_do_not_swell_a_file(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.zeros(2**16)
    torch.save({f"w{i}": base for i in range(4)}, tmp_path / "tied.pth")
    assert len(files.read(tmp_path / "tied.pth")) == 4
    for name, views in (("views", [base] * 1000), ("turned", [base.view(256, 256).t()] * 1000)):
        torch.save({f"w{i}": view for i, view in enumerate(views)}, tmp_path / f"{name}.pth")
        with pytest.raises(UserError, match=rf"{name}\.pth .*larger than the file"):
            files.read(tmp_path / f"{name}.pth")
    torch.save({"w": torch.zeros(1).expand(2**40)}, tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"wide\.pth .*beyond its storage of 1 values"):
        files.read(tmp_path / "wide.pth")


@pytest.mark.parametrize("opcode", [b"]", b"}", b"N"])
def test_a_pickle_of_endless_opcodes_is_refused(tmp_path, opcode, monkeypatch):
    monkeypatch.setattr(torch_files, "MAX_OPCODES", 2**12)
    stream = b"\x80\x02" + opcode * 2**16 + b"."
    (tmp_path / "old.pth").write_bytes(stream)
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("x/data.pkl", stream)
    for name in ("old", "new"):
        with pytest.raises(UserError, match=rf"{name}\.pth .*more than 4096 opcodes"):
            files.read(tmp_path / f"{name}.pth")
