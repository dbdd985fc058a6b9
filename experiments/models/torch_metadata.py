"""Prints as JSON what torchvision and timm say of their published weights; `weights.py` runs it.

It needs torch, torchvision and timm and nothing of cnnjax. The standard input is a JSON list of timm's names
of networks. No weights are fetched, and no code of theirs is kept: addresses, sizes, accuracies, recipes.
"""

import json
import sys

import timm
import torch
import torchvision
from timm.data import ImageNetInfo
from timm.models import list_pretrained
from torchvision import models

# Their builders change the normalization of the input within the network, if they load weights.
TRANSFORM_INPUT = ("googlenet", "inception_v3")
HALF = [0.5, 0.5, 0.5]


def torchvision_weights() -> list[dict]:
    """A row for each set of weights of a classifier of ImageNet."""
    rows = []
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            meta, recipe = weights.meta, weights.transforms()
            if not meta.get("categories"):  # VGG's features alone
                continue
            inside = name in TRANSFORM_INPUT
            scores = meta["_metrics"]["ImageNet-1K"]
            rows.append(
                {
                    "model": name,
                    "tag": weights.name,
                    "file": weights.url,
                    "mb": meta["_file_size"],
                    "params": meta["num_params"],
                    "acc1": scores["acc@1"],
                    "acc5": scores["acc@5"],
                    "resize": recipe.resize_size[0],
                    "crop": recipe.crop_size[0],
                    "interpolation": recipe.interpolation.value,
                    "mean": HALF if inside else recipe.mean,
                    "std": HALF if inside else recipe.std,
                    "recipe": meta.get("recipe", ""),
                    "license": meta.get("license", "BSD-3-Clause"),
                    "default": weights == models.get_model_weights(name).DEFAULT,
                }
            )
    return rows


def timm_weights(names: list[str]) -> dict:
    """By network its entries with shapes, and a row for each of its weights on the Hub."""
    found = {}
    for name in names:
        if not timm.is_model(name):
            continue
        with torch.device("meta"):
            state = timm.create_model(name).state_dict()
        default = timm.get_pretrained_cfg(name)
        rows = [timm.get_pretrained_cfg(tagged).to_dict() for tagged in list_pretrained(f"{name}.*")]
        found[name] = {
            "shapes": {entry: list(tensor.shape) for entry, tensor in state.items()},
            "default": default.tag,
            "rows": [row for row in rows if row.get("hf_hub_id") and not row["custom_load"]],
        }
    return found


def main() -> None:
    info = ImageNetInfo("imagenet-1k")
    names = json.load(sys.stdin)
    result = {
        "versions": {"torchvision": torchvision.__version__},
        "wnids": info.label_names(),
        "names": models.ResNet50_Weights.DEFAULT.meta["categories"],
        "torchvision": torchvision_weights(),
        "timm": timm_weights(names),
    }
    result["versions"]["timm"] = timm.__version__
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
