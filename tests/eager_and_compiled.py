"""Run by test_compiled in a process of its own: functions and steps computed eagerly and compiled, as JSON.

python -m tests.eager_and_compiled [ops|augment|steps] ...

Prints {name: the largest difference of a result, over its largest magnitude}. Arrays have between 32,768 and
41,000 pixels or rows, which jaxlib 0.10.2 gets wrong in some fused sums (github.com/jax-ml/jax, issue 39103).
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from cnnjax import ops
from cnnjax.data.augment.chain import parse
from cnnjax.models import create_model
from cnnjax.ops import cpu
from cnnjax.training import steps
from cnnjax.training.metrics import of_logits
from cnnjax.training.optimizers import OPTIMIZERS, ema_update, make_optimizer
from tests.data.test_policies import STRONG
from tests.models.test_models import TINY

Function = Callable[..., object]
Case = tuple[str, Function, tuple]  # a name, a function, and what it takes
# The fault is there at every level of optimization, and the lowest compiles several times as fast.
QUICK = {"xla_backend_optimization_level": 0}
PLAIN = QUICK | {"xla_cpu_experimental_ynn_fusion_type": ""}  # without the fusions that the issue is about
ROWS = range(32_769, 41_000)
DRAW = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(DRAW.normal(1, 1, shape), jnp.float32)


def image_shape(channels: int) -> tuple[int, int, int, int]:
    """[B, H, W, C] with a random number of pixels in `ROWS`."""
    while True:
        batch, height = (int(n) for n in DRAW.integers((2, 40), (9, 90)))
        width = -(-ROWS.start // (batch * height)) + int(DRAW.integers(3))
        if width > 8 and batch * height * width in ROWS:
            return batch, height, width, channels


def apart(result: object, expected: object) -> float:
    """The largest difference of two trees' leaves, each over the largest magnitude of its leaf."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.size:
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)))
    return worst


def squares(function: Function) -> Function:
    """What a function of float arrays returns, its sums of squares by row, and their mean's gradients."""

    def sums(*arrays: jax.Array) -> jax.Array:
        return jnp.square(jnp.atleast_2d(function(*arrays))).sum(-1)

    def all_of(*arrays: jax.Array) -> object:
        mean = jax.value_and_grad(lambda *x: sums(*x).mean(), tuple(range(len(arrays))))
        return function(*arrays), sums(*arrays), mean(*arrays)

    return all_of


def op_cases() -> Iterator[Case]:
    """Every function of `ops`, and those of losses, metrics and averages, on arrays of odd sizes."""
    for channels in (1, 3, 6):
        x, vector = normal(*image_shape(channels)), normal(channels)
        few = normal(*x.shape[:1], channels)
        unary: dict[str, Function] = {name: ops.activation(name) for name in ops.ACTIVATIONS}
        unary |= {
            "local_response_norm": ops.local_response_norm,
            "local_response_norm_caffe": ops.local_response_norm_caffe,
            "global_avg_pool": ops.global_avg_pool,
            "global_max_pool": ops.global_max_pool,
            "max_pool": functools.partial(ops.max_pool, window=3, strides=2),
            "min_pool": functools.partial(ops.min_pool, window=2),
            "avg_pool": functools.partial(ops.avg_pool, window=3, strides=1, padding=1),
            "l2_pool": functools.partial(ops.l2_pool, window=2),
            "center_weighted_pool": functools.partial(ops.center_weighted_pool, window=3, strides=2),
            "subsample": functools.partial(ops.subsample, window=2),
            "adaptive_avg_pool": functools.partial(ops.adaptive_avg_pool, output_size=7),
            "adaptive_max_pool": functools.partial(ops.adaptive_max_pool, output_size=7),
        }
        yield from ((f"{name} {x.shape}", squares(f), (x,)) for name, f in unary.items())
        yield f"layer_norm {x.shape}", squares(ops.layer_norm), (x, vector, vector)
        yield f"scale_channels {x.shape}", squares(ops.scale_channels), (x, few)
        norm = [lambda x, s, b: ops.batch_norm_train(x, s, b)[0], ops.batch_norm_inference]
        yield f"batch_norm_train {x.shape}", squares(norm[0]), (x, vector, vector)
        yield f"batch_norm_inference {x.shape}", squares(norm[1]), (x, vector, vector, vector, vector**2 + 1)
        for out, side, groups in ((1, 1, 1), (3, 1, 1), (4, 3, 1), (channels, 3, channels)):
            conv = functools.partial(ops.conv2d, padding="SAME", groups=groups)
            kernel = normal(side, side, channels // groups, out)
            yield f"conv2d {x.shape} {kernel.shape}", squares(conv), (x, kernel, normal(out))
        rows, kernel = x.reshape(-1, channels), normal(channels, 3)
        yield f"dense {rows.shape}", squares(ops.dense), (rows, kernel, normal(3))
        yield f"dense of few {rows.shape}", squares(ops.dense), (rows.T, normal(len(rows), 2), normal(2))


def loss_cases() -> Iterator[Case]:
    """Losses and metrics of many rows, averages of weights, and every optimizer."""
    for classes in (2, 3, 10):
        rows = int(DRAW.choice(ROWS))
        logits, label = normal(rows, classes), jnp.asarray(DRAW.integers(0, classes, rows), jnp.int32)
        mask, hot = jnp.asarray(DRAW.integers(0, 2, rows), jnp.float32), jax.nn.one_hot(label, classes)
        for target in (label, hot):
            losses = functools.partial(steps.cross_entropy, label=target, label_smoothing=0.1)
            yield f"cross_entropy {target.shape}", squares(losses), (logits,)
        yield f"of_logits {rows}", of_logits, (logits, label, logits[:, 0])
        distilled = functools.partial(steps.distilled, alpha=0.5, temperature=2.0)
        yield f"distilled {rows}", squares(distilled), (logits[:, 0], logits, logits[::-1])
        yield f"masked_mean {rows}", steps.masked_mean, (logits[:, 0], mask)
    params = {"kernel": normal(3, ROWS.start + 100), "head": {"kernel": normal(ROWS.start + 7, 3)}}
    yield "ema_update", lambda new: ema_update(params, new, 0.9, 3), (jax.tree.map(jnp.cos, params),)
    for name in OPTIMIZERS:
        tx = make_optimizer(name, lambda step: 0.1, weight_decay=0.1, gradient_clip=1.0)
        yield f"optimizer {name}", lambda g, tx=tx: tx.update(g, tx.init(params), params)[0], (params,)


def augment_cases() -> Iterator[Case]:
    """Every augmentation of images with as many pixels, and their statistics."""
    for name, spec in STRONG.items():
        batch, height, width, _ = image_shape(3)
        spec = spec if any(word in spec for word in ("scale|", "normalize", "pca_color")) else f"{spec}|scale"
        spec = "scale" if name == "scale" else spec
        facts = {"image_shape": (height, width, 3), "num_classes": 8, "covariance": np.eye(3) * 0.05}
        chain = parse(spec, **facts)
        images = jnp.asarray(DRAW.integers(0, 256, (batch, height, width, 3)), jnp.uint8)
        index = jnp.arange(batch)
        values = {"image": images, "label": index, "index": index, "epoch": index // 2}
        values |= {"run_key": jax.random.key(3)}
        yield f"{name} {images.shape}", lambda b, c=chain: image_and_label(c(jax.random.key(1), b)), (values,)


def image_and_label(batch: dict[str, jax.Array]) -> list[jax.Array]:
    return [batch["image"], batch["label"]]


def step_cases() -> Iterator[Case]:
    """A training step of each family; batches that give the first layers as many pixels."""
    for spec, size in TINY.items():
        model = create_model(spec, num_classes=5)
        batch_size = max(4, -(-(ROWS.start + int(DRAW.integers(4000))) // (size[0] * size[1])))
        tx = make_optimizer("sgd", lambda step: 0.1, weight_decay=0.001)
        state = steps.init_state(model, tx, jax.random.key(0), size)
        batch = {
            "image": jnp.asarray(DRAW.integers(0, 256, (batch_size, *size)), jnp.uint8),
            "label": jnp.asarray(DRAW.integers(0, 5, batch_size), jnp.int32),
            "mask": jnp.ones(batch_size, jnp.float32),
        }
        augment = parse("normalize(0.5, 0.25)", image_shape=size)
        gradient = functools.partial(steps.batch_gradient, model=model, augment=augment)
        step = functools.partial(steps.train_step, tx=tx, gradient=gradient)
        yield spec, functools.partial(moved, step), (state, batch, jax.random.key(2))


def moved(step: Function, state: steps.TrainState, *inputs: object) -> object:
    """What a step computes, its update as one vector: gradients that are 0 but for rounding do not count."""
    new, metrics = step(state, *inputs)
    update = jax.tree.map(jnp.subtract, new.params, state.params)
    return metrics.loss, metrics.gradient_norm, new.batch_stats, ravel_pytree(update)[0]


def main(names: list[str]) -> None:
    """Steps take minutes op by op: another compilation, without those fusions, stands for the eager one.

    XLA alone computes them, as the kernels for CPUs would take sums away from it.
    """
    worst: dict[str, float] = {}
    parts = {"ops": (op_cases, loss_cases), "augment": (augment_cases,), "steps": (step_cases,)}
    for part in names or parts:
        whole = part == "steps"
        for name, function, arguments in (case for cases in parts[part] for case in cases()):
            for kernels in (False,) if whole else (True, False):
                with cpu.chosen(kernels):
                    lowered = jax.jit(function).lower(*arguments)
                    compiled = lowered.compile(compiler_options=QUICK)
                    other = lowered.compile(compiler_options=PLAIN) if whole else function
                    found = apart(compiled(*arguments), other(*arguments))
                key = f"{name}{'' if kernels else ', XLA alone'}"
                worst[key] = found
                print(f"{found:.1e} {key}", file=sys.stderr, flush=True)
    print(json.dumps(worst, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
