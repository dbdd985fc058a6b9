"""A trained network, used and handed on."""
