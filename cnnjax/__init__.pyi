from cnnjax.config import default as default_config
from cnnjax.data.datasets import load as load_dataset
from cnnjax.loop import evaluate as evaluate
from cnnjax.loop import train as train
from cnnjax.models import create_model as create_model
from cnnjax.models import list_models as list_models
from cnnjax.trained import load_run as load_run

__all__ = [
    "create_model",
    "default_config",
    "evaluate",
    "list_models",
    "load_dataset",
    "load_run",
    "train",
]
__version__: str
