"""Peers are processes: they take turns with ours, and whatever becomes of one is a row that says so."""

import importlib.util
import itertools
import os
import sys
import time
from types import ModuleType
from unittest import mock

import pytest

from cnnjax.data.machine import peak_resident
from cnnjax.errors import UserError
from cnnjax.profiling.benchmark import bench_train
from cnnjax.profiling.peers import process
from cnnjax.profiling.peers.process import FRAMEWORKS, Framework, alternate, best, named
from cnnjax.profiling.peers.serve import AHEAD, Work, measure


@pytest.fixture(autouse=True)
def sums(monkeypatch):
    """One more framework, which is installed wherever the tests are."""
    found = Framework("tests.profiling.sums", ("numpy",), modes=("thorough", "default"))
    monkeypatch.setitem(FRAMEWORKS, "sums", found)
    return found


def beside(model: str, rounds: int = 1, limit: float = 60.0):
    """(our rounds, the row of the peer, lines told)."""
    lines: list[str] = []
    work = Work("train", model, 4, "float32", (8, 8, 3), 10)

    def mine(seconds: float) -> dict[str, float]:
        return measure(lambda: time.sleep(0.01), seconds, 4)

    ours, rows = alternate(["sums"], work, mine, rounds, 0.02, limit, lines.append)
    return ours, rows["sums"], lines


def test_a_peer_takes_turns_with_ours():
    ours, row, lines = beside("any", rounds=3)
    assert len(ours) == 3 and row["version"] == "1.2" and row["mode"] == "thorough"
    assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"] < 1  # its sum is faster than our sleep
    assert 0 < row["p50_ms"] <= row["p99_ms"] and row["first_seconds"] >= 0
    assert 10**6 < row["peak_memory_bytes"] < peak_resident()  # its own, and not that of this process
    assert lines == [f"sums: ratio {row['ratio']}"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("unknown", "no such net"),
        ("wrong", "ValueError: operands could not be broadcast together with shapes (2,) (3,)"),
        ("dead", "ended with code 1: out of memory"),
    ],
)
def test_a_peer_that_fails_says_why(model, reason):
    ours, row, lines = beside(model)
    assert row == {"failed": reason} and lines == [f"sums: {reason}"]
    assert len(ours) == 1  # ours is measured all the same


def test_a_peer_that_is_late_is_ended(sums, monkeypatch):
    monkeypatch.setitem(FRAMEWORKS, "sums", sums._replace(modes=("default",)))
    start = time.perf_counter()
    assert beside("slow", limit=0.5)[1] == {"failed": "not ready in 0 s"}
    assert time.perf_counter() - start < 30


def test_a_mode_that_fails_gives_way_to_the_next():
    assert beside("autotuned")[1]["mode"] == "default"


def test_a_peer_that_is_far_from_the_best_is_measured_once(sums, monkeypatch):
    monkeypatch.setitem(FRAMEWORKS, "far", sums._replace(modes=("far",)))
    work = Work("train", "any", 4, "float32", (8, 8, 3), 10)
    ours, rows = alternate(
        ["sums", "far"], work, lambda s: measure(lambda: time.sleep(0.01), s, 4), 2, 0.0, 60.0, print
    )
    assert [row["rounds"] for row in rows.values()] == [2, 1] and len(ours) == 3


def test_the_best_peer_is_the_one_that_we_are_slowest_beside():
    rows = {name: {"ratio": r, "ratio_min": r, "ratio_max": r} for name, r in (("a", 1.5), ("b", 1.2))}
    assert dict(best(rows | {"c": {"failed": "no such net"}}))["best_peer"] == "b"
    assert not dict(best({"c": {"failed": "no such net"}}))


def test_what_is_not_installed_or_unknown_is_told(sums, monkeypatch):
    assert named("sums,sums", "train") == ["sums"]
    assert named(None, "train") == []
    monkeypatch.setitem(FRAMEWORKS, "sums", sums._replace(needs=("numpy", "no_such_module")))
    with pytest.raises(
        UserError,
        match=r"^--against=sums needs no_such_module: pip install -e '.\[peers\]' in a checkout of cnnjax$",
    ):
        named("sums", "predict")
    with pytest.raises(UserError, match="unknown --against 'tensorflow'"):
        named("tensorflow,sums", "predict")


def test_steps_that_run_on_a_device_are_waited_for_now_and_then_and_at_the_end():
    """As ours are; the device's own peak of memory counts."""
    told: list[str] = []
    found = measure(lambda: told.append("call"), 0.001, 4, wait=lambda: told.append("wait"), peak=lambda: 7)
    waits = [i for i, word in enumerate(told) if word == "wait"]
    assert [b - a - 1 for a, b in itertools.pairwise([-1, *waits])][:2] == [AHEAD, AHEAD]
    assert told[-1] == "wait" and found["images_per_second"] > 0
    assert found.keys() == {"images_per_second", "peak_memory_bytes"} and found["peak_memory_bytes"] == 7


class Stub(ModuleType):
    """A framework that is not here: whatever is asked of it can be called, and what that gets is kept."""

    def __getattr__(self, name):
        made = mock.MagicMock(name=name)
        setattr(self, name, made)
        return made


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_peer_uses_the_cores_that_this_process_may_use(name, monkeypatch):
    own = f"{process.HERE}.{name}"
    for module in ("torch", "onnxruntime", "openvino", f"{process.HERE}.torch", own):
        monkeypatch.setitem(sys.modules, module, Stub(module))
    del sys.modules[own]  # imported anew; what was there before comes back at the end
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    peer = importlib.import_module(own)
    session = sys.modules["onnxruntime"].InferenceSession
    session.return_value.get_inputs.return_value = [mock.MagicMock()]
    peer.build(Work("predict", "any", 4, "int8", (8, 8, 3), 10, file="net.onnx"))
    if name == "onnxruntime":
        assert session.call_args.args[1].intra_op_num_threads == 3
    else:
        compiled = sys.modules["openvino"].Core.return_value.compile_model
        assert compiled.call_args.args[2]["INFERENCE_NUM_THREADS"] == 3


@pytest.mark.skipif(not all(map(importlib.util.find_spec, process.TORCH)), reason="needs the extra `peers`")
@pytest.mark.parametrize("model", ["simple_cnn", "squeezenet1_1"])
def test_torch_trains_the_same_net(model):
    """One of its own, and one of torchvision."""
    found = bench_train(model, batch_size=4, rounds=1, seconds=0.0, against="torch")
    assert found["best_peer"] == "torch" and found["peers"]["torch"]["mode"] == "eager"
    assert found["ratio"] == found["peers"]["torch"]["ratio"] > 0
