"""What several tests share: a tiny data set with something to learn, and a small config on it."""

import gc
import os
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from packaging.requirements import Requirement

from cnnjax import config as config_lib
from cnnjax.runs import train
from experiments.reliability.place import tiny_arrays

os.environ.setdefault("CNNJAX_COMPILE_CACHE", "off")  # the tests of this cache turn it on
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # JAX's own, until the tests end: many train the same small net. Workers and processes inherit it.
    _cache = tempfile.TemporaryDirectory(prefix="cnnjax-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Nearly all of the time of these tests is XLA's, compiling what runs once, so it optimizes less here;
# test_resume and test_compile_cache compile as users do. The second flag is of jaxlib 0.10; others refuse it.
QUICK = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
USERS = os.environ.get("XLA_FLAGS", "").removeprefix(QUICK).strip()  # a worker of pytest-xdist inherits both
os.environ["XLA_FLAGS"] = f"{QUICK} {USERS}"


# CNNJAX_TESTS_STRICT=0 lets dtypes and ranks be promoted silently, and warnings of cnnjax be warnings.
STRICT = os.environ.get("CNNJAX_TESTS_STRICT") != "0"
if STRICT:  # in the environment, so that the processes that tests start are strict too
    os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
    os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


def pytest_configure(config: pytest.Config) -> None:
    # As `data.decode` has it, whose filter pytest forgets.
    config.addinivalue_line("filterwarnings", "ignore::PIL.Image.DecompressionBombWarning")
    if STRICT:
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_numpy_rank_promotion", "raise")
        config.addinivalue_line("filterwarnings", "error:::cnnjax")


def pytest_collection_finish() -> None:
    """What was imported stays; to walk over it again and again took an eighth of the time of these tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 20)


def needs_extra(name: str) -> None:
    """Skips a test unless all that an extra of the package asks for is here, in versions that work."""
    for asked in map(Requirement, requires("cnnjax") or ()):
        if asked.marker and f'extra == "{name}"' in str(asked.marker):
            try:
                here = version(asked.name)
            except PackageNotFoundError:
                pytest.skip(f"{asked.name} is not here: the extra `{name}`")
            if not asked.specifier.contains(here, prereleases=True):
                pytest.skip(f"the extra `{name}` asks for {asked.name}{asked.specifier}, here is {here}")


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process that sees so many CPU devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name under which the tiny data set is loaded."""
    file = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(file, **tiny_arrays())
    return f"npz:{file}"


@pytest.fixture(scope="session")
def tiny_run(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the tiny data, trained to its end."""
    config = config_lib.default()
    config.update(
        {"model": "simple_cnn(widths=(2, 3), kernel_size=3)", "batch_size": 16, "total_epochs": 4.0}
    )
    config.update({"eval_batch_size": 16, "data": {"name": tiny_data, "num_validation": 10}})
    config.optimizer.learning_rate = 0.03
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train.train(config, workdir)
    return workdir


@pytest.fixture
def tiny_config(tiny_data: str) -> ConfigDict:
    """Two epochs of a very small SimpleCNN: 80 training images in batches of 16, 10 for validation."""
    config = config_lib.default()
    config.update(
        {
            "model": "simple_cnn(widths=(2, 3), kernel_size=3)",
            "batch_size": 16,
            "eval_batch_size": 16,
            "total_epochs": 2.0,
            "log_every_steps": 3,
            "data": {"name": tiny_data, "num_validation": 10},
            "augment": {"train": "random_crop(8, padding=1)|mirror|normalize"},
            "optimizer": {"warmup_epochs": 0.5, "learning_rate": 0.01},
        }
    )
    return config
