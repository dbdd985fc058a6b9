"""ReLU: its derivatives, and that a CPU computes each residual sum once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.ops import cpu

X = jnp.float32([[-jnp.inf, -2.0, -0.0, 0.0], [1e-30, 3.0, jnp.inf, jnp.nan]])
kernels = pytest.mark.skipif(cpu.status().startswith("off"), reason=f"CPU kernels {cpu.status()}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap, jax.checkpoint])
def test_relu_and_its_derivatives_are_those_of_jax(dtype, wrap):
    x = X.astype(dtype)
    for mode in (lambda f: f, lambda f: lambda x: jax.jvp(f, (x,), (3 * jnp.ones_like(x),))):
        found, wanted = (jnp.stack(jax.tree.leaves(mode(wrap(f))(x))) for f in (ops.relu, jax.nn.relu))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.astype("float32"), wanted.astype("float32"))
    finite = jnp.where(jnp.isfinite(x), x, 1)
    for order in (jax.grad, lambda f: jax.grad(lambda x: jax.grad(f)(x).sum())):
        of = [order(lambda x, f=f: (wrap(f)(x) ** 3).sum())(finite) for f in (ops.relu, jax.nn.relu)]
        np.testing.assert_array_equal(*(array.astype("float32") for array in of))


@kernels
def test_each_block_of_a_residual_chain_reads_one_branch():
    """XLA alone adds up all branches again in each block and in each gradient."""

    def loss(kernels, x):
        for kernel in kernels:
            x = ops.relu(ops.conv2d(x, kernel, padding="same") + x)
        return (x**2).sum()

    shape = (4, 32, 32, 16)
    program = jax.jit(jax.grad(loss)).lower([jnp.zeros((3, 3, 16, 16))] * 6, jnp.zeros(shape)).compile()
    text = program.as_text()
    fusions = [line.partition("->")[0] for line in text.splitlines() if line.startswith("%fused")]
    read = [fusion.count(f"f32[{','.join(map(str, shape))}]") for fusion in fusions]
    assert 2 <= max(read) <= 3, read  # two in a sum, or what two gradients and ReLU's result are
