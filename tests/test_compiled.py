"""What XLA compiles for CPUs computes what the same functions compute op by op: jaxlib 0.10.2 had a fault."""

import json
import os
import subprocess
import sys

import jaxlib
import pytest

from tests import ROOT
from tests.conftest import USERS

FAULT = """
import jax, jax.numpy as jnp
rows = jnp.arange(32_769.0)[:, None] * jnp.asarray([[1.0, 0.0, 0.0]])
norms = lambda x: jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)
print(abs(jax.jit(norms)(rows)[-1] / norms(rows)[-1] - 1))
"""


def alone(*arguments: str) -> str:
    """What a Python process with a user's own flags of XLA prints."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": USERS}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("part", "tolerance"), [("ops", 2e-3), ("augment", 2e-3), ("steps", 0.1)])
def test_compiled_functions_agree_with_eager_ones_on_more_than_32768_rows(part, tolerance):
    """One wrong row of these random arrays would be off by about 1; rounding moves some steps by 0.08."""
    found = json.loads(alone("-m", "tests.eager_and_compiled", part))
    assert len(found) > 30
    assert {name: apart for name, apart in found.items() if not apart < tolerance} == {}


@pytest.mark.slow
def test_the_fault_of_jaxlib_is_seen_where_it_is():
    if jaxlib.__version__ != "0.10.2":
        pytest.skip("the fault is one of jaxlib 0.10.2")
    assert float(alone("-c", FAULT)) > 1e-3
