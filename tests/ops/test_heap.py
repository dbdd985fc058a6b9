"""The heap of a process: freed blocks wait for the next step, and other C libraries are left alone."""

import ctypes
import json
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from cnnjax.ops.cpu import heap

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets up glibc's malloc")

# Steps of a thread that, like XLA's, was started after the import: each touches and frees 64 MiB. The first
# eight or so leave cuttings, which glibc keeps apart (see heap.py).
STEPS = """
import ctypes, importlib, json, resource, sys, threading
if sys.argv[1] != "-":
    importlib.import_module(sys.argv[1])
libc = ctypes.CDLL(None)
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
faults, size = [], 1 << 26

def steps():
    for _ in range(24):
        before, block = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, ctypes.c_void_p()
        assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size)) == 0
        libc.memset(block, 1, size)
        libc.free(block)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=steps)
thread.start()
thread.join()
print(json.dumps(faults))
"""


PAGES = 2**26 // os.sysconf("SC_PAGESIZE")


def faults_of_steps(module: str, steps: str = STEPS, **env: str) -> list[int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", steps, module]
    done = subprocess.run(command, env=kept | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_glibc
def test_a_step_reuses_the_memory_of_the_step_before_it():
    ours, default = faults_of_steps("cnnjax.ops.cpu"), faults_of_steps("-")
    assert min(default) > 0.9 * PAGES
    assert ours[0] > 0.9 * PAGES and max(ours[16:]) < 0.01 * PAGES


# A compiled program on a CPU, as far as `settled` reads it: its call and the size of its workspace.
COMPILED = """
from types import SimpleNamespace
from cnnjax.ops.cpu import heap

class Compiled(SimpleNamespace):
    input_shardings, argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = (), 0, 0, 0
    memory_analysis = lambda self: self
    __call__ = lambda self: self.step()
"""
# The same with `settled` after each block; it also prints the bytes that the process holds then.
SETTLED = f"""{COMPILED}
done, held = heap.settled(Compiled(step=lambda: None, temp_size_in_bytes=size)), []

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
"""
SETTLED = STEPS.replace("def steps():", SETTLED + "\ndef steps():").replace("(faults)", "([faults, held])")
AFTER = "libc.free(block)\n"
SETTLED = SETTLED.replace(AFTER, f"{AFTER}        done()\n        held.append(resident())\n")


@needs_glibc
def test_the_workspaces_of_the_first_steps_do_not_add_up():
    faults, held = faults_of_steps("cnnjax.ops.cpu", SETTLED)
    assert max(faults[heap.SETTLING_STEPS + 2 :]) < 0.01 * PAGES  # reused, as without it
    assert max(held) - min(held) < 1.5 * 2**26  # at most the one block that is reused


# Steps whose workspace is freed while the next one waits, else when that has its own. The clock ticks as it
# is read: nothing depends on how busy the machine is.
LATE = f"""{COMPILED}
import ctypes, itertools, json, resource, sys
libc, size, held, late, ticks = ctypes.CDLL(None), 1 << 26, [], [], itertools.count()

def free_late(*_):
    while late:
        libc.free(late.pop())

def step():
    block = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size)) == 0
    libc.memset(block, 1, ctypes.c_size_t(size))
    held.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize())
    free_late()
    late.append(block)

heap.LARGE, heap.time = 0, SimpleNamespace(sleep=free_late, perf_counter=lambda: next(ticks) / 1000)
run = heap.settled(Compiled(step=step, temp_size_in_bytes=size)) if sys.argv[1] == "settled" else step
for _ in range(24):
    run()
print(json.dumps(held))
"""


def test_only_a_large_step_on_a_cpu_is_waited_for(monkeypatch):
    """The others are dispatched ahead; to wait for each step would hold an accelerator up."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")  # as with another C library
    x = jnp.full((256, 256), 1 / 256)
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 2000, lambda _, y: y @ y, x)).lower(x).compile()  # a second
    assert not heap.settled(step)(x).is_ready()
    monkeypatch.setattr(heap, "LARGE", x.nbytes)  # less than argument and result
    assert heap.settled(step)(x).is_ready()
    elsewhere = SimpleNamespace(device_set=[SimpleNamespace(platform="gpu")])
    there = SimpleNamespace(input_shardings=((elsewhere,), {}), memory_analysis=step.memory_analysis)
    assert heap.settled(there) is there


@needs_glibc
def test_a_step_waits_for_the_workspace_of_the_step_before_it():
    settled, plain = faults_of_steps("settled", LATE), faults_of_steps("plain", LATE)
    assert max(plain) - plain[0] > 0.9 * 2**26
    assert max(settled[: heap.SETTLING_STEPS]) - settled[0] < 0.2 * 2**26


@needs_glibc
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_environment_sets_up_is_left_as_it_is(name):
    value = {"MALLOC_ARENA_MAX": "8", "GLIBC_TUNABLES": "glibc.malloc.arena_max=8"}[name]
    assert min(faults_of_steps("cnnjax.ops.cpu", **{name: value})) > 0.9 * PAGES


class Musl:
    """A C library without glibc's functions; a call of any other one would be recorded."""

    def __getattr__(self, name):
        raise AttributeError(name)


def test_it_is_quiet_where_the_c_library_is_another_one(monkeypatch, capfd):
    monkeypatch.setattr(heap.os, "environ", {})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Musl())
    assert not heap.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.keep_freed_memory()
    assert capfd.readouterr() == ("", "")
