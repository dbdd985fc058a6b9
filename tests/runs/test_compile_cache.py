"""Compiled programs lie in a private folder: others' folders are refused, half-written files removed."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cnnjax.data.files import make_cache_folder
from cnnjax.runs import compile_cache
from cnnjax.runs.folder import Run
from tests.conftest import USERS


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The place of the cache; JAX's own choice is put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compile_cache.SWITCH, raising=False)
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cnnjax"
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_private_and_keyed(cache):
    folder = Path(compile_cache.enable())
    assert folder == cache / compile_cache.key()
    for place in (folder, cache):
        assert place.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_what_else_is_cached_first_does_not_keep_programs_out(cache, umask):
    before = os.umask(umask)
    try:
        make_cache_folder("models")
    finally:
        os.umask(before)
    assert Path(compile_cache.enable()).is_dir()
    cache.chmod(0o755)  # as an older version made it
    assert Path(compile_cache.enable()).is_dir()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o755, 0o702])
def test_a_folder_that_is_open_to_others_is_refused(cache, capsys, mode):
    folder = Path(compile_cache.enable())
    jax.config.update("jax_compilation_cache_dir", None)
    for place in (cache, folder) if mode & 0o022 else (folder,):  # above it lie data sets, which all may read
        place.chmod(mode)
        assert compile_cache.enable() == f"off: {place} is open to other users; chmod 700 it, or remove it"
        assert capsys.readouterr().err.count("\n") == 1
        place.chmod(0o700)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_link_and_another_users_folder_are_refused(cache, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert "is not a folder" in compile_cache.enable()
    cache.unlink()
    cache.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    assert "belongs to another user" in compile_cache.enable()


def test_what_was_left_half_written_is_removed(cache):
    folder = Path(compile_cache.enable())
    (folder / "jit_step-0123-cache").write_bytes(b"half of a compressed program")
    (folder / "jit_step-4567-cache").write_bytes(b"a whole one")
    (folder / "jit_step-4567-atime").write_bytes(bytes(8))
    os.mkfifo(folder / "jit_step-89ab-cache")
    (folder / "jit_step-89ab-atime").write_bytes(bytes(8))
    jax.config.update("jax_compilation_cache_dir", None)
    compile_cache.enable()
    assert [file.name for file in folder.glob("*-cache")] == ["jit_step-4567-cache"]


COMPILES = """
import sys, jax
from cnnjax.runs import compile_cache
compile_cache.MAX_BYTES = int(sys.argv[1])
folder = compile_cache.enable()
for size in (3, 4, 5):
    jax.jit(lambda x: x * 2 + 1)(jax.numpy.zeros(size))
print(folder)
"""


def test_jax_keeps_programs_in_the_folder_up_to_a_size(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"XDG_CACHE_HOME": str(tmp_path), compile_cache.SWITCH: "on", "XLA_FLAGS": USERS}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def kept(most: int) -> list[int]:
        command = [sys.executable, "-W", "error", "-c", COMPILES, str(most)]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        return [file.stat().st_size for file in Path(done.stdout.strip()).glob("*-cache")]

    every = kept(2**31)
    most = sum(every) - 1
    assert len(every) >= 3
    for file in tmp_path.rglob("*-cache"):
        file.unlink()
    assert 0 < sum(kept(most)) <= most


def test_the_switch_turns_it_off(cache, monkeypatch):
    monkeypatch.setenv(compile_cache.SWITCH, "off")
    assert compile_cache.enable() == "off: CNNJAX_COMPILE_CACHE=off"
    assert not cache.exists()


@pytest.mark.slow
def test_a_second_start_takes_the_program_from_the_folder_with_the_same_result(tiny_data, tmp_path):
    model = "resnet20_cifar(stage_sizes=(1, 1), widths=(8, 16))"
    flags = [f"--config.model={model}", f"--config.data.name={tiny_data}", "--config.data.num_validation=10"]
    runs = []
    for name, switch in (("first", "on"), ("second", "on"), ("without", "off")):
        command = [sys.executable, "-m", "cnnjax", "train", f"--workdir={tmp_path / name}", *flags]
        env = {
            **os.environ,
            "XDG_CACHE_HOME": str(tmp_path),
            compile_cache.SWITCH: switch,
            "XLA_FLAGS": USERS,
        }
        del env["JAX_COMPILATION_CACHE_DIR"]  # the tests' own, which would stand in for the folder
        # By default what compiles within a second is not kept, which a fast machine does here.
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(Run.open(tmp_path / name))
    first, second, without = (run.read_json("test.json") for run in runs)
    assert first == second == without
    seconds = [run.read_json("record.json")["compile_seconds"] for run in runs]
    assert seconds[1] < 0.7 * seconds[0], seconds
    assert [run.read_json("record.json")["compile_cache"] for run in runs] == [True, True, False]
