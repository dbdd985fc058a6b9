"""The command line: what works, and what each mistake is told."""

import contextlib
import importlib.metadata
import io
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.live import Live

from cnnjax.cli import completion, main
from cnnjax.cli.boards import LiveBoard
from cnnjax.cli.examples import EXAMPLES
from cnnjax.cli.flags import FLAGS
from cnnjax.cli.progress import Bar, Lines
from cnnjax.cli.tables import Console
from cnnjax.errors import UserError, unknown
from cnnjax.inference.model import load_run
from cnnjax.inference.weights import import_weights
from cnnjax.models import list_models
from cnnjax.runs import sweep, train
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.folder import Run
from cnnjax.runs.own_images import suited
from cnnjax.runs.seeds import train_together

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
    flags = [f"--config.data.name={tiny_data}", "--config.trackers=tensorboard"]
    assert main.run(["train", f"--workdir={workdir}", *flags, *TINY]) == 0
    printed = capsys.readouterr().out
    for words in ("test, 37 images", "accuracy", "macro", "weighted", "F1"):
        assert words in printed
    assert (workdir / "report.html").is_file()
    assert list((workdir / "tensorboard").glob("events*"))


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_top_5_of_at_most_five_classes_is_not_shown(classes, shown, tmp_path, capsys):
    rng = np.random.default_rng(0)
    label = np.arange(48) % classes
    image = rng.integers(0, 256, (48, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "few.npz", train_image=image, train_label=label, test_image=image, test_label=label)
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.data.name=npz:{tmp_path / 'few.npz'}"]
    assert main.run(["train", *flags, *TINY]) == 0
    assert main.run(["push", flags[0], f"--out={tmp_path / 'out'}"]) == 0
    assert main.run(["evaluate", flags[0], "--dtype=bfloat16"]) == 0
    printed = capsys.readouterr().out + (tmp_path / "out" / "README.md").read_text()
    tables = "│ top-5 accuracy │", "│ top-5 accuracy % │"
    for words in ("validation top5 accuracy", *tables, "test top-5 accuracy"):
        assert (words in printed) == shown, words
    assert "test accuracy" in printed


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
    assert max(map(len, printed.splitlines())) <= 80
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  ")] == main.COMMANDS
    files = {file.stem for file in Path(main.__file__).parent.glob("*.py") if "@command(" in file.read_text()}
    assert {main.SHARED.get(command, command) for command in main.COMMANDS} == files


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
    "train --noconfig.seed=5": "--noconfig.seed=5: --no is for a field that is true or false, without",
    "train --noconfig.seed": "give --config.seed=VALUE",
    "train --noconfig.data.download=true": "leave out the value",
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
    "train --config.model=simple_cnn(num_classes=20)": "config.model='simple_cnn(num_classes=20)': "
    "num_classes=20, the data has 10 classes; leave it out",
    "train --config.model=simple_cnn(num_classes=2)": "num_classes=2, the data has 10 classes; leave it out",
    "train --config.model=googlenet_cifar(dropout_rate=1.5)": "dropout_rate=1.5 must be in [0, 1)",
    "train --config.data.name=fashion_mnst": "(did you mean 'fashion_mnist'?)",
    "train --config.data.num_validation=6000": "config.data.num_validation=6000: 6000 of 6000 training "
    "images cannot be held out; allowed: 1 to 5990",
    "predict . --model=resnet5 --weights=torchvision": "(did you mean resnet50 or resnet152?); networks",
    "train --config.augment.train=miror|normalize": "unknown augmentation 'miror'",
    "train --config.augment.train=random_crop(40)|normalize": "larger than the image of 28x28",
    "train --config.augment.eval=mirror": "config.augment.eval: augmentation 'mirror' leaves uint8",
    "train --config.optimizer.name=adamx": "unknown config.optimizer.name 'adamx'",
    "train --config.optimizer.name=sgd(momentum=2)": "momentum=2 must be in [0, 1)",
    "train --config.optimizer.name=sgd(learning_rate=2)": "is set by config.optimizer.learning_rate",
    "train --config.optimizer.schedule=cosin": "unknown config.optimizer.schedule 'cosin'",
    "train --config.optimizer.decay=nowhere": "must match a parameter path",
    "train --config.optimizer.learning_rate_scales=nowhere:2": "'nowhere' matches no parameter path; paths: ",
    "train --config=nofile.py": "--config=nofile.py is neither a file nor an example; examples: cifar10_",
    "train --config=imagenet_resnet": "nor an example (did you mean imagenet_resnet50",
    "train --workdir --print_config": "--workdir has no value; write --workdir=VALUE",
    "train --config --print_config": "--config has no value; write --config=VALUE",
    "train --config.model --print_config": "--config.model has no value; write --config.model=VALUE",
    "bench train --model --json": "--model has no value",
    "train --wrkdir=x": "unknown flag of cnnjax train '--wrkdir' (did you mean '--workdir'?)",
    "train --epochs=3": "unknown flag of cnnjax train '--epochs' (did you mean --config.total_epochs=VALUE?)",
    "train --lr=1": "did you mean --config.optimizer.learning_rate=VALUE?",
    "sweep --batch_size=1": "did you mean --config.batch_size=VALUE?",
    "train --config.optimizer.lr=1": "did you mean config.optimizer.learning_rate?",
    "train --config.model=resnet5": "(did you mean 'resnet50'?); `cnnjax models 'resnet*'` lists ",
    "train --config.model=alexnet_cifar_local(widths=(1,2))": "(1,2))' cannot be built for images of (28, ",
    "models vgg11(depths=(1,1))": "model='vgg11(depths=(1,1))' cannot be built for images of (224, 224, 3): ",
    "bench train --model=nin_cifar(widths=3)": "model='nin_cifar(widths=3)' cannot be built for images",
    "bench predict --model=nin_cifar(widths=3)": "model='nin_cifar(widths=3)' cannot be built for images",
    "models qqq": "unknown model 'qqq'; `cnnjax models` lists all ",
    "train more": "does not take 'more'",
    "train --config.seed=4294967297": "config.seed=4294967297 must be at least 0 and below 2**32",
    "train --config.batch_size=99999999999": "config.batch_size=99999999999 must be greater than 0 and below",
    "train --config.data.num_workers=99999": "config.data.num_workers=99999 must be at least 0 and below",
    "train --config.total_epochs=1e9": "config.total_epochs: total_steps=43000000000 must be an integer",
    "train --config.log_every_steps=9999999999": "must be greater than 0 (32-bit)",
    "train --config.model=simple_cnn(widths=(99999999999,))": "an integer beyond 32 bits; allowed: below",
    "train --config.augment.train=random_crop(99999)|normalize": "size = 99999",
    "predict --batch_size=99999999999": "--batch_size=99999999999",
    "launch --processes=99999999999": "--processes=99999999999",
    "predict . --workdir=x --out=y": "--out=y needs --explain; add it, or leave --out out",
    "predict . --workdir=x --explain=false --layer=y": "--layer=y needs --explain",
    "models --batch_size=8": "--batch_size=8 needs --memory",
    "models resnet18 --dtype=bfloat16": "--dtype=bfloat16 needs --memory",
    "bench train --image_size=0": "--image_size=0",
    "models resnet* --image_size=64": "--image_size=64 needs the name of one network; resnet* is ",
    "train --process_count=2 --process_index=0": "--process_count=2 needs --distributed; add it",
    "train --coordinator=here:1": "needs --distributed; add it",
    "train --hang_seconds=60": "--hang_seconds=60 needs --distributed; add it",
    "push --workdir=x --out=y --private": "--private is for a repository of the Hub",
    "predict . --weights=torchvision:resnet18 --checkpoint=best": "--checkpoint=best needs a run folder",
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


@pytest.mark.parametrize("command", [*main.COMMANDS, "bench data", "bench predict"])
def test_no_flag_takes_an_empty_text(command, capsys, tmp_path, monkeypatch):
    """As of --workdir="$UNSET": the run would go elsewhere, or read other data."""
    monkeypatch.chdir(tmp_path)
    command = "bench train" if command == "bench" else command
    assert main.run([*command.split(), "--help"]) == 0 and capsys.readouterr()  # its file is imported
    flags = [flag for flag in FLAGS[command] if flag.endswith("=")]
    for flag in flags:
        assert main.run([*command.split(), flag]) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            (f"cnnjax: {flag} is empty", f"cnnjax: {flag} must be a", f"cnnjax: {flag} is neither")
        ), error
    assert not list(tmp_path.iterdir())


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


DOORS = {
    "train": [],
    "print": ["--print_config"],
    "help": ["--help"],
    "override": ["--config.data.size=3"],
    "own images": ["--data=fashion_mnist_mini"],
    "sweep": ["--set=batch_size=4,8", "--out=out"],
    "compile": [],
    "weights": ["import", "w.npz", "--model=resnet18", "--workdir=run"],
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("body", "missing"), [("ConfigDict({'seed': 1})", "total_epochs"), ("ConfigDict()", "seed")]
)
def test_a_config_that_lacks_fields_is_told_where_to_start(
    door, body, missing, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    return {body}\n"
    )
    command = door if door in main.COMMANDS else "train"
    assert main.run([command, "--config=my.py", *DOORS[door]]) == 2
    told = f"cnnjax: config.{missing} is missing; start the config from cnnjax.config.default()\n"
    assert capsys.readouterr().err == told
    assert [file.name for file in tmp_path.iterdir()] == ["my.py"]


@pytest.mark.parametrize("door", ["train", "sweep", "together", "suited", "import"])
def test_a_config_that_lacks_fields_is_told_in_python_too(door, tmp_path):
    config = ConfigDict({"model": "simple_cnn", "data": {"name": "mnist"}})
    doors = {
        "train": lambda: train.train(config, tmp_path / "run"),
        "sweep": lambda: sweep.sweep(config, {"batch_size": [4]}, tmp_path / "run"),
        "together": lambda: train_together([config], [tmp_path / "run"]),
        "suited": lambda: suited(config, "mnist"),
        "import": lambda: import_weights("w.npz", config, tmp_path / "run", model="resnet18"),
    }
    with pytest.raises(UserError, match=r"config\.seed is missing; start the config from cnnjax\.config"):
        doors[door]()
    assert not list(tmp_path.iterdir())


CONFIG = "from cnnjax.config import default\n{}\ndef get_config():\n    c = default()\n    {}\n    return c\n"


@pytest.mark.parametrize(
    ("head", "body", "words"),
    [
        ("import os", 'c.data.dir = os.environ["NO_SUCH_DIR"]', "x.py, x.py line 5: KeyError: 'NO_SUCH_DIR'"),
        ("import beside", "c.seed = beside.broken()", "x.py, beside.py line 4: ZeroDivisionError"),
        ("import sys", "sys.exit(3)", "x.py, x.py line 5: SystemExit: 3"),
        ("def f(:", "pass", "x.py, x.py line 2: SyntaxError"),
        ("import nowhere", "pass", "x.py, x.py line 2: ModuleNotFoundError"),
        ("", "c.data.dir = 'a\\0b'", "config.data.dir='a\\x00b' must not contain a NUL"),
    ],
)
def test_an_error_of_a_config_file_names_its_line(head, body, words, tmp_path, capsys):
    (tmp_path / "beside.py").write_text("SEED = 7\n\ndef broken():\n    return 1 / 0\n")
    (tmp_path / "x.py").write_text(CONFIG.format(head, body))
    assert main.run(["train", f"--config={tmp_path / 'x.py'}", "--print_config"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_config_file_imports_what_lies_beside_it_and_nothing_that_another_had(tmp_path, capsys):
    path = sys.path[:]
    for seed in (7, 8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "beside.py").write_text(f"SEED = {seed}\n")
        (folder / "x.py").write_text(CONFIG.format("import beside", "c.seed = beside.SEED"))
        assert main.run(["train", f"--config={folder / 'x.py'}", "--print_config"]) == 0
        assert f"seed: {seed} " in capsys.readouterr().out
    assert sys.path == path and "beside" not in sys.modules


@pytest.mark.parametrize("order", ["mixup(0.2)|normalize", "normalize|saturation(0.4)"])
def test_an_augmentation_at_the_wrong_place_is_told_where_it_belongs(order, capsys):
    assert main.run(["train", f"--config.augment.train={order}"]) == 2
    error = capsys.readouterr().err
    assert ("put it after" if order.startswith("mixup") else "put it before") in error


def test_long_lists_of_names_are_cut_to_the_nearest():
    error = str(unknown("model", "resnt50", list_models("*")))
    assert "did you mean 'resnet50'?" in error and "resnet101" in error and len(error) < 400
    assert error.endswith(f"and {len(list_models('*')) - 10} more")


def test_a_damaged_run_folder_is_told(trained, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert main.run(["evaluate", f"--workdir={tmp_path}"]) == 2
    assert "config.json cannot be read" in capsys.readouterr().err
    assert main.run(["evaluate", f"--workdir={trained}", "--weights=ema"]) == 2
    assert "has no average" in capsys.readouterr().err
    assert main.run(["evaluate", f"--workdir={trained}", "--split=tset"]) == 2
    assert "did you mean 'test'?" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_has_its_own_exit_code(tiny_data, tmp_path, capsys):
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.data.name={tiny_data}", *TINY]
    bad = ["--config.optimizer.name=sgd", "--config.optimizer.schedule=step(boundaries=2, factor=1e30)"]
    assert main.run(["train", *flags, *bad, "--config.total_epochs=9"]) == 3
    assert "not finite at step 11" in capsys.readouterr().err
    saved = Checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.steps() == [5, 10]  # of the epochs before the learning rate grows
    for step in saved.steps():
        for leaf in jax.tree.leaves(saved.read(step)["state"]["params"]):
            assert np.isfinite(leaf).all()


def test_tensorflow_is_never_imported_and_help_needs_no_library():
    code = (
        "import sys, cnnjax; from cnnjax.cli import main; main.run(['--help']); "
        "assert not {'jax', 'flax', 'numpy', 'optax', 'grain', 'orbax'} & {*sys.modules}; "
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


ALONE = """
import os, sys
before = os.getpid(), dict(os.environ)
os.execv = os.execve = os.posix_spawn = os.fork = None  # whoever calls them fails
sys.argv = ["cnnjax", "data", "--help"]
from cnnjax import __main__ as program
try:
    program.main()
except SystemExit as end:
    print(end.code, (os.getpid(), dict(os.environ)) == before)
"""


def test_the_command_runs_in_the_process_and_environment_that_the_user_started():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.stdout.endswith("\n0 True\n"), done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "data", "train --print_config"])
def test_a_closed_pipe_ends_a_command_quietly(command, unbuffered):
    """As `cnnjax models | head -1` does, here before the first word is written."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        program = [sys.executable, "-m", "cnnjax", *command.split()]
        env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(program, stdout=closed, stderr=subprocess.PIPE, text=True, env=env)
    assert (done.returncode, done.stderr) == (1, "")


def test_another_broken_pipe_is_an_error(monkeypatch):
    def fail(args):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(main, "_run", fail)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        main.run(["data"])


@pytest.mark.parametrize("command", [*main.COMMANDS, "bench data"])
def test_every_command_has_help(command, capsys):
    """What it does, and what each of its flags means."""
    if command == "bench":
        command = "bench train"
    assert main.run([*command.split(), "--help"]) == 0
    usage, meaning, rest = capsys.readouterr().out.split("\n\n", 2)
    assert usage.startswith(f"usage: cnnjax {command} [--FLAG=VALUE ...]") and meaning.endswith(".")
    assert "WORD" not in usage  # but what it stands for
    before, examples = rest.split("\n\nexamples:\n")
    flags = [line for line in before.splitlines() if line[:23].strip()]  # the others continue a meaning
    assert len(examples.partition("\n\n")[0].splitlines()) == 2
    assert flags and all(len(flag.split()) > 1 and flag.startswith("  --") for flag in flags)


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_name_commands_and_flags_that_exist(example):
    program, *words = shlex.split(example.partition(" >")[0])
    assert program == "cnnjax" and words[0] in main.COMMANDS
    known = {flag for flags in completion.flags_of_commands().values() for flag in flags}
    for word in words:
        if word.startswith("--") and word != "--":
            name, has_value, _ = word.partition("=")
            assert {f"{name}{has_value}", name} & known  # some switches take a value too, as --explain=METHOD


def test_the_version_is_that_of_the_package(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"cnnjax {importlib.metadata.version('cnnjax')}, jax ")


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("cnnjax tr", "train "),
        ("cnnjax train --config.optimizer.learning_rate", "--config.optimizer.learning_rate="),
        ("cnnjax predict --exp", "--explain"),
        ("cnnjax train --config=fashion_mnist_s", "fashion_mnist_simple_cnn"),
    ],
)
def test_bash_completes_commands_flags_and_fields(line, wanted, tmp_path, capsys):
    assert main.run(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    words = line.replace("=", " = ").split()  # as bash divides what is typed
    code = (
        f"compopt() {{ :; }}; source ./script; COMP_WORDS=({' '.join(words)}); COMP_LINE='{line}' "
        f"COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}; _cnnjax; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert wanted.strip() in [each.strip() for each in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_has_a_script_of_all_commands(shell, capsys):
    assert main.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in main.COMMANDS) and "--config.total_epochs=" in script
    assert main.run(["completion", "csh"]) == 2


def test_a_run_shorter_than_its_warm_up_warms_up_for_a_tenth(tiny_data, tmp_path, capsys):
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.data.name={tiny_data}", *TINY]
    assert main.run(["train", *flags, "--config.total_epochs=1", "--config.optimizer.warmup_epochs=1"]) == 0
    printed = capsys.readouterr().out
    assert "warm-up 0.1 epochs (a tenth of the run, not 1)" in printed
    for words in (
        "simple_cnn(",
        " parameters, float32",
        " steps of 16 images, 1 epoch, on CPU",
        "run folder ",
    ):
        assert words in printed


def on_a_terminal(*words: str) -> tuple[int, str]:
    """The exit code of a command whose standard output is a terminal, and what it wrote there."""
    process, terminal = pty.fork()
    if not process:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "cnnjax", *words])
    written = b""
    with contextlib.suppress(OSError):  # Linux's end of a terminal
        while part := os.read(terminal, 1 << 16):
            written += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), written.decode()


def test_on_a_terminal_something_moves_before_the_libraries_are_there(tmp_path):
    code, written = on_a_terminal("train", f"--workdir={tmp_path / 'run'}", "--config.data.name=npz:nowhere")
    assert code == 2
    places = [
        written.index(words)
        for words in ("importing JAX", "loading data", "cnnjax: config.data.name: nowhere")
    ]
    assert places == sorted(places)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back


def test_a_sweep_begins_with_its_runs_fields_and_folder(tmp_path):
    words = ("--set=batch_size=4,8,8", "--seeds=3", f"--out={tmp_path / 'out'}", "--task=0/4")
    code, written = on_a_terminal("sweep", *words, "--config.data.name=npz:nowhere")
    heading = f"sweep of batch_size: 2 points x 3 seeds = 6 runs in {tmp_path / 'out'}, 2 of them"
    assert code == 2 and written.startswith(heading)
    assert written.index("importing JAX") < written.index("cnnjax: config.data.name: nowhere")


def test_the_board_of_a_sweep_moves_and_names_the_run():
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    with Live(console=console, auto_refresh=False) as live:
        board = LiveBoard(live)
        board.begin("batch_size_8_seed0", 1, 6)
        board.stage("loading data")
        live.refresh()
        time.sleep(0.2)  # two frames
        live.refresh()
    shown = "1 of 6: batch_size_8_seed0  loading data"
    frames = [line for line in written.getvalue().splitlines() if shown in line]
    assert len(set(frames)) > 1


def test_the_bar_begins_where_the_words_on_the_start_end():
    written = io.StringIO()
    console = Console(file=written, force_terminal=True)
    bar = Bar(console, console.status("importing JAX"))
    bar.stage("initializing")
    bar.start(0, 4)
    bar.row({"step": 2, "epoch": 0.5, "loss": 0.25})
    bar.advance(4)
    bar.stop()
    shown = written.getvalue()
    assert shown.index("initializing") < shown.index("training") and "loss 0.250" in shown and "4/4" in shown


@pytest.mark.parametrize("named", [True, False])
def test_a_stopped_run_says_which_command_resumes_it(named, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def told(self, step):
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.1)

    monkeypatch.setattr(Lines, "advance", told)
    flags = ["--workdir=run"] if named else []
    assert main.run(["train", *flags, f"--config.data.name={tiny_data}", *TINY]) == 143
    (folder,) = tmp_path.glob("run" if named else "runs/*")
    place = folder.relative_to(tmp_path)
    command = "the same command" if named else f"the same command with --workdir={place}"
    assert f"saved step 1 of 10 in {place}; {command} resumes there\n" in capsys.readouterr().err


def test_a_calibration_that_would_not_be_used_is_refused(trained, capsys):
    for command in (["predict", str(trained)], ["evaluate"]):
        assert main.run([*command, f"--workdir={trained}", "--calibration=x"]) == 2
        assert "calibration needs " in capsys.readouterr().err
    with pytest.raises(UserError, match="calibration needs dtype=int8; add it"):
        load_run(trained, calibration="x")


def test_memory_is_that_of_the_given_image_size(capsys):
    shown = []
    for flags in ([], ["--image_size=56"]):
        assert main.run(["models", "simple_cnn", "--memory", "--batch_size=2", *flags]) == 0
        shown.append(capsys.readouterr().out.partition("temporaries, bytes")[::2])
    assert "56 pixels" in shown[1][0] and shown[0][1].split()[1] != shown[1][1].split()[1]


def test_the_report_of_one_run_is_written_where_it_is_wanted(trained, tmp_path, capsys):
    assert main.run(["report", str(trained), f"--out={tmp_path / 'a.html'}"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'a.html'}\n"
    assert "Confusion matrix" in (tmp_path / "a.html").read_text()  # a comparison has none


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form, *_: form.replace("%Y-%m-%d_%H%M%S", "now"))
    flags = [f"--config.data.name={tiny_data}", *TINY]
    assert main.run(["train", *flags]) == 0
    assert main.run(["train", *flags, "--config.data.num_validation=500"]) == 2  # and leaves none behind
    assert main.run(["train", *flags, "--config.seed=1"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["now_simple_cnn", "now_simple_cnn_2"]
    shutil.rmtree("runs")
    Path("runs").touch()
    capsys.readouterr()
    assert main.run(["train", *flags]) == 2
    assert "runs/now_simple_cnn cannot be written: Not a directory" in capsys.readouterr().err
