"""Weights in from torchvision and timm, and out again."""

from cnnjax.models.weights.torch import convert, to_torch

__all__ = ["convert", "to_torch"]
