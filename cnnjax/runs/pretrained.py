"""Trained networks by name: `resolve` says of any source of weights where they lie and what belongs to them.

`torchvision`, `timm` with or without a network and a tag, `hf:USER/NAME` of the Hugging Face Hub, an https
address, a file, or a folder with config.json and model.safetensors.
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import NotRequired, TypedDict

from cnnjax.data.fetch import Remote, digits_of, fetch, is_whole
from cnnjax.data.files import OpenToOthers, atomic_write, check_kind, expanded, make_cache_folder, read_json
from cnnjax.data.sources.classes import imagenet_names
from cnnjax.data.web import NoNetwork, shown, version
from cnnjax.errors import UserError, check_local, parse_call
from cnnjax.models import Preset, variant, variants
from cnnjax.models.variants import timm_preset
from cnnjax.models.weights import files
from cnnjax.models.weights.published import Published, find, published
from cnnjax.runs import hub
from cnnjax.runs.record import DataFacts

FORMS = "torchvision, timm, torchvision:MODEL:TAG, timm:MODEL.TAG, hf:USER/NAME, an https address, a file"
IN_A_RUN = ("raw", "ema")  # weights of a run folder, which are no sources


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights, and what they own."""

    source: str  # in words, as a record has it
    file: Path  # of weights, or a folder of such files with their index
    spec: str  # of the network, see `create_model`
    preset: Preset  # how images are prepared for them
    class_names: tuple[str, ...] = ()  # () if nobody knows them
    license: str = ""
    data: DataFacts | None = None  # of networks that were trained here, in place of the preset
    protocol: str = ""  # the views that they average, if they tell
    trained_as: str = ""  # the spec of such a network when it was trained


class Own(TypedDict):
    """What config.json or a sidecar of a network that was trained here says of it."""

    model: str
    data: DataFacts
    protocol: NotRequired[str]  # older ones lack it


class Sidecar(TypedDict, total=False):
    """What is read of FILE.json, which `cnnjax export` writes beside FILE."""

    sha256: str  # of FILE
    cnnjax: Own


class Cfg(TypedDict, total=False):
    """timm's `pretrained_cfg`."""

    input_size: list[int]
    num_classes: int
    crop_pct: float
    interpolation: str
    crop_mode: str
    mean: list[float]
    std: list[float]
    license: str


class Config(Cfg, total=False):
    """What is read of a config.json."""

    architecture: str
    pretrained_cfg: Cfg
    label_names: list[str]
    cnnjax: Own


def resolve(source: str, model: str = "") -> Pretrained:
    """What a source of weights stands for; it is fetched unless it is here.

    `model` is a spec, needed if the source does not tell the network.

    Raises:
      NoNetwork: it is not here; the error says what to fetch by hand, and where to put it.
      UserError: there is no such source, or it is another file than it should be.
    """
    kind, _, rest = source.partition(":")
    try:
        if kind in ("torchvision", "timm"):
            return _of_table(kind, rest, model)
        if kind == "hf":
            repository, _, revision = rest.partition("@")
            return _of_folder(hub.snapshot(repository, revision or "main"), source, model)
        if kind in ("http", "https"):
            return _of_address(source, model)
    except OpenToOthers as error:
        raise UserError(f"weights {source}: {error}") from None
    check_local("weights", source)
    path = expanded(source)
    if os.path.isfile(path / hub.CONFIG):  # which refuses no name, however long
        return _of_folder(path, source, model)
    if not os.path.isfile(files.locate(path)[0]):
        raise UserError(
            f"{source} is neither a run folder nor a weights file; allowed: a run folder, {FORMS}"
        )
    return _of_file(path, source, model)


def is_run(source: str | Path) -> bool:
    """Whether a source of weights is a run folder."""
    return os.path.isdir(expanded(source) / "checkpoints")


def _of_table(kind: str, rest: str, model: str) -> Pretrained:
    """Weights of torchvision or timm, by the name in `rest` or by the model's."""
    name, _, tag = rest.partition(":" if kind == "torchvision" else ".")
    if model and not tag and not any(name in (row.model, row.there) for row in published()):
        name, tag = "", name
    if not name and not model:
        raise UserError(
            f"weights {kind}: of which network? Name one, as in --model=resnet50 or {kind}:resnet50"
        )
    row = find(kind, name or model, tag)
    if not name and row.model != parse_call(model, "model")[0]:
        raise UserError(f"{model} has no weights of {kind}; {row.model} has, as {row.name}")
    file = _torchvision(row) if kind == "torchvision" else hub.snapshot(row.place)
    names = imagenet_names() if row.preset.num_classes == 1000 else ()
    return Pretrained(row.name, file, model or row.model, row.preset, names, row.license)


def _torchvision(row: Published) -> Path:
    """The file of torchvision, in torch's cache or in our own."""
    base = os.environ.get("CNNJAX_TORCHVISION_URL", "").rstrip("/") or "https://download.pytorch.org/models"
    remote = Remote(f"{base}/{row.place}", None, _digits(row.place))
    own = make_cache_folder("weights") / "torchvision" / row.place
    theirs = _torch_home() / "hub" / "checkpoints" / row.place
    if is_whole(theirs, remote):
        return theirs
    return _fetched(remote, own)


def _torch_home() -> Path:
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("TORCH_HOME") or f"{xdg}/torch")


def _digits(name: str) -> str:
    """The first digits of the SHA-256 that torchvision puts into the name of a file; '' if there are none."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return found[1] if found and any(name == row.place for row in published()) else ""


def _fetched(remote: Remote, path: Path) -> Path:
    try:
        fetch(remote, path)
    except NoNetwork as error:
        raise NoNetwork(f"{error}; download {shown(remote.address)} by hand and save it as {path}") from None
    return path


def _of_address(address: str, model: str) -> Pretrained:
    """A file of any address. If its server has another one now, that is fetched."""
    name = re.sub(r"[^\w.-]", "_", shown(address).rstrip("/").rpartition("/")[2])[-100:]
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = make_cache_folder("weights") / "addresses" / key / name
    known, note = Remote(address, None, _digits(name)), path.with_name("fetched.json")
    if not known.digits and path.is_file():
        before = read_json(note, dict[str, str]) if note.is_file() else {}
        whole = not before or is_whole(path, Remote("", None, before.get("sha256", "")))
        try:
            now = version(address)
        except NoNetwork:
            now = before.get("version", "")  # what is here is used
        if not whole or now != before.get("version", now):
            path.unlink()
    if not path.is_file() or known.digits:
        _fetched(known, path)
        facts = {"version": version(address), "sha256": digits_of(path, "")} if not known.digits else {}
        atomic_write(note, json.dumps(facts))
    return _of_file(path, shown(address), model)


def _of_file(path: Path, source: str, model: str) -> Pretrained:
    """A file of weights: one of torchvision's, one with a sidecar of `cnnjax export`, or any other."""
    digits = _digits(path.name)
    for row in published():
        if digits and row.place == path.name and is_whole(path, Remote("", None, digits)):
            names = imagenet_names()
            return Pretrained(row.name, path, model or row.model, row.preset, names, row.license)
    if own := _exported(path):
        return _trained_here(own, path, source, model)
    if not model:
        raise UserError(f"weights {source}: of which network? name it, as in --model=resnet50")
    return Pretrained(source, path, model, variant(model).preset)


def own_spec(path: Path) -> str:
    """The spec of the network of a file of `cnnjax export`; '' of any other."""
    own = _exported(path)
    return own["model"] if own else ""


def _exported(path: Path) -> Own | None:
    """What the sidecar of a file says of it; None if there is none."""
    beside = path.with_name(f"{path.name}.json")
    facts: Sidecar = read_json(beside, Sidecar) if beside.is_file() else {}
    if "preprocessing" not in facts:  # another program's
        return None
    if "cnnjax" not in facts:
        problem = "an older version wrote it, without all of the preprocessing"
    elif not is_whole(path, Remote("", None, facts.get("sha256", "-"))):
        problem = f"it describes another file than {path.name} is now"
    else:
        return facts["cnnjax"]
    raise UserError(f"{beside}: {problem}; export the network again, or remove the JSON and name --model")


def _trained_here(own: Own, file: Path, source: str, model: str, terms: str = "") -> Pretrained:
    names = tuple(own["data"].get("class_names", ()))
    spec, protocol = model or own["model"], own.get("protocol", "")
    return Pretrained(source, file, spec, Preset(), names, terms, own["data"], protocol, own["model"])


def _of_folder(folder: Path, source: str, model: str) -> Pretrained:
    """A folder as the Hub's repositories are: config.json, and model.safetensors or its index."""
    config = _config(folder / hub.CONFIG)
    weights = folder / (hub.INDEX if (folder / hub.INDEX).is_file() else hub.WEIGHTS)
    if own := config.get("cnnjax"):
        return _trained_here(own, weights, source, model, config.get("license", ""))
    spec = model or _architecture(config.get("architecture", ""), folder / hub.CONFIG)
    cfg: Cfg = {**config, **config.get("pretrained_cfg", {})}  # type: ignore[typeddict-unknown-key]
    preset, names = _preset(cfg, variant(spec).preset, folder / hub.CONFIG), tuple(config["label_names"])
    if not names and preset.num_classes == 1000 and "input_size" in cfg:  # timm infers it too
        names = imagenet_names()
    return Pretrained(source, weights, spec, preset, names, cfg.get("license") or "")


def _config(file: Path) -> Config:
    """A config.json, its entries of their kinds."""
    config = read_json(file)
    try:
        config["label_names"] = config.get("label_names") or []
        cfg = config.get("pretrained_cfg", {})
        for each in (config, cfg) if isinstance(cfg, dict) else ():
            each["license"] = each.get("license") or ""
        check_kind(config, Config)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    return config


def _architecture(name: str, file: Path) -> str:
    """The network here that timm, or a config.json of ours, calls so."""
    known = {row.there: row.model for row in published() if row.source == "timm"}
    known |= {row.timm or own: own for own, row in variants().items() if row.timm != "-"}
    if name not in known:
        raise UserError(f"{file}: architecture {name!r} is not in `cnnjax models`; name one with --model")
    return known[name]


def _preset(cfg: Cfg, own: Preset, file: Path) -> Preset:
    """The preset of timm's `pretrained_cfg`, or the network's own if there is none."""
    if "input_size" not in cfg:
        return own
    sizes, part = cfg["input_size"], cfg.get("crop_pct", 0.875)
    mean, std = tuple(cfg.get("mean", Preset().mean or ())), tuple(cfg.get("std", Preset().std or ()))
    if len(sizes) != 3 or {len(mean), len(std)} != {sizes[0]} or min(*sizes, part, *std) <= 0:
        given = f"input_size={sizes}, crop_pct={part}, mean={list(mean)}, std={list(std)}"
        raise UserError(f"{file} is damaged: {given}; allowed: above 0, a mean and a std for each channel")
    classes, how = cfg.get("num_classes", own.num_classes), cfg.get("interpolation", "bilinear")
    shape, mode = (sizes[1], sizes[2], sizes[0]), cfg.get("crop_mode", "center")
    return timm_preset(shape, classes, part, how, mode, mean=mean, std=std)
