"""The queue of all studies: takes the next runs, one at a time, and goes on after any end.

    python experiments/run_all.py --hours=2       # trains for so long; the run under way resumes
    python experiments/run_all.py --estimate      # images/s of each net here, and the hours of each study
    python experiments/run_all.py --list          # what is still to run; also in queue.csv

It commits nothing. Studies are taken in the order of `STUDIES`: first what each needs at the least, then what
is worth running while hours last. A run that fails is noted in queue.csv and left for the next call.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cnnjax.data.files import atomic_write
from cnnjax.runs import compile_cache
from experiments import speeds, studies

STUDIES = (
    "cifar10_fast",
    "relu_vs_tanh",
    "alexnet_ablation",
    "two_towers",
    "degradation",
    "inception_factorization",
    "wide_resnet",
    "identity_mappings",
    "auxiliary_heads",
    "alexnet_regularization",
    "why_convolution",
    "pooling_types",
    "fashion_mnist",
)
QUEUE = HERE / "queue.csv"


def write_queue(failed: dict[str, str]) -> str:
    """Writes queue.csv, a line a run that is still to be trained; returns it."""
    lines = ["study,run,seed,epochs,when,note"]
    for later in (False, True):
        for study in studies.every(STUDIES):
            for run in (run for run in study.waiting() if run.later == later):
                when = "while hours last" if later else "least"
                note = failed.get(study.name, "")
                lines.append(f'{study.name},"{run.label}",{run.seed},{run.epochs:g},{when},{note}')
    text = "\n".join(lines) + "\n"
    atomic_write(QUEUE, text)
    return text


def estimate() -> None:
    """Prints the images a second of each net here and the hours of each study."""
    print(f"{speeds.this_machine()}\n")
    total = 0.0
    for study in studies.every(STUDIES):
        hours = dict.fromkeys(("to run", "later", "in all"), 0.0)
        for run in study.planned():
            cost = study.seconds(run) / 3600
            hours["in all"] += cost
            if run in study.waiting():
                hours["later" if run.later else "to run"] += cost
        total += hours["to run"]
        print(f"{study.name:26}", *(f"{kind} {value:6.1f} h  " for kind, value in hours.items()), flush=True)
    print(f"\n{total:.1f} hours to run at the least, on a machine that does nothing else")


def next_run(failed: dict[str, str]) -> tuple[studies.Study, bool] | None:
    """The study whose turn it is, and whether it is among the later ones."""
    for later in (False, True):
        for study in studies.every(STUDIES):
            if study.name not in failed and any(run.later == later for run in study.waiting()):
                return study, later
    return None


def work(hours: float, data: str | None) -> None:
    """Trains run after run until the time is over or nothing is left."""
    end, failed = time.monotonic() + 3600 * hours, dict[str, str]()
    while (left := end - time.monotonic()) > 0 and (found := next_run(failed)):
        study, later = found
        command = [sys.executable, f"{study.home}/run.py", f"--next={study.name}", *["--later"] * later]
        command += [f"--data={data}"] * bool(data and study.config().data.name == "cifar10")
        print(time.strftime("%H:%M"), *command[1:], flush=True)
        process = subprocess.Popen(command, cwd=HERE.parent)
        try:
            code = process.wait(left)
        except subprocess.TimeoutExpired:
            code = None
        except KeyboardInterrupt:
            code, end = None, 0.0
        if code is None:
            process.send_signal(signal.SIGTERM)  # it saves a checkpoint and ends
            process.wait()
        elif code:
            failed[study.name] = f"failed with exit code {code}"
        write_queue(failed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python experiments/run_all.py")
    parser.add_argument("--hours", type=float, help="how long to train")
    parser.add_argument("--data", help="another copy of CIFAR-10, as --config.data.name")
    parser.add_argument("--estimate", action="store_true", help="print speeds and hours")
    parser.add_argument("--list", action="store_true", help="print what is still to run")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the run goes on alone
    os.chdir(HERE.parent)
    compile_cache.enable()
    if given.estimate:
        estimate()
    elif given.hours:
        work(given.hours, given.data)
    else:
        print(write_queue({}), end="")


if __name__ == "__main__":
    studies.start(main)
