"""The loop as a function: what a run leaves, exact evaluation, one compilation, bad losses."""

import json
import logging
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cnnjax import config as config_lib
from cnnjax.cli import progress
from cnnjax.data.files import read_json
from cnnjax.errors import UserError
from cnnjax.explore import report
from cnnjax.profiling.summary import summarize
from cnnjax.runs import evaluate
from cnnjax.runs import train as loop
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.evaluate import Evaluator
from cnnjax.runs.experiment import build
from cnnjax.runs.folder import Run
from cnnjax.runs.log import Log, NonFiniteLoss
from cnnjax.runs.optimizer import after_the_end
from cnnjax.runs.replay import replay_step
from cnnjax.runs.step import lower_step
from cnnjax.training import chips
from tests.conftest import tiny_arrays


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """A finished run with a moving average, and what was compiled on the way."""
    config = config_lib.default()
    config.model = "simple_cnn(widths=(2, 3), kernel_size=3)"
    config.batch_size, config.eval_batch_size, config.total_epochs = 16, 16, 3.0
    config.data.name, config.data.num_validation = tiny_data, 10
    config.log_every_steps, config.ema_decay = 3, 0.5
    config.optimizer.learning_rate = 0.01
    compiled: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: compiled.append(record.getMessage())
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            result = loop.train(config, tmp_path_factory.mktemp("runs") / "run")
    finally:
        logger.removeHandler(handler)
    return config, result, [m for m in compiled if m.startswith("Compiling")]


def test_the_steps_of_training_and_evaluation_compile_once_for_a_shape(finished):
    _, result, compiled = finished
    assert result.test["step"] == 15  # 80 images in batches of 16, three times
    assert len([m for m in compiled if re.search(r"Compiling (jit\()?accumulated_step", m)]) == 1
    # validation (10) and test (37) are no multiples of 16
    assert 1 <= len([m for m in compiled if re.search(r"Compiling (jit\()?eval_step", m)]) <= 2


def test_a_short_training_batch_does_not_compile_again(tiny_config, tmp_path, caplog):
    tiny_config.batch_size, tiny_config.total_epochs = 24, 1.0
    tiny_config.optimizer.warmup_epochs = 0.0
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        result = loop.train(tiny_config, tmp_path / "run")
    assert result.test["step"] == 4  # 80 = 3 * 24 + 8
    compiled = [r for r in caplog.messages if re.search(r"Compiling (jit\()?accumulated_step", r)]
    assert len(compiled) == 1


def test_the_run_folder_holds_what_the_design_says(finished):
    config, result, _ = finished
    names = {file.name for file in result.path.iterdir()}
    assert {"config.json", "record.json", "metrics.jsonl", "checkpoints", "test.json"} <= names
    assert config_lib.from_dict(read_json(result.path / "config.json")) == config
    record = json.loads((result.path / "record.json").read_text())
    assert {"command", "commit", "versions", "flags", "devices", "seed", "data", "model"} <= set(record)
    assert record["model"]["decayed"] == ["conv1/kernel", "conv2/kernel", "head/kernel"]
    assert len(record["data"]["fingerprint"]) == 64


def test_metrics_have_a_row_for_each_interval_and_evaluation(finished):
    _, result, _ = finished
    rows = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if "loss" in row]
    assert [row["step"] for row in train] == [3, 6, 9, 12, 15]
    fields = "step epoch seconds learning_rate loss accuracy gradient_norm images_per_second"
    assert all(set(row) >= {*fields.split(), "data_wait_seconds"} for row in train)
    shares = ("goodput", "compile_share", "data_share", "evaluation_share", "checkpoint_share")
    for row in train:
        assert row["images_per_second_per_device"] == row["images_per_second"] / jax.device_count()
        assert row["memory_bytes"] > 2**20 and "mfu" not in row  # a CPU's peak is not known
        assert all(0 <= row[name] < 1 for name in shares)
        assert sum(row[name] for name in shares) == pytest.approx(1)
    assert train[0]["evaluation_share"] == 0 < train[-1]["evaluation_share"]
    compiled = json.loads((result.path / "record.json").read_text())["compile_seconds"]
    whole = train[0]["seconds"] / (1 - train[0]["compile_share"])  # the run's seconds leave compilation out
    assert whole * train[0]["compile_share"] == pytest.approx(compiled, abs=1.0)
    assert [row["step"] for row in rows if "validation_loss" in row] == [5, 10, 15]
    assert all("validation_ema_accuracy" in row for row in rows if "validation_loss" in row)
    assert train[-1]["loss"] < train[0]["loss"]


@pytest.mark.parametrize("ended", [True, False])
def test_a_wait_for_a_batch_is_lost_if_the_step_before_has_ended(ended):
    """Else the device works meanwhile, and the time is the step's."""

    def slow():
        time.sleep(0.01)
        yield {}

    log = SimpleNamespace(batches=slow(), waiting=0.0, spent={"data": 0.0, "steps": 0.0}, steps=0)
    log.skipped_images = lambda split, batches: {}
    Log.next_batch(log, SimpleNamespace(num_steps=SimpleNamespace(is_ready=lambda: ended)))
    assert (log.waiting >= 0.01, log.spent["data"] == log.waiting == -log.spent["steps"]) == (ended, True)
    assert ended or log.waiting == 0


def test_steps_are_traced_into_the_folder_and_utilization_told_of_a_known_chip(
    tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setitem(chips.KINDS, jax.devices()[0].device_kind, "h100")
    result = loop.train(tiny_config, tmp_path / "run", profile_steps="2:4")
    assert len(list((result.path / "profile").rglob("*.xplane.pb"))) == 1
    assert json.loads((result.path / "record.json").read_text())["total_steps"] >= 4
    train = [row for row in Run.open(result.path).metrics() if "loss" in row]
    experiment = build(tiny_config)
    for row in train:
        rate = row["images_per_second_per_device"]
        assert row["mfu"] == pytest.approx(rate * experiment.flops() / chips.CHIPS["h100"].flops)
        assert f"MFU {100 * row['mfu']:.1f} %" in progress.describe(row)
    with pytest.raises(UserError, match=f"--profile_steps=2:4: the run resumes at step {train[-1]['step']}"):
        loop.train(tiny_config, tmp_path / "run", profile_steps="2:4")
    assert experiment.flops() == 6 * summarize(experiment.model, experiment.augment.output_shape).macs > 0
    old = {"step": 3, "epoch": 1.0, "loss": 0.5, "images_per_second": 100.0}  # of a run from before
    assert progress.describe(old) == "step 3  epoch 1.00  loss 0.5000  100 images/s"


def test_utilization_counts_what_a_step_computes(tiny_config, tmp_path, monkeypatch):
    """Both gradients of SAM; while a part is frozen it is not known."""
    monkeypatch.setitem(chips.KINDS, jax.devices()[0].device_kind, "h100")
    tiny_config.optimizer.sam_rho, tiny_config.freeze = 0.05, "until(1, conv1)"
    experiment, run = build(tiny_config), Run.open(loop.train(tiny_config, tmp_path / "run").path)
    rows = [row for row in run.metrics() if "loss" in row]
    thawed, per_epoch = [row for row in rows if "mfu" in row], experiment.steps_per_epoch
    before = [row["step"] - tiny_config.log_every_steps for row in thawed]
    assert before and min(before) >= per_epoch and len(thawed) < len(rows)
    assert all("MFU" in progress.describe(row) for row in thawed)
    macs = summarize(experiment.model, experiment.augment.output_shape).macs
    for row in thawed:
        share = row["images_per_second_per_device"] * 12 * macs / chips.CHIPS["h100"].flops
        assert row["mfu"] == pytest.approx(share)


@pytest.mark.parametrize("steps", ["4:2", "2:2", "a:b", "0:9999", "5", "-1:3"])
def test_steps_to_trace_that_the_run_has_not_are_told(tiny_config, tmp_path, steps):
    with pytest.raises(UserError, match=f"--profile_steps={steps} must be FIRST:END"):
        loop.train(tiny_config, tmp_path / "run", profile_steps=steps)
    assert not (tmp_path / "run").exists()


def test_the_net_learns_the_bars(finished):
    _, result, _ = finished
    assert result.test["accuracy"] > 0.9
    assert result.test["ema_accuracy"] > 0.8
    assert result.test["count"] == 37


def test_evaluate_reads_the_run_back(finished):
    _, result, _ = finished
    found, predictions = evaluate.evaluate(result.path)
    assert found["loss"] == result.test["loss"]
    np.testing.assert_array_equal(predictions["label"], tiny_arrays()["test_label"])
    assert evaluate.evaluate(result.path, weights="ema")[0]["loss"] == result.test["ema_loss"]
    assert evaluate.evaluate(result.path, checkpoint="best")[0]["step"] in (5, 10, 15)
    assert evaluate.evaluate(result.path, split="validation")[0]["count"] == 10
    with pytest.raises(UserError, match="unknown checkpoint 'first'"):
        evaluate.evaluate(result.path, checkpoint="first")


@pytest.mark.parametrize("average", [{"ema_decay": 0.9}, {"swa_start": 0.2}])
def test_kept_predictions_and_the_pages_are_of_the_weights_of_the_score(average, tiny_config, tmp_path):
    tiny_config.update(average | {"total_epochs": 1.0})
    result = loop.train(tiny_config, tmp_path / "run")
    kept = dict(np.load(result.path / "predictions.npz"))
    assert kept["loss"].mean() == pytest.approx(result.test["loss"], rel=1e-6)
    assert kept["loss"].mean() != pytest.approx(result.test["ema_loss"], rel=1e-3)
    page = report.write(result.path).read_text()
    assert "Classes and mistakes are of the raw ones." in page and "Worst mistakes" in page


def test_a_finished_run_is_not_trained_again(finished):
    config, result, _ = finished
    before = (result.path / "metrics.jsonl").read_text()
    assert loop.train(config, result.path).test == result.test
    assert (result.path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("count", [1, 15, 16, 17, 10_000])
def test_each_image_is_evaluated_once_whatever_the_batch(tiny_config, tmp_path, count):
    file = tmp_path / "some.npz"
    np.savez(file, **tiny_arrays(num_test=count))
    found = {}
    for batch_size in (16, 5) if count < 100 else (16, 1111):
        tiny_config.data.name, tiny_config.eval_batch_size = f"npz:{file}", batch_size
        experiment = build(tiny_config)
        state = experiment.init_state()
        evaluator = Evaluator(experiment, "test")
        assert evaluator.batches.batch_size == min(batch_size, count)  # a small split is not filled up
        found[batch_size], predictions = evaluator(state.variables)
        assert found[batch_size]["count"] == count
        assert found[batch_size]["confusion_matrix"].sum() == count
        np.testing.assert_array_equal(predictions["label"], tiny_arrays(num_test=count)["test_label"])
    one, other = found.values()
    assert one["accuracy"] == other["accuracy"]
    np.testing.assert_array_equal(one["confusion_matrix"], other["confusion_matrix"])
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny_config, tmp_path):
    tiny_config.total_epochs = 4.0
    tiny_config.checkpoint_every_steps = 1
    tiny_config.optimizer.name, tiny_config.optimizer.schedule = "sgd", "constant"
    tiny_config.optimizer.learning_rate = 1e10  # finite for two steps
    with pytest.raises(NonFiniteLoss, match=r"at step \d+; training stopped before that update") as stopped:
        loop.train(tiny_config, tmp_path / "run")
    saved = Checkpoints(tmp_path / "run" / "checkpoints")
    step, tree, _ = saved.restore(build(tiny_config).abstract_tree())
    assert step >= 1 and f"at step {step};" in str(stopped.value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree["state"].params))


def test_blocks_are_stacked_in_the_step_and_named_in_the_checkpoint(tiny_config, tmp_path):
    spec = "resnet20_cifar(stage_sizes=(1, 3), widths=(2, 3), scan_blocks={})"
    tiny_config.total_epochs, tiny_config.checkpoint_every_steps, tiny_config.ema_decay = 1.0, 2, 0.5
    tiny_config.optimizer.name = "sgd(momentum=0.9)"
    found = {}
    for scans in (False, True):
        tiny_config.model = spec.format(scans)
        result = loop.train(tiny_config, tmp_path / str(scans))
        saved = Checkpoints(result.path / "checkpoints")
        found[scans] = saved.read(saved.steps()[-1])["state"]
    shutil.rmtree(saved.directory / str(saved.steps()[-1]))
    again = loop.train(tiny_config, result.path).state  # goes on from the step before
    jax.tree.map(np.testing.assert_array_equal, again.params, result.state.params)
    assert jax.tree.structure(found[True]) == jax.tree.structure(found[False])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found.values())
    experiment = build(tiny_config)
    assert "stage2_block2_to_3" in experiment.init_state().params
    layers = replay_step(result.path, 3).layers
    assert {"stage2_block2/conv1", "stage2_block3/norm2"} < set(layers)


@pytest.mark.parametrize(
    "field, value",
    [
        ("optimizer.name", "lamb"),
        ("optimizer.decay", "stage2_block3"),
        ("optimizer.learning_rate_scales", "stage2_block3: 0.1"),
        ("freeze", "stage2_block2/"),
        ("sharding", "model"),
    ],
)
def test_blocks_that_a_rule_tells_apart_are_not_stacked(tiny_config, field, value):
    tiny_config.model = "resnet20_cifar(stage_sizes=(1, 4), widths=(2, 3), scan_blocks=True)"
    tiny_config.update_from_flattened_dict({field: value})
    experiment = build(tiny_config)
    assert not experiment.stacked_blocks
    assert "stage2_block4" in experiment.abstract_step_state.params


@pytest.mark.parametrize(
    "sharding, told", [("towers", True), ("model", True), ("fsdp", False), ("replicated", False)]
)
def test_a_sharding_over_one_device_is_told(tiny_config, sharding, told):
    tiny_config.model, tiny_config.sharding = "alexnet_cifar(groups=2)", sharding
    experiment = build(tiny_config)
    line = f"config.sharding={sharding!r} splits no parameter of {tiny_config.model}: the mesh has one device"
    assert experiment.unsplit().startswith(line) == told
    assert (f", sharding {sharding} over data:1,model:1" in experiment.header()[-1]) == (
        sharding != "replicated"
    )


@pytest.mark.parametrize(
    ("schedule", "freeze", "told"),
    [
        ("step(boundaries=(1, 3, 6))", "", ["no rate changes at epoch 3, 6; the run ends at 2"]),
        (
            "step(boundaries=2)",
            "until(2.5, conv1)",
            ["at epoch 2; the run", "nothing thaws at epoch 2.5; the run"],
        ),
        ("step(boundaries=(0.5, 0.75))", "until(1, conv1)", []),
        ("cosine", "conv1", []),
    ],
)
def test_what_would_happen_after_the_end_is_told(tiny_config, schedule, freeze, told):
    tiny_config.optimizer.schedule, tiny_config.freeze = schedule, freeze
    lines = after_the_end(tiny_config)
    assert len(lines) == len(told) and all(words in line for words, line in zip(told, lines, strict=True))


def test_the_state_is_donated(tiny_config):
    experiment = build(tiny_config)
    kept = experiment.init_state()
    leaf = kept.params["conv1"]["kernel"]
    step = lower_step(experiment).compile()
    step(kept, experiment.no_sums(), next(experiment.train_batches()), experiment.key())
    assert leaf.is_deleted()


def test_another_config_or_other_images_may_not_resume(finished, tiny_config, tmp_path):
    config, result, _ = finished
    for field, value in (("seed", 3), ("batch_size", 8), ("model", "simple_cnn(widths=(2, 4))")):
        other = config_lib.assign(config, {})
        other[field] = value
        with pytest.raises(UserError, match=rf"config\.{field}: saved"):
            loop.train(other, result.path)
    file = tmp_path / "other.npz"
    np.savez(file, **tiny_arrays(num_train=120))
    other = config_lib.assign(config, {})
    other.data.name = f"npz:{file}"
    with pytest.raises(UserError, match=r"config\.data\.name: saved"):
        loop.train(other, result.path)
    name = config.data.name.removeprefix("npz:")
    original = Path(name).read_bytes()
    try:
        np.savez(name, **(tiny_arrays() | {"train_image": 255 - tiny_arrays()["train_image"]}))
        with pytest.raises(UserError, match="other images"):
            loop.train(config, result.path)
    finally:
        Path(name).write_bytes(original)


def test_batch_and_devices_must_agree(tiny_config):
    from cnnjax.training import parallel

    mesh = parallel.make_mesh("", jax.devices()[:1])
    parallel.check_divides("config.batch_size", 7, mesh)
    fake = type("Mesh", (), {"shape": {"data": 4}})()
    with pytest.raises(UserError, match=r"config.batch_size=7 is not divisible by the 4 devices"):
        parallel.check_divides("config.batch_size", 7, fake)
    with pytest.raises(UserError, match=r"=40 is .* by accumulate_steps=4 times the 4 devices .*32 or 48"):
        parallel.check_divides("config.batch_size", 40, fake, 4)
    parallel.check_divides("config.batch_size", 48, fake, 4)


@pytest.mark.parametrize("place", ["size", "freeze", "decay/zz", "name.zip"])
def test_a_path_that_begins_like_a_field_is_told_whole(place, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_config.data.name = f"folder:{place}"
    with pytest.raises(UserError, match=f"^config.data.name: {place}: no such "):
        build(tiny_config)
    Path(place).mkdir(parents=True)
    with pytest.raises(UserError, match=f"^config.data.name: {place}: no images"):
        build(tiny_config)


def test_a_net_of_one_size_wants_the_images_of_training_and_evaluation_alike(tiny_config):
    tiny_config.augment.train = "random_crop(16, padding=4)|normalize"
    with pytest.raises(UserError, match="train gives images of 16x16x1, .*eval of 8x8x1; .* crop both to it"):
        build(tiny_config)
    tiny_config.model = "resnet20_cifar"  # ends in a global average
    assert build(tiny_config).augment.output_shape == (16, 16, 1)


def test_a_folder_in_use_or_of_something_else_is_refused(tiny_config, tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="neither empty nor a run folder"):
        loop.train(tiny_config, tmp_path)
    assert (tmp_path / "diary.txt").read_text() == "mine"
    experiment = build(tiny_config)
    fingerprint = experiment.train_source.fingerprint
    run = loop.Run.create(tmp_path / "run", tiny_config, fingerprint)
    with pytest.raises(UserError, match="another process is training"):
        loop.Run.create(tmp_path / "run", tiny_config, fingerprint)
    run.close()
