import jax

from cnnjax.models import count_params, create_model, init_variables, variant


def count_variant_params(spec: str) -> int:
    """The number of parameters of a model at its preset's input size; nothing is allocated."""
    model, size = create_model(spec), variant(spec).preset.input_size
    shapes = jax.eval_shape(lambda key: init_variables(model, key, size), jax.random.key(0))
    return count_params(shapes["params"])
