"""Kills training runs at random moments and compares what they end with to runs that nobody killed.

A moment is drawn within a phase, which is seen from outside by what lies in the run folder.
"""

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax.data import datasets
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.folder import Run
from cnnjax.runs.log import MEASURED

PHASES = ("compile", "step", "evaluation", "save", "any moment")
LONGEST = 600  # seconds that a phase may take to come
COMMON = {
    "batch_size": 32,
    "eval_batch_size": 50,
    "total_epochs": 3.0,
    "log_every_steps": 4,
    "checkpoint_every_steps": 7,
    "optimizer.learning_rate": 0.01,
}
RESIDENT = {"data.num_validation": 5000, "augment.eval": "normalize"}
STREAMED = {"data.num_validation": 300, "augment.eval": "center_crop(28)|normalize(mean=0.5, std=0.25)"}
CROP = "random_crop(28)|mirror|normalize(mean=0.5, std=0.25)"
SMALL, DROPOUT = "simple_cnn(widths=(8, 16))", "wrn_40_1(depth=10, dropout=0.3)"
SETTINGS: dict[str, dict[str, Any]] = {
    "resident, EMA, mixup, cosine": {
        **RESIDENT,
        "model": SMALL,
        "ema_decay": 0.95,
        "augment.train": "random_crop(28, padding=2)|mirror|normalize|mixup(0.2)",
    },
    "resident, dropout, plateau, microbatches": {
        **RESIDENT,
        "model": DROPOUT,
        "optimizer.name": "sgd(momentum=0.9)",
        "optimizer.schedule": "plateau(window_epochs=0.25, patience=1)",
        "accumulate_steps": 2,
    },
    "streamed, EMA, mixup, one cycle": {
        **STREAMED,
        "model": SMALL,
        "ema_decay": 0.95,
        "augment.train": f"{CROP}|mixup(0.2)",
        "optimizer.schedule": "one_cycle",
        "optimizer.warmup_epochs": 0.0,
    },
    "streamed, dropout, steps, bfloat16": {
        **STREAMED,
        "model": DROPOUT,
        "dtype": "bfloat16",
        "augment.train": CROP,
        "optimizer.schedule": "step(boundaries=(0.3, 0.7), factor=0.1)",
    },
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished run left, without times: metrics, the digest of the last checkpoint, test scores."""

    rows: list[dict]
    state: str
    test: dict


def streamed_images(folder: Path) -> str:
    """The name of a data set of JPEG files that are too large together to be kept in memory."""
    from PIL import Image

    for split, count in (("train", 1400), ("test", 200)):
        source = datasets.load("fashion_mnist_mini", split)
        for i in range(count):
            example = source[i]
            place = folder / split / str(example["label"])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(example["image"][..., 0]).resize((300, 300)).save(place / f"{i}.jpg")
    return f"folder:{folder}"


def outcome(workdir: Path) -> Outcome:
    """Reads a finished run."""
    run = Run.open(workdir)
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in run.metrics()]
    saved = Checkpoints(workdir / "checkpoints")
    leaves = jax.tree_util.tree_leaves_with_path(saved.read(saved.steps()[-1]))
    sha = hashlib.sha256()
    for path, leaf in leaves:
        sha.update(f"{jax.tree_util.keystr(path)} {np.asarray(leaf).dtype}".encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return Outcome(rows, sha.hexdigest(), run.read_json("test.json"))


def start(fields: dict[str, Any], workdir: Path, log: Path, **environment: str) -> subprocess.Popen:
    """`cnnjax train` of a setting."""
    flags = [f"--config.{name}={value}" for name, value in {**COMMON, **fields}.items()]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "cnnjax", "train", f"--workdir={workdir}", *flags],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        )


def finish(fields: dict[str, Any], workdir: Path, log: Path) -> float:
    """Runs to the end; returns seconds. A run that fails is an error with its output."""
    began = time.monotonic()
    if start(fields, workdir, log).wait() != 0:
        raise SystemExit(f"{workdir} failed:\n{log.read_text('utf-8')[-3000:]}")
    return time.monotonic() - began


def last_step(workdir: Path) -> int:
    """Of the rows that a run has written so far."""
    try:
        text = (workdir / "metrics.jsonl").read_text("utf-8")
    except OSError:
        return 0
    lines = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(lines[-1])["step"] if lines else 0


def newest_checkpoint(workdir: Path) -> int:
    """The step of the newest complete one; 0 without any."""
    names = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(map(int, names), default=0)


def wait_for(phase: str, workdir: Path, process: subprocess.Popen, draw: random.Random, usual: float) -> None:
    """Returns at a random moment of a phase, or when the process has ended."""
    if phase == "any moment":
        time.sleep(draw.uniform(0.1, 0.9) * usual)
        return
    steps, limit = draw.choice((4, 20, 40, 60, 80)), time.monotonic() + LONGEST
    checkpoints = workdir / "checkpoints"

    def reached() -> bool:
        if phase == "compile":
            return (workdir / "record.json").exists()
        if phase == "save":
            return last_step(workdir) >= steps and any(checkpoints.glob(".*.part"))
        rows = last_step(workdir)
        per_epoch = 32 if (workdir / "metrics.jsonl").exists() else 0
        return rows >= steps and (phase == "step" or (per_epoch and rows >= per_epoch))

    while process.poll() is None and not reached() and time.monotonic() < limit:
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, {"compile": 3.0, "step": 0.5, "evaluation": 0.3, "save": 0.02}[phase]))


def trials(name: str, folder: Path, phases: list[tuple[int, str]], seed: int) -> Iterator[dict[str, Any]]:
    """One row for each (signal, phase): a run that gets it there, is started again and compared."""
    fields = dict(SETTINGS[name])
    if name.startswith("streamed"):
        images = folder / "images"
        fields["data.name"] = f"folder:{images}" if images.exists() else streamed_images(images)
    place = folder / hashlib.sha256(name.encode()).hexdigest()[:8]
    place.mkdir(parents=True, exist_ok=True)
    log = place / "log"
    whole = place / "whole"
    usual = finish(fields, whole, log)
    expected = outcome(whole)
    draw = random.Random(f"{name} {seed}")
    for number, (signum, phase) in enumerate(phases):
        while True:
            workdir = place / f"{seed}_{number}_{draw.random()}"
            process = start(fields, workdir, log)
            wait_for(phase, workdir, process, draw, usual)
            if process.poll() is None:
                break  # else it came to its end before the moment that was drawn: another one
        began = time.monotonic()
        process.send_signal(signum)
        code = process.wait()
        seconds = time.monotonic() - began
        logged, kept = last_step(workdir), newest_checkpoint(workdir)
        finish(fields, workdir, log)
        yield {
            "test": signal.Signals(signum).name,
            "case": name,
            "phase": phase,
            "inputs": 1,
            "logged_step": logged,
            "kept_step": kept,
            "exit_code": code,
            "seconds": round(seconds, 2),
            "failed": int(outcome(workdir) != expected),
        }
