"""Weights in from torchvision and timm, and out again."""

from cnnjax.weights.torch_names import convert, to_torch

__all__ = ["convert", "to_torch"]
