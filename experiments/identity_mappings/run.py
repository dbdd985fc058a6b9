"""Original and pre-activation units at 110 layers on CIFAR-10: training loss, and gradients by depth.

See `experiments/studies.py` for the flags. Here the images are prepared at 16x16 pixels (`cnnjax data prepare
--short_side=16`) and the stages are half as wide. gradients.csv holds, for each run, the Euclidean norm of
the gradient of the second convolution of each block, at the first step and at the last.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs.folder import Run
from cnnjax.runs.replay import replay_step
from cnnjax.runs.results import Row, read_results, spread
from cnnjax.runs.sweep import Board, sweep
from experiments import pages, studies  # noqa: F401

NETS = {"original": "original", "pre-activation": "full_preactivation"}
BLOCKS = 18  # of each of three stages
SEEDS = 3


def spec(net: str, full: bool = False) -> str:
    width = "" if full else ", widths=(8, 16, 32)"
    return f"preact_resnet110_cifar(order='{NETS[net]}'{width})"


def make_config(full: bool) -> config_lib.ConfigDict:
    """SGD with momentum at 0.1, divided by 10 at 50 and 75 %, after a warm-up as the paper's at 0.01."""
    config = studies.cifar10()
    config.total_epochs = 164.0 if full else 1.0
    config.augment.train = "random_crop(32, padding=4)|mirror|normalize" if full else "mirror|normalize"
    config.optimizer.name = "sgd(momentum=0.9)"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "step(boundaries=(0.5, 0.75), factor=0.1)"
    config.optimizer.weight_decay = 0.0001
    config.optimizer.warmup_epochs = 0.5 if full else 0.25
    config.log_every_steps = 44
    return config


def train(config: config_lib.ConfigDict, out: Path, board: Board) -> None:
    """Both nets with every seed, then the gradients of each at its first and its last step."""
    sweep(config, {"model": [spec(net, full=out != HERE) for net in NETS]}, out, seeds=SEEDS, board=board)

    def measure(path: Path) -> dict[str, float]:
        last = Run.open(path).read_json("record.json")["total_steps"] - 1
        found = {when: replay_step(path, step).layers for when, step in (("first", 0), ("last", last))}
        return {
            f"{when}_stage{i}_block{j}": layers[f"stage{i}_block{j}/conv2"][0]
            for when, layers in found.items()
            for i in range(1, 4)
            for j in range(1, BLOCKS + 1)
        }

    studies.add_scores(out, "gradients", measure)


def read_rows() -> list[Row]:
    """The rows of results.csv with those of gradients.csv."""
    return studies.with_scores(read_results(HERE), HERE, "gradients")


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """By net its runs."""
    return studies.by_field(rows, "model", {net: spec(net) for net in NETS})


def norms(row: Row, when: str) -> list[float]:
    """The gradient norm of each block, from the image on."""
    return [float(row[f"{when}_stage{i}_block{j}"]) for i in range(1, 4) for j in range(1, BLOCKS + 1)]


def decay(row: Row, when: str) -> float:
    """How many times larger the gradients are in the last stage than in the first, on average."""
    found = norms(row, when)
    return sum(found[-BLOCKS:]) / sum(found[:BLOCKS])


def table(rows: list[Row]) -> str:
    more = {
        "training loss": lambda net, members: spread([str(last_loss(row)) for row in members], 1, 3),
        **{
            f"gradient, last stage / first, {when} step": lambda net, members, when=when: spread(
                [str(decay(row, when)) for row in members], 1, 2
            )
            for when in ("first", "last")
        },
    }
    columns = ("parameters", "training loss", "validation %", "test %", *list(more)[1:])
    return studies.score_table(HERE, "units", groups(rows), columns, more)


def last_loss(row: Row) -> float:
    """The training loss of the last log interval."""
    return [point["loss"] for point in studies.read_curves(HERE)[row["run"]] if "loss" in point][-1]


def figure(rows: list[Row]) -> Figure:
    """Training loss by epoch, and gradient norms by block."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    studies.draw_curves(left, groups(rows), studies.read_curves(HERE), "loss")
    left.set_ylabel("training loss")
    for (net, members), colour in zip(groups(rows).items(), studies.COLOURS, strict=False):
        for when, style in (("first", ":"), ("last", "-")):
            found = [norms(row, when) for row in members]
            means = [sum(values) / len(values) for values in zip(*found, strict=True)]
            right.plot(range(1, len(means) + 1), means, style, color=colour, label=f"{net}, {when} step")
    right.set(yscale="log", xlabel="block", ylabel="norm of the gradient of conv2")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return drawn


def claim(rows: list[Row]) -> studies.Claim:
    found = groups(rows)
    losses = {net: sum(map(last_loss, members)) / len(members) for net, members in found.items()}
    accuracy = {net: 100 * studies.mean(members, "test_accuracy") for net, members in found.items()}
    return studies.Claim(
        "pre-activation units carry gradients better at great depth",
        "CIFAR-10, 110 layers: 93.39 % original, 93.63 % pre-activation; 1001 layers: 92.39 and 95.08 %",
        "; ".join(f"{net}: loss {losses[net]:.2f}, {accuracy[net]:.1f} %" for net in found),
        "holds" if losses["pre-activation"] < losses["original"] else "does not hold here",
    )


if __name__ == "__main__":
    studies.main(HERE, make_config, train, table, figure, read_rows)
