import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cnnjax.errors import UserError
from cnnjax.ops.convolution import conv2d
from tests.conftest import simulated


def reference(x, kernel, strides, sides, groups, dilation, mode):
    """Float64 loops over outputs and taps."""
    x = np.pad(np.float64(x), ((0, 0), *sides, (0, 0)), mode=mode)
    kernel = np.float64(kernel)
    kh, kw, depth, features = kernel.shape
    covered = [(n - 1) * d + 1 for n, d in zip((kh, kw), dilation, strict=True)]
    height, width = ((n - c) // s + 1 for n, c, s in zip(x.shape[1:3], covered, strides, strict=True))
    y = np.zeros((len(x), height, width, features))
    for p in range(height):
        for q in range(width):
            top, left = p * strides[0], q * strides[1]
            patch = x[:, top : top + covered[0] : dilation[0], left : left + covered[1] : dilation[1]]
            for k in range(features):
                group = k // (features // groups)
                channels = patch[..., group * depth : (group + 1) * depth]
                y[:, p, q, k] = (channels * kernel[..., k]).sum((1, 2, 3))
    return y


def make(shape, kernel_shape, seed=0):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.normal(size=shape), jnp.float32),
        jnp.asarray(rng.normal(size=kernel_shape), jnp.float32),
    )


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize(
    ("kernel", "groups", "strides", "sides", "dilation"),
    [
        ((3, 3, 4, 6), 1, (1, 1), ((0, 0), (0, 0)), (1, 1)),
        ((2, 3, 2, 6), 2, (2, 1), ((1, 0), (2, 3)), (1, 1)),
        ((3, 2, 1, 8), 4, (1, 3), ((2, 2), (0, 1)), (2, 3)),
        ((1, 1, 4, 2), 1, (3, 2), ((0, 0), (0, 0)), (1, 1)),
    ],
)
def test_forward_and_gradient(kernel, groups, strides, sides, dilation, mode):
    x, kernel = make((2, 7, 8, 4), kernel)
    bias = jnp.arange(kernel.shape[3], dtype=jnp.float32)

    def ours(x, kernel, bias):
        return conv2d(
            x,
            kernel,
            bias,
            strides=strides,
            padding=sides,
            padding_mode=mode,
            groups=groups,
            dilation=dilation,
        )

    def theirs(x, kernel, bias):
        x = jnp.pad(x, ((0, 0), *sides, (0, 0)), mode="constant" if mode == "zero" else mode)
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x,
            kernel,
            strides,
            "VALID",
            rhs_dilation=dilation,
            dimension_numbers=numbers,
            feature_group_count=groups,
        )
        return y + bias[None, None, None]

    y, back = jax.vjp(ours, x, kernel, bias)
    expected = reference(x, kernel, strides, sides, groups, dilation, "constant" if mode == "zero" else mode)
    np.testing.assert_allclose(y, expected + np.asarray(bias), rtol=1e-4, atol=1e-4)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    for got, wanted in zip(back(cotangent), jax.vjp(theirs, x, kernel, bias)[1](cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_same_gives_the_size_over_the_stride(height, width, window, stride):
    x = jax.ShapeDtypeStruct((1, height, width, 1), jnp.float32)
    kernel = jax.ShapeDtypeStruct((window, window, 1, 1), jnp.float32)
    y = jax.eval_shape(lambda x, k: conv2d(x, k, strides=stride, padding="same"), x, kernel)
    assert y.shape == (1, -(-height // stride), -(-width // stride), 1)


def test_bfloat16_is_summed_in_float32_and_keeps_its_gradient():
    # 4608 ones: a bfloat16 sum would stop growing at 256.
    x, kernel = jnp.ones((1, 3, 3, 512), jnp.bfloat16), jnp.ones((3, 3, 512, 1), jnp.bfloat16)
    y, back = jax.vjp(conv2d, x, kernel)
    assert y.dtype == jnp.bfloat16
    assert y.item() == 4608
    gradients = back(jnp.ones_like(y))
    assert [g.dtype for g in gradients] == [jnp.bfloat16] * 2
    assert all((g == 1).all() for g in gradients)


def test_jit_vmap_and_second_derivatives():
    x, kernel = make((3, 1, 5, 5, 2), (3, 3, 2, 1))
    batched = jax.jit(jax.vmap(conv2d, (0, None)))(x, kernel)
    np.testing.assert_allclose(batched[:, 0], conv2d(x[:, 0], kernel), rtol=1e-5, atol=1e-5)

    def slope(k):
        return jax.grad(lambda k: (conv2d(x[0], k) ** 3).sum())(k).sum()

    assert jnp.isfinite(jax.grad(slope)(kernel)).all()


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "words"),
    [
        ((5, 5, 2), (3, 3, 2, 1), {}, r"\[B, H, W, C\]"),
        ((1, 5, 5, 2), (3, 3, 2), {}, r"\[kh, kw, C / groups, K\]"),
        ((1, 5, 5, 2), (3, 3, 3, 1), {}, "third size must be 2"),
        ((1, 5, 5, 3), (3, 3, 1, 2), {"groups": 2}, "groups 2"),
        ((1, 5, 5, 4), (3, 3, 2, 3), {"groups": 2}, "groups 2"),
        ((1, 5, 5, 4), (3, 3, 4, 3), {"groups": 0}, "groups 0"),
        ((1, 5, 5, 1), (6, 3, 1, 1), {}, "window 6"),
        ((1, 5, 5, 1), (3, 3, 1, 1), {"dilation": 3}, "covers 7"),
        ((1, 5, 5, 1), (3, 3, 1, 1), {"strides": 0}, "strides 0"),
        ((1, 5, 5, 1), (3, 3, 1, 1), {"padding_mode": "zeros"}, "did you mean 'zero'"),
        ((1, 5, 5, 1), (3, 3, 1, 1), {"padding": 5, "padding_mode": "reflect"}, "reflect"),
        ((1, 5, 5, 1), (3, 3, 1, 1), {"bias": jnp.zeros(2)}, "bias"),
    ],
)
def test_mistakes_are_named(shape, kernel, options, words):
    with pytest.raises(UserError, match=words):
        conv2d(jnp.zeros(shape), jnp.zeros(kernel), **options)


@pytest.mark.parametrize(("x", "kernel"), [(jnp.bfloat16, jnp.float32), (jnp.int32, jnp.int32)])
def test_dtypes_must_be_one_float(x, kernel):
    with pytest.raises(UserError, match="float dtype"):
        conv2d(jnp.zeros((1, 3, 3, 1), x), jnp.zeros((3, 3, 1, 1), kernel))


ON_MESHES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from cnnjax.ops import conv2d

def gradients(kernel, x):
    def loss(kernel, x):
        return jnp.sin(conv2d(x, kernel, groups=groups, padding=1)).sum()

    return jax.grad(loss, (0, 1))(kernel, x)

draw = np.random.default_rng(0)
for data, model, groups, channels in ((2, 4, 2, 32), (2, 2, 3, 48), (2, 2, 4, 8), (8, 1, 8, 8), (1, 3, 2, 6)):
    x = draw.normal(size=(8, 5, 5, channels)).astype(np.float32)
    kernel = draw.normal(size=(3, 3, channels // groups, channels)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[: data * model]).reshape(data, model), ("data", "model"))
    places = [NamedSharding(mesh, spec) for spec in (P(None, None, None, "model"), P("data"))]
    with jax.set_mesh(mesh):
        step = jax.jit(gradients, out_shardings=tuple(places))
        compiled = step.lower(*jax.device_put((kernel, x), tuple(places))).compile()
        found = compiled(*jax.device_put((kernel, x), tuple(places)))
    if model == 1:
        assert "all-gather" not in compiled.as_text()
    for ours, right in zip(found, jax.jit(gradients)(kernel, x)):
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)
print(jax.device_count())
"""


def test_groups_have_the_gradients_of_one_device_on_every_mesh():
    done = subprocess.run([sys.executable, "-c", ON_MESHES], env=simulated(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8"
