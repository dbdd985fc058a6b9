"""A trained network with what it knows of its images: of a run folder, or of weights from elsewhere."""

import contextlib
import dataclasses
from pathlib import Path

import jax
from flax import linen as nn
from flax.errors import FlaxError
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data.augment import views
from cnnjax.data.files import expanded
from cnnjax.data.sources.source import Shape
from cnnjax.errors import UserError, one_line
from cnnjax.models import create_model
from cnnjax.models.forward import image_struct
from cnnjax.models.weights import files
from cnnjax.models.weights.torch import Variables, convert_into, num_classes, require_same, require_told
from cnnjax.runs.config_files import naming
from cnnjax.runs.facts import Facts, of_run, of_weights
from cnnjax.runs.folder import Run
from cnnjax.runs.inputs import data_name, fitting, open_split, own_tree, same_images
from cnnjax.runs.network import check_protocol, trained
from cnnjax.runs.pretrained import IN_A_RUN, Pretrained, is_run, resolve


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A trained network, its weights, and what it knows of its images."""

    name: str  # the run folder, or the source of the weights
    spec: str  # of `create_model`
    step: int  # of the checkpoint; 0 of weights from elsewhere
    config: ConfigDict | None  # of the run; None of weights from elsewhere
    facts: Facts
    model: nn.Module
    protocol: views.Protocol
    variables: Variables
    license: str = ""
    weights: str = "raw"  # of a run also "ema", see `load`


def load(
    workdir: str | Path | None = None,
    *,
    model: str | Path = "",
    weights: str | Path = "raw",
    checkpoint: str | int = "last",
    protocol: str | None = None,
    class_names: str | Path | None = None,
) -> Loaded:
    """The trained network of a run folder, or of a source of weights, see `pretrained.resolve`.

    Args:
      model: a name or spec, for weights that do not tell it.
      weights: of a run "raw", or "ema" for the moving average; else a source.
      checkpoint: of a run: "last", "best" (on validation), or a step.
      protocol: the views of an image that are averaged, see `data.augment.views`; None are its own.
      class_names: a file that names the classes, one a line; None are those that are known, or numbers.
    """
    model, weights = str(model), str(weights)
    if not workdir and is_run(weights):
        workdir, weights = weights, "raw"
    if not workdir:
        if weights in IN_A_RUN:
            hint = "or pretrained weights, as in --model=resnet50 --weights=torchvision"
            raise UserError(f"--workdir is missing; name the run folder that `cnnjax train` wrote, {hint}")
        if checkpoint != "last":
            problem = f"--checkpoint={checkpoint} needs a run folder, and weights {weights} are none"
            raise UserError(f"{problem}; leave it out, or name one with --workdir")
        return _of_weights(resolve(weights, model), protocol, class_names)
    if weights not in IN_A_RUN or model:
        given = f"--model={model}" if model else f"--weights={weights}"
        allowed = f"allowed with --workdir: --weights={' or '.join(IN_A_RUN)}"
        raise UserError(f"{given} cannot be combined with --workdir={workdir}; {allowed}")
    run = Run.open(workdir)
    config, facts = run.config(), of_run(run).named(class_names)
    config.eval_protocol = protocol or config.eval_protocol
    step, network, looks, variables = trained(run, config, facts, checkpoint, weights)
    name, spec = str(run.path), config.model
    return Loaded(name, spec, step, config, facts, network, looks, variables, weights=weights)


def _of_weights(found: Pretrained, protocol: str | None, class_names: str | Path | None) -> Loaded:
    network, variables = read(found)
    facts = of_weights(found, network.num_classes, class_names)
    try:
        jax.eval_shape(network.apply, variables, image_struct(facts.eval_augment.output_shape))
    except (FlaxError, TypeError, ValueError) as error:
        raise UserError(f"{found.spec} cannot take the images of {found.source}: {one_line(error)}") from None
    spec = protocol or found.protocol or config_lib.default().eval_protocol
    with contextlib.nullcontext() if protocol else naming(Path(found.source)):
        looks = views.parse(spec, facts.eval_augment, facts.image_shape)
    check_protocol(found.spec, network, looks, variables)
    return Loaded(found.source, found.spec, 0, None, facts, network, looks, variables, found.license)


def with_data(
    config: ConfigDict | None, data: str | Path | None, image_shape: Shape, run: Run | None = None
) -> ConfigDict | None:
    """A run's config, or the default one, with another data set in the network's shape.

    If it is the one that `run` was trained on, under any name, it keeps its splits.
    """
    if data is None:
        return config
    config, data = config or config_lib.default(), data_name(data)
    own = data == config.data.name and expanded(config.data.dir).is_dir()  # it may be of another machine
    folder = config.data.dir if own else ""  # that of the run is of its own data set
    if run and (moved := same_images(run, data, folder)):
        return moved
    fields = {"name": data, "dir": folder, "num_validation": 0, "size": image_shape[0], "test_split": "test"}
    return config_lib.assign(config, {f"data.{field}": value for field, value in fields.items()})


def labelled(facts: Facts, run: Run | None, config: ConfigDict, split: str) -> Facts:
    """The facts with the class names by which a split is labelled.

    They are those that `run` recorded, which its own images have; if they do not fit, those of a file.
    """
    recorded = run.read_json("record.json").get("data", {}).get("class_names") if run else None
    own = dataclasses.replace(facts, class_names=tuple(recorded or facts.class_names))
    if own.class_names != facts.class_names:
        with contextlib.suppress(UserError):
            open_split(config, split, *own.images, listed=own.listed)
            return own
    return facts


def read(found: Pretrained) -> tuple[nn.Module, Variables]:
    """The network with as many classes as the weights have, and its variables, float32 arrays."""
    arrays, shape = files.read(found.file), found.preset.input_size
    network = create_model(found.spec)
    try:
        if found.trained_as:
            require_same(found.trained_as, network)
        if tree := own_tree(arrays):
            network = network.clone(num_classes=_classes(tree))
            images = of_weights(found, network.num_classes, None).eval_augment.output_shape
            return network, fitting(tree, "it", network, images)
        if not found.data:
            require_told(found.spec)
        if classes := num_classes(arrays, network, shape):
            network = create_model(found.spec, num_classes=classes)
        return network, convert_into(arrays, network, shape)
    except UserError as error:
        raise UserError(f"{found.source}: {error}") from None


def _classes(variables: Variables) -> int:
    """The classes of a tree of names of here, the outputs of its head, which may have no bias."""
    try:
        return int(variables["params"]["head"]["kernel"].shape[-1])
    except (KeyError, TypeError, IndexError):
        raise UserError("it has no params/head/kernel, which every network here has") from None
