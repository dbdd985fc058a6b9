"""A functional JAX/Flax research framework for convolutional image classifiers.

    import cnnjax

    model = cnnjax.create_model("resnet18", num_classes=10)        # a linen module: init, apply
    source = cnnjax.load_dataset("fashion_mnist_mini", "train")    # len(source), source[i]
    result = cnnjax.train(cnnjax.default_config(), "runs/first")   # as `cnnjax train`
    scores, predictions = cnnjax.evaluate("runs/first")            # as `cnnjax evaluate`
    cnnjax.load_run("runs/first").predict("images/")               # as `cnnjax predict`
    cnnjax.load_model("resnet50").predict("cat.jpg")               # torchvision, timm, the Hub or a file

`cnnjax.explore` shows what a network has learned. All other functions are imported from their modules.
"""

import importlib

__version__ = "0.1.0"
__all__ = [
    "create_model",
    "default_config",
    "evaluate",
    "list_models",
    "load_dataset",
    "load_model",
    "load_run",
    "model_features",
    "train",
]

_PLACES = {
    "create_model": ("cnnjax.models", "create_model"),
    "default_config": ("cnnjax.config", "default"),
    "evaluate": ("cnnjax.runs.evaluate", "evaluate"),
    "list_models": ("cnnjax.models", "list_models"),
    "load_dataset": ("cnnjax.data.datasets", "load"),
    "load_model": ("cnnjax.inference.model", "load_model"),
    "load_run": ("cnnjax.inference.model", "load_run"),
    "model_features": ("cnnjax.models.pyramid", "model_features"),
    "train": ("cnnjax.runs.train", "train"),
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, so that `import cnnjax` is fast."""
    if name not in _PLACES:
        raise AttributeError(f"module 'cnnjax' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _PLACES[name]
    found = getattr(importlib.import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
