"""Programs of steps for networks in use against plain numpy, step by step."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.ops import cpu

pytestmark = pytest.mark.skipif(not cpu.takes(), reason=f"CPU kernels {cpu.status()}")


def run(program, number, images, features):
    found = np.asarray(jax.jit(lambda n, x: cpu.run_program(n, x, features))(number, images))
    del program  # the library forgets its number with it
    return found


@pytest.mark.parametrize("count", [1, 2, 17, 32])
def test_slices_of_a_stage_do_not_write_on_what_the_next_ones_read(count):
    """The first step takes one image at a time, the next two some, the last all at once.

    What the first and the third write is in memory that all slices share. The third's is larger and written
    after the first's is read, by the same slice, so that a first slice could write on what a second reads.
    """
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, 256, 256, 8), np.float32)
    shapes = (8, 16), (16, 4096), (4096, 100)
    first, second, third = (rng.standard_normal(shape, np.float32) / shape[0] ** 0.5 for shape in shapes)
    program = cpu.Program(jnp.float32)
    x, most = program.value((256, 256, 8)), program.value((1, 1, 8))
    few, many = program.value((1, 1, 16)), program.value((1, 1, 4096))
    y = program.value((1, 1, 100), wide=True)
    program.step("max_pool", x, most, numbers=(256, 256, 1, 1, 0, 0))
    program.step("dense", most, few, weights=first)
    program.step("dense", few, many, weights=second)
    program.step("dense", many, y, weights=third)
    found = run(program, program.finish(), images, 100)
    wanted = images.max((1, 2)) @ first @ second @ third
    np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())


ACTS = {
    "": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x: np.clip(x, -0.5, 0.5),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "tanh": np.tanh,
    "gelu": lambda x: np.asarray(jax.nn.gelu(x, approximate=False)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("sizes", "acts"), [((7, 10), [""]), ((65, 70), ACTS), ((400, 1000), ["swish"])])
def test_a_vector_goes_through_dense_layers_with_any_activation(dtype, sizes, acts):
    """One image, whose layers are the kernels' own, and several, whose layers are oneDNN's."""
    rng = np.random.default_rng(0)
    inputs, outputs = sizes
    first, second = (rng.standard_normal(s, np.float32) / s[0] ** 0.5 for s in (sizes, (outputs, 5)))
    bias = rng.standard_normal(outputs, np.float32)
    images = rng.standard_normal((3, 1, 1, inputs), np.float32)
    for act in acts:
        program = cpu.Program(dtype)
        x, y = program.value((1, 1, inputs)), program.value((1, 1, outputs))
        z = program.value((1, 1, 5), wide=True)
        program.step("dense", x, y, weights=first, bias=bias, act=(act, -0.5, 0.5))
        program.step("dense", y, z, weights=second)
        try:
            number = program.finish()
        except cpu.Unsupported as error:
            pytest.skip(str(error))
        wanted = ACTS[act](images[:, 0, 0] @ first + bias) @ second
        for count in (1, 3):
            found = run(program, number, images[:count].astype(dtype), 5)
            tolerance = (1e-5 if dtype == jnp.float32 else 3e-2) * abs(wanted).max()
            np.testing.assert_allclose(found, wanted[:count], atol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("channels", [3, 16, 40, 600])
@pytest.mark.parametrize("count", [1, 3])
def test_pooling_of_windows_and_of_whole_images(dtype, channels, count):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, 7, 6, channels), np.float32).astype(dtype)
    program = cpu.Program(dtype)
    x, most = program.value((7, 6, channels)), program.value((4, 3, channels))
    sums, y = program.value((1, 1, channels)), program.value((1, 1, channels), wide=True)
    program.step("max_pool", x, most, numbers=(3, 3, 2, 2, 1, 1))
    weights = np.full(1, 1 / 12, np.float32)
    program.step("sum_pool", most, sums, numbers=(4, 3, 1, 1, 0, 0), weights=weights)
    program.step("pointwise", sums, y, numbers=(0,))
    images[0, 0, 0, 0] = np.nan
    found = run(program, program.finish(), images, channels)
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    wide = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((-1, -2))
    wanted = wide[:, :4, :3].mean((1, 2))
    np.testing.assert_allclose(found, wanted, atol=1e-5 if dtype == jnp.float32 else 2e-2)
    assert np.isnan(found[0, 0]) and np.isfinite(found[:, 1:]).all()


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("side", [7, 14, 27])
def test_a_convolution_of_5x5_with_an_addition_and_bounds(count, side):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, side, side, 16), np.float32)
    weights = rng.standard_normal((5, 5, 16, 32), np.float32) / 20
    first, bias = rng.standard_normal((1, 1, 16, 32), np.float32) / 4, rng.standard_normal(32, np.float32)
    program = cpu.Program(jnp.float32)
    x, y = program.value((side, side, 16)), program.value((side, side, 32))
    z = program.value((1, 1, side * side * 32), wide=True)
    program.step("conv", x, y, numbers=(1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1), weights=first)
    numbers, act = (5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 1), ("clip", -0.7, 0.9)
    program.step("conv", x, y, other=y, numbers=numbers, weights=weights, bias=bias, act=act)
    program.step("pointwise", y, z, numbers=(0,))
    found = run(program, program.finish(), images, side * side * 32).reshape(count, side, side, 32)

    def convolve(kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return np.asarray(
            jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dims)
        )

    wanted = np.clip(convolve(weights) + convolve(first) + bias, -0.7, 0.9)
    assert {-0.7, 0.9} <= {round(float(v), 4) for v in (wanted.min(), wanted.max())}
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_step_that_reads_what_is_not_written_is_an_error():
    program = cpu.Program(jnp.float32)
    x, y, z = program.value((4, 4, 8)), program.value((4, 4, 8)), program.value((1, 1, 128), wide=True)
    assert x == 0
    program.step("pointwise", y, z, numbers=(0,))
    with pytest.raises(ValueError, match="step 0 reads value 1 before it is written"):
        program.finish()


def test_a_program_that_is_gone_is_an_error():
    program = cpu.Program(jnp.float32)
    y = program.value((1, 1, 8)) or program.value((1, 1, 8), wide=True)
    program.step("pointwise", 0, y, numbers=(0,))
    number = program.finish()
    del program
    with pytest.raises(jax.errors.JaxRuntimeError, match="no network number"):
        run(None, number, np.zeros((1, 1, 1, 8), np.float32), 8)


def test_a_program_that_goes_while_it_runs_keeps_its_numbers_until_then():
    """Twenty convolutions; their weights and biases are dropped while the first ones are computed."""
    rng, program, began = np.random.default_rng(0), cpu.Program(jnp.float32), threading.Event()
    x, bias = program.value((56, 56, 64)), lambda: rng.standard_normal(64, np.float32)
    for _ in range(20):
        y, weights = program.value((56, 56, 64)), rng.standard_normal((3, 3, 64, 64), np.float32) / 20
        program.step("conv", x, y, numbers=(3, 3, *[1] * 9), weights=weights, bias=bias())
        x = y
    means, y = program.value((1, 1, 64)), program.value((1, 1, 64), wide=True)
    scale = np.full(1, 1 / 56**2, np.float32)
    program.step("sum_pool", x, means, numbers=(56, 56, 1, 1, 0, 0), weights=scale)
    program.step("pointwise", means, y, numbers=(0,), weights=bias(), bias=bias())
    del weights

    def zero():
        began.set()
        return np.float32(0)

    @jax.jit
    def logits(number, images):
        return cpu.run_program(number, images + jax.pure_callback(zero, jax.ShapeDtypeStruct((), "f")), 64)

    images, number = jnp.asarray(rng.standard_normal((24, 56, 56, 64), np.float32)), program.finish()
    wanted = np.asarray(logits(number, images))
    began.clear()
    with ThreadPoolExecutor(1) as other:
        found = other.submit(lambda: np.asarray(logits(number, images)))
        began.wait()
        spent = time.process_time()
        while time.process_time() < spent + 0.1 and not found.done():  # until the convolutions are under way
            time.sleep(0.001)
        del program
        junk = [np.full(64, np.nan, np.float32) for _ in range(1000)]  # where the biases were
    np.testing.assert_array_equal(found.result(), wanted)
    assert junk


@pytest.mark.skipif(bool(cpu.lacks_int8()), reason=cpu.lacks_int8())
@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_a_convolution_of_codes_is_that_of_integers(groups, signed):
    """Images to codes, a convolution with bias, other codes added and ReLU, pooling: in numpy."""
    rng = np.random.default_rng(0)
    images = (
        rng.standard_normal((3, 9, 9, 16), np.float32) if signed else rng.random((3, 9, 9, 16), np.float32)
    )
    weights = rng.integers(-127, 128, (3, 3, 16 // groups, 16)).astype(np.float32)
    scales, bias = (rng.uniform(1e-5, 3e-5, 16).astype("f"), rng.standard_normal(16).astype("f"))
    of_x, of_other, of_y = cpu.Code(0.02, signed), cpu.Code(0.05, True), cpu.Code(0.03, False)
    program = cpu.Program(jnp.float32)
    x, codes = program.value((9, 9, 16)), program.value((9, 9, 16), coded=True)
    other, y = program.value((9, 9, 16), coded=True), program.value((9, 9, 16), coded=True)
    most, means, logits = (
        program.value((4, 4, 16), coded=True),
        program.value((1, 1, 16)),
        program.value((1, 1, 16), wide=True),
    )
    program.step("pointwise", x, codes, numbers=(0,), codes=(None, None, of_x))
    program.step("pointwise", x, other, numbers=(0,), codes=(None, None, of_other))
    ends = {"act": ("relu", 0.0, 0.0), "bias": bias, "scales": scales, "codes": (of_x, of_other, of_y)}
    numbers = (3, 3, 1, 1, 1, 1, 1, 1, 1, 1, groups)
    program.step("conv", codes, y, other=other, numbers=numbers, weights=weights, **ends)
    program.step("max_pool", y, most, numbers=(2, 2, 2, 2, 0, 0), codes=(of_y, None, of_y))
    mean = np.full(1, 1 / 16, np.float32)
    program.step("sum_pool", most, means, numbers=(4, 4, 1, 1, 0, 0), weights=mean, codes=(of_y, None, None))
    program.step("pointwise", means, logits, numbers=(0,))
    found = run(program, program.finish(), images, 16)

    def coded(values, code):
        low, high = (-128, 127) if code.signed else (0, 255)
        return np.clip(np.rint(values / np.float32(code.scale)), low, high)

    whole, per = np.pad(coded(images, of_x), ((0, 0), (1, 1), (1, 1), (0, 0))), 16 // groups
    sums = np.zeros((3, 9, 9, 16))
    for i, j, k in np.ndindex(3, 3, 16):
        inputs = whole[:, i : i + 9, j : j + 9, k // per * per : (k // per + 1) * per]
        sums[..., k] += inputs @ weights[i, j, :, k]
    wanted = coded(np.maximum(sums * scales + bias + coded(images, of_other) * 0.05, 0), of_y)
    wanted = wanted[:, :8, :8].reshape(3, 4, 2, 4, 2, 16).max((2, 4))
    assert (wanted > 0).mean() > 0.2 and len(np.unique(wanted)) > 50
    np.testing.assert_allclose(found, wanted.mean((1, 2)) * 0.03, atol=0.03 / 16 * 1.01)  # one code of 16
    assert (abs(found - wanted.mean((1, 2)) * 0.03) < 1e-5).mean() > 0.9


def test_codes_where_numbers_belong_are_an_error():
    code = cpu.Code(0.1, True)
    program = cpu.Program(jnp.float32)
    x, y, z = (
        program.value((4, 4, 8)),
        program.value((4, 4, 8), coded=True),
        program.value((4, 4, 8), coded=True),
    )
    weights = np.zeros((1, 1, 8, 8), np.float32)
    numbers = (1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1)
    for step, words in (
        (lambda: program.step("conv", x, y, numbers=numbers, weights=weights), "codes and 0 scales"),
        (lambda: program.step("conv", y, x, numbers=numbers, weights=weights), "codes and 0 scales"),
        (lambda: program.step("max_pool", y, x, numbers=(1, 1, 1, 1, 0, 0)), "codes in or out alone"),
        (
            lambda: program.step(
                "copy", y, z, numbers=(0, 0, 0, 1, 1, 4, 4, 8, 0, 0, 0, 0), codes=(code, None, None)
            ),
            "become",
        ),
        (
            lambda: program.step("pointwise", x, y, numbers=(0,), codes=(None, None, cpu.Code(0.0, True))),
            "of scale 0",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            step()
