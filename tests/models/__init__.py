import functools

import jax

from cnnjax.models import count_params, create_model, init_variables, variant
from experiments import results
from tests import ROOT


def count_variant_params(spec: str) -> int:
    """The number of parameters of a model at its preset's input size; nothing is allocated."""
    model, size = create_model(spec), variant(spec).preset.input_size
    shapes = jax.eval_shape(lambda key: init_variables(model, key, size), jax.random.key(0))
    return count_params(shapes["params"])


@functools.cache
def published_counts() -> dict[str, int]:
    """The parameters of each model as the table of all models has them."""
    return {row["name"]: int(row["params"]) for row in results.read(ROOT / "cnnjax/models/networks.csv")}
