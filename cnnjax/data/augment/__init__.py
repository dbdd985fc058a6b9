"""Augmentations, one file a kind, and the chain that a config spells."""
