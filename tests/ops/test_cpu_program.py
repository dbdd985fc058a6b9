"""Programs of steps for networks in use against plain numpy, step by step."""

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
