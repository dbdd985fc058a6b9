"""FILE.json beside an exported network: what another program must know to use it."""

from typing import TypedDict

from cnnjax.inference.model import TrainedModel

DECODING = "uint8 pixels, turned upright as EXIF says, transparent ones over black"


class Step(TypedDict):
    """A step of the preprocessing; its other entries are the arguments."""

    name: str


class Facts(TypedDict):
    """What is read of `description`."""

    model: str
    class_names: list[str]
    preprocessing: list[Step]
    image_shape: list[int]


def description(
    trained: TrainedModel, form: str, half: bool, batch_size: int | None, whole: bool = False
) -> dict[str, object]:
    """What another program must know: preprocessing, classes, and the run's whole config."""
    batch, classes = batch_size or "batch", len(trained.class_names)
    given: dict[str, object] = {"dtype": "float32", "shape": [batch, *trained.input_shape], "layout": "NHWC"}
    returned: dict[str, object] = {"dtype": "float32", "shape": [batch, classes], "values": "logits"}
    if whole:
        shape = ["height", "width", trained.image_shape[2]]
        given = {"dtype": "uint8", "shape": shape, "layout": "HWC"}
        returned = {"dtype": "float32", "shape": [classes], "values": "probabilities"}
    return {
        "format": form,
        "weights": "float16" if half else "float32",
        "model": trained.spec,
        "input": {**given, "channel_order": "RGB" if trained.image_shape[2] == 3 else "grey"},
        "output": returned,
        "preprocessing_in_graph": whole,
        "decoding": DECODING,
        "image": trained.recipe.words(),
        "image_shape": list(trained.image_shape),
        "preprocessing": [_step(name, dict(arguments)) for name, arguments in trained.augment.steps],
        "class_names": list(trained.class_names),
        "step": trained.step,
        "weights_of": trained.name,
        **({"config": trained.config.to_dict()} if trained.config else {}),
    }


def _step(name: str, arguments: dict[str, object]) -> dict[str, object]:
    """A step of the preprocessing, and what it computes where its name does not say it."""
    formula = {"computes": "(pixel / 255 - mean) / std"} if name == "normalize" else {}
    return {"name": name, **arguments, **formula}


def call(step: dict[str, object]) -> str:
    """{"name": "crop", "size": [8, 8]} as 'crop(size=(8, 8))'."""
    values = {key: tuple(x) if isinstance(x, list) else x for key, x in step.items() if key != "computes"}
    return f"{values.pop('name')}({', '.join(f'{key}={value!r}' for key, value in values.items())})"
