"""Kills runs of ten configs at random moments, again and again, and signals commands from their start on.

A run is a process forked from this one, in which all is imported and no device is in use yet: a killed one is
as dead as any other, and a thousand take minutes. Then the same command runs to its end, which must be that
of a run that nobody killed. Signals go to processes of their own, as imports are a part of them.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cnnjax.cli.train
import cnnjax.explore.report
import cnnjax.runs.train  # noqa: F401  # once for all forks
from cnnjax.cli import main
from cnnjax.data.files import PART
from experiments.reliability import stress
from experiments.reliability.place import SECONDS, Fork

START = 0.3  # seconds that Python itself may take to begin
TINY = {
    "model": "simple_cnn(widths=(4,), kernel_size=3)",
    "batch_size": 16,
    "eval_batch_size": 16,
    "total_epochs": 3.0,
    "log_every_steps": 2,
    "checkpoint_every_steps": 4,
    "optimizer.warmup_epochs": 0.5,
    "data.num_validation": 18,
}
RESIDUAL = "resnet18(widths=(4, 8), stage_sizes=(1, 1), stem='cifar')"
CROP = "random_crop(8, padding=1)|mirror|normalize"
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "EMA, mixup": {"ema_decay": 0.9, "augment.train": f"{CROP}|mixup(0.2)"},
    "CutMix, label smoothing, LAMB": {
        "augment.train": f"{CROP}|cutmix(1.0)",
        "loss.label_smoothing": 0.1,
        "optimizer.name": "lamb",
    },
    "dropout, plateau": {
        "model": "wrn_40_1(depth=10, dropout=0.3)",
        "optimizer.name": "sgd(momentum=0.9)",
        "optimizer.schedule": "plateau(window_epochs=1.0, patience=1)",
    },
    "microbatches, clipping": {"accumulate_steps": 2, "optimizer.gradient_clip": 1.0},
    "bfloat16, steps": {"dtype": "bfloat16", "optimizer.schedule": "step(boundaries=(0.3, 0.7), factor=0.1)"},
    "one cycle, Adam": {
        "optimizer.schedule": "one_cycle",
        "optimizer.name": "adam",
        "optimizer.warmup_epochs": 0.0,
    },
    "residual, BatchNorm": {"model": RESIDUAL},
    "evaluations twice an epoch, one checkpoint": {"eval_every_epochs": 0.5, "keep_checkpoints": 1},
    "brightness, RandAugment": {"augment.train": f"brightness(0.4)|rand_augment|{CROP}"},
}  # fmt: skip


def finish(args: list[str], log: Path) -> str:
    """Runs a command to its end; '' or what went wrong."""
    log.unlink(missing_ok=True)
    fork = Fork(lambda: main.main(args), log)
    if (code := fork.wait()) is None:
        fork.kill()
        return "it did not end"
    return _failure(code, log)


def _failure(code: int, log: Path) -> str:
    return "" if code == 0 else f"exit code {code}: {log.read_text('utf-8')[-600:]}"


def result(run: Path, log: Path) -> str:
    """What a run ended with, as text to compare, with the names of unfinished files."""
    file = log.with_name("result")

    def call() -> None:  # in a process of its own: reading checkpoints starts threads that no fork has
        left = sorted(p.name for p in run.rglob("*") if PART in p.name or p.name.endswith((".part", ".tmp")))
        file.write_text(f"{stress.outcome(run)}\nunfinished: {left}", "utf-8")

    file.unlink(missing_ok=True)
    if code := Fork(call, log).wait():
        return f"cannot be read, {code}: {log.read_text('utf-8')[-600:]}"
    return file.read_text("utf-8")


def at_random(name: str, place: Path, count: int, seed: int) -> Iterator[str]:
    """'' or what was wrong with the run, for each of `count` kills of a setting; up to five hit a run."""
    draw, log, whole = random.Random(f"{name} {seed}"), place / "log", place / "whole"
    fields = {**TINY, **SETTINGS[name], "data.name": f"npz:{place}/data.npz"}
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    for _ in range(2):  # the second time without compilation
        shutil.rmtree(whole, ignore_errors=True)
        began = time.monotonic()
        if wrong := finish(["train", f"--workdir={whole}", *flags], log):
            raise SystemExit(f"{name}: {wrong}")
        usual = time.monotonic() - began
    expected = result(whole, log)
    kills = 0
    while kills < count:
        run = place / f"{seed}_{kills}"
        args = ["train", f"--workdir={run}", *flags]
        before, code = kills, None
        log.unlink(missing_ok=True)
        for _ in range(min(draw.randint(1, 5), count - kills)):
            fork = Fork(lambda: main.main(args), log)  # noqa: B023, called at once
            if (code := fork.wait(draw.uniform(0, 1.1) * usual)) is not None:
                break  # it came to its end before
            fork.kill()
            kills += 1
        wrong = finish(args, log) if code is None else _failure(code, log)
        if not wrong and (left := result(run, log)) != expected:
            wrong = f"it ended with {left[-600:]}"
        problem = f"{name}, run at kill {before}: {wrong}" if wrong else ""
        yield from [problem] * max(kills - before, bool(wrong))
        shutil.rmtree(run)


def commands(place: Path) -> dict[str, list[str]]:
    """The commands that get signals; those with {} write there."""
    run, data = (
        place / "run",
        [f"--config.{k}={v}" for k, v in {**TINY, "data.name": f"npz:{place}/data.npz"}.items()],
    )
    return {
        "train": ["train", "--workdir={}/run", *data],
        "sweep": ["sweep", "--out={}/sweep", "--seeds=2", *data],
        "launch": ["launch", "--processes=2", "--", "train", "--workdir={}/run", *data],
        "evaluate": ["evaluate", f"--workdir={run}"],
        "report": ["report", str(run), "--out={}/x.html"],
        "export": ["export", f"--workdir={run}", "--out={}/x.safetensors"],
        "explore": ["explore", f"--workdir={run}", "--port=0"],
        "data inspect": ["data", "inspect", f"npz:{place}/data.npz"],
        "models": ["models", "resnet18"],
        "help": ["--help"],
    }


def at_signals(name: str, place: Path, count: int, seed: int) -> Iterator[str]:
    """'' or what was wrong, for each of `count` signals to a command within its first five seconds."""
    draw = random.Random(f"{name} {seed}")
    for number in range(count):
        to = place / f"signal {number}"
        to.mkdir()
        args = [word.replace("{}", str(to)) for word in commands(place)[name]]
        signum = draw.choice((signal.SIGINT, signal.SIGTERM))
        yield signalled(args, 5 * draw.random() ** 2, signum)
        shutil.rmtree(to)


def signalled(args: list[str], seconds: float, signum: signal.Signals) -> str:
    """Sends a signal to a command so long after its start; '' or what was wrong."""
    line = [sys.executable, "-m", "cnnjax", *args]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(line, text=True, **pipes) as process:
        time.sleep(seconds)
        process.send_signal(signum)
        try:
            _, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"{args[0]}, {signum.name} after {seconds:.3f} s: it did not end"
    code = process.returncode
    told = [text for text in err.splitlines() if text.startswith("cnnjax: ")]
    alone = len(told) == 1 or (args[0] == "launch" and told)  # its processes say a line each
    ended = code == 128 + signum and bool(alone) and "Traceback" not in err
    before = seconds < START and code in (-signum, 1, 130)  # Python itself had not begun
    if ended or before or (code == 0 and not err):
        return ""
    return f"{args[0]}, {signum.name} after {seconds:.3f} s: exit code {code}, {err[-400:]!r}"
