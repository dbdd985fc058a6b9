"""Fine-tuning against a linear probe and training from scratch, on few images of other classes.

    python experiments/finetune/run.py --weights=FILE --model=NAME    # resumes where it was stopped
    python experiments/finetune/run.py --weights=FILE --data=folder:PATH --name=WORDS --images=N
    python experiments/finetune/run.py --group=PATH --out=PATH        # files of ImageNet in three folders
    python experiments/finetune/run.py --tables                       # only the table, from results.csv

`--weights` is whatever `config.init_from` takes, for the network `--model`. By default the other classes are
the ten of `fashion_mnist_mini`, in colour and with a border to 32 pixels; `--data` is any folder of classes,
whose images are brought to 32 pixels. By seed N images are drawn to train with, of each class its share; the
rest, or the test split if the folder has one, is tested once.
"""

import argparse
import shutil
import sys
from pathlib import Path

import jax
import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax import config as config_lib
from cnnjax.data import datasets
from cnnjax.errors import UserError
from cnnjax.inference.model import load_model
from cnnjax.inference.probe import probe
from cnnjax.runs import compile_cache, train
from cnnjax.runs.results import spread
from experiments import pages, results, speeds, studies, tables

RESULTS = HERE / "results.csv"
SEEDS = range(5)
SIDE = 32
FEW = {"total_epochs": 30.0, "batch_size": 20, "eval_every_epochs": 30.0}
FEW |= {"augment.train": f"random_crop({SIDE}, padding=4)|mirror|normalize", "data.num_validation": 0}
DECAY = {"optimizer.learning_rate_scales": "layer_decay(0.75)"}
ARMS = {
    "from scratch": None,
    "all layers": {},
    "all layers, layer_decay(0.75)": DECAY,
    "the head for 5 epochs, then all": {"freeze": "until(5, all but head)"},
}
PROBE = "linear probe"
# WordNet's ids of ImageNet's classes stand together by kind.
DOGS, LAST_ANIMAL = range(2085620, 2116739), 2665999


def group(files: Path, out: Path) -> None:
    """Copies files named by WordNet ids (n02101388_Brittany_spaniel.JPEG) to dog, other_animal or thing."""
    for file in sorted(files.iterdir()):
        number = int(file.name[1:9])
        kind = "dog" if number in DOGS else "other_animal" if number <= LAST_ANIMAL else "thing"
        (out / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, out / kind)


def images_of(data: str, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """uint8 [N, 32, 32, 3] and labels int [N] of a split; None if the data set has none of this name."""
    source = datasets.load(data, "train", size=SIDE if data.startswith("folder:") else None)
    if split not in source.splits:
        return None
    if split != "train":
        source = datasets.load(data, split, size=SIDE if data.startswith("folder:") else None)
    images = np.stack([source[i]["image"] for i in range(len(source))])
    labels = np.asarray([source[i]["label"] for i in range(len(source))])
    border = (SIDE - images.shape[1]) // 2
    images = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images, labels


def draw(data: str, count: int, seed: int, file: Path) -> str:
    """Saves `count` training images, of each class its share, and those that are tested; its name."""
    images, labels = images_of(data, "train")
    test, order = images_of(data, "test"), np.random.default_rng(seed).permutation(len(labels))
    chosen: list[int] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        chosen += [*members[: max(2, round(count * len(members) / len(labels)))]]
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    test = test or (images[rest], labels[rest])
    arrays = {"train_image": images[chosen], "train_label": labels[chosen]}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays, test_image=test[0], test_label=test[1])
    return f"npz:{file}"


def run(given: argparse.Namespace, seed: int) -> list[dict[str, object]]:
    """A row for each way of one seed."""
    folder = HERE / "runs" / f"{given.name.replace(' ', '_')}_{given.images}" / f"seed{seed}"
    config = config_lib.assign(config_lib.default(), {**FEW, "model": given.model, "seed": seed})
    config.data.name = draw(given.data, given.images, seed, folder / "data.npz")
    scores = {}
    for number, (arm, fields) in enumerate(ARMS.items()):
        start = {} if fields is None else {"init_from": given.weights, "init_head": "new", **fields}
        result = train.train(config_lib.assign(config, start), folder / f"arm{number}")
        scores[arm] = result.test["accuracy"]
    network = load_model(given.model, given.weights)
    scores[PROBE] = probe(network, config.data.name, seed=seed).linear.accuracy
    facts = {"data": given.name, "weights": Path(given.weights).name, "images": given.images, "seed": seed}
    here = {"machine": speeds.this_machine(), "jax": jax.__version__}
    return [{**facts, "arm": arm, "test_accuracy": f"{score:.4f}", **here} for arm, score in scores.items()]


def read_rows() -> list[dict[str, str]]:
    return results.read(RESULTS)


def table(rows: list[dict[str, str]]) -> str:
    """Mean and standard deviation of each way on each data set, as Markdown."""
    sets = list(dict.fromkeys((row["data"], row["images"]) for row in rows))
    cells = []
    for arm in ("from scratch", PROBE, *[arm for arm in ARMS if arm != "from scratch"]):
        members = [
            [r["test_accuracy"] for r in rows if (r["data"], r["images"], r["arm"]) == (*s, arm)]
            for s in sets
        ]
        cells.append((arm, *map(spread, members)))
    last, seeds = rows[-1], len({row["seed"] for row in rows})
    head = ("test accuracy %", *(f"{name}, {count} images" for name, count in sets))
    return (
        f"{tables.markdown(head, cells)}\n\nMean ± standard deviation over {seeds} seeds; "
        f"{last['machine']}, jax {last['jax']}. Written by `python experiments/finetune/run.py` from "
        "`results.csv`."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="")
    parser.add_argument("--model", default="resnet20_cifar_centered")
    parser.add_argument("--data", default="fashion_mnist_mini")
    parser.add_argument("--name", default="Fashion-MNIST")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--group", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    if given.group:
        group(given.group, given.out)
        return
    if not given.tables:
        if not given.weights:
            raise UserError("--weights is missing; name a file of weights, as in --weights=resnet20.th")
        compile_cache.enable()
        done = {
            int(r["seed"])
            for r in results.read(RESULTS)
            if (r["data"], r["images"], r["weights"])
            == (given.name, str(given.images), Path(given.weights).name)
        }
        for seed in SEEDS:
            if seed not in done:
                results.append(RESULTS, *run(given, seed))
    pages.write((HERE / "README.md",), "finetune", table(results.read(RESULTS)))


if __name__ == "__main__":
    studies.start(main)
