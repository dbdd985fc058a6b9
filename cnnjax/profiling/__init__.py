"""What a network and a step cost."""
