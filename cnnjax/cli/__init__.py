"""Doors: the command line, one file a command; nothing but flags and words."""
