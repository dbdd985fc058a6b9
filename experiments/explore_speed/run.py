"""Seconds until `cnnjax explore` is up and answers: measures alone on the machine; --tables only rewrites."""

import importlib.metadata
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from cnnjax.runs.record import processor
from experiments import pages, results

MEASURES = ("start_seconds", "first_answer_seconds", "next_answer_seconds")


def measure(model: str, cache: str, environment: dict[str, str]) -> dict[str, object]:
    """One row: as soon as the page is up, two images are uploaded one after the other."""
    times = [time.perf_counter()]
    command = [sys.executable, "-m", "cnnjax", "explore", f"--model={model}", "--port=0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(line for line in process.stderr or () if line.startswith("open ")).split()[1]
            times.append(time.perf_counter())
            for pixels in np.random.default_rng(0).integers(0, 256, (2, 240, 320, 3), np.uint8):
                Image.fromarray(pixels).save(file := io.BytesIO(), "png")
                urllib.request.urlopen(f"{address.rstrip('/')}/api/upload", file.getvalue()).read()
                times.append(time.perf_counter())
        finally:
            process.terminate()
    seconds = (f"{after - before:.2f}" for before, after in itertools.pairwise(times))
    facts = {"jax": importlib.metadata.version("jax"), "cores": os.cpu_count(), "machine": processor()}
    return {"model": model, "cache": cache, **dict(zip(MEASURES, seconds, strict=True)), **facts}


def read_rows() -> list[results.Row]:
    return results.read(HERE / "results.csv")


def table(rows: list[results.Row]) -> str:
    """Medians over the rounds of each network and cache, on the last machine."""
    last, groups = rows[-1], {}
    for row in rows:
        if row["machine"] == last["machine"]:
            groups.setdefault(f"| {row['model']} | {row['cache']} ", []).append(row)
    lines = ["| network | cache | start, s | first answer, s | next answer, s |", "|---|---|---|---|---|"]
    for words, own in groups.items():
        medians = [f"{statistics.median(float(row[name]) for row in own):.2f}" for name in MEASURES]
        lines.append(f"{words}| {' | '.join(medians)} |")
    return "\n".join([*lines, "", f"{last['machine']}, {last['cores']} cores, jax {last['jax']}."])


def main(arguments: list[str]) -> None:
    for model in ("resnet18", "simple_cnn") * (3 if "--tables" not in arguments else 0):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"PYTHONPATH": sys.path[0], "JAX_COMPILATION_CACHE_DIR": folder}
            for cache in ("empty", "filled"):
                results.append(HERE / "results.csv", measure(model, cache, environment))
    pages.write((HERE / "README.md",), "explore_speed", table(read_rows()))


if __name__ == "__main__":
    main(sys.argv[1:])
