"""FILE.json beside an exported network: what another program must know to use it."""

import datetime

import jaxlib

from cnnjax.inference.model import TrainedModel
from cnnjax.runs.loaded import Loaded

DECODING = "uint8 pixels, rotated as EXIF says, transparent ones over black"
CHANNEL_ORDER = {1: "grey", 3: "RGB"}  # of other channels nobody knows it

# No jaxlib from these versions on was built before these days, which jax's sources name. jax.export promises
# to load what a jaxlib wrote with any other that was built within six months of it.
BUILT = {(0, 10, 2): datetime.date(2026, 5, 15), (0, 12, 0): datetime.date(2026, 7, 28)}


def loads_until(version: str = jaxlib.__version__) -> str:
    """The day until which jax.export is sure to load what this jaxlib writes; "" if it is not known.

    It counts for the day on which the reading jaxlib was built. Later ones load most files all the same.
    """
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    known = [day for first, day in BUILT.items() if first <= numbers]
    if not known:
        return ""
    later = known[-1].month + 6
    return str(known[-1].replace(year=known[-1].year + (later > 12), month=(later - 1) % 12 + 1))


def description(
    trained: TrainedModel, form: str, weights: str, batch_size: int | None, whole: bool, sha256: str
) -> dict[str, object]:
    """What another program must know: preprocessing, classes, and the run's whole config."""
    batch, classes = int(batch_size or 0) or "batch", len(trained.class_names)
    given: dict[str, object] = {"dtype": "float32", "shape": [batch, *trained.input_shape], "layout": "NHWC"}
    returned: dict[str, object] = {"dtype": "float32", "shape": [batch, classes], "values": "logits"}
    if whole:
        shape = ["height", "width", trained.image_shape[2]]
        given = {"dtype": "uint8", "shape": shape, "layout": "HWC"}
        returned = {"dtype": "float32", "shape": [classes], "values": "probabilities"}
    if order := CHANNEL_ORDER.get(trained.image_shape[2]):
        given["channel_order"] = order
    promise = {"jaxlib": jaxlib.__version__, "loads_until": loads_until()} if form == "stablehlo" else {}
    return {
        "format": form,
        "sha256": sha256,
        **promise,
        "weights": weights,
        "model": trained.spec,
        "input": given,
        "output": returned,
        "preprocessing_in_graph": whole,
        "decoding": DECODING,
        "image": trained.recipe.words(),
        "image_shape": list(trained.image_shape),
        "preprocessing": [_step(name, dict(arguments)) for name, arguments in trained.augment.steps],
        "class_names": list(trained.class_names),
        "step": trained.step,
        "weights_of": trained.name,
        "cnnjax": own(trained),
        **({"config": trained.config.to_dict()} if trained.config else {}),
    }


def own(trained: TrainedModel | Loaded) -> dict[str, object]:
    """What `pretrained.resolve` reads of a network, see `pretrained.Own`."""
    return {"model": trained.spec, "data": trained.facts.record(), "protocol": trained.protocol.spec}


def _step(name: str, arguments: dict[str, object]) -> dict[str, object]:
    """A step of the preprocessing, and what it computes where its name does not say it."""
    formula = {"computes": "(pixel / 255 - mean) / std"} if name == "normalize" else {}
    return {"name": name, **arguments, **formula}
