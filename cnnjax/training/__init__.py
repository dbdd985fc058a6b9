"""How a network learns: losses, metrics, optimizers, schedules, the training state and its steps."""
