"""What a config names: images, and the variables that a training starts from."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import datasets
from cnnjax.data.files import expanded
from cnnjax.data.recipe import Recipe
from cnnjax.data.sources import records
from cnnjax.data.sources.sets import in_words
from cnnjax.data.sources.source import Listed, Shape, Source, resizes, to_memory
from cnnjax.errors import UserError, counted
from cnnjax.models import variable_shapes
from cnnjax.models.weights import files
from cnnjax.models.weights.fit import first, misfits
from cnnjax.models.weights.torch import HEAD, Variables, match, require_same, require_told
from cnnjax.runs.checkpoints import Checkpoints
from cnnjax.runs.folder import Run
from cnnjax.runs.optimizer import errors_name_fields
from cnnjax.runs.pretrained import is_run, own_spec

NAME_IT = "name the data set with --data"
SMALL_BYTES = 2**28  # sources up to this size are read into memory once


def data_name(given: str | Path) -> str:
    """The name of a data set that --data gives: one as in config.data.name, or a folder, .zip or .npz.

    A folder that `cnnjax data prepare` wrote is one of records.

    A UserError asks what is in a .tar, which may be of class folders or of samples.
    """
    if not (given := str(given)):  # as a path it would be the current folder
        raise UserError("data='' names no data set; allowed: a name, a folder of images, or None")
    known = given in datasets.DATASETS or given.startswith(tuple(f"{form}:" for form in datasets.FORMS))
    if known or not (path := expanded(given)).exists():
        return given
    if (suffix := path.suffix.lower()) == ".tar" and path.is_file():
        forms = f"folder:{given} for class folders, tar:{given} for WebDataset samples"
        raise UserError(f"--data={given} could be of two forms; allowed: {forms}")
    if (path / records.FACTS).is_file() and any(path.glob("*.array_record")):
        return f"records:{given}"
    form = "folder" if path.is_dir() or suffix == ".zip" else "npz" if suffix == ".npz" else ""
    return f"{form}:{given}" if form else given


def load_split(
    config: ConfigDict, split: str, *known: Any, one_size: bool = False, listed: Listed | None = None
) -> Source:
    """The source that a config names for a split, in memory if it is small; `known` is of `open_split`."""
    source = open_split(config, split, *known, one_size=one_size, listed=listed)
    if len(source) * math.prod(source.image_shape) <= SMALL_BYTES:
        return to_memory(source, max_bad_images(config))
    return source


def open_split(
    config: ConfigDict,
    split: str,
    class_names: tuple[str, ...] = (),
    image_shape: Shape | None = None,
    recipe: Recipe | None = None,
    *,
    one_size: bool = False,
    listed: Listed | None = None,
) -> Source:
    """The same, its images not read as long as they are in files.

    With a run's classes, the shape of its stored images and its recipe for files, which are those that
    evaluation sees, labels are the run's and files are decoded to its channels; a UserError tells of unknown
    classes and of another shape. Images of several sizes are an error (SeveralSizes), or with `on_bad_image`
    bad ones unless `one_size`. `listed` is of `datasets.load`.
    """
    data = config.data
    place: dict[str, Any] = {"data_dir": data.dir or None, "download": data.download}
    place |= {"size": data.size or None, "recipe": recipe if data.size else None}
    splits = {"num_validation": data.num_validation, "seed": config.seed, "test_split": data.test_split}
    known: dict[str, Any] = {"class_names": class_names, "image_shape": image_shape, "listed": listed}
    with errors_name_fields("data.name"):
        bad = max_bad_images(config) is not None and not one_size
        source = datasets.load(data.name, split, any_size=bad, **place, **splits, **known)
    if image_shape and tuple(source.image_shape) != image_shape:
        given = f"images of {in_words(source.image_shape)}; this run takes {in_words(image_shape)}"
        prepare = ", or prepare them with `cnnjax data prepare`" if resizes(source) else ""
        other = source.image_shape[2] != (channels := image_shape[2])  # which no size changes
        advice = f"give images of {counted(channels, 'channel')}" if other else f"resize them{prepare}"
        raise UserError(f"{source.name} {split}: {given}; {advice}")
    return source


def list_images(config: ConfigDict, listed: Listed) -> None:
    """Lists a folder of images before a run folder is made, which may be below it; see `datasets.load`."""
    if config.data.name.startswith("folder:"):
        with errors_name_fields("data.name"):
            datasets.official_splits(config.data.name, config.data.dir or None, listed)


@contextlib.contextmanager
def if_moved(config: ConfigDict, advice: str, given: str = "") -> Iterator[None]:
    """Adds advice to an error about the images of a run, if their place is gone.

    If the user gave the images in the argument `given`, the error names that in place of the config's field.
    """
    try:
        yield
    except UserError as error:
        if given:
            raise type(error)(str(error).replace("config.data.name", given, 1)) from None
        form, _, place = config.data.name.partition(":")
        places = [config.data.dir, "" if form == "tfds" else place]
        if all(expanded(each).exists() for each in places if each):
            raise
        raise UserError(f"{error}; if it was moved, {advice}") from None


def max_bad_images(config: ConfigDict) -> int | None:
    """Images that may be left out; None if the first one that cannot be read is an error."""
    return config.data.max_bad_images if config.data.on_bad_image == "skip" else None


def initial_variables(
    source: str | Path, model: nn.Module, image_shape: tuple[int, ...], *, head: str = "keep", spec: str = ""
) -> Variables:
    """{"params", "batch_stats"} of a run folder's best checkpoint, or of a weights file (see `files.read`).

    They are float32 NumPy arrays. A UserError names leaves that do not fit a model of images [H, W, C].
    `head` is "keep", or "new": its leaves are left out, for another number of classes. With the model's
    `spec` a UserError asks for fields of it that weights cannot tell and it leaves open.
    """
    path = Path(source)
    if (path / "checkpoints").is_dir():
        return _of_run(path, model, image_shape, head)
    if not files.locate(source)[0].is_file():
        raise UserError(f"{source} is neither a run folder nor a weights file")
    arrays = files.read(source)
    if tree := own_tree(arrays):
        if trained_as := own_spec(path):
            require_same(trained_as, model)
        return fitting(tree, path, model, image_shape, head)
    if spec:
        require_told(spec)
    found = match(arrays, model, image_shape, head=head == "keep")
    classes, ours = found.num_classes, getattr(model, "num_classes", None)
    if head == "keep" and classes not in (None, ours):
        choice = (
            f"initialize a new head with config.init_head=new, or build the model with num_classes={classes}"
        )
        raise UserError(f"{source} has {classes} classes, the model {ours}; {choice}")
    try:
        return found.variables()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _of_run(path: Path, model: nn.Module, image_shape: tuple[int, ...], head: str) -> Variables:
    require_same(Run.open(path).config().model, model)
    _, variables = Checkpoints(path / "checkpoints").variables("best", "raw")
    return fitting(variables, path, model, image_shape, head)


def same_images(run: Run, data: str, folder: str, listed: Listed | None = None) -> ConfigDict | None:
    """A run's config with another data.name and data.dir, if its train split is recorded as the same."""
    moved = config_lib.assign(run.config(), {"data.name": data, "data.dir": folder})
    if before := run.images()["train"]:
        with contextlib.suppress(UserError):  # it may lack a train split
            return moved if load_split(moved, "train", listed=listed).fingerprint == before else None
    return None


def seen_before(config: ConfigDict, listed: Listed | None = None) -> str:
    """A line if the run that training starts from has seen the images that are held out here; '' if not."""
    if not config.init_from or not is_run(config.init_from):
        return ""
    start = (run := Run.open(config.init_from)).config()
    data, seed, count = config.data, start.seed, start.data.num_validation
    more = data.num_validation > count  # fewer are among those of the same seed
    if seed == config.seed and not more:
        return ""
    if start.data.name != data.name and not same_images(run, data.name, data.dir, listed):
        return ""
    with contextlib.suppress(UserError):  # that run had no validation split
        same = config_lib.assign(config, {"seed": seed, "data.num_validation": count})
        ours, theirs = (open_split(each, "validation", listed=listed) for each in (config, same))
        if ours.fingerprint == theirs.fingerprint:  # the data set's own
            return ""
    advice = f"config.seed={seed} with config.data.num_validation={count} holds out those of that run"
    advice = advice if count else "train that run with config.data.num_validation too"
    return f"config.init_from={config.init_from} was trained on images that are held out here: {advice}"


def own_tree(arrays: Mapping[str, np.ndarray]) -> Variables | None:
    """The variables of a file of this package's own names, as `cnnjax export` writes; None of any other."""
    if not all(name.startswith(("params/", "batch_stats/")) for name in arrays):
        return None
    tree = {path: np.asarray(x, np.float32) for path, x in arrays.items()}
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(tree, sep="/")


def fitting(
    variables: Variables, path: str | Path, model: nn.Module, image_shape: tuple[int, ...], head: str = "keep"
) -> Variables:
    """The variables, or a UserError that names leaves that do not fit; arguments as `initial_variables`."""
    shapes = variable_shapes(model, image_shape)
    given, wanted = (traverse_util.flatten_dict(tree) for tree in (variables, shapes))
    if head == "new":
        given, wanted = ({p: x for p, x in flat.items() if HEAD not in p} for flat in (given, wanted))
    problems = misfits(*({"/".join(p[1:]): x.shape for p, x in flat.items()} for flat in (given, wanted)))
    if problems:
        hint = "; for other classes initialize a new head with config.init_head=new"
        only_head = all(HEAD in problem for problem in problems)
        problem = f"{path} does not fit the model: {first(problems, '; ')}"
        raise UserError(f"{problem}{hint if only_head else ''}")
    given = {p: np.asarray(x) for p, x in given.items()}
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(given)
