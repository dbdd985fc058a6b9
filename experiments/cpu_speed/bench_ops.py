"""Each operation of `cnnjax.ops` that has a CPU kernel, beside the same operation through XLA.

python experiments/cpu_speed/bench_ops.py   # one line of JSON for each
"""

import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.ops import cpu
from cnnjax.profiling.benchmark import calls_per_second

Arrays = tuple[jax.Array, ...]


def cases() -> dict[str, tuple[Callable[..., jax.Array], tuple[tuple[int, ...], ...]]]:
    """By name: the function, and the shapes of its arrays; every array gets a gradient."""

    def conv(x: tuple[int, ...], size: int, features: int, stride: int = 1, groups: int = 1):
        kernel = (size, size, x[-1] // groups, features)
        name = f"conv {size}x{size}/{stride} to {features}" + (f", {groups} groups" if groups > 1 else "")

        def run(image: jax.Array, kernel: jax.Array) -> jax.Array:
            return ops.conv2d(image, kernel, strides=stride, padding=size // 2, groups=groups)

        return f"{name} of {_show(x)}", (run, (x, kernel))

    def norm(x: tuple[int, ...], pool: int = 1):
        def run(image: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            return ops.batch_norm_train(image, scale, bias, act=ops.relu, pool=pool)[0]

        name = "BatchNorm and ReLU" if pool == 1 else f"BatchNorm, ReLU and max pool {pool}x{pool}"
        return f"{name} of {_show(x)}", (run, (x, x[-1:], x[-1:]))

    pooled, response = (32, 112, 112, 64), (32, 55, 55, 96)
    return dict(
        [
            conv((128, 28, 28, 1), 5, 16),
            conv((128, 14, 14, 16), 5, 32),
            conv((32, 56, 56, 64), 3, 64),
            conv((32, 56, 56, 64), 1, 256),
            conv((32, 14, 14, 256), 3, 256),
            conv((32, 56, 56, 128), 3, 128, stride=2),
            conv((32, 28, 28, 144), 3, 144, groups=144),
            conv((32, 14, 14, 384), 3, 256, groups=2),
            norm((32, 56, 56, 64)),
            norm((128, 28, 28, 16)),
            norm((128, 28, 28, 16), pool=2),
            (f"max pool 3x3/2 of {_show(pooled)}", (lambda x: ops.max_pool(x, 3, 2, padding=1), (pooled,))),
            (f"LRN over 5 of {_show(response)}", (ops.local_response_norm, (response,))),
        ]
    )


def bench_ops(rounds: int = 5, seconds: float = 0.2) -> Iterator[dict[str, Any]]:
    """Measures each case forward and with all gradients, kernel and XLA in turn.

    Yields: operation, dtype, xla_ms, kernel_ms (medians of the rounds), ratio.

    Raises:
      UserError: where there are no kernels to measure.
    """
    if cpu.status().startswith("off") or jax.default_backend() != "cpu":
        raise UserError(f"bench_ops compares the CPU kernels with XLA; here they are {cpu.status()}")
    for name, (function, shapes) in cases().items():
        for dtype in ("float32", "bfloat16"):
            arrays = tuple(_draw(i, shape, dtype) for i, shape in enumerate(shapes))
            kernel = _compile(function, arrays)
            with cpu.paused():
                xla = _compile(function, arrays)
            pairs = [(_milliseconds(xla, arrays, seconds), _milliseconds(kernel, arrays, seconds))
                     for _ in range(rounds)]  # fmt: skip
            slow, fast = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            yield {"operation": name, "dtype": dtype, "xla_ms": round(slow, 3), "kernel_ms": round(fast, 3),
                   "ratio": round(ratio, 2)}  # fmt: skip


def _show(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _draw(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    # Scales and biases are float32 in every net.
    return jnp.asarray(values, jnp.float32 if len(shape) == 1 else dtype)


def _compile(function: Callable[..., jax.Array], arrays: Arrays) -> Callable[..., Any]:
    # The cotangent is an array, so that no part of the backward pass folds away.
    weight = _draw(99, jax.eval_shape(function, *arrays).shape, arrays[0].dtype.name)

    def run(*arrays: jax.Array) -> Any:
        y, pull = jax.vjp(function, *arrays)
        return y, pull(weight.astype(y.dtype))

    return jax.jit(run).lower(*arrays).compile()


def _milliseconds(compiled: Callable[..., Any], arrays: Arrays, seconds: float) -> float:
    jax.block_until_ready(compiled(*arrays))
    return 1e3 / calls_per_second(lambda: jax.block_until_ready(compiled(*arrays)), seconds)


if __name__ == "__main__":
    for measured in bench_ops():
        print(json.dumps(measured), flush=True)
