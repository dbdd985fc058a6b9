"""The tables of published weights in `cnnjax/models/weights/`, from the metadata of torchvision and timm.

python experiments/models/weights.py --python=python   # one that has torch, torchvision and timm; minutes
python experiments/models/weights.py --new             # looks only at networks that have no rows of timm yet

Facts alone: names, addresses, sizes, accuracies, preprocessing, licences. Of timm's weights those whose
entries have the names and shapes that a network here is read by. Also ImageNet's classes: their names, of
torchvision, and their WordNet ids, of timm.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
from flax import traverse_util

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax.models import create_model, init_variables, list_models, names_in_torch, variant
from cnnjax.models.weights.torch import torch_entry

TABLES = ROOT / "cnnjax" / "models" / "weights"
CLASSES = ROOT / "cnnjax" / "data" / "imagenet_classes.csv"
BASE = "https://download.pytorch.org/models/"
SWAG = {"https://github.com/facebookresearch/SWAG/blob/main/LICENSE": "CC-BY-NC-4.0"}


def metadata(python: str, models: Sequence[str]) -> dict:
    """What `torch_metadata.py` prints of some networks, run by an interpreter that has torch."""
    names = sorted({variant(name).timm or name for name in models})
    command = [python, str(HERE / "torch_metadata.py")]
    return json.loads(subprocess.run(command, input=json.dumps(names).encode(), stdout=-1, check=True).stdout)


def torchvision_rows(found: Sequence[Mapping]) -> list[dict[str, object]]:
    """The rows of the networks that exist here; if a name here is the paper's, torchvision's has another."""
    rows = []
    for row in found:
        own = f"{row['model']}_torchvision"
        name = own if own in list_models() else row["model"]
        if name not in list_models():
            continue
        rows.append(
            {
                "model": name,
                "tag": row["tag"],
                "default": int(row["default"]),
                "file": row["file"].removeprefix(BASE),
                "mb": row["mb"],
                "params": row["params"],
                "top1": row["acc1"],
                "top5": row["acc5"],
                "crop": row["crop"],
                "resize": row["resize"],
                "interpolation": row["interpolation"],
                "mean": in_words(row["mean"]),
                "std": in_words(row["std"]),
                "recipe": row["recipe"],
                "license": SWAG.get(row["license"], row["license"]),
            }
        )
    return sorted(rows, key=lambda row: (row["model"], row["tag"]))


def timm_rows(found: Mapping[str, Mapping], models: Sequence[str]) -> list[dict[str, object]]:
    """The rows of timm's weights that some networks here can be read from."""
    rows = []
    for name in models:
        known = found.get(variant(name).timm or name)
        if not known or not fits(name, known["shapes"]):
            continue
        sizes = [size(shape) for entry, shape in known["shapes"].items() if "running_" not in entry]
        for row in known["rows"]:
            if not row["num_classes"]:  # features alone
                continue
            rows.append(
                {
                    "model": name,
                    "timm": row["architecture"],
                    "tag": row["tag"],
                    "default": int(row["tag"] == known["default"]),
                    "hub": row["hf_hub_id"],
                    "mb": round(4 * sum(sizes) / 2**20, 1),
                    "classes": row["num_classes"],
                    "input": row["input_size"][1],
                    "crop_pct": row["crop_pct"],
                    "interpolation": row["interpolation"],
                    "crop_mode": row["crop_mode"],
                    "mean": in_words(row["mean"]),
                    "std": in_words(row["std"]),
                    "license": row.get("license") or "",
                }
            )
    return rows


def fits(name: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a state dict of timm has the entries of a network here, in one of its spellings."""
    model = create_model(name)
    there = {
        entry: cut(shape) for entry, shape in shapes.items() if not entry.endswith("num_batches_tracked")
    }
    try:
        spellings = names_in_torch(model)
    except ValueError:  # it has none
        return False
    variables = jax.eval_shape(
        lambda: init_variables(model, jax.random.key(0), variant(name).preset.input_size)
    )
    leaves = traverse_util.flatten_dict(variables)
    for spelling in spellings:
        entries = (torch_entry(path, leaf.shape, model, spelling) for path, leaf in leaves.items())
        if {entry.name: cut(entry.shape) for entry in entries} == there:
            return True
    return False


def cut(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without ones at its end, so that a 1x1 convolution is a dense layer."""
    kept = tuple(shape)
    while kept[-1:] == (1,):
        kept = kept[:-1]
    return kept


def size(shape: Iterable[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def in_words(values: Sequence[float]) -> str:
    return " ".join(map(str, values))


def read(path: Path) -> list[dict[str, object]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(f"{path.relative_to(ROOT)}: {len(rows)} rows")


def main() -> None:
    given = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith("--python=")]
    before = read(TABLES / "timm.csv") if "--new" in sys.argv else []
    models = [name for name in list_models() if name not in {row["model"] for row in before}]
    found = metadata(*given or [sys.executable], models)
    print(found["versions"])
    write(TABLES / "torchvision.csv", torchvision_rows(found["torchvision"]))
    rows = [*before, *timm_rows(found["timm"], models)]
    write(TABLES / "timm.csv", sorted(rows, key=lambda row: (row["model"], row["tag"])))
    classes = zip(found["wnids"], found["names"], strict=True)
    write(CLASSES, [{"wordnet": wnid, "name": name} for wnid, name in classes])


if __name__ == "__main__":
    main()
