from cnnjax.config import default as default_config
from cnnjax.data.datasets import load as load_dataset
from cnnjax.inference.model import load_model as load_model
from cnnjax.inference.model import load_run as load_run
from cnnjax.models import create_model as create_model
from cnnjax.models import list_models as list_models
from cnnjax.models.pyramid import model_features as model_features
from cnnjax.runs.evaluate import evaluate as evaluate
from cnnjax.runs.train import train as train

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
__version__: str
