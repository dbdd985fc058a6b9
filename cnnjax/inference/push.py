"""A trained network as a repository of the Hugging Face Hub: weights, config.json, a card with its scores."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import traverse_util

from cnnjax.data.files import PART, atomic_write, expanded, read_json, replacing, scratch_folder
from cnnjax.errors import UserError, check_local, visible
from cnnjax.inference.sidecar import own
from cnnjax.models import count_params, variant
from cnnjax.models.weights import files, to_torch
from cnnjax.runs import hub
from cnnjax.runs.folder import Json, Run
from cnnjax.runs.loaded import Loaded
from cnnjax.training.metrics import has_top5

CARD = "README.md"
FILES = {hub.CONFIG, hub.WEIGHTS, CARD}


def write(trained: Loaded, folder: str | Path, license: str = "") -> Path:
    """Writes the files of a repository to a new folder, or to one that it wrote before.

    `load_model(weights=FOLDER)` reads them again.

    The weights have torch's names if the network has any. `license` is an identifier such as apache-2.0; ""
    is that of the weights, if it is known.
    """
    check_local("out", folder)
    path = expanded(folder)
    if path.exists() and not _is_ours(path):
        raise UserError(f"out={folder} contains files that are not a repository's; choose another")
    path.mkdir(parents=True, exist_ok=True)
    record = Run.open(trained.name).read_json("record.json") if trained.config else {}
    license = license or trained.license or str(record.get("model", {}).get("license", ""))
    with replacing(path / hub.WEIGHTS) as part:
        files.write(part, _tensors(trained))
    atomic_write(path / hub.CONFIG, json.dumps(_config(trained, license), indent=2) + "\n")
    atomic_write(path / CARD, _card(trained, record, license))
    return path


def push(trained: Loaded, repository: str, license: str = "", *, private: bool = False) -> str:
    """Writes a repository of the Hub in one commit, made if missing; returns its address."""
    if not hub.NAME.fullmatch(repository):
        raise UserError(f"hf:{repository} is not a repository; allowed: hf:USER/NAME")
    with scratch_folder() as scratch:
        folder = write(trained, scratch / "repository", license)
        hub.upload(repository, folder, sorted(FILES), private=private)
    return f"{hub.endpoint()}/{repository}"


def _is_ours(path: Path) -> bool:
    """Whether a folder is empty or a repository that `write` made."""
    if not path.is_dir():
        return False
    names = {each.name for each in path.iterdir() if not each.name.startswith(PART)}
    return not names or ({hub.CONFIG} <= names <= FILES and "cnnjax" in read_json(path / hub.CONFIG))


def _tensors(trained: Loaded) -> dict[str, np.ndarray]:
    """The weights under torch's names, or if the network has none there under those of here."""
    try:
        return to_torch(trained.variables, trained.model)
    except UserError:
        flat = traverse_util.flatten_dict(trained.variables, sep="/")
        return {name: np.asarray(leaf) for name, leaf in flat.items()}


def _config(trained: Loaded, license: str) -> dict[str, object]:
    """What `pretrained.resolve` reads, and timm as far as it has the network."""
    facts, timm = trained.facts, variant(trained.spec).timm or trained.spec.partition("(")[0]
    height, width, channels = facts.eval_augment.output_shape
    normalize = dict(dict(facts.eval_augment.steps).get("normalize", ()))
    cfg: dict[str, object] = {"input_size": [channels, height, width]}
    cfg |= {"interpolation": facts.recipe.interpolation}
    cfg |= {"crop_pct": min(1.0, min(height, width) / min(facts.recipe.resize))}
    cfg |= {key: np.broadcast_to(value, (channels,)).tolist() for key, value in normalize.items()}
    return {
        **({} if timm == "-" else {"architecture": timm}),
        "num_classes": len(facts.class_names),
        "label_names": list(facts.class_names),
        "pretrained_cfg": cfg | {"num_classes": len(facts.class_names), "license": license},
        "license": license,
        "cnnjax": own(trained),
    }


def _card(trained: Loaded, record: Json, license: str) -> str:
    """The page of the repository."""
    head = {"library_name": "cnnjax", "pipeline_tag": "image-classification", "tags": ["cnnjax", "jax"]}
    head |= {"license": license} if license else {}
    facts, count = trained.facts, count_params(trained.variables["params"])
    rows = {"network": trained.spec, "parameters": f"{count:,}", "classes": str(len(facts.class_names))}
    rows |= {"views averaged": trained.protocol.spec} if trained.protocol.views else {}
    rows |= {"image": "x".join(map(str, facts.eval_augment.output_shape)), "weights of": trained.name}
    if trained.config:
        rows |= {"data set": trained.config.data.name, "step": str(trained.step)}
        rows |= {"weights": "average over training steps"} if trained.weights == "ema" else {}
        rows |= _scores(Run.open(trained.name).read_json("test.json"), trained)
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---"]
    lines += ["", f"# {_plain(trained.spec)}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_plain(value)} |" for key, value in rows.items()]
    lines += ["", "```python", "import cnnjax", "", 'model = cnnjax.load_model(weights="hf:USER/NAME")']
    lines += ['model.predict("image.jpg")', "```"]
    if command := record.get("command"):
        lines += ["", "Trained by", "", "```sh", visible(shlex.join(command)).replace("```", "'''"), "```"]
        lines += ["", f"Commit {_plain(record.get('commit') or 'unknown')}, {_versions(record)}."]
    return "\n".join(lines) + "\n"


def _scores(test: Json, trained: Loaded) -> dict[str, str]:
    """The scores on the test split, if they are of these weights."""
    prefix = "ema_" if trained.weights == "ema" else ""
    if test.get("step") != trained.step or f"{prefix}accuracy" not in test:
        return {"test accuracy": "not evaluated"}
    names = {"accuracy": "test accuracy"}
    if "top5_accuracy" in test and has_top5(test):
        names["top5_accuracy"] = "test top-5 accuracy"
    scores = {words: f"{100 * test[f'{prefix}{name}']:.2f} %" for name, words in names.items()}
    views = {"test views": test["protocol"]} if "protocol" in test else {}  # the run's, whatever is pushed
    return scores | {"test loss": f"{test[f'{prefix}loss']:.4f}", "test images": f"{test['count']:,}"} | views


def _versions(record: Mapping[str, object]) -> str:
    versions = record.get("versions")
    known = versions if isinstance(versions, dict) else {}
    return ", ".join(_plain(f"{name} {known[name]}") for name in ("cnnjax", "jax", "flax") if name in known)


def _plain(text: object) -> str:
    """Text from outside in a cell of Markdown: code, whatever is in it."""
    return f"`{visible(text).replace('`', chr(39)).replace('|', chr(166))}`"
