"""A functional JAX/Flax research framework for convolutional image classifiers."""

__version__ = "0.1.0"
