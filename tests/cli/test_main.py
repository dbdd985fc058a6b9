"""The command line: what works, and what each mistake is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjax import __main__ as program
from cnnjax.cli import main
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.folder import Run

REUSE = next(Path(program.__file__).parent.glob("ops/cpu/_reuse*.so"), None)
DEEP_STACK = next(Path(program.__file__).parent.glob("profiling/_deep_stack*.so"), None)
TINY = [
    "--config.model=simple_cnn(widths=(2, 3), kernel_size=3)",
    "--config.batch_size=16",
    "--config.eval_batch_size=16",
    "--config.data.num_validation=10",
    "--config.total_epochs=2",
    "--config.optimizer.warmup_epochs=0.5",
]


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("cli") / "run"
    assert main.run(["train", f"--workdir={workdir}", f"--config.data.name={tiny_data}", *TINY]) == 0
    return workdir


def test_train_prints_the_test_metrics_and_leaves_a_run_folder(tiny_data, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main.run(["train", f"--workdir={workdir}", f"--config.data.name={tiny_data}", *TINY]) == 0
    printed = capsys.readouterr().out
    for words in ("test, 37 images", "accuracy", "top-5 accuracy", "macro", "weighted", "F1"):
        assert words in printed
    assert (workdir / "report.html").is_file()
    assert list((workdir / "tensorboard").glob("events*"))


def test_evaluate_prints_the_same_as_train(trained, capsys):
    assert main.run(["evaluate", f"--workdir={trained}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == Run.open(trained).read_json("test.json")["accuracy"]
    assert main.run(["evaluate", f"--workdir={trained}", "--split=train", "--checkpoint=best"]) == 0
    assert "train, 80 images" in capsys.readouterr().out


def test_data_and_models_list_what_there_is(capsys):
    assert main.run(["data"]) == 0
    printed = capsys.readouterr().out
    for name in ("fashion_mnist", "fashion_mnist_mini", "mnist", "cifar10", "cifar100", "60000"):
        assert name in printed
    assert main.run(["models", "*_cnn"]) == 0
    printed = capsys.readouterr().out
    assert "simple_cnn" in printed
    assert "29,034" in printed
    assert "lenet5" not in printed


def test_the_help_names_every_command(capsys):
    assert main.run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  ")] == list(main.COMMANDS)


def test_print_config_shows_every_field(capsys):
    assert main.run(["train", "--print_config", "--config.seed=7"]) == 0
    printed = capsys.readouterr().out
    assert "seed: 7" in printed
    assert "label_smoothing" in printed


def test_a_config_file_and_overrides_on_top(tmp_path, capsys):
    file = tmp_path / "my.py"
    file.write_text(
        "from cnnjax.config import default\n"
        "def get_config():\n    c = default()\n    c.batch_size = 32\n    c.seed = 5\n    return c\n"
    )
    for form in ([f"--config={file}"], ["--config", str(file)]):
        assert main.run(["train", *form, "--config.seed=6", "--print_config"]) == 0
        printed = capsys.readouterr().out
        assert "batch_size: 32" in printed
        assert "seed: 6" in printed


MISTAKES = {
    "trian": "unknown command 'trian' (did you mean 'train'?)",
    "train --config.optmizer.learning_rate=1": "did you mean config.optimizer.learning_rate?",
    "train --config.learning_rate=1": "did you mean config.optimizer.learning_rate?",
    "train --config.batch_size=many": "config.batch_size='many' must be a whole number",
    "train --config.batch_size=0": "config.batch_size=0 must be greater than 0",
    "train --config.seed=1.5": "config.seed='1.5' must be a whole number",
    "train --config.data.download=maybe": "must be true or false",
    "train --config.total_epochs=nan": "config.total_epochs=nan must be greater than 0",
    "train --config.optimizer.learning_rate=-1": "config.optimizer.learning_rate=-1.0 must be greater",
    "train --config.dtype=float16": "config.dtype='float16' must be one of float32, bfloat16",
    "train --config.model=simple_cn": "unknown model 'simple_cn' (did you mean 'simple_cnn'?)",
    "train --config.model=simple_cnn(pooling='mx')": "unknown pooling 'mx' (did you mean 'max'?)",
    "train --config.model=simple_cnn(widths=3)": "config.model='simple_cnn(widths=3)' cannot be built",
    "train --config.data.name=fashion_mnst": "(did you mean 'fashion_mnist'?)",
    "train --config.data.num_validation=6000": "num_validation=6000",
    "train --config.augment.train=miror|normalize": "unknown augmentation 'miror'",
    "train --config.augment.train=random_crop(40)|normalize": "larger than the image of 28x28",
    "train --config.augment.eval=mirror": "config.augment.eval: augmentation 'mirror' leaves uint8",
    "train --config.optimizer.name=adamx": "unknown config.optimizer.name 'adamx'",
    "train --config.optimizer.name=sgd(momentum=2)": "momentum=2 must be in [0, 1)",
    "train --config.optimizer.name=sgd(learning_rate=2)": "is set by config.optimizer.learning_rate",
    "train --config.optimizer.schedule=cosin": "unknown config.optimizer.schedule 'cosin'",
    "train --config.optimizer.warmup_epochs=10": "must be less than config.total_epochs=10.0",
    "train --config.optimizer.decay=nowhere": "must match a parameter path",
    "train --config=nofile.py": "--config=nofile.py is not a file",
    "train --wrkdir=x": "unknown flag of cnnjax train '--wrkdir' (did you mean '--workdir'?)",
    "train more": "does not take 'more'",
    "evaluate": "--workdir is missing",
    "evaluate --workdir=nowhere": "nowhere is not a run folder",
    "models nothing": "unknown model 'nothing'",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_told_in_one_line_before_anything_compiles(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(command.split(" ")) == 2
    captured = capsys.readouterr()
    assert MISTAKES[command] in captured.err
    assert captured.err.startswith("cnnjax: ")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_here", "ModuleNotFoundError"),
        ("x = 1", "no 'get_config'()"),
        ("def get_config(): return 3", "not a ConfigDict"),
        (
            "from cnnjax.config import default\ndef get_config():\n    c = default()\n    c.seeed = 1",
            '"seeed" does not exist',
        ),
    ],
)
def test_a_broken_config_file_is_told_in_one_line(text, words, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(text)
    assert main.run(["train", f"--config={tmp_path / 'bad.py'}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_damaged_run_folder_is_told(trained, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert main.run(["evaluate", f"--workdir={tmp_path}"]) == 2
    assert "config.json cannot be read" in capsys.readouterr().err
    assert main.run(["evaluate", f"--workdir={trained}", "--weights=ema"]) == 2
    assert "keeps no moving average" in capsys.readouterr().err
    assert main.run(["evaluate", f"--workdir={trained}", "--split=tset"]) == 2
    assert "did you mean 'test'?" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_has_its_own_exit_code(tiny_data, tmp_path, capsys):
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.data.name={tiny_data}", *TINY]
    bad = ["--config.optimizer.learning_rate=1e30", "--config.optimizer.name=sgd"]
    assert main.run(["train", *flags, *bad, "--config.total_epochs=9"]) == 3
    assert "not finite at step" in capsys.readouterr().err
    saved = Checkpoints(tmp_path / "run" / "checkpoints")
    assert all(step <= 10 for step in saved.steps())
    saved.close()


def test_tensorflow_is_never_imported_and_help_needs_no_jax():
    code = (
        "import sys; from cnnjax.cli import main; main.run(['--help']); assert 'jax' not in sys.modules; "
        "import cnnjax.runs.train, cnnjax.explore.report; main.run(['data']); "
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_warning_is_one_line_without_a_place_in_the_code():
    command = [sys.executable, "-m", "cnnjax", "train", "--config.model=resnet18(widths=(0, 8, 8, 8))"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("cnnjax: the ImageNet stem leaves little")
    assert "layer stem/conv has 1 inputs and 0 outputs" in second


def test_tensorflow_is_not_installed():
    from importlib import metadata

    names = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    assert not names & {"tensorflow", "tensorflow-cpu"}


STARTED = """
import os, sys
from cnnjax import __main__
from cnnjax.cli import main as cli
maps = open("/proc/self/maps").read()
cli.main = lambda: print("_reuse" in maps, "_deep_stack" in maps, os.environ.get("LD_PRELOAD"), sys.argv)
__main__.main()
"""


@pytest.mark.skipif(not REUSE, reason="the library that uses memory again was not built")
@pytest.mark.parametrize(
    ("before", "word", "deep"), [(None, "a b", False), ("libm.so.6", "compile", bool(DEEP_STACK))]
)
def test_the_command_uses_memory_again_and_the_programs_that_it_starts_do_not(before, word, deep):
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    env |= {"LD_PRELOAD": before} if before else {}
    command = [sys.executable, "-c", STARTED, word, "--c=d"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == f"True {deep} {before} ['-c', '{word}', '--c=d']", done.stderr


STACK = """
import ctypes, threading
libc, attributes, size = ctypes.CDLL(None), ctypes.create_string_buffer(256), ctypes.c_size_t()
libc.pthread_self.restype = ctypes.c_ulong

def ask():
    libc.pthread_getattr_np(ctypes.c_ulong(libc.pthread_self()), attributes)
    libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))

threading.stack_size(1 << 20)
thread = threading.Thread(target=ask)
thread.start()
thread.join()
print(size.value)
"""


@pytest.mark.skipif(not DEEP_STACK, reason="the library of deep stacks was not built")
def test_threads_that_choose_a_small_stack_get_a_deep_one_where_there_is_room():
    def size(limit="", **env):
        command = ["sh", "-c", f'{limit} exec "$0" -c "$1"', sys.executable, STACK]
        return int(subprocess.run(command, env=os.environ | env, capture_output=True, text=True).stdout)

    deep = {"LD_PRELOAD": str(DEEP_STACK)}
    assert size() < 2**21 and size(**deep) == 2**31
    assert size("ulimit -v 8000000;", **deep) < 2**21


MEMORY = """
import ctypes
libc, size = ctypes.CDLL(None), 1 << 28
libc.free.argtypes = [ctypes.c_void_p]

def allocate(size):
    block = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size)) == 0
    return block.value

def mapped():
    return int(open("/proc/self/statm").read().split()[0]) * 4096 / size - before

before = 0
before = mapped()
first = allocate(size)
libc.free(first)
assert mapped() > 0.9  # kept
assert allocate(size - 5) == first and allocate(size) != first  # used again, by one at a time
blocks = [allocate(size) for _ in range(6)]
for block in blocks:
    libc.free(block)
assert 4.9 < mapped() < 5.9, mapped()  # two are in use, less than 1 GiB waits, the rest is given back
small = [allocate(size // 32) for _ in range(5)]
assert mapped() < 3, mapped()  # what other sizes push out is given back
assert libc.posix_memalign(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(3), ctypes.c_size_t(size)) == 22

libc.malloc.restype = ctypes.c_void_p
first = libc.malloc(ctypes.c_size_t(size // 2))
libc.free(first)
assert first % 64 == 0 and libc.malloc(ctypes.c_size_t(size // 2)) == first  # NumPy's are used again too
assert libc.malloc(ctypes.c_size_t(1000))

before += mapped()
first = allocate(5 * size)  # more than all that may wait beside it
libc.free(first)
assert mapped() > 4.9 and allocate(5 * size - 5) == first  # waits alone
second = allocate(5 * size)
libc.free(first)
assert mapped() < 5.1, mapped()  # the next one was taken before it was free: one of the two is given back
libc.free(second)
assert allocate(5 * size) == second
libc.free(second)
libc.free(allocate(7 * size))
assert 6.9 < mapped() < 7.1, mapped()  # the last one waits
print("done")
"""


FORKS = """
import ctypes, os, threading
libc = ctypes.CDLL(None)
libc.aligned_alloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def again(times):
    for i in range(times):  # none fits the next one, so that most of the time is spent on giving back
        libc.free(libc.aligned_alloc(ctypes.c_size_t(64), ctypes.c_size_t((1 + i % 5) << 23)))

threads = [threading.Thread(target=again, args=(30000,)) for _ in range(2)]
for thread in threads:
    thread.start()
while threads[0].is_alive():
    child = os.fork()
    if not child:
        again(3)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print("done")
"""


@pytest.mark.skipif(not REUSE, reason="the library that uses memory again was not built")
def test_a_process_forked_while_memory_is_used_again_can_use_it_too():
    env = {**os.environ, "LD_PRELOAD": str(REUSE)}
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.skipif(not REUSE, reason="the library that uses memory again was not built")
def test_freed_blocks_are_used_again_and_no_more_than_a_gibibyte_and_one_block_waits():
    env = {**os.environ, "LD_PRELOAD": str(REUSE)}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=env, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("command", [*main.COMMANDS, "bench data"])
def test_every_command_has_help(command, capsys):
    """What it does, and what each of its flags means."""
    if command == "bench":
        command = "bench train"
    assert main.run([*command.split(), "--help"]) == 0
    title, *flags = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert title.startswith(f"cnnjax {command}: ") and title.endswith(".")
    assert flags and all(len(flag.split()) > 1 and flag.startswith("  --") for flag in flags)
