"""The parts of `run.py`, each in a process of its own: rows go to standard output as JSON, one a line."""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.data.augment import chain
from cnnjax.data.files import scratch_folder
from cnnjax.models import create_model
from cnnjax.ops import cpu
from cnnjax.training.steps import TrainState, batch_gradient, init_state, run_init
from experiments import results
from experiments.gpu import steps

# (net, pixels a side) of parity, and (net, batch, pixels) of the steps.
PARITY = (
    ("resnet50", 224),
    ("alexnet", 227),
    ("googlenet_with_aux", 224),
    ("mobilenet_v2", 224),
    ("convnext_tiny", 224),
)
TOY_PARITY = (("simple_cnn", 28),)
RESNET50 = (("resnet50", 256, 224),)
NETS = (
    *(("alexnet_torchvision", 256, 227), ("googlenet_torchvision", 256, 224), ("mobilenet_v2", 256, 224)),
    *(("convnext_tiny", 128, 224), ("densenet121", 128, 224)),
)
SEEDS = 5
TOY_AIRBENCH = {
    **{"data.name": "fashion_mnist_mini", "batch_size": 128, "eval_batch_size": 300},
    **{
        "optimizer.warmup_epochs": 0.0,
        "augment.train": "random_crop(28, padding=2)|alternating_flip|normalize",
    },
    **{"model": "simple_cnn", "dtype": "float32", "freeze": "", "optimizer.learning_rate_scales": ""},
}


def say(*, measure: str, value: object = "", case: str = "", note: str = "") -> None:
    """One row, in one write, as threads say some."""
    row = json.dumps({"measure": measure, "case": case, "value": value, "note": note})
    print(f"{row}\n", end="", flush=True)


def device(*, toy: bool) -> None:
    """What is here, and how fast it multiplies and copies."""
    first = jax.devices()[0]
    say(measure="device", value=first.device_kind, note=f"{jax.device_count()} of {first.platform}")
    for name in ("jax", "jaxlib", "flax", "optax"):
        say(measure=name, value=importlib.metadata.version(name))
    say(measure="python", value=platform.python_version())
    n, repeats = (256, 2) if toy else (8192, 20)
    x = jnp.ones((n, n), jnp.bfloat16)

    @jax.jit
    def product(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, y: (y @ x) * jnp.bfloat16(1 / n), x)

    say(measure="bfloat16 product, FLOP/s", value=2 * n**3 * repeats / best(product, x), note=f"{n} a side")
    y = jnp.ones((2**20 if toy else 2**30) // 4, jnp.float32)
    moved = jax.jit(lambda y: y + 1)
    say(measure="copy, bytes/s", value=2 * y.nbytes / best(moved, y), note="read and written, float32")


def best(function: object, *arrays: jax.Array, tries: int = 5) -> float:
    """The least seconds of several calls, after one that compiles."""
    jax.block_until_ready(function(*arrays))
    found = []
    for _ in range(tries):
        start = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        found.append(time.perf_counter() - start)
    return min(found)


def results_of(
    model: object, augment: object, state: TrainState, batch: dict[str, jax.Array]
) -> dict[str, object]:
    """The loss in training, all gradients, and the logits in evaluation."""
    key = jax.random.key(1)
    gradient = batch_gradient(state, batch, key, model=model, augment=augment, aux_weight=0.3)
    image = augment(key, batch)["image"]
    logits = model.apply(state.variables, image, train=False)
    return {"loss": gradient.loss, "gradient": gradient.grads, "logits": logits}


def parity(*, toy: bool, batch_size: int = 4) -> None:
    """Each net in float32 on the CPU in plain XLA, in float32 and in bfloat16 here; compiled side by side."""
    nets, told = TOY_PARITY if toy else PARITY, []
    host = jax.local_devices(backend="cpu")[0]
    # Those that tell wait for results that are computed in the other pool.
    with ThreadPoolExecutor() as pool, ThreadPoolExecutor(len(nets)) as tellers:
        begun = [pool.submit(begin, host, name, size, batch_size) for name, size in nets]
        for (name, _), each in zip(nets, begun, strict=True):
            augment, inputs = each.result()
            found = {}
            for kind, place in (("cpu", host), ("float32", None), ("bfloat16", None)):
                model = create_model(name, dtype=jnp.dtype("bfloat16" if kind == "bfloat16" else "float32"))
                function = jax.jit(functools.partial(results_of, model, augment))
                with jax.default_device(place), cpu.chosen(kind != "cpu"), highest(kind):
                    found[kind] = pool.submit(run, place, function.lower(*inputs), inputs)
            told.append(tellers.submit(compare, name, found))
    for each in told:
        each.result()


def begin(host: jax.Device, name: str, size: int, batch_size: int) -> tuple[object, object]:
    """The augmentation, and the initial state and a batch as NumPy arrays."""
    draw, shape = np.random.default_rng(0), (size, size, 1 if name == "simple_cnn" else 3)
    batch = {"image": draw.integers(0, 256, (batch_size, *shape), np.uint8)}
    batch |= {"label": np.arange(batch_size, dtype=np.int32), "mask": np.ones(batch_size, np.float32)}
    with jax.default_device(host), cpu.chosen(False):
        init = functools.partial(init_state, create_model(name), optax.sgd(0.1), jax.random.key(0), shape)
        inputs = jax.device_get((run_init(init), batch))
    return chain.parse("normalize(mean=0.5, std=0.25)", image_shape=shape), inputs


def highest(kind: str) -> contextlib.AbstractContextManager[object]:
    """Full float32 products, as GPUs take TensorFloat-32 by default."""
    return contextlib.nullcontext() if kind == "bfloat16" else jax.default_matmul_precision("highest")


def run(place: jax.Device | None, lowered: jax.stages.Lowered, inputs: object) -> dict[str, object]:
    """Compiles and computes."""
    with jax.default_device(place):
        return jax.device_get(lowered.compile()(*inputs))


def compare(name: str, tasks: dict[str, Future[dict[str, object]]]) -> None:
    """How far what was computed here is from what the CPU did: norm of the difference over the norm."""
    found = {kind: task.result() for kind, task in tasks.items()}
    truth = found.pop("cpu")
    whole = float(optax.tree.norm(truth["gradient"]))
    for kind, each in found.items():
        apart = jax.tree.map(np.subtract, each, truth)
        logits = float(np.linalg.norm(apart["logits"]) / np.linalg.norm(truth["logits"]))
        say(case=name, measure=f"logits, {kind}", value=f"{logits:.2e}", note=verdict(kind, logits, 1e-4))
        gradient = float(optax.tree.norm(apart["gradient"])) / whole
        say(
            case=name,
            measure=f"gradient, {kind}",
            value=f"{gradient:.2e}",
            note=verdict(kind, gradient, 1e-2),
        )
        # A ReLU's input near zero may fall on either side, which tells in one array more than in all.
        leaves = jax.tree.leaves_with_path(truth["gradient"])
        errors = {
            jax.tree_util.keystr(path): float(np.linalg.norm(a) / max(np.linalg.norm(b), 1e-3 * whole))
            for a, (path, b) in zip(jax.tree.leaves(apart["gradient"]), leaves, strict=True)
        }
        worst = max(errors, key=lambda path: np.nan_to_num(errors[path], nan=np.inf))
        note = f"{verdict(kind, errors[worst], 0.1)}: {worst} of {len(errors)}"
        say(case=name, measure=f"worst array, {kind}", value=f"{errors[worst]:.2e}", note=note)


def verdict(kind: str, error: float, most: float) -> str:
    """Whether float32 agrees; of bfloat16 the error is only told."""
    if kind != "float32":
        return "for information"
    return "agrees" if error < most else "DIFFERS"


def airbench(*, toy: bool, data: str) -> None:
    """Several seeds of the speed run, one after the other, on all images: accuracy and seconds of each."""
    seeds, epochs, values = (2, 0.15, TOY_AIRBENCH) if toy else (SEEDS, 9.9, {"data.name": data})
    # Nothing is evaluated but the end, so that the seconds are those of training.
    values = {**values, "data.num_validation": 0, "total_epochs": epochs, "eval_every_epochs": epochs}
    with scratch_folder() as folder, tempfile.TemporaryFile("w+") as words:
        command = [sys.executable, "-m", "cnnjax", "sweep", "--config=configs/cifar10_airbench.py"]
        command += [f"--seeds={seeds}", f"--out={folder / 'runs'}"]
        command += [f"--config.{name}={value}" for name, value in values.items()]
        sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words)
        told, ended = 0, False
        while not ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                sweep.wait(0.2)
            ended = sweep.poll() is not None  # before the table is read for the last time
            rows = results.read(folder / "runs" / "results.csv")
            for row in rows[told:]:
                score = row.get("test_ema_accuracy") or row["test_accuracy"]
                case = f"{values['data.name']}, seed {row['seed']}"
                say(case=case, measure="test accuracy", value=score)
                say(case=case, measure="trained in, s", value=row["seconds"])
            told = len(rows)
        words.seek(0)
        if sweep.returncode:
            raise SystemExit((words.read().strip().splitlines() or ["no words"])[-1])


def feed(*, toy: bool) -> None:
    """The input pipeline, in a file of its own as it needs packages that the others do not."""
    from experiments.gpu import feed

    feed.feed(say, toy=toy)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--cifar10", default="cifar10")
    parser.add_argument("--peak", type=float, default=0.0)
    parser.add_argument("--until", type=float)  # seconds since the epoch, when this process is ended
    flags = parser.parse_args()
    against = functools.partial(steps.compare, say, flags.peak, until=flags.until)
    parts = {
        "device": device,
        "parity": parity,
        "resnet50": lambda toy: against((steps.TOY,) if toy else RESNET50, toy=toy),
        "nets": lambda toy: against((steps.TOY,) if toy else NETS, toy=toy),
        "airbench": functools.partial(airbench, data=flags.cifar10),
        "input": feed,
        "profile": functools.partial(steps.profile, say),
    }
    parts[flags.part](toy=flags.toy)


if __name__ == "__main__":
    main()
