"""Files of `torch.save`, written here with the standard library alone: all that torch may write is read."""

import argparse
import collections
import datetime
import functools
import io
import os
import pathlib
import pickle
import re
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnjax.errors import UserError
from cnnjax.models.weights import files, pickles, state_dicts

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "BoolStorage": np.bool_,
    "storage.UntypedStorage": np.uint8,
}


FAKE = ("torch", "timm", "theirs")  # packages whose names `named` makes


class Stored:
    """A storage: torch writes it as a persistent id."""

    def __init__(self, values: np.ndarray, key: str, view=()):
        self.values, self.key, self.view = values, key, view


class FakeTensor:
    """Pickles as torch's tensors do: a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, stored: Stored, shape, strides, offset: int = 0):
        self.state = (stored, offset, tuple(shape), tuple(strides), False, collections.OrderedDict())

    def __reduce__(self):
        return named("torch._utils._rebuild_tensor_v2"), self.state


class Call:
    """Pickles as a call of a name, its attributes and its items."""

    def __init__(self, name: str, *arguments, state=None, items=None):
        self.name, self.arguments, self.state, self.items = name, arguments, state, items or {}

    def __reduce__(self):
        return named(self.name), self.arguments, self.state, None, iter(self.items.items())


def named(name: str):
    """A class of torch's that pickle writes by its name; one for each name, while `fake_torch` lasts."""
    module, _, own = name.rpartition(".")
    for end in [*(dot.start() for dot in re.finditer(r"\.", module)), len(module)]:  # pickle imports it
        place = sys.modules.setdefault(module[:end], types.ModuleType(module[:end]))
    if not hasattr(place, own):
        setattr(place, own, type(own, (), {"__module__": module}))
    return getattr(place, own)


class Saver(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Stored):
            names = STORAGES | {"ComplexFloatStorage": np.complex64}
            name = next(n for n, dtype in names.items() if dtype == value.values.dtype)
            return ("storage", named(f"torch.{name}"), value.key, "cpu", value.values.size, *value.view)
        return None


@pytest.fixture
def fake_torch():
    """No module of torch but those that `named` makes, until the test ends."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in FAKE}
    for name in before:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in FAKE]:
        del sys.modules[name]
    sys.modules.update(before)


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


def test_a_state_dict_inside_a_checkpoint_is_found(tmp_path, fake_torch):
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
        assert list(found) == ["module.fc.weight"]
        np.testing.assert_array_equal(found["module.fc.weight"], stored.values.reshape(4, 6))


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("save", ["zip", "legacy"])
def test_a_file_without_tensors_is_refused_and_nothing_runs(tmp_path, fake_torch, save):
    marker = tmp_path / "executed"
    value = {"fc.weight": Evil(os.system, f"touch {marker}")}
    if save == "zip":
        save_zip(tmp_path / "evil.pth", value, {})
    else:
        save_legacy(tmp_path / "evil.pth", value, [])
    with pytest.raises(UserError, match=r"evil\.pth: contains no dict of names to tensors"):
        files.read(tmp_path / "evil.pth")
    assert not marker.exists()


KEYS = ("state_dict", "model", "net", "model_ema", "state_dict_ema", "module", "teacher", "model_state_dict")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("key", KEYS)
def test_anything_else_beside_the_state_dict_is_skipped_and_nothing_runs(tmp_path, fake_torch, key, protocol):
    stored, moments = grid(), grid(key="1")
    marker = tmp_path / "executed"
    weight, moment = FakeTensor(stored, (4, 6), (6, 1)), FakeTensor(moments, (4, 6), (6, 1))
    checkpoint = {
        "args": argparse.Namespace(lr=0.1, place=marker, nested=argparse.Namespace(a=1)),
        "evil": [Evil(os.system, f"touch {marker}")],
        "best": np.float64(76.5),
        "array": np.arange(3),
        "objects": np.array([None, {"a": 1}], object),
        "sets": [{1, 2}, frozenset({3}), {("a", "b"): 4}],
        "queue": collections.deque([1, 2]),
        "counts": collections.defaultdict(int, {"a": 1}),
        "numbers": (1j, 2**70, -1, 1e300, True, None, b"bytes", bytearray(b"bytes")),
        "time": datetime.datetime(2020, 1, 1),
        "later": functools.partial(print, 1, end=""),
        "path": pathlib.Path("x"),
        "device": Call("torch.device", "cuda", 0),
        "dtype": named("torch.float32"),
        "optimizer": {"state": {0: {"exp_avg": moment, "exp_avg_sq": moment, "step": moment}}},
        "quantized": Call("torch._utils._rebuild_qtensor", stored),
        key: collections.OrderedDict({"fc.weight": weight}),
        "epoch": FakeTensor(stored, (), ()),
    }
    storages = {s.key: s.values.tobytes() for s in (stored, moments)}
    save_zip(tmp_path / "best.th", checkpoint, storages, protocol)
    save_zip(tmp_path / "deep.th", {"a": [{}, {"b": checkpoint}]}, storages, protocol)
    save_legacy(tmp_path / "old", checkpoint, [stored, moments])
    for name, path in (("best.th", key), ("deep.th", f"a.1.b.{key}"), ("old", key)):
        found = files.read(f"{tmp_path / name}#{path}")
        assert list(found) == ["fc.weight"]
        np.testing.assert_array_equal(found["fc.weight"], stored.values.reshape(4, 6))
    assert not marker.exists()


def test_of_several_state_dicts_the_plain_one_is_read_and_any_by_its_name(tmp_path, fake_torch):
    a, b = grid(), Stored(-grid().values, "1")
    names = [f"layer{i}.weight" for i in range(4)]
    plain, average = ({name: FakeTensor(s, (24,), (1,)) for name in names} for s in (a, b))
    few = dict.fromkeys(names[:1], FakeTensor(b, (24,), (1,)))
    checkpoint = {"ema": {"state_dict": average | few}, "probe": few, "net": plain, "optim": plain | average}
    storages = {s.key: s.values.tobytes() for s in (a, b)}
    path = tmp_path / "best.ckpt"
    save_zip(path, checkpoint, storages)
    with pytest.warns(
        UserWarning, match=r"read net, not ema\.state_dict; .*best\.ckpt#ema\.state_dict reads"
    ):
        found = files.read(path)
    np.testing.assert_array_equal(found["layer3.weight"], a.values)
    for entry, expected in (("ema.state_dict", b), ("net", a), ("probe", b)):
        np.testing.assert_array_equal(files.read(f"{path}#{entry}")["layer0.weight"], expected.values)
    with pytest.raises(UserError, match=r"best\.ckpt: unknown state dict in it 'nets' \(did you mean 'net'"):
        files.read(f"{path}#nets")
    save_zip(tmp_path / "odd#name", {"net": plain}, storages)
    assert list(files.read(tmp_path / "odd#name")) == names
    save_zip(path, {"model_ema": average}, storages)
    np.testing.assert_array_equal(files.read(path)["layer0.weight"], b.values)


def module(parameters=None, buffers=None, **modules):
    """A torch.nn.Module as `torch.save(model)` writes it."""
    parts = {"_parameters": parameters or {}, "_buffers": buffers or {}, "_modules": modules}
    return Call("torch.nn.modules.module.Module", state=parts | {"training": True})


def test_the_tensors_of_a_whole_module_are_its_state_dict(tmp_path, fake_torch):
    stored = grid()
    weight, bias = FakeTensor(stored, (4, 6), (6, 1)), FakeTensor(stored, (4,), (1,))
    norm = module({"weight": Call("torch._utils._rebuild_parameter", bias, True, {})}, {"running_mean": bias})
    conv = module({"weight": weight, "bias": None})
    net = Call("theirs.Net", state=module({}, {}, conv1=conv, layers=module({}, {}, **{"0": norm})).state)
    storages = {"0": stored.values.tobytes()}
    save_zip(tmp_path / "net.pt", {"epoch": 1, "model": net}, storages)
    save_legacy(tmp_path / "old.pt", net, [stored])
    for name in ("net.pt", "old.pt"):
        found = files.read(tmp_path / name)
        assert sorted(found) == ["conv1.weight", "layers.0.running_mean", "layers.0.weight"]
        np.testing.assert_array_equal(found["conv1.weight"], stored.values.reshape(4, 6))


def test_modules_and_names_without_end_are_refused_or_left_at_once(tmp_path, fake_torch, monkeypatch):
    monkeypatch.setattr(state_dicts, "MAX_ENTRIES", 2**12)
    stored = grid()
    storages = {"0": stored.values.tobytes()}
    shared = module({"weight": FakeTensor(stored, (4,), (1,))})
    for _ in range(60):
        shared = module({}, {}, a=shared, b=shared)
    save_zip(tmp_path / "shared.pth", shared, storages)
    with pytest.raises(UserError, match="more modules than it can have"):
        files.read(tmp_path / "shared.pth")
    long, deep = "x" * 10**6, {"fc.weight": FakeTensor(stored, (4,), (1,))}
    for _ in range(100):
        deep = {long: deep, "": {long: deep}}
    save_zip(tmp_path / "deep.pth", deep, storages)
    with pytest.raises(UserError, match="contains no dict of names to tensors"):
        files.read(tmp_path / "deep.pth")
    circle = {"net": {"fc.weight": FakeTensor(stored, (4,), (1,))}}
    circle["net"]["again"] = circle
    save_zip(tmp_path / "circle.pth", circle, storages)
    with pytest.warns(UserWarning, match="left out again, not tensors"):
        assert list(files.read(tmp_path / "circle.pth")) == ["fc.weight"]


def test_every_way_in_which_torch_rebuilds_a_tensor_is_read(tmp_path, fake_torch):
    stored, raw = grid(), Stored(grid(np.uint16).values.view(np.uint8), "1")
    plain, tensor = (stored, 0, (4, 6), (6, 1)), FakeTensor(stored, (4, 6), (6, 1))
    odd = Stored(np.ones(3, np.complex64), "2")
    v2, uint16, bits = map(named, ("torch._utils._rebuild_tensor_v2", "torch.uint16", "torch.bits8"))
    calls = {
        "torch._utils._rebuild_tensor": plain,
        "torch._utils._rebuild_tensor_v2": (*plain, False, collections.OrderedDict()),
        "torch._utils._rebuild_tensor_v3": (raw, *plain[1:], False, {}, uint16),
        "torch._utils._rebuild_parameter": (tensor, True, {}),
        "torch.nn.parameter.Parameter": (tensor,),
        "torch._utils._rebuild_parameter_with_state": (tensor, True, {}, {"a": 1}),
        "torch._tensor._rebuild_from_type": (v2, named("theirs.Tensor"), (*plain, False, {}), {}),
        "torch._tensor._rebuild_from_type_v2": (v2, named("theirs.Tensor"), (*plain, False, {}), {"a": 1}),
    }
    value = {name: Call(name, *arguments) for name, arguments in calls.items()}
    value["sparse"] = Call("torch._utils._rebuild_sparse_tensor", 1, plain)
    value["complex"] = Call("torch._utils._rebuild_tensor_v2", odd, 0, (3,), (1,))
    value["bits"] = Call("torch._utils._rebuild_tensor_v3", raw, 0, (4,), (1,), False, {}, bits)
    storages = {"0": stored.values.tobytes(), "1": raw.values.tobytes()}
    save_zip(tmp_path / "net.pth", value, storages)
    save_legacy(tmp_path / "old.pth", value, [odd, stored, raw])
    for name in ("net.pth", "old.pth"):
        with pytest.warns(UserWarning, match=rf"{name}: left out sparse, complex, bits, not tensors"):
            found = files.read(tmp_path / name)
        assert list(found) == list(calls)
        assert found["torch._utils._rebuild_tensor_v3"].dtype == np.uint16
        for array in found.values():
            np.testing.assert_array_equal(array, stored.values.reshape(4, 6))


def test_views_of_storages_and_those_of_gpus_are_read_in_old_files(tmp_path, fake_torch):
    stored = grid()
    view = Stored(stored.values, "0", view=(("7", 6, 12),))  # (its key, its start, its size)
    value = {"whole": FakeTensor(stored, (24,), (1,)), "part": FakeTensor(view, (2, 3), (6, 1), 1)}
    save_legacy(tmp_path / "old.pth", value, [stored])
    content = (tmp_path / "old.pth").read_bytes()
    assert b"ctorch\nFloatStorage" in content
    (tmp_path / "old.pth").write_bytes(content.replace(b"ctorch\nFloat", b"ctorch.cuda\nFloat"))
    found = files.read(tmp_path / "old.pth")
    np.testing.assert_array_equal(found["part"], [[7, 8, 9], [13, 14, 15]])
    for wrong in (("7", 13, 12), ("7", 0, 12), ("7", -1, 13)):
        value = {"part": FakeTensor(Stored(stored.values, "0", view=(wrong,)), (13,), (1,))}
        save_legacy(tmp_path / "old.pth", value, [stored])
        with pytest.raises(UserError, match=r"old\.pth is not a whole file"):
            files.read(tmp_path / "old.pth")


def test_numbers_of_python_2_are_read(tmp_path):
    for number in (b"I123456789012\n", b"I01\n", b"\x8a\x00"):
        run = pickles.Interpreter(lambda _: None, {}).run(io.BytesIO(b"\x80\x02" + number + b"."))
        assert run in (123456789012, 1, 0)


def test_dicts_that_python_2_wrote_are_read(tmp_path, fake_torch):
    stored = grid()
    pairs = [["a", FakeTensor(stored, (24,), (1,))], ["b", FakeTensor(stored, (2,), (1,))]]
    save_zip(tmp_path / "net.pth", Evil(collections.OrderedDict, pairs), {"0": stored.values.tobytes()})
    found = files.read(tmp_path / "net.pth")
    np.testing.assert_array_equal(found["a"], stored.values)
    np.testing.assert_array_equal(found["b"], stored.values[:2])


@pytest.mark.parametrize(
    "value",
    [
        Evil(eval, "1"),
        Evil(getattr, {}, "clear"),
        zipfile.ZipFile,
        types.SimpleNamespace(a=1),
        {1, 2},
        b"bytes",
    ],
)
def test_any_other_global_is_no_tensor(tmp_path, fake_torch, value):
    save_zip(tmp_path / "net.pth", {"x": value}, {})
    with pytest.raises(UserError, match=r"net\.pth: contains no dict of names to tensors"):
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
    for value in ({"a": 1}, [tensor], {}, {"optimizer": {"a": tensor}}):
        save_zip(tmp_path / "net.pth", value, storages)
        with pytest.raises(
            UserError, match=r"contains no dict of names to tensors; in torch, save model\.state_dict"
        ):
            files.read(tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/x.py"):
            archive.writestr(f"net/{name}", b"")
    with pytest.raises(
        UserError, match=r"script\.pt: is a program of TorchScript; in torch, save its state_dict"
    ):
        files.read(tmp_path / "script.pt")
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
    monkeypatch.setattr(pickles, "MAX_OPCODES", 2**12)
    stream = b"\x80\x02" + opcode * 2**16 + b"."
    (tmp_path / "old.pth").write_bytes(stream)
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("x/data.pkl", stream)
    for name in ("old", "new"):
        with pytest.raises(UserError, match=rf"{name}\.pth .*more than 4096 opcodes"):
            files.read(tmp_path / f"{name}.pth")
