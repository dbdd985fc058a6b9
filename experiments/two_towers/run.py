"""AlexNet's two towers on one device and on two: the curve, half of the parameters, what moves.

    python experiments/two_towers/run.py --data=NAME   # images of 67x67 pixels; goes on where it was stopped
    python experiments/two_towers/run.py --tables      # only rewrites table and figure from results.csv

Two devices of one CPU are simulated, and both places go through XLA. The control is one device with oneDNN,
whose sums run in another order: how far equal programs part by rounding alone. `losses` in results.csv are
means over ten steps.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import jax
import numpy as np
from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.profiling.compiled import inspect, layer_paths
from cnnjax.runs import train as loop
from cnnjax.runs.experiment import build
from cnnjax.runs.folder import Run
from cnnjax.runs.results import Row, spread
from cnnjax.runs.step import lower_step
from experiments import pages, results, studies

MODEL = "alexnet(image_size=67, widths=(32, 64, 96, 96, 64, 256, 256), std=0.06, bias=0.1)"
PLACES = {
    "one device": {"mesh": "data:1", "cpu_kernels": False},
    "two devices": {"mesh": "model:2", "sharding": "towers", "cpu_kernels": False},
    "control": {"mesh": "data:1", "cpu_kernels": True},
}
SEEDS = 3
RESULTS = HERE / "results.csv"


def make_config(data: str, seed: int) -> config_lib.ConfigDict:
    """The paper's recipe in small: SGD with momentum, batch 128, mirror; one epoch."""
    config = config_lib.default()
    config.seed = seed
    config.data.name = data
    config.data.num_validation = 5000
    config.data.num_workers = 0
    config.model = MODEL
    config.total_epochs = 1.0
    config.eval_every_epochs = 1.0
    config.augment.train = "mirror|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 0.0005
    config.optimizer.warmup_epochs = 0.1
    config.log_every_steps = 10
    return config


def train(data: str, seed: int, place: str) -> dict[str, object]:
    """Trains one seed at one place and returns its row."""
    config = make_config(data, seed)
    config.update(PLACES[place])
    path = HERE / "runs" / f"{place.replace(' ', '_')}_seed{seed}"
    result = loop.train(config, path)
    experiment = build(config)
    compiled = lower_step(experiment).compile()
    program = inspect(compiled, layer_paths(experiment.abstract_state.params))
    state = jax.tree.leaves(result.state)
    first = jax.tree.leaves(result.state.params["conv1"]["kernel"])[0].devices()
    device = min(first, key=lambda d: d.id)
    held = sum(s.data.nbytes for leaf in state for s in leaf.addressable_shards if s.device == device)
    run = Run.open(path)
    record = run.read_json("record.json")
    kernel = np.asarray(result.state.params["conv1"]["kernel"])
    return {
        "seed": seed,
        "place": place,
        "validation_accuracy": f"{run.metrics()[-1]['validation_accuracy']:.5f}",
        "test_accuracy": f"{result.test['accuracy']:.5f}",
        "state_bytes": held,
        "step_bytes": program.memory,
        "collectives": json.dumps(program.by_kind()),
        "layers": json.dumps(program.by_layer()),
        "colour": json.dumps([round(value, 4) for value in colour(kernel)]),
        "losses": json.dumps([round(row["loss"], 7) for row in run.metrics() if "loss" in row]),
        "started": record["started"],
        "machine": f"{record['machine']['processor']}, {record['machine']['cores']} cores",
        "devices": len(record["devices"]),
        "versions": json.dumps(record["versions"]),
        "commit": record["commit"],
    }


def colour(kernel: np.ndarray) -> list[float]:
    """The share of each tower's first kernels [h, w, 3, K] that is colour: not the same in R, G and B."""
    grey = kernel.mean(axis=2, keepdims=True)
    towers = np.split(np.arange(kernel.shape[-1]), 2)
    return [float(np.square((kernel - grey)[..., t]).sum() / np.square(kernel[..., t]).sum()) for t in towers]


def read_rows() -> list[Row]:
    return results.read(RESULTS)


def by_place(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found = {place: [row for row in rows if row["place"] == place] for place in PLACES}
    return {place: sorted(members, key=lambda row: int(row["seed"])) for place, members in found.items()}


def difference(rows: Sequence[Row], place: str, steps: int) -> float:
    """The largest relative difference of a seed's curve from that on one device, over the first steps."""
    places = by_place(rows)
    return max(
        abs(a / b - 1)
        for pair in zip(places[place], places["one device"], strict=True)
        for a, b in zip(*(json.loads(row["losses"])[: steps // 10] for row in pair), strict=True)
    )


def sent(row: Row) -> str:
    """'7 all-reduce, 28 all-gather: 12.3 MB' of one step and device."""
    kinds = json.loads(row["collectives"])
    words = ", ".join(f"{count} {kind}" for kind, (count, _) in kinds.items()) or "none"
    return f"{words}: {sum(size for _, size in kinds.values()) / 1e6:.1f} MB" if kinds else words


def table(rows: list[Row]) -> str:
    cells = [
        (
            place,
            spread([row["test_accuracy"] for row in members]),
            f"{int(members[0]['state_bytes']) / 1e6:.2f}",
            f"{int(members[0]['step_bytes']) / 1e6:.1f}",
            sent(members[0]),
            "; ".join(" / ".join(f"{100 * v:.0f}" for v in json.loads(row["colour"])) for row in members),
            len(members),
        )
        for place, members in by_place(rows).items()
        if members
    ]
    head = (
        "towers on", "test %", "state, MB a device", "step, MB a device", "collectives of a step",
        "colour in conv1, % by tower and seed", "seeds",
    )  # fmt: skip
    last, versions = rows[-1], json.loads(rows[-1]["versions"])
    apart = studies.markdown(
        ("largest relative difference of the loss from one device", "20 steps", "100 steps", "all"),
        [
            (place, *(f"{difference(rows, place, steps):.1e}" for steps in (20, 100, 10_000)))
            for place in ("two devices", "control")
        ],
    )
    return (
        f"{studies.markdown(head, cells)}\n\n{apart}\n\n`{MODEL}`, "
        f"{len(rows)} runs of one epoch, JPEG copies of CIFAR-10 at 67x67; {last['machine']}, "
        f"{last['devices']} simulated devices, XLA (control: oneDNN), float32, "
        f"jax {versions['jax']}, flax {versions['flax']}. Written by "
        "`python experiments/two_towers/run.py` from `results.csv`."
    )


def figure(rows: list[Row]) -> Figure:
    """The loss by step, both places of each seed on top of each other."""
    drawn = Figure(figsize=(6, 3.6), layout="constrained")
    axes = drawn.add_subplot(xlabel="step", ylabel="training loss")
    for place, style in zip(PLACES, ("-", ":"), strict=False):
        for row, colour_of in zip(by_place(rows)[place], studies.COLOURS, strict=False):
            losses = json.loads(row["losses"])
            steps = [10 * (i + 1) for i in range(len(losses))]
            label = f"seed {row['seed']}, {place}"
            axes.plot(steps, losses, style, color=colour_of, label=label, linewidth=1 + 2 * (style == ":"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return drawn


def claim(rows: list[Row]) -> studies.Claim:
    one, two, _ = by_place(rows).values()
    share = int(two[0]["state_bytes"]) / int(one[0]["state_bytes"])
    apart = statistics.mean(abs(a - b) for a, b in (json.loads(row["colour"]) for row in one + two))
    learned = statistics.mean(float(row["test_accuracy"]) for row in rows) > 0.15
    found, control = (difference(rows, place, 100) for place in ("two devices", "control"))
    verdict = "same curve" if found < 1e-3 else "curves differ"
    if 1e-3 <= found <= control:
        verdict = "apart by no more than another order of sums"
    return studies.Claim(
        "the network split over 2 devices trains the same",
        "two GPUs, kernels halved between them; one tower learns colour",
        f"losses within {found:.1e} over 100 steps (another order of sums: "
        f"{control:.1e}); state {100 * share:.0f} % a device; "
        f"colour differs by {100 * apart:.0f} points between towers",
        verdict if learned else f"{verdict}, of a net still at chance",
    )


def main() -> None:
    data = next((arg.partition("=")[2] for arg in sys.argv if arg.startswith("--data=")), "cifar10")
    done = {(int(row["seed"]), row["place"]) for row in read_rows()}
    if "--tables" not in sys.argv:
        jax.config.update("jax_num_cpu_devices", 2)
        for seed in range(SEEDS):
            for place in PLACES:
                if (seed, place) not in done:
                    results.append(RESULTS, train(data, seed, place))
    if rows := read_rows():
        pages.write((HERE / "README.md",), "two_towers", table(rows))
        figure(rows).savefig(HERE / "figure.svg", metadata={"Date": None})


if __name__ == "__main__":
    studies.start(main)
