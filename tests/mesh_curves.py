"""Run by test_devices in a process of its own with 8 simulated devices: prints the facts as JSON.

python -m tests.mesh_curves FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax import config as config_lib
from cnnjax.data import batches as pipeline
from cnnjax.data.sources.source import ArraySource
from cnnjax.profiling.compiled import inspect, layer_paths
from cnnjax.runs.checkpoints import Saver
from cnnjax.runs.experiment import Experiment, build
from cnnjax.runs.step import gradient_of, lower_step
from cnnjax.training import parallel
from cnnjax.training.steps import TrainMetrics
from tests.conftest import tiny_arrays

RESNET = "resnet20_cifar(stage_sizes=(1, 1), widths=(8, 16))"
ALEXNET = "alexnet(dropout_rate=0.0, image_size=67, widths=(8, 16, 16, 16, 16, 32, 32))"
INCEPTION = 'googlenet_with_aux(width=0.06, stem="cifar")'
STEPS = 4
# Nets of all families with groups, and of others, whose gradients are those of one device on every mesh.
GRADIENTS = {
    "alexnet": (ALEXNET, 67),
    "alexnet_four_towers": (ALEXNET.replace("alexnet(", "alexnet(groups=4, "), 67),
    "resnet": (RESNET, 8),
    "resnext": ("resnext50_32x4d(stage_sizes=(1, 1), widths=(16, 16), stem='cifar')", 8),
    "mobilenet_v1": ("mobilenet_v1(stem='cifar', width=0.25, stages=((32, 1, 1),))", 8),
    "mobilenet_v2": (
        "mobilenet_v2(stem='cifar', width=0.25, stages=((1, 24, 1, 1), (2, 32, 1, 1)), last_width=32, "
        "dropout_rate=0.0)",
        8,
    ),
    "efficientnet": (
        "efficientnet_b0(stem='cifar', stages=((1, 3, 1, 8, 1), (4, 5, 2, 8, 1)), dropout_rate=0.0, "
        "drop_path_rate=0.0)",
        8,
    ),
    "convnext": (
        "convnext_tiny(stem='cifar', stage_sizes=(1, 1), widths=(8, 16), drop_path_rate=0.0, "
        "layer_scale_init=1.0)",
        16,
    ),
}
MESHES: tuple[dict[str, Any], ...] = (
    {"mesh": "data:8"},
    {"mesh": "data:8", "sharding": "fsdp"},
    {"mesh": "data:2,model:4"},
    {"mesh": "data:2,model:4", "sharding": "model"},
    {"mesh": "data:2,model:3", "sharding": "model"},
    {"mesh": "model:2", "sharding": "towers"},
    {"mesh": "data:2,model:2", "sharding": "model", "accumulate_steps": 2, "batch_norm": "groups(4)"},
)
CASES = {
    "resnet": (RESNET, 8, [{"mesh": f"data:{n}"} for n in (1, 2, 4, 8)] + [{"sharding": "fsdp"}]),
    "resnet device": (RESNET, 8, [{"mesh": "data:4", "batch_norm": "device"}]),
    "resnet groups": (RESNET, 8, [{"mesh": "data:1", "batch_norm": "groups(4)"}]),
    "sam": (RESNET, 8, [{"mesh": f"data:{n}", "optimizer": {"sam_rho": 0.05}} for n in (1, 8)]),
    "alexnet": (
        ALEXNET,
        67,
        [
            {"mesh": "data:1"},
            {"sharding": "fsdp"},
            {"mesh": "data:2,model:4", "sharding": "model"},
            {"mesh": "model:2", "sharding": "towers"},
            {"mesh": "data:2,model:2", "sharding": "towers", "accumulate_steps": 2},
        ],
    ),
    "inception": (INCEPTION, 32, [{"mesh": "data:1"}, {"sharding": "fsdp"}]),
}


def make(model: str, size: int, fields: dict) -> Experiment:
    arrays = tiny_arrays(num_train=48)
    times = -(-size // 8)  # each pixel becomes a square
    pixels = np.kron(arrays["train_image"], np.ones((1, times, times, 3), np.uint8))
    source = ArraySource(pixels, arrays["train_label"].astype(np.int32), ("a", "b", "c"), "tiny", "train")
    config = config_lib.default()
    config.augment.train = f"random_crop({size}, padding=1)|mirror|normalize(mean=0.5, std=0.25)"
    config.augment.eval = f"center_crop({size})|normalize(mean=0.5, std=0.25)"
    config.update({"model": model, "batch_size": 16, "total_epochs": 4.0})
    config.optimizer.update(
        {"name": "sgd(momentum=0.9)", "learning_rate": 0.02, "schedule": "constant", "warmup_epochs": 0.0}
    )
    config.update(fields)
    return build(config, source=source)


def train(experiment: Experiment, start: Any = None) -> tuple[list[float], dict, Any]:
    """The losses of a few steps from a state on the host, facts of the program, and the last state."""
    compiled = lower_step(experiment).compile()
    program = inspect(compiled, layer_paths(experiment.abstract_state.params))
    whole = parallel.replicated(experiment.mesh)
    batches = pipeline.make_batches(
        experiment.train_source, 16, seed=0, sharding=parallel.split_batch(experiment.mesh)
    )
    losses: list[float] = []
    state = experiment.init_state() if start is None else jax.device_put(start, placed_as(experiment))
    key = jax.device_put(jax.random.key(0), whole)
    for _ in range(STEPS):
        interval = jax.device_put(TrainMetrics.empty(), whole)
        state, interval = compiled(state, interval, next(batches), key)
        losses.append(float(interval.loss / interval.weight))
    held = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state))
    )
    facts = {"held": held, "arguments": program.arguments, "temporaries": program.temporaries}
    facts["kinds"] = {kind: count for kind, (count, _) in program.by_kind().items()}
    facts["layers"] = sorted(
        {layer for c in program.collectives if c.kind == "all-gather" for layer in c.layers}
    )
    return losses, facts, state


def gradient(experiment: Experiment, start: Any) -> dict[str, np.ndarray]:
    """The gradient of the first step by path, each leaf on the devices of its parameter."""
    batches = pipeline.make_batches(
        experiment.train_source, 16, seed=0, sharding=parallel.split_batch(experiment.mesh)
    )
    places, of_batch = placed_as(experiment), gradient_of(experiment)
    differentiate = jax.jit(lambda *inputs: of_batch(*inputs).grads, out_shardings=places.params)
    key = jax.device_put(jax.random.key(0), parallel.replicated(experiment.mesh))
    with jax.set_mesh(experiment.mesh):
        grads = differentiate(jax.device_put(start, places), next(batches), key)
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in jax.tree.leaves_with_path(grads)}


def wrong_gradients(model: str, size: int) -> list[str]:
    """What differs from one device by more than rounding, over all meshes: mesh, path and ratio."""
    wrong, alone = [], {}
    for fields in MESHES:
        passes = {name: fields[name] for name in ("accumulate_steps", "batch_norm") if name in fields}
        if str(passes) not in alone:
            one = make(model, size, {"mesh": "data:1", **passes})
            start = jax.device_get(one.init_state())
            alone[str(passes)] = gradient(one, start)
        right, found = alone[str(passes)], gradient(make(model, size, fields), start)
        largest = max(np.linalg.norm(leaf) for leaf in right.values())
        for path, leaf in right.items():
            if not np.linalg.norm(found[path] - leaf) < 1e-3 * (np.linalg.norm(leaf) + 1e-3 * largest):
                ratio = np.linalg.norm(found[path]) / np.linalg.norm(leaf)
                wrong.append(f"{fields} {path}: {ratio:.3f} times as large")
    return wrong


def placed_as(experiment: Experiment) -> Any:
    return jax.tree.map(lambda x: x.sharding, experiment.abstract_state)


def elastic(state: Any, experiments: list[Experiment], folder: Path) -> list[bool]:
    """Whether a state saved from 8 devices comes back the same on each of the meshes, and as NumPy."""
    saved = Saver(folder)
    saved.save(1, {"state": state}, {"position": 1})
    saved.wait()
    expected = jax.tree.map(np.asarray, state)
    same = []
    for experiment in experiments:
        like = {"state": experiment.abstract_state}
        _, tree, _ = saved.restore(like)
        places = jax.tree.map(lambda x, y: x.sharding == y.sharding, tree["state"], like["state"])
        equal = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), tree["state"], expected)
        same.append(all(jax.tree.leaves(places)) and all(jax.tree.leaves(equal)))
    plain = saved.read(1)["state"]["params"]
    equal = jax.tree.map(lambda a, b: type(a) is np.ndarray and bool((a == b).all()), plain, expected.params)
    return [*same, all(jax.tree.leaves(equal))]


def main(folder: Path) -> None:
    found = {}
    for name, (model, size, cases) in CASES.items():
        experiments = [make(model, size, fields) for fields in cases]
        start = jax.device_get(experiments[0].init_state())
        starts = [start] * (len(experiments) - 1) + [None if name == "resnet" else start]
        rows = [train(*pair) for pair in zip(experiments, starts, strict=True)]
        found[name] = [{"losses": losses, **facts} for losses, facts, _ in rows]
        if name == "resnet":
            found["elastic"] = elastic(rows[-1][2], experiments, folder)
    found["wrong gradients"] = {name: wrong_gradients(*net) for name, net in GRADIENTS.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
