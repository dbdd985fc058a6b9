"""One config made real, run, and kept on disk."""
